"""Leaders of the write ring that are killed at any step, stopped, or superseded: what was acknowledged is in the
database, and was written once."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shmcache.arena import Arena, critical
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.identifiers import new_id
from shmcache.records import FINAL_STATUSES, ExecutionStatus, may_move
from syncer import sync_manager
from syncer.election import Candidate
from syncer.sync_manager import SyncManager
from tests import kill_points
from tests.integration.faults import await_true
from tests.integration.test_clients import SINK, small_graph
from tests.integration.test_syncer_faults import COUNT_APPLICATIONS, applied_more_than_once
from tests.integration.test_syncer_outage import append, begin_execution, outputs, values_of

InChild = Callable[[Callable[[Callable[[], bool]], None]], int]
StartSyncer = Callable[[str], psutil.Process]


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"leaders-{os.getpid()}", 64 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, sync_interval=0.1)


@pytest.fixture
def counted_url(database_url: str) -> str:
    """A database that notes each output's application."""
    with connect(database_url, application_name="test") as connection:
        connection.execute(COUNT_APPLICATIONS)
    return database_url


# Superseded


def lead_with_log(
    arena: Arena, database_url: str, settings: Settings, log: Path
) -> Callable[[Callable[[], bool]], None]:
    """Return the body of a syncer that logs to a file."""

    def body(should_stop: Callable[[], bool]) -> None:
        logging.basicConfig(filename=log, level="INFO", force=True)
        SyncManager(arena, database_url, settings).run(should_stop)

    return body


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "running"])
def test_a_leader_on_a_deleted_lock_file_is_fenced_at_its_next_commit(
    arena: Arena, counted_url: str, settings: Settings, in_child: InChild, tmp_path: Path, stopped: bool
) -> None:
    slow = settings.model_copy(update={"sync_interval": 3600.0})
    identifier = begin_execution(arena, counted_url)
    logs = tmp_path / "first.log", tmp_path / "second.log"
    first = in_child(lead_with_log(arena, counted_url, slow, logs[0]))
    append(arena, *outputs(identifier, 0, 10))
    arena.write_ring.request_drain()
    assert arena.write_ring.wait_committed(12, 60)
    if stopped:
        os.kill(first, signal.SIGSTOP)
    Candidate(settings.state_dir, arena.name, "syncer").path.unlink()
    in_child(lead_with_log(arena, counted_url, slow, logs[1]))
    await_true(lambda: logs[1].exists() and "Sync manager started" in logs[1].read_text())
    if stopped:
        append(arena, *outputs(identifier, 10, 10))
        arena.write_ring.request_drain()
        assert arena.write_ring.wait_committed(22, 60)
        os.kill(first, signal.SIGCONT)
    # Both are asked to drain; only the second may. The first finds that its epoch is over, and stands for election.
    for number in range(20, 60):
        append(arena, *outputs(identifier, number - (0 if stopped else 10), 1))
        arena.write_ring.request_drain()
        assert arena.write_ring.wait_committed(arena.write_ring.last_sequence, 60)
    await_true(lambda: _drains_until(arena, lambda: "epoch 1 is over, another process leads" in logs[0].read_text()))
    assert "is over" not in logs[1].read_text()
    assert values_of(counted_url, identifier) == list(range(60 if stopped else 50))
    assert applied_more_than_once(counted_url) == []


def _drains_until(arena: Arena, there: Callable[[], bool]) -> bool:
    if there():
        return True
    arena.write_ring.request_drain()
    return False


# Killed at a step

STEPS = ("taken", "sent", "answered", "committed", "locked", "staged", "intended", "applied", "cleared")
"""Steps of a drain, then, from "locked" on, those of the head's advance (see `shmcache.arena.arena`)."""


