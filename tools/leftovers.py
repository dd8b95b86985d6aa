"""Arenas that nobody runs any more: what is on their rings goes to the database before new work begins.

Who supervises an arena, or drains it, holds its lock for "supervisor": so nobody drains what is in use, no two drain
the same, and none removes an arena that another has just made anew under the same name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from collections.abc import Callable

import psycopg

from shmcache.arena import Arena, list_arenas
from shmcache.arena.mapping import is_mapping
from shmcache.config import Settings
from shmcache.database.connection import connect
from shmcache.database.leases import release_leases
from shmcache.database.ownership import release_lease
from shmcache.errors import ArenaExists, ArenaMissing, ArenaUnusable, DatabaseUnavailable
from shmcache.recovery import terminate_unfinished
from shmcache.session import remove_address
from syncer.charge_pool import ChargePool
from syncer.consumer import RingConsumer, one_line
from syncer.election import Candidate, remove_locks
from syncer.holds import close_all_holds
from syncer.sync_manager import SyncManager

logger = logging.getLogger(__name__)

_ORPHANS_SECONDS = 30.0


def claim(name: str, settings: Settings) -> Candidate:
    """Become the only supervisor of an arena. Raises ArenaExists if it has one."""
    lock = Candidate(settings.state_dir, name, "supervisor")
    if not lock.try_now():
        raise ArenaExists(name)
    return lock


def refuse_unusable(name: str) -> None:
    """Raise ArenaUnusable if an arena of this name is there and cannot be used.

    Asked before anything is changed, the tables above all: another version may have to drain it first."""
    with contextlib.suppress(ArenaMissing):
        Arena.attach(name).close()


def drain_leftovers(
    database_url: str, identity: bytes, settings: Settings, *, spare: str, should_stop: Callable[[], bool]
) -> int:
    """Drain and remove every arena of this user whose processes are all dead; return how many were removed.

    The arena named `spare` is left alone. Graph executions that had not ended become TERMINATED. An arena of another
    database, one that cannot be attached, or one whose entries the database does not take now, stays, with a
    warning."""
    removed = 0
    for name in list_arenas():
        if should_stop():
            break
        if name == spare or not _belongs_to(name, identity):
            continue
        lock = Candidate(settings.state_dir, name, "supervisor")
        if lock.try_now():
            try:
                removed += _drain_leftover(name, database_url, identity, settings, should_stop)
            finally:
                lock.leave()
    return removed


def open_arena(
    name: str, size_bytes: int, identity: bytes, settings: Settings, should_stop: Callable[[], bool]
) -> Arena:
    """Make an arena, or attach to the one of this name that a dead supervisor left: its work goes on.

    Call with its lock held. Processes of the dead supervisor are waited for, they are about to leave; those that were
    never its own (a web server's) go on. Raises ArenaExists where one stays, ArenaUnusable where the arena belongs to
    another database."""
    lock_wait, ring_wait = settings.lock_wait, settings.ring_wait
    if name not in list_arenas():
        return Arena.create(name, size_bytes, identity, lock_wait=lock_wait, ring_wait=ring_wait)
    arena = Arena.attach(name, lock_wait=lock_wait, ring_wait=ring_wait)
    if arena.identity != identity:
        raise ArenaUnusable(name, "it belongs to another database: start a supervisor there, or choose another name")
    _await_orphans(arena, should_stop)
    if _orphans(arena):
        raise ArenaExists(name)
    arena.reopen()
    returned = arena.release_dead()
    arena.sweep()
    logger.warning("arena %s was left over: attached to it, %d work entries go back to the queue", name, returned)
    return arena


def _belongs_to(name: str, identity: bytes) -> bool:
    """Say whether an arena is there, can be used, and holds what is for this database."""
    try:
        arena = Arena.attach(name)
    except ArenaMissing:
        return False
    except ArenaUnusable as error:
        logger.warning("%s", error)
        return False
    try:
        if arena.identity != identity and not living(arena) and not is_mapping(arena.identity):
            logger.warning("arena %s was left over by a run on another database: start one there to drain it", name)
        return arena.identity == identity
    finally:
        arena.close()


def _drain_leftover(
    name: str, database_url: str, identity: bytes, settings: Settings, should_stop: Callable[[], bool]
) -> bool:
    """Drain and remove an arena whose lock is held; return whether it is gone."""
    try:
        arena = Arena.attach(name)  # again: only now it can be no other one of this name
    except (ArenaMissing, ArenaUnusable):
        return False
    try:
        if arena.identity != identity or living(arena) or not drain(arena, database_url, settings, should_stop):
            return False
        if not remove(arena, settings):
            return False
        give_leases_back(arena, database_url)
        return True
    finally:
        arena.close()


def drain(
    arena: Arena,
    database_url: str,
    settings: Settings,
    should_stop: Callable[[], bool],
    on_batch: Callable[[], None] | None = None,
) -> bool:
    """End what is unfinished in an arena and carry its rings to the database; return whether all of it went.

    `on_batch` is called after each batch that did; `should_stop` ends it before the next one."""
    logger.info("draining arena %s, which was left over", arena.name)
    arena.reopen()
    arena.enter("supervisor")
    ended = terminate_unfinished(arena, database_url, settings)
    if ended:
        logger.warning("arena %s: %d graph executions had not ended, they are TERMINATED now", arena.name, ended)

    def run_once(consumer: RingConsumer) -> None:
        consumer.on_batch = on_batch
        consumer.run_once(should_stop)

    run_once(SyncManager(arena, database_url, settings))  # rows before their charges
    run_once(ChargePool(arena, database_url, settings))
    if not should_stop() and close_all_holds(arena, database_url, settings):
        run_once(ChargePool(arena, database_url, settings))
    run_once(SyncManager(arena, database_url, settings))
    left = unsynced(arena)
    if left:
        logger.warning("arena %s keeps %d entries: the database does not take them now", arena.name, left)
    return not left


def remove(arena: Arena, settings: Settings, work_ended: int | None = None) -> bool:
    """Remove an arena that is drained; return False if somebody uses it, or has left something in it meanwhile.

    `work_ended`: as many entries of its work queue as nobody needs any more; None: all."""
    if not arena.end():
        return False
    if unsynced(arena) or (work_ended is not None and arena.outstanding() > work_ended):
        arena.reopen()
        return False
    arena.unlink()
    remove_locks(settings.state_dir, arena.name)
    remove_address(settings.state_dir, arena.name)
    return True


def give_leases_back(arena: Arena, database_url: str) -> None:
    """Let other hosts have at once what an arena that is removed had leased, and take what it owned."""
    try:
        with connect(database_url, application_name="shmcache leases") as connection:
            release_leases(connection, arena.arena_id)
            release_lease(connection, arena.arena_id)
    except (psycopg.Error, DatabaseUnavailable) as error:
        logger.warning(
            "what arena %s had leased of accounts is free when its lease ends: %s", arena.name, one_line(error)
        )


def unsynced(arena: Arena) -> int:
    """Return how many entries of both rings are not in the database yet."""
    return sum(ring.last_sequence - ring.committed_sequence for ring in (arena.write_ring, arena.charge_ring))


def living(arena: Arena) -> list[int]:
    """Return the pids of the processes that are attached to an arena and live, this one not among them."""
    return [process.pid for process in arena.processes() if process.alive]


def _orphans(arena: Arena) -> list[int]:
    """Return the pids of the processes that a supervisor of the arena has left behind."""
    return [process.pid for process in arena.processes() if process.alive and process.role != "other"]


def _await_orphans(arena: Arena, should_stop: Callable[[], bool]) -> None:
    """Wait for the processes whose supervisor died: they drain what they can, and leave."""
    deadline = time.monotonic() + _ORPHANS_SECONDS
    while (pids := _orphans(arena)) and time.monotonic() < deadline and not should_stop():
        logger.info("arena %s: waiting for %d processes of its last supervisor to leave", arena.name, len(pids))
        try:
            descriptor = os.pidfd_open(pids[0])
        except ProcessLookupError:
            return  # of another container, or it has just left
        try:
            select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        finally:
            os.close(descriptor)
