"""The asynchronous client among others: work from other processes, several loops, threads and forks."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmcache import get_db_async_client, session
from shmcache.arena import Arena
from shmcache.asynchronous.clients import CachedAsyncClient
from shmcache.asynchronous.execution_data_client import AsyncExecutionDataClient
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.errors import ClientClosed
from shmcache.execution_data_client import WorkKind
from shmcache.identifiers import new_id
from tests.integration.looping import make_async_client
from tests.integration.test_clients import SINK, small_graph

GRAPH = small_graph()[0].id
InChild = Callable[[Callable[[Callable[[], bool]], None]], int]


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"loops-{os.getpid()}", 32 << 20)
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


# Work


def test_work_put_by_another_process_wakes_a_task_and_each_entry_goes_to_one(
    client: CachedAsyncClient, arena: Arena, database_url: str, settings: Settings, user: str, in_child: InChild
) -> None:
    runs = [asyncio.run(client.create_graph_execution(GRAPH, user)).id for _ in range(40)]
    everything = {(kind, run) for run in runs for kind in (WorkKind.RUN, WorkKind.FINISH)}
    taken: list[tuple[WorkKind, str]] = []

    async def take() -> None:
        while len(taken) < len(everything):
            work = await client.take_work(0.2)
            if work is not None:
                taken.append((work.kind, work.id))
                await client.end_work(work, work.id)

    async def main() -> None:
        await asyncio.gather(*(take() for _ in range(5)))

    def put(stop: Callable[[], bool]) -> None:
        putting = CachedClient(arena, database_url, settings)
        for run in runs:
            putting.put_work(WorkKind.RUN, run, run)
            time.sleep(0.001)
        while not stop():
            time.sleep(0.01)

    loops = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(3)]
    for each in loops:
        each.start()
    in_child(put)
    for each in loops:
        each.join(60)
    assert sorted(taken) == sorted(everything)


def test_no_work_within_the_time_is_none(client: CachedAsyncClient) -> None:
    assert asyncio.run(client.take_work(0.01)) is None


def test_closing_tells_who_waits_and_leaves_no_thread(client: CachedAsyncClient, user: str) -> None:
    async def main() -> None:
        waiting = [asyncio.create_task(each) for each in (client.take_work(60.0), client.take_work(60.0))]
        await asyncio.sleep(0.05)
        await client.close()
        assert [type(each) for each in await asyncio.gather(*waiting, return_exceptions=True)] == [ClientClosed] * 2
        assert [each.name for each in threading.enumerate() if "shmcache" in each.name] == []
        assert (await client.get_node(SINK)).id == SINK  # who needs it again, has it again

    asyncio.run(main())


# Processes, threads, loops


@pytest.fixture
def prepared(arena: Arena, database_url: str, settings: Settings, user: str) -> Iterator[str]:
    environment = {name: os.environ.get(f"SHMCACHE_{name}") for name in ("ARENA", "DATABASE_URL", "MODE")}
    session.prepare(arena, database_url, settings)
    yield user
    session.forget()
    for name, value in environment.items():
        if value is None:
            os.environ.pop(f"SHMCACHE_{name}", None)


async def give(run: str, value: Any) -> int:
    client = get_db_async_client()
    await client.upsert_execution_input(SINK, run, "left", value)
    return len(await client.get_node_executions(run))


def test_a_process_forked_from_under_running_loops_has_loops_of_its_own(prepared: str, arena: Arena) -> None:
    client = get_db_async_client()
    assert client is get_db_async_client()
    run = asyncio.run(client.create_graph_execution(GRAPH, prepared)).id
    asyncio.run(client.get_node(SINK))
    stop = threading.Event()

    async def busy() -> None:
        waiting = asyncio.create_task(client.take_work(600.0))
        while not stop.is_set():
            await client.get_node_executions(run)
            await asyncio.sleep(0)
        waiting.cancel()

    loops = [threading.Thread(target=lambda: asyncio.run(busy())) for _ in range(2)]
    for each in loops:
        each.start()
    context = multiprocessing.get_context("fork")
    ends = context.SimpleQueue()
    children = [context.Process(target=lambda n=n: ends.put(asyncio.run(give(run, n)))) for n in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    stop.set()
    for each in loops:
        each.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(asyncio.run(client.get_node_executions(run))) == 3
    asyncio.run(client.close())


def test_a_worker_in_direct_mode_gets_the_direct_client(
    prepared: str, arena: Arena, database_url: str, settings: Settings
) -> None:
    session.forget()
    session.prepare(arena, database_url, settings.model_copy(update={"mode": "direct"}))

    async def main() -> AsyncExecutionDataClient:
        async with get_db_async_client() as client:
            runs = await asyncio.gather(*(client.create_graph_execution(GRAPH, prepared) for _ in range(8)))
            assert len({run.id for run in runs}) == 8
            return client

    assert type(asyncio.run(main())).__name__ == "DirectAsyncClient"
    with connect(database_url, application_name="test") as connection:
        row = connection.execute("SELECT count(*) FROM graph_executions").fetchone()
        assert row == (8,)


def test_many_tasks_of_many_loops_lose_no_write(client: CachedAsyncClient, arena: Arena, user: str) -> None:
    run = asyncio.run(client.create_graph_execution(GRAPH, user)).id
    first = asyncio.run(client.upsert_execution_input(SINK, run, "left", 1))[0]
    asyncio.run(client.get_credits(user))

    async def main(loop: int) -> None:
        await asyncio.gather(
            *(client.upsert_execution_output(first, f"pin {loop}", n) for n in range(20)),
            *(client.spend_credits(user, 1) for _ in range(20)),
        )

    loops = [threading.Thread(target=lambda n=n: asyncio.run(main(n))) for n in range(4)]
    for each in loops:
        each.start()
    for each in loops:
        each.join(60)
    found = asyncio.run(client.get_node_execution(first))
    assert {name: sorted(values) for name, values in found.outputs.items()} == {
        f"pin {n}": list(range(20)) for n in range(4)
    }
    assert asyncio.run(client.get_credits(user)) == 1000 - 80
