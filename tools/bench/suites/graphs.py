"""Graphs, the headline: what a node waits for, and how many run a second, cold and warm."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median

import psutil

from shmcache.arena import Arena
from shmcache.codec import decode, encode
from shmcache.config import load_settings
from shmcache.graphs import example_path, load_graph_file
from shmcache.identifiers import id_text
from shmcache.simple_cache import SimpleExecutorCache
from tools.bench.bench import Bench
from tools.bench.graph_runs import Pass, run_cached, run_direct, run_first_design
from tools.bench.method import CORES, in_a_child, percentiles
from tools.bench.our_arena import OURS, make_arena, put, remove_arena
from tools.bench.our_host import Database, quiet
from tools.bench.workload import by_zipf, node_definitions

DIRECT = "direct"
FIRST = "first design"
ONE = f"{OURS}, 1 worker"
TWO = f"{OURS}, 2 workers"
FOUR = f"{OURS}, 4 workers"
_BYTES_A_DEFINITION = 1_536


def run(bench: Bench) -> None:
    """Measure all of it."""
    quiet()
    with ExitStack() as stack:
        bench.say("starting PostgreSQL")
        database = Database()
        stack.callback(database.close)
        _headline(bench, database)
    _memory(bench)


def _headline(bench: Bench, database: Database) -> None:
    files = bench.files or (example_path(),)
    graphs = [load_graph_file(file, time_scale=0) for file in files]
    bench.remark(f"{len(files)} files, {sum(len(each.nodes) for each in graphs):,} nodes: "
                 + ", ".join(file.name for file in files))  # fmt: skip
    settings = load_settings(database_url=database.new_url(), state_dir=database.state_dir, log_level="ERROR")
    # A pass of what is quick has to take long enough to be timed: the same graphs more often.
    few, many = 1, bench.pick(3, 10)
    passes_each = 1 + bench.pick(1, 3)  # the first one is cold
    ways: dict[str, tuple[Callable[[], list[Pass]], int]] = {
        DIRECT: (partial(run_direct, graphs, few, passes_each, settings.model_copy(update={"workers": 1})), few),
        FIRST: (partial(run_first_design, graphs, few, passes_each, settings), few),
    }
    for name, workers in ((ONE, 1), (TWO, 2), (FOUR, 4)):
        own = settings.model_copy(update={"workers": workers})
        ways[name] = (partial(run_cached, graphs, many, passes_each, own), many)
    passes: dict[str, list[list[Pass]]] = {name: [] for name in ways}
    rounds = bench.pick(1, 3)
    for number in range(rounds):
        for name in ways if number % 2 == 0 else reversed(ways):
            bench.say(f"round {number + 1} of {rounds}: {name}")
            passes[name].append(ways[name][0]())
    warm = {name: [each for run_ in runs for each in run_[1:]] for name, runs in passes.items()}
    cold = {name: [run_[0] for run_ in runs] for name, runs in passes.items()}
    _figures(bench, cold, warm)
    per_second = {name: [each.nodes / each.seconds for each in found] for name, found in warm.items()}
    bench.ratio("graph-direct", per_second[ONE], per_second[DIRECT])
    bench.ratio("graph-first-design", per_second[ONE], per_second[FIRST])
    bench.ratio("graph-two", per_second[TWO], per_second[ONE], _most_of_two(warm[ONE]))
    blocking = {name: [each.blocking / each.nodes for each in found] for name, found in warm.items()}
    bench.ratio("graph-blocking", blocking[ONE], blocking[DIRECT])


def _figures(bench: Bench, cold: dict[str, list[Pass]], warm: dict[str, list[Pass]]) -> None:
    for state, found in (("warm", warm), ("cold", cold)):
        for name, passes in found.items():
            bench.figure(f"blocking database operations a node, {state}", name, "a node",
                         [each.blocking / each.nodes for each in passes],
                         note="other remote calls: none; the work queue is in shared memory")  # fmt: skip
        for name, passes in found.items():
            bench.figure(f"node executions a second, all committed, {state}", name, "nodes/s",
                         [each.nodes / each.seconds for each in passes])  # fmt: skip
    for name, passes in warm.items():
        for role in sorted({role for each in passes for role in each.core_seconds}):
            bench.figure("core time a node, warm", f"{name}: {role}", "ns",
                         [each.core_seconds.get(role, 0.0) * 1e9 / each.nodes for each in passes])  # fmt: skip
    spent = {
        name: [round(each) for pass_ in passes for each in pass_.node_nanoseconds] for name, passes in warm.items()
    }
    found_percentiles = {name: percentiles(each) for name, each in spent.items()}
    for name, each in found_percentiles.items():
        bench.figure("time a node spends in the client, all calls together, warm", name, "ns", [each["50.0"]], each,
                     "without waiting for work")  # fmt: skip
    direct = found_percentiles[DIRECT]["50.0"]
    bench.ratio("node-p50", [found_percentiles[ONE]["50.0"]], [direct])
    bench.ratio("node-p99", [found_percentiles[ONE]["99.0"]], [direct])


def _most_of_two(one: Sequence[Pass]) -> str:
    """Say what two workers beside one can come to at most where all their processes share this machine's cores."""
    most = median(len(CORES) * each.seconds / sum(each.core_seconds.values()) for each in one)
    return (
        f"at most {most:.2f} on these {len(CORES)} cores: one worker's run keeps {len(CORES) / most:.2f} of them busy"
    )


def _memory(bench: Bench) -> None:
    """Let 4 processes read every definition; compare what they take."""
    count = bench.pick(20_000, 100_000)
    workers = 4
    bench.say(f"memory with {count:,} definitions")
    items = node_definitions(1_000)
    arena = make_arena(count * _BYTES_A_DEFINITION)
    keys = [os.urandom(16) for _ in range(count)]
    encoded = [encode(items[number % len(items)].record) for number in range(count)]
    for key, data in zip(keys, encoded, strict=True):
        put(arena, key, data)
    names = [id_text(key) for key in keys]
    popular = by_zipf([items[0]._replace(key=name) for name in names], count)

    def own_dict() -> float:
        return _taken(lambda: {name: decode(data) for name, data in zip(names, encoded, strict=True)})

    def ours(asked: Sequence[str]) -> float:
        def read() -> SimpleExecutorCache:
            cache = SimpleExecutorCache(arena, limit=count * 16_384 // 100_000)  # of 100,000 the default
            for name in asked:
                cache.get(name)
            return cache

        return _taken(read)

    try:
        taken = {
            "dict in each of 4 processes": sum(in_a_child(own_dict) for _ in range(workers)),
            f"{OURS}, every definition read": sum(in_a_child(partial(ours, names)) for _ in range(workers))
            + _size(arena),
            f"{OURS}, read by Zipf": sum(in_a_child(partial(ours, popular)) for _ in range(workers)) + _size(arena),
        }
    finally:
        remove_arena(arena)
    for name, size in taken.items():
        bench.figure(f"memory of {workers} workers, {count:,} definitions", name, "bytes", [size],
                     note="private memory of all, and the whole arena")  # fmt: skip
    dicts, everything, _ = taken.values()
    bench.ratio("memory", [everything], [dicts], f"{count:,} definitions, every one read by every process")


def _size(arena: Arena) -> float:
    return float(arena.version_words().nbytes)


def _taken(action: Callable[[], object]) -> float:
    """Return the bytes of private memory that what `action` returns takes."""
    process = psutil.Process()
    before = process.memory_full_info().uss
    kept = action()
    taken = process.memory_full_info().uss - before
    del kept
    return float(taken)
