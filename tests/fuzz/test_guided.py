"""The fuzzing that is led by coverage can be started, and goes through what it is told to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shmcache.arena import list_arenas

_ROOT = Path(__file__).parents[2]


def _fuzz(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", *arguments],
        cwd=directory, env={"PYTHONPATH": str(_ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip


def _left_behind() -> set[str]:
    """Return the segments of fuzzing processes that are no more."""
    found = {name: int(name.removeprefix("fuzz-")) for name in list_arenas() if name.startswith("fuzz-")}
    return {name for name, pid in found.items() if not psutil.pid_exists(pid)}


@pytest.fixture(autouse=True)
def _needs_atheris() -> None:
    pytest.importorskip("atheris", reason="atheris is not installed (pip install --only-binary :all: atheris)")


@pytest.mark.parametrize("reader", ["record", "settings", "ring"])
def test_a_reader_survives_what_leads_to_new_code(reader: str, tmp_path: Path) -> None:
    before = _left_behind()
    done = _fuzz(reader, "-runs=1000", directory=tmp_path)
    assert _left_behind() <= before
    assert "DONE" in done.stderr, done.stderr[-2000:]
    assert done.returncode == 0


def test_an_unknown_reader_is_said_to_be_unknown(tmp_path: Path) -> None:
    done = _fuzz("no such reader", directory=tmp_path)
    assert done.stderr.splitlines()[-1].startswith("usage: python -m tests.fuzz.guided READER")
    assert done.returncode == 1
