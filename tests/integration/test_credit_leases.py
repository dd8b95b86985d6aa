"""Credit leases between hosts: no account is overdrawn, each is spent to the last credit, whoever dies or is late."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import psycopg
import pytest

from shmcache import leased_credits
from shmcache.account_keys import lease_key, part_key
from shmcache.arena import Arena, Transaction
from shmcache.arena.transaction import Advance, Touch
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import leases
from shmcache.database.accounts import top_up
from shmcache.database.audit import find_differences
from shmcache.database.connection import connect, table_set_of
from shmcache.database.leases import Standing, Want, release_leases, take_credits
from shmcache.direct_client import DirectClient
from shmcache.errors import DatabaseUnavailable, InsufficientBalanceError
from shmcache.identifiers import id_bytes, new_id
from shmcache.leased_credits import account_rebase, lasting_until, lease_counters, lease_rebase, now
from shmcache.records import ExecutionStatus
from shmcache.work_queue import WorkQueue
from syncer import charge_pool, credit_leases
from tests import kill_points
from tests.integration.charging import (
    PER_SECOND,
    Charger,
    begin,
    charge_until_asked,
    differences,
    open_account,
    priced_graph,
    queued,
    settle_now,
    standing,
    wait_for,
)
from tools.chaos.proxy import Proxy

Connection = psycopg.Connection[Any]
_FORK = multiprocessing.get_context("fork")
OPENING = 1_000
LONG, SHORT = 600.0, 1.0


class Cable(Proxy):
    """The way to the database, which can be out."""

    is_out = False

    def cut(self) -> None:
        """Take it out."""
        self.is_out = True
        super().cut()

    def join(self) -> None:
        """Put it in again."""
        self.is_out = False

    def _accept(self) -> None:
        if self.is_out:
            self._listener.accept()[0].close()
        else:
            super()._accept()


class Host(NamedTuple):
    """An arena, a client of it, and where both find the database."""

    arena: Arena
    client: CachedClient
    url: str
    settings: Settings

    def settle(self) -> None:
        """Be its charger, for what is on the ring now."""
        settle_now(self.arena, self.url, self.settings)

    def part(self, user: str) -> int:
        """Return what it may hold without asking."""
        return self.arena.counter(part_key(user)) or 0


@pytest.fixture
def user(database_url: str) -> str:
    return open_account(database_url, OPENING)


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with connect(database_url, application_name="test") as opened:
        yield opened


@pytest.fixture
def make_host(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Return a function that makes a host; hosts have no charger but while `settle` or `charging` runs."""
    with contextlib.ExitStack() as left:

        def make(lease: float = LONG, url: str = database_url) -> Host:
            name = f"leases-{os.getpid()}-{new_id()[-6:]}"
            arena = Arena.create(name, 16 << 20)
            left.callback(arena.unlink)
            left.callback(arena.close)
            settings = load_settings(state_dir=tmp_path, arena=name, sync_interval=0.05, credit_lease=lease)
            client = left.enter_context(CachedClient(arena, url, settings))
            return Host(arena, client, url, settings)

        yield make


@contextlib.contextmanager
def charging(*hosts: Host) -> Iterator[list[int]]:
    """Have each host a charger in a process of its own; yields their pids."""
    chargers = [_FORK.Process(target=charge_until_asked, args=(each.arena, each.url, each.settings)) for each in hosts]
    for each in chargers:
        each.start()
    try:
        yield [each.pid or 0 for each in chargers]
    finally:
        for each in chargers:
            each.terminate()
        for each in chargers:
            each.join(30)


def leased(connection: Connection, user: str, host: Host) -> int:
    row = connection.execute(
        "SELECT amount FROM credit_leases WHERE user_id = %s AND arena_id = %s", (user, host.arena.arena_id)
    ).fetchone()
    return 0 if row is None else int(row[0])


def sound(connection: Connection, *hosts: Host) -> bool:
    """Say whether the accounts add up, and no host may hold more than the database says that it has leased."""
    assert find_differences(connection)[1] == []
    for host in hosts:
        for user_id, amount in connection.execute(
            "SELECT user_id::text, amount FROM credit_leases WHERE arena_id = %s", (host.arena.arena_id,)
        ):
            assert (host.arena.counter(lease_key(user_id)) or 0) <= amount
    return True


