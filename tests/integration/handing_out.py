"""Hosts that a broker hands graph executions to: `shmcache serve` and a Celery worker each, over one database."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from shmcache.arena.segment import segment_path
from tests.integration.serving import Host, Program

_BIN = Path(sys.executable).parent

LEASE_SECONDS = 1.5

_BLOCKS = '''
import os
import pathlib
import time

from shmcache.blocks import Block
from shmcache.blocks.block import Cost

HERE = pathlib.Path(os.environ["HANDING_OUT"])


class Step(Block):
    """Notes that it runs, waits while a file `hold-NAME` is there, yields its name."""

    id = "steps:Step"
    inputs = ("name", "before", "seconds")
    outputs = ("value",)
    cost = Cost(7, "run")

    def run(self, inputs):
        name = inputs["name"]
        with open(HERE / "runs", "a") as notes:
            notes.write(f"{name} {os.environ['SHMCACHE_ARENA']} {os.getpid()}\\n")
        time.sleep(inputs.get("seconds", 0))
        while (HERE / f"hold-{name}").exists():
            time.sleep(0.02)
        return [("value", name)]


class Several(Step):
    """Yields its name twice, one by one, and waits in between."""

    id = "steps:Several"

    def run(self, inputs):
        yield ("value", inputs["name"] + "-1")
        yield from Step.run(self, inputs)


class Deadly(Block):
    """Ends the process that it runs in."""

    id = "steps:Deadly"
    inputs = ("name", "before")
    outputs = ("value",)

    def run(self, inputs):
        with open(HERE / "runs", "a") as notes:
            notes.write(f"{inputs['name']} {os.environ['SHMCACHE_ARENA']} {os.getpid()}\\n")
        os.kill(os.getpid(), 9)
'''


def redis_server(host: Host, *options: str) -> tuple[Program, str]:
    """Start a Redis at a unix socket; return it and its address for Celery. Skips the test where there is none."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not here: apt-get install redis-server")
    path = host.directory / "redis.sock"
    program = host.run(
        server, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(host.directory), *options
    )

    def answers() -> bool:
        with redis.Redis(unix_socket_path=str(path)) as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

    program.until(answers)
    return program, f"redis+socket://{path}"


