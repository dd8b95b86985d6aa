"""Graphs run by a supervisor with a client of any kind: passes over the same files, each timed to its last commit."""

from __future__ import annotations

import functools
import multiprocessing
import shutil
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shmcache.arena import Arena, Counter
from shmcache.config import Settings
from shmcache.database.connection import connect
from shmcache.database.queries import create_account, save_graph
from shmcache.execution_data_client import ExecutionDataClient, Work, WorkKind
from shmcache.graphs import LoadedGraph
from shmcache.identifiers import new_id
from shmcache.manager import run_worker
from shmcache.session import get_db_client, prepared_arena
from shmcache.work_queue import WorkQueue
from tools.bench.core_time import core_seconds
from tools.bench.first_design import FirstDesignClient
from tools.processes import Processes, Role, ShouldStop
from tools.supervisor import Supervisor, own_arena_name

_COMMIT_SECONDS = 120.0
_TIMED = (
    "get_graph", "get_node", "get_graph_execution", "get_node_execution", "get_node_executions",
    "get_latest_node_execution", "create_graph_execution", "upsert_execution_input", "upsert_execution_output",
    "update_node_execution_status", "update_graph_execution_stats", "get_credits", "increment_execution_count",
    "spend_credits", "charge_usage", "atomically", "put_work", "end_work",
)  # fmt: skip


class Pass(NamedTuple):
    """One pass over all graphs, until everything of it was committed."""

    seconds: float
    nodes: int
    blocking: int
    node_nanoseconds: list[float]
    core_seconds: dict[str, float]
    """What all processes of a role took together."""


class _Stopwatch:
    """A client around another one, which adds up the time that each node spends in its calls."""

    def __init__(self, client: ExecutionDataClient) -> None:
        self._client = client
        self._depth = 0
        self._spent = 0
        self._is_node = False
        self.ended_at = array("d")
        self.nanoseconds = array("d")
        for name in _TIMED:
            setattr(self, name, self._timed(getattr(client, name)))

    def take_work(self, timeout_seconds: float) -> Work | None:
        """Take the next entry; what the last one spent is noted first. Waiting for work is nobody's time."""
        if self._is_node:
            self.ended_at.append(time.monotonic())
            self.nanoseconds.append(self._spent)
        work = self._client.take_work(timeout_seconds)
        self._is_node = work is not None and work.kind is WorkKind.RUN
        self._spent = 0
        return work

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.perf_counter_ns

        @functools.wraps(call)
        def timed(*arguments: Any, **options: Any) -> Any:
            if self._depth:
                return call(*arguments, **options)
            self._depth = 1
            began = clock()
            try:
                return call(*arguments, **options)
            finally:
                self._spent += clock() - began
                self._depth = 0

        return timed


class _Passes:
    """The job of a supervisor: the graphs, again and again."""

    def __init__(
        self,
        graphs: Sequence[LoadedGraph],
        repeat: int,
        passes: int,
        commit: Callable[[Arena], None],
        server_directory: Path,
    ) -> None:
        self._graphs = graphs
        self._repeat = repeat
        self._left = passes
        self._commit = commit
        self._server_directory = server_directory
        self._user = new_id()
        self._began = 0.0
        self._nodes = 0
        self._blocking = 0
        self._cores: dict[str, float] = {}
        self.windows: list[tuple[float, float, int, int, dict[str, float]]] = []

    def begin(self, database_url: str) -> None:
        """Save the graphs and open the account."""
        with connect(database_url, application_name="bench") as connection:
            for loaded in self._graphs:
                save_graph(connection, loaded.graph, loaded.nodes)
            create_account(connection, self._user, 2**50)

    def submit(self) -> None:
        """Submit one pass."""
        totals = prepared_arena().counter_totals()
        self._nodes = totals[Counter.NODE_RUNS.name.lower()]
        self._blocking = totals[Counter.BLOCKING_DB_OPERATIONS.name.lower()]
        self._cores = core_seconds(prepared_arena(), self._server_directory)
        self._began = time.monotonic()
        for _ in range(self._repeat):
            submit_graphs(get_db_client(), self._graphs, self._user)

    def is_done(self, processes: Processes) -> bool:
        """End a pass when nothing is queued or running, and begin the next; say whether all are done."""
        del processes
        arena = prepared_arena()
        if arena.outstanding():
            return False
        self._commit(arena)
        ended = time.monotonic()
        totals = arena.counter_totals()
        nodes = totals[Counter.NODE_RUNS.name.lower()] - self._nodes
        blocking = totals[Counter.BLOCKING_DB_OPERATIONS.name.lower()] - self._blocking
        cores = core_seconds(prepared_arena(), self._server_directory)
        cores = {role: seconds - self._cores.get(role, 0.0) for role, seconds in cores.items()}
        self.windows.append((self._began, ended, nodes, blocking, cores))
        self._left -= 1
        if self._left:
            self.submit()
        return not self._left

    def show(self) -> None:
        """Nothing to show."""

    def hide(self) -> None:
        """Nothing to hide."""

    def report(self, supervisor: Supervisor) -> None:
        """Nothing to report."""


