"""The supervisor: one process that makes the arena, forks workers, syncers and charger, keeps them alive, and ends in
order.

    start    database, migrations, left-over arenas drained, arena, children
    loop     signals only queue; the loop acts: reap and restart, end when the job is done or a signal asks for it
    end      workers leave after the node at hand; charges settle, rings drain; then the rest ends and the segment goes

A second Ctrl-C (or SIGTERM) leaves at once: the segment stays in /dev/shm, and the next start drains it.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from shmcache import session
from shmcache.arena import Arena, free_bytes, list_arenas
from shmcache.config import Settings
from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import identity, migrate
from shmcache.errors import ArenaExists, ArenaUnusable
from shmcache.recovery import terminate_unfinished
from syncer.charge_pool import ChargePool
from syncer.sync_manager import SyncManager
from tools.leftovers import drain_leftovers
from tools.processes import Processes, Role, ShouldStop

logger = logging.getLogger(__name__)

_TURN_SECONDS = 0.1
_SYNCERS = 2
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


class LeftAtOnce(BaseException):
    """A second signal: end without draining."""


class Job(Protocol):
    """What a supervisor is started for."""

    def begin(self, database_url: str) -> None:
        """Do what must be in the database before workers start."""

    def submit(self) -> None:
        """Give the workers, which run now, their work."""

    def is_done(self, processes: Processes) -> bool:
        """Say whether all work has ended."""

    def show(self) -> None:
        """Show how far it is; called some ten times a second."""


class Supervisor:
    """Runs a job over an arena of its own. `work` is what each worker process does.

    `restart_workers` says whether a worker that returns by itself is started again."""

    def __init__(
        self, settings: Settings, arena_name: str, work: Callable[[ShouldStop], None], restart_workers: bool = True
    ) -> None:
        self._settings = settings
        self._arena_name = arena_name
        self._worker = Role("worker", work, restart_workers)
        self._pending_signals: list[int] = []
        self._interrupted = False
        self.database_url = settings.database_url or ""
        self.worker_restarts = 0
        self.unsynced = 0
        self.counters: dict[str, int] = {}
        self.finished_at = 0.0
        self.arena_id = ""

    def run(self, job: Job, report: Callable[[], None]) -> bool:
        """Do a job from start to end; `report` is called when everything is in the database, which still runs then.

        Returns False if a signal ended it early. Raises ShmcacheError where it cannot start."""
        server = None
        # Should a charger be killed, Python's resource tracker removes its pool's semaphores, and need not warn of it.
        os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
        previous = {number: signal.signal(number, self._queue_signal) for number in _SIGNALS}
        try:
            if not self.database_url:
                server = EmbeddedServer.start(self._settings.state_dir)
                self.database_url = server.url
            self._supervise(job)
            report()
        except LeftAtOnce:
            logger.warning("left at once: what is not in the database yet stays in arena %s; the next start drains it",
                           self._arena_name)  # fmt: skip
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            if server is not None:
                server.stop()
        return not self._interrupted

    def _supervise(self, job: Job) -> None:
        with connect(self.database_url, application_name="shmcache supervisor") as connection:
            migrate(connection)
            database_identity = identity(connection)
        settings = self._settings
        drain_leftovers(self.database_url, database_identity, settings, spare=self._arena_name)
        job.begin(self.database_url)
        arena = self._open_arena(database_identity)
        self.arena_id = arena.arena_id
        processes = Processes(arena)
        drained = False
        try:
            arena.enter("supervisor")
            session.prepare(arena, self.database_url, settings)
            self._start_children(arena, processes)
            job.submit()
            session.forget()  # its connection must not be open when a worker is forked anew
            session.prepare(arena, self.database_url, settings)
            self._loop(processes, lambda: self._interrupted or job.is_done(processes), job.show)
            if self._interrupted:
                self._end_workers(processes, job)
                terminate_unfinished(arena, self.database_url, settings)
            drained = self._drain(arena, processes, job)
            self.finished_at = time.monotonic()
            processes.stop("worker", "syncer", "charger")
            self._loop(processes, lambda: self._ended(arena, processes), job.show)
        finally:
            processes.kill()
            self.worker_restarts = processes.restarts.get("worker", 0)
            self.counters = arena.counter_totals()
            self.unsynced = unsynced(arena)
            session.forget()
            if drained or (not self.unsynced and not arena.outstanding()):
                arena.unlink()
            arena.close()

    def _open_arena(self, database_identity: bytes) -> Arena:
        """Make the arena, or attach to the one of this name that a dead supervisor left: its work goes on.

        Raises ArenaExists where a living process uses it, ArenaUnusable where it belongs to another database."""
        settings, name = self._settings, self._arena_name
        waits = {"lock_wait": settings.lock_wait, "ring_wait": settings.ring_wait}
        if name not in list_arenas():
            return Arena.create(name, arena_size(settings), database_identity, **waits)
        arena = Arena.attach(name, **waits)
        if any(process.alive for process in arena.processes()):
            raise ArenaExists(name)
        if arena.identity != database_identity:
            raise ArenaUnusable(
                name, "it belongs to another database: start a supervisor there, or choose another name"
            )
        returned = arena.release_dead()
        logger.warning("arena %s was left over: attached to it, %d work entries go back to the queue", name, returned)
        return arena

    def _start_children(self, arena: Arena, processes: Processes) -> None:
        settings, url = self._settings, self.database_url
        if settings.mode == "cached":
            for _ in range(_SYNCERS):
                processes.start(Role("syncer", lambda stop: SyncManager(arena, url, settings).run(stop)))
            processes.start(Role("charger", lambda stop: ChargePool(arena, url, settings).run(stop)))
        for _ in range(settings.workers):
            processes.start(self._worker)

    def _loop(self, processes: Processes, done: Callable[[], bool], show: Callable[[], None]) -> None:
        """Act on signals and deaths until `done()`."""
        while True:
            while self._pending_signals:
                number = self._pending_signals.pop(0)
                if number == signal.SIGCHLD:
                    continue
                if self._interrupted:
                    raise LeftAtOnce
                self._interrupted = True
                logger.warning("%s: ending in order; once more to leave at once", signal.Signals(number).name)
            processes.reap()
            if done():
                return
            show()
            self._wait()

    def _wait(self) -> None:
        """Wait for a signal, or a turn's end."""
        if not self._pending_signals:
            signal.sigtimedwait([], _TURN_SECONDS)

    def _end_workers(self, processes: Processes, job: Job) -> None:
        processes.stop("worker")
        self._loop(processes, lambda: not processes.count("worker"), job.show)

    def _drain(self, arena: Arena, processes: Processes, job: Job) -> bool:
        """Wait until both rings are in the database, while syncers and charger are kept alive."""
        rings = (arena.charge_ring, arena.write_ring)

        def done() -> bool:
            for ring in rings:
                if ring.committed_sequence < ring.last_sequence:
                    ring.request_drain()
                    if not ring.wait_committed(ring.last_sequence, _TURN_SECONDS):
                        return False
            return not unsynced(arena)

        if self._settings.mode == "cached":
            self._loop(processes, done, job.show)
        return not unsynced(arena)

    def _ended(self, arena: Arena, processes: Processes) -> bool:
        """Say whether all children have ended, and wake those that wait for their next drain."""
        for ring in (arena.charge_ring, arena.write_ring):
            ring.request_drain()
        return not processes.count()

    def _queue_signal(self, number: int, _frame: FrameType | None) -> None:
        self._pending_signals.append(number)


def unsynced(arena: Arena) -> int:
    """Return how many entries of both rings are not in the database yet."""
    return sum(ring.last_sequence - ring.committed_sequence for ring in (arena.write_ring, arena.charge_ring))


def arena_size(settings: Settings) -> int:
    """Return the size of the arena to make, in bytes; "auto" is a quarter of what is free, from 32 MiB to 256 MiB."""
    if settings.arena_size != "auto":
        return int(settings.arena_size)
    return min(256 << 20, max(32 << 20, free_bytes() // 4))


def own_arena_name() -> str:
    """Return the name of an arena that only this process uses."""
    return f"run-{os.getpid()}-{time.time_ns() % 1_000_000:06d}"
