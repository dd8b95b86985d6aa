"""`shmcache run`: graph files in, their executions done, a summary out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from shmcache.arena import Arena
from shmcache.config import Settings
from shmcache.database.bookkeeping import count_dead_letters
from shmcache.database.connection import connect
from shmcache.database.queries import create_account, save_graph
from shmcache.database.report import summarize
from shmcache.execution_data_client import WorkKind
from shmcache.graphs import LoadedGraph
from shmcache.identifiers import new_id
from shmcache.manager import run_worker
from shmcache.records import ExecutionStatus
from shmcache.session import get_db_client, prepared_arena
from tools.processes import Processes, Role, ShouldStop
from tools.supervisor import Supervisor, own_arena_name

Summary = dict[str, Any]


class GraphRuns:
    """Runs of some graphs, each `repeat` times, for one user. The job of a Supervisor."""

    def __init__(self, graphs: Sequence[LoadedGraph], repeat: int, user_id: str | None, settings: Settings) -> None:
        self._graphs = graphs
        self._repeat = repeat
        self._settings = settings
        self._user_id = user_id or new_id()
        self._opening_balance = 0
        self._graph_exec_ids: list[str] = []
        self._started_at = 0.0
        self._arena: Arena | None = None
        self._bar: Progress | None = None
        self.summary: Summary = {}

    def begin(self, database_url: str) -> None:
        """Save the graphs and open the account."""
        with connect(database_url, application_name="shmcache run") as connection:
            for loaded in self._graphs:
                save_graph(connection, loaded.graph, loaded.nodes)
            account = create_account(connection, self._user_id, self._settings.opening_balance)
            self._opening_balance = account.balance

    def submit(self) -> None:
        """Create the graph executions and put them on the work queue."""
        self._started_at = time.monotonic()
        self._arena = prepared_arena()
        client = get_db_client()
        for _ in range(self._repeat):
            for loaded in self._graphs:

                def submit(graph_id: str = loaded.graph.id) -> str:
                    execution = client.create_graph_execution(graph_id, self._user_id)
                    client.put_work(WorkKind.START, execution.id, execution.id)
                    return execution.id

                self._graph_exec_ids.append(client.atomically(submit))

    def is_done(self, processes: Processes) -> bool:
        """Say whether nothing is queued or running any more."""
        del processes
        return self._arena is not None and not self._arena.outstanding()

    def show(self) -> None:
        """Move the progress bar, on a terminal."""
        if self._arena is None or not sys.stderr.isatty():
            return
        if self._bar is None:
            # No thread that refreshes it, and nobody's streams redirected: the supervisor forks.
            self._bar = Progress(
                TextColumn("nodes"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                console=Console(stderr=True), auto_refresh=False, transient=True,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._bar.add_task("nodes", total=sum(len(loaded.nodes) for loaded in self._graphs) * self._repeat)
            self._bar.start()
        done = self._arena.counter_totals()["node_runs"]
        self._bar.update(TaskID(0), completed=done, total=max(self._bar.tasks[0].total or 0, done))
        self._bar.refresh()

    def hide(self) -> None:
        """Take the progress bar away."""
        if self._bar is not None:
            self._bar.stop()

    def report(self, supervisor: Supervisor) -> None:
        """Make the summary: counts and sums out of the database, the rest as counted on the way."""
        with connect(supervisor.database_url, application_name="shmcache run") as connection:
            figures = summarize(connection, self._graph_exec_ids, [self._user_id])
            dead_letters = count_dead_letters(connection, supervisor.arena_id)
        wall = supervisor.finished_at - self._started_at
        nodes = figures.node_executions
        blocking = supervisor.counters["blocking_db_operations"]
        self.summary = {
            "mode": self._settings.mode,
            "workers": self._settings.workers,
            "graphs": len(self._graphs),
            "graph_executions": figures.graph_executions,
            "graph_executions_by_status": figures.graph_executions_by_status,
            "node_executions": nodes,
            "completed": figures.completed,
            "failed": figures.failed,
            "terminated": figures.terminated,
            "outputs": figures.outputs,
            "charges": figures.charges,
            "credits_charged": figures.credits_charged,
            "opening_balance": self._opening_balance,
            "closing_balance": figures.closing_balance,
            "user": self._user_id,
            "wall_seconds": round(wall, 3),
            "node_executions_per_second": round(nodes / wall, 1) if wall > 0 else 0.0,
            "blocking_db_operations": blocking,
            "blocking_db_operations_per_node": round(blocking / nodes, 4) if nodes else 0.0,
            "unsynced": supervisor.unsynced,
            "dead_letters": dead_letters,
            "leader_changes": max(0, supervisor.counters["leaders"] - 1),
            "worker_restarts": supervisor.worker_restarts,
        }


def run_graphs(
    graphs: Sequence[LoadedGraph], repeat: int, user_id: str | None, settings: Settings, arena_name: str | None = None
) -> tuple[Summary, bool]:
    """Run graphs to their end; return the summary, and whether every graph execution is COMPLETED.

    The arena is one of this run's own, also if it is given a name. The summary is empty where the run was left at
    once. Raises ShmcacheError where it cannot start."""
    runs = GraphRuns(graphs, repeat, user_id, settings)

    def work(should_stop: ShouldStop) -> None:
        durable_ends = settings.flush_on == "node"
        run_worker(get_db_client(), should_stop, settings.max_attempts, durable_ends=durable_ends)

    Supervisor(settings, arena_name or own_arena_name(), Role("worker", work)).run(runs)
    completed = runs.summary.get("graph_executions_by_status", {}).get(ExecutionStatus.COMPLETED, 0)
    return runs.summary, bool(runs.summary) and completed == len(graphs) * repeat


def print_summary(summary: Summary, as_json: bool) -> None:
    """Print a summary on standard output: a table, or one JSON object."""
    if as_json:
        sys.stdout.write(json.dumps(summary) + "\n")
        return
    table = Table(title="shmcache run", show_header=False)
    for name, value in summary.items():
        shown = ", ".join(f"{count} {key}" for key, count in value.items()) if isinstance(value, dict) else value
        table.add_row(name.replace("_", " "), f"{shown:,}" if isinstance(shown, (int, float)) else str(shown))
    Console().print(table)
