"""The charge pool on a real server: every charge once, in order, whoever is killed or stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest

from shmcache.arena import Arena, Counter, Transaction
from shmcache.arena.transaction import Append
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.accounts import look_at_accounts, top_up
from shmcache.database.connection import connect
from shmcache.identifiers import new_id
from shmcache.writes import Charge, ChargeKind
from syncer import charge_pool, settlement_worker
from syncer.charge_pool import ChargePool
from syncer.settlement_pool import SettlementPool
from tests.integration.charging import wait_for

_FORK = multiprocessing.get_context("fork")
OPENING = 1_000_000


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"charges-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, sync_interval=0.2)


@pytest.fixture
def users(database_url: str) -> list[str]:
    found = [new_id() for _ in range(8)]
    with connect(database_url, application_name="test") as connection:
        for user in found:
            queries.create_account(connection, user, OPENING)
    return found


@pytest.fixture
def start_charger(arena: Arena, database_url: str, settings: Settings) -> Iterator[Callable[..., psutil.Process]]:
    """Return a function that starts a charger in a process of its own."""
    started: list[psutil.Process] = []

    def start(hang_seconds: float = 60.0) -> psutil.Process:
        process = _FORK.Process(target=run_charger, args=(arena, database_url, settings, hang_seconds))
        process.start()
        started.append(psutil.Process(process.pid))
        return started[-1]

    yield start
    for charger in started:
        if charger.is_running():
            charger.kill()
    psutil.wait_procs(started, timeout=10)


def run_charger(arena: Arena, database_url: str, settings: Settings, hang_seconds: float) -> None:
    stop = False

    def ask(*_: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, ask)
    ChargePool(arena, database_url, settings, hang_seconds=hang_seconds).run(lambda: stop)
    os._exit(0)


def charge(arena: Arena, users: list[str], first: int, count: int, amount: int = 3) -> None:
    """Put charges on the ring, for each user in turn; their keys are numbers."""
    wanted = Transaction()
    for number in range(first, first + count):
        row = Charge(f"charge {number}", users[number % len(users)], amount, "run", None, None, float(number), "{}", 0)
        wanted.operations.append(Append("charge", ChargeKind.CHARGE, msgpack.packb(row)))
    arena.commit(wanted)


def settle_all(arena: Arena) -> None:
    """Wait until the ring is drained."""
    arena.charge_ring.request_drain()
    assert arena.charge_ring.wait_committed(arena.charge_ring.last_sequence, 60)


def pool_of(charger: psutil.Process) -> list[psutil.Process]:
    """Return the processes of a charger's pool once both are there."""
    deadline = time.monotonic() + 30
    while True:
        found = [each for each in charger.children(recursive=True) if each.name().startswith("shmcache: pool")]
        if len(found) == 2:
            return found
        assert time.monotonic() < deadline


def assert_settled_once(database_url: str, users: list[str], count: int, amount: int = 3) -> None:
    """Check ledger, running balances and accounts against what was charged."""
    with connect(database_url, application_name="test") as connection:
        keys = connection.execute("SELECT transaction_key FROM ledger").fetchall()
        assert sorted(row[0] for row in keys) == sorted(f"charge {number}" for number in range(count))
        for place, user in enumerate(users):
            mine = len(range(place, count, len(users)))
            account = queries.load_account(connection, user)
            assert account is not None
            assert account.balance == OPENING - mine * amount
            running = connection.execute(
                "SELECT running_balance FROM ledger WHERE user_id = %s ORDER BY created_at", (user,)
            ).fetchall()
            assert [row[0] for row in running] == [OPENING - (each + 1) * amount for each in range(mine)], "in order"
        letters = connection.execute("SELECT count(*) FROM dead_letters").fetchone()
    assert letters == (0,)


def test_charges_are_settled_by_the_pool_each_users_in_order(
    arena: Arena, users: list[str], database_url: str, start_charger: Callable[..., psutil.Process]
) -> None:
    charger = start_charger()
    pool_of(charger)
    for first in range(0, 800, 100):
        charge(arena, users, first, 100)
        arena.charge_ring.request_drain()
    charger.terminate()
    assert charger.wait(30) == 0
    assert arena.charge_ring.committed_sequence == 800, "asked to stop, it settles what is on the ring"
    assert_settled_once(database_url, users, 800)
    assert arena.counter_totals()["charges_settled"] == 800


