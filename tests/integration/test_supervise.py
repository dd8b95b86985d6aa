"""`shmcache supervise`: somebody's own worker function, kept alive over one arena."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from shmcache.arena import Arena, list_arenas
from shmcache.database.connection import connect

ROOT = Path(__file__).parents[2]

WORKER = '''
import os, sys, signal
from shmcache import ExecutionStatus, get_db_client
from shmcache.execution_data_client import WorkKind
from shmcache.graphs import example_path, load_graph_file
from shmcache.identifiers import new_id

def once():
    """Dies the first time, in the middle of its work; the next attempt does it."""
    client = get_db_client()
    graph, nodes = load_graph_file(example_path())
    client.save_graph(graph, nodes)
    if not os.path.exists("submitted"):
        run = client.create_graph_execution(graph.id, new_id())
        identifier, _ = client.upsert_execution_input(nodes[0].id, run.id, None)
        client.put_work(WorkKind.RUN, identifier, run.id)
        open("submitted", "w").write(run.id)
    work = client.take_work(30)
    client.upsert_execution_output(work.id, "out", work.attempt, ordinal=0)
    if work.attempt == 1:
        os.kill(os.getpid() if DIES == "worker" else os.getppid(), signal.SIGKILL)
        signal.pause()
    client.update_node_execution_status(work.id, ExecutionStatus.RUNNING)
    client.update_node_execution_status(work.id, ExecutionStatus.COMPLETED)
    finish = client.end_work(work, open("submitted").read())
    finish = client.take_work(30)
    client.end_work(finish, open("submitted").read())
    print(work.attempt, flush=True)

def raises():
    raise ValueError("no luck")
'''


@pytest.fixture
def supervise(database_url: str, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    def start(function: str, dies: str = "worker", workers: int = 1) -> subprocess.Popen[str]:
        (tmp_path / "own_worker.py").write_text(WORKER.replace("DIES", repr(dies)))
        return subprocess.Popen(
            [sys.executable, "-m", "tools.cli", "supervise", f"own_worker:{function}",
             "--workers", str(workers), "--arena", f"supervise-{os.getpid()}"],
            cwd=tmp_path,
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "SHMCACHE_DATABASE_URL": database_url,
                "SHMCACHE_STATE_DIR": str(tmp_path),
            },
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def test_a_worker_that_dies_is_started_again_and_its_work_comes_back(
    supervise: Callable[..., subprocess.Popen[str]], database_url: str
) -> None:
    process = supervise("once")
    output, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert output == "2\n"
    with connect(database_url, application_name="test") as connection:
        rows = connection.execute("SELECT status FROM node_executions").fetchall()
        outputs = connection.execute("SELECT value FROM node_execution_outputs").fetchall()
    assert rows == [("COMPLETED",)]
    assert outputs == [(1,)], "the output of the attempt that died stands, and is not doubled"
    assert f"supervise-{os.getpid()}" not in list_arenas()


def test_an_arena_whose_supervisor_was_killed_is_attached_to_and_its_work_goes_on(
    supervise: Callable[..., subprocess.Popen[str]], database_url: str
) -> None:
    first = supervise("once", "supervisor")
    children: list[psutil.Process] = []
    while first.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(first.pid).children(recursive=True) or children
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            if "resource_tracker" not in " ".join(child.cmdline()):
                child.kill()
    first.communicate()
    psutil.wait_procs(children, timeout=30)
    with Arena.attach(f"supervise-{os.getpid()}") as left:
        assert left.outstanding() == 1
    second = supervise("once", "supervisor")
    output, log = second.communicate(timeout=60)
    assert second.returncode == 0, log
    assert output == "2\n"
    assert f"supervise-{os.getpid()}" not in list_arenas()


def test_a_worker_that_always_fails_ends_the_supervisor_with_one_clear_error(
    supervise: Callable[..., subprocess.Popen[str]],
) -> None:
    process = supervise("raises")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 3, "a status of its own: a service manager need not try again"
    assert "no luck" in log
    assert log.splitlines()[-1].startswith("shmcache: a worker fails as soon as it is started")
    assert "Traceback" not in log
    assert f"supervise-{os.getpid()}" not in list_arenas()


@pytest.mark.parametrize("target", ["no_such_module:work", "own_worker:nothing", "own_worker", "json:__name__"])
def test_a_target_that_is_none_is_one_line(tmp_path: Path, target: str) -> None:
    (tmp_path / "own_worker.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "tools.cli", "supervise", target],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SHMCACHE_DATABASE_URL": "postgresql://127.0.0.1:1/x"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert target.split(":", maxsplit=1)[0] in done.stderr