def spend_all(host: Host, user: str, piece: int = 1) -> int:
    """Spend an account in pieces until nothing is to be had; return how much that was."""
    spent = 0
    with contextlib.suppress(InsufficientBalanceError):
        while True:
            host.client.spend_credits(user, piece)
            spent += piece
    return spent


# One host


def test_one_host_can_spend_all_that_an_account_has_and_is_refused_the_next_credit_at_once(
    make_host: Callable[..., Host], user: str, connection: Connection
) -> None:
    host = make_host()
    assert host.client.get_credits(user) == OPENING, "shown is what the account has, whoever has leased it"
    assert host.part(user) == leased(connection, user, host) == OPENING // 2
    assert host.client.spend_credits(user, 700) == 300
    assert host.client.spend_credits(user, 300) == 0
    waits = host.arena.counter_totals()["blocking_db_operations"]
    with pytest.raises(InsufficientBalanceError, match="0 credits left and 1 are needed"):
        host.client.spend_credits(user, 1)
    assert host.arena.counter_totals()["blocking_db_operations"] == waits, "nobody is asked for what there is not"
    host.settle()
    assert standing(host.url, user) == (0, 0, 0)
    assert leased(connection, user, host) == 0
    assert differences(host.arena, host.url) == []


def test_what_is_needed_inside_a_transaction_is_leased_before_it_is_tried_again(
    make_host: Callable[..., Host], user: str, connection: Connection
) -> None:
    host = make_host()
    tries = 0

    def twice() -> int:
        nonlocal tries
        tries += 1
        host.client.spend_credits(user, 300)
        return host.client.spend_credits(user, 350)

    assert host.client.atomically(twice) == 350
    assert tries == 2
    with pytest.raises(InsufficientBalanceError):
        host.client.atomically(twice)
    host.settle()
    assert standing(host.url, user) == (350, 0, 0)
    assert sound(connection, host)


def test_an_estimate_that_was_too_low_is_settled_from_the_lease_and_then_from_what_is_free(
    make_host: Callable[..., Host], user: str, connection: Connection
) -> None:
    host = make_host()
    run = host.client.create_graph_execution(priced_graph()[0].id, user).id
    execution = queued(host.client, run, PER_SECOND, seconds=5)
    begin(host.client, execution)
    host.settle()
    assert leased(connection, user, host) >= 50, "what is held is part of the lease"
    host.client.update_node_execution_status(execution.id, ExecutionStatus.COMPLETED, None, {"seconds": 80})
    assert host.client.get_credits(user) == OPENING - 800
    assert host.part(user) < 0
    host.settle()
    assert standing(host.url, user) == (OPENING - 800, 0, 0)
    assert spend_all(host, user, 10) == 200
    host.settle()
    assert differences(host.arena, host.url) == []


def test_a_lease_grows_before_it_is_used_up(make_host: Callable[..., Host], user: str, connection: Connection) -> None:
    host = make_host()
    host.client.spend_credits(user, 400)
    assert host.part(user) == 100
    host.settle()
    assert host.part(user) == leased(connection, user, host) == 400, "twice in half a minute what it had left"
    waits = host.arena.counter_totals()["blocking_db_operations"]
    host.client.spend_credits(user, 400)
    assert host.arena.counter_totals()["blocking_db_operations"] == waits


def test_a_host_goes_on_with_its_lease_while_the_database_is_away_and_waits_for_it_when_that_is_used_up(
    make_host: Callable[..., Host], user: str, database_url: str
) -> None:
    with Cable(database_url) as cable:
        host = make_host(url=cable.url)
        host.client.get_credits(user)
        cable.cut()
        for _ in range(5):
            host.client.spend_credits(user, 100)
        with pytest.raises(DatabaseUnavailable):
            host.client.spend_credits(user, 1)
        assert host.client.get_credits(user) == 500
        cable.join()
        wait_for(lambda: host.client.spend_credits(user, 1) == 499)


