"""How each fault is made: signals to the processes of a run, a proxy before its database, files in its way.

A fault that lasts is undone by `tend` when its time is over, so that others come while it lasts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import psycopg

from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.errors import DatabaseUnavailable
from tools.chaos.proxy import Proxy
from tools.chaos.schedule import Event

SMALL_DISK = "512m"
SMALL_MEMORY = "320m"
_CLONE_NEWNS = 0x00020000
_MOST_STOPPED_SECONDS = 0.6
_MOST_AWAY_SECONDS = 1.5
_MOST_DELAY_SECONDS = 0.03


class Cannot(Exception):
    """A fault that this machine does not allow; the text says why."""


class Window(NamedTuple):
    """A time (monotonic) in which something was away: "database", or a process id that was stopped."""

    began: float
    ended: float
    what: str


class Ground:
    """What a run stands on, some of it small enough to be filled: a disk, /dev/shm. Undone by `leave`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk: Path | None = None
        self.has_small_memory = False

    def make_small_disk(self) -> None:
        """Mount a small file system for the outputs of nodes. Raises Cannot."""
        place = self.directory / "disk"
        place.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={SMALL_DISK}", "shmcache-chaos", str(place))
        place.chmod(0o755)
        self.disk = place

    def make_small_memory(self) -> None:
        """Give this process and its children a /dev/shm of their own, a small one. Raises Cannot."""
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
            raise Cannot(f"a /dev/shm of its own: {os.strerror(ctypes.get_errno())}")
        _mount("--make-rprivate", "/")
        _mount("-t", "tmpfs", "-o", f"size={SMALL_MEMORY}", "shmcache-chaos", "/dev/shm")  # noqa: S108 - the real one
        self.has_small_memory = True

    def leave(self) -> None:
        """Unmount what was mounted."""
        if self.disk is not None:
            subprocess.run(["umount", "--lazy", self.disk], check=False)
        if self.has_small_memory:
            subprocess.run(["umount", "--lazy", "/dev/shm"], check=False)  # noqa: S108


def _mount(*arguments: str) -> None:
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        raise Cannot(f"mount: {reason}") from None


class Faults:
    """Makes faults in a run: of the processes below `supervised`, of an arena, on a server of its own."""

    def __init__(self, ground: Ground, arena: str, server: EmbeddedServer, state_dir: Path, proxy: Proxy) -> None:
        self._ground = ground
        self._arena = arena
        self._server = server
        self._state_dir = state_dir
        self._proxy = proxy
        self._undo: list[tuple[float, Callable[[], None]]] = []
        self._away_since: float | None = None
        self.supervised: subprocess.Popen[bytes] | None = None
        self.counts: dict[str, int] = {}
        self.missed = 0
        """Faults that found nothing to strike: the process had just been killed by another."""
        self.windows: list[Window] = []

    def make(self, event: Event) -> bool:
        """Make a fault; return whether it found something to strike."""
        verb, _, rest = event.fault.partition("-")
        if verb == "kill":
            struck = self._kill(rest, event.part)
        elif verb == "stop" and rest != "database":
            struck = self._stop(rest, event.part)
        else:
            struck = bool(getattr(self, "_" + event.fault.replace("-", "_"))(event.part))
        if struck:
            self.counts[event.fault] = self.counts.get(event.fault, 0) + 1
        else:
            self.missed += 1
        return struck

    def tend(self, *, all_of_them: bool = False) -> None:
        """Undo what has lasted long enough, or everything."""
        now = time.monotonic()
        due = [each for each in self._undo if all_of_them or each[0] <= now]
        self._undo = [each for each in self._undo if each not in due]
        for _, undo in due:
            undo()

    def processes(self) -> list[psutil.Process]:
        """Return the living processes of the run, the supervisor not among them."""
        return [each for each in psutil.process_iter() if f"({self._arena})" in _title(each)]

    # Processes

    def _kill(self, what: str, part: float) -> bool:
        assert self.supervised is not None
        if what in ("supervisor", "all"):
            victims = self.processes() if what == "all" else []
            self.supervised.kill()
            for each in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            return True
        return self._signal(what, part, signal.SIGKILL) is not None

    def _stop(self, what: str, part: float) -> bool:
        pid = self._signal(what, part, signal.SIGSTOP)
        if pid is None:
            return False
        began = time.monotonic()

        def go_on() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            self.windows.append(Window(began, time.monotonic(), str(pid)))

        self._undo.append((began + part * _MOST_STOPPED_SECONDS, go_on))
        return True

    def _signal(self, what: str, part: float, number: signal.Signals) -> int | None:
        found = sorted(each.pid for each in self._processes_called(what))
        if not found:
            return None
        pid = found[int(part * len(found))]
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return None
        return pid

    def connections(self) -> int | None:
        """Return how many connections the run has to its database; None while that does not answer."""
        try:
            with connect(self._server.url, application_name="shmcache chaos") as connection:
                row = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                ).fetchone()
        except (psycopg.Error, DatabaseUnavailable):
            return None
        return None if row is None else int(row[0]) - 1

    def _processes_called(self, what: str) -> Iterator[psutil.Process]:
        leader = self._leader()
        for each in self.processes():
            role = _title(each).removeprefix("shmcache: ").partition(" ")[0]
            if what == "pool":
                if role == "charger":
                    with contextlib.suppress(psutil.NoSuchProcess):
                        yield from (child for child in each.children(recursive=True) if "pool" in _title(child))
            elif role == what or (role == "syncer" and what == ("leader" if each.pid == leader else "standby")):
                yield each

    def _leader(self) -> int:
        try:
            return int((self._state_dir / "locks" / f"{self._arena}.syncer.lock").read_text())
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
        path = self._state_dir / "locks" / f"{self._arena}.syncer.lock"
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    def _poison(self, _part: float) -> bool:
        (self._ground.directory / "poison").touch()
        return True

    def _disk_full(self, part: float) -> bool:
        assert self._ground.disk is not None
        return self._fill(self._ground.disk / "filler", part)

    def _memory_full(self, part: float) -> bool:
        return self._fill(Path("/dev/shm/shmcache-chaos-filler"), part)  # noqa: S108

    def _fill(self, path: Path, part: float) -> bool:
        if path.exists():
            return False
        with path.open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(path.parent).free)
        self._undo.append((time.monotonic() + part * _MOST_AWAY_SECONDS, path.unlink))
        return True


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
