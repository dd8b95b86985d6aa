"""Taking graph executions over an arena: what a host had of them before may be old, and is forgotten."""

from __future__ import annotations

from shmcache.cached_credits import CachedCredits
from shmcache.database import ownership
from shmcache.errors import StillAtWork
from shmcache.execution_data_client import WorkKind
from shmcache.identifiers import id_bytes
from shmcache.records import FINAL_STATUSES, GraphExecution


class CachedOwnership(CachedCredits):
    """The part of the cached client that takes graph executions.

    1  look      if the arena has some of it: is it this host's? Then nothing is to be done
    2  forget    what the arena has of it; nobody loads it meanwhile           death: it is loaded again
    3  take      and load, in one transaction in the database                  death before: as 2; after: it is ours
    4  fill      the arena has it as it was taken                              death: it is loaded by who needs it
    """

    def take_graph_execution(self, graph_exec_id: str) -> int:
        """See ExecutionDataClient."""
        return self._take(graph_exec_id).token

    def resume_graph_execution(self, graph_exec_id: str) -> GraphExecution:
        """See ExecutionDataClient."""
        taken = self._take(graph_exec_id)
        execution = self.get_graph_execution(graph_exec_id)
        if execution.status not in FINAL_STATUSES:
            if taken.is_cancelled and "error" not in execution.stats:
                execution = self.update_graph_execution_stats(graph_exec_id, None, {"error": "cancelled"})
            self.put_work(WorkKind.START, graph_exec_id, graph_exec_id)
        return execution

    def _take(self, graph_exec_id: str) -> ownership.Taken:
        key = id_bytes(graph_exec_id)
        arena = self._arena
        owner = self._backing.load(ownership.owner_of, graph_exec_id) if arena.has_entry(key) else None
        if owner is not None and owner[0] == arena.arena_id:
            return ownership.Taken(owner[1])
        with arena.loads.loading(key):
            self._forget(key, graph_exec_id)
            since = arena.write_ring.last_sequence
            low_balance = self._settings.low_balance
            taken = self._backing.load(ownership.take, graph_exec_id, arena.arena_id, since, low_balance)
            if taken.record is not None:
                self._records.fill_family(taken.record, taken.executions)
        return taken

    def _forget(self, key: bytes, graph_exec_id: str) -> None:
        arena = self._arena
        if arena.has_entry(key):
            ring = arena.write_ring
            ring.request_drain()
            ring.wait_committed(ring.last_sequence, self._settings.ring_wait)
            if not arena.drop_family(key) and arena.has_entry(key):
                raise StillAtWork(graph_exec_id)
