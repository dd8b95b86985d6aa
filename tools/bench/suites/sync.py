"""Sync: what a write costs its worker, how fast the ring drains, and what failures do to both."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import psutil

from shmcache.codec import ExecutionPart, encode, json_text, pack
from shmcache.database.connection import connect
from shmcache.frozen import FrozenDict, freeze
from shmcache.identifiers import id_bytes, new_id
from shmcache.writes import InputWrite, NodeExecutionWrite, OutputWrite, WriteKind
from tools.bench.bench import Bench
from tools.bench.method import Loop, latencies, percentiles, pinned
from tools.bench.our_arena import OURS, append, put_and_append
from tools.bench.our_host import Database, Host, quiet, wait_until
from tools.bench.peers.bulk_writes import ROWS_EACH, WAYS, Executed
from tools.bench.peers.queues import QUEUES, FasterFifo, RedisStream
from tools.bench.workload import output_value

CLIENT = f"{OURS}: client, arena and ring"
COMMIT = f"{OURS}: record and ring entry"
RING = f"{OURS}: ring entry alone"
_BATCH = 200
_PATIENCE_SECONDS = 120.0


def run(bench: Bench) -> None:
    """Measure all of it."""
    quiet()
    with ExitStack() as stack:
        bench.say("starting PostgreSQL")
        database = Database()
        stack.callback(database.close)
        _enqueue(bench, database)
        _drain(bench, database)
        _takeover(bench, database)
        _exactly_once(bench, database)
        _while_the_database_is_away(bench, database)


# What a write costs its worker


def _enqueue(bench: Bench, database: Database) -> None:
    values = [output_value(number) for number in range(_BATCH)]
    with ExitStack() as stack:
        host = stack.enter_context(Host(database, 512 << 20))
        queues = bench.opened(stack, {each.name: each for each in QUEUES})
        executions: list[str] = []
        client = host.client

        def prepare() -> None:
            executions[:] = host.running_executions(_BATCH)
            host.forget_ring(host.arena.write_ring)

        def by_client(numbers: Sequence[int]) -> None:
            for number in numbers:
                client.upsert_execution_output(executions[number], "result", values[number])

        items = [(new_id(), number, "result", value, time.time()) for number, value in enumerate(values)]
        frozen = [freeze(value) for value in values]

        def by_commit(numbers: Sequence[int]) -> None:
            for number in numbers:
                record = ExecutionPart(FrozenDict(), FrozenDict(), FrozenDict(result=[frozen[number]]))
                row = OutputWrite(items[number][0], 0, "result", json_text(values[number]), 0.0)
                put_and_append(host.arena, id_bytes(row.node_exec_id), encode(record), WriteKind.OUTPUT, pack(row))

        def by_ring(numbers: Sequence[int]) -> None:
            for number in numbers:
                append(host.arena, WriteKind.OUTPUT, pack(items[number]))

        def pass_over() -> None:
            host.forget_ring(host.arena.write_ring)

        numbers = range(_BATCH)
        with pinned(0):
            loops = {
                CLIENT: Loop(by_client, numbers, bench.sample_seconds, prepare),
                COMMIT: Loop(by_commit, numbers, bench.sample_seconds, pass_over),
                RING: Loop(by_ring, numbers, bench.sample_seconds, pass_over),
            }
            for name, queue in queues.items():
                bench.say(f"warming up {name}")
                loops[name] = Loop(queue.put_all, items, bench.sample_seconds, queue.take_all)
            notes = {name: queue.settings for name, queue in queues.items()}
            notes[CLIENT] = "upsert_execution_output: visible to every process, on the ring, once"
            notes[COMMIT] = "the commit beneath it, packing and JSON included"
            found = bench.measure(
                "enqueue of a 350-byte output", "ns", {name: loop.sample for name, loop in loops.items()}, notes=notes
            )
        fifo, redis = found.get(FasterFifo.name), found.get(RedisStream.name)
        bench.ratio("enqueue-fifo", found[CLIENT], fifo)
        bench.ratio("ring-fifo", found[RING], fifo)
        bench.ratio("enqueue-redis", found[CLIENT], redis)


# How fast the ring drains


def _drain(bench: Bench, database: Database) -> None:
    count = bench.pick(4_000, 40_000)
    with Host(database, bench.pick(256 << 20, 1 << 30), sync_interval=3600) as host:
        graph, nodes = host.make_graph()
        run_id = host.client.create_graph_execution(graph.id, new_id(), {}).id
        syncer = host.start_syncer()
        host.drained(host.arena.write_ring)
        connection = connect(host.url, application_name="bench")

        def made(number: int) -> list[Executed]:
            return [
                Executed(new_id(), run_id, nodes[0].id, {"n": each}, output_value(each), time.time())
                for each in range(number)
            ]

        def ours() -> float:
            executed = made(count)
            with host.frozen(syncer):
                _append_rows(host, executed)
                began = time.perf_counter()
            host.drained(host.arena.write_ring)
            return ROWS_EACH * count / (time.perf_counter() - began)

        def theirs(way: Callable[..., None], part: int) -> float:
            executed = made(count // part)
            began = time.perf_counter()
            way(connection, executed)
            return ROWS_EACH * len(executed) / (time.perf_counter() - began)

        subjects = {OURS: ours}
        subjects |= {name: partial(theirs, way, 40 if name == "one by one" else 1) for name, way in WAYS.items()}
        found = bench.measure(
            "rows a second into PostgreSQL", "rows/s", subjects, rounds=bench.pick(3, 9),
            notes={OURS: "drained from the ring by the syncer, with its checkpoint"},
        )  # fmt: skip
        bench.ratio("drain-copy", found[OURS], found["COPY"])
        connection.close()


def _append_rows(host: Host, executed: Sequence[Executed]) -> None:
    arena = host.arena
    for each in executed:
        at = each.time
        row = NodeExecutionWrite(each.id, each.graph_exec_id, each.node_id, "COMPLETED", at, at, at, at, "{}")
        append(arena, WriteKind.NODE_EXECUTION, pack(row))
        append(arena, WriteKind.INPUT, pack(InputWrite(each.id, "value", json_text(each.input_value), at, None, None)))
        append(arena, WriteKind.OUTPUT, pack(OutputWrite(each.id, 0, "result", json_text(each.output_value), at)))


# A leader that dies


def _syncers() -> list[int]:
    """Return the syncers, the eldest first: it leads, the others wait for its end."""
    mine = psutil.Process().children()
    found = [
        each for each in mine if each.status() != psutil.STATUS_ZOMBIE and _title(each).startswith("shmcache: syncer")
    ]
    return [each.pid for each in sorted(found, key=psutil.Process.create_time)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _write_for_ever(host: Host) -> None:
    """Be a worker that writes some hundred outputs a second."""
    executions = host.running_executions(50)
    for number in range(10**9):
        host.client.upsert_execution_output(executions[number % len(executions)], "result", number)
        time.sleep(0.002)


def _takeover(bench: Bench, database: Database) -> None:
    kills = bench.pick(5, 20)
    taken: list[float] = []
    commits: list[float] = []
    with Host(database, 256 << 20, sync_interval=0.2) as host:
        ring = host.arena.write_ring
        host.start_syncer()
        host.start_syncer()
        host.start_worker(partial(_write_for_ever, host))
        for number in range(kills):
            bench.say(f"a leader is killed: {number + 1} of {kills}")
            wait_until(lambda: len(_syncers()) == 2, _PATIENCE_SECONDS, host.processes.look_after)
            time.sleep(0.3)  # the second one has to come up: what is measured is a standby that stands by
            for _ in range(3):
                began = time.perf_counter()
                host.drained(ring)
                commits.append(time.perf_counter() - began)
            leader = _syncers()[0]
            last = ring.last_sequence
            wait_until(lambda last=last: ring.last_sequence > last, _PATIENCE_SECONDS)  # type: ignore[misc]
            wanted = ring.last_sequence
            os.kill(leader, signal.SIGKILL)
            began = time.perf_counter()
            ring.wait_committed(max(wanted, ring.committed_sequence + 1), _PATIENCE_SECONDS)
            taken.append(time.perf_counter() - began)
            host.processes.look_after()
        host.processes.stop("worker", "syncer")
    one = median(commits)
    bench.figure("a leader is killed: until the next one's first commit", OURS, "ns", [each * 1e9 for each in taken],
                 note=f"one commit took {one * 1e3:.1f} ms")  # fmt: skip
    bench.numbers("takeover", [(each - one) * 1e3 for each in taken])


def _exactly_once(bench: Bench, database: Database) -> None:
    """Kill leaders at random moments while 4 workers write; then count every row."""
    kills = bench.pick(10, 200)
    source = random.Random(7)  # noqa: S311
    with Host(database, 256 << 20, sync_interval=0.1) as host:
        ring = host.arena.write_ring
        for _ in range(2):
            host.start_syncer()
        directory = database.state_dir / "acknowledged"
        directory.mkdir(exist_ok=True)
        for number in range(4):
            host.start_worker(partial(_write_numbers, host, directory / str(number)))
        for number in range(kills):
            bench.say(f"leaders are killed while 4 workers write: {number + 1} of {kills}")
            until = time.monotonic() + source.uniform(0.02, 0.4)
            wait_until(lambda until=until: time.monotonic() > until, _PATIENCE_SECONDS, host.processes.look_after)  # type: ignore[misc]
            alive = _syncers()
            if alive:
                os.kill(alive[0], signal.SIGKILL)
        host.processes.stop("worker")
        wait_until(lambda: not host.processes.count("worker"), _PATIENCE_SECONDS, host.processes.look_after)
        ring.request_drain()
        wait_until(lambda: ring.committed_sequence >= ring.last_sequence, _PATIENCE_SECONDS, host.processes.look_after)
        written, wrong = 0, 0
        for file in directory.iterdir():
            lines = dict(line.split() for line in file.read_text().splitlines())
            for identifier, count in lines.items():
                written += int(count)
                wrong += _wrong_rows(host, identifier, int(count))
            file.unlink()
    note = f"{written:,} outputs acknowledged, {kills} leaders killed"
    bench.numbers("exactly-once", [float(wrong)], note)
    bench.figure("outputs lost or doubled while leaders are killed", OURS, "rows", [float(wrong)], note=note)


def _write_numbers(host: Host, file: Any) -> None:
    """Write 0, 1, 2, ... as outputs of executions, 100 each; on SIGTERM note what was acknowledged."""
    done: dict[str, int] = {}
    try:
        while True:
            (identifier,) = host.running_executions(1)
            done[identifier] = 0
            for number in range(100):
                # One number further is noted before the call: a signal between its return and the note loses nothing.
                host.client.upsert_execution_output(identifier, "result", number, ordinal=number)
                done[identifier] = number + 1
                time.sleep(0.001)
    finally:
        file.write_text("".join(f"{identifier} {count}\n" for identifier, count in done.items()))


def _wrong_rows(host: Host, identifier: str, count: int) -> int:
    with connect(host.url, application_name="bench") as connection:
        rows = connection.execute(
            "SELECT value FROM node_execution_outputs WHERE node_execution_id = %s ORDER BY ordinal", (identifier,)
        ).fetchall()
    numbers = [row[0] for row in rows]
    # One more may be there: its write was done, and the worker ended before it was told.
    return 0 if numbers in (list(range(count)), list(range(count + 1))) else abs(len(numbers) - count) or 1


# A database that is away


def _while_the_database_is_away(bench: Bench, database: Database) -> None:
    seconds = bench.pick(3.0, 30.0)
    per_second = 500.0
    count = int(seconds * per_second)
    with Host(database, 512 << 20, sync_interval=1) as host:
        host.start_syncer()
        client = host.client
        found: dict[str, dict[str, float]] = {}
        for state in ("up", "down"):
            bench.say(f"enqueue for {seconds:g} s, the database {state}")
            executions = host.running_executions(count // 10)
            host.drained(host.arena.write_ring)
            if state == "down":
                host.fork_safely()
                client = host.client
                database.stop()
            arguments = [executions[number % len(executions)] for number in range(count)]

            def write(identifier: str) -> None:
                client.upsert_execution_output(identifier, "result", "x" * 300)  # noqa: B023 - called before the next turn

            with pinned(0):
                spent = latencies(write, arguments, per_second)
            found[state] = percentiles(spent)
            bench.figure(
                "enqueue by the client, single operations", f"database {state}", "ns", [found[state]["50.0"]],
                found[state], f"{per_second:g} a second for {seconds:g} s",
            )  # fmt: skip
        database.start()
        host.drained(host.arena.write_ring)
        bench.ratio("enqueue-down", [found["down"]["99.0"]], [found["up"]["99.0"]], "p99")
