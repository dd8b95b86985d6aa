"""`shmcache drain`: an arena that a dead supervisor left, carried to the database by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shmcache.arena import Arena, list_arenas
from shmcache.cached_client import CachedClient
from shmcache.config import load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.database.migrate import identity
from shmcache.identifiers import new_id
from syncer.election import Candidate
from tests.integration.test_clients import SINK, small_graph
from tests.integration.test_syncer_outage import values_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def name() -> Iterator[str]:
    chosen = f"drained-{os.getpid()}"
    yield chosen
    if chosen in list_arenas():
        with Arena.attach(chosen) as left:
            left.unlink()


@pytest.fixture
def drain(name: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `shmcache drain NAME` over a database."""

    def run(database_url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tools.cli", "drain", name, *arguments],
            cwd=ROOT,
            env={**os.environ, "SHMCACHE_DATABASE_URL": database_url, "SHMCACHE_STATE_DIR": str(tmp_path)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return run


def leave_behind(name: str, database_url: str, tmp_path: Path, count: int) -> str:
    """Have a process write outputs to an arena of its own and be killed; return the execution's id."""
    graph, nodes = small_graph()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
        database_identity = identity(connection)
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        arena = Arena.create(name, 16 << 20, database_identity)
        client = CachedClient(arena, database_url, load_settings(state_dir=tmp_path))
        run = client.create_graph_execution(graph.id, new_id())
        identifier, _ = client.upsert_execution_input(SINK, run.id, None)
        for number in range(count):
            client.upsert_execution_output(identifier, "out", number)
        os.write(writes, identifier.encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(writes)
    with open(reads) as pipe:
        return pipe.read()


def test_what_a_killed_process_wrote_is_drained_and_the_arena_removed(
    name: str, drain: Callable[..., subprocess.CompletedProcess[str]], database_url: str, tmp_path: Path
) -> None:
    identifier = leave_behind(name, database_url, tmp_path, 200)
    done = drain(database_url, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told.pop("drained") > 200
    assert told == {"arena": name, "dead_letters": 0, "left": 0, "removed": True}
    assert values_of(database_url, identifier) == list(range(200))
    assert "draining" in done.stderr
    assert name not in list_arenas()
    again = drain(database_url)
    assert (again.returncode, again.stdout) == (2, "")
    assert f"no arena named {name!r}" in again.stderr


def test_an_arena_in_use_is_left_alone(
    name: str, drain: Callable[..., subprocess.CompletedProcess[str]], database_url: str, tmp_path: Path
) -> None:
    with Arena.create(name, 16 << 20):
        done = drain(database_url)
        assert done.returncode == 2
        assert f"processes {os.getpid()} use it" in done.stderr
        lock = Candidate(tmp_path, name, "supervisor")
        assert lock.try_now()
        assert "a supervisor has it" in drain(database_url).stderr
        lock.leave()
    assert name in list_arenas()


def test_an_arena_of_another_database_is_not_drained_into_this_one(
    name: str,
    drain: Callable[..., subprocess.CompletedProcess[str]],
    new_database_url: Callable[[], str],
    tmp_path: Path,
) -> None:
    first, second = new_database_url(), new_database_url()
    identifier = leave_behind(name, first, tmp_path, 5)
    done = drain(second)
    assert done.returncode == 2
    assert "another database" in done.stderr
    assert name in list_arenas()
    assert drain(first).returncode == 0
    assert values_of(first, identifier) == list(range(5))


def test_a_database_that_is_away_leaves_the_arena_as_it_is(
    name: str, drain: Callable[..., subprocess.CompletedProcess[str]], database_url: str, tmp_path: Path
) -> None:
    leave_behind(name, database_url, tmp_path, 5)
    done = drain("postgresql://127.0.0.1:1/nobody")
    assert done.returncode == 2
    assert "cannot use the database at 127.0.0.1:1/nobody" in done.stderr
    assert drain(database_url, "--json").returncode == 0