def submit_graphs(client: ExecutionDataClient, graphs: Sequence[LoadedGraph], user_id: str) -> None:
    """Put a run of each graph on the work queue."""
    for loaded in graphs:
        execution = client.create_graph_execution(loaded.graph.id, user_id)
        client.put_work(WorkKind.START, execution.id, execution.id)


def run_cached(graphs: Sequence[LoadedGraph], repeat: int, passes: int, settings: Settings) -> list[Pass]:
    """Run graphs through shmcache."""
    return _run(graphs, repeat, passes, settings, _drain_rings, get_db_client)


def run_direct(graphs: Sequence[LoadedGraph], repeat: int, passes: int, settings: Settings) -> list[Pass]:
    """Run graphs straight on PostgreSQL."""
    settings = settings.model_copy(update={"mode": "direct"})
    return _run(graphs, repeat, passes, settings, lambda _: None, get_db_client)


def run_first_design(graphs: Sequence[LoadedGraph], repeat: int, passes: int, settings: Settings) -> list[Pass]:
    """Run graphs through the design we started from, in one worker."""
    settings = settings.model_copy(update={"mode": "direct", "workers": 1})
    context = multiprocessing.get_context("fork")
    wanted, flushed = context.Event(), context.Event()

    def commit(_: Arena) -> None:
        wanted.set()
        if not flushed.wait(_COMMIT_SECONDS):
            raise TimeoutError("the first design did not flush")
        flushed.clear()

    def make() -> FirstDesignClient:
        arena = prepared_arena()
        client = FirstDesignClient(
            settings.database_url or "", work_queue=WorkQueue(arena), settings=settings,
            on_wait=lambda: arena.count(Counter.BLOCKING_DB_OPERATIONS),
        )  # fmt: skip

        def flush_when_wanted() -> None:
            while True:
                wanted.wait()
                wanted.clear()
                client.flush()
                flushed.set()

        threading.Thread(target=flush_when_wanted, daemon=True).start()
        return client

    return _run(graphs, repeat, passes, settings, commit, make)


def _drain_rings(arena: Arena) -> None:
    for ring in (arena.charge_ring, arena.write_ring):
        wanted = ring.last_sequence
        if ring.committed_sequence < wanted:
            ring.request_drain()
            if not ring.wait_committed(wanted, _COMMIT_SECONDS):
                raise TimeoutError(f"the {ring.name} ring is not drained")


def _run(
    graphs: Sequence[LoadedGraph],
    repeat: int,
    passes: int,
    settings: Settings,
    commit: Callable[[Arena], None],
    make_client: Callable[[], ExecutionDataClient],
) -> list[Pass]:
    directory = Path(tempfile.mkdtemp(prefix="bench-graphs-"))

    def work(should_stop: ShouldStop) -> None:
        client = make_client()
        stopwatch = _Stopwatch(client)
        timed: Any = stopwatch
        run_worker(timed, should_stop, settings.max_attempts)
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
            for end, spent in zip(stopwatch.ended_at, stopwatch.nanoseconds, strict=True):
                file.write(f"{end} {spent}\n".encode())
        client.close()

    job = _Passes(graphs, repeat, passes, commit, settings.state_dir / "postgresql")
    try:
        if not Supervisor(settings, own_arena_name(), Role("worker", work)).run(job):
            raise RuntimeError("the run did not end in order")
        lines = [line.split() for file in directory.iterdir() for line in file.read_text().splitlines()]
    finally:
        shutil.rmtree(directory)
    timed = [(float(ended), float(spent)) for ended, spent in lines]
    return [
        Pass(ended - began, nodes, blocking, [spent for at, spent in timed if began <= at <= ended], cores)
        for began, ended, nodes, blocking, cores in job.windows
    ]
