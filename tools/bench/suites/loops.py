"""Event loops: what a call costs on a loop, beside the same call without one, and beside a hop to a thread and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from typing import Any

from shmcache import session
from shmcache.identifiers import new_id
from tools.bench.bench import Bench
from tools.bench.method import pinned, without_collector
from tools.bench.our_host import Database, Host, quiet

_WITHOUT, _ON_A_LOOP, _BY_A_THREAD = "without a loop", "on a loop", "on a loop, by asyncio.to_thread"
_EXECUTIONS = 100


def run(bench: Bench) -> None:
    """Measure all of it."""
    quiet()
    with ExitStack() as stack:
        bench.say("starting PostgreSQL")
        database = Database()
        stack.callback(database.close)
        host = stack.enter_context(Host(database, 64 << 20))
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        stack.enter_context(pinned(0))
        client, on_a_loop = host.client, session.get_db_async_client()
        graph, nodes = host.make_graph(_EXECUTIONS)
        definitions = [node.id for node in nodes]
        executions = host.running_executions(_EXECUTIONS)
        runs = [client.create_graph_execution(graph.id, new_id(), {}).id for _ in range(_EXECUTIONS)]

        def drop() -> None:
            host.forget_ring(host.arena.write_ring)

        def write(identifier: str) -> object:
            return client.update_graph_execution_stats(identifier, None, {"n": 1})

        def write_on_a_loop(identifier: str) -> Coroutine[Any, Any, object]:
            return on_a_loop.update_graph_execution_stats(identifier, None, {"n": 1})

        for test, target, identifiers, call, coroutine in (
            ("hit, node definition", "loop-node", definitions, client.get_node, on_a_loop.get_node),
            ("hit, node execution", "loop-execution", executions, client.get_node_execution,
             on_a_loop.get_node_execution),
            ("write of a graph execution", "loop-write", runs, write, write_on_a_loop),
        ):  # fmt: skip
            many = identifiers * bench.pick(10, 100)
            found = bench.measure(
                f"{test}, on an event loop",
                "ns",
                {
                    _WITHOUT: _called(call, many, drop),
                    _ON_A_LOOP: _awaited(loop, coroutine, many, drop),
                    _BY_A_THREAD: _awaited(loop, _in_a_thread(call), identifiers, drop),
                },
            )
            bench.ratio(target, found[_ON_A_LOOP], found[_WITHOUT])
            if target == "loop-node":
                bench.ratio("loop-thread", found[_ON_A_LOOP], found[_BY_A_THREAD])
        loop.run_until_complete(loop.shutdown_default_executor())


def _called(
    call: Callable[[str], object], identifiers: Sequence[str], before: Callable[[], None]
) -> Callable[[], float]:
    def sample() -> float:
        before()
        with without_collector():
            began = time.perf_counter()
            for each in identifiers:
                call(each)
            return (time.perf_counter() - began) / len(identifiers) * 1e9

    return sample


def _awaited(
    loop: asyncio.AbstractEventLoop,
    call: Callable[[str], Coroutine[Any, Any, object]],
    identifiers: Sequence[str],
    before: Callable[[], None],
) -> Callable[[], float]:
    async def await_all() -> float:
        began = time.perf_counter()  # the loop runs already
        for each in identifiers:
            await call(each)
        return (time.perf_counter() - began) / len(identifiers) * 1e9

    def sample() -> float:
        before()
        with without_collector():
            return loop.run_until_complete(await_all())

    return sample


def _in_a_thread(call: Callable[[str], object]) -> Callable[[str], Coroutine[Any, Any, object]]:
    return lambda identifier: asyncio.to_thread(call, identifier)
