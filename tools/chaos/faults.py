"""How each fault is made: signals to the processes of a run, a proxy before its database, files in its way.

A fault that lasts is undone by `tend` when its time is over, so that others come while it lasts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import psycopg

from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.errors import DatabaseUnavailable
from tools.chaos.ground import Ground
from tools.chaos.proxy import Proxy
from tools.chaos.schedule import Event

_MOST_STOPPED_SECONDS = 1.5
_MOST_SUPERVISOR_STOPPED_SECONDS = 0.4
"""While it is stopped, nobody ends a process that was stopped with a lock."""
_MOST_AWAY_SECONDS = 1.5
_MOST_DELAY_SECONDS = 0.03
_MOST_STEP_SECONDS = 3600.0


class Window(NamedTuple):
    """A time (monotonic) in which something was away: "database", "all", or a process id that was stopped."""

    began: float
    ended: float
    what: str


class Made(NamedTuple):
    """A fault that was made: when (monotonic), which, and what it struck."""

    time: float
    fault: str
    struck: str


class Faults:
    """Makes faults in a run: of the processes below `supervised`, of an arena, on a server of its own."""

    def __init__(self, ground: Ground, arena: str, server: EmbeddedServer, state_dir: Path, proxy: Proxy) -> None:
        self._ground = ground
        self.arena = arena
        self._server = server
        self._state_dir = state_dir
        self._proxy = proxy
        self._undo: list[tuple[float, Callable[[], None]]] = []
        self._away_since: float | None = None
        self._full: set[str] = set()
        self._supervised: subprocess.Popen[bytes] | None = None
        self._sessions: set[int] = set()
        self.counts: dict[str, int] = {}
        self.missed = 0
        """Faults that found nothing to strike: the process had just been killed by another."""
        self.made: list[Made] = []
        self.windows: list[Window] = []

    @property
    def supervised(self) -> subprocess.Popen[bytes]:
        """The supervisor that runs now. It leads a session, by which all that it starts is known."""
        assert self._supervised is not None
        return self._supervised

    @supervised.setter
    def supervised(self, started: subprocess.Popen[bytes]) -> None:
        self._supervised = started
        self._sessions.add(started.pid)

    @property
    def has_own_memory(self) -> bool:
        """Whether what is in /dev/shm is this run's alone."""
        return self._ground.has_own_memory

    def make(self, event: Event) -> bool:
        """Make a fault; return whether it found something to strike."""
        verb, _, rest = event.fault.partition("-")
        now = time.monotonic()
        if verb == "kill":
            struck = self._kill(rest, event.part)
        elif verb == "stop" and rest != "database":
            struck = self._stop(rest, event.part)
        else:
            struck = "all" if getattr(self, "_" + event.fault.replace("-", "_"))(event.part) else ""
        if struck:
            self.counts[event.fault] = self.counts.get(event.fault, 0) + 1
            self.made.append(Made(now, event.fault, struck))
        else:
            self.missed += 1
        return bool(struck)

    def tend(self, *, all_of_them: bool = False) -> None:
        """Undo what has lasted long enough, or everything."""
        now = time.monotonic()
        due = [each for each in self._undo if all_of_them or each[0] <= now]
        self._undo = [each for each in self._undo if each not in due]
        for _, undo in due:
            undo()

    def processes(self) -> list[psutil.Process]:
        """Return the living processes of the run with a role, the supervisor not among them."""
        return [each for each in self.everything() if f"({self.arena})" in _title(each)]

    def everything(self) -> list[psutil.Process]:
        """Return all living processes that a supervisor of the run has started, and itself."""
        found, sessions = [], {self.supervised.pid}
        for name in os.listdir("/proc"):  # as psutil would, but without a look at each: there may be thousands
            if name.isdigit() and (session := _session(int(name))) in self._sessions:
                sessions.add(session)
                with contextlib.suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(int(name)))
        self._sessions &= sessions  # a session that nobody is in any more is over: its number may become another's
        return [each for each in found if _is_alive(each)]

    def is_whole(self, workers: int) -> bool:
        """Say whether all that a supervisor starts is there."""
        roles = Counter(_role(each) for each in self.processes())
        return roles["worker"] == workers and roles["syncer"] > 1 and roles["charger"] == 1

    def connections(self) -> int | None:
        """Return how many connections the run has to its database; None while that does not answer."""
        try:
            with connect(self._server.url, application_name="shmcache chaos") as connection:
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND application_name <> 'shmcache chaos'"
                ).fetchone()
        except (psycopg.Error, DatabaseUnavailable):
            return None
        return None if row is None else int(row[0])

    # Processes

    def _kill(self, what: str, part: float) -> str:
        return _names(self._signal(self._victims(what, part), signal.SIGKILL))

    def _stop(self, what: str, part: float) -> str:
        pids = self._signal(self._victims(what, part), signal.SIGSTOP)
        began = time.monotonic()

        def go_on() -> None:
            self._signal(pids, signal.SIGCONT)
            now = time.monotonic()
            # Whoever was born just then, and not stopped, waits for those that are.
            self.windows.extend(Window(began, now, each) for each in (["all"] if what == "all" else map(str, pids)))

        if pids:
            most = _MOST_SUPERVISOR_STOPPED_SECONDS if what == "supervisor" else _MOST_STOPPED_SECONDS
            self._undo.append((began + part * most, go_on))
        return _names(pids)

    def _victims(self, what: str, part: float) -> list[int]:
        """Return whom a fault is for: the supervisor, all, or one of those in a role."""
        if what == "supervisor":
            return [self.supervised.pid]
        if what == "all":
            return [self.supervised.pid, *(each.pid for each in self.processes())]
        found = sorted(each.pid for each in self._processes_called(what))
        return found[int(part * len(found)) :][:1]

    @staticmethod
    def _signal(pids: list[int], number: signal.Signals) -> list[int]:
        """Send a signal; return those that were there to get it."""
        struck = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                struck.append(pid)
        return struck

    def _processes_called(self, what: str) -> Iterator[psutil.Process]:
        leader = self._leader()
        for each in self.processes():
            role = _role(each)
            if what == "pool":
                if role == "charger":
                    with contextlib.suppress(psutil.NoSuchProcess):
                        yield from (child for child in each.children(recursive=True) if "pool" in _title(child))
            elif role == what or (role == "syncer" and what == ("leader" if each.pid == leader else "standby")):
                yield each

    def _leader(self) -> int:
        try:
            return int((self._state_dir / "locks" / f"{self.arena}.syncer.lock").read_text())
        except (OSError, ValueError):
            return 0

    # The way to the database, and the database

    def _cut(self, _part: float) -> bool:
        self._proxy.cut()
        return True

    def _half_close(self, _part: float) -> bool:
        self._proxy.half_close()
        return True

    def _delay(self, part: float) -> bool:
        self._proxy.delay_seconds = part * _MOST_DELAY_SECONDS
        self._undo.append((time.monotonic() + part * _MOST_AWAY_SECONDS, self._hasten))
        return True

    def _hasten(self) -> None:
        self._proxy.delay_seconds = 0.0

    def _terminate_backends(self, _part: float) -> bool:
        try:
            with connect(self._server.url, application_name="shmcache chaos") as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
                )
        except (psycopg.Error, DatabaseUnavailable):
            return False
        return True

    def _stop_database(self, part: float) -> bool:
        if self._away_since is not None:
            return False
        postmaster = psutil.Process(int((self._state_dir / "postgresql" / "postmaster.pid").read_text().split()[0]))
        self._away_since = time.monotonic()
        postmaster.send_signal(signal.SIGQUIT)  # an immediate shutdown: as after a crash
        psutil.wait_procs([postmaster], timeout=60)
        self._undo.append((time.monotonic() + part * _MOST_AWAY_SECONDS, self._start_database))
        return True

    def _start_database(self) -> None:
        assert self._away_since is not None
        EmbeddedServer.start(self._state_dir).stop()  # the one that the run began with is still a user of it
        self.windows.append(Window(self._away_since, time.monotonic(), "database"))
        self._away_since = None

    # Files

    def _delete_lock(self, _part: float) -> bool:
        path = self._state_dir / "locks" / f"{self.arena}.syncer.lock"
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    def _poison(self, _part: float) -> bool:
        (self._ground.directory / "poison").touch()
        return True

    def _disk_full(self, part: float) -> bool:
        return self._fill("database", self._ground.fill_disk, part)

    def _memory_full(self, part: float) -> bool:
        return self._fill("memory", self._ground.fill_memory, part)

    def _fill(self, what: str, fill: Callable[[], Callable[[], None] | None], part: float) -> bool:
        began = time.monotonic()
        empty = None if what in self._full else fill()
        if empty is None:
            return False
        self._full.add(what)

        def end() -> None:
            empty()
            self._full.discard(what)
            self.windows.append(Window(began, time.monotonic(), what))

        self._undo.append((began + part * _MOST_AWAY_SECONDS, end))
        return True

    # The clock

    def _clock_step(self, part: float) -> bool:
        self._ground.step_clock((2 * part - 1) * _MOST_STEP_SECONDS)
        return True


def _role(process: psutil.Process) -> str:
    return _title(process).removeprefix("shmcache: ").partition(" ")[0]


def _names(pids: list[int]) -> str:
    return " ".join(map(str, pids))


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