def test_a_balance_that_another_program_lowers_is_not_covered_by_leases_any_more(
    make_host: Callable[..., Host], user: str, connection: Connection
) -> None:
    host = make_host()
    host.client.spend_credits(user, 100)
    host.settle()
    table, key = ("accounts", "user_id") if table_set_of(connection) == "shmcache" else ('"UserBalance"', '"userId"')
    connection.execute(f"UPDATE {table} SET balance = 90 WHERE {key} = %s", (user,))
    with charging(host):
        wait_for(lambda: leased(connection, user, host) == 90 and host.part(user) == 90)
        assert spend_all(host, user) == 90


# Several hosts


def test_hosts_that_spend_one_account_at_once_never_overdraw_it_and_spend_the_last_credit(
    make_host: Callable[..., Host], user: str, connection: Connection
) -> None:
    hosts = [make_host() for _ in range(3)]
    spent = _FORK.Value("q", 0)
    deadline = time.monotonic() + 100

    def work(host: Host, piece: int) -> None:
        with CachedClient(host.arena, host.url, host.settings) as client:
            while spent.value < OPENING and time.monotonic() < deadline:
                try:
                    client.spend_credits(user, piece)
                except InsufficientBalanceError:
                    piece = 1
                    threading.Event().wait(0.01)
                else:
                    with spent.get_lock():
                        spent.value += piece
        os._exit(0)

    with charging(*hosts):
        workers = [_FORK.Process(target=work, args=(host, piece)) for host in hosts for piece in (3, 7)]
        for each in workers:
            each.start()
        while any(each.is_alive() for each in workers):
            workers[0].join(0.05)
            assert find_differences(connection)[1] == []
        for host in hosts:
            host.client.flush(60)
    for host in hosts:
        host.settle()
        assert differences(host.arena, host.url) == []
    assert spent.value == OPENING
    assert standing(hosts[0].url, user) == (0, 0, 0)
    rows = connection.execute("SELECT -sum(amount), sum(owed) FROM ledger WHERE user_id = %s", (user,)).fetchone()
    assert rows == (OPENING, 0)


def test_what_a_host_lacks_and_others_have_it_gets_from_them(
    make_host: Callable[..., Host], user: str, connection: Connection
) -> None:
    one, two = make_host(), make_host()
    one.client.get_credits(user)
    with charging(one):
        assert two.client.spend_credits(user, 800) == 200
        assert sound(connection, one, two)
        assert spend_all(one, user, 10) + spend_all(two, user, 10) == 200


def test_a_host_whose_neighbour_does_not_answer_is_refused_after_a_while_and_then_at_once(
    make_host: Callable[..., Host], user: str
) -> None:
    one, two = make_host(), make_host()
    one.client.get_credits(user)
    for longest in (leases.ASKING_SECONDS + 8, leases.ASKING_SECONDS - 0.5):
        started = time.monotonic()
        with pytest.raises(InsufficientBalanceError, match="500 credits left and 501 are needed"):
            two.client.spend_credits(user, 501)
        assert time.monotonic() - started < longest
    assert two.client.spend_credits(user, 500) == 500


def test_a_host_that_hardly_spends_an_account_which_others_spend_gives_its_lease_back(
    make_host: Callable[..., Host], user: str, connection: Connection
) -> None:
    one, two = make_host(), make_host()
    one.client.get_credits(user)
    two.client.spend_credits(user, 1)
    quick = one._replace(settings=one.settings.model_copy(update={"account_interval": 0.05}))
    with charging(quick):
        wait_for(lambda: leased(connection, user, one) == 0)
    assert two.client.spend_credits(user, OPENING - 1) == 0


def test_hosts_that_are_lost_one_after_another_leave_credits_for_the_next_one(
    make_host: Callable[..., Host], user: str, connection: Connection
) -> None:
    hosts = [make_host() for _ in range(12)]
    for each in hosts:
        each.client.spend_credits(user, 1)
    assert leased(connection, user, hosts[0]) == 500, "it was alone"
    assert leased(connection, user, hosts[-1]) == 16
    assert make_host().client.spend_credits(user, 250) > 0


