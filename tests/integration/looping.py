"""For tests of the asynchronous clients: clients over an arena and a database, and tasks driven step by step."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from shmcache.arena import Arena
from shmcache.asynchronous.clients import CachedAsyncClient, DirectAsyncClient
from shmcache.asynchronous.execution_data_client import AsyncExecutionDataClient
from shmcache.cached_client import CachedClient
from shmcache.config import Settings
from shmcache.direct_client import DirectClient
from shmcache.work_queue import WorkQueue

T = TypeVar("T")


def make_async_client(mode: str, arena: Arena, database_url: str, settings: Settings) -> AsyncExecutionDataClient:
    """Return a client of its own, as `get_db_async_client` makes one."""
    if mode == "cached":
        return CachedAsyncClient(CachedClient(arena, database_url, settings))

    def make() -> DirectClient:
        return DirectClient(database_url, work_queue=WorkQueue(arena), settings=settings, on_wait=lambda: None)

    return DirectAsyncClient(make, arena)


def in_one_step(call: Coroutine[Any, Any, T]) -> T:
    """Make a call, which must end without having given way once: outside of any loop there is nothing to wait by."""
    try:
        call.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    call.close()
    raise AssertionError("the call gave way")


@types.coroutine
def counted(call: Coroutine[Any, Any, T], at_step: Callable[[int], None]) -> Generator[Any, Any, T]:
    """Make a call; `at_step` is called with 0, 1, ... each time it is about to give way."""
    step = 0
    thrown: BaseException | None = None
    while True:
        try:
            wanted = call.send(None) if thrown is None else call.throw(thrown)
        except StopIteration as end:
            result: T = end.value
            return result
        at_step(step)
        step += 1
        try:
            yield wanted
            thrown = None
        except BaseException as error:
            thrown = error


async def cancelled_at(step: int, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Make a call in a task that is cancelled when it gives way for the `step`-th time (from 0).

    Returns what it returned if it never did that often; else raises CancelledError."""

    async def work() -> T:
        task = asyncio.current_task()
        assert task is not None

        def cancel(reached: int) -> None:
            if reached == step:
                task.cancel()

        return await counted(make(), cancel)

    return await asyncio.create_task(work())
