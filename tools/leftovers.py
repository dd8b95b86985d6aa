"""Arenas that nobody runs any more: what is on their rings goes to the database before new work begins."""

from __future__ import annotations

import logging

from shmcache.arena import Arena, list_arenas
from shmcache.config import Settings
from shmcache.errors import ArenaMissing, ArenaUnusable
from shmcache.recovery import terminate_unfinished
from syncer.charge_pool import ChargePool
from syncer.sync_manager import SyncManager

logger = logging.getLogger(__name__)


def drain_leftovers(database_url: str, identity: bytes, settings: Settings, spare: str) -> int:
    """Drain and remove every arena of this user whose processes are all dead; return how many were removed.

    The arena named `spare` is left alone. Graph executions that had not ended become TERMINATED. An arena of another
    database, one that cannot be attached, or one whose entries the database does not take now, stays, with a
    warning."""
    removed = 0
    for name in list_arenas():
        if name == spare:
            continue
        try:
            arena = Arena.attach(name)
        except ArenaMissing:
            continue
        except ArenaUnusable as error:
            logger.warning("%s", error)
            continue
        try:
            if any(process.alive for process in arena.processes()):
                continue
            if arena.identity != identity:
                logger.warning(
                    "arena %s was left over by a run on another database: start a run there to drain it", name
                )
                continue
            if drain(arena, database_url, settings):
                arena.unlink()
                removed += 1
        finally:
            arena.close()
    return removed


def drain(arena: Arena, database_url: str, settings: Settings) -> bool:
    """End what is unfinished in an arena and carry its rings to the database; return whether all of it went."""
    logger.info("draining arena %s, which was left over", arena.name)
    arena.enter("supervisor")
    ended = terminate_unfinished(arena, database_url, settings)
    if ended:
        logger.warning("arena %s: %d graph executions had not ended, they are TERMINATED now", arena.name, ended)
    ChargePool(arena, database_url, settings).run_once()
    SyncManager(arena, database_url, settings).run_once()
    left = [
        ring.last_sequence - ring.committed_sequence
        for ring in (arena.write_ring, arena.charge_ring)
        if ring.last_sequence > ring.committed_sequence
    ]
    if left:
        logger.warning("arena %s keeps %d entries: the database does not take them now", arena.name, sum(left))
    return not left
