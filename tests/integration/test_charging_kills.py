"""Charging, with a death between every two steps: everything held is settled once, whoever is killed where."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shmcache.arena import Arena, critical
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
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
    ledger,
    open_account,
    priced_graph,
    queued,
    settle_now,
    standing,
    wait_for,
)
from tests.integration.relay import Relay
from tests.integration.test_charge_pool import pool_of, run_charger
from tests.unit.arena_state import Points, die, run_in_child

S = ExecutionStatus
_FORK = multiprocessing.get_context("fork")
OPENING = 10_000
GRANT_ROUNDS = int(os.environ.get("CHARGE_ROUNDS", "3"))
"""CHARGE_ROUNDS=100 for the long run."""


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"charging-kills-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, sync_interval=0.2, execution_fee_every=3, execution_fee=7)


@pytest.fixture
def user(database_url: str) -> str:
    return open_account(database_url, OPENING)


@pytest.fixture
def client(arena: Arena, database_url: str, settings: Settings) -> Iterator[CachedClient]:
    made = CachedClient(arena, database_url, settings)
    yield made
    made.close()


@pytest.fixture
def run(client: CachedClient, user: str) -> str:
    return client.create_graph_execution(priced_graph()[0].id, user).id


# What a worker does


@pytest.mark.parametrize("what", ["hold", "hold an estimate", "spend", "settle", "void"])
def test_a_worker_killed_at_any_step_has_charged_whole_or_not_at_all(
    client: CachedClient, run: str, user: str, arena: Arena, database_url: str, settings: Settings, what: str
) -> None:
    begin(client, queued(client, run, PER_SECOND))  # definitions and account are in the arena
    note = mmap.mmap(-1, 4096)
    charged = 50
    for step in range(1, 200):
        node = PER_RUN if what == "hold" else PER_SECOND
        execution = queued(client, run, node, seconds=4)
        if what == "settle":
            begin(client, execution)
        elif what == "void":
            client.charge_usage(execution, 1)
        before = client.get_credits(user)
        note[0] = 0

        def child(step: int = step, execution_id: str = execution.id) -> None:
            points: Points

            def end() -> None:
                note[0] = points.committed
                die()

            mine = client.get_node_execution(execution_id)
            points = Points(step, end)
            kill_points.arm(critical, points)
            if what == "spend":
                client.spend_credits(user, 40, None, execution_id)
            elif what.startswith("hold"):
                client.charge_usage(mine, 3)
            else:
                client.update_node_execution_status(execution_id, S.TERMINATED, None, {"seconds": 1})

        survived = run_in_child(child) == 0
        happened = survived or bool(note[0])
        difference = {"hold": -10, "hold an estimate": -47, "spend": -40, "settle": 30, "void": 40}[what]
        assert client.get_credits(user) == before + (difference if happened else 0), f"step {step}"
        # Whoever goes on where it died comes to the same end.
        if what == "spend":
            client.spend_credits(user, 40, None, execution.id)
            charged += 40
        elif what.startswith("hold"):
            client.charge_usage(client.get_node_execution(execution.id), 3)
            client.update_node_execution_status(execution.id, S.RUNNING)
            client.update_node_execution_status(execution.id, S.COMPLETED, None, {"seconds": 1})
            charged += 10 if what == "hold" else 17
        else:
            client.update_node_execution_status(execution.id, S.TERMINATED, None, {"seconds": 1})
            charged += 10 if what == "settle" else 0
        assert client.get_credits(user) == OPENING - charged
        if survived:
            break
    else:
        pytest.fail("it never came to its end")
    assert arena.check() == []
    settle_now(arena, database_url, settings)
    assert differences(arena, database_url) == []
    assert standing(database_url, user) == (OPENING - charged + 50, 0, 50)


@pytest.mark.parametrize("turn", range(GRANT_ROUNDS))
def test_eight_processes_with_credit_for_n_charges_are_granted_n(
    client: CachedClient, user: str, arena: Arena, database_url: str, settings: Settings, turn: int
) -> None:
    price = 7 + turn
    client.spend_credits(user, OPENING - 500)
    granted = mmap.mmap(-1, 4096)

    def spend(place: int) -> None:
        mine = CachedClient(arena, database_url, settings)
        count = 0
        try:
            while True:
                mine.spend_credits(user, price)
                count += 1
        except InsufficientBalanceError:
            granted[place * 4 : place * 4 + 4] = count.to_bytes(4, "little")

    processes = [_FORK.Process(target=spend, args=(place,)) for place in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 8
    assert sum(int.from_bytes(granted[place * 4 : place * 4 + 4], "little") for place in range(8)) == 500 // price
    settle_now(arena, database_url, settings)
    assert standing(database_url, user) == (500 % price, 0, 0)
    assert differences(arena, database_url) == []


# What the charger does


def _charges(client: CachedClient, run: str, user: str) -> int:
    """Make charges of all kinds; return what they come to. One estimate of 20 stays open."""
    for number in range(1, 31):
        execution = queued(client, run, PER_RUN)
        client.charge_usage(execution, number)
    for number in range(5):
        estimate = queued(client, run, PER_SECOND, seconds=2)
        begin(client, estimate)
        if number % 2:
            client.update_node_execution_status(estimate.id, S.COMPLETED, None, {"seconds": 3})
        elif number:
            client.update_node_execution_status(estimate.id, S.FAILED, None, {"seconds": 0.5})
    client.spend_credits(user, 11, None, "tea")
    client.spend_credits(user, 12)
    return 30 * 3 + 10 * 7 + 2 * 30 + 2 * 5 + 11 + 12


@pytest.mark.parametrize("step", ["read", "dispatched", "settled", "confirmed", "told", "released"])
def test_a_charger_killed_after_any_step_has_a_successor_that_settles_the_rest_once(
    client: CachedClient, run: str, user: str, arena: Arena, database_url: str, settings: Settings, step: str
) -> None:
    total = _charges(client, run, user)
    entries = arena.charge_ring.last_sequence

    def child() -> None:
        def at(name: str) -> None:
            if name == step:
                die()

        kill_points.arm(charge_pool, at)
        charger = Charger(arena, database_url, settings)
        charger._limit = BatchLimit(10, 1 << 20, 60.0)  # so that a batch is behind and one before it
        charger.run_once()

    assert run_in_child(child) == -signal.SIGKILL
    assert arena.charge_ring.committed_sequence == (10 if step == "released" else 0)
    assert client.get_credits(user) == OPENING - total - 20
    assert arena.charge_ring.last_sequence == entries
    settle_now(arena, database_url, settings)
    assert differences(arena, database_url) == []
    assert standing(database_url, user) == (OPENING - total, 0, 20)
    assert client.get_credits(user) == OPENING - total - 20


def test_a_charger_killed_at_any_step_of_a_release_releases_once(
    client: CachedClient, run: str, user: str, arena: Arena, database_url: str, settings: Settings
) -> None:
    spent = 0
    for step in range(1, 200):
        client.spend_credits(user, 13)
        spent += 13

        def child(step: int = step) -> None:
            def at(name: str) -> None:
                if name == "told":
                    kill_points.arm(critical, Points(step, die))
                else:
                    kill_points.disarm(critical)

            kill_points.arm(charge_pool, at)
            Charger(arena, database_url, settings).run_once()

        survived = run_in_child(child) == 0
        assert arena.check() == []
        assert client.get_credits(user) == OPENING - spent
        settle_now(arena, database_url, settings)
        assert standing(database_url, user) == (OPENING - spent, 0, 0)
        assert differences(arena, database_url) == []
        if survived:
            break
    else:
        pytest.fail("it never came to its end")


# What the pool does


def test_a_pool_process_killed_inside_its_transaction_has_settled_nothing(
    client: CachedClient, run: str, user: str, arena: Arena, database_url: str, settings: Settings
) -> None:
    charger = _FORK.Process(target=run_charger, args=(arena, database_url, settings, 60.0))
    charger.start()
    pool = pool_of(psutil.Process(charger.pid))
    client.get_credits(user)
    wait_for(lambda: arena.charge_ring.committed_sequence == arena.charge_ring.last_sequence)
    with connect(database_url, application_name="test") as connection:
        with connection.transaction():
            connection.execute("SELECT FROM accounts FOR UPDATE")
            total = _charges(client, run, user)
            arena.charge_ring.request_drain()
            wait_for(lambda: _waiting_backends(database_url))
            for process in pool:
                process.kill()
        arena.charge_ring.request_drain()
        wait_for(lambda: arena.charge_ring.committed_sequence == arena.charge_ring.last_sequence)
        assert arena.counter_totals()["pool_replaced"] >= 1
        charger.terminate()
        charger.join(60)
        assert charger.exitcode == 0
        assert len(ledger(connection, user)) == 30 + 10 + 4 + 2
    assert standing(database_url, user) == (OPENING - total, 0, 20)
    assert differences(arena, database_url) == []


def _waiting_backends(database_url: str) -> bool:
    with connect(database_url, application_name="test") as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            " AND application_name = 'shmcache charge pool'"
        ).fetchone()
    return row is not None and row[0] > 0


@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_a_database_that_goes_away_between_a_commit_and_its_answer_has_each_charge_once(
    client: CachedClient, run: str, user: str, arena: Arena, database_url: str, settings: Settings, times: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    total = _charges(client, run, user)
    directory = tmp_path / "s"
    directory.mkdir()
    with Relay(database_url, directory) as relay:
        relay.lose(b"COMMIT", times)
        settle_now(arena, relay.url, settings)
        assert relay.lost == times
    assert differences(arena, database_url) == []
    assert standing(database_url, user) == (OPENING - total, 0, 20)
    assert client.get_credits(user) == OPENING - total - 20


def test_a_charger_that_was_stopped_and_superseded_releases_nothing(
    client: CachedClient, run: str, user: str, arena: Arena, database_url: str, settings: Settings
) -> None:
    total = _charges(client, run, user)
    reached, resume = threading.Event(), threading.Event()
    steps: list[str] = []

    def at(name: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            steps.append(name)
            if name == "told":
                reached.set()
                resume.wait(60)

    kill_points.arm(charge_pool, at)
    try:
        stale = threading.Thread(target=lambda: _expect_fenced(arena, database_url, settings))
        stale.start()
        assert reached.wait(60)
        (settings.state_dir / "locks" / f"{arena.name}.charger.lock").unlink()
        settle_now(arena, database_url, settings)
        client.spend_credits(user, 5)
    finally:
        resume.set()
        kill_points.disarm(charge_pool)
    stale.join(60)
    assert steps[-1] == "told", "it came no further"
    assert client.get_credits(user) == OPENING - total - 25
    settle_now(arena, database_url, settings)
    assert differences(arena, database_url) == []
    assert standing(database_url, user) == (OPENING - total - 5, 0, 20)


def test_a_charger_that_releases_while_its_successor_settles_the_same_has_released_it_alone(
    client: CachedClient, run: str, user: str, arena: Arena, database_url: str, settings: Settings
) -> None:
    total = _charges(client, run, user)
    reached, resume = threading.Event(), threading.Event()

    def at(name: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            if name == "told":
                reached.set()
                resume.wait(60)
        elif name == "settled":
            resume.set()
            stopped.join(60)

    kill_points.arm(charge_pool, at)
    try:
        stopped = threading.Thread(target=Charger(arena, database_url, settings).run_once)
        stopped.start()
        assert reached.wait(60)
        (settings.state_dir / "locks" / f"{arena.name}.charger.lock").unlink()
        _expect_fenced(arena, database_url, settings)
    finally:
        resume.set()
        kill_points.disarm(charge_pool)
    assert client.get_credits(user) == OPENING - total - 20
    settle_now(arena, database_url, settings)
    assert differences(arena, database_url) == []
    assert client.get_credits(user) == OPENING - total - 20


def test_a_charger_that_has_read_accounts_and_was_superseded_gives_nobody_credits_that_are_spent(
    client: CachedClient, user: str, arena: Arena, database_url: str, settings: Settings
) -> None:
    client.spend_credits(user, 13)
    reached, resume = threading.Event(), threading.Event()

    def at(name: str) -> None:
        if threading.current_thread() is not threading.main_thread() and name == "reread":
            reached.set()
            resume.wait(60)

    kill_points.arm(charge_pool, at)
    try:
        stale = threading.Thread(target=lambda: _expect_fenced(arena, database_url, settings))
        stale.start()
        assert reached.wait(60)
        (settings.state_dir / "locks" / f"{arena.name}.charger.lock").unlink()
        client.spend_credits(user, 5)
        settle_now(arena, database_url, settings)
    finally:
        resume.set()
        kill_points.disarm(charge_pool)
    stale.join(60)
    assert client.get_credits(user) == OPENING - 18
    assert differences(arena, database_url) == []


def _expect_fenced(arena: Arena, database_url: str, settings: Settings) -> None:
    from shmcache.errors import Fenced

    with pytest.raises(Fenced):
        Charger(arena, database_url, settings).run_once()


def test_it_says_that_it_has_shut_down_once_and_only_when_all_is_settled(
    client: CachedClient, run: str, user: str, arena: Arena, database_url: str, settings: Settings,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    client.spend_credits(user, 5, None, new_id())
    monkeypatch.setattr("syncer.consumer._STOPPING_SECONDS", 0.2)
    Charger(arena, "postgresql://nobody@127.0.0.1:1/none", settings).run_once()
    assert caplog.text.count("Charge manager shutdown") == 0
    assert "stay on the ring" in caplog.text
    settle_now(arena, database_url, settings)
    assert caplog.text.count("Charge manager shutdown") == 1
