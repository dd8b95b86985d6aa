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
import time
from collections.abc import Callable
from typing import Protocol

from shmcache import session
from shmcache.arena import Arena, free_bytes
from shmcache.config import Settings
from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import identity, migrate
from shmcache.errors import LockTimeout
from shmcache.recovery import terminate_unfinished
from syncer.callbacks import deliver_notices
from syncer.charge_pool import ChargePool
from syncer.election import remove_locks
from syncer.holds import close_all_holds
from syncer.sync_manager import SyncManager
from tools.leftovers import claim, drain, drain_leftovers, open_arena, unsynced
from tools.logs import bind_arena, end_logging
from tools.processes import Processes, Role
from tools.signals import SignalQueue

logger = logging.getLogger(__name__)

_TURN_SECONDS = 0.1
_SYNCERS = 2


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

    def hide(self) -> None:
        """Show it no longer."""

    def report(self, supervisor: Supervisor) -> None:
        """Say what came of it: everything is in the database, which still runs."""


class Supervisor:
    """Runs a job over an arena of its own, in workers of a role."""

    def __init__(self, settings: Settings, arena_name: str, worker: Role) -> None:
        self._settings = settings
        self._arena_name = arena_name
        self._worker = worker
        self._signals = SignalQueue()
        self.interrupted = False
        self.database_url = settings.database_url or ""
        self.worker_restarts = 0
        self.unsynced = 0
        self.counters: dict[str, int] = {}
        self.finished_at = 0.0
        self.arena_id = ""

    def run(self, job: Job) -> bool:
        """Do a job from start to end; return whether it ended in order, with everything in the database.

        `interrupted` says whether a signal ended it early. Raises ShmcacheError where it cannot start."""
        server = None
        bind_arena(self._arena_name)
        # Should a charger be killed, Python's resource tracker removes its pool's semaphores, and need not warn of it.
        os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
        with self._signals:
            try:
                if not self.database_url:
                    server = EmbeddedServer.start(self._settings.state_dir)
                    self.database_url = server.url
                lock = claim(self._arena_name, self._settings)
                try:
                    ended_in_order = self._supervise(job)
                finally:
                    lock.leave()
                if ended_in_order:
                    job.report(self)
                return ended_in_order
            except LeftAtOnce:
                logger.warning("left at once: the next start drains what arena %s holds", self._arena_name)
                return False
            finally:
                if server is not None:
                    server.stop()
                end_logging()

    def _supervise(self, job: Job) -> bool:
        settings = self._settings
        with connect(self.database_url, application_name="shmcache supervisor") as connection:
            migrate(connection)
            database_identity = identity(connection)
        drain_leftovers(
            self.database_url, database_identity, settings,
            spare=self._arena_name, should_stop=lambda: not self._signals.is_empty,
        )  # fmt: skip
        job.begin(self.database_url)
        arena = open_arena(
            self._arena_name, arena_size(settings), database_identity, settings, lambda: not self._signals.is_empty
        )
        counted_before = arena.counter_totals()
        self.arena_id = arena.arena_id
        processes = Processes(arena, settings.stopped_wait)
        ended = False
        try:
            arena.enter("supervisor")
            session.prepare(arena, self.database_url, settings)
            self._start_children(arena, processes)
            job.submit()
            session.forget()  # its connection must not be open when a worker is forked anew
            session.prepare(arena, self.database_url, settings)
            self._loop(processes, job, lambda: self.interrupted or job.is_done(processes), self._idle_or_signal(arena))
            ended = self._end(arena, processes, job)
        finally:
            job.hide()
            processes.kill()
            self.worker_restarts = processes.restarts.get("worker", 0)
            self.counters = {name: total - counted_before[name] for name, total in arena.counter_totals().items()}
            self.unsynced = unsynced(arena)
            session.forget()
            if ended or not (self.unsynced or arena.outstanding()):
                arena.unlink()
                remove_locks(settings.state_dir, self._arena_name)
            arena.close()
        return ended

    def _start_children(self, arena: Arena, processes: Processes) -> None:
        settings, url = self._settings, self.database_url
        if settings.mode == "cached":
            for _ in range(_SYNCERS):
                processes.start(Role("syncer", lambda stop: SyncManager(arena, url, settings).run(stop), leads=True))
            processes.start(Role("charger", lambda stop: ChargePool(arena, url, settings).run(stop), leads=True))
        else:
            processes.start(Role("callbacks", lambda stop: deliver_notices(url, stop), restart_on_return=False))
        for _ in range(settings.workers):
            processes.start(self._worker)

    def _loop(self, processes: Processes, job: Job, done: Callable[[], bool], wait: Callable[[float], object]) -> None:
        """Act on signals and deaths until `done()`; `wait` for what may change that, for a turn at most."""
        while True:
            for number in self._signals.requests():
                if self.interrupted:
                    raise LeftAtOnce
                self.interrupted = True
                logger.warning("%s: ending in order; once more to leave at once", number.name)
            try:
                processes.look_after()
                if done():
                    return
                job.show()
                wait(_TURN_SECONDS)
            except LockTimeout as error:
                logger.warning("%s", error)  # should a child hold it that is stopped, it is ended next time around

    def _idle_or_signal(self, arena: Arena) -> Callable[[float], object]:
        """Return how to wait for the end of all work, if there is some; a signal is seen at the end of the turn."""
        return lambda seconds: arena.wait_idle(seconds) if arena.outstanding() else self._signals.wait(seconds)

    def _end(self, arena: Arena, processes: Processes, job: Job) -> bool:
        """Let the workers leave, the charges settle and the rings drain; then end all processes.

        Returns whether all is in the database."""
        settings = self._settings
        if self.interrupted:
            processes.stop("worker")
            self._loop(processes, job, lambda: not processes.count("worker"), self._signals.wait)
        work_left = bool(arena.outstanding())
        if settings.mode == "cached":
            if work_left:
                terminate_unfinished(arena, self.database_url, settings)
            self._drain(arena, processes, job)
            if close_all_holds(arena, self.database_url, settings):
                self._drain(arena, processes, job)
        self.finished_at = time.monotonic()
        processes.stop("worker", "syncer", "charger", "callbacks")
        self._loop(processes, job, lambda: not processes.count(), self._signals.wait)
        if work_left and settings.mode == "direct":
            return drain(arena, self.database_url, settings, lambda: not self._signals.is_empty)
        return not unsynced(arena)

    def _drain(self, arena: Arena, processes: Processes, job: Job) -> None:
        """Wait until both rings are in the database."""
        self._loop(processes, job, lambda: not unsynced(arena), lambda seconds: _await_commit(arena, seconds))


def _await_commit(arena: Arena, timeout_seconds: float) -> None:
    """Wait until a ring that is not drained is, or for the timeout."""
    for ring in (arena.charge_ring, arena.write_ring):
        if ring.committed_sequence < ring.last_sequence:
            ring.request_drain()
            ring.wait_committed(ring.last_sequence, timeout_seconds)
            return


def arena_size(settings: Settings) -> int:
    """Return the size of the arena to make, in bytes; "auto" is a quarter of what is free, from 32 MiB to 256 MiB."""
    if settings.arena_size != "auto":
        return int(settings.arena_size)
    return min(256 << 20, max(32 << 20, free_bytes() // 4))


def own_arena_name() -> str:
    """Return the name of an arena that only this process uses."""
    return f"run-{os.getpid()}-{time.time_ns() % 1_000_000:06d}"
