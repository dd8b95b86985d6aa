"""The asynchronous clients: what is there is answered in one step, what is not never makes the loop wait."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from shmcache.arena import Arena, Transaction
from shmcache.arena.transaction import Outcome
from shmcache.asynchronous.clients import CachedAsyncClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.errors import FlushTimeout, InvalidValue, NotFound, RingFull, TransactionMisused
from shmcache.execution_data_client import Work, WorkKind
from shmcache.identifiers import id_bytes, new_id
from shmcache.records import ExecutionStatus
from tests.integration.draining import drain
from tests.integration.faults import await_blocked, await_true
from tests.integration.looping import in_one_step, make_async_client
from tests.integration.test_clients import SINK, SOURCE, small_graph

S = ExecutionStatus
GRAPH = small_graph()[0].id
InChild = Callable[[Callable[[Callable[[], bool]], None]], int]


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"async-{os.getpid()}", 32 << 20)
    yield made
    assert made.check() == []
    assert not made.lock_holders()
    made.close()
    made.unlink()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An interval that no test waits for: what is drained was asked for."""
    return load_settings(state_dir=tmp_path, sync_interval=3600.0, execution_fee_every=3, execution_fee=5)


@pytest.fixture
def user(database_url: str) -> str:
    graph, nodes = small_graph()
    identifier = new_id()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
        queries.create_account(connection, identifier, 1000)
    return identifier


@pytest.fixture
def client(arena: Arena, database_url: str, settings: Settings, user: str) -> Iterator[CachedAsyncClient]:
    made = make_async_client("cached", arena, database_url, settings)
    assert isinstance(made, CachedAsyncClient)
    yield made
    made.stop()


def balance(connection: psycopg.Connection[Any], user: str) -> int:
    account = queries.load_account(connection, user)
    assert account is not None
    return account.balance


def errand_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("shmcache errand")]


async def while_it_waits(call: Coroutine[Any, Any, Any], release: Callable[[], object]) -> Any:
    """Make a call that has to wait, see the loop go on meanwhile, then let it have what it waits for."""
    task = asyncio.create_task(call)
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert not task.done(), "it did not have to wait"
    await asyncio.to_thread(release)
    return await asyncio.wait_for(task, 60)


# Both


@pytest.mark.parametrize("mode", ["cached", "direct"])
def test_a_run_by_coroutines_leaves_the_rows_of_one_by_calls(
    mode: str, arena: Arena, database_url: str, settings: Settings, user: str
) -> None:
    async def main() -> None:
        async with make_async_client(mode, arena, database_url, settings) as client:
            graph, nodes = small_graph()
            await client.save_graph(graph, nodes)
            assert (await client.get_graph(GRAPH)).name == "small"
            assert (await client.get_node(SINK)).name == "sink"
            run = await client.create_graph_execution(GRAPH, user)
            first, inputs = await client.upsert_execution_input(SINK, run.id, "left", 1)
            assert (dict(inputs), (await client.get_latest_node_execution(SINK, run.id)).id) == ({"left": 1}, first)  # type: ignore[union-attr]
            await client.put_work(WorkKind.RUN, first, run.id)
            work = await client.take_work(30.0)
            assert work == Work(WorkKind.RUN, first, 1)
            count = await client.increment_execution_count(user, first)
            execution = await client.update_node_execution_status(first, S.RUNNING)
            cost, left = await client.charge_usage(execution, count)
            assert await client.get_credits(user) == left == 1000 - cost
            assert await client.spend_credits(user, 7, {"for": "tea"}, "tea") == left - 7
            with pytest.raises(NotFound):
                await client.get_node(new_id())
            with pytest.raises(InvalidValue):
                await client.get_node("no identifier")
            await client.upsert_execution_output(first, {"sum": 1, "twice": 2})

            def finish() -> int:
                inside = client.inside
                inside.upsert_execution_output(first, "sum", 3)
                inside.update_node_execution_status(first, S.COMPLETED)
                inside.end_work(Work(WorkKind.RUN, first, 1), run.id)
                return inside.get_node_execution(first).output_count

            assert await client.atomically(finish) == 3
            assert (await client.get_node_executions(run.id, statuses=[S.COMPLETED]))[0].outputs == {
                "sum": [1, 3],
                "twice": [2],
            }
            assert await client.take_work(30.0) == Work(WorkKind.FINISH, run.id, 1)
            await client.end_work(Work(WorkKind.FINISH, run.id, 1), run.id)
            assert await client.take_work(0.0) is None
            await client.update_graph_execution_stats(run.id, S.RUNNING)
            await client.update_graph_execution_stats(run.id, S.COMPLETED, {"nodes": 1})
            if mode == "cached":
                await asyncio.to_thread(drain, arena, database_url)
            await client.flush(60.0)
            await client.wait_durable(client.last_sequence, 60.0)
            with connect(database_url, application_name="test") as connection:
                stored = queries.load_node_execution(connection, first)
                assert stored is not None
                assert stored.outputs == {"sum": [1, 3], "twice": [2]}
                found = queries.load_graph_execution(connection, run.id)
                assert found is not None
                assert (found.status, found.stats) == (S.COMPLETED, {"nodes": 1})
                assert balance(connection, user) == left - 7

    asyncio.run(main())
    assert errand_threads() == []


