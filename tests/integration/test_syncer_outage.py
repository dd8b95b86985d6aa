"""The syncer and its server: a crash under it, a leader frozen inside its transaction, what a refusal costs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import psutil
import psycopg
import pytest

from shmcache.arena import Arena, Transaction
from shmcache.arena.transaction import Append
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import migrate
from shmcache.identifiers import new_id
from shmcache.writes import GraphExecutionWrite, NodeExecutionWrite, OutputWrite, Write, WriteKind
from syncer.sync_manager import SyncManager
from tests.integration.test_clients import SINK, small_graph

_KINDS = {
    GraphExecutionWrite: WriteKind.GRAPH_EXECUTION,
    NodeExecutionWrite: WriteKind.NODE_EXECUTION,
    OutputWrite: WriteKind.OUTPUT,
}
_COUNT_ATTEMPTS = b"""
    CREATE SEQUENCE attempts;  -- what it has given out, no rollback takes back
    CREATE FUNCTION count_attempt() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM nextval('attempts'); RETURN NULL; END $$;
    CREATE TRIGGER attempt BEFORE INSERT ON node_execution_outputs FOR EACH STATEMENT EXECUTE FUNCTION count_attempt();
"""


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"outage-{os.getpid()}", 32 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, sync_interval=0.1)


def append(arena: Arena, *writes: Write) -> None:
    """Put rows on the write ring, some hundred in a step."""
    for begin in range(0, len(writes), 500):
        wanted = Transaction()
        wanted.operations += [
            Append("write", _KINDS[type(write)], msgpack.packb(write)) for write in writes[begin : begin + 500]
        ]
        arena.commit(wanted)


def begin_execution(arena: Arena, database_url: str) -> str:
    """Save a graph; put a graph execution and a node execution on the ring; return the latter's id."""
    graph, nodes = small_graph()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
    run, identifier = new_id(), new_id()
    append(
        arena,
        GraphExecutionWrite(run, graph.id, new_id(), "RUNNING", "{}", 1.0, 1.0, None, "{}"),
        NodeExecutionWrite(identifier, run, SINK, "RUNNING", 1.0, 1.0, 1.0, None, "{}"),
    )
    return identifier


def outputs(identifier: str, first: int, count: int) -> list[OutputWrite]:
    """Return outputs whose values are their ordinals."""
    return [
        OutputWrite(identifier, number, "out", str(number), float(number)) for number in range(first, first + count)
    ]


def values_of(database_url: str, identifier: str) -> list[int]:
    with connect(database_url, application_name="test") as connection:
        rows = connection.execute(
            "SELECT value FROM node_execution_outputs WHERE node_execution_id = %s ORDER BY ordinal", (identifier,)
        ).fetchall()
    return [row[0] for row in rows]


def test_a_server_that_crashes_under_the_syncer_loses_and_doubles_nothing(
    arena: Arena, tmp_path: Path, start_syncer: Callable[[str], psutil.Process]
) -> None:
    state = tmp_path / "server"
    with EmbeddedServer.start(state) as server:
        with connect(server.url, application_name="test") as connection:
            migrate(connection)
        identifier = begin_execution(arena, server.url)
        start_syncer(server.url)
        for turn in range(3):
            append(arena, *outputs(identifier, turn * 2_000, 1_000))
            arena.write_ring.request_drain()
            postmaster = psutil.Process(int((state / "postgresql" / "postmaster.pid").read_text().split()[0]))
            postmaster.send_signal(signal.SIGQUIT)  # an immediate shutdown: as after a crash
            psutil.wait_procs([postmaster], timeout=30)
            append(arena, *outputs(identifier, turn * 2_000 + 1_000, 1_000))
            with EmbeddedServer.start(state):
                assert arena.write_ring.wait_committed(arena.write_ring.last_sequence, 60)
                assert values_of(server.url, identifier) == list(range((turn + 1) * 2_000))


def test_a_leader_frozen_inside_its_transaction_does_not_keep_the_next_from_leading(
    arena: Arena, settings: Settings, database_url: str, start_syncer: Callable[[str], psutil.Process]
) -> None:
    identifier = begin_execution(arena, database_url)
    quick = psycopg.conninfo.make_conninfo(database_url, options="-c idle_in_transaction_session_timeout=300ms")
    first = start_syncer(quick)
    assert arena.write_ring.wait_committed(2, 30)
    with connect(database_url, application_name="test", autocommit=False) as blocker:
        # The first waits for this row in the middle of its transaction, and is frozen there.
        blocker.execute("LOCK TABLE node_execution_outputs IN EXCLUSIVE MODE")
        append(arena, *outputs(identifier, 0, 100))
        arena.write_ring.request_drain()
        with connect(database_url, application_name="test") as looking:
            deadline = time.monotonic() + 30
            while looking.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone() is None:
                assert time.monotonic() < deadline
        first.suspend()
        blocker.rollback()
    (settings.state_dir / "locks" / f"{arena.name}.syncer.lock").unlink()
    start_syncer(quick)
    assert arena.write_ring.wait_committed(102, 30)
    first.resume()
    append(arena, *outputs(identifier, 100, 100))
    assert arena.write_ring.wait_committed(202, 30)
    assert values_of(database_url, identifier) == list(range(200))


@pytest.mark.parametrize("place", [0, 5_000, 9_999])
def test_one_poisoned_entry_among_ten_thousand_costs_at_most_twenty_transactions_more(
    arena: Arena, settings: Settings, database_url: str, place: int
) -> None:
    identifier = begin_execution(arena, database_url)
    SyncManager(arena, database_url, settings).run_once()
    rows = outputs(identifier, 0, 10_000)
    rows[place] = rows[place]._replace(value_json='"a NUL: \\u0000"')
    append(arena, *rows)
    with connect(database_url, application_name="test") as connection:
        connection.execute(_COUNT_ATTEMPTS)
        SyncManager(arena, database_url, settings).run_once()
        attempts = connection.execute("SELECT last_value FROM attempts").fetchone()
        letters = connection.execute("SELECT sequence, sqlstate FROM dead_letters").fetchall()
    assert letters == [(place + 3, "22P05")]
    assert values_of(database_url, identifier) == [number for number in range(10_000) if number != place]
    assert attempts is not None
    assert attempts[0] - 1 <= 20


def test_the_children_of_a_refused_row_are_put_aside_too_and_all_others_are_written(
    arena: Arena, settings: Settings, database_url: str
) -> None:
    good = begin_execution(arena, database_url)
    run, orphan = new_id(), new_id()
    append(
        arena,
        NodeExecutionWrite(orphan, run, SINK, "RUNNING", 1.0, 1.0, 1.0, None, "{}"),
        *outputs(orphan, 0, 50),
        *outputs(good, 0, 1_000),
    )
    SyncManager(arena, database_url, settings).run_once()
    assert values_of(database_url, good) == list(range(1_000))
    with connect(database_url, application_name="test") as connection:
        letters = connection.execute("SELECT sequence, sqlstate FROM dead_letters ORDER BY sequence").fetchall()
    assert letters == [(sequence, "23503") for sequence in range(3, 54)]
