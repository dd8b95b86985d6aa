"""The supervisor: one process that makes the arena, forks workers, syncers and charger, keeps them alive, and ends in
order.

    start    database, migrations, left-over arenas drained, arena, children
    loop     signals only queue; the loop acts: reap and restart, end when the job is done or a signal asks for it
    end      workers leave after the node at hand; charges settle, rings drain; then the rest ends and the segment goes

A second Ctrl-C (or SIGTERM), or SIGQUIT, leaves at once: the segment stays in /dev/shm, and the next start drains it.

Processes that are none of its children may be attached too (a web server's, say). If some are when it ends, the segment
stays for them, with what they have begun: they go on writing to it, and the next start attaches to it and drains it.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from shmcache import session, tracing
from shmcache.arena import Arena, free_bytes
from shmcache.config import Settings
from shmcache.database.connection import connect, with_table_set
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import identity, migrate
from shmcache.errors import LockTimeout
from shmcache.recovery import terminate_unfinished
from syncer.callbacks import deliver_notices
from syncer.charge_pool import ChargePool
from syncer.holds import close_all_holds
from syncer.sync_manager import SyncManager
from tools.leftovers import (
    claim,
    drain,
    drain_leftovers,
    give_leases_back,
    living,
    open_arena,
    refuse_unusable,
    remove,
    unsynced,
)
from tools.logs import bind_arena, end_logging
from tools.monitoring.endpoint import Endpoint, endpoint, metrics_role
from tools.processes import Processes, Role
from tools.service_manager import ServiceManager
from tools.signals import ENDING, OPERATING, SignalQueue
from tools.state_dump import dump_state
from tools.workers import NAME as WORKER
from tools.workers import Workers

logger = logging.getLogger(__name__)

_TURN_SECONDS = 0.1
_SYNCERS = 2


class LeftAtOnce(BaseException):
    """A second signal, or SIGQUIT: end without draining."""


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
    """Runs a job over an arena of its own, in workers of a role; without one, for the processes of others.

    `reloads`: SIGHUP replaces the workers by new ones. Otherwise it ends all in order, as when a terminal closes."""

    def __init__(self, settings: Settings, arena_name: str, worker: Role | None, *, reloads: bool = False) -> None:
        self._settings = settings
        self._arena_name = arena_name
        self._worker = worker
        self._reloads = reloads
        self._signals = SignalQueue(also=OPERATING)
        self._service = ServiceManager()
        self._is_ready = False
        self._began = time.monotonic()
        self._guests: list[int] = []
        self._work_ended = 0
        self.interrupted = False
        self.database_url = settings.database_url or ""
        self.worker_restarts = 0
        self.unsynced = 0
        self.counters: dict[str, int] = {}
        self.finished_at = 0.0
        self.arena_id = ""
        self._endpoint: Endpoint | None = None

    def run(self, job: Job) -> bool:
        """Do a job from start to end; return whether it ended in order, with everything in the database.

        `interrupted` says whether a signal ended it early. Raises ShmcacheError where it cannot start."""
        server = None
        bind_arena(self._arena_name)
        tracing.want(self._settings.tracing)
        self._endpoint = endpoint(self._settings)
        with self._signals:
            try:
                if not self.database_url:
                    server = EmbeddedServer.start(self._settings.state_dir)
                    self.database_url = server.url
                self.database_url = with_table_set(self.database_url, self._settings.schema)
                lock = claim(self._arena_name, self._settings)
                try:
                    if server is not None:
                        session.leave_address(self._settings.state_dir, self._arena_name, server.url)
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
        refuse_unusable(self._arena_name)
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
        workers = Workers(processes, self._worker, arena, settings) if self._worker else None
        ended = False
        try:
            arena.enter("supervisor")
            session.prepare(arena, self.database_url, settings)
            self._start_children(arena, processes, workers)
            with processes.patient():
                job.submit()
            session.forget()  # its connection must not be open when a worker is forked anew
            session.prepare(arena, self.database_url, settings)
            turns = _Turns(processes, workers, job)
            self._loop(turns, lambda: self.interrupted or job.is_done(processes), self._idle_or_signal(arena))
            ended = self._end(arena, turns)
        finally:
            job.hide()
            processes.kill()
            self.worker_restarts = processes.restarts.get(WORKER, 0)
            self.counters = {name: total - counted_before[name] for name, total in arena.counter_totals().items()}
            self.unsynced = unsynced(arena)
            session.forget()
            self._remove_if_empty(arena)
            arena.close()
        return ended

    def _remove_if_empty(self, arena: Arena) -> None:
        """Remove the segment, unless it holds what is not in the database, or processes of others are in it."""
        if self._guests:
            return
        try:
            removed = remove(arena, self._settings, self._work_ended)
        except LockTimeout as error:
            logger.warning("%s", error)
            removed = False
        if removed:
            give_leases_back(arena, self.database_url)
        else:
            logger.warning("arena %s stays, for who uses it and for the next start", arena.name)

    def _living_guests(self, arena: Arena, processes: Processes | None = None) -> list[int]:
        """Return the processes that use the arena and are none of ours."""
        ours = {os.getpid(), *(pid for pid, _ in processes.children())} if processes else {os.getpid()}
        return [pid for pid in living(arena) if pid not in ours]

    def _start_children(self, arena: Arena, processes: Processes, workers: Workers | None) -> None:
        settings, url = self._settings, self.database_url
        if settings.mode == "cached":
            for _ in range(_SYNCERS):
                processes.start(Role("syncer", lambda stop: SyncManager(arena, url, settings).run(stop), leads=True))
            processes.start(
                Role("charger", lambda stop: ChargePool(arena, url, settings, rows_first=True).run(stop), leads=True)
            )
        else:
            processes.start(Role("callbacks", lambda stop: deliver_notices(url, stop), restart_on_return=False))
        if self._endpoint:
            processes.start(metrics_role(arena, settings, self._endpoint))
        if workers is not None:
            workers.start(settings.workers)

    def _loop(self, turns: _Turns, done: Callable[[], bool], wait: Callable[[float], object]) -> None:
        """Act on signals and deaths until `done()`; `wait` for what may change that, for a turn at most."""
        processes, workers, job = turns
        while True:
            for number in self._signals.requests():
                if number in ENDING or (number is signal.SIGHUP and not self._reloads):
                    self._note_end(number)
                elif number is signal.SIGUSR1:
                    facts = {"workers": processes.count(WORKER), "reloads": workers.reloads if workers else 0}
                    dump_state(self._arena_name, processes, self._began, facts)
                elif not self.interrupted:
                    self._operate(number, workers)
            try:
                processes.look_after()
                if workers is not None:
                    workers.look_after()
                self._tell_service_manager(processes, workers)
                if done():
                    return
                job.show()
                wait(_TURN_SECONDS)
            except LockTimeout as error:
                logger.warning("%s", error)  # should a child hold it that is stopped, it is ended next time around

    def _note_end(self, number: signal.Signals) -> None:
        """Take note that all is to end, in order or, the second time, at once. Raises LeftAtOnce."""
        if self.interrupted or number is signal.SIGQUIT:
            raise LeftAtOnce
        self.interrupted = True
        logger.warning("%s: ending in order; once more to leave at once", number.name)

    def _operate(self, number: signal.Signals, workers: Workers | None) -> None:
        """Do to the workers what a signal asks for."""
        if workers is None:
            logger.warning("%s: nothing to do, the workers are not this supervisor's", number.name)
        elif number is signal.SIGTTIN:
            workers.add()
        elif number is signal.SIGTTOU:
            workers.remove()
        else:
            workers.reload()
            self._is_ready = False
            self._service.reloading()

    def _tell_service_manager(self, processes: Processes, workers: Workers | None) -> None:
        self._service.pat()
        if self._is_ready or self.interrupted or (workers and (workers.are_reloading or not workers.are_up)):
            return
        if any(child.up is None for _, child in processes.children()):
            return
        self._is_ready = True
        self._service.ready(f"arena {self._arena_name}, {processes.count(WORKER)} workers")
        logger.info("ready: arena %s, %d workers", self._arena_name, processes.count(WORKER))

    def _idle_or_signal(self, arena: Arena) -> Callable[[float], object]:
        """Return how to wait for the end of all work, if there is some; a signal is seen at the end of the turn."""
        return lambda seconds: arena.wait_idle(seconds) if arena.outstanding() else self._signals.wait(seconds)

    def _end(self, arena: Arena, turns: _Turns) -> bool:
        """Let the workers leave, the charges settle and the rings drain; then end all processes.

        Returns whether all is in the database: what was written before that, where others go on writing."""
        settings, processes = self._settings, turns.processes
        self._service.stopping()
        if turns.workers is not None:
            turns.workers.end_reload()
        if self.interrupted:
            processes.stop(WORKER)
            self._loop(turns, lambda: not processes.count(WORKER), self._signals.wait)
        self._guests = self._living_guests(arena, processes)
        if self._guests:
            logger.warning(
                "processes %s use arena %s: it stays for them, and for the next start",
                ", ".join(map(str, self._guests)), arena.name,
            )  # fmt: skip
        work_left = bool(arena.outstanding()) and not self._guests
        rings = arena.charge_ring, arena.write_ring
        wanted = [ring.last_sequence for ring in rings]
        if settings.mode == "cached":
            if work_left:
                with processes.patient():
                    terminate_unfinished(arena, self.database_url, settings)
            self._drain(arena, turns)
            with processes.patient():
                closed = not self._guests and close_all_holds(arena, self.database_url, settings)
            if closed:
                self._drain(arena, turns)
        self.finished_at = time.monotonic()
        processes.stop(WORKER, "syncer", "charger", "callbacks", "metrics")
        self._loop(turns, lambda: not processes.count(), self._signals.wait)
        if self._guests:
            return all(ring.committed_sequence >= sequence for ring, sequence in zip(rings, wanted, strict=True))
        self._work_ended = arena.outstanding()
        if work_left and settings.mode != "cached":
            return drain(arena, self.database_url, settings, lambda: not self._signals.is_empty)
        return not unsynced(arena)

    def _drain(self, arena: Arena, turns: _Turns) -> None:
        """Wait until what is on both rings now is in the database."""
        rings = [(ring, ring.last_sequence) for ring in (arena.charge_ring, arena.write_ring)]

        def is_drained() -> bool:
            if not self._guests:
                return not unsynced(arena)
            return all(ring.committed_sequence >= sequence for ring, sequence in rings)

        self._loop(turns, is_drained, lambda seconds: _await_commit(arena, seconds))


class _Turns(NamedTuple):
    """What each turn of the loop looks after."""

    processes: Processes
    workers: Workers | None
    job: Job


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