@pytest.mark.parametrize("mode", ["cached", "direct"])
def test_a_transaction_with_a_coroutine_in_it_is_refused_and_writes_nothing(
    mode: str, arena: Arena, database_url: str, settings: Settings, user: str
) -> None:
    async def main() -> None:
        async with make_async_client(mode, arena, database_url, settings) as client:
            run = await client.create_graph_execution(GRAPH, user)
            first, _ = await client.upsert_execution_input(SINK, run.id, "left", 1)

            async def awaits() -> None:
                await client.upsert_execution_output(first, "sum", 1)

            def returns_a_coroutine() -> Any:
                client.inside.upsert_execution_output(first, "sum", 1)
                return awaits()

            def calls_the_client() -> None:
                client.inside.upsert_execution_output(first, "sum", 1)
                client.update_node_execution_status(first, S.RUNNING)  # type: ignore[unused-coroutine]

            for work, problem in (
                (awaits, "must not be a coroutine"),
                (returns_a_coroutine, "must not be a coroutine"),
                (calls_the_client, "nothing can be awaited"),
            ):
                with pytest.raises(TransactionMisused, match=problem):
                    await client.atomically(work)
            with pytest.raises(TransactionMisused, match="elsewhere await"):
                client.inside.get_node(SINK)
            execution = await client.get_node_execution(first)
            assert (execution.outputs, execution.status) == ({}, S.INCOMPLETE)

    asyncio.run(main())


# A hit


def test_what_the_arena_has_is_answered_in_one_step_of_the_task(client: CachedAsyncClient, user: str) -> None:
    async def warm_up() -> tuple[str, str]:
        await client.get_node(SINK)
        await client.get_credits(user)
        run = await client.create_graph_execution(GRAPH, user)
        return run.id, (await client.upsert_execution_input(SINK, run.id, "left", 1))[0]

    run, first = asyncio.run(warm_up())
    client._errands.stop()
    step = in_one_step
    assert step(client.get_graph(GRAPH)).id == GRAPH
    assert step(client.get_node(SOURCE)).id == SOURCE
    assert step(client.get_graph_execution(run)).id == run
    assert [each.id for each in step(client.get_node_executions(run))] == [first]
    execution = step(client.get_node_execution(first))
    second, _ = step(client.upsert_execution_input(SINK, run, "left", 2))
    assert step(client.get_latest_node_execution(SINK, run)).id == second  # type: ignore[union-attr]
    step(client.put_work(WorkKind.RUN, first, run))
    work = step(client.take_work(1000.0))
    assert work is not None
    assert step(client.charge_usage(execution, step(client.increment_execution_count(user))))[1] == step(
        client.get_credits(user)
    )
    step(client.spend_credits(user, 1))
    step(client.update_node_execution_status(first, S.RUNNING))
    step(client.upsert_execution_output(first, "sum", 1))
    step(client.atomically(lambda: client.inside.update_node_execution_status(first, S.COMPLETED)))
    step(client.end_work(work, run))
    step(client.update_node_execution_status_batch([second], S.QUEUED))
    step(client.update_graph_execution_stats(run, S.RUNNING, {"n": 1}))
    step(client.create_graph_execution(GRAPH, user, urgent=True))
    assert errand_threads() == []


