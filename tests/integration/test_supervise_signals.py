"""`shmcache supervise`: how it ends, by itself, by a signal, by two, and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shmcache.arena import Arena, list_arenas
from shmcache.database.connection import connect

ROOT = Path(__file__).parents[2]

WORKER = """
import os, signal, sys, time
from pathlib import Path
from shmcache import get_db_client
from shmcache.execution_data_client import WorkKind
from shmcache.graphs import example_path, load_graph_file
from shmcache.identifiers import new_id

graph, nodes = load_graph_file(example_path())

def begin():
    client = get_db_client()
    client.save_graph(graph, nodes)
    run = client.create_graph_execution(graph.id, user_id=new_id())
    client.atomically(lambda: client.put_work(WorkKind.START, run.id, run.id))
    return client, run

def write_and_return():
    client, run = begin()
    work = client.take_work(5)
    client.end_work(work, run.id)
    finish = client.take_work(5)
    client.end_work(finish, run.id)

def write_and_wait():
    begin()
    try:
        Path(f"ready-{os.getpid()}").touch()
        signal.pause()
    finally:
        Path(f"left-{os.getpid()}").touch()

def write_when_told():
    client, _ = begin()
    Path(f"ready-{os.getpid()}").touch()
    while not Path("go").exists():
        signal.sigtimedwait([], 0.01)
    client.create_graph_execution(graph.id, user_id=new_id())
    client.flush(60)
    Path(f"flushed-{os.getpid()}").touch()
    signal.pause()

def wait_deaf():
    begin()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(f"ready-{os.getpid()}").touch()
    while True:
        signal.pause()

def fail_first():
    begun = Path("begun")
    if not begun.exists():
        begun.touch()
        raise LookupError("nothing here yet")

def count_threads_of_the_supervisor():
    Path(f"threads-{os.getpid()}").write_text(str(len(os.listdir(f"/proc/{os.getppid()}/task"))))
