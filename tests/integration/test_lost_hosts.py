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
from shmcache.database.dead_letters import list_dead_letters
from shmcache.database.lost_hosts import make_good
from shmcache.database.ownership import forget_hosts, release_lease, renew_lease
from shmcache.records import ExecutionStatus, NodeExecution
from syncer.lost_hosts import LostHosts
from syncer.replay import replay
from tests import kill_points
from tests.integration.charging import (
    PER_BYTE,
    PER_RUN,
    PER_SECOND,
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


def test_what_is_taken_over_is_charged_for_what_each_lost_host_did_and_the_last_one_charges_its_own(
    lost: Host, run: str, user: str, connection: Connection, database_url: str, make_host: Callable[..., Host]
) -> None:
    others = [make_host(name) for name in ("two", "three")]
    hosts = [lost, *others]
    done: list[NodeExecution] = []
    for number, host in enumerate(hosts):
        if number:
            host.client.take_graph_execution(run)
            assert ledger(connection, user) == sorted((f"{each.id}:block", 3) for each in done)
        done.append(do(host, run))
        host.sync()
        live(connection, host)
    assert make_good(connection) == 1
    expected = sorted((f"{each.id}:block", 3) for each in done)
    assert ledger(connection, user) == expected
    for host in hosts:
        settle_now(host.arena, database_url, host.settings)
    assert ledger(connection, user) == expected
    assert find_differences(connection)[1] == []


def test_a_host_whose_clock_is_ahead_is_charged_for_all_the_same(
    lost: Host, run: str, user: str, connection: Connection, make_host: Callable[..., Host]
) -> None:
    ended = [do(lost, run) for _ in range(2)]
    lost.sync()
    connection.execute("UPDATE node_executions SET ended_at = ended_at + interval '3 hours'")
    live(connection, lost)
    make_host("two").client.take_graph_execution(run)
    assert ledger(connection, user) == sorted((f"{each.id}:block", 3) for each in ended)


def test_what_the_account_cannot_pay_is_owed_and_the_next_host_starts_nothing_more(
    lost: Host, run: str, user: str, connection: Connection, make_host: Callable[..., Host]
) -> None:
    do(lost, run)
    lost.sync()
    connection.execute("DELETE FROM credit_leases")
    connection.execute("UPDATE accounts SET balance = 1, opening_balance = 1")
    live(connection, lost)
    found = make_host("two").client.resume_graph_execution(run)
    assert found.stats["error"] == "insufficient balance: 2 credits of a charge are owed"
    account = queries.load_account(connection, user)
    assert account is not None
    assert (account.balance, account.debt) == (0, 2)


@pytest.mark.parametrize("is_taken", [False, True])
def test_what_was_held_for_an_execution_that_cost_nothing_is_held_no_longer(
    lost: Host, run: str, user: str, connection: Connection, database_url: str, make_host: Callable[..., Host],
    is_taken: bool,
) -> None:  # fmt: skip
    execution = queued(lost.client, run, PER_SECOND)
    begin(lost.client, execution)
    settle_now(lost.arena, database_url, lost.settings)
    lost.client.update_node_execution_status(execution.id, S.COMPLETED, None, {"seconds": 0})
    assert lost.client.get_node_execution(execution.id).stats["cost"] == 0
    lost.sync()
    before = queries.load_account(connection, user)
    assert before is not None
    assert before.held > 0
    live(connection, lost)
    if is_taken:
        make_host("two").client.take_graph_execution(run)
    else:
        assert make_good(connection) == 1
    after = queries.load_account(connection, user)
    assert after is not None
    assert (after.held, after.balance) == (0, 1_000)
    assert find_differences(connection)[1] == []


def test_a_charge_that_is_refused_is_a_dead_letter_and_the_others_are_made(
    lost: Host, run: str, user: str, connection: Connection
) -> None:
    done = [do(lost, run) for _ in range(3)]
    lost.sync()
    live(connection, lost)
    connection.execute(
        f"ALTER TABLE ledger ADD CONSTRAINT poison CHECK (transaction_key <> '{done[1].id}:block')".encode()
    )
    assert make_good(connection) == 2
    assert is_made_good(connection, lost)
    assert ledger(connection, user) == sorted((f"{each.id}:block", 3) for each in (done[0], done[2]))
    connection.execute("ALTER TABLE ledger DROP CONSTRAINT poison")
    (letter,) = list_dead_letters(connection)
    assert (letter.ring, letter.arena_id) == ("charge", lost.arena.arena_id)
    assert "poison" in letter.error
    assert replay(connection, [letter.id]).written == [letter.id]
    assert ledger(connection, user) == sorted((f"{each.id}:block", 3) for each in done)


def test_what_comes_late_of_a_host_that_was_made_good_is_charged_too(
    lost: Host, run: str, user: str, connection: Connection
) -> None:
    live(connection, lost)
    assert make_good(connection) == 0
    assert is_made_good(connection, lost)
    done = do(lost, run)
    lost.sync()  # its syncer was stopped, and is lost before it says that it lives
    assert make_good(connection) == 1
    assert ledger(connection, user) == [(f"{done.id}:block", 3)]


def test_a_host_is_looked_through_in_parts_and_again_if_it_writes_meanwhile(
    lost: Host, user: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_hosts, "_AT_ONCE", 2)
    runs = [lost.client.create_graph_execution(priced_graph()[0].id, user).id for _ in range(5)]
    done = [do(lost, run) for run in runs]
    lost.sync()
    live(connection, lost)
    seen: list[str] = []

    def write_late(step: str) -> None:
        if step == "begun":
            seen.append(step)
        if seen == ["begun", "begun"]:  # the first part is looked through
            seen.append("written")
            done.append(do(lost, runs[0]))
            lost.sync()

    kill_points.arm(lost_hosts, write_late)
    try:
        assert make_good(connection) < 5
    finally:
        kill_points.disarm(lost_hosts)
    assert not is_made_good(connection, lost)
    make_good(connection)
    assert is_made_good(connection, lost)
    assert ledger(connection, user) == sorted((f"{each.id}:block", 3) for each in done)


def test_what_is_over_for_a_day_is_forgotten_by_who_leads(
    lost: Host, run: str, user: str, connection: Connection, database_url: str
) -> None:
    execution = queued(lost.client, run, PER_BYTE)
    begin(lost.client, execution)
    settle_now(lost.arena, database_url, lost.settings)
    lost.sync()
    live(connection, lost, -100_000.0)
    keeper = LostHosts(database_url, 0)
    try:
        keeper.ask()
        wait_for(lambda: connection.execute("SELECT FROM hosts").fetchone() is None)
        assert connection.execute("SELECT FROM holds").fetchone() is not None, "its leases of credits last"
        connection.execute("UPDATE credit_hosts SET lease_until = lease_until - interval '2 days'")
        keeper.ask()
        wait_for(lambda: connection.execute("SELECT FROM credit_leases").fetchone() is None)
    finally:
        keeper.stop()
    account = queries.load_account(connection, user)
    assert account is not None
    assert (account.balance, account.held) == (1_000, 0)
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
