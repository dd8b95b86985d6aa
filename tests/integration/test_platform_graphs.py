"""Graphs of the AutoGPT Platform's format run without the platform: nested pins, static links, cycles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shmcache.database.connection import TableSet, connect
from tests.integration.database_rows import rows_left_behind

ROOT = Path(__file__).parents[2]
GRAPHS = ROOT / "tests" / "graphs" / "platform"


@pytest.fixture
def table_set() -> TableSet:
    return "autogpt"


def run(url: str, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run the command and return its summary."""
    state = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "tools.cli", "run", *arguments, "--blocks", "replay", "--json"],
        cwd=ROOT,
        env={**os.environ, "SHMCACHE_DATABASE_URL": url, "SHMCACHE_SCHEMA": "autogpt", "SHMCACHE_STATE_DIR": state},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def test_places_inside_values_and_late_static_links_reach_the_block(database_url: str, tmp_path: Path) -> None:
    summary = run(database_url, tmp_path, str(GRAPHS / "agent_nested_and_static.json"))
    assert (summary["graph_executions"], summary["node_executions"], summary["completed"]) == (2, 6, 6)
    with connect(database_url, application_name="test") as connection:
        rows = connection.execute(
            "SELECT i.name, o.value FROM node_execution_inputs i JOIN node_executions e ON e.id = i.node_execution_id"
            " JOIN node_executions m ON m.id = i.source_execution_id"
            " JOIN node_execution_outputs o ON o.node_execution_id = m.id"
            " WHERE i.name LIKE 'values%' ORDER BY 1"
        ).fetchall()
        inputs = dict(connection.execute("SELECT name, value FROM node_execution_inputs WHERE name LIKE 'values%'"))
    (first, row), (second, _) = rows
    assert inputs == {first: row["name"], second: row["orders"][0]}, "each link took its place of the one value"


def test_a_cycle_that_nothing_leaves_ends_after_max_steps_on_both_clients_alike(
    database_url: str, new_database_url: Any, tmp_path: Path
) -> None:
    loop = str(GRAPHS / "agent_loop.json")
    summary = run(database_url, tmp_path, loop, "--max-steps", "25", "--workers", "1")
    assert (summary["completed"], summary["failed"]) == (25, 0)
    assert summary["terminated"] == summary["node_executions"] - 25
    direct_url = new_database_url()
    run(direct_url, tmp_path, loop, "--max-steps", "25", "--workers", "1", "--direct")
    assert rows_left_behind(direct_url) == rows_left_behind(database_url)
