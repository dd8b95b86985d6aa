"""Random holds, settlements, voids, top-ups and kills, against a plain ledger in memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shmcache.arena import Arena, critical
from shmcache.cached_client import CachedClient
from shmcache.config import load_settings
from shmcache.database.accounts import top_up
from shmcache.database.connection import connect
from shmcache.errors import InsufficientBalanceError
from shmcache.identifiers import new_id
from shmcache.records import ExecutionStatus
from syncer import charge_pool
from syncer.batch_limit import BatchLimit
from tests import kill_points
from tests.integration.charging import (
    PER_RUN,
    PER_SECOND,
    Charger,
    begin,
    differences,
    open_account,
    priced_graph,
    queued,
    settle_now,
    standing,
)
from tests.unit.arena_state import Points, die, run_in_child

S = ExecutionStatus
OPENING = 300
STEPS = ("read", "dispatched", "settled", "confirmed", "told", "released")


class Died(BaseException):
    """A charger's death, as far as this process can play it."""


class Charging(RuleBasedStateMachine):
    """The model: what was charged (`spent`), what is held for estimates (`open`), what was added."""

    database_url = ""
    state_dir = Path()

    @initialize()
    def begin_all(self) -> None:
        self.user = open_account(self.database_url, OPENING)
        self.arena = Arena.create(f"charging-model-{os.getpid()}-{new_id()[-6:]}", 8 << 20)
        self.settings = load_settings(state_dir=self.state_dir, sync_interval=0.2)
        self.client = CachedClient(self.arena, self.database_url, self.settings)
        self.run = self.client.create_graph_execution(priced_graph()[0].id, self.user).id
        self.client.get_credits(self.user)
        self.funds = OPENING
        self.unheard = 0
        self.spent: dict[str, int] = {}
        self.open: dict[str, int] = {}
        self.keys = 0

    def teardown(self) -> None:
        if hasattr(self, "client"):
            try:
                self.settle()
            finally:
                self.client.close()
                self.arena.close()
                self.arena.unlink()

    @property
    def left(self) -> int:
        """What the model says can be spent, as far as the arena can know."""
        return self.funds - self.unheard - sum(self.spent.values()) - sum(self.open.values())

    @rule(amount=st.integers(0, 120), again=st.booleans())
    def spend(self, amount: int, again: bool) -> None:
        if not again:
            self.keys += 1
        key = f"{self.user} {self.keys}"
        if key in self.spent:
            assert self.client.spend_credits(self.user, amount, None, key) == self.left
        elif amount > self.left:
            with pytest.raises(InsufficientBalanceError):
                self.client.spend_credits(self.user, amount, None, key)
        else:
            self.spent[key] = amount
            assert self.client.spend_credits(self.user, amount, None, key) == self.left

    @rule(amount=st.integers(1, 60), step=st.integers(1, 14))
    def spend_killed(self, amount: int, step: int) -> None:
        self.keys += 1
        key = f"{self.user} {self.keys}"
        note = mmap.mmap(-1, 4096)

        def child() -> None:
            points: Points

            def end() -> None:
                note[0] = points.committed
                die()

            points = Points(step, end)
            kill_points.arm(critical, points)
            try:
                self.client.spend_credits(self.user, amount, None, key)
                note[0] = 1
            except InsufficientBalanceError:
                pass

        may = amount <= self.left
        if may:
            self.client._leases.take(self.user, amount)  # what is committed below is the spending
        run_in_child(child)
        if note[0] and may:
            self.spent[key] = amount

    @rule()
    def run_node(self) -> None:
        execution = queued(self.client, self.run, PER_RUN)
        if self.left < 3:
            with pytest.raises(InsufficientBalanceError):
                begin(self.client, execution)
        else:
            begin(self.client, execution)
            self.spent[f"{execution.id}:block"] = 3
            assert self.client.charge_usage(execution, 1)[1] == self.left

    @rule(seconds=st.integers(0, 9), runs=st.booleans())
    def hold(self, seconds: int, runs: bool) -> None:
        execution = queued(self.client, self.run, PER_SECOND, seconds=seconds)
        try:
            if runs:
                begin(self.client, execution)
            else:
                self.client.charge_usage(execution, 1)
        except InsufficientBalanceError:
            assert self.left < seconds * 10
        else:
            self.open[execution.id] = seconds * 10

    @precondition(lambda self: self.open)
    @rule(seconds=st.integers(0, 12), data=st.data())
    def end(self, seconds: int, data: st.DataObject) -> None:
        identifier = data.draw(st.sampled_from(sorted(self.open)))
        status = self.client.get_node_execution(identifier).status
        held = self.open[identifier]
        if seconds * 10 - held > self.left:
            seconds = held // 10  # what would make debt is for the tests of it
        self.client.update_node_execution_status(identifier, S.TERMINATED, None, {"seconds": seconds})
        del self.open[identifier]
        if status is S.RUNNING:
            self.spent[f"{identifier}:block"] = seconds * 10

    @rule(amount=st.integers(1, 200))
    def add_funds(self, amount: int) -> None:
        with connect(self.database_url, application_name="test") as connection:
            top_up(connection, self.user, amount, new_id())
        self.funds += amount
        self.unheard += amount

    @rule()
    def settle(self) -> None:
        settle_now(self.arena, self.database_url, self.settings)
        self.unheard = 0
        assert differences(self.arena, self.database_url) == []
        held = sum(self.open.values())
        assert standing(self.database_url, self.user) == (self.funds - sum(self.spent.values()), 0, held)
        with connect(self.database_url, application_name="test") as connection:
            rows = connection.execute(
                "SELECT transaction_key, -amount FROM ledger WHERE user_id = %s AND reason <> 'top-up'", (self.user,)
            ).fetchall()
        assert dict(rows) == {key: amount for key, amount in self.spent.items() if amount}

    @rule(step=st.sampled_from(STEPS), entries=st.sampled_from([1, 3, 1_000]))
    def settle_killed(self, step: str, entries: int) -> None:
        def at(name: str) -> None:
            if name == step:
                raise Died

        charger = Charger(self.arena, self.database_url, self.settings)
        charger._limit = BatchLimit(entries, 1 << 20, 60.0)
        kill_points.arm(charge_pool, at)
        try:
            charger.run_once()
        except Died:
            pass
        finally:
            kill_points.disarm(charge_pool)
        # What it has heard of the top-ups so far is not the model's business: the next one hears all of it.
        settle_now(self.arena, self.database_url, self.settings)
        self.unheard = 0

    @invariant()
    def the_arena_says_what_the_model_says(self) -> None:
        if hasattr(self, "client"):
            assert self.client.get_credits(self.user) == self.left


def test_charging_is_a_plain_ledger(database_url: str, tmp_path: Path) -> None:
    Charging.database_url = database_url
    Charging.state_dir = tmp_path
    run_state_machine_as_test(
        Charging,
        settings=settings(
            max_examples=int(os.environ.get("CHARGE_EXAMPLES", "12")),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
