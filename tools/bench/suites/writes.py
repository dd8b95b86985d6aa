"""Writes: putting records, one process and two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from tools.bench.bench import Bench
from tools.bench.method import Loop, pinned
from tools.bench.our_arena import OURS, Mapping, SharedArena
from tools.bench.peers.servers import Memcached, PipelinedRedis, Redis
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
from tools.bench.workload import Item, in_turn, node_definitions, outputs

STORES: tuple[type[Store], ...] = (
    PlainDict, SharedArena, Mapping, UltraDict2, UltraDict, EasyGlobals, Lmdb, LmdbWithoutWritemap, DiskCache,
    ManagerDict, Memcached, Redis, PipelinedRedis,
)  # fmt: skip
_RECORDS = 1_000


def run(bench: Bench) -> None:
    """Measure all writes."""
    for shape, items in (("node definition", node_definitions(_RECORDS)), ("output", outputs(_RECORDS))):
        with ExitStack() as stack, pinned(0):
            stores = bench.opened(stack, {each.name: partial(each, items) for each in STORES})
            subjects = {}
            for name, store in stores.items():
                bench.say(f"warming up {name}")
                subjects[name] = Loop(store.write_all, _native(store, items), bench.sample_seconds).sample
            notes = {name: store.settings for name, store in stores.items()}
            found = bench.measure(f"put, {shape}", "ns", subjects, notes=notes)
            if shape == "node definition":
                bench.ratio("put-lmdb", found[OURS], found.get(Lmdb.name))
                _percentiles(bench, stores, items)
    _two_processes(bench)


def _native(store: Store, items: Sequence[Item]) -> list[tuple[Any, Item]]:
    keys = in_turn(items, len(items))
    return [(store.native_key(key), item) for key, item in zip(keys, items, strict=True)]


def _percentiles(bench: Bench, stores: dict[str, Store], items: Sequence[Item]) -> None:
    for name, store in stores.items():
        if not isinstance(store, PipelinedRedis):
            native = [(pair,) for pair in _native(store, items)]
            bench.latency("put, single operations", name, store.write_all, native)


def _two_processes(bench: Bench) -> None:
    items = node_definitions(_RECORDS)
    store = SharedArena(items)

    def make(number: int) -> Callable[[], int]:
        # Different keys: each process has its half of them.
        mine = _native(store, items[number * _RECORDS // 2 : (number + 1) * _RECORDS // 2])

        def work() -> int:
            store.write_all(mine)
            return len(mine)

        return work

    try:
        bench.scaling("two-writers", "puts a second by several processes", make)
    finally:
        store.close()
