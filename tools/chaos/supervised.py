"""The program under fire: a supervisor whose workers start graphs, run them, and journal what they were told.

Started as `python -m tools.chaos.supervised PLAN`, again and again, since it is killed. It goes on until a file named
`enough` lies beside the plan and all that was begun has ended.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

from shmcache.arena import Arena, segment_path
from shmcache.config import load_settings
from shmcache.database.connection import connect
from shmcache.database.queries import create_account, save_graph
from shmcache.execution_data_client import ExecutionDataClient, WorkKind
from shmcache.graphs import LoadedGraph, load_graph_file
from shmcache.manager import Manager, Stopped
from shmcache.records import ExecutionStatus
from shmcache.session import get_db_client, prepared_arena
from tools.chaos.journal import POISON, JournalingClient
from tools.logs import start_logging
from tools.processes import Processes, Role, ShouldStop
from tools.supervisor import Supervisor

_TAKE_SECONDS = 0.05
_AT_ONCE_A_WORKER = 4
"""Entries of the work queue, for each worker, below which another graph is begun."""
_MOST_ATTEMPTS = 100
"""Workers are killed on purpose: no node is to fail of that."""


class Plan(NamedTuple):
    """What is run: files and their users, with what each has; where; by how many workers."""

    directory: str
    state_dir: str
    database_url: str
    arena: str
    arena_size: str
    workers: int
    files: list[str]
    users: dict[str, int]
    small_disk: str | None

    def save(self, path: Path) -> None:
        """Write it to a file."""
        path.write_text(json.dumps(self._asdict()))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read it from a file."""
        return cls(**json.loads(path.read_text()))

    def graphs(self) -> list[LoadedGraph]:
        """Return the graphs of its files."""
        return [load_graph_file(Path(file)) for file in self.files]


class Onslaught:
    """The job of the supervisor: graphs, until it is enough."""

    def __init__(self, plan: Plan, graphs: list[LoadedGraph]) -> None:
        self._plan = plan
        self._graphs = graphs
        self._directory = Path(plan.directory)
        self._arena: Arena | None = None

    def begin(self, database_url: str) -> None:
        """Save the graphs and open the accounts."""
        with connect(database_url, application_name="shmcache chaos") as connection:
            for loaded in self._graphs:
                save_graph(connection, loaded.graph, loaded.nodes)
            for user_id, balance in self._plan.users.items():
                create_account(connection, user_id, balance)

    def submit(self) -> None:
        """The workers begin the graphs themselves."""
        self._arena = prepared_arena()

    def is_done(self, processes: Processes) -> bool:
        """Say whether it is enough, and all has ended; what the arena says of itself then is left in a file."""
        del processes
        assert self._arena is not None
        if not (self._directory / "enough").exists() or self._arena.outstanding():
            return False
        (self._directory / "check.json").write_text(json.dumps(self._arena.check()))
        shutil.copyfile(segment_path(self._plan.arena), self._directory / "segment")
        return True

    def show(self) -> None:
        """Nothing to show."""

    def hide(self) -> None:
        """Nothing to hide."""

    def report(self, supervisor: Supervisor) -> None:
        """Nothing to report: who started this counts for itself."""


class _Worker:
    """One worker: begins graphs while there is little to do, and does the work there is."""

    def __init__(self, plan: Plan, graphs: list[LoadedGraph], client: ExecutionDataClient, stop: ShouldStop) -> None:
        directory = Path(plan.directory)
        path = directory / "journals" / f"{os.getpid()}-{time.monotonic_ns()}"
        self._client = JournalingClient(client, path).for_manager()
        self._manager = Manager(self._client, stop, _MOST_ATTEMPTS)
        self._stop = stop
        self._graphs = graphs
        self._users = list(plan.users)
        self._enough = str(directory / "enough")
        self._poison = directory / "poison"
        self._aim = _AT_ONCE_A_WORKER * plan.workers
        self._arena = prepared_arena()

    def run(self) -> None:
        """Work until asked to stop."""
        while not self._stop():
            if self._arena.outstanding() < self._aim and not os.path.exists(self._enough):
                self._begin_graph()
            if self._poison.exists():
                self._write_poison()
            work = self._client.take_work(_TAKE_SECONDS)
            if work is not None:
                try:
                    self._manager.do(work)
                except Stopped:
                    return

    def _begin_graph(self) -> None:
        source = random.SystemRandom()
        graph_id, user_id = source.choice(self._graphs).graph.id, source.choice(self._users)

        def begin() -> None:
            made = self._client.create_graph_execution(graph_id, user_id)
            self._client.put_work(WorkKind.START, made.id, made.id)

        self._client.atomically(begin)

    def _write_poison(self) -> None:
        """Write an output that the database refuses, in a graph execution of its own."""
        try:
            self._poison.unlink()
        except FileNotFoundError:
            return  # another worker has taken it
        client, loaded = self._client, self._graphs[0]

        def write() -> None:
            run_id = client.create_graph_execution(loaded.graph.id, self._users[0]).id
            identifier, _ = client.upsert_execution_input(loaded.nodes[0].id, run_id, None)
            client.update_node_execution_status(identifier, ExecutionStatus.RUNNING)
            client.upsert_execution_output(identifier, POISON, "\0", ordinal=0)
            client.update_node_execution_status(identifier, ExecutionStatus.COMPLETED)
            client.update_graph_execution_stats(run_id, ExecutionStatus.TERMINATED)

        client.atomically(write)


def main(arguments: list[str]) -> int:
    """Run the plan in a file; return 0 if it ended in order."""
    plan = Plan.load(Path(arguments[0]))
    start_logging("INFO")
    settings = load_settings(
        database_url=plan.database_url, state_dir=Path(plan.state_dir), arena=plan.arena, arena_size=plan.arena_size,
        workers=plan.workers, sync_interval=0.5, max_attempts=_MOST_ATTEMPTS, execution_fee_every=10,
    )  # fmt: skip
    graphs = plan.graphs()

    def work(should_stop: ShouldStop) -> None:
        client: Any = get_db_client()
        _Worker(plan, graphs, client, should_stop).run()

    return 0 if Supervisor(settings, plan.arena, Role("worker", work)).run(Onslaught(plan, graphs)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
