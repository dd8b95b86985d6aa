"""What programs on machines without an arena read, and what they wait for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.announcements import CHANNEL, announce, read_announcement
from shmcache.database.connection import connect
from shmcache.direct_client import DirectClient
from shmcache.errors import DatabaseUnavailable, FlushTimeout, InvalidValue, NotFound
from shmcache.identifiers import new_id
from shmcache.reader import Reader
from shmcache.records import ExecutionStatus
from shmcache.work_queue import WorkQueue
from syncer.sync_manager import SyncManager
from tests.integration.charging import settle_now
from tests.integration.test_clients import SINK, small_graph

S = ExecutionStatus
LONG_SECONDS = 60.0
"""A wait that ends by being told; looking would come too late."""


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"reader-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, sync_interval=0.05)


@pytest.fixture
def client(arena: Arena, database_url: str, settings: Settings) -> Iterator[CachedClient]:
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, *small_graph())
    with CachedClient(arena, database_url, settings) as made:
        yield made


@pytest.fixture
def reader(database_url: str) -> Iterator[Reader]:
    with Reader(database_url, look_seconds=LONG_SECONDS) as made:
        yield made


def begin(client: CachedClient) -> str:
    return client.create_graph_execution(small_graph()[0].id, new_id()).id


def sync(arena: Arena, database_url: str, settings: Settings) -> None:
    SyncManager(arena, database_url, settings).run_once()


def test_a_reader_sees_what_a_watermark_stands_for_as_soon_as_it_is_written(
    client: CachedClient, reader: Reader, start_syncer: Callable[[str], psutil.Process], database_url: str
) -> None:
    run = begin(client)
    step, _ = client.upsert_execution_input(SINK, run, "left", 1)
    watermark = client.watermark
    with pytest.raises(FlushTimeout):
        reader.wait_for(watermark, 0.0)
    with pytest.raises(NotFound):
        reader.graph_execution(run)
    start_syncer(database_url)
    reader.wait_for(watermark)
    assert [each.id for each in reader.node_executions(run)] == [step]
    assert reader.graph_execution(run) == client.get_graph_execution(run)
    reader.wait_for(watermark, 0.0)


def test_a_watermark_counts_charges_too(
    client: CachedClient, database_url: str, arena: Arena, settings: Settings
) -> None:
    user = new_id()
    with connect(database_url, application_name="test") as connection:
        queries.create_account(connection, user, 100)
    begin(client)
    client.spend_credits(user, 5)
    sync(arena, database_url, settings)
    with Reader(database_url) as reader:
        with pytest.raises(FlushTimeout) as unsettled:
            reader.wait_for(client.watermark, 0.0)
        assert unsettled.value.ring == "charge"
        settle_now(arena, database_url, settings)
        reader.wait_for(client.watermark, 0.0)


def test_who_has_written_nothing_or_writes_directly_keeps_nobody_waiting(
    client: CachedClient, reader: Reader, database_url: str, arena: Arena, settings: Settings
) -> None:
    assert client.watermark == ""
    direct = DirectClient(database_url, work_queue=WorkQueue(arena), settings=settings, on_wait=lambda: None)
    direct.create_graph_execution(small_graph()[0].id, new_id())
    assert direct.watermark == ""
    direct.close()
    reader.wait_for("", 0.0)


@pytest.mark.parametrize("watermark", ["x", "a:1:2", f"{SINK}:1", f"{SINK}:1:x", f"{SINK}:1:2:3"])
def test_what_is_no_watermark_is_refused(reader: Reader, watermark: str) -> None:
    with pytest.raises(InvalidValue):
        reader.wait_for(watermark, 0.0)


def test_who_waits_for_the_end_of_a_run_is_told_of_it(
    client: CachedClient, reader: Reader, start_syncer: Callable[[str], psutil.Process], database_url: str
) -> None:
    start_syncer(database_url)
    run = begin(client)
    client.flush()
    done: list[Any] = []
    waiting = threading.Thread(target=lambda: done.append(reader.wait_until(run)))
    waiting.start()
    client.update_graph_execution_stats(run, S.RUNNING)
    client.flush()
    assert waiting.is_alive()
    client.update_graph_execution_stats(run, S.COMPLETED)
    waiting.join(LONG_SECONDS / 2)
    assert [each.status for each in done] == [S.COMPLETED]


def test_a_run_that_does_not_end_in_time_is_given_as_it_is(
    client: CachedClient, reader: Reader, arena: Arena, database_url: str, settings: Settings
) -> None:
    run = begin(client)
    with pytest.raises(NotFound):
        reader.wait_until(run, timeout_seconds=0.05)
    sync(arena, database_url, settings)
    assert reader.wait_until(run, timeout_seconds=0.05).status is S.QUEUED
    assert reader.wait_until(run, [S.QUEUED], timeout_seconds=0.0).status is S.QUEUED


def test_many_changes_are_told_in_few_messages_each_run_once_in_them(
    client: CachedClient, arena: Arena, database_url: str, settings: Settings
) -> None:
    runs = [begin(client) for _ in range(450)]
    for run in runs:
        client.update_graph_execution_stats(run, S.RUNNING)
        client.update_graph_execution_stats(run, S.COMPLETED)
    with connect(database_url, application_name="test") as listening:
        listening.execute(f"LISTEN {CHANNEL}")
        announce(listening, new_id(), 1, runs)
        syncer = SyncManager(arena, database_url, settings)
        told = [read_announcement(each.payload) for each in listening.notifies(timeout=1, stop_after=1)]
        assert len(told) == 3
        names = [run for each in told if each is not None for run in each.graph_exec_ids or ()]
        assert sorted(names) == sorted(runs)
        syncer.run_once()
        told = [read_announcement(each.payload) for each in listening.notifies(timeout=1)]
    assert told[0] is not None
    assert told[0].graph_exec_ids is None  # a new leader: anything may have changed
    assert len(told) < 20
    assert told[-1] is not None
    assert (told[-1].arena_id, told[-1].sequence) == (arena.arena_id, arena.write_ring.last_sequence)


def test_what_a_killed_leader_has_not_told_the_next_one_does(
    client: CachedClient, arena: Arena, database_url: str, settings: Settings
) -> None:
    run = begin(client)
    client.update_graph_execution_stats(run, S.RUNNING)
    client.update_graph_execution_stats(run, S.COMPLETED)
    pid = os.fork()
    if not pid:
        try:
            syncer = SyncManager(arena, database_url, settings)
            syncer._tell = lambda now=False: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
            syncer.run_once()
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    with connect(database_url, application_name="test") as connection:
        connection.execute(f"LISTEN {CHANNEL}")
        sync(arena, database_url, settings)
        (heard,) = connection.notifies(timeout=LONG_SECONDS, stop_after=1)
    told = read_announcement(heard.payload)
    assert told is not None
    assert told.concerns(run)


def test_a_reader_whose_connection_is_ended_asks_again(reader: Reader, client: CachedClient, database_url: str) -> None:
    with pytest.raises(NotFound):
        reader.graph_execution(new_id())
    with connect(database_url, application_name="test") as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'shmcache reader'"
            " AND datname = current_database()"
        )
    with pytest.raises(NotFound):
        reader.graph_execution(new_id())


def test_a_database_that_is_away_is_said_so_without_its_password() -> None:
    with Reader("postgresql://me:secret@127.0.0.1:1/x") as reader, pytest.raises(DatabaseUnavailable) as error:
        reader.graph_execution(new_id())
    assert "secret" not in str(error.value)