def test_both_clients_of_a_process_see_each_other_at_once_and_share_their_receipts(
    client: CachedAsyncClient, user: str
) -> None:
    async def main() -> None:
        run = await client.create_graph_execution(GRAPH, user)
        assert client._shared.get_graph_execution(run.id) is await client.get_graph_execution(run.id)
        assert client.last_sequence == client._shared.last_sequence > 0
        times = [run.created_at]
        for _ in range(50):
            times += [
                client._shared.create_graph_execution(GRAPH, user).created_at,
                (await client.create_graph_execution(GRAPH, user)).created_at,
            ]
        assert times == sorted(set(times))

    asyncio.run(main())


# What has to wait


def test_a_miss_waits_for_the_database_and_the_loop_does_not(client: CachedAsyncClient, database_url: str) -> None:
    with connect(database_url, application_name="test lock") as locking:
        locking.execute("BEGIN")
        locking.execute("LOCK TABLE nodes, graphs IN ACCESS EXCLUSIVE MODE")

        def release() -> None:
            await_blocked(database_url)
            locking.rollback()

        assert asyncio.run(while_it_waits(client.get_node(SINK), release)).id == SINK
    assert in_one_step(client.get_node(SINK)).id == SINK


def test_a_transaction_that_misses_is_made_in_a_thread_from_its_beginning(
    client: CachedAsyncClient, arena: Arena, database_url: str, user: str
) -> None:
    async def main() -> None:
        run = await client.create_graph_execution(GRAPH, user)
        first, _ = await client.upsert_execution_input(SINK, run.id, "left", 1)
        drain(arena, database_url)
        assert arena.drop_family(id_bytes(run.id))
        threads: list[int] = []

        def work() -> str:
            threads.append(threading.get_ident())
            client.inside.upsert_execution_output(first, "sum", len(threads))
            return client.inside.get_node_execution(first).status.value

        assert await client.atomically(work) == "INCOMPLETE"
        assert len(threads) == 2
        assert threads[0] == threading.get_ident() != threads[1]
        assert (await client.get_node_execution(first)).outputs == {"sum": [2]}
        assert client.last_sequence == arena.write_ring.last_sequence  # the loop's receipt, though a thread wrote it

    asyncio.run(main())


def hold_the_lock(arena: Arena) -> Callable[[Callable[[], bool]], None]:
    def body(stop: Callable[[], bool]) -> None:
        with arena._critical:
            while not stop():
                time.sleep(0.01)

    return body


def test_who_waits_for_a_lock_leaves_the_loop_alone(
    client: CachedAsyncClient, arena: Arena, user: str, in_child: InChild
) -> None:
    run = in_one_step(client.atomically(lambda: None)) or asyncio.run(client.create_graph_execution(GRAPH, user)).id
    in_one_step(client.put_work(WorkKind.START, run, run))
    holder = psutil.Process(in_child(hold_the_lock(arena)))
    await_true(lambda: arena.lock_holders() == {holder.pid})

    async def main() -> None:
        work, _ = await asyncio.gather(
            while_it_waits(client.take_work(60.0), holder.terminate),
            client.update_graph_execution_stats(run, S.RUNNING),
        )
        assert work == Work(WorkKind.START, run, 1)
        assert (await client.get_graph_execution(run)).status is S.RUNNING

    asyncio.run(main())


