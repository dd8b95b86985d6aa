"""An executor: this process, or one of its threads or children, on the arena that all share."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Self

import pytest

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.errors import InsufficientBalanceError
from shmcache.execution_data_client import ExecutionDataClient
from shmcache.identifiers import new_id
from shmcache.records import ExecutionStatus
from tests.integration.charging import PER_RUN, PER_SECOND, begin, priced_graph, queued
from tests.stress.executors.controller import ground_of
from tests.stress.executors.ground import Ground

STEPS = int(os.environ.get("EXECUTORS_STEPS", "80"))
"""How much each test does."""
_TURNS = int(os.environ.get("EXECUTORS_TURNS", "3"))
"""How often each test is there: more than once, so that there is something for every worker."""
S = ExecutionStatus


class Executor:
    """One that is attached, with a client that journals."""

    def __init__(self, ground: Ground, arena: Arena, seed: str, shared: CachedClient | None = None) -> None:
        self.ground = ground
        self.seed = seed
        self.dice = random.Random(seed)
        self._owns_client = shared is None
        self._run: str | None = None
        self._attach(arena, shared)

    def _attach(self, arena: Arena, shared: CachedClient | None) -> None:
        ground = self.ground
        self.arena = arena
        self.cached = CachedClient(arena, ground.database_url, ground.settings()) if shared is None else shared
        self.journaling = ground.journaling(self.cached)
        self.client: ExecutionDataClient = self.journaling.for_manager()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._owns_client:
            self.cached.close()
        self.journaling.close_journal()

    def in_thread(self, number: int) -> Executor:
        """Return one for another thread of this process, with the same client and a journal of its own."""
        return Executor(self.ground, self.arena, f"{self.seed} thread {number}", self.cached)

    def in_child(self, number: int) -> Executor:
        """Return one for a forked child, in which this is called."""
        self.arena.enter("worker")
        return Executor(self.ground, self.arena, f"{self.seed} child {number}")

    def leave_and_come_back(self) -> None:
        """Detach, and attach anew with a client and a journal that know nothing yet."""
        self.cached.close()
        self.journaling.close_journal()
        self.arena.close()
        self._attach(self.ground.attach(), None)

    def user(self) -> str:
        """Return somebody who pays."""
        return self.dice.choice([*self.ground.rich, *self.ground.poor])

    def run(self) -> str:
        """Return a graph execution of this one's own, for node executions of any kind; the controller ends it."""
        if self._run is None:
            self._run = self.client.create_graph_execution(priced_graph()[0].id, self.user()).id
        return self._run

    def append_to_shared(self) -> None:
        """Append to what all append to, and see it there."""
        identifier, value = self.dice.choice(self.ground.shared), new_id()
        self.journaling.append_output(identifier, value)
        assert value in self.client.get_node_execution(identifier).outputs["out"]

    def run_a_node(self) -> None:
        """Make a node execution, charge for it, end it; one whose user has not the credits fails."""
        client = self.client
        user = self.user()
        run = client.create_graph_execution(priced_graph()[0].id, user).id
        # What a run may cost is known to be there only for the rich: others are not to come into debt.
        by_time = user in self.ground.rich and self.dice.random() < 0.3
        execution = queued(client, run, PER_SECOND if by_time else PER_RUN, seconds=self.dice.randrange(1, 4))
        # A fee is not part of what an ended execution says it cost: those by time have none.
        count = 1 if by_time else client.increment_execution_count(user, execution.id)
        try:
            begin(client, execution, count)
        except InsufficientBalanceError:
            client.update_node_execution_status(execution.id, S.FAILED)
            ended = client.get_node_execution(execution.id)
            assert (ended.status, ended.started_at) == (S.FAILED, None)
        else:
            self.journaling.append_output(execution.id, {"number": self.dice.random()})
            ended = client.update_node_execution_status(
                execution.id, S.COMPLETED, None, {"seconds": self.dice.randrange(1, 9) / 2}
            )
            assert ended.status is S.COMPLETED
        client.update_graph_execution_stats(run, S.TERMINATED)

    def spend(self) -> None:
        """Spend credits, sometimes asked twice."""
        user, amount, key = self.user(), self.dice.randrange(1, 30), new_id()
        try:
            for _ in range(self.dice.choice((1, 1, 2))):
                self.client.spend_credits(user, amount, None, key)
        except InsufficientBalanceError:
            assert user in self.ground.poor

    def do_anything(self) -> None:
        """Do one of the things above."""
        self.dice.choice((self.append_to_shared, self.run_a_node, self.spend))()


@pytest.fixture(params=range(_TURNS))
def turn(request: pytest.FixtureRequest) -> int:
    """Which of several times a test is done."""
    number: int = request.param
    return number


@pytest.fixture
def executor(request: pytest.FixtureRequest, turn: int) -> Iterator[Executor]:
    """Attach this process before the test, detach it behind it."""
    ground = ground_of(request.config)
    executor = Executor(ground, ground.attach(), f"{request.node.nodeid} {turn}")
    with executor:
        yield executor
    executor.arena.close()
