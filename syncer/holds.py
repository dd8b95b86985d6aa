"""Estimates that nobody will settle: their graph has ended, or their owner has died and left no work behind."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import Settings
from shmcache.database.connection import connect
from shmcache.database.settlement import OpenHold, load_open_holds
from shmcache.errors import InvalidValue, NotFound
from shmcache.identifiers import id_bytes
from shmcache.records import FINAL_STATUSES

logger = logging.getLogger(__name__)


def close_left_holds(
    arena: Arena, client: CachedClient, holds: Iterable[OpenHold], *, owners_are_gone: bool = False
) -> int:
    """Settle or void the estimates whose owner or graph is gone; return how many.

    A node execution that is on the work queue, or claimed, ends in another worker, which settles it. With
    `owners_are_gone` all are closed. A process is taken for dead only if the arena knows no living one of its pid, so a
    hold is never taken from one that lives. Raises DatabaseUnavailable."""
    candidates = list(holds)
    if not owners_are_gone:
        living = {process.pid for process in arena.processes() if process.alive}
        orphans = {each.transaction_key for each in candidates if each.owner_pid not in living}
        unfinished = set(arena.unfinished()) if orphans else set()
        candidates = [
            each
            for each in candidates
            if (each.transaction_key in orphans and id_bytes(each.node_exec_id) not in unfinished)
            or _has_ended(client, each.graph_exec_id)
        ]
    closed = sum(client.close_hold(each) for each in candidates)
    if closed:
        logger.info("%d estimates were settled or voided that nobody else would have", closed)
    return closed


def close_all_holds(arena: Arena, database_url: str, settings: Settings) -> int:
    """Settle or void every estimate that is open in an arena whose workers are gone; return how many.

    For when its charge ring is drained; there is something on the rings again afterwards if any was. Raises
    DatabaseUnavailable."""
    with connect(database_url, application_name="shmcache holds") as connection:
        holds = load_open_holds(connection, arena.arena_id)
    if not holds:
        return 0
    client = CachedClient(arena, database_url, settings)
    try:
        return close_left_holds(arena, client, holds, owners_are_gone=True)
    finally:
        client.close()


def _has_ended(client: CachedClient, graph_exec_id: str) -> bool:
    try:
        return client.get_graph_execution(graph_exec_id).status in FINAL_STATUSES
    except (NotFound, InvalidValue):
        return True
