"""Whole runs, from the command line to the rows in PostgreSQL, with and without deaths on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shmcache.arena import Arena, list_arenas
from shmcache.database.connection import connect
from shmcache.errors import ArenaUnusable
from shmcache.graphs import example_path
from tests.integration.database_rows import rows_left_behind

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "wfformat"
OURS = sorted((ROOT / "tests" / "graphs").glob("*.json"))
FILES = [*OURS, Path(example_path()), *sorted(REAL.glob("*.json"))]
LARGE = REAL / "1000genome-chameleon-10ch-100k-001.json"
needs_real_graphs = pytest.mark.skipif(not REAL.is_dir(), reason="../shared, with the recorded workflows, is not here")


class Run:
    """A `shmcache run` in a process of its own."""

    def __init__(self, database_url: str, state_dir: Path, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.cli", "run", "--json", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "SHMCACHE_DATABASE_URL": database_url, "SHMCACHE_STATE_DIR": str(state_dir)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def summary(self, expected_status: int = 0) -> dict[str, Any]:
        """Wait for the end; return the summary."""
        output, log = self.process.communicate(timeout=240)
        assert self.process.returncode == expected_status, log[-4000:]
        parsed: dict[str, Any] = json.loads(output)
        return parsed

    def children(self, role: str) -> list[psutil.Process]:
        """Return the processes of a role, as their titles say; "" for all."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if f"shmcache: {role}" in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found


@pytest.fixture
def start_run(new_database_url: Callable[[], str], tmp_path: Path) -> Iterator[Callable[..., tuple[Run, str]]]:
    runs: list[Run] = []

    def start(*arguments: str | Path) -> tuple[Run, str]:
        url = new_database_url()
        runs.append(Run(url, tmp_path, *arguments))
        return runs[-1], url

    yield start
    for run in runs:
        if run.process.poll() is None:
            for child in psutil.Process(run.process.pid).children(recursive=True):
                child.kill()
            run.process.kill()
            run.process.wait()
        assert [name for name in list_arenas() if name.startswith(f"run-{run.process.pid}-")] == []


def assert_sound(summary: dict[str, Any], url: str) -> None:
    """Check a finished run's summary against the database."""
    assert summary["unsynced"] == 0
    assert summary["dead_letters"] == 0
    with connect(url, application_name="test") as connection:
        row = connection.execute("SELECT coalesce(-sum(amount), 0), count(*) FROM ledger").fetchone()
        assert row is not None
        assert (int(row[0]), row[1]) == (summary["credits_charged"], summary["charges"])
        executions = connection.execute("SELECT status, count(*) FROM node_executions GROUP BY 1").fetchall()
    assert sum(count for _, count in executions) == summary["node_executions"]
    assert dict(executions).get("COMPLETED", 0) == summary["completed"]
    assert summary["opening_balance"] - summary["closing_balance"] == summary["credits_charged"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem[:24])
@pytest.mark.parametrize("workers", [1, 4])
def test_both_clients_leave_the_same_rows(start_run: Callable[..., tuple[Run, str]], path: Path, workers: int) -> None:
    status = 1 if path.name == "one_fails.json" else 0
    cached, cached_url = start_run(path, "--workers", str(workers))
    cached_summary = cached.summary(status)
    direct, direct_url = start_run(path, "--workers", str(workers), "--direct")
    direct_summary = direct.summary(status)
    assert_sound(cached_summary, cached_url)
    assert_sound(direct_summary, direct_url)
    assert rows_left_behind(cached_url) == rows_left_behind(direct_url)
    assert cached_summary["failed"] == direct_summary["failed"] == status
    assert direct_summary["blocking_db_operations"] > cached_summary["blocking_db_operations"]


@needs_real_graphs
def test_a_cached_run_hardly_ever_waits_for_the_database(start_run: Callable[..., tuple[Run, str]]) -> None:
    run, _ = start_run(LARGE, "--workers", "4")
    summary = run.summary()
    assert summary["node_executions"] == summary["completed"] == 260
    assert summary["blocking_db_operations_per_node"] < 0.1


@needs_real_graphs
@pytest.mark.parametrize("victim", ["worker", "syncer", "charger", "pool"])
def test_a_run_survives_kill_9_with_the_rows_of_an_undisturbed_one(
    start_run: Callable[..., tuple[Run, str]], victim: str
) -> None:
    # A process of the pool takes a second to come up: three of them, one after the other, need a run that lasts.
    repeat = "20" if victim == "pool" else "3"
    arguments = (LARGE, "--workers", "4", "--repeat", repeat, "--time-scale", "0.00005")
    undisturbed, undisturbed_url = start_run(*arguments)
    assert_sound(undisturbed.summary(), undisturbed_url)
    run, url = start_run(*arguments)
    killed = 0
    deadline = time.monotonic() + 120
    while run.process.poll() is None and killed < 3 and time.monotonic() < deadline:
        for child in run.children(victim)[:1]:
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
            psutil.wait_procs([child], timeout=10)
    summary = run.summary()
    assert killed == 3
    assert_sound(summary, url)
    assert rows_left_behind(url) == rows_left_behind(undisturbed_url)


