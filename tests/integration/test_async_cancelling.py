"""A call cancelled at any point where it gives way was made as a whole or not at all, and nothing of it happens later.

Each call is made many times, on an arena that has nothing of what it needs, with the database behind a proxy that holds
everything up: the first time it is cancelled when it gives way first, the next time at the second, until it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from shmcache.arena import Arena
from shmcache.asynchronous.clients import CachedAsyncClient
from shmcache.asynchronous.execution_data_client import AsyncExecutionDataClient
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.errors import RingFull
from shmcache.execution_data_client import Work, WorkKind
from shmcache.identifiers import new_id
from shmcache.records import ExecutionStatus
from shmcache.writes import ChargeKind
from tests.integration.draining import drain
from tests.integration.faults import await_blocked, await_true
from tests.integration.looping import cancelled_at, make_async_client
from tests.integration.test_async_client import GRAPH, hold_the_lock
from tests.integration.test_clients import SINK, SOURCE, small_graph
from tools.chaos.proxy import Proxy

S = ExecutionStatus
InChild = Callable[[Callable[[Callable[[], bool]], None]], int]
_MOST_STEPS = 50


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, sync_interval=3600.0, execution_fee_every=3, execution_fee=5)


@pytest.fixture
def new_arena() -> Iterator[Callable[[], Arena]]:
    made: list[Arena] = []

    def make() -> Arena:
        made.append(Arena.create(f"cancelling-{os.getpid()}-{len(made)}", 8 << 20))
        return made[-1]

    yield make
    for arena in made:
        assert arena.check() == []
        assert not arena.lock_holders()
        arena.close()
        arena.unlink()


class Known(NamedTuple):
    """What is in the database before each call."""

    user: str
    run: str
    execution: str


@pytest.fixture
def known(database_url: str, settings: Settings, new_arena: Callable[[], Arena]) -> Known:
    graph, nodes = small_graph()
    user = new_id()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
        queries.create_account(connection, user, 1000)
    arena = new_arena()
    with CachedClient(arena, database_url, settings) as client:
        run = client.create_graph_execution(GRAPH, user).id
        execution, _ = client.upsert_execution_input(SINK, run, "left", 1)
        drain(arena, database_url)
    return Known(user, run, execution)


Call = Callable[[AsyncExecutionDataClient, Known], Coroutine[Any, Any, Any]]


async def _charge(client: AsyncExecutionDataClient, known: Known) -> Any:
    return await client.charge_usage(await client.get_node_execution(known.execution), 3)


def _several(client: AsyncExecutionDataClient, known: Known) -> Coroutine[Any, Any, Any]:
    def work() -> int:
        inside = client.inside
        inside.update_node_execution_status(known.execution, S.RUNNING)
        inside.upsert_execution_output(known.execution, {"sum": 1, "product": 2})
        inside.put_work(WorkKind.RUN, known.execution, known.run)
        return inside.spend_credits(known.user, 1, None, "several")

    return client.atomically(work)


READS: dict[str, Call] = {
    "graph": lambda client, known: client.get_graph(GRAPH),
    "node": lambda client, known: client.get_node(SINK),
    "graph execution": lambda client, known: client.get_graph_execution(known.run),
    "node execution": lambda client, known: client.get_node_execution(known.execution),
    "node executions": lambda client, known: client.get_node_executions(known.run, SINK),
    "latest": lambda client, known: client.get_latest_node_execution(SINK, known.run),
    "credits": lambda client, known: client.get_credits(known.user),
}
WRITES: dict[str, Call] = {
    "save graph": lambda client, known: client.save_graph(*small_graph()),
    "create": lambda client, known: client.create_graph_execution(GRAPH, known.user, urgent=True),
    "input": lambda client, known: client.upsert_execution_input(SOURCE, known.run, "value", 1),
    "output": lambda client, known: client.upsert_execution_output(known.execution, "sum", 1),
    "status": lambda client, known: client.update_node_execution_status(known.execution, S.RUNNING, {"right": 2}),
    "batch": lambda client, known: client.update_node_execution_status_batch([known.execution], S.QUEUED),
    "statistics": lambda client, known: client.update_graph_execution_stats(known.run, S.RUNNING, {"n": 1}),
    "count": lambda client, known: client.increment_execution_count(known.user, known.execution),
    "spend": lambda client, known: client.spend_credits(known.user, 1, None, "spend"),
    "charge": _charge,
    "several": _several,
}


def reached(arena: Arena) -> tuple[int, ...]:
    """Return what grows with each write: both rings, the work queue.

    An account that comes into the arena asks to be kept up to date by an entry of its own: that is no write."""
    charges = [each for each in arena.charge_ring.read(0, 1000, 1 << 20) if each.kind != ChargeKind.REFRESH]
    return arena.write_ring.last_sequence, len(charges), arena.outstanding()


@pytest.mark.parametrize("name", [*READS, *WRITES])
def test_cancelled_while_it_loads(
    name: str, known: Known, database_url: str, settings: Settings, new_arena: Callable[[], Arena]
) -> None:
    call = {**READS, **WRITES}[name]

    async def attempt(step: int, proxy: Proxy) -> bool:
        """Cancel the call at a step; return whether it came that far."""
        arena = new_arena()
        client = make_async_client("cached", arena, proxy.url, settings)
        before = reached(arena)
        try:
            await cancelled_at(step, lambda: call(client, known))
            return False
        except asyncio.CancelledError:
            at_once = reached(arena)
            await asyncio.to_thread(client.stop)  # its threads have come to their ends
            assert reached(arena) == at_once == before
            assert not arena.lock_holders()
            # And it can be made again, by the same client.
            first = await call(client, known)
            assert (first is None) is (name == "save graph")
            return True
        finally:
            await client.close()

    with Proxy(database_url) as proxy:
        proxy.delay_seconds = 0.01
        steps = next(step for step in range(_MOST_STEPS) if not asyncio.run(attempt(step, proxy)))
    assert steps >= 1, "it never gave way"


@pytest.mark.parametrize("name", ["output", "charge", "several"])
def test_cancelled_at_any_time_it_is_made_whole_or_not_at_all(
    name: str, known: Known, database_url: str, settings: Settings, new_arena: Callable[[], Arena]
) -> None:
    ends = set()

    async def attempt(seconds: float, proxy: Proxy) -> None:
        arena = new_arena()
        client = make_async_client("cached", arena, proxy.url, settings)
        before = reached(arena)
        try:
            async with asyncio.timeout(seconds):
                await WRITES[name](client, known)
        except TimeoutError:
            at_once = reached(arena)
            await asyncio.to_thread(client.stop)
            assert reached(arena) == at_once
        await client.close()
        ends.add(tuple(after - was for was, after in zip(before, reached(arena), strict=True)))

    with Proxy(database_url) as proxy:
        proxy.delay_seconds = 0.002
        began = time.monotonic()
        asyncio.run(attempt(60.0, proxy))
        whole = time.monotonic() - began
        for part in range(20):
            asyncio.run(attempt(whole * part / 18, proxy))
    assert len(ends) == 2, "all of it, or nothing"
    assert (0, 0, 0) in ends


@pytest.mark.parametrize("name", ["output", "several", "spend"])
def test_cancelled_while_another_process_holds_the_lock(
    name: str, known: Known, database_url: str, settings: Settings, new_arena: Callable[[], Arena], in_child: InChild
) -> None:
    arena = new_arena()
    client = make_async_client("cached", arena, database_url, settings)

    async def warm_up() -> None:
        await client.get_node_execution(known.execution)
        await client.get_credits(known.user)

    asyncio.run(warm_up())
    before = reached(arena)
    holder = psutil.Process(in_child(hold_the_lock(arena)))
    await_true(lambda: arena.lock_holders() == {holder.pid})

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await WRITES[name](client, known)
        assert reached(arena) == before
        holder.terminate()
        await asyncio.to_thread(client.stop)
        assert reached(arena) == before
        await WRITES[name](client, known)
        assert reached(arena) != before

    asyncio.run(main())
    client.stop()


def test_cancelled_while_it_waits_for_room(
    known: Known, database_url: str, settings: Settings, new_arena: Callable[[], Arena]
) -> None:
    arena = new_arena()
    client = make_async_client("cached", arena, database_url, settings)

    async def main() -> None:
        arena.ring_wait_seconds = 0.01
        with contextlib.suppress(RingFull):
            while True:
                await client.update_graph_execution_stats(known.run, None, {"text": "x" * 20_000})
        arena.ring_wait_seconds = 600.0
        before = reached(arena)
        waiting = [
            asyncio.create_task(client.update_graph_execution_stats(known.run, S.RUNNING, {"text": "y" * 20_000}))
            for _ in range(5)
        ]
        await asyncio.sleep(0.1)
        for each in waiting:
            each.cancel()
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * 5
        drain(arena, database_url)
        await asyncio.to_thread(client.stop)
        assert reached(arena) == before
        assert (await client.get_graph_execution(known.run)).status is S.QUEUED

    asyncio.run(main())


def test_cancelled_while_it_waits_until_it_is_durable_it_is_written_and_nothing_is_left_waiting(
    known: Known, database_url: str, settings: Settings, new_arena: Callable[[], Arena]
) -> None:
    arena = new_arena()
    client = make_async_client("cached", arena, database_url, settings)

    async def main() -> None:
        await client.get_credits(known.user)
        for wait in (
            lambda: client.upsert_execution_output(known.execution, "sum", 1, durable=True),
            lambda: client.spend_credits(known.user, 1, durable=True),
            client.flush,
            lambda: client.wait_durable(client.last_sequence),
        ):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await wait()
        assert (await client.get_node_execution(known.execution)).outputs == {"sum": [1]}
        assert await client.get_credits(known.user) == 999
        await client.close()
        assert [each.name for each in threading.enumerate() if "shmcache" in each.name] == []

    asyncio.run(main())


def test_a_task_cancelled_while_it_waits_for_work_takes_none_with_it(
    known: Known, database_url: str, settings: Settings, new_arena: Callable[[], Arena]
) -> None:
    arena = new_arena()
    client = make_async_client("cached", arena, database_url, settings)
    chance = random.Random(7)

    async def main() -> None:
        taken: list[Work] = []

        async def take() -> None:
            work = await client.take_work(600.0)
            assert work is not None
            taken.append(work)

        for _ in range(100):
            takers = [asyncio.create_task(take()) for _ in range(4)]
            await asyncio.sleep(0)
            run = (await client.create_graph_execution(GRAPH, known.user)).id
            await client.put_work(WorkKind.RUN, run, run)
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0.0005)
            for each in takers:
                each.cancel()
            await asyncio.gather(*takers, return_exceptions=True)
            left = await client.take_work(0.0)
            if left is not None:
                taken.append(left)
            assert taken.pop().id == run  # by one of them, or by nobody
            assert not taken
            await client.end_work(Work(WorkKind.RUN, run, 1), run)
            finish = await client.take_work(0.0)
            assert finish == Work(WorkKind.FINISH, run, 1)
            await client.end_work(finish, run)
        assert arena.outstanding() == 0

    asyncio.run(main())
    client.stop()


def test_a_load_that_nobody_wants_any_more_ends_and_keeps_nobody_from_loading(
    known: Known, database_url: str, settings: Settings, new_arena: Callable[[], Arena]
) -> None:
    arena = new_arena()
    client = make_async_client("cached", arena, database_url, settings)
    assert isinstance(client, CachedAsyncClient)

    async def main() -> None:
        with connect(database_url, application_name="test lock") as locking:
            locking.execute("BEGIN")
            locking.execute("LOCK TABLE nodes, graphs IN ACCESS EXCLUSIVE MODE")
            task = asyncio.create_task(client.get_node(SINK))
            await asyncio.to_thread(await_blocked, database_url)
            task.cancel()
            began = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await task
            # The table is still locked: the thread has let go of the load's lock without having had an answer.
            await asyncio.to_thread(client._errands.stop)
            assert time.monotonic() - began < 30.0
            assert not arena.lock_holders()
        assert (await client.get_node(SINK)).id == SINK

    asyncio.run(main())
    client.stop()


@pytest.mark.parametrize("name", ["create", "input", "output", "spend", "several"])
def test_in_direct_mode_too_a_cancelled_call_is_over_when_the_cancelling_is(
    name: str, known: Known, database_url: str, settings: Settings, new_arena: Callable[[], Arena]
) -> None:
    arena = new_arena()

    async def attempt(step: int, proxy: Proxy) -> bool:
        client = make_async_client("direct", arena, proxy.url, settings)
        with connect(database_url, application_name="test") as looking:

            def rows() -> Any:
                return [
                    looking.execute(f"SELECT count(*) FROM {table}").fetchone()
                    for table in ("graph_executions", "node_executions", "node_execution_outputs", "ledger")
                ]

            try:
                await cancelled_at(step, lambda: WRITES[name](client, known))
                return False
            except asyncio.CancelledError:
                at_once = rows()
                await client.close()
                assert rows() == at_once
                return True
            finally:
                await client.close()

    with Proxy(database_url) as proxy:
        proxy.delay_seconds = 0.01
        steps = next(step for step in range(_MOST_STEPS) if not asyncio.run(attempt(step, proxy)))
    assert steps >= 1
