"""What a caller can know of its writes: receipts, durable and urgent writes, flushes that say how far they got."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.direct_client import DirectClient
from shmcache.errors import FlushTimeout, InvalidValue
from shmcache.identifiers import id_bytes, new_id
from shmcache.records import ExecutionStatus
from shmcache.work_queue import WorkQueue
from syncer.charge_pool import ChargePool
from syncer.sync_manager import SyncManager
from tests.integration.faults import await_blocked
from tests.integration.test_clients import SINK, small_graph
from tests.integration.test_syncer import outputs_of

InChild = Callable[[Callable[[Callable[[], bool]], None]], int]


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"receipts-{os.getpid()}", 32 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An interval that no test waits for: what is drained was asked for."""
    return load_settings(state_dir=tmp_path, sync_interval=3600.0)


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


def test_every_durable_write_is_in_the_database_when_it_returns(
    arena: Arena, client: CachedClient, database_url: str, settings: Settings, in_child: InChild
) -> None:
    in_child(SyncManager(arena, database_url, settings).run)
    run = client.create_graph_execution(small_graph()[0].id, new_id(), durable=True).id
    with connect(database_url, application_name="test") as connection:
        assert queries.load_graph_execution(connection, run) is not None
        identifier, _ = client.upsert_execution_input(SINK, run, "left", 1, durable=True)
        found = queries.load_node_execution(connection, identifier)
        assert found is not None
        assert found.inputs == {"left": 1}
        client.upsert_execution_output(identifier, "out", 2, durable=True)
        assert outputs_of(database_url, identifier) == [2]
        client.update_node_execution_status(identifier, ExecutionStatus.RUNNING, durable=True)
        client.atomically(lambda: client.upsert_execution_output(identifier, "out", 3), durable=True)
        client.atomically(lambda: client.upsert_execution_output(identifier, "out", 4, durable=True))
        found = queries.load_node_execution(connection, identifier)
        assert found is not None
        assert (found.status, found.outputs) == ("RUNNING", {"out": [2, 3, 4]})
        client.update_graph_execution_stats(run, ExecutionStatus.FAILED, durable=True)
        ended = queries.load_graph_execution(connection, run)
        assert ended is not None
        assert ended.status == "FAILED"


def test_a_durable_charge_is_in_the_ledger_when_it_returns(
    arena: Arena, client: CachedClient, database_url: str, settings: Settings, in_child: InChild
) -> None:
    user = new_id()
    in_child(ChargePool(arena, database_url, settings).run)
    with connect(database_url, application_name="test") as connection:
        queries.create_account(connection, user, 100)
        assert client.spend_credits(user, 30, durable=True) == 70
        account = queries.load_account(connection, user)
    assert account is not None
    assert account.balance == 70


