"""What a run logs: the lines that people search for, word for word, each bound to its process and arena."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
WORKER = """
import logging
from shmcache import get_db_client
from shmcache.graphs import example_path, load_graph_file
from shmcache.identifiers import new_id

def work():
    client = get_db_client()
    graph, nodes = load_graph_file(example_path())
    client.save_graph(graph, nodes)
    run = client.create_graph_execution(graph.id, new_id())
    identifier, _ = client.upsert_execution_input(nodes[0].id, run.id, "value", 1)
    client.upsert_execution_output(identifier, "result", 2)
    client.flush()
    for _ in range(100):
        logging.getLogger("own").warning("a worker's own line")
"""


@pytest.fixture
def supervise(database_url: str, tmp_path: Path) -> Callable[..., str]:
    (tmp_path / "own_worker.py").write_text(WORKER)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tools.cli", "supervise", "own_worker:work", "--workers", "1",
             "--arena", f"logged-{os.getpid()}", *arguments],
            cwd=tmp_path,
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "SHMCACHE_DATABASE_URL": database_url,
                "SHMCACHE_STATE_DIR": str(tmp_path),
            },
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def test_json_lines_are_bound_to_process_and_arena_and_the_known_lines_stand_word_for_word(
    supervise: Callable[..., str],
) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in supervise("--set", "log_format=json").splitlines()]
    roles = {line["message"]: line["role"] for line in lines}
    assert roles["Sync manager started"] == "syncer"
    assert roles["Sync manager stopped"] == "syncer"
    assert roles["Charge manager shutdown"] == "charger"
    assert any(re.fullmatch(r"Synced \d+ outputs and \d+ statuses", message) for message in roles)
    assert sum(line.get("outputs", 0) for line in lines) == 1
    assert {line["arena"] for line in lines} == {f"logged-{os.getpid()}"}
    assert all(isinstance(line["pid"], int) for line in lines)


def test_a_worker_s_own_storm_of_lines_is_counted_when_it_ends(supervise: Callable[..., str]) -> None:
    log = supervise()
    assert log.count(f"[logged-{os.getpid()}]: a worker's own line\n") == 10
    assert re.search(r'WARNING worker \d+ \[.*\]: left out 90 more lines like "a worker\'s own line"\n', log)


def test_nothing_is_logged_of_the_password(supervise: Callable[..., str], database_url: str) -> None:
    log = supervise("--log-level", "DEBUG", "--set", f"database_url={database_url} password=geheim")
    assert "Sync manager started" in log
    assert "geheim" not in log