def rabbitmq_server(host: Host) -> tuple[Program, str, Callable[[], None]]:
    """Start a RabbitMQ of the test's own; return it, its address, and what ends the name server that it starts.

    Skips the test where there is none."""
    server = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    if not server.exists():
        pytest.skip("rabbitmq-server is not here: apt-get install rabbitmq-server")
    names, node, distribution = (str(free_port()) for _ in range(3))
    here = str(host.directory)
    program = host.run(
        str(server), HOME=here, ERL_EPMD_PORT=names, ERL_EPMD_ADDRESS="127.0.0.1", RABBITMQ_NODENAME="test@localhost",
        RABBITMQ_MNESIA_BASE=here, RABBITMQ_LOG_BASE=here, RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
        RABBITMQ_NODE_PORT=node, RABBITMQ_DIST_PORT=distribution, RABBITMQ_PID_FILE=f"{here}/rabbitmq.pid",
        RABBITMQ_ENABLED_PLUGINS_FILE=f"{here}/plugins", RABBITMQ_CONFIG_FILE=f"{here}/none",
    )  # fmt: skip

    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", int(node))).close()
        except OSError:
            return False
        return True

    program.until(answers)

    def end_names() -> None:
        subprocess.run(["epmd", "-port", names, "-kill"], capture_output=True, check=False)

    return program, f"amqp://guest:guest@127.0.0.1:{node}//", end_names


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Place:
    """A database, a broker (redis or rabbitmq), and the hosts between them."""

    def __init__(self, directory: Path, database_url: str, broker: str = "redis") -> None:
        self.directory = directory
        self.database_url = database_url
        self.host = self._host("one")
        self.hosts = [self.host]
        self._last: Callable[[], None] = lambda: None
        if broker == "redis":
            self.redis, self.broker = redis_server(self.host)
        else:
            _, self.broker, self._last = rabbitmq_server(self.host)

    def _host(self, name: str, **environment: str) -> Host:
        directory = self.directory / name
        directory.mkdir()
        host = Host(directory, self.database_url)
        (directory / "steps.py").write_text(_BLOCKS)
        host.environment.update(
            HANDING_OUT=str(self.directory), SHMCACHE_HOST_LEASE=str(LEASE_SECONDS), SHMCACHE_SYNC_INTERVAL="0.2",
            C_FORCE_ROOT="1", PYTHONWARNINGS="ignore", **environment,
        )  # fmt: skip
        return host

    def add_host(self, name: str, **environment: str) -> Host:
        """Return another host."""
        self.hosts.append(self._host(name, **environment))
        return self.hosts[-1]

    def worker(self, host: Host, concurrency: int = 2) -> Program:
        """Start a worker on a host, and wait until it takes messages."""
        worker = host.run(
            str(_BIN / "celery"), "-A", "shmcache.contrib.celery.app", "-b", self.broker, "worker",
            "--concurrency", str(concurrency), "--loglevel", "INFO", "--without-mingle", "--without-gossip",
            "-n", f"{host.directory.name}@%h",
        )  # fmt: skip
        worker.until(lambda: " ready." in worker.log())
        return worker

    def shmcache(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command from a machine without an arena."""
        environment = {**self.host.environment, "SHMCACHE_ARENA": "nowhere"}
        return subprocess.run(
            [sys.executable, "-m", "tools.cli", *arguments],
            cwd=self.host.directory, env=environment, capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip

    def submit(self, path: Path, *options: str) -> list[str]:
        """Submit a graph file; return the graph executions."""
        done = self.shmcache("submit", str(path), "--broker", self.broker, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def status(self, graph_exec_id: str, *options: str) -> dict[str, Any]:
        """Return what `shmcache status` says."""
        done = self.shmcache("status", graph_exec_id, "--json", *options)
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def chain(self, name: str, *blocks: str) -> Path:
        """Write a graph of blocks, one after the other, named NAME-0, NAME-1 and so on."""
        nodes = [
            {"id": f"{name}-{place}", "block": f"steps:{block}", "constants": {"name": f"{name}-{place}"}}
            for place, block in enumerate(blocks)
        ]
        links = [
            {"source": before["id"], "output": "value", "sink": after["id"], "input": "before"}
            for before, after in itertools.pairwise(nodes)
        ]
        path = self.directory / f"{name}.json"
        path.write_text(json.dumps({"name": name, "nodes": nodes, "links": links}))
        return path

    def hold(self, step: str) -> Callable[[], None]:
        """Have a step wait until what is returned is called."""
        path = self.directory / f"hold-{step}"
        path.touch()
        return path.unlink

    def runs(self, step: str = "") -> list[tuple[str, str, int]]:
        """Return which steps ran, in which arena and process, in that order; one step's, if it is given."""
        path = self.directory / "runs"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(name, arena, int(pid)) for name, arena, pid in lines if step in ("", name)]

    def await_status(self, graph_exec_id: str, status: str, program: Program) -> None:
        """Wait until a graph execution has a status in the database."""
        query = f"SELECT status FROM graph_executions WHERE id = '{graph_exec_id}'"
        program.until(lambda: self.host.rows(query) == [(status,)])

    def lose(self, host: Host, *programs: Program) -> float:
        """Kill all of a host at once and wipe its shared memory, as if its machine was gone; return when."""
        children = [child for program in programs for child in program.children()]
        for program in programs:
            program.process.kill()
        for child in children:
            child.kill()
        lost = time.monotonic()
        for program in programs:
            program.kill()
        segment_path(host.arena).unlink()
        return lost

    def close(self) -> None:
        """End everything."""
        for host in reversed(self.hosts):
            host.close(may_leave=True)
        self._last()
