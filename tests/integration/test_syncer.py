"""The syncer on a real server: dead letters, fencing, an absent database."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmcache.arena import Arena, Transaction
from shmcache.arena.transaction import Append
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.identifiers import new_id
from shmcache.records import ExecutionStatus
from shmcache.writes import WriteKind
from syncer.charge_pool import ChargePool
from syncer.sync_manager import SyncManager
from tests.integration.test_clients import SINK, small_graph


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"syncer-{os.getpid()}", 32 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, sync_interval=0.2)


@pytest.fixture
def client(arena: Arena, database_url: str, settings: Settings) -> Iterator[CachedClient]:
    graph, nodes = small_graph()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
    with CachedClient(arena, database_url, settings) as made:
        yield made


@pytest.fixture
def run(client: CachedClient) -> str:
    return client.create_graph_execution(small_graph()[0].id, new_id()).id


def outputs_of(database_url: str, node_exec_id: str) -> list[object]:
    with connect(database_url, application_name="test") as connection:
        rows = connection.execute(
            "SELECT value FROM node_execution_outputs WHERE node_execution_id = %s ORDER BY ordinal", (node_exec_id,)
        ).fetchall()
    return [row[0] for row in rows]


def test_a_row_that_the_database_refuses_becomes_a_dead_letter_and_the_others_go_on(
    arena: Arena, client: CachedClient, run: str, database_url: str, settings: Settings
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    for number in range(300):
        client.upsert_execution_output(identifier, "out", "a NUL: \0" if number == 137 else number)
    SyncManager(arena, database_url, settings).run_once()
    assert arena.write_ring.committed_sequence == arena.write_ring.last_sequence
    assert outputs_of(database_url, identifier) == [number for number in range(300) if number != 137]
    with connect(database_url, application_name="test") as connection:
        letters = connection.execute("SELECT ring, kind, payload, error, sqlstate FROM dead_letters").fetchall()
    assert len(letters) == 1
    ring, kind, payload, error, state = letters[0]
    assert (ring, kind, state) == ("write", WriteKind.OUTPUT, "22P05")
    assert b"a NUL: " in payload
    assert error


def test_a_graph_execution_that_begins_and_ends_in_one_step_keeps_its_nodes_when_rows_are_written_one_by_one(
    arena: Arena, client: CachedClient, database_url: str, settings: Settings
) -> None:
    def live() -> tuple[str, str]:
        run = client.create_graph_execution(small_graph()[0].id, new_id()).id
        identifier, _ = client.upsert_execution_input(SINK, run, None)
        client.upsert_execution_output(identifier, "out", "\0")
        client.update_node_execution_status(identifier, ExecutionStatus.TERMINATED)
        client.update_graph_execution_stats(run, ExecutionStatus.TERMINATED)
        return run, identifier

    run, identifier = client.atomically(live)
    SyncManager(arena, database_url, settings).run_once()
    with connect(database_url, application_name="test") as connection:
        executed = queries.load_node_execution(connection, identifier)
        ran = queries.load_graph_execution(connection, run)
        letters = connection.execute("SELECT kind FROM dead_letters").fetchall()
    assert executed is not None
    assert executed.status is ExecutionStatus.TERMINATED
    assert ran is not None
    assert ran.status is ExecutionStatus.TERMINATED
    assert letters == [(WriteKind.OUTPUT,)], "the foreign key of the node's row held"


def test_an_entry_that_cannot_be_decoded_becomes_a_dead_letter_as_bytes(
    arena: Arena, client: CachedClient, run: str, database_url: str, settings: Settings
) -> None:
    nonsense = Transaction()
    nonsense.operations += [Append("write", 99, b"\xc1nonsense"), Append("charge", 1, b"\xc1nonsense")]
    arena.commit(nonsense)
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    SyncManager(arena, database_url, settings).run_once()
    ChargePool(arena, database_url, settings).run_once()
    with connect(database_url, application_name="test") as connection:
        letters = connection.execute("SELECT ring, payload FROM dead_letters ORDER BY ring").fetchall()
        assert queries.load_node_execution(connection, identifier) is not None
    assert letters == [("charge", b"\xc1nonsense"), ("write", b"\xc1nonsense")]


def test_a_charge_without_an_account_becomes_a_dead_letter(
    arena: Arena, client: CachedClient, database_url: str, settings: Settings
) -> None:
    rich, stranger = new_id(), new_id()
    with connect(database_url, application_name="test") as connection:
        queries.create_account(connection, rich, 100)
        queries.create_account(connection, stranger, 100)
    client.spend_credits(rich, 10)
    client.spend_credits(stranger, 20)
    client.spend_credits(rich, 5)
    with connect(database_url, application_name="test") as connection:
        connection.execute("DELETE FROM accounts WHERE user_id = %s", (stranger,))
    ChargePool(arena, database_url, settings).run_once()
    with connect(database_url, application_name="test") as connection:
        account = queries.load_account(connection, rich)
        letters = connection.execute("SELECT count(*) FROM dead_letters").fetchone()
    assert account is not None
    assert account.balance == 85
    assert letters == (1,)


def test_a_leader_whose_lock_file_was_deleted_is_fenced_and_nothing_is_doubled(
    arena: Arena,
    client: CachedClient,
    run: str,
    database_url: str,
    settings: Settings,
    in_child: Callable[[Callable[[Callable[[], bool]], None]], int],
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    first = in_child(SyncManager(arena, database_url, settings).run)
    client.flush(30)
    os.kill(first, signal.SIGSTOP)
    (settings.state_dir / "locks" / f"{arena.name}.syncer.lock").unlink()
    for number in range(50):
        client.upsert_execution_output(identifier, "out", number)
    in_child(SyncManager(arena, database_url, settings).run)
    client.flush(30)
    os.kill(first, signal.SIGCONT)
    for number in range(50, 100):
        client.upsert_execution_output(identifier, "out", number)
        client.flush(30)
    assert outputs_of(database_url, identifier) == list(range(100))
    with connect(database_url, application_name="test") as connection:
        epochs = connection.execute("SELECT epoch FROM checkpoints WHERE ring = 'write'").fetchall()
    assert epochs[0][0] >= 2


def test_leaders_killed_at_random_moments_lose_and_double_nothing(
    arena: Arena,
    client: CachedClient,
    run: str,
    database_url: str,
    settings: Settings,
    in_child: Callable[[Callable[[Callable[[], bool]], None]], int],
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    written = 0
    for kill in range(12):
        leader = os.fork()
        if not leader:
            SyncManager(arena, database_url, settings).run(lambda: False)
        for _ in range(40):
            client.upsert_execution_output(identifier, "out", written)
            written += 1
            if written % (5 + kill) == 0:
                arena.write_ring.request_drain()
        os.kill(leader, signal.SIGKILL)
        os.waitpid(leader, 0)
    in_child(SyncManager(arena, database_url, settings).run)
    client.flush(30)
    assert outputs_of(database_url, identifier) == list(range(written))


def test_writes_go_on_while_the_backends_are_terminated_and_all_arrive(
    arena: Arena,
    client: CachedClient,
    run: str,
    database_url: str,
    settings: Settings,
    in_child: Callable[[Callable[[Callable[[], bool]], None]], int],
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    in_child(SyncManager(arena, database_url, settings).run)
    with connect(database_url, application_name="test") as connection:
        for number in range(60):
            client.upsert_execution_output(identifier, "out", number)
            arena.write_ring.request_drain()
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'shmcache syncer'"
                " AND datname = current_database()"
            )
    client.flush(60)
    assert outputs_of(database_url, identifier) == list(range(60))


def test_a_database_that_is_away_keeps_the_entries_on_the_ring(
    arena: Arena, client: CachedClient, run: str, settings: Settings
) -> None:
    client.upsert_execution_input(SINK, run, "left", 1)
    started = time.monotonic()
    SyncManager(arena, "postgresql://127.0.0.1:1/nobody", settings).run_once()
    assert time.monotonic() - started < 60, "it gives up instead of waiting for ever"
    assert arena.write_ring.committed_sequence == 0
    assert arena.write_ring.last_sequence > 0


def test_a_leader_that_is_asked_to_look_looks_and_drains_nothing(
    arena: Arena, client: CachedClient, run: str, database_url: str, settings: Settings
) -> None:
    looks = threading.Semaphore(0)

    class Looking(SyncManager):
        def _look_around(self) -> bool:
            looks.release()
            return super()._look_around()

    manager = Looking(arena, database_url, settings.model_copy(update={"sync_interval": 3600.0}))
    is_over = threading.Event()
    thread = threading.Thread(target=manager.run, args=(is_over.is_set,))
    ring = arena.write_ring
    wanted = ring.last_sequence
    thread.start()
    try:
        assert ring.wait_committed(wanted, 60)
        identifier, _ = client.upsert_execution_input(SINK, run, None)
        while looks.acquire(blocking=False):
            pass
        for _ in range(5):
            manager.ask_to_look()
            assert looks.acquire(timeout=60)
        assert ring.committed_sequence == wanted
        client.upsert_execution_output(identifier, "out", 1, urgent=True)
        assert ring.wait_committed(ring.last_sequence, 60)
    finally:
        is_over.set()
        ring.request_drain()
        thread.join(60)
    assert outputs_of(database_url, identifier) == [1]