def test_of_an_account_that_others_spend_a_host_leases_twice_as_much_each_time_that_it_has_too_little(
    make_host: Callable[..., Host], user: str, connection: Connection
) -> None:
    make_host().client.get_credits(user)
    host = make_host()
    amounts = []
    for _ in range(64):
        host.client.spend_credits(user, 1)
        amounts.append(leased(connection, user, host))
    assert sorted(set(amounts)) == [16, 32, 64]


def test_a_host_that_died_whole_loses_its_lease_when_that_has_run_out(
    make_host: Callable[..., Host], user: str, connection: Connection, database_url: str, tmp_path: Path
) -> None:
    arena = Arena.create(f"leases-lost-{os.getpid()}", 16 << 20)
    settings = load_settings(state_dir=tmp_path, arena=arena.name, credit_lease=SHORT)
    with CachedClient(arena, database_url, settings) as client:
        client.spend_credits(user, 30)
    arena.unlink()  # the machine is gone, with what it had not settled
    arena.close()
    two = make_host()
    wait_for(lambda: two.client.spend_credits(user, OPENING) == 0)
    two.settle()
    assert standing(database_url, user) == (0, 0, 0)
    assert connection.execute("SELECT robbed FROM credit_hosts WHERE arena_id = %s", (arena.arena_id,)).fetchone() == (
        1,
    )


def test_a_host_that_comes_back_late_has_what_nobody_needed(
    make_host: Callable[..., Host], user: str, connection: Connection
) -> None:
    one, two = make_host(SHORT), make_host()
    one.client.spend_credits(user, 30)
    wait_for(lambda: now() >= lasting_until(one.arena) + SHORT)
    assert two.client.spend_credits(user, 250) == OPENING - 250
    assert one.client.spend_credits(user, 470) == 500, "its own lease, renewed"
    assert connection.execute("SELECT max(robbed) FROM credit_hosts").fetchone() == (0,)
    for host in (one, two):
        host.settle()
    assert standing(one.url, user) == (250, 0, 0)


def test_a_host_that_was_cut_off_holds_nothing_against_what_others_may_have_by_then(
    make_host: Callable[..., Host], user: str, connection: Connection, database_url: str
) -> None:
    with Cable(database_url) as cable:
        one, two = make_host(SHORT, cable.url), make_host()
        one.client.spend_credits(user, 100)
        one.settle()
        cable.cut()
        assert one.client.spend_credits(user, 100) == 800
        wait_for(lambda: now() >= lasting_until(one.arena))
        with pytest.raises(DatabaseUnavailable):
            one.client.spend_credits(user, 1)
        wait_for(lambda: two.client.spend_credits(user, 700) == 200)
        cable.join()
        one.settle()
        assert standing(database_url, user) == (800, 0, 0), "what was held in time is paid from what is left"
        two.settle()
        assert standing(database_url, user) == (100, 0, 0)
        with charging(one, two):
            one.client.spend_credits(user, 30)
            assert sound(connection, one, two)
            assert spend_all(one, user) + spend_all(two, user) == 70


def test_what_a_host_held_whose_lease_others_have_spent_meanwhile_is_owed(
    make_host: Callable[..., Host], user: str, connection: Connection, database_url: str
) -> None:
    with Cable(database_url) as cable:
        one, two = make_host(SHORT, cable.url), make_host()
        one.client.get_credits(user)
        cable.cut()
        one.client.spend_credits(user, 100)
        wait_for(lambda: two.client.spend_credits(user, 950) == 50)
        two.settle()
        cable.join()
        one.settle()
        assert standing(database_url, user) == (50, 100, 0), "nobody else's lease pays for it"
        with charging(two):
            wait_for(lambda: standing(database_url, user) == (0, 50, 0))
        assert find_differences(connection)[1] == []
        with pytest.raises(InsufficientBalanceError):
            one.client.spend_credits(user, 1)
        top_up(connection, user, 60, "card")
        assert standing(database_url, user) == (10, 0, 0)


