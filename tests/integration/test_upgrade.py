"""A new version that finds an arena of an old one's layout: it says so and touches nothing; the old one drains it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shmcache.arena import list_arenas, unlink_segment
from shmcache.arena.layout import LANE_BYTES
from shmcache.database.connection import connect
from tests.integration.readme import ROOT, blocks, command_lines

ARENA = f"upgrade-{os.getpid()}"
WORKER = """
import signal
from shmcache import get_db_client
from shmcache.graphs import example_path, load_graph_file
from shmcache.identifiers import new_id

def work():
    client = get_db_client()
    graph, nodes = load_graph_file(example_path())
    client.save_graph(graph, nodes)
    run = client.create_graph_execution(graph.id, new_id())
    for number in range(7):
        client.upsert_execution_input(nodes[0].id, run.id, "value", number)
    print("written", flush=True)
    signal.pause()
"""


def copy(place: Path) -> Path:
    for package in ("shmcache", "syncer", "tools"):
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
    return place


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A version of shmcache that has one more table."""
    place = copy(tmp_path / "new")
    (place / "shmcache" / "database" / "migrations" / "shmcache" / "9999_more.sql").write_text("CREATE TABLE more ();")
    return place


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A version of shmcache whose lanes are twice as long: the same program, another layout."""
    place = copy(tmp_path / "old")
    layout = place / "shmcache" / "arena" / "layout.py"
    text, lanes = re.subn(r"LANE_BYTES = \d+", f"LANE_BYTES = {2 * LANE_BYTES}", layout.read_text())
    text, described = re.subn(r"lanes \d+,", f"lanes {2 * LANE_BYTES},", text)
    assert (lanes, described) == (1, 1)
    layout.write_text(text)
    return place


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    if ARENA in list_arenas():
        unlink_segment(ARENA)


class Versions:
    """Both versions, over one database."""

    def __init__(self, old: Path, new: Path, database_url: str, directory: Path) -> None:
        self.places = {"old": old, "new": new}
        self.directory = directory
        self.environment = {
            **os.environ,
            "SHMCACHE_DATABASE_URL": database_url,
            "SHMCACHE_STATE_DIR": str(directory),
            "SHMCACHE_SYNC_INTERVAL": "1 h",
        }

    def start(self, version: str, *arguments: str) -> subprocess.Popen[str]:
        # Started as an installed program is: with that version, and no other, on the path.
        start = "import sys; from tools.cli import main; sys.argv[0] = 'shmcache'; main()"
        return subprocess.Popen(
            [sys.executable, "-c", start, *arguments],
            cwd=self.directory,
            env={**self.environment, "PYTHONPATH": str(self.places[version])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, version: str, *arguments: str) -> tuple[int, str, str]:
        process = self.start(version, *arguments)
        out, said = process.communicate(timeout=120)
        return process.returncode, out, said


@pytest.fixture
def versions(old: Path, new: Path, database_url: str, tmp_path: Path) -> Versions:
    (tmp_path / "own_worker.py").write_text(WORKER)
    return Versions(old, new, database_url, tmp_path)


def rows(database_url: str) -> int:
    with connect(database_url, application_name="test") as connection:
        row = connection.execute("SELECT count(*) FROM node_execution_inputs").fetchone()
    assert row is not None
    return int(row[0])


def has_new_table(database_url: str) -> bool:
    with connect(database_url, application_name="test") as connection:
        return connection.execute("SELECT to_regclass('more')").fetchone() != (None,)


def kill_all(supervisor: subprocess.Popen[str]) -> None:
    processes = [psutil.Process(supervisor.pid), *psutil.Process(supervisor.pid).children(recursive=True)]
    for each in processes:
        each.suspend()  # so that none starts another
    for each in processes:
        each.kill()
    supervisor.communicate(timeout=60)
    psutil.wait_procs(processes[1:], timeout=60)


def test_what_an_old_version_left_behind_is_carried_over_by_it_as_the_readme_says(
    versions: Versions, database_url: str
) -> None:
    supervisor = versions.start("old", "supervise", "own_worker:work", "--workers", "1", "--arena", ARENA)
    assert supervisor.stdout is not None
    assert supervisor.stdout.readline() == "written\n"
    kill_all(supervisor)
    assert ARENA in list_arenas()
    assert rows(database_url) == 0

    # The new one does not take it for its own, says what to do, and leaves the tables to the old one.
    status, _, said = versions.run("new", "run", "--arena", ARENA)
    assert (status, said.count("Traceback")) == (2, 0), said
    assert "another version of shmcache made it: drain it with that version" in said
    assert not has_new_table(database_url)

    # What the README tells to do.
    (block,) = (each for each in blocks() if "old/bin/" in each.text)
    for line in command_lines(block):
        version, arguments = line.split("/bin/shmcache ")
        status, _, said = versions.run(version, *arguments.replace("NAME", ARENA).split())
        assert status == 0, said
        assert ARENA not in list_arenas()
        assert rows(database_url) == 7 if version == "old" else rows(database_url) > 7
    assert has_new_table(database_url)


def test_a_new_version_starts_under_another_name_beside_what_an_old_one_left_behind(
    versions: Versions, database_url: str
) -> None:
    supervisor = versions.start("old", "supervise", "own_worker:work", "--workers", "1", "--arena", ARENA)
    assert supervisor.stdout is not None
    assert supervisor.stdout.readline() == "written\n"
    kill_all(supervisor)
    status, out, said = versions.run("new", "run", "--arena", f"{ARENA}-2", "--json")
    assert (status, json.loads(out)["unsynced"]) == (0, 0), said
    assert "another version of shmcache made it" in said
    assert list_arenas().count(ARENA) == 1
    assert versions.run("old", "drain", ARENA)[0] == 0
