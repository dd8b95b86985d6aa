"""One host writes to a graph execution: who lost it, by a pause or a cut network, writes nothing of it any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from shmcache.arena import Arena
from shmcache.asynchronous.clients import CachedAsyncClient
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import ownership, queries
from shmcache.database.connection import connect
from shmcache.direct_client import DirectClient
from shmcache.errors import NotFound, NotOwner, StillAtWork
from shmcache.execution_data_client import WorkKind
from shmcache.identifiers import new_id
from shmcache.manager import Manager
from shmcache.reader import Reader
from shmcache.records import ExecutionStatus
from shmcache.work_queue import WorkQueue
from syncer.host_lease import HostLease
from syncer.replay import replay
from syncer.sync_manager import SyncManager
from tests import kill_points
from tests.integration.faults import await_blocked, await_true
from tests.integration.test_clients import SINK, SOURCE, small_graph
from tests.integration.test_definition_changes import Gate, ask_to_end

S = ExecutionStatus
GRAPH = small_graph()[0].id
Connection = psycopg.Connection[Any]
InChild = Callable[[Callable[[Callable[[], bool]], None]], int]


class Host(NamedTuple):
    """An arena, a client of it, its way to the database, and its leader (0: none)."""

    arena: Arena
    client: CachedClient
    gate: Gate
    settings: Settings
    leader: int

    def sync(self) -> None:
        """Carry what is on the ring, in this process."""
        SyncManager(self.arena, self.gate.url, self.settings).run_once()


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with connect(database_url, application_name="test") as opened:
        queries.save_graph(opened, *small_graph())
        yield opened


@pytest.fixture
def make_host(
    connection: Connection, database_url: str, tmp_path: Path, in_child: InChild
) -> Iterator[Callable[..., Host]]:
    """Return a function that makes a host; with a lease, it has a leader that renews it."""
    with contextlib.ExitStack() as left:

        def make(name: str, lease: float | None = None) -> Host:
            arena = Arena.create(f"owners-{name}-{os.getpid()}", 16 << 20)
            left.callback(arena.unlink)
            left.callback(arena.close)
            gate = Gate(database_url)
            own = load_settings(state_dir=tmp_path, arena=arena.name, sync_interval=0.05, host_lease=lease or 15.0)
            leader = in_child(lambda stop: SyncManager(arena, gate.url, own).run(stop)) if lease else 0
            left.enter_context(gate)  # its thread only now: what was forked has none
            client = left.enter_context(CachedClient(arena, gate.url, own))
            if leader:
                left.callback(ask_to_end, leader)
                await_true(lambda: lives(connection, arena.arena_id))
            return Host(arena, client, gate, own, leader)

        yield make


def lives(connection: Connection, arena_id: str) -> bool:
    query = "SELECT FROM hosts WHERE arena_id = %s AND lease_until > clock_timestamp()"
    return connection.execute(query, (arena_id,)).fetchone() is not None


def begin(host: Host) -> tuple[str, str]:
    """Make a graph execution with a RUNNING node."""
    run = host.client.create_graph_execution(GRAPH, new_id()).id
    step, _ = host.client.upsert_execution_input(SINK, run, "left", 1)
    host.client.update_node_execution_status(step, S.RUNNING)
    return run, step


def outputs(connection: Connection, step: str) -> list[Any]:
    rows = connection.execute(
        "SELECT value FROM node_execution_outputs WHERE node_execution_id = %s ORDER BY ordinal", (step,)
    )
    return [row[0] for row in rows]


def reasons(connection: Connection, host: Host) -> list[str]:
    rows = connection.execute(
        "SELECT error FROM dead_letters WHERE arena_id = %s ORDER BY sequence", (host.arena.arena_id,)
    )
    return [row[0] for row in rows]


def test_who_creates_a_graph_execution_owns_it_and_is_not_robbed_while_it_lives(
    make_host: Callable[..., Host], connection: Connection
) -> None:
    one, two = make_host("one", lease=0.6), make_host("two")
    run, _ = begin(one)
    one.client.flush()
    token = one.client.take_graph_execution(run)
    for _ in range(5):
        with pytest.raises(NotOwner) as refused:
            two.client.take_graph_execution(run)
        assert refused.value.arena_id == one.arena.arena_id
        assert 0 < refused.value.seconds <= 0.6
        renewed = connection.execute("SELECT renewed_at FROM hosts").fetchone()
        await_true(lambda: connection.execute("SELECT renewed_at FROM hosts").fetchone() != renewed)  # noqa: B023
    assert one.client.take_graph_execution(run) == token == 1


def test_a_host_that_was_paused_for_longer_than_its_lease_writes_nothing_of_what_was_taken(
    make_host: Callable[..., Host], connection: Connection
) -> None:
    one, two = make_host("one", lease=0.6), make_host("two")
    (run, step), (other, other_step) = begin(one), begin(one)
    one.client.upsert_execution_output(step, "out", "before")
    one.client.flush()
    os.kill(one.leader, signal.SIGSTOP)
    one.client.upsert_execution_output(step, "out", "late")
    one.client.update_node_execution_status(step, S.COMPLETED)
    one.client.upsert_execution_output(other_step, "out", "kept")
    await_true(lambda: not lives(connection, one.arena.arena_id))
    assert two.client.take_graph_execution(run) == 2
    two.client.upsert_execution_output(step, "out", "of the new owner")
    two.sync()
    assert outputs(connection, step) == ["before", "of the new owner"]
    os.kill(one.leader, signal.SIGCONT)
    one.client.flush()
    one.client.upsert_execution_output(step, "out", "later still")
    one.client.upsert_execution_output(other_step, "out", "kept too")
    one.client.flush()
    assert outputs(connection, step) == ["before", "of the new owner"]
    assert outputs(connection, other_step) == ["kept", "kept too"]
    (moved,) = connection.execute("SELECT status FROM node_executions WHERE id = %s", (step,))
    assert moved == ("RUNNING",)
    found = reasons(connection, one)
    assert len(found) >= 3
    assert {each for each in found if not each.startswith("NotOwner: graph execution " + run)} == set()
    assert two.arena.arena_id in found[0]
    assert "token 2" in found[0]
    assert one.client.take_graph_execution(other) == 1  # and is its own still
    two.client.upsert_execution_output(step, "out", "more")
    two.sync()
    assert outputs(connection, step)[-1] == "more"


def test_a_host_that_was_cut_off_stops_working_on_what_was_taken_when_it_is_back(
    make_host: Callable[..., Host], connection: Connection
) -> None:
    one, two = make_host("one", lease=0.6), make_host("two")
    run, step = begin(one)
    one.client.flush()
    one.gate.close()
    one.client.upsert_execution_output(step, "out", "unheard")
    await_true(lambda: not lives(connection, one.arena.arena_id))
    two.client.take_graph_execution(run)
    two.client.update_node_execution_status(step, S.COMPLETED)
    two.sync()
    one.gate.closed = False
    await_true(lambda: "error" in one.client.get_graph_execution(run).stats)
    one.client.flush()
    assert outputs(connection, step) == []
    # Its workers end what they had queued, without running it.
    queued, _ = one.client.upsert_execution_input(SINK, run, "right", 2, step)
    one.client.put_work(WorkKind.RUN, queued, run)
    work = one.client.take_work(0.0)
    assert work is not None
    Manager(one.client, lambda: False, 1).do(work)
    assert one.client.get_node_execution(queued).status is S.TERMINATED
    one.client.flush()
    (status,) = connection.execute("SELECT status FROM node_executions WHERE id = %s", (step,))
    assert status == ("COMPLETED",)


def test_a_transaction_under_way_is_waited_for_and_the_next_sees_that_something_was_taken(
    make_host: Callable[..., Host], connection: Connection, database_url: str
) -> None:
    one, two = make_host("one"), make_host("two")
    run, step = begin(one)
    one.sync()
    one.client.upsert_execution_output(step, "out", "in time")
    syncer = SyncManager(one.arena, database_url, one.settings)
    held, go = threading.Event(), threading.Event()
    write = syncer._read_ahead

    def pause(batch: Any) -> None:  # inside the transaction, while the server works
        held.set()
        assert go.wait(60)
        write(batch)

    syncer._read_ahead = pause  # type: ignore[method-assign]
    syncing = threading.Thread(target=syncer.run_once)
    syncing.start()
    assert held.wait(60)
    tokens: list[int] = []
    taking = threading.Thread(target=lambda: tokens.append(two.client.take_graph_execution(run)))
    taking.start()
    await_blocked(database_url)
    assert not tokens
    go.set()
    syncing.join()
    taking.join()
    assert tokens == [2]
    assert outputs(connection, step) == ["in time"]
    assert list(two.client.get_node_execution(step).outputs["out"]) == ["in time"]
    one.client.upsert_execution_output(step, "out", "too late")
    one.sync()
    assert outputs(connection, step) == ["in time"]


def test_who_takes_back_what_it_had_lost_writes_nothing_from_before(
    make_host: Callable[..., Host], connection: Connection
) -> None:
    one, two = make_host("one"), make_host("two")
    run, step = begin(one)
    one.sync()
    assert two.client.take_graph_execution(run) == 2
    two.client.upsert_execution_output(step, "out", "two")
    two.sync()
    one.client.upsert_execution_output(step, "out", "stale")
    taken = threading.Thread(target=lambda: one.client.take_graph_execution(run))
    taken.start()
    await_true(lambda: one.arena.write_ring.committed_sequence < one.arena.write_ring.last_sequence)
    one.sync()  # what is stale is carried, and refused, before it is taken
    taken.join()
    assert one.client.take_graph_execution(run) == 3
    assert list(one.client.get_node_execution(step).outputs["out"]) == ["two"]
    one.client.upsert_execution_output(step, "out", "one again")
    one.sync()
    assert outputs(connection, step) == ["two", "one again"]


def test_what_stands_on_the_ring_from_before_a_taking_is_refused_also_when_it_is_carried_later(
    make_host: Callable[..., Host], connection: Connection
) -> None:
    one, two = make_host("one"), make_host("two")
    run, step = begin(one)
    one.sync()
    two.client.take_graph_execution(run)
    one.client.upsert_execution_output(step, "out", "stale")
    ownership.take(connection, run, one.arena.arena_id, one.arena.write_ring.last_sequence)
    one.client.upsert_execution_output(step, "out", "new", ordinal=1)
    one.sync()
    assert outputs(connection, step) == ["new"]
    assert len(reasons(connection, one)) == 1


def test_work_from_before_is_ended_before_a_graph_execution_is_taken_again(make_host: Callable[..., Host]) -> None:
    one, two = make_host("one"), make_host("two")
    run, step = begin(one)
    one.client.put_work(WorkKind.RUN, step, run)
    one.sync()
    two.client.take_graph_execution(run)
    with pytest.raises(StillAtWork):
        one.client.take_graph_execution(run)
    work = one.client.take_work(0.0)
    assert work is not None
    one.client.end_work(work, run)
    finish = one.client.take_work(0.0)
    assert finish is not None
    one.client.end_work(finish, run)
    assert one.client.take_graph_execution(run) == 3


def test_a_graph_execution_that_nobody_owns_is_taken_by_one_of_many(
    make_host: Callable[..., Host], connection: Connection, database_url: str
) -> None:
    hosts = [make_host(str(number)) for number in range(3)]
    for host in hosts:
        ownership.renew_lease(connection, host.arena.arena_id, 60.0)
    direct = DirectClient(
        database_url, work_queue=WorkQueue(hosts[0].arena), settings=hosts[0].settings, on_wait=lambda: None
    )
    runs = [direct.create_graph_execution(GRAPH, new_id()).id for _ in range(20)]
    direct.close()
    won: list[tuple[str, int]] = []

    def take_all(host: Host) -> None:
        for run in runs:
            with contextlib.suppress(NotOwner):
                won.append((run, host.client.take_graph_execution(run)))

    threads = [threading.Thread(target=take_all, args=(host,)) for host in hosts]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(won) == sorted((run, 1) for run in runs)
    with pytest.raises(NotFound):
        hosts[0].client.take_graph_execution(new_id())


def test_a_dead_letter_of_what_was_taken_is_refused_again_when_it_is_replayed(
    make_host: Callable[..., Host], connection: Connection
) -> None:
    one, two = make_host("one"), make_host("two")
    run, step = begin(one)
    one.sync()
    two.client.take_graph_execution(run)
    one.client.upsert_execution_output(step, "out", "late")
    one.sync()
    (letter,) = [row[0] for row in connection.execute("SELECT id FROM dead_letters")]
    replayed = replay(connection, [letter])
    assert list(replayed.refused) == [letter]
    assert "token 2" in replayed.refused[letter]
    assert outputs(connection, step) == []


def test_who_takes_over_finds_whole_steps_wherever_the_old_owner_was_lost(
    make_host: Callable[..., Host], connection: Connection, database_url: str
) -> None:
    host = make_host("one")
    user = new_id()
    queries.create_account(connection, user, 1_000)
    run = host.client.create_graph_execution(GRAPH, user).id
    host.client.put_work(WorkKind.START, run, run)
    manager = Manager(host.client, lambda: False, 1)
    while (work := host.client.take_work(0.0)) is not None:
        manager.do(work)
    batches: list[list[str]] = []

    def look() -> None:
        executions = {each.node_id: each for each in queries.load_node_executions(connection, run)}
        source, sink = executions.get(SOURCE), executions.get(SINK)
        if source is not None and source.status is S.COMPLETED:
            assert list(source.outputs["value"]) == [7]
            assert sink is not None
            assert sorted(sink.inputs) == ["left", "right"]
            assert sink.status is not S.INCOMPLETE
        if sink is not None and sink.status is S.COMPLETED:
            assert sink.output_count == 1
        batches.append([each.status.value for each in executions.values()])

    syncer = SyncManager(host.arena, database_url, host.settings)
    syncer._limit.entries = syncer._limit._most_entries = 1
    syncer.on_batch = look
    syncer.run_once()
    assert len(batches) > 4
    assert batches[-1] == ["COMPLETED", "COMPLETED"]


def test_an_asynchronous_client_takes_too_and_its_watermark_is_what_it_wrote(
    make_host: Callable[..., Host], connection: Connection, database_url: str
) -> None:
    one, two = make_host("one"), make_host("two")
    run, step = begin(one)
    one.sync()

    async def take_and_write() -> str:
        client = CachedAsyncClient(two.client)
        try:
            assert client.watermark == ""
            assert await client.take_graph_execution(run) == 2
            await client.upsert_execution_output(step, "out", "of two")
            return client.watermark
        finally:
            await client.close()

    watermark = asyncio.run(take_and_write())
    two.sync()
    with Reader(database_url) as reader:
        reader.wait_for(watermark, 10.0)
    assert outputs(connection, step) == ["of two"]


@pytest.mark.parametrize("step_name", kill_points.steps_of(ownership))
def test_a_host_that_dies_while_it_takes_has_taken_nothing(
    make_host: Callable[..., Host], connection: Connection, step_name: str, database_url: str
) -> None:
    one, two = make_host("one"), make_host("two")
    run, step = begin(one)
    one.sync()
    pid = os.fork()
    if not pid:
        try:
            kill_points.arm(ownership, lambda at: os.kill(os.getpid(), signal.SIGKILL) if at == step_name else None)
            with CachedClient(two.arena, database_url, two.settings) as client:
                client.take_graph_execution(run)
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    one.client.upsert_execution_output(step, "out", "still mine")
    one.sync()
    assert outputs(connection, step) == ["still mine"]
    assert two.client.take_graph_execution(run) == 2


def test_a_leader_that_is_killed_is_followed_by_one_that_renews_the_lease(
    make_host: Callable[..., Host], connection: Connection, database_url: str
) -> None:
    connection.execute("INSERT INTO hosts VALUES (%s, now() - interval '25 hours')", (new_id(),))
    host = make_host("one", lease=1.0)
    os.kill(host.leader, signal.SIGKILL)
    await_true(lambda: not lives(connection, host.arena.arena_id))
    lease = HostLease(host.arena, database_url, host.settings)
    hosts = "SELECT count(*) FROM hosts"
    try:
        await_true(lambda: lives(connection, host.arena.arena_id))
        await_true(
            lambda: connection.execute(hosts).fetchone() == (1,)
        )  # who is lost is looked after in another thread
    finally:
        lease.stop()
    assert connection.execute(hosts).fetchone() == (1,)


def test_whoever_takes_at_whatever_moment_no_row_is_written_after_it_by_the_one_before(
    make_host: Callable[..., Host], connection: Connection, database_url: str
) -> None:
    rng = random.Random(7)
    hosts = [make_host("one"), make_host("two")]
    run, step = begin(hosts[0])
    hosts[0].sync()
    connection.execute(
        "CREATE TABLE written (owner uuid, value jsonb);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$ BEGIN"
        " INSERT INTO written SELECT arena_id, NEW.value FROM owners; RETURN NULL; END $$;"
        "CREATE TRIGGER note AFTER INSERT ON node_execution_outputs FOR EACH ROW EXECUTE FUNCTION note()"
    )
    place = 0
    for turn in range(25):
        old, new = hosts[turn % 2], hosts[1 - turn % 2]
        for _ in range(rng.randrange(1, 4)):
            old.client.upsert_execution_output(step, "out", old.arena.arena_id, ordinal=place)
            place += 1
        syncing = threading.Thread(target=old.sync)
        syncing.start()
        threading.Event().wait(rng.random() * 0.02)
        with connect(database_url, application_name="test taking") as taking:
            ownership.take(taking, run, new.arena.arena_id, new.arena.write_ring.last_sequence)
        syncing.join()
        old.arena.drop_family(bytes.fromhex(run.replace("-", "")))
        place = len(outputs(connection, step))
    rows = connection.execute("SELECT owner::text, value FROM written").fetchall()
    assert rows
    assert [owner for owner, value in rows if owner != value] == []
