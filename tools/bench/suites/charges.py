"""Charges: what a hold costs its worker, how fast holds are settled, and whether anything is ever overdrawn or lost."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import psutil
import psycopg

from shmcache.database.connection import connect
from shmcache.errors import InsufficientBalanceError
from shmcache.identifiers import new_id
from shmcache.writes import ChargeKind
from tools.bench.bench import Bench
from tools.bench.method import Loop, pinned, together
from tools.bench.our_arena import OURS
from tools.bench.our_host import Database, Host, quiet, wait_until

HOLD = "hold of a charge"
_HOLDERS = 8
_PATIENCE_SECONDS = 180.0
_INSERT = """
INSERT INTO ledger (transaction_key, user_id, amount, running_balance, reason, metadata, created_at)
VALUES (%s, %s, -1, 0, 'spend', '{}', now())
"""


def run(bench: Bench) -> None:
    """Measure all of it."""
    quiet()
    with ExitStack() as stack:
        bench.say("starting PostgreSQL")
        database = Database()
        stack.callback(database.close)
        _hold(bench, database)
        _settle(bench, database)
        _never_overdrawn(bench, database)
        _under_kills(bench, database)


def _hold(bench: Bench, database: Database) -> None:
    with Host(database, 256 << 20) as host:
        user = host.make_user()
        client = host.client
        direct = host.direct_client()
        connection = connect(host.url, application_name="bench")
        charge_ring = host.arena.charge_ring

        def hold(numbers: Sequence[int]) -> None:
            for _ in numbers:
                client.spend_credits(user, 1)

        def insert(numbers: Sequence[int]) -> None:
            for _ in numbers:
                connection.execute(_INSERT, (new_id(), user), prepare=True)

        def spend(numbers: Sequence[int]) -> None:
            for _ in numbers:
                direct.spend_credits(user, 1)

        numbers = range(500)
        with pinned(0):
            subjects = {
                OURS: Loop(hold, numbers, bench.sample_seconds, lambda: host.forget_ring(charge_ring)).sample,
                "one INSERT and its commit": Loop(insert, numbers, bench.sample_seconds).sample,
                "direct client": Loop(spend, numbers, bench.sample_seconds).sample,
            }
            found = bench.measure(HOLD, "ns", subjects, notes={"direct client": "lock, check, move, ledger row"})
        bench.ratio("hold-insert", found[OURS], found["one INSERT and its commit"])
        direct.close()
        connection.close()


def _settle(bench: Bench, database: Database) -> None:
    count = bench.pick(4_000, 20_000)
    with Host(database, 512 << 20) as host:
        crowd = [host.make_user() for _ in range(bench.pick(100, 1_000))]
        one = crowd[:1]
        client = host.client
        for user in crowd:
            client.get_credits(user)
        charger = host.start_charger()
        client = host.client
        client.spend_credits(one[0], 1)
        host.drained(host.arena.charge_ring)  # the pool is up
        direct = host.direct_client()

        def settled(users: Sequence[str]) -> float:
            with host.frozen(charger):
                for number in range(count):
                    client.spend_credits(users[number % len(users)], 1)
                began = time.perf_counter()
            host.drained(host.arena.charge_ring)
            return count / (time.perf_counter() - began)

        def one_by_one(users: Sequence[str]) -> float:
            few = count // 10
            began = time.perf_counter()
            for number in range(few):
                direct.spend_credits(users[number % len(users)], 1)
            return few / (time.perf_counter() - began)

        alone = "a transaction a charge"
        for target, test, users in (
            ("settle-many", f"charges settled a second, {len(crowd):,} users", crowd),
            ("settle-one", "charges settled a second, one user", one),
        ):
            subjects = {OURS: partial(settled, users), alone: partial(one_by_one, users)}
            found = bench.measure(test, "charges/s", subjects, rounds=bench.pick(3, 9))
            bench.ratio(target, found[OURS], found[alone])
        direct.close()


def _never_overdrawn(bench: Bench, database: Database) -> None:
    """Eight processes spend one account at once: so many holds as there are credits, not one more."""
    rounds = bench.pick(10, 100)
    credited = 500
    wrong = []
    with Host(database, 256 << 20) as host:
        for number in range(rounds):
            bench.say(f"{_HOLDERS} processes spend one account: round {number + 1} of {rounds}")
            user = host.make_user(credited)
            host.fork_safely()

            def make(_: int, user: str = user) -> Callable[[], int]:
                client = host.client

                def work() -> int:
                    try:
                        client.spend_credits(user, 1)
                    except InsufficientBalanceError:
                        return 0
                    return 1

                return work

            # The first call of each process, its warm-up, is not in its window: what was granted is on the ring.
            before = host.arena.charge_ring.last_sequence
            together(make, _HOLDERS, 0.1)
            while _left(host, user):
                together(make, _HOLDERS, 0.1)
            entries = host.arena.charge_ring.read(before, 1_000_000, 1 << 30)
            granted = sum(entry.kind == ChargeKind.CHARGE for entry in entries)
            wrong.append(float(abs(granted - credited)))
            host.forget_ring(host.arena.charge_ring)
    bench.numbers("exactly-n", [sum(wrong)], f"{rounds} rounds of {credited} credits, {_HOLDERS} processes")


def _left(host: Host, user: str) -> int:
    left = host.client.get_credits(user)
    host.fork_safely()
    return left


def _under_kills(bench: Bench, database: Database) -> None:
    """Kill workers, charger and pool at random moments under load; then compare ledger, balances and arena."""
    kills = bench.pick(15, 500)
    source = random.Random(11)  # noqa: S311
    opening = 10**9
    with Host(database, 256 << 20) as host:
        users = [host.make_user(opening) for _ in range(20)]
        host.start_charger()
        for number in range(4):
            host.start_worker(partial(_spend_for_ever, host, users, number))
        for number in range(kills):
            bench.say(f"workers, charger and pool are killed: {number + 1} of {kills}")
            until = time.monotonic() + source.uniform(0.02, 0.3)
            _wait(host, until)
            victims = [each for each in psutil.Process().children(recursive=True) if _is_ours(each)]
            if victims:
                os.kill(source.choice(victims).pid, signal.SIGKILL)
        host.processes.stop("worker")
        wait_until(lambda: not host.processes.count("worker"), _PATIENCE_SECONDS, host.processes.look_after)
        ring = host.arena.charge_ring
        ring.request_drain()
        wait_until(lambda: ring.committed_sequence >= ring.last_sequence, _PATIENCE_SECONDS, host.processes.look_after)
        with connect(host.url, application_name="bench") as connection:
            wrong, charges = _audit(connection, host, users, opening)
    note = f"{charges:,} charges, {kills} kills"
    bench.numbers("ledger-kills", [float(wrong)], note)


def _wait(host: Host, until: float) -> None:
    wait_until(lambda: time.monotonic() > until, _PATIENCE_SECONDS, host.processes.look_after)


def _is_ours(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[0].startswith(("shmcache: worker", "shmcache: charger", "shmcache: pool"))
    except (psutil.Error, IndexError):
        return False


def _spend_for_ever(host: Host, users: Sequence[str], number: int) -> None:
    for turn in range(10**9):
        host.client.spend_credits(users[(turn + number) % len(users)], 1 + turn % 3)
        time.sleep(0.001)


def _audit(connection: psycopg.Connection[Any], host: Host, users: Sequence[str], opening: int) -> tuple[int, int]:
    """Return how many accounts do not add up: opening less ledger, balance, and what the arena has left; and the number
    of charges."""
    wrong, charges = 0, 0
    for user in users:
        row = connection.execute(
            "SELECT balance, (SELECT coalesce(sum(amount), 0) FROM ledger l WHERE l.user_id = a.user_id),"
            " (SELECT count(*) FROM ledger l WHERE l.user_id = a.user_id) FROM accounts a WHERE user_id = %s",
            (user,),
        ).fetchone()
        assert row is not None
        balance, moved, count = row
        charges += count
        wrong += not (balance == opening + moved == host.client.get_credits(user) >= 0)
    return wrong, charges
