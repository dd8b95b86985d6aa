"""What to do with the work of an arena whose processes are gone."""

from __future__ import annotations

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import Settings
from shmcache.database.connection import connect
from shmcache.database.submissions import submitted
from shmcache.errors import NotFound
from shmcache.identifiers import id_text
from shmcache.records import FINAL_STATUSES, ExecutionStatus


def terminate_unfinished(arena: Arena, database_url: str, settings: Settings) -> int:
    """End the graph executions that have work left in the arena: they and their open executions become TERMINATED.

    Those that a broker hands out stay as they are: another host goes on with them.
    For an arena that nobody runs any more. The rows go on the write ring, so drain it afterwards. Returns how many
    graph executions were ended. Raises DatabaseUnavailable where a record must be loaded and cannot be."""
    client = CachedClient(arena, database_url, settings)
    arena.release_dead()
    graph_executions: dict[str, None] = {}
    for key in arena.unfinished():
        identifier = id_text(key)
        try:
            graph_executions[client.get_node_execution(identifier).graph_exec_id] = None
        except NotFound:
            graph_executions[identifier] = None
    if graph_executions:
        with connect(database_url, application_name="shmcache recovery") as connection:
            for identifier in submitted(connection, graph_executions):
                del graph_executions[identifier]
    ended = 0
    for identifier in graph_executions:
        try:
            for execution in client.get_node_executions(identifier):
                if execution.status not in FINAL_STATUSES:
                    client.update_node_execution_status(execution.id, ExecutionStatus.TERMINATED)
            client.update_graph_execution_stats(identifier, ExecutionStatus.TERMINATED, {"error": "interrupted"})
            ended += 1
        except NotFound:
            continue
    client.close()
    return ended
