"""Event loops in threads in forked processes, whose tasks are cancelled at random while the database is delayed and its
connections are cut: what was answered is there once, what was cancelled is there once or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmcache import get_db_async_client, get_db_client, session
from shmcache.arena import Arena
from shmcache.config import load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.errors import DatabaseUnavailable
from shmcache.execution_data_client import WorkKind
from shmcache.identifiers import id_bytes, id_text, new_id
from tests.integration.draining import drain
from tests.integration.test_clients import SINK, small_graph
from tools.chaos.proxy import Proxy

PROCESSES, LOOPS, TASKS, CALLS = 2, 2, 6, 25
OPENING = 1_000_000
GRAPH = small_graph()[0].id

Journal = dict[str, list[str]]


@pytest.fixture
def user(database_url: str) -> str:
    graph, nodes = small_graph()
    identifier = new_id()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
        queries.create_account(connection, identifier, OPENING)
    return identifier


@pytest.fixture
def arena(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arena]:
    for name in ("ARENA", "DATABASE_URL", "MODE"):
        monkeypatch.setenv(f"SHMCACHE_{name}", "")
        monkeypatch.delenv(f"SHMCACHE_{name}")
    made = Arena.create(f"async-campaign-{os.getpid()}", 32 << 20)
    yield made
    session.forget()
    made.release_dead()
    assert made.check() == []
    assert not made.lock_holders()
    made.close()
    made.unlink()


class Worker:
    """One process: loops in threads, each with tasks that write, spend and take work, and are cancelled at random."""

    def __init__(self, seed: int, user: str, executions: list[tuple[str, str]]) -> None:
        self.chance = random.Random(seed)
        self.user = user
        self.executions = executions
        self.journal: Journal = {"tried": [], "answered": [], "taken": [], "put": []}

    def run(self) -> Journal:
        loops = [threading.Thread(target=lambda: asyncio.run(self.loop())) for _ in range(LOOPS)]
        for each in loops:
            each.start()
        for each in loops:
            each.join()
        asyncio.run(get_db_async_client().close())
        return self.journal

    async def loop(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(TASKS):
                group.create_task(self.task())

    async def task(self) -> None:
        client = get_db_async_client()
        for _ in range(CALLS):
            name, (run, execution) = new_id(), self.chance.choice(self.executions)
            what = self.chance.randrange(4)
            if what == 0:
                await self.write(name, client.upsert_execution_output(execution, "names", name))
            elif what == 1:
                await self.write(name, client.spend_credits(self.user, 1, None, name))
            elif what == 2:

                def several(name: str = name, execution: str = execution) -> None:
                    client.inside.upsert_execution_output(execution, "names", name)
                    client.inside.spend_credits(self.user, 1, None, name)

                await self.write(name, client.atomically(several))
            else:
                await self.work(run)

    async def write(self, name: str, call: Coroutine[Any, Any, Any]) -> None:
        self.journal["tried"].append(name)
        with contextlib.suppress(TimeoutError, DatabaseUnavailable):
            async with asyncio.timeout(self.chance.choice([0.0, 0.0005, 0.005, 0.05, 60.0])):
                await call
                self.journal["answered"].append(name)

    async def work(self, run: str) -> None:
        client = get_db_async_client()
        entry = new_id()
        await client.put_work(WorkKind.RUN, entry, run)
        self.journal["put"].append(entry)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.chance.choice([0.0, 0.0005, 0.02])):
                taken = await client.take_work(0.01)
                if taken is not None:
                    self.journal["taken"].append(taken.id)


@pytest.mark.parametrize("seed", [1, 2])
def test_what_was_answered_is_there_once_and_what_was_cancelled_at_most_once(
    seed: int, arena: Arena, database_url: str, user: str, tmp_path: Path
) -> None:
    with Proxy(database_url) as proxy:
        session.prepare(arena, proxy.url, load_settings(state_dir=tmp_path, sync_interval=3600.0))
        client = get_db_client()
        runs = [client.create_graph_execution(GRAPH, user).id for _ in range(3)]
        executions = [(run, client.upsert_execution_input(SINK, run, "left", 1)[0]) for run in runs]
        drain(arena, database_url)
        proxy.delay_seconds = 0.002
        context = multiprocessing.get_context("fork")
        journals = context.SimpleQueue()
        children = [
            context.Process(target=lambda n=n: journals.put(Worker(seed * 10 + n, user, executions).run()))
            for n in range(PROCESSES)
        ]
        for child in children:
            child.start()
        chance = random.Random(seed)
        while any(child.is_alive() for child in children) and journals.empty():
            drain(arena, database_url)
            arena.drop_family(id_bytes(chance.choice(runs)))  # so that the next who needs it has to load it
            if not chance.randrange(10):
                proxy.cut()
            threading.Event().wait(0.02)
        written = [journals.get() for _ in children]
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0] * PROCESSES
    drain(arena, database_url)
    journal = {kind: [name for each in written for name in each[kind]] for kind in written[0]}
    with connect(database_url, application_name="test") as connection:
        found = [queries.load_node_execution(connection, execution) for _, execution in executions]
        outputs = [name for each in found if each is not None for name in each.outputs.get("names", ())]
        charged = [row[0] for row in connection.execute("SELECT transaction_key FROM ledger").fetchall()]
        account = queries.load_account(connection, user)
    there = Counter(outputs) + Counter(charged)
    assert max(Counter(outputs).values()) == max(Counter(charged).values()) == 1
    assert set(journal["answered"]) <= set(there) <= set(journal["tried"])
    assert 0 < len(journal["answered"]) < len(journal["tried"])
    assert account is not None
    assert account.balance == OPENING - len(charged)
    # No claim went with a cancelled task: all are dead now, and what a task got comes for the second time, only that.
    arena.release_dead()
    claims = [claim for _ in journal["put"] if (claim := arena.take_work(0.0)) is not None]
    assert {id_text(claim.key): claim.attempt for claim in claims} == {
        name: 1 + (name in journal["taken"]) for name in journal["put"]
    }