def test_neither_charger_nor_pool_has_anything_in_shared_memory_but_the_arena(
    arena: Arena, users: list[str], start_charger: Callable[..., psutil.Process]
) -> None:
    """A charger may be killed at any instant, and who is to remove its semaphores with it."""
    charger = start_charger()
    pool = pool_of(charger)
    charge(arena, users, 0, 10)
    settle_all(arena)
    for process, expected in ((charger, 1), (pool[0], 0), (pool[1], 0)):
        mapped = {each.path for each in process.memory_maps()}
        assert len([path for path in mapped if path.startswith("/dev/shm/")]) == expected


def test_killed_pool_processes_are_replaced_and_nothing_is_charged_twice(
    arena: Arena, users: list[str], database_url: str, start_charger: Callable[..., psutil.Process]
) -> None:
    charger = start_charger()
    for turn in range(6):
        pool = pool_of(charger)
        charge(arena, users, turn * 100, 100)
        arena.charge_ring.request_drain()
        pool[turn % 2].kill()
        settle_all(arena)
        charge(arena, users, 600 + turn * 8, 8)
        settle_all(arena)  # and whether it is noticed now or when the pool is idle again, there will be another
    with connect(database_url, application_name="test") as connection:
        rows = connection.execute("SELECT count(*), count(DISTINCT transaction_key) FROM ledger").fetchone()
        balance = connection.execute("SELECT sum(opening_balance - balance) FROM accounts").fetchone()
    assert rows == (648, 648)
    assert balance == (648 * 3,)
    assert arena.counter_totals()["pool_replaced"] >= 1


def test_a_killed_charger_takes_its_pool_along_and_the_next_settles_the_rest_once(
    arena: Arena, users: list[str], database_url: str, start_charger: Callable[..., psutil.Process]
) -> None:
    for turn in range(5):
        charger = start_charger()
        pool = pool_of(charger)
        charge(arena, users, turn * 200, 200)
        arena.charge_ring.request_drain()
        if turn % 2:  # after its first batch; else as early as it comes
            arena.charge_ring.wait_committed(turn * 200 + 1, 30)
        charger.kill()
        charger.wait(10)
        _, alive = psutil.wait_procs(pool, timeout=10)
        assert alive == []
    start_charger()
    settle_all(arena)
    assert_settled_once(database_url, users, 1_000)


def test_what_was_settled_but_not_confirmed_is_not_settled_again(
    arena: Arena, users: list[str], database_url: str, settings: Settings
) -> None:
    charge(arena, users, 0, 80)
    ChargePool(arena, database_url, settings).run_once()
    with connect(database_url, application_name="test") as connection:
        # As if the charger had died between the pool's commit and its own.
        connection.execute("UPDATE checkpoints SET sequence = 0")
        connection.execute("DELETE FROM ledger WHERE transaction_key = 'charge 79'")
        connection.execute("UPDATE accounts SET balance = balance + 3 WHERE user_id = %s", (users[79 % 8],))
    again = Arena.create(f"charges-again-{os.getpid()}", 16 << 20)
    try:
        charge(again, users, 0, 80)
        ChargePool(again, database_url, settings).run_once()
    finally:
        again.close()
        again.unlink()
    assert_settled_once(database_url, users, 80)


def test_a_pool_that_hangs_is_replaced(
    arena: Arena, users: list[str], database_url: str, start_charger: Callable[..., psutil.Process]
) -> None:
    charger = start_charger(hang_seconds=4.0)
    for process in pool_of(charger):
        os.kill(process.pid, signal.SIGSTOP)
    charge(arena, users, 0, 80)
    settle_all(arena)
    assert_settled_once(database_url, users, 80)
    assert arena.counter_totals()["pool_replaced"] >= 1


def test_a_pool_that_is_left_before_it_is_up_ends_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    pool = SettlementPool(1, "")
    pool._pipes[0].close()
    pool._processes[0].join(60)
    assert pool._processes[0].exitcode == 0
    assert capfd.readouterr() == ("", "")


