"""What leaders note of their batches is true; and a leader drains what is there, not what comes while it does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmcache.arena import Arena, Counter, activity
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.identifiers import new_id
from shmcache.writes import GraphExecutionWrite, NodeExecutionWrite, OutputWrite, Refresh, written_at
from syncer.measures import sample
from syncer.sync_manager import SyncManager
from tests.integration.charging import begin, open_account, priced_graph, queued, settle_now
from tests.integration.test_clients import SINK, small_graph


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"measures-{os.getpid()}", 32 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, sync_interval=3600.0)


@pytest.fixture
def client(arena: Arena, database_url: str, settings: Settings) -> Iterator[CachedClient]:
    graph, nodes = small_graph()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
    with CachedClient(arena, database_url, settings) as made:
        yield made


def test_lag_size_and_time_of_each_batch_are_noted_for_all_of_its_entries(
    arena: Arena, client: CachedClient, database_url: str, settings: Settings
) -> None:
    run = client.create_graph_execution(small_graph()[0].id, new_id()).id
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    began = time.time()
    for number in range(500):
        client.upsert_execution_output(identifier, "out", number)
    written = time.time()
    SyncManager(arena, database_url, settings).run_once()
    done = time.time()
    seen = activity.observed(arena._memory)
    entries = arena.write_ring.last_sequence
    assert entries > 500
    assert seen["write_lag_seconds"].total == seen["write_batch_entries"].sum == entries
    assert seen["write_commit_seconds"].total == seen["write_batch_entries"].total
    assert 0 < seen["write_commit_seconds"].sum <= done - written
    # Every 64th part of a batch stands for its neighbours, which were written within the same moments.
    assert entries * (done - written) * 0.5 < seen["write_lag_seconds"].sum < entries * (done - began) * 1.1
    assert seen["charge_batch_entries"].total == 0


def test_a_change_of_an_execution_that_ended_long_ago_does_not_count_as_old(
    arena: Arena, client: CachedClient, database_url: str, settings: Settings
) -> None:
    clock = client._now
    client._now = lambda: clock() - 86_400.0  # type: ignore[method-assign]
    run = client.create_graph_execution(small_graph()[0].id, new_id()).id
    del client._now
    manager = SyncManager(arena, database_url, settings)
    manager.run_once()
    first = activity.observed(arena._memory)["write_lag_seconds"]
    assert first.counts[-1] == first.total == 1  # it says itself that it is a day old
    client.update_graph_execution_stats(run, None, {"note": 1})
    manager.run_once()
    later = activity.observed(arena._memory)["write_lag_seconds"]
    assert (later.total, later.counts[-1]) == (2, 1)


def test_holds_are_timed_from_when_they_were_made_to_when_they_are_settled(
    arena: Arena, database_url: str, settings: Settings
) -> None:
    graph, nodes = priced_graph()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
    user = open_account(database_url, 1_000)
    with CachedClient(arena, database_url, settings) as client:
        run = client.create_graph_execution(graph.id, user)
        begun = time.time()
        for number in range(3):
            begin(client, queued(client, run.id, nodes[0].id, value=number))
        settle_now(arena, database_url, settings)
        took = time.time() - begun
    seen = activity.observed(arena._memory)
    assert seen["hold_seconds"].total >= 3
    assert 0 < seen["hold_seconds"].sum <= seen["hold_seconds"].total * took
    assert seen["charge_batch_entries"].total >= 1


def test_a_leader_drains_what_is_there_and_not_for_ever_what_comes_meanwhile(
    arena: Arena, client: CachedClient, database_url: str, settings: Settings
) -> None:
    run = client.create_graph_execution(small_graph()[0].id, new_id()).id
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    batches = 0

    def write_more() -> None:
        nonlocal batches
        batches += 1
        assert batches < 20, "the leader never comes to an end"
        client.upsert_execution_output(identifier, "out", batches)

    manager = SyncManager(arena, database_url, settings)
    manager.on_batch = write_more
    manager.run_once()
    assert batches == 1
    assert arena.write_ring.last_sequence == arena.write_ring.committed_sequence + 1
    manager.on_batch = None
    manager.run_once()
    assert arena.write_ring.last_sequence == arena.write_ring.committed_sequence


def test_entries_carry_their_time_where_they_have_one() -> None:
    assert written_at(OutputWrite("x", 0, "out", "1", 12.5)) == 12.5
    assert written_at(NodeExecutionWrite("x", "g", "n", "QUEUED", 5.0, 9.0, 7.0, None, "{}")) == 9.0
    assert written_at(GraphExecutionWrite("x", "g", "u", "RUNNING", "{}", 5.0, 7.0, None, "{}")) == 7.0
    assert written_at(Refresh("u")) is None


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1_000, 9_999])
def test_a_sample_stands_for_everything(count: int) -> None:
    found = list(sample(range(count), 64))
    assert sum(stands_for for _, stands_for in found) == count
    assert len(found) <= 64
    assert [value for value, _ in found] == sorted({value for value, _ in found})


def test_debt_that_charges_leave_is_counted(arena: Arena, database_url: str, settings: Settings) -> None:
    graph, nodes = priced_graph()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
    user = open_account(database_url, 1_000)
    with CachedClient(arena, database_url, settings) as client:
        client.spend_credits(user, 900)
        with connect(database_url, application_name="test") as connection:
            connection.execute("UPDATE accounts SET balance = balance - 500 WHERE user_id = %s", (user,))
        settle_now(arena, database_url, settings)
    counted = arena.counter_totals()
    assert (counted[Counter.CHARGES_IN_DEBT.name.lower()], counted[Counter.DEBT_CREDITS.name.lower()]) == (1, 400)