def test_a_durable_write_that_finds_its_output_there_waits_until_it_is_durable(
    arena: Arena, client: CachedClient, run: str, database_url: str, settings: Settings, in_child: InChild
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    client.upsert_execution_output(identifier, "out", 1, ordinal=0)
    in_child(SyncManager(arena, database_url, settings).run)
    CachedClient(arena, database_url, settings).upsert_execution_output(identifier, "out", 1, ordinal=0, durable=True)
    assert outputs_of(database_url, identifier) == [1]


def test_an_urgent_write_is_carried_without_waiting_for_the_interval(
    arena: Arena, client: CachedClient, run: str, database_url: str, settings: Settings, in_child: InChild
) -> None:
    in_child(SyncManager(arena, database_url, settings).run)
    identifier, _ = client.upsert_execution_input(SINK, run, None, urgent=True)
    assert arena.write_ring.wait_committed(client.last_sequence, 60)
    client.upsert_execution_output(identifier, "out", 1, urgent=True)
    assert arena.write_ring.wait_committed(client.last_sequence, 60)
    assert outputs_of(database_url, identifier) == [1]


def test_a_receipt_is_a_threads_own_and_any_process_can_wait_for_it(
    arena: Arena, client: CachedClient, run: str, database_url: str, settings: Settings, in_child: InChild
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    mine = client.last_sequence
    assert mine == arena.write_ring.last_sequence
    others: list[int] = []

    def write() -> None:
        before = client.last_sequence
        client.upsert_execution_output(identifier, "out", 1)
        others.extend((before, client.last_sequence))

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert others == [0, arena.write_ring.last_sequence]
    assert client.last_sequence == mine
    in_child(SyncManager(arena, database_url, settings).run)
    CachedClient(arena, database_url, settings).wait_durable(others[1], 60)
    assert outputs_of(database_url, identifier) == [1]
    client.wait_durable(mine, 0.001)
    with pytest.raises(InvalidValue, match="no write has the sequence"):
        client.wait_durable(arena.write_ring.last_sequence + 1)


def test_who_waits_too_long_is_told_how_far_it_got(arena: Arena, client: CachedClient, run: str) -> None:
    client.upsert_execution_input(SINK, run, None)
    arena.write_ring.advance(1)
    waits: list[Callable[[], None]] = [
        lambda: client.flush(0.05), lambda: client.wait_durable(client.last_sequence, 0.05)
    ]  # fmt: skip
    for wait in waits:
        with pytest.raises(FlushTimeout) as raised:
            wait()
        assert (raised.value.ring, raised.value.reached, raised.value.wanted) == ("write", 1, client.last_sequence)


def test_a_flush_waits_for_the_writes_of_all_threads(arena: Arena, client: CachedClient, run: str) -> None:
    thread = threading.Thread(target=lambda: client.upsert_execution_input(SINK, run, None))
    thread.start()
    thread.join()
    arena.write_ring.advance(client.last_sequence)
    with pytest.raises(FlushTimeout):
        client.flush(0.05)
    arena.write_ring.advance(arena.write_ring.last_sequence)
    client.flush(0.05)


def test_many_that_wait_at_once_share_one_commit(
    arena: Arena, client: CachedClient, run: str, database_url: str, settings: Settings, in_child: InChild
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    in_child(SyncManager(arena, database_url, settings).run)
    client.flush(60)
    batches = arena.counter_totals()["batches"]

    def write(number: int) -> None:
        client.upsert_execution_output(identifier, "out", number, durable=True)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(20)]
    with connect(database_url, application_name="test", autocommit=False) as blocker:
        blocker.execute("LOCK TABLE node_execution_outputs IN EXCLUSIVE MODE")
        threads[0].start()
        await_blocked(database_url)
        last = arena.write_ring.last_sequence
        for thread in threads[1:]:
            thread.start()
        while arena.write_ring.last_sequence < last + 19:
            psutil.Process().cpu_times()
        blocker.rollback()
    for thread in threads:
        thread.join(60)
    assert sorted(outputs_of(database_url, identifier)) == list(range(20))  # type: ignore[type-var]
    assert arena.counter_totals()["batches"] - batches <= 3, "the one that was held up, the others, a straggler"


def test_what_the_direct_client_wrote_is_durable_already(arena: Arena, database_url: str, settings: Settings) -> None:
    graph, nodes = small_graph()
    direct = DirectClient(database_url, work_queue=WorkQueue(arena), settings=settings, on_wait=lambda: None)
    with direct as client:
        client.save_graph(graph, nodes)
        run = client.create_graph_execution(graph.id, new_id(), durable=True).id
        identifier, _ = client.upsert_execution_input(SINK, run, None, urgent=True)
        client.atomically(lambda: client.upsert_execution_output(identifier, "out", 1, durable=True), durable=True)
        client.wait_durable(client.last_sequence, 0.001)
    assert outputs_of(database_url, identifier) == [1]


def test_times_are_in_the_order_of_what_happened_whoever_sets_the_clock(
    arena: Arena, client: CachedClient, run: str, database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, "left", 1)
    client.update_node_execution_status(identifier, ExecutionStatus.RUNNING)
    client.upsert_execution_output(identifier, "out", 2)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3600 * 10**9)
    with CachedClient(arena, database_url, settings) as another:
        later, _ = another.upsert_execution_input(SINK, run, "left", 1)
        another.upsert_execution_output(identifier, "out", 3)
        ended = another.update_node_execution_status(identifier, ExecutionStatus.COMPLETED)
        ended_run = another.update_graph_execution_stats(run, ExecutionStatus.FAILED)
        assert (ended_run.ended_at or 0.0) > (ended.ended_at or 0.0) > (ended.started_at or 0.0) > 0.0
        SyncManager(arena, database_url, settings).run_once()
        arena.drop_family(id_bytes(run))
        latest = another.get_latest_node_execution(SINK, run)
        assert latest is not None
        assert latest.id == later
        assert [each.id for each in another.get_node_executions(run)] == [identifier, later]
    with connect(database_url, application_name="test") as connection:
        assert connection.execute("SELECT count(DISTINCT time) FROM node_execution_outputs").fetchone() == (2,)
        assert connection.execute("SELECT ordinal FROM node_execution_outputs ORDER BY time").fetchall() == [(0,), (1,)]
