"""A node's end as a barrier: with flush_on=node it is in the database before its worker goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.execution_data_client import WorkKind
from shmcache.identifiers import new_id
from shmcache.manager import Manager
from shmcache.records import ExecutionStatus
from tests.integration.charging import charge_until_asked
from tests.integration.test_clients import small_graph

S = ExecutionStatus
ROOT = Path(__file__).parents[2]
Connection = psycopg.Connection[Any]


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"flush-on-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, sync_interval=600.0)


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with connect(database_url, application_name="test") as opened:
        queries.save_graph(opened, *small_graph())
        yield opened


@pytest.fixture
def client(
    arena: Arena,
    database_url: str,
    settings: Settings,
    connection: Connection,
    in_child: Callable[[Callable[[Callable[[], bool]], None]], int],
    start_syncer: Callable[[str], psutil.Process],
) -> Iterator[CachedClient]:
    """A client on a host whose syncer and charger carry only what they are asked to."""
    in_child(lambda stop: charge_until_asked(arena, database_url, settings))
    start_syncer(database_url)
    with CachedClient(arena, database_url, settings) as made:
        yield made


def begin(client: CachedClient, connection: Connection) -> str:
    user = new_id()
    queries.create_account(connection, user, 1_000)
    run = client.create_graph_execution(small_graph()[0].id, user).id
    client.put_work(WorkKind.START, run, run)
    return run


def test_each_end_of_a_node_and_of_the_graph_is_in_the_database_before_the_next_is_taken(
    client: CachedClient, connection: Connection
) -> None:
    run = begin(client, connection)
    manager = Manager(client, lambda: False, 1, durable_ends=True)
    ended = cost = 0
    while (work := client.take_work(0.0)) is not None:
        manager.do(work)
        if work.kind is WorkKind.RUN:
            ended += 1
            known = client.get_node_execution(work.id)
            found = queries.load_node_execution(connection, work.id)
            assert found is not None
            assert found.status is S.COMPLETED
            assert {**found.outputs} == {**known.outputs}
            (charged,) = connection.execute(
                "SELECT coalesce(-sum(amount), 0) FROM ledger WHERE node_execution_id = %s", (work.id,)
            )
            assert charged == (known.stats["cost"],)
            cost += known.stats["cost"]
    assert ended == 2
    assert cost > 0
    graph_exec = queries.load_graph_execution(connection, run)
    assert graph_exec is not None
    assert graph_exec.status is S.COMPLETED


def test_otherwise_a_worker_does_not_wait_for_the_database(client: CachedClient, connection: Connection) -> None:
    begin(client, connection)
    manager = Manager(client, lambda: False, 1)
    while (work := client.take_work(0.0)) is not None:
        manager.do(work)
        if work.kind is WorkKind.RUN:
            assert client.get_node_execution(work.id).status is S.COMPLETED
            assert queries.load_node_execution(connection, work.id) is None


def test_a_run_with_flush_on_node_carries_each_nodes_end_by_itself(database_url: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.cli", "run", "--json", "--workers", "1", ROOT / "tests/graphs/countdown.json"],
        cwd=ROOT,
        env={
            **os.environ,
            "SHMCACHE_DATABASE_URL": database_url,
            "SHMCACHE_STATE_DIR": str(tmp_path),
            "SHMCACHE_SYNC_INTERVAL": "600",
            "SHMCACHE_FLUSH_ON": "node",
            "SHMCACHE_LOG_LEVEL": "DEBUG",  # lines that are alike are not left out
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    summary = json.loads(done.stdout)
    assert summary["completed"] > 4
    assert done.stderr.count("Synced ") >= summary["completed"]
