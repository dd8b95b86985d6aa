"""Reads: a record that this process has read before, one that it has not, many processes, many records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from tools.bench.bench import Bench
from tools.bench.method import Loop, in_a_child, pinned, timed_once
from tools.bench.our_arena import OURS, Mapping, SharedArena, filled
from tools.bench.peers.servers import CachingRedis, Memcached, PipelinedRedis, Redis
from tools.bench.peers.stores import (
    DiskCache,
    EasyGlobals,
    Lmdb,
    LmdbWithoutWritemap,
    ManagerDict,
    PlainDict,
    Store,
    UltraDict,
    UltraDict2,
)
from tools.bench.workload import Item, by_zipf, in_turn, node_definitions, outputs

STORES: tuple[type[Store], ...] = (
    PlainDict, SharedArena, Mapping, UltraDict2, UltraDict, EasyGlobals, Lmdb, LmdbWithoutWritemap, DiskCache,
    ManagerDict, Memcached, Redis, PipelinedRedis, CachingRedis,
)  # fmt: skip
_RECORDS = 1_000
_DEFINITIONS = "node definition"
WARM = f"warm get, {_DEFINITIONS}, keys in turn"
FIRST = "first get in another process"


def run(bench: Bench) -> None:
    """Measure all reads."""
    for shape, items in ((_DEFINITIONS, node_definitions(_RECORDS)), ("output", outputs(_RECORDS))):
        with ExitStack() as stack, pinned(0):
            stores = bench.opened(stack, {each.name: partial(each, items) for each in STORES})
            _warm(bench, shape, items, stores)
    _first(bench)
    _two_processes(bench)
    _a_million(bench)


def _warm(bench: Bench, shape: str, items: Sequence[Item], stores: dict[str, Store]) -> None:
    for law, draw in (("keys in turn", in_turn), ("keys by Zipf", by_zipf)):
        keys = draw(items, 10_000)
        subjects = {}
        for name, store in stores.items():
            native = [store.native_key(key) for key in keys]
            bench.say(f"warming up {name}")
            subjects[name] = Loop(store.read_all, native, bench.sample_seconds).sample
        found = bench.measure(f"warm get, {shape}, {law}", "ns", subjects, notes=_settings(stores))
        if (shape, law) == (_DEFINITIONS, "keys in turn"):
            _ratios(bench, found)
            _percentiles(bench, stores, keys)


def _settings(stores: dict[str, Store]) -> dict[str, str]:
    return {name: getattr(store, "client_name", "") or store.settings for name, store in stores.items()}


def _ratios(bench: Bench, found: dict[str, list[float]]) -> None:
    ours = found[OURS]
    for target, peer in (
        ("get-dict", PlainDict), ("get-ultradict", UltraDict), ("get-ultradict2", UltraDict2), ("get-lmdb", Lmdb),
        ("get-redis", Redis),
    ):  # fmt: skip
        bench.ratio(target, ours, found.get(peer.name))


def _percentiles(bench: Bench, stores: dict[str, Store], keys: Sequence[str]) -> None:
    for name, store in stores.items():
        if not isinstance(store, PipelinedRedis):  # a hundred together have no latency each
            native = [(store.native_key(key),) for key in keys]
            bench.latency("warm get, single operations", name, store.read_all, native)


def _first(bench: Bench) -> None:
    """In a process that has just come up: every key once."""
    items = node_definitions(bench.pick(4_000, 20_000), seed=5)
    keys = in_turn(items, len(items))
    with ExitStack() as stack:
        stores = bench.opened(stack, {each.name: partial(each, items) for each in (SharedArena, Lmdb)})

        def once(store: Store) -> float:
            native = [store.native_key(key) for key in keys]
            return in_a_child(lambda: _each_once(store, native))

        found = bench.measure(
            FIRST, "ns", {name: partial(once, store) for name, store in stores.items()},
            notes=dict.fromkeys(stores, "every key once, decoded, by a process that has just attached"),
        )  # fmt: skip
    bench.ratio("first-get-lmdb", found[OURS], found.get(Lmdb.name))


def _each_once(store: Store, native: Sequence[Any]) -> float:
    if isinstance(store, SharedArena):
        store.attach()
    elif isinstance(store, Lmdb):
        store.reopen()
    # One key is asked for first: what happens once a process (imports, the first page) is not the get of a key.
    store.read_all(native[:1])
    return timed_once(store.read_all, native[1:])


def _two_processes(bench: Bench) -> None:
    items = node_definitions(_RECORDS)
    keys = in_turn(items, 5_000)
    store = SharedArena(items)

    def make(_: int) -> Callable[[], int]:
        store.attach()

        def work() -> int:
            store.read_all(keys)
            return len(keys)

        return work

    try:
        bench.scaling("two-readers", "warm gets a second by several processes", make)
    finally:
        store.close()


def _a_million(bench: Bench) -> None:
    """The same number of keys, out of few records and out of many."""
    few, many = 1_000, bench.pick(200_000, 1_000_000)
    template = node_definitions(1)[0].record
    with ExitStack() as stack:
        stores: dict[str, tuple[SharedArena, list[str]]] = {}
        for count in (few, many):
            bench.say(f"filling an arena with {count:,} records")
            store, keys = filled(count, template)
            stack.callback(store.close)
            stores[f"{count:,} records"] = store, keys[:: count // few]
        for target, test, again in (
            ("get-million", "warm get, 1,000 keys out of", False),
            ("get-million-encoded", "get and decode, 1,000 keys out of", True),
        ):
            with pinned(0):
                subjects = {
                    name: Loop(store.read_all, keys, bench.sample_seconds, store.attach if again else None).sample
                    for name, (store, keys) in stores.items()
                }
                found = list(bench.measure(test, "ns", subjects).values())
            bench.ratio(target, found[1], found[0], f"{many:,} records beside {few:,}")