def test_a_returned_host_reads_all_its_leases_again_before_it_holds_anything(
    make_host: Callable[..., Host], user: str, connection: Connection, database_url: str
) -> None:
    other = open_account(database_url, OPENING)
    one, two = make_host(SHORT), make_host()
    one.client.get_credits(user)
    one.client.get_credits(other)
    wait_for(lambda: two.client.spend_credits(user, OPENING) == 0)
    assert one.part(user) == 500, "it does not know yet"
    one.client.spend_credits(other, 1)  # has what lasted too short renewed, for all accounts
    assert one.part(user) == 0
    with pytest.raises(InsufficientBalanceError):
        one.client.spend_credits(user, 1)
    assert sound(connection, one, two)


def test_an_arena_that_is_removed_in_order_gives_its_leases_back_at_once(
    make_host: Callable[..., Host], user: str, connection: Connection
) -> None:
    one, two = make_host(), make_host()
    one.client.spend_credits(user, 100)
    one.settle()
    assert release_leases(connection, one.arena.arena_id) == (1, leased_before(one, user))
    assert two.client.spend_credits(user, 900) == 0


def leased_before(host: Host, user: str) -> int:
    return host.arena.counter(lease_key(user)) or 0


# Deaths


def _die_at(module: ModuleType, step: str, work: Callable[[], object]) -> None:
    """Do something in a process that is killed when it comes to a step."""
    pid = os.fork()
    if not pid:
        try:
            kill_points.arm(module, lambda at: os.kill(os.getpid(), signal.SIGKILL) if at == step else None)
            work()
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), f"it never came to {step!r}"


@pytest.mark.parametrize("step", kill_points.steps_of(leases))
def test_a_worker_killed_at_any_step_of_a_taking_takes_nothing_from_anybody(
    make_host: Callable[..., Host], user: str, connection: Connection, step: str
) -> None:
    one, two = make_host(), make_host()
    one.client.spend_credits(user, 400)

    def work() -> None:
        with CachedClient(one.arena, one.url, one.settings) as client:
            client.spend_credits(user, 300)

    _die_at(leases, step, work)
    assert sound(connection, one, two)
    assert one.client.get_credits(user) == 600
    with charging(one, two):
        assert spend_all(one, user, 20) + spend_all(two, user, 20) == 600
    assert sound(connection, one, two)


@pytest.mark.parametrize("step", kill_points.steps_of(leased_credits))
def test_a_worker_killed_at_any_step_of_a_renewal_leaves_nobody_to_hold_against_what_was_taken(
    make_host: Callable[..., Host], user: str, connection: Connection, step: str, database_url: str
) -> None:
    other = open_account(database_url, OPENING)
    one, two = make_host(SHORT), make_host()
    one.client.get_credits(user)
    one.client.get_credits(other)
    wait_for(lambda: two.client.spend_credits(user, OPENING) == 0)

    def work() -> None:
        with CachedClient(one.arena, one.url, one.settings) as client:
            client.spend_credits(other, 1)

    _die_at(leased_credits, step, work)
    with pytest.raises(InsufficientBalanceError):
        one.client.spend_credits(user, 1)
    assert one.client.spend_credits(other, 1) == OPENING - 1
    assert sound(connection, one, two)


@pytest.mark.parametrize("step", kill_points.steps_of(credit_leases))
def test_a_charger_killed_at_any_step_of_a_giving_back_has_given_once_or_not_at_all(
    make_host: Callable[..., Host], user: str, connection: Connection, step: str
) -> None:
    one, two = make_host(), make_host()
    one.client.get_credits(user)
    with pytest.raises(InsufficientBalanceError):
        two.client.spend_credits(user, 600)
    _die_at(credit_leases, step, Charger(one.arena, one.url, one.settings).run_once)
    assert sound(connection, one, two)
    two.client._leases._in_vain.clear()
    with charging(one, two):
        assert two.client.spend_credits(user, 600) == 400
        assert spend_all(one, user, 10) + spend_all(two, user, 10) == 400
    for host in (one, two):
        host.settle()
    assert standing(one.url, user) == (0, 0, 0)
    assert sound(connection, one, two)


