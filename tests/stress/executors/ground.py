"""Where all executors meet: an arena that is served, a database, accounts, a directory of journals."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
from psycopg import sql
from psycopg.conninfo import make_conninfo

from shmcache.arena import Arena, list_arenas
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import migrate
from shmcache.execution_data_client import ExecutionDataClient
from shmcache.graphs import LoadedGraph, load_graph_file
from shmcache.identifiers import new_id
from shmcache.records import FINAL_STATUSES, ExecutionStatus, NodeExecution
from tests.integration.charging import PER_RUN, PerSecond, priced_graph
from tools.chaos.journal import JournalingClient, digest

ROOT = Path(__file__).parents[3]
_GRAPH_FILE = ROOT / "tests" / "graphs" / "diamond.wfformat.json"
_ARENA_SIZE = "8 MiB"
"""Small: what the tests write does not fit, so that records are pushed out."""
_RICH, _POOR = 2 * 10**9, 300
_SHARED = 3
_READY_SECONDS = 90.0
_TURN_SECONDS = 0.02
_FILE = "ground.json"


class Journaling(JournalingClient):
    """Also journals what an execution that is paid by the second has come to, and outputs wherever they stand then."""

    def append_output(self, node_exec_id: str, value: object) -> NodeExecution:
        """Append an output behind those that are there, whoever else does so; return the record after it."""

        def append() -> NodeExecution:
            execution = self._client.upsert_execution_output(node_exec_id, "out", value)
            self._write("O", node_exec_id, execution.output_count - 1, "out", digest(value))
            return execution

        return self.atomically(append)

    def update_node_execution_status(
        self,
        node_exec_id: str,
        status: ExecutionStatus,
        execution_data: Mapping[str, Any] | None = None,
        stats: Mapping[str, Any] | None = None,
    ) -> NodeExecution:
        """See ExecutionDataClient."""
        update = super().update_node_execution_status

        def move() -> NodeExecution:
            execution = update(node_exec_id, status, execution_data, stats)
            if execution.block_id == PerSecond.id and execution.status in FINAL_STATUSES and "cost" in execution.stats:
                self._write("C", node_exec_id, execution.stats["cost"])
            return execution

        return self.atomically(move)


class Ground(NamedTuple):
    """What a worker must know. `shared` are node executions to which all append."""

    directory: Path
    arena_name: str
    database_url: str
    rich: list[str]
    poor: list[str]
    shared: list[str]

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what the controller has left in its directory."""
        loaded = json.loads((directory / _FILE).read_text())
        return cls(directory, *loaded[1:])

    def save(self) -> None:
        """Leave it for the workers."""
        (self.directory / _FILE).write_text(json.dumps([str(self.directory), *self[1:]]))

    @property
    def journals(self) -> Path:
        """The directory with a journal for each process and thread."""
        return self.directory / "journals"

    def settings(self) -> Settings:
        """Return the settings that all have; see `Served`."""
        return load_settings(
            state_dir=self.directory, arena=self.arena_name, ring_wait=60.0, lock_wait=60.0, execution_fee_every=10
        )

    def journaling(self, client: CachedClient) -> Journaling:
        """Return a client with a journal of its own: one for each thread."""
        path = self.journals / f"{os.getpid()}-{time.monotonic_ns()}-{new_id()}"
        return Journaling(client, path, show_stalls=False)

    def graph(self) -> LoadedGraph:
        """Return the graph that managers run."""
        return load_graph_file(_GRAPH_FILE)

    def attach(self) -> Arena:
        """Be one of the arena's processes."""
        arena = Arena.attach(self.arena_name, lock_wait=60.0, ring_wait=60.0)
        arena.enter("worker")
        return arena


class Served:
    """The database and the `shmcache serve` of a run, in the controlling process."""

    def __init__(self, state_dir: Path, directory: Path) -> None:
        """Start both. Raises what keeps them from starting, with nothing left."""
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(EmbeddedServer.start(state_dir))
            name = f"executors_{new_id().replace('-', '')}"
            with connect(server.url, application_name="tests") as connection:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            stack.callback(_drop, server.url, name)
            url = make_conninfo(server.url, dbname=name)
            self.ground = Ground(
                directory, f"executors-{os.getpid()}-{time.monotonic_ns()}", url,
                [new_id() for _ in range(3)], [new_id() for _ in range(2)], [],
            )  # fmt: skip
            self.ground.journals.mkdir(parents=True)
            self._prepare_database()
            self._log = directory / "serve.log"
            self.serve = self._start_serve()
            stack.callback(self._kill)
            self._wait_until_ready()
            self._make_shared()
            self.ground.save()
            self._stack = stack.pop_all()

    def close(self) -> list[str]:
        """Have `serve` end in order, and end the rest; return what went wrong or was left, in words."""
        with self._stack:
            self.serve.terminate()
            try:
                status = self.serve.wait(_READY_SECONDS)
            except subprocess.TimeoutExpired:
                return [f"shmcache serve does not end:\n{self._log.read_text(errors='replace')}"]
            left = [f"process {each.pid} ({' '.join(each.cmdline())}) is left" for each in self._family()]
            left += [f"segment {name} is left" for name in list_arenas() if name == self.ground.arena_name]
            if status:
                left.append(f"shmcache serve ended with {status}:\n{self._log.read_text(errors='replace')}")
            return left

    def _prepare_database(self) -> None:
        loaded = self.ground.graph()
        with connect(self.ground.database_url, application_name="tests") as connection:
            migrate(connection)
            queries.save_graph(connection, loaded.graph, loaded.nodes)
            queries.save_graph(connection, *priced_graph())
            for user in (*self.ground.rich, *self.ground.poor):
                queries.create_account(connection, user, _RICH if user in self.ground.rich else _POOR)

    def _start_serve(self) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SHMCACHE_DATABASE_URL": self.ground.database_url,
            "SHMCACHE_STATE_DIR": str(self.ground.directory),
            "SHMCACHE_ARENA": self.ground.arena_name,
            "SHMCACHE_ARENA_SIZE": _ARENA_SIZE,
            "SHMCACHE_SYNC_INTERVAL": "200 ms",
            "SHMCACHE_CHARGE_WORKERS": "1",
            "SHMCACHE_EXECUTION_FEE_EVERY": "10",
        }
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tools.cli", "serve"], cwd=ROOT, env=environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while " ready: arena" not in (log := self._log.read_text(errors="replace")):
            assert self.serve.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(_TURN_SECONDS)

    def _make_shared(self) -> None:
        """Make the executions that all append to."""
        ground = self.ground
        with ground.attach() as arena, CachedClient(arena, ground.database_url, ground.settings()) as cached:
            journaling = ground.journaling(cached)
            client: ExecutionDataClient = journaling.for_manager()
            run = client.create_graph_execution(priced_graph()[0].id, ground.rich[0]).id
            ground.shared.extend(client.upsert_execution_input(PER_RUN, run, None)[0] for _ in range(_SHARED))
            journaling.close_journal()

    def _family(self) -> list[psutil.Process]:
        """Return what lives of the processes that `serve` started: they are of its session."""
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(each.pid) == self.serve.pid and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
        return found

    def _kill(self) -> None:
        """End what still runs, whatever has happened."""
        family = self._family()
        for each in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.serve.wait()
        psutil.wait_procs(family, 10)
        if self.ground.arena_name in list_arenas():
            with Arena.attach(self.ground.arena_name) as left:
                left.unlink()


def _drop(server_url: str, name: str) -> None:
    with connect(server_url, application_name="tests") as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