"""


class Supervised:
    """A `shmcache supervise` in a process of its own."""

    def __init__(self, directory: Path, database_url: str, function: str, arena: str, workers: int = 2) -> None:
        self.directory = directory
        self.arena = arena
        self._log = directory / f"{function}-{time.monotonic_ns()}.txt"
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "tools.cli", "supervise", f"my_work:{function}",
                "--workers", str(workers), "--arena", arena, "--arena-size", "32 MiB",
            ],
            cwd=directory,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TMPDIR": str(directory),
                "SHMCACHE_DATABASE_URL": database_url,
                "SHMCACHE_STATE_DIR": str(directory),
                "SHMCACHE_STOPPED_WAIT": "500 ms",
            },
            stderr=self._log.open("w"),
        )  # fmt: skip

    def until(self, done: Callable[[], bool]) -> None:
        """Wait for a condition while it runs."""
        deadline = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline
            assert self.process.poll() is None, self.log()

    def log(self) -> str:
        """Return what it has logged so far."""
        return self._log.read_text()

    def ready(self) -> list[int]:
        """Return the pids of the workers that are ready."""
        return [int(path.name.partition("-")[2]) for path in self.directory.glob("ready-*")]

    def end(self) -> tuple[int, str]:
        """Wait for its end; return its status and its log."""
        return self.process.wait(120), self.log()


@pytest.fixture
def supervise(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    (tmp_path / "my_work.py").write_text(WORKER)
    started: list[Supervised] = []
    arena = f"supervised-{os.getpid()}-{time.monotonic_ns()}"

    def start(function: str, workers: int = 2) -> Supervised:
        started.append(Supervised(tmp_path, database_url, function, arena, workers))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            for child in psutil.Process(each.process.pid).children(recursive=True):
                if child.name().startswith("shmcache:"):  # Python's resource tracker ends by itself, and cleans up
                    child.kill()
            each.process.kill()
            each.process.wait()
    left = arena in list_arenas()
    if left:
        with Arena.attach(arena) as segment:
            segment.unlink()
    assert not left


def graph_executions(database_url: str) -> dict[str, int]:
    """Return how many graph executions have which status, in the database."""
    with connect(database_url, application_name="test") as connection:
        rows = connection.execute("SELECT status, count(*) FROM graph_executions GROUP BY 1").fetchall()
    return dict(rows)


def test_it_ends_when_all_have_returned_and_what_they_wrote_is_in_the_database(
    supervise: Callable[..., Supervised], database_url: str, tmp_path: Path
) -> None:
    assert supervise("write_and_return", workers=3).end()[0] == 0
    assert sum(graph_executions(database_url).values()) == 3
    assert list((tmp_path / "locks").glob("supervised-*")) == [], "no lock file is left of an arena that is gone"


def test_work_that_returning_workers_leave_behind_is_terminated(
    supervise: Callable[..., Supervised], database_url: str
) -> None:
    assert supervise("begin").end()[0] == 0
    assert graph_executions(database_url) == {"TERMINATED": 2}


def test_sigterm_raises_in_the_function_and_everything_is_drained(
    supervise: Callable[..., Supervised], database_url: str, tmp_path: Path
) -> None:
    run = supervise("write_and_wait")
    run.until(lambda: len(run.ready()) == 2)
    run.process.send_signal(signal.SIGTERM)
    status, log = run.end()
    assert status == 0, log
    assert len(list(tmp_path.glob("left-*"))) == 2
    assert graph_executions(database_url) == {"TERMINATED": 2}
    assert "Sync manager stopped" in log
    assert "Charge manager shutdown" in log


def test_a_worker_that_is_killed_is_started_again(supervise: Callable[..., Supervised]) -> None:
    run = supervise("write_and_wait")
    run.until(lambda: len(run.ready()) == 2)
    os.kill(run.ready()[0], signal.SIGKILL)
    run.until(lambda: len(run.ready()) == 3)
    run.process.send_signal(signal.SIGTERM)
    status, log = run.end()
    assert status == 0
    assert "died of SIGKILL: starting another" in log


def test_a_function_that_raises_is_tried_again_and_its_traceback_kept(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    status, log = supervise("fail_first", workers=1).end()
    assert status == 0
    assert "LookupError: nothing here yet (details in" in log
    assert "Traceback" not in log
    assert any("fail_first" in path.read_text() for path in tmp_path.glob("shmcache-*.log"))


def test_a_second_ctrl_c_leaves_at_once_and_the_next_start_goes_on_with_the_arena(
    supervise: Callable[..., Supervised], database_url: str
) -> None:
    first = supervise("wait_deaf")
    first.until(lambda: len(first.ready()) == 2)
    children = [each for each in psutil.Process(first.process.pid).children() if each.name().startswith("shmcache:")]
    first.process.send_signal(signal.SIGINT)
    first.until(lambda: "ending in order" in first.log())
    left = Arena.attach(first.arena)
    written = left.write_ring.last_sequence
    left.close()
    first.process.send_signal(signal.SIGINT)
    status, log = first.end()
    assert status == 1
    assert "left at once" in log
    assert all(_has_ended(child) for child in children)
    assert written > 0
    second = supervise("write_and_wait")
    second.until(lambda: len(second.ready()) == 4)
    second.process.send_signal(signal.SIGTERM)
    status, log = second.end()
    assert status == 0, log
    assert "attached to it" in log
    assert graph_executions(database_url) == {"TERMINATED": 4}


def test_a_killed_supervisors_workers_leave_and_the_next_one_waits_for_them(
    supervise: Callable[..., Supervised], database_url: str
) -> None:
    first = supervise("write_and_wait")
    first.until(lambda: len(first.ready()) == 2)
    children = [each for each in psutil.Process(first.process.pid).children() if each.name().startswith("shmcache:")]
    first.process.kill()
    second = supervise("write_and_wait")
    second.until(lambda: len(second.ready()) == 4)
    assert len(children) == 5
    assert all(_has_ended(child) for child in children)
    second.process.send_signal(signal.SIGTERM)
    assert second.end()[0] == 0
    assert graph_executions(database_url) == {"TERMINATED": 4}


def _has_ended(process: psutil.Process) -> bool:
    """Say whether a process has ended, also where nobody has reaped it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_one_arena_has_one_supervisor(supervise: Callable[..., Supervised]) -> None:
    first = supervise("write_and_wait")
    first.until(lambda: len(first.ready()) == 2)
    status, log = supervise("write_and_wait").end()
    assert status == 2
    assert "exists already" in log.splitlines()[-1]
    first.process.send_signal(signal.SIGTERM)
    assert first.end()[0] == 0


def test_the_supervisor_has_no_thread_but_its_own_when_it_forks(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    assert supervise("count_threads_of_the_supervisor").end()[0] == 0
    assert [path.read_text() for path in tmp_path.glob("threads-*")] == ["1", "1"]


def test_a_leader_that_is_stopped_is_ended_and_the_next_one_carries_on(
    supervise: Callable[..., Supervised], tmp_path: Path, database_url: str
) -> None:
    run = supervise("write_when_told")
    run.until(lambda: len(run.ready()) == 2)
    lock = tmp_path / "locks" / f"{run.arena}.syncer.lock"
    run.until(lambda: lock.exists() and lock.read_text() != "")
    leader = int(lock.read_text())
    os.kill(leader, signal.SIGSTOP)
    (tmp_path / "go").touch()
    run.until(lambda: len(list(tmp_path.glob("flushed-*"))) == 2)
    assert f"syncer {leader} has been stopped" in run.log()
    assert sum(graph_executions(database_url).values()) == 4
    run.process.send_signal(signal.SIGTERM)
    run.end()
