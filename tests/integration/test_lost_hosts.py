"""What a lost host had not charged is charged once, whoever does it and whoever comes back."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from shmcache.database import lost_hosts, queries
from shmcache.database.audit import find_differences
from shmcache.database.connection import connect
from shmcache.database.lost_hosts import make_good
from shmcache.database.ownership import forget_hosts, release_lease, renew_lease
from shmcache.records import ExecutionStatus, NodeExecution
from tests import kill_points
from tests.integration.charging import (
    PER_BYTE,
    PER_RUN,
    begin,
    open_account,
    priced_graph,
    queued,
    settle_now,
    wait_for,
)
from tests.integration.test_ownership import Host, connection, make_host
from tests.integration.test_ownership_resuming import ledger
from tests.unit.arena_state import die, run_in_child

__all__ = ["connection", "make_host"]

S = ExecutionStatus
Connection = psycopg.Connection[Any]


def do(host: Host, run: str, node: str = PER_RUN, between: Callable[[], None] = lambda: None) -> NodeExecution:
    """Run a node on a host: it is COMPLETED, and charged in the arena. `between`: before it ends."""
    execution = queued(host.client, run, node)
    begin(host.client, execution)
    between()
    host.client.upsert_execution_output(execution.id, "out", "so many bytes")
    host.client.update_node_execution_status(execution.id, S.COMPLETED)
    return execution


def live(connection: Connection, host: Host, seconds: float = 0.0) -> None:
    """Have a host been heard of; with no seconds its lease is over at once."""
    renew_lease(connection, host.arena.arena_id, seconds)


def is_made_good(connection: Connection, host: Host) -> bool:
    row = connection.execute("SELECT made_good FROM hosts WHERE arena_id = %s", (host.arena.arena_id,)).fetchone()
    assert row is not None
    return bool(row[0])


@pytest.fixture
def user(connection: Connection, database_url: str) -> str:
    return open_account(database_url, 1_000)


@pytest.fixture
def lost(make_host: Callable[..., Host]) -> Host:
    return make_host("one")


@pytest.fixture
def run(lost: Host, user: str) -> str:
    return lost.client.create_graph_execution(priced_graph()[0].id, user).id


def test_what_a_lost_host_has_not_charged_is_charged_once_and_its_own_charges_change_nothing(
    lost: Host, run: str, user: str, connection: Connection, database_url: str
) -> None:
    # What is held for it is open in the database when the host is lost.
    measured = do(lost, run, PER_BYTE, lambda: settle_now(lost.arena, database_url, lost.settings))
    ended = do(lost, run)
    running = queued(lost.client, run, PER_RUN)
    begin(lost.client, running)
    lost.sync()
    live(connection, lost, 60.0)
    assert make_good(connection) == 0, "it lives"
    live(connection, lost)
    assert make_good(connection) == 2
    cost = lost.client.get_node_execution(measured.id).stats["cost"]
    assert cost > 0
    expected = sorted([(f"{ended.id}:block", 3), (f"{measured.id}:block", cost)])
    assert ledger(connection, user) == expected
    assert make_good(connection) == 0
    # It comes back, and charges what it had on its ring: the one that was running too.
    settle_now(lost.arena, database_url, lost.settings)
    assert ledger(connection, user) == sorted([*expected, (f"{running.id}:block", 3)])
    account = queries.load_account(connection, user)
    assert account is not None
    assert (account.balance, account.held, account.debt) == (1_000 - 6 - cost, 0, 0)
    assert lost.client.get_credits(user) == account.balance
    assert find_differences(connection)[1] == []


def test_what_was_charged_before_is_not_charged_again(
    lost: Host, run: str, user: str, connection: Connection, database_url: str
) -> None:
    for _ in range(3):
        do(lost, run)
    lost.sync()
    settle_now(lost.arena, database_url, lost.settings)
    before = ledger(connection, user)
    live(connection, lost)
    assert make_good(connection) == 0
    assert ledger(connection, user) == before
    assert len(before) == 3


def test_what_was_taken_over_is_charged_for_what_the_lost_host_did_and_the_new_one_charges_its_own(
    lost: Host, run: str, user: str, connection: Connection, database_url: str, make_host: Callable[..., Host]
) -> None:
    two = make_host("two")
    done = do(lost, run)
    lost.sync()
    live(connection, lost)
    two.client.take_graph_execution(run)
    own = do(two, run)
    two.sync()
    live(connection, two, 60.0)
    assert make_good(connection) == 1
    assert ledger(connection, user) == [(f"{done.id}:block", 3)]
    settle_now(two.arena, database_url, two.settings)
    assert ledger(connection, user) == sorted([(f"{done.id}:block", 3), (f"{own.id}:block", 3)])
    assert find_differences(connection)[1] == []


def test_one_that_is_lost_again_is_made_good_again_and_one_that_ended_in_order_is_not_looked_at(
    lost: Host, run: str, user: str, connection: Connection
) -> None:
    for number in range(2):
        do(lost, run)
        lost.sync()
        live(connection, lost)
        assert not is_made_good(connection, lost)
        assert make_good(connection) == 1
        assert is_made_good(connection, lost)
        assert len(ledger(connection, user)) == number + 1
    live(connection, lost, 60.0)
    release_lease(connection, lost.arena.arena_id)
    assert is_made_good(connection, lost)


def test_a_host_is_not_forgotten_before_it_was_made_good(lost: Host, connection: Connection) -> None:
    live(connection, lost, -100_000.0)
    forget_hosts(connection)
    assert make_good(connection) == 0
    assert is_made_good(connection, lost)
    forget_hosts(connection)
    assert connection.execute("SELECT FROM hosts WHERE arena_id = %s", (lost.arena.arena_id,)).fetchone() is None


def test_the_leader_of_another_host_does_it(
    lost: Host, run: str, user: str, connection: Connection, make_host: Callable[..., Host]
) -> None:
    done = do(lost, run)
    lost.sync()
    live(connection, lost)
    make_host("two", lease=0.6)
    wait_for(lambda: is_made_good(connection, lost))
    assert ledger(connection, user) == [(f"{done.id}:block", 3)]


def test_one_that_many_do_at_once_is_done_by_one(
    lost: Host, run: str, user: str, connection: Connection, database_url: str
) -> None:
    do(lost, run)
    lost.sync()
    live(connection, lost)
    with connect(database_url, application_name="test") as other, other.transaction():
        other.execute("SELECT FROM hosts FOR UPDATE")
        assert make_good(connection) == 0
    assert make_good(connection) == 1


@pytest.mark.parametrize("step", kill_points.steps_of(lost_hosts))
def test_who_dies_while_charging_has_charged_nothing_and_another_does_it(
    lost: Host, run: str, user: str, connection: Connection, database_url: str, step: str
) -> None:
    do(lost, run)
    lost.sync()
    live(connection, lost)

    def child() -> None:
        kill_points.arm(lost_hosts, lambda at: die() if at == step else None)
        with connect(database_url, application_name="test") as mine:
            make_good(mine)

    assert run_in_child(child) == -signal.SIGKILL
    assert ledger(connection, user) == []
    wait_for(lambda: make_good(connection) == 1)  # once the server has seen that the other is gone
    assert len(ledger(connection, user)) == 1