def test_a_killed_supervisor_is_followed_by_one_that_drains_what_it_left(
    start_run: Callable[..., tuple[Run, str]], new_database_url: Callable[[], str], tmp_path: Path
) -> None:
    url = new_database_url()
    first = Run(url, tmp_path, example_path(), "--repeat", "40")
    deadline = time.monotonic() + 60
    prefix = f"run-{first.process.pid}-"
    while not (left := [name for name in list_arenas() if name.startswith(prefix)]) or not _works(left[0]):
        assert time.monotonic() < deadline
        assert first.process.poll() is None
    children = first.children("")
    first.process.kill()
    for child in children:
        child.kill()
    first.process.communicate()
    psutil.wait_procs(children, timeout=30)
    written = _acknowledged(left[0])
    assert written > 0
    second = Run(url, tmp_path, example_path())
    output, log = second.process.communicate(timeout=120)
    assert json.loads(output)["completed"] == 70
    assert left[0] not in list_arenas(), log
    with connect(url, application_name="test") as connection:
        statuses = dict(connection.execute("SELECT status, count(*) FROM graph_executions GROUP BY 1").fetchall())
        open_rows = connection.execute(
            "SELECT count(*) FROM node_executions WHERE status IN ('INCOMPLETE', 'QUEUED', 'RUNNING')"
        ).fetchone()
        sequence = connection.execute("SELECT max(sequence) FROM checkpoints WHERE ring = 'write'").fetchone()
    assert sum(statuses.values()) == 41
    assert set(statuses) <= {"COMPLETED", "TERMINATED"}
    assert statuses["TERMINATED"] > 0
    assert open_rows == (0,)
    assert sequence is not None
    assert sequence[0] >= written


def _works(arena_name: str) -> bool:
    """Say whether a run has got as far as running nodes."""
    try:
        arena = Arena.attach(arena_name)
    except ArenaUnusable:
        return False
    try:
        return arena.counter_totals()["node_runs"] > 50
    finally:
        arena.close()


def _acknowledged(arena_name: str) -> int:
    """Return the sequence of the last write that a dead run's arena took."""
    arena = Arena.attach(arena_name)
    try:
        return arena.write_ring.last_sequence
    finally:
        arena.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"name": "x", "nodes": [', "graph.json"),
        (b"\xff\xfe", "graph.json"),
        (b'{"name": "x", "nodes": [{"id": "a", "block": "no.such.block"}]}', "no.such.block"),
    ],
)
def test_a_broken_file_is_one_line_and_nothing_is_started(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "graph.json"
    path.write_bytes(content)
    run = Run("postgresql://127.0.0.1:1/nobody", tmp_path, path)
    output, log = run.process.communicate(timeout=60)
    assert (run.process.returncode, output) == (2, "")
    assert len(log.splitlines()) == 1
    assert said in log


def test_a_database_that_cannot_be_reached_is_one_line_without_the_password(tmp_path: Path) -> None:
    run = Run("postgresql://me:secret@127.0.0.1:1/nobody", tmp_path, example_path())
    output, log = run.process.communicate(timeout=60)
    assert (run.process.returncode, output) == (2, "")
    assert len(log.splitlines()) == 1
    assert "127.0.0.1:1/nobody" in log
    assert "secret" not in log


def test_without_money_a_graph_is_terminated_and_nothing_more_is_charged(
    start_run: Callable[..., tuple[Run, str]],
) -> None:
    run, url = start_run(example_path(), "--credits", "10")
    summary = run.summary(1)
    assert_sound(summary, url)
    assert summary["graph_executions_by_status"] == {"TERMINATED": 1}
    assert summary["credits_charged"] <= 10
    assert summary["failed"] >= 1


def test_an_interrupted_run_drains_terminates_and_leaves_nothing(start_run: Callable[..., tuple[Run, str]]) -> None:
    run, url = start_run(example_path(), "--repeat", "200")
    deadline = time.monotonic() + 60
    prefix = f"run-{run.process.pid}-"
    while not (there := [name for name in list_arenas() if name.startswith(prefix)]) or not _works(there[0]):
        assert time.monotonic() < deadline
        assert run.process.poll() is None
    run.process.send_signal(signal.SIGTERM)
    summary = run.summary(1)
    assert_sound(summary, url)
    assert summary["graph_executions"] == 200
    assert set(summary["graph_executions_by_status"]) <= {"COMPLETED", "TERMINATED"}


def test_a_second_signal_leaves_at_once_and_the_next_start_drains(
    new_database_url: Callable[[], str], tmp_path: Path
) -> None:
    url = new_database_url()
    first = Run(url, tmp_path, example_path(), "--repeat", "200")
    deadline = time.monotonic() + 60
    prefix = f"run-{first.process.pid}-"
    while not (left := [name for name in list_arenas() if name.startswith(prefix)]) or not _works(left[0]):
        assert time.monotonic() < deadline
        assert first.process.poll() is None
    syncers = first.children("syncer")
    for syncer in syncers:
        syncer.suspend()
    first.process.send_signal(signal.SIGINT)
    psutil.wait_procs(first.children("worker"), timeout=30)
    first.process.send_signal(signal.SIGINT)
    _, log = first.process.communicate(timeout=60)
    assert first.process.returncode == 1, log
    assert left[0] in list_arenas()
    written = _acknowledged(left[0])
    assert Run(url, tmp_path, example_path()).summary()["completed"] == 70
    assert left[0] not in list_arenas()
    with connect(url, application_name="test") as connection:
        sequence = connection.execute("SELECT max(sequence) FROM checkpoints WHERE ring = 'write'").fetchone()
    assert sequence is not None
    assert sequence[0] >= written
