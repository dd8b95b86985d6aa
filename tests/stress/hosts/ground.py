"""What hosts stand on, and what is done to them: they are lost, cut off, delayed; broker and database are restarted."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg
import redis

from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import migrate
from tests.integration.faults import await_true
from tests.integration.test_network import Network, _ip

ROOT = Path(__file__).parents[3]

LEASE_SECONDS = 2.0
_REDIS_PORT = 6380

_WATCH_OWNERS = """
CREATE TABLE written (owner uuid, arena text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$ BEGIN
    INSERT INTO written SELECT o.arena_id, NEW.value #>> '{}' FROM node_executions n
        JOIN owners o ON o.graph_execution_id = n.graph_execution_id WHERE n.id = NEW.node_execution_id;
    RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT ON node_execution_outputs FOR EACH ROW EXECUTE FUNCTION note();
"""


class Running(NamedTuple):
    """A host that runs: its process outside, the name of its arena, its log."""

    process: subprocess.Popen[bytes]
    arena: str
    log: Path


class Ground:
    """A database, a broker, and places for hosts, by numbers from 1."""

    def __init__(self, directory: Path, in_child: Callable[[Callable[[Callable[[], bool]], None]], int]) -> None:
        self.directory = directory
        directory.chmod(0o755)
        self._state_dir = directory / "database"
        self.server = EmbeddedServer.start(self._state_dir)
        with connect(self.server.url, application_name="test") as connection:
            migrate(connection)
            connection.execute(_WATCH_OWNERS.encode())
        self._network = Network(self.server.url, in_child)
        self._places: dict[int, tuple[str, str]] = {}
        self.hosts: dict[int, Running] = {}
        self._started = 0
        self.socket = directory / "redis.sock"
        self._redis = self._start_redis()

    @property
    def broker(self) -> str:
        """The broker's address from outside."""
        return f"redis+socket://{self.socket}"

    def connect(self) -> psycopg.Connection[Any]:
        """Return a connection from outside, waiting until the database is there."""
        found: list[psycopg.Connection[Any]] = []

        def is_there() -> bool:
            with contextlib.suppress(Exception):
                found.append(connect(self.server.url, application_name="test"))
            return bool(found)

        await_true(is_there)
        return found[0]

    def start(self, number: int, concurrency: int = 2) -> None:
        """Start a host that is not there."""
        if number not in self._places:
            self._places[number] = self._network.add_host()
        namespace, url = self._places[number]
        self._started += 1
        name = f"host{number}-{self._started}-{os.getpid()}"
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "C_FORCE_ROOT": "1",
            "SHMCACHE_ARENA": name, "SHMCACHE_ARENA_SIZE": "32 MiB", "SHMCACHE_DATABASE_URL": url,
            "SHMCACHE_STATE_DIR": str(self.directory / name), "SHMCACHE_HOST_LEASE": str(LEASE_SECONDS),
            "SHMCACHE_CHARGE_WORKERS": "1", "SHMCACHE_MAX_ATTEMPTS": "100", "CONCURRENCY": str(concurrency),
            "CELERY_BROKER_URL": f"redis://10.77.{number}.1:{_REDIS_PORT}/0", "PYTHONWARNINGS": "ignore",
        }  # fmt: skip
        log = self.directory / f"{name}.log"
        with log.open("w") as opened:
            process = subprocess.Popen(
                ["ip", "netns", "exec", namespace, "unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL",
                 "--mount-proc", sys.executable, "-m", "tests.stress.hosts.machine"],
                env=environment, cwd=self.directory, stdout=opened, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.hosts[number] = Running(process, name, log)

    def await_ready(self, number: int) -> None:
        """Wait until a host takes messages."""
        host = self.hosts[number]
        deadline = time.monotonic() + 90
        while " ready." not in host.log.read_text(errors="replace"):
            assert host.process.poll() is None, host.log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, host.log.read_text(errors="replace")[-3000:]
            time.sleep(0.1)

    def lose(self, number: int) -> None:
        """Kill a host whole: all its processes at once; its /dev/shm is gone with them."""
        host = self.hosts.pop(number)
        for child in psutil.Process(host.process.pid).children():
            child.kill()  # the first process of its namespace: the kernel kills the others
        host.process.wait(30)

    def end(self, number: int) -> int:
        """Have a host end in order; return its status."""
        host = self.hosts.pop(number)
        for child in psutil.Process(host.process.pid).children():
            child.send_signal(signal.SIGTERM)
        return host.process.wait(90)

    def cut(self, number: int) -> None:
        """Take a host's cable out."""
        self._network.cut(number)

    def join(self, number: int) -> None:
        """Put it in again."""
        self._network.join(number)

    def spoil(self) -> None:
        """Have packets between hosts and database delayed."""
        self._network.spoil(1)

    def restart_broker(self, away_seconds: float) -> None:
        """Kill the broker, which forgets all messages, and start it again."""
        self._redis.kill()
        self._redis.wait()
        time.sleep(away_seconds)
        self._redis = self._start_redis()

    def restart_database(self, away_seconds: float) -> None:
        """Crash the database and start it again."""
        pid = int((self._state_dir / "postgresql" / "postmaster.pid").read_text().split()[0])
        postmaster = psutil.Process(pid)
        postmaster.send_signal(signal.SIGQUIT)
        psutil.wait_procs([postmaster], timeout=60)
        time.sleep(away_seconds)
        EmbeddedServer.start(self._state_dir).stop()

    def close(self) -> None:
        """End and remove everything."""
        for number in [*self.hosts]:
            self.lose(number)
        self._redis.kill()
        self._redis.wait()
        self._network.close()
        self.server.stop()

    def _start_redis(self) -> subprocess.Popen[bytes]:
        program = shutil.which("redis-server")
        assert program is not None
        self.socket.unlink(missing_ok=True)
        started = subprocess.Popen(
            ["ip", "netns", "exec", self._network.database, program, "--port", str(_REDIS_PORT), "--bind", "0.0.0.0",
             "--protected-mode", "no", "--unixsocket", str(self.socket), "--save", "", "--dir", str(self.directory)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def answers() -> bool:
            with redis.Redis(unix_socket_path=str(self.socket)) as client:
                try:
                    return bool(client.ping())
                except redis.ConnectionError:
                    return False

        await_true(answers)
        return started


@contextlib.contextmanager
def ground(directory: Path, in_child: Callable[[Callable[[Callable[[], bool]], None]], int]) -> Iterator[Ground]:
    """Give a ground, and take it away."""
    made = Ground(directory, in_child)
    try:
        _ip("-n", made._network.database, "link", "set", "lo", "up")
        yield made
    finally:
        made.close()
