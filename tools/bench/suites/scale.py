"""Scale: how cost grows with processes, records, executions a graph and the arena's size; and a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from shmcache.arena import Arena, free_bytes
from shmcache.graphs import example_path, load_graph_file
from shmcache.identifiers import new_id
from shmcache.manager import run_worker
from shmcache.records import ExecutionStatus
from tools.bench.bench import Bench
from tools.bench.graph_runs import submit_graphs
from tools.bench.method import CORES, Loop, pinned, rate, together
from tools.bench.model import ASSUMPTIONS, throughput
from tools.bench.our_arena import OURS, LockTimes, SharedArena, filled, make_arena, remove_arena, size_for
from tools.bench.our_host import Database, Host, quiet
from tools.bench.workload import in_turn, node_definitions

_RECORDS = 1_000
_MODEL_CORES = (1, 2, 4, 8, 16, 32, 64, 96)
_SAID_CORES = (8, 32, 96)


def run(bench: Bench) -> None:
    """Measure all of it."""
    quiet()
    _processes(bench)
    _records(bench)
    _arena_sizes(bench)
    with ExitStack() as stack:
        bench.say("starting PostgreSQL")
        database = Database()
        stack.callback(database.close)
        _executions(bench, database)
        _model(bench, database)


def _processes(bench: Bench) -> None:
    counts = bench.pick((1, 2, 4), (1, 2, 4, 8, 16))
    bench.remark(f"this machine has {len(CORES)} cores: with more processes than that, the figure says what is lost "
                 "by taking turns, not what more cores would give")  # fmt: skip
    items = node_definitions(_RECORDS)
    keys = in_turn(items, 5_000)
    store = SharedArena(items)

    def reader(_: int) -> Callable[[], int]:
        store.attach()

        def work() -> int:
            store.read_all(keys)
            return len(keys)

        return work

    def writer(number: int) -> Callable[[], int]:
        mine = [(item.key, item) for item in items[number :: max(counts)]]

        def work() -> int:
            store.write_all(mine)
            return len(mine)

        return work

    try:
        for subject, make in (("warm get", reader), ("put, keys of its own", writer)):
            points = []
            for count in counts:
                bench.say(f"{subject}: {count} processes")
                found = [rate(together(make, count, bench.pick(0.2, 1.0))) for _ in range(3)]
                points.append((float(count), sorted(found)[1]))
            bench.curve("throughput against processes", subject, "processes", "operations a second", points)
    finally:
        store.close()


def _records(bench: Bench) -> None:
    counts = bench.pick((1_000, 10_000, 100_000), (1_000, 10_000, 100_000, 1_000_000, 10_000_000))
    template = node_definitions(1)[0]
    reads, writes = [], []
    for count in counts:
        needed = size_for(count)
        if needed > free_bytes() // 2:
            reason = f"an arena of {needed / 2**30:.1f} GiB is more than half of the shared memory that is free"
            bench.not_measured(f"{count:,} records", reason)
            continue
        bench.say(f"{count:,} records")
        store, keys = filled(count, template.record)
        try:
            some = keys[:: max(1, count // 10_000)][:10_000]
            pairs = [(key, template) for key in some]
            with pinned(0):
                read = Loop(store.read_all, some, bench.sample_seconds, store.attach)
                write = Loop(store.write_all, pairs, bench.sample_seconds)
                reads.append((float(count), sorted(read.sample() for _ in range(3))[1] / 1e3))
                writes.append((float(count), sorted(write.sample() for _ in range(3))[1] / 1e3))
        finally:
            store.close()
    chart = "time of an operation against records"
    bench.curve(chart, "get and decode", "records", "microseconds", reads)
    bench.curve(chart, "put", "records", "microseconds", writes)


def _arena_sizes(bench: Bench) -> None:
    sizes = [16 << 20 << shift for shift in bench.pick((0, 2, 4), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9))]
    made, attached = [], []
    for size in sizes:
        if size > free_bytes() // 2:
            bench.not_measured(
                f"an arena of {size >> 20:,} MiB", "it is more than half of the shared memory that is free"
            )
            continue
        bench.say(f"an arena of {size >> 20:,} MiB")
        began = time.perf_counter()
        arena = make_arena(size)
        made.append((size / 2**20, (time.perf_counter() - began) * 1e3))
        began = time.perf_counter()
        Arena.attach(arena.name).close()
        attached.append((size / 2**20, (time.perf_counter() - began) * 1e3))
        remove_arena(arena)
    chart = "time to make an arena, all its pages reserved"
    bench.curve(chart, "create", "MiB", "milliseconds", made)
    bench.curve(chart, "attach", "MiB", "milliseconds", attached)


def _executions(bench: Bench, database: Database) -> None:
    """One graph execution with more and more node executions: what one more costs."""
    marks = bench.pick((1, 10, 100, 1_000), (1, 10, 100, 1_000, 10_000, 100_000))
    with Host(database, bench.pick(256 << 20, 2 << 30)) as host:
        graph, nodes = host.make_graph(10)
        client = host.client
        run_id = client.create_graph_execution(graph.id, new_id(), {}).id
        ring = host.arena.write_ring

        def more(number: int) -> None:
            identifier, _ = client.upsert_execution_input(nodes[number % 10].id, run_id, None)
            client.update_node_execution_status(identifier, ExecutionStatus.RUNNING)

        appended, latest = [], []
        done = 0
        for mark in marks:
            bench.say(f"{mark:,} executions of one graph")
            while done < mark:
                more(done)
                done += 1
                if done % 1_000 == 0:
                    host.forget_ring(ring)
            few = 100
            began = time.perf_counter()
            for number in range(few):
                more(number)
            appended.append((float(mark), (time.perf_counter() - began) * 1e6 / few))
            done += few
            began = time.perf_counter()
            for number in range(few):
                client.get_latest_node_execution(nodes[number % 10].id, run_id)
            latest.append((float(mark), (time.perf_counter() - began) * 1e6 / few))
        chart = "time of a call against executions in the graph"
        bench.curve(chart, "one more execution, RUNNING", "executions", "microseconds", appended)
        bench.curve(chart, "the latest of a node", "executions", "microseconds", latest)


def _model(bench: Bench, database: Database) -> None:
    """Time a node, and its part under the commit lock, in one process; say what the model makes of it."""
    whole, locked, taken = [], [], []
    with Host(database, 512 << 20) as host:
        graphs = [load_graph_file(file) for file in bench.files or (example_path(),)]
        for loaded in graphs:
            host.client.save_graph(loaded.graph, loaded.nodes)
        user = host.make_user()
        submit_graphs(host.client, graphs, user)
        _work_off(host)  # warm
        for _ in range(bench.pick(3, 9)):
            for timed in (False, True):
                host.forget_ring(host.arena.write_ring)
                host.forget_ring(host.arena.charge_ring)
                submit_graphs(host.client, graphs, user)
                nodes = host.arena.counter_totals()["node_runs"]
                with LockTimes(host.arena) if timed else ExitStack() as times, pinned(0):
                    began = time.perf_counter()
                    _work_off(host)
                    took = time.perf_counter() - began
                nodes = host.arena.counter_totals()["node_runs"] - nodes
                if isinstance(times, LockTimes):
                    locked.append(times.held / nodes)
                    taken.append(times.taken / nodes)
                else:
                    whole.append(took * 1e9 / nodes)
    bench.figure("a node in one process", "all of it", "ns", whole)
    bench.figure("a node in one process", "under the commit lock", "ns", locked,
                 note=f"{sorted(taken)[len(taken) // 2]:.1f} times")  # fmt: skip
    node, lock = _median(whole) / 1e9, min(_median(locked), _median(whole)) / 1e9
    points = [(float(cores), throughput(cores, node, lock)) for cores in _MODEL_CORES]
    bench.curve("node executions a second against cores: the model", OURS, "cores", "nodes a second", points,
                predicted=True)  # fmt: skip
    bench.curve("node executions a second against cores: the model", "if nothing were shared", "cores",
                "nodes a second", [(float(cores), cores / node) for cores in _MODEL_CORES], predicted=True)  # fmt: skip
    said = ", ".join(f"{throughput(cores, node, lock):,.0f} on {cores}" for cores in _SAID_CORES)
    bench.remark(f"the model: a node takes {node * 1e6:,.0f} us, {lock * 1e6:,.0f} of them under the commit lock, so "
                 f"nodes a second: {said} cores; {ASSUMPTIONS}")  # fmt: skip


def _work_off(host: Host) -> None:
    run_worker(host.client, lambda: not host.arena.outstanding(), host.settings.max_attempts)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
