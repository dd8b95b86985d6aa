"""Through a PgBouncer in transaction mode: whole runs, and each thing that belongs to a session and is not there."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.audit import find_differences
from shmcache.database.bookkeeping import begin_epoch, move_checkpoint
from shmcache.database.connection import TableSet, connect, is_pooled
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import migrate
from shmcache.errors import DatabaseUnavailable
from shmcache.graphs import example_path
from shmcache.identifiers import new_id
from shmcache.reader import Reader
from shmcache.records import ExecutionStatus
from syncer.callbacks import Callbacks
from syncer.sync_manager import SyncManager
from tests.integration.charging import open_account, wait_for
from tests.integration.pooler import Pooler, give_settings
from tests.integration.test_clients import small_graph
from tests.integration.test_definition_changes import ask_to_end
from tests.integration.test_runs import ROOT, Run

InChild = Callable[[Callable[[Callable[[], bool]], None]], int]

_SESSIONS = 4
GRAPH = small_graph()[0].id


@pytest.fixture
def empty_url(server: EmbeddedServer) -> Iterator[str]:
    """The address of a database that was never migrated."""
    name = f"test_{new_id().replace('-', '')}"
    with connect(server.url, application_name="test") as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield make_conninfo(server.url, dbname=name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def pooled_url(database_url: str, table_set: TableSet) -> Iterator[str]:
    """The address of a migrated database, through a pooler."""
    give_settings(database_url, "shmcache" if table_set == "shmcache" else "shmcache, platform")
    with Pooler(database_url, sessions=_SESSIONS) as pooler:
        yield pooler.url


def value(url: str, query: str) -> Any:
    with connect(url, application_name="test") as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def test_a_whole_run_with_its_migrations_goes_through_a_pooler(empty_url: str, tmp_path: Path) -> None:
    give_settings(empty_url)
    most = 0
    with (
        Pooler(empty_url, sessions=_SESSIONS) as pooler,
        connect(make_conninfo(empty_url), application_name="test") as looking,
    ):
        run = Run(pooler.url, tmp_path, "--workers", "3", "--repeat", "20", example_path())
        while run.process.poll() is None:
            row = looking.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchone()
            assert row is not None
            most = max(most, row[0])
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.process.wait(0.05)
        summary = run.summary()
        assert summary["graph_executions_by_status"] == {"COMPLETED": 20}
        assert (summary["unsynced"], summary["dead_letters"], summary["worker_restarts"]) == (0, 0, 0)
        assert summary["charges"] > 0
        assert find_differences(looking)[1] == []
        assert looking.execute("SELECT count(*) FROM node_executions").fetchone() == (summary["node_executions"],)
        assert looking.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
    assert 0 < most <= _SESSIONS, "the pooler bounds what the server has to bear"


def test_a_pooler_that_keeps_the_search_path_back_is_one_clear_error_and_no_table_is_made(
    empty_url: str, tmp_path: Path
) -> None:
    with Pooler(empty_url) as pooler:
        done = subprocess.run(
            [sys.executable, "-m", "tools.cli", "run"], cwd=ROOT, capture_output=True, text=True, timeout=60,
            check=False, env={**os.environ, "SHMCACHE_DATABASE_URL": pooler.url, "SHMCACHE_STATE_DIR": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "a pooler stands between" in line
        assert "SET search_path = shmcache; then RECONNECT in the pooler" in line
        with connect(empty_url, application_name="test") as connection:
            tables = "SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'shmcache')"
            assert connection.execute(tables).fetchone() == (0,)
            for order in line[line.index("ALTER ROLE") : line.index("; then")].split("; "):
                connection.execute(order.encode())
        # Those of its sessions that are there already do not know yet.
        with psycopg.connect(make_conninfo(pooler.url, dbname="pgbouncer"), autocommit=True) as console:
            console.execute(b"RECONNECT")
        wait_for(lambda: connect(pooler.url, application_name="test"))
        with connect(pooler.url, application_name="test") as pooled:
            migrate(pooled)
            assert is_pooled(pooled)


@pytest.mark.parametrize("table_set", ["shmcache", "autogpt"])
def test_every_set_of_tables_is_found_through_a_pooler(pooled_url: str, table_set: str) -> None:
    with connect(pooled_url, application_name="test") as pooled:
        migrate(pooled)
        queries.save_graph(pooled, *small_graph())
        for _ in range(20):  # more often than psycopg waits before it prepares
            found = queries.load_graph(pooled, GRAPH)
        assert found is not None
        assert table_set in ("shmcache", "autogpt")


def test_a_connection_that_is_not_pooled_is_known_as_such(database_url: str, pooled_url: str) -> None:
    with connect(database_url, application_name="test") as direct, connect(pooled_url, application_name="test") as pool:
        assert (is_pooled(direct), is_pooled(pool)) == (False, True)
        assert (direct.prepare_threshold, pool.prepare_threshold) == (5, None)


def test_limits_and_settings_of_a_transaction_end_with_it(pooled_url: str) -> None:
    arena = new_id()
    with connect(pooled_url, application_name="test") as pooled:
        epoch = begin_epoch(pooled, arena, "write").epoch
        limit = "SELECT current_setting('idle_in_transaction_session_timeout')"
        with pooled.transaction():
            assert move_checkpoint(pooled, arena, "write", epoch, 1)
            assert pooled.execute(limit).fetchone() == ("30s",)
        assert pooled.execute(limit).fetchone() == ("0",)


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"poolers-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


def changed_and_served(arena: Arena, url: str, database_url: str, settings: Settings, in_child: InChild) -> str:
    """Have a host serve a graph, change it in the database, wait until it serves the change; return the host's log."""
    log = settings.state_dir / "log"

    def lead(stop: Callable[[], bool]) -> None:
        logging.basicConfig(filename=log, force=True)
        SyncManager(arena, url, settings).run(stop)

    with connect(database_url, application_name="other program") as other:
        queries.save_graph(other, *small_graph())
        leader = in_child(lead)
        with CachedClient(arena, url, settings) as client:
            node = small_graph()[1][0].id
            client.get_node(node)
            wait_for(lambda: other.execute("SELECT FROM hosts").fetchone() is not None)
            other.execute("UPDATE nodes SET name = 'changed' WHERE id = %s", (node,))
            wait_for(lambda: client.get_node(node).name == "changed")
        ask_to_end(leader)
    return log.read_text()