@pytest.mark.parametrize("step", ["settled", "confirmed", "released"])
def test_a_charger_killed_around_a_settlement_leaves_the_lease_as_it_was_settled(
    make_host: Callable[..., Host], user: str, connection: Connection, step: str
) -> None:
    host = make_host()
    host.client.spend_credits(user, 120)
    _die_at(charge_pool, step, Charger(host.arena, host.url, host.settings).run_once)
    assert leased(connection, user, host) == 380
    host.client.spend_credits(user, 450)  # more is leased meanwhile
    host.settle()
    assert standing(host.url, user) == (430, 0, 0)
    assert differences(host.arena, host.url) == []
    assert spend_all(host, user, 43) == 430


# Order


def test_what_was_read_before_something_newer_undoes_nothing(
    make_host: Callable[..., Host], user: str, connection: Connection
) -> None:
    host = make_host()
    host.client.get_credits(user)
    older = leases.read_standings(connection, [user], host.arena.arena_id)
    newer = take_credits(connection, host.arena.arena_id, {user: Want(100, 500)})
    for read in (newer, older, newer):
        leased_credits.rebase_leases(host.arena, read.values())
        assert host.part(user) == leased(connection, user, host)


def test_what_is_given_back_while_more_is_taken_is_not_given(
    make_host: Callable[..., Host], user: str, connection: Connection
) -> None:
    host = make_host()
    host.client.get_credits(user)
    giving = credit_leases.CreditLeases(host.arena, LONG)
    giving._withdraw(user, 300)
    assert host.part(user) == 200
    taken = take_credits(connection, host.arena.arena_id, {user: Want(50, 200)})
    giving.work(connection)
    assert leased(connection, user, host) == taken[user].leased, "the lease is another one than was withdrawn from"
    leased_credits.rebase_leases(host.arena, taken.values())
    assert host.part(user) == taken[user].leased


def test_as_many_accounts_as_a_batch_can_have_are_released_in_one_commit() -> None:
    arena = Arena.create(f"leases-many-{os.getpid()}", 16 << 20)
    try:
        users = [new_id() for _ in range(charge_pool._BATCH_ENTRIES)]
        for begin_at in range(0, len(users), 100):
            opened = Transaction()
            for each in users[begin_at : begin_at + 100]:
                opened.operations += [*lease_counters(each, 7, 1), Touch(id_bytes(each))]
            arena.commit(opened)
        released = Transaction()
        released.operations.append(Advance("charge", 0, 0))
        for each in users:
            found = Standing(each, 9, False, 9, 0, 9, 9, 2, 0, 0, 0, None, 0)
            released.operations += [account_rebase(found, 1), lease_rebase(found, 1)]
        arena.commit(released)
        assert arena.counter(part_key(users[-1])) == 10
    finally:
        arena.unlink()
        arena.close()


# Without an arena


@pytest.mark.parametrize("is_within", [False, True])
def test_a_direct_client_spends_what_nobody_has_leased_and_asks_for_more(
    make_host: Callable[..., Host], user: str, connection: Connection, database_url: str, is_within: bool
) -> None:
    host = make_host()
    host.client.spend_credits(user, 100)
    with DirectClient(
        database_url, work_queue=WorkQueue(host.arena), settings=host.settings, on_wait=lambda: None
    ) as direct:

        def spend(amount: int) -> int:
            def once() -> int:
                return direct.spend_credits(user, amount)

            return direct.atomically(once) if is_within else once()

        spend(500)
        with pytest.raises(InsufficientBalanceError):
            spend(1)
        with charging(host):
            spend(200)
            assert host.client.get_credits(user) <= 400
            assert spend_all(host, user) == 200
    host.settle()
    assert standing(database_url, user) == (0, 0, 0)
    assert sound(connection, host)


def test_a_direct_client_takes_what_a_lapsed_host_has(
    make_host: Callable[..., Host], user: str, connection: Connection, database_url: str
) -> None:
    host = make_host(SHORT)
    host.client.get_credits(user)
    with DirectClient(
        database_url, work_queue=WorkQueue(host.arena), settings=host.settings, on_wait=lambda: None
    ) as direct:
        wait_for(lambda: now() >= lasting_until(host.arena) + SHORT)
        direct.spend_credits(user, OPENING)
    with pytest.raises(InsufficientBalanceError):
        host.client.spend_credits(user, 1)
    assert sound(connection, host)