def test_a_write_whose_record_cannot_be_kept_decoded_for_a_lock_is_made_once(
    client: CachedAsyncClient, arena: Arena, user: str, monkeypatch: pytest.MonkeyPatch, in_child: InChild
) -> None:
    run = asyncio.run(client.create_graph_execution(GRAPH, user)).id
    holder = None
    commit = arena.commit

    def commit_and_lose_the_lock(wanted: Transaction) -> Outcome:
        nonlocal holder
        outcome = commit(wanted)
        holder = psutil.Process(in_child(hold_the_lock(arena)))
        await_true(lambda: arena.lock_holders() == {holder.pid})
        arena.own_lane.lowest = 1 << 63  # as if nothing had been kept decoded yet: keeping takes the lock
        return outcome

    monkeypatch.setattr(arena, "commit", commit_and_lose_the_lock)
    before = arena.write_ring.last_sequence
    in_one_step(client.update_graph_execution_stats(run, S.RUNNING))
    assert arena.write_ring.last_sequence == before + 1
    assert holder is not None
    holder.terminate()
    await_true(lambda: not arena.lock_holders())
    assert in_one_step(client.get_graph_execution(run)).status is S.RUNNING


@pytest.fixture
def full(client: CachedAsyncClient, arena: Arena, user: str) -> str:
    """A graph execution whose entries have filled the write ring."""
    arena.ring_wait_seconds = 0.05
    run = asyncio.run(client.create_graph_execution(GRAPH, user)).id
    with contextlib.suppress(RingFull):
        while True:
            asyncio.run(client.update_graph_execution_stats(run, None, {"text": "x" * 20_000}))
    return run


def test_who_waits_for_room_leaves_the_loop_alone(
    client: CachedAsyncClient, arena: Arena, database_url: str, full: str
) -> None:
    arena.ring_wait_seconds = 60.0
    write = client.update_graph_execution_stats(full, S.RUNNING, {"text": "y" * 20_000})
    asyncio.run(while_it_waits(write, lambda: drain(arena, database_url)))
    assert in_one_step(client.get_graph_execution(full)).status is S.RUNNING


def test_many_that_wait_until_they_are_durable_need_no_thread_each(
    client: CachedAsyncClient, user: str, database_url: str, start_syncer: Callable[[str], psutil.Process]
) -> None:
    async def main() -> None:
        run = (await client.create_graph_execution(GRAPH, user)).id
        before = threading.active_count()
        writes = [
            asyncio.create_task(client.upsert_execution_input(SOURCE, run, "value", n, durable=True)) for n in range(50)
        ]
        writes.append(asyncio.create_task(client.create_graph_execution(GRAPH, user, durable=True)))  # type: ignore[arg-type]
        spent = asyncio.create_task(client.spend_credits(user, 1, durable=True))
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert threading.active_count() <= before + 2
        assert not any(each.done() for each in writes)
        with pytest.raises(FlushTimeout):
            await client.flush(0.01)
        with pytest.raises(FlushTimeout):
            await client.wait_durable(client.last_sequence, 0.01)
        with pytest.raises(InvalidValue, match="the newest is"):
            await client.wait_durable(client.last_sequence + 10_000)
        start_syncer(database_url)
        await asyncio.gather(*writes)
        await client.wait_durable(client.last_sequence, 60.0)
        with connect(database_url, application_name="test") as connection:
            assert len(queries.load_node_executions(connection, run)) == 50
        assert not spent.done()  # nobody settles charges here
        spent.cancel()

    asyncio.run(main())


def test_settled_means_settled(client: CachedAsyncClient, arena: Arena, user: str, database_url: str) -> None:
    async def main() -> None:
        run = await client.create_graph_execution(GRAPH, user)
        first, _ = await client.upsert_execution_input(SOURCE, run.id, None)
        execution = await client.get_node_execution(first)
        await client.get_credits(user)
        for again in range(2):  # the second charges nothing, and answers as soon as the first is settled
            charged = client.charge_usage(execution, 3, async_mode=False)
            cost, left = await (charged if again else while_it_waits(charged, lambda: drain(arena, database_url)))
        with connect(database_url, application_name="test") as connection:
            assert balance(connection, user) == left == 1000 - cost

    asyncio.run(main())