def die_at(step: str) -> None:
    """Have this process killed when a syncer in it comes to a step for the second time."""
    passed = 0

    def reached(name: str) -> None:
        nonlocal passed
        if name == step:
            passed += 1
            if passed == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    module: Any = sync_manager
    leader: Any = SyncManager
    take, sync, write_whole = leader._take, module.sync_pipeline, leader._write_whole

    def taken(self: SyncManager, after: int) -> Any:
        batch = take(self, after)
        if batch:
            reached("taken")
        return batch

    def synced(connection: Any, pipeline: Any, meanwhile: Callable[[], None]) -> None:
        def sent() -> None:
            reached("sent")
            meanwhile()

        sync(connection, pipeline, sent)
        reached("answered")

    def written(self: SyncManager, *arguments: Any) -> bool:
        done: bool = write_whole(self, *arguments)
        reached("committed")
        if done and step not in ("taken", "sent", "answered", "committed"):
            kill_points.arm(critical, reached)
        return done

    leader._take, leader._write_whole, module.sync_pipeline = taken, written, synced


@pytest.mark.parametrize("step", STEPS)
def test_a_leader_killed_at_any_step_is_followed_by_one_that_goes_on_where_it_was(
    arena: Arena, counted_url: str, settings: Settings, in_child: InChild, step: str
) -> None:
    identifier = begin_execution(arena, counted_url)
    pid = os.fork()
    if not pid:
        try:
            die_at(step)
            SyncManager(arena, counted_url, settings).run(lambda: False)
        finally:
            traceback.print_exc()
            os._exit(1)
    killed = threading.Event()

    def reap() -> None:
        os.waitpid(pid, 0)
        killed.set()

    threading.Thread(target=reap, daemon=True).start()
    written = 0
    while not killed.is_set():
        append(arena, *outputs(identifier, written, 50))
        written += 50
        arena.write_ring.request_drain()
        await_true(lambda: killed.is_set() or arena.write_ring.committed_sequence == arena.write_ring.last_sequence)
    in_child(SyncManager(arena, counted_url, settings).run)
    append(arena, *outputs(identifier, written, 50))
    arena.write_ring.request_drain()
    assert arena.write_ring.wait_committed(arena.write_ring.last_sequence, 60)
    assert arena.check() == []
    assert values_of(counted_url, identifier) == list(range(written + 50))
    assert applied_more_than_once(counted_url) == []


# Against a model


class Model:
    """What acknowledged writes make of executions, by the rules of the interface and nothing else."""

    def __init__(self) -> None:
        self.executions: dict[str, dict[str, Any]] = {}

    def created(self, identifier: str) -> None:
        self.executions[identifier] = {"status": "INCOMPLETE", "inputs": {}, "outputs": {}, "stats": {}, "moves": 0}

    def moved(self, identifier: str, status: ExecutionStatus, stats: dict[str, Any]) -> None:
        execution = self.executions[identifier]
        if may_move(ExecutionStatus(execution["status"]), status):
            execution["status"] = status.value
            execution["stats"] |= stats
            execution["moves"] += 1

    def output(self, identifier: str, name: str, value: Any) -> None:
        self.executions[identifier]["outputs"].setdefault(name, []).append(value)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_tables_are_what_the_acknowledged_writes_make_of_them_whatever_dies(
    arena: Arena, database_url: str, settings: Settings, start_syncer: StartSyncer, seed: int
) -> None:
    drawn = random.Random(seed)
    graph, nodes = small_graph()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
    model = Model()
    with CachedClient(arena, database_url, settings) as client:
        run = client.create_graph_execution(graph.id, new_id()).id
        syncers = [start_syncer(database_url), start_syncer(database_url)]
        for turn in range(1_500):
            open_ones = [key for key, each in model.executions.items() if each["status"] not in FINAL_STATUSES]
            chance = drawn.random()
            if not open_ones or chance < 0.05:
                identifier, _ = client.upsert_execution_input(SINK, run, None)
                model.created(identifier)
                continue
            identifier = drawn.choice(open_ones if chance < 0.9 else list(model.executions))
            if chance < 0.55:
                value = drawn.choice([None, "", 0, [turn], {"turn": turn}, "x" * drawn.randrange(3_000)])
                name = drawn.choice("ab")
                client.upsert_execution_output(identifier, name, value)
                model.output(identifier, name, value)
            elif chance < 0.65:
                name = drawn.choice(["left", "right"])
                client.upsert_execution_input(SINK, run, name, turn, identifier)
                model.executions[identifier]["inputs"].setdefault(name, turn)
            else:
                status, stats = drawn.choice(list(ExecutionStatus)), {drawn.choice("st"): turn}
                client.update_node_execution_status(identifier, status, None, stats)
                model.moved(identifier, status, stats)
            if turn % 100 == 99:
                arena.write_ring.request_drain()
                threading.Event().wait(drawn.random() / 100)
                victim = syncers.pop(drawn.randrange(2))
                victim.kill()
                syncers.append(start_syncer(database_url))
            elif turn % 25 == 24:
                arena.write_ring.request_drain()
        client.flush(60)
        with connect(database_url, application_name="test") as connection:
            found = {each.id: each for each in queries.load_node_executions(connection, run)}
        assert {
            each.id: {
                "status": each.status, "inputs": each.inputs, "outputs": each.outputs, "stats": each.stats,
                "moves": each.moves,
            }
            for each in found.values()
        } == model.executions  # fmt: skip
        assert found == {identifier: client.get_node_execution(identifier) for identifier in model.executions}