def test_charges_do_not_wait_for_the_pool_to_come_up(
    arena: Arena, users: list[str], database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SettlementPool, "is_ready", lambda _: False)
    monkeypatch.setattr(SettlementPool, "send", None)
    charge(arena, users, 0, 80)
    ChargePool(arena, database_url, settings).run_once()
    assert_settled_once(database_url, users, 80)
    assert settlement_worker._connection is None, "it has none longer than it leads"


def test_what_an_account_cannot_bear_is_owed_and_the_others_are_settled(
    arena: Arena, users: list[str], database_url: str, settings: Settings
) -> None:
    charge(arena, users, 0, 40)
    charge(arena, users, 1_000, 1, amount=OPENING)
    charge(arena, users, 40, 40)
    ChargePool(arena, database_url, settings).run_once()
    poor = users[1_000 % len(users)]
    with connect(database_url, application_name="test") as connection:
        settled = connection.execute("SELECT count(*), sum(owed) FROM ledger").fetchone()
        account = queries.load_account(connection, poor)
        row = connection.execute("SELECT amount, owed FROM ledger WHERE transaction_key = 'charge 1000'").fetchone()
    assert settled == (81, 30)
    assert row == (-(OPENING - 15), 15), "five charges of 3 came before it, five after it are owed whole"
    assert account is not None
    assert (account.balance, account.debt) == (0, 30)


def test_a_charge_that_cannot_be_stored_is_a_dead_letter_and_the_others_are_settled(
    arena: Arena, users: list[str], database_url: str, settings: Settings
) -> None:
    charge(arena, users, 0, 40)
    bad = Charge("bad", users[0], 5, "run", None, None, 0.0, "no JSON", 0)
    wanted = Transaction()
    wanted.operations.append(Append("charge", ChargeKind.CHARGE, msgpack.packb(bad)))
    wanted.operations.append(Append("charge", ChargeKind.CHARGE, b"no msgpack"))
    arena.commit(wanted)
    charge(arena, users, 40, 40)
    ChargePool(arena, database_url, settings).run_once()
    with connect(database_url, application_name="test") as connection:
        settled = connection.execute("SELECT count(*) FROM ledger").fetchone()
        letters = connection.execute("SELECT sequence, sqlstate FROM dead_letters ORDER BY sequence").fetchall()
    assert settled == (80,)
    assert letters == [(41, "22P02"), (42, None)]
    assert arena.counter_totals()[Counter.DEAD_LETTERS.name.lower()] == 2


def test_charges_wait_while_the_database_throws_everybody_out(
    arena: Arena, users: list[str], database_url: str, start_charger: Callable[..., psutil.Process]
) -> None:
    charger = start_charger()
    pool = pool_of(charger)
    with connect(database_url, application_name="test") as connection:
        for first in range(0, 400, 40):
            charge(arena, users, first, 40)
            arena.charge_ring.request_drain()
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
    settle_all(arena)
    assert_settled_once(database_url, users, 400)
    assert pool_of(charger) == pool, "a lost connection is no reason for a new pool"


def test_what_others_do_to_an_account_is_read_a_few_times_a_second_however_often_they_do_it(
    arena: Arena, users: list[str], database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[float] = []

    def look(*arguments: Any) -> Any:
        read.append(time.monotonic())
        return look_at_accounts(*arguments)

    monkeypatch.setattr(charge_pool, "look_at_accounts", look)
    is_over = threading.Event()
    charger = threading.Thread(target=ChargePool(arena, database_url, settings).run, args=(is_over.is_set,))
    with (
        CachedClient(arena, database_url, settings) as client,
        connect(database_url, application_name="test") as others,
    ):
        assert client.get_credits(users[0]) == OPENING
        charger.start()
        try:
            wait_for(lambda: read)
            for number in range(200):
                top_up(others, users[0], 1, f"card {number}")
            wait_for(lambda: client.get_credits(users[0]) == OPENING + 200)
        finally:
            is_over.set()
            arena.charge_ring.request_drain()
            charger.join(60)
    assert len(read) <= 5 * (read[-1] - read[0]) + 3


def test_a_process_of_the_pool_loads_light_modules_only() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "import syncer.settlement_worker, sys; print(*sys.modules)"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()
    assert not {"numpy", "pydantic", "click", "rich", "shmcache.arena", "shmcache.blocks"}.intersection(told)
