"""A short chaos run, as anyone would start it. CHAOS_KILLS for a longer one, CHAOS_SEED for another schedule."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GRAPH = ROOT / "tests" / "graphs" / "diamond.wfformat.json"
PLATFORM = ("--platform-tables", ROOT / "tests" / "platform_tables.sql")
KILLS = os.environ.get("CHAOS_KILLS", "12")
SEED = os.environ.get("CHAOS_SEED", "4")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "tables", [(), ("--platform-tables", ROOT / "tests" / "platform_tables.sql")], ids=["own", "platform"]
)
def test_a_chaos_run_loses_doubles_and_leaves_behind_nothing(tables: tuple[str | Path, ...]) -> None:
    ran = subprocess.run(
        [
            sys.executable, "-m", "tools.cli", "chaos", "--kills", KILLS, "--seed", SEED, "--files", GRAPH, "--json",
            *tables,
        ],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "SHMCACHE_STATE_DIR": ""},
    )  # fmt: skip
    assert ran.returncode in (0, 1), ran.stderr
    facts = json.loads(ran.stdout)
    assert ran.returncode == 0, facts
    assert facts["kills"] == int(KILLS)
    assert facts["acknowledged"] > 1_000