# Killed at any moment


def write_until_told(arena: Arena, database_url: str, settings: Settings, run: str, ends: int, says: Path) -> None:
    """Write outputs to one execution after another until there is a byte in the pipe `ends`; say what was
    acknowledged."""
    client = CachedClient(arena, database_url, settings)
    os.set_blocking(ends, False)
    identifier, count = "", 0
    while True:
        if count % 150 == 0:
            if identifier:
                with says.open("ab", buffering=0) as file:
                    file.write(f"{identifier} {count}\n".encode())
            with contextlib.suppress(BlockingIOError):
                os.read(ends, 1)
                break
            identifier, _ = client.upsert_execution_input(SINK, run, None)
            count = 0
        client.upsert_execution_output(identifier, "out", count, urgent=count % 50 == 0)
        count += 1
        threading.Event().wait(0.001)


@pytest.mark.timeout(1_800)
def test_kills_of_leaders_at_random_moments_lose_and_double_nothing_of_four_writing_workers(
    arena: Arena,
    counted_url: str,
    settings: Settings,
    start_syncer: StartSyncer,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    kills: int = request.config.getoption("--kills")
    drawn = random.Random()
    graph, nodes = small_graph()
    with connect(counted_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
    run = CachedClient(arena, counted_url, settings).create_graph_execution(graph.id, new_id()).id
    still, ends = os.pipe()
    acknowledgements = tmp_path / "acknowledged"
    workers = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            try:
                write_until_told(arena, counted_url, settings, run, still, acknowledgements)
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
        workers.append(pid)
    lock = Candidate(settings.state_dir, arena.name, "syncer").path
    syncers = {process.pid: process for process in (start_syncer(counted_url), start_syncer(counted_url))}
    for _ in range(kills):
        committed = arena.write_ring.committed_sequence
        await_true(lambda before=committed: arena.write_ring.committed_sequence > before)  # type: ignore[misc]
        threading.Event().wait(drawn.random() * 0.1)
        await_true(lambda: lock.read_text() != "" and int(lock.read_text()) in syncers)
        syncers.pop(int(lock.read_text())).kill()
        process = start_syncer(counted_url)
        syncers[process.pid] = process
    os.write(ends, bytes(len(workers)))
    for pid in workers:
        assert os.waitpid(pid, 0)[1] == 0
    for descriptor in (still, ends):
        os.close(descriptor)
    arena.write_ring.request_drain()
    assert arena.write_ring.wait_committed(arena.write_ring.last_sequence, 60)
    acknowledged = {
        identifier: int(count)
        for identifier, count in (line.split() for line in acknowledgements.read_text().splitlines())
    }
    with connect(counted_url, application_name="test") as connection:
        rows = connection.execute(
            "SELECT node_execution_id::text, array_agg(value ORDER BY ordinal) FROM node_execution_outputs GROUP BY 1"
        ).fetchall()
        letters = connection.execute("SELECT count(*) FROM dead_letters").fetchone()
    assert len(acknowledged) >= 4
    assert dict(rows) == {identifier: list(range(count)) for identifier, count in acknowledged.items()}
    assert applied_more_than_once(counted_url) == []
    assert letters == (0,)
    assert arena.counter_totals()["leaders"] >= kills