def test_changes_are_heard_at_the_servers_own_address(
    arena: Arena, pooled_url: str, database_url: str, tmp_path: Path, in_child: InChild
) -> None:
    settings = load_settings(
        state_dir=tmp_path, arena=arena.name, definition_interval=3600.0, listen_url=database_url, sync_interval=0.1
    )
    assert "SHMCACHE_LISTEN_URL" not in changed_and_served(arena, pooled_url, database_url, settings, in_child)


def test_without_such_an_address_changes_are_found_by_the_next_check_and_that_is_said_once(
    arena: Arena, pooled_url: str, database_url: str, tmp_path: Path, in_child: InChild
) -> None:
    settings = load_settings(state_dir=tmp_path, arena=arena.name, definition_interval=0.2, sync_interval=0.1)
    log = changed_and_served(arena, pooled_url, database_url, settings, in_child)
    assert log.count("SHMCACHE_LISTEN_URL") == 1


def test_who_is_told_of_an_account_has_it_to_himself_and_no_lock_stays_in_the_pool(
    pooled_url: str, database_url: str
) -> None:
    user = open_account(database_url, 10)
    ask = (
        "INSERT INTO notices (id, kind, user_id, balance, amount)"
        " SELECT gen_random_uuid(), 'low_balance', %s, 10, 20 FROM generate_series(1, 2)"
    )
    told: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def low(*arguments: Any) -> None:
        told.append(arguments[-1])
        begun.set()
        assert go_on.wait(60)

    with connect(database_url, application_name="test") as connection:
        connection.execute(ask, (user,))
        tellers = [Callbacks(pooled_url, {"low_balance": low}) for _ in range(2)]
        assert begun.wait(60)
        for each in tellers:
            each.look()
        with connect(pooled_url, application_name="test") as pooled:  # it has a session of its own meanwhile
            assert queries.load_account(pooled, user) is not None
        assert len(told) == 1
        go_on.set()
        left = "SELECT count(*) FROM notices WHERE delivered_at IS NULL"
        wait_for(lambda: connection.execute(left).fetchone() == (0,))
        for each in tellers:
            each.stop()
        assert len(told) == len(set(told)) == 2
        locks = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database"
            " WHERE datname = current_database())"
        )
        assert connection.execute(locks.encode()).fetchone() == (0,)


def test_a_reader_looks_where_it_cannot_hear(pooled_url: str, database_url: str) -> None:
    with connect(database_url, application_name="test") as connection, Reader(pooled_url, look_seconds=0.1) as reader:
        queries.save_graph(connection, *small_graph())
        run, user = new_id(), new_id()
        add = (
            "INSERT INTO graph_executions (id, graph_id, user_id, status, inputs, created_at, stats)"
            " VALUES (%s, %s, %s, 'RUNNING', '{}', now(), '{}')"
        )
        connection.execute(add.encode(), (run, GRAPH, user))
        assert reader.wait_until(run, timeout_seconds=0.3).status is ExecutionStatus.RUNNING
        connection.execute("UPDATE graph_executions SET status = 'COMPLETED' WHERE id = %s", (run,))
        assert reader.wait_until(run, timeout_seconds=60).status is ExecutionStatus.COMPLETED


def test_an_address_with_a_wrong_password_through_a_pooler_does_not_show_it(pooled_url: str) -> None:
    url = make_conninfo(pooled_url, dbname="there_is_none", password="geheim")
    with pytest.raises(DatabaseUnavailable) as failed:
        connect(url, application_name="test")
    assert "geheim" not in str(failed.value)
