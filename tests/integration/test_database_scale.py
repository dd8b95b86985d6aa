"""Many hosts on one database: they open so many connections and no more, and never deadlock over what they share."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shmcache.config import load_settings
from shmcache.database import queries
from shmcache.database.accounts import add_refusal, look_at_accounts, top_up
from shmcache.database.audit import find_differences
from shmcache.database.batches import write_batch
from shmcache.database.connection import TableSet, connect
from shmcache.database.ownership import own
from shmcache.database.settlement import settle
from shmcache.database.statements import statement
from shmcache.graphs import example_path
from shmcache.identifiers import new_id
from shmcache.writes import (
    Charge,
    ChargeKind,
    GraphExecutionWrite,
    InputWrite,
    NodeExecutionWrite,
    OutputWrite,
    Refusal,
    Write,
)
from tests.integration.faults import await_blocked
from tests.integration.test_clients import small_graph
from tests.integration.test_runs import Run
from tools.connections import most_connections

_HOSTS = 4
_BATCHES = 40
_SHARED = 12
"""Executions, and accounts, that all hosts write to."""


def test_a_supervised_run_opens_at_most_the_connections_that_are_told(database_url: str, tmp_path: Path) -> None:
    settings = load_settings(workers=3, charge_workers=2)
    run = Run(database_url, tmp_path, "--workers", "3", "--repeat", "20", example_path())
    most: dict[str, int] = {}
    with connect(database_url, application_name="test") as looking:
        while run.process.poll() is None:
            found: dict[str, int] = dict(
                looking.execute(
                    "SELECT application_name, count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid() GROUP BY 1"
                ).fetchall()
            )
            found["all"] = sum(found.values())
            most = {name: max(found.get(name, 0), most.get(name, 0)) for name in {*found, *most}}
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.process.wait(0.02)
    run.summary()
    assert 0 < most.pop("all") <= most_connections(settings), most
    assert most["shmcache syncer"] == most["shmcache charger"] == 1, "who waits for the lead has none"
    assert most.get("shmcache worker", 0) <= 3 + 3, "workers, the charger, the syncer's lease, the supervisor: one each"
    assert most.get("shmcache charge pool", 0) <= 2 + 1


def rows_of(
    random_of_host: random.Random, runs: list[str], steps: dict[str, str], node_id: str, user: str
) -> list[Write]:
    """Return rows of executions that others write too, in an order of this host's."""
    graph_id = small_graph()[0].id
    now = time.time()
    rows: list[Write] = [
        GraphExecutionWrite(
            run, graph_id, user, "RUNNING", "{}", now, now, None, "{}", random_of_host.randrange(9), 1, None
        )
        for run in runs
    ]
    random_of_host.shuffle(rows)
    nodes: list[Write] = []
    for step, run in steps.items():
        moves = random_of_host.randrange(9)
        nodes.append(NodeExecutionWrite(step, run, node_id, "RUNNING", now, now, now, None, "{}", moves))
        nodes.append(InputWrite(step, "value", "1", now, None, None, False))
    random_of_host.shuffle(nodes)
    return rows + nodes


def charge_of(key: str, user: str, amount: int, now: float) -> Charge:
    return Charge(key, user, amount, "run", None, None, now, "{}", 1, 0)


class Host:
    """What syncer and charger of a host do, over and over, in one thread."""

    def __init__(self, seed: int, url: str, users: list[str], runs: list[str], steps: dict[str, str]) -> None:
        self._random = random.Random(seed)
        self._url, self._users, self._runs, self._steps = url, users, runs, steps
        self._arena_id = new_id()

    def work(self) -> None:
        with connect(self._url, application_name="test") as connection:
            for number in range(_BATCHES):
                self._sync(connection)
                self._sync_outputs(connection, number)
                self._charge(connection)

    def _sync(self, connection: psycopg.Connection[Any]) -> None:
        node = small_graph()[1][0].id
        rows = rows_of(self._random, self._runs, self._steps, node, self._users[0])
        with connection.transaction():
            write_batch(connection, rows)
            own(connection, self._arena_id, self._runs)

    def _sync_outputs(self, connection: psycopg.Connection[Any], ordinal: int) -> None:
        outputs = [OutputWrite(step, ordinal, "out", "1", time.time()) for step in self._steps]
        self._random.shuffle(outputs)
        with connection.transaction():
            write_batch(connection, outputs)

    def _charge(self, connection: psycopg.Connection[Any]) -> None:
        now = time.time()
        shared = self._random.sample(self._users, len(self._users))
        with connection.transaction():
            entries = [
                (ChargeKind.CHARGE, charge_of(new_id(), user, self._random.randrange(1, 9), now)) for user in shared
            ]
            settle(connection, entries, arena_id=self._arena_id, low_balance=50)
        with connection.transaction():
            for user in sorted(shared[:4]):
                add_refusal(connection, Refusal(user, None, None, 0, 5, now))
            look_at_accounts(connection, shared, self._arena_id, 50)
        top_up(connection, self._random.choice(shared), 60, new_id())


@pytest.mark.parametrize("table_set", ["shmcache", "autogpt"])
def test_batches_of_many_hosts_on_the_same_rows_never_deadlock(database_url: str, table_set: TableSet) -> None:
    users = [new_id() for _ in range(_SHARED)]
    runs = [new_id() for _ in range(_SHARED)]
    steps = {new_id(): run for run in runs for _ in range(4)}
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, *small_graph())
        for user in users:
            queries.create_account(connection, user, 100)
        # A cycle of waits is found, and ended, after 20 ms: long before it could dissolve.
        connection.execute(f"ALTER DATABASE \"{connection.info.dbname}\" SET deadlock_timeout = '20ms'".encode())
    with ThreadPoolExecutor(_HOSTS) as threads:
        for each in [threads.submit(Host(seed, database_url, users, runs, steps).work) for seed in range(_HOSTS)]:
            each.result()
    with connect(database_url, application_name="test") as connection:
        row = connection.execute(
            "SELECT deadlocks, xact_commit FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
        assert row is not None
        assert row[0] == 0
        assert row[1] >= _HOSTS * _BATCHES * 3
        assert find_differences(connection)[1] == []


@pytest.mark.parametrize("table_set", ["shmcache", "autogpt"])
def test_accounts_that_are_looked_at_are_locked_in_the_order_in_which_they_are_settled(
    database_url: str, table_set: TableSet
) -> None:
    del table_set
    users = sorted(new_id() for _ in range(3))
    with (
        connect(database_url, application_name="test") as settling,
        connect(database_url, application_name="test") as looking,
    ):
        for user in reversed(users):  # so that they lie in another order than that of their ids
            queries.create_account(settling, user, 10)

        def look() -> None:
            with looking.transaction():
                look_at_accounts(looking, users, new_id(), 50)

        with ThreadPoolExecutor(1) as threads:
            with settling.transaction():
                settling.execute("SET LOCAL lock_timeout = '10s'")
                settling.execute(statement(settling, "lock_balance"), {"user_id": users[0]})
                waiting = threads.submit(look)
                await_blocked(database_url)
                settling.execute(statement(settling, "lock_balance"), {"user_id": users[-1]})
            waiting.result(60)
