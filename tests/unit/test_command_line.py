"""The command line where no database is needed: what it says, and with which status it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def shmcache(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tools.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SHMCACHE_STATE_DIR": str(cwd), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_one_line(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """Check that it ended with status 2, nothing on standard output, and one line that says what is wrong."""
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("shmcache: ")
    for text in said:
        assert text in done.stderr


def test_a_broken_file_is_one_line_before_anything_is_started(tmp_path: Path) -> None:
    good = {
        "name": "good",
        "nodes": [{"id": "a", "block": "shmcache.constant", "constants": {"value": 1}}],
        "links": [],
    }
    (tmp_path / "good.json").write_text(json.dumps(good))
    (tmp_path / "broken.json").write_text('{"name": "broken", "nodes": [')
    assert_one_line(shmcache(tmp_path, "run", "good.json", "broken.json"), "broken.json")
    assert not (tmp_path / "postgresql").exists()


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    assert_one_line(shmcache(tmp_path, "run", "nowhere.json"), "nowhere.json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--user", "me"], "'me' is not a UUID"),
        (["--arena-size", "a lot"], "SHMCACHE_ARENA_SIZE"),
        (["--arena", "a/b"], "SHMCACHE_ARENA"),
    ],
)
def test_an_option_that_cannot_be_used_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    assert_one_line(shmcache(tmp_path, "run", *arguments), said)


def test_a_setting_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    assert_one_line(shmcache(tmp_path, "run", SHMCACHE_SYNC_INTERVAL="soon"), "SHMCACHE_SYNC_INTERVAL")


@pytest.mark.parametrize(
    ("target", "said"), [("nowhere:work", "nowhere"), ("json:nothing", "nothing"), ("json:__name__", "not callable")]
)
def test_a_worker_function_that_is_not_there_is_one_line(tmp_path: Path, target: str, said: str) -> None:
    assert_one_line(shmcache(tmp_path, "supervise", target), said)


def test_what_nobody_expected_is_one_line_that_says_where_the_traceback_is(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text("1 / 0\n")
    done = shmcache(tmp_path, "supervise", "faulty:work", TMPDIR=str(tmp_path))
    assert_one_line(done, "ZeroDivisionError")
    path = re.search(r"details in (.*)\)", done.stderr)
    assert path is not None
    assert "Traceback" in Path(path[1]).read_text()


def test_a_wrong_use_is_explained_with_status_2(tmp_path: Path) -> None:
    done = shmcache(tmp_path, "run", "--workers", "0")
    assert done.returncode == 2
    assert "--workers" in done.stderr
    assert "Traceback" not in done.stderr


def test_version_and_help_are_on_standard_output(tmp_path: Path) -> None:
    assert re.fullmatch(r"shmcache, version \d+\.\d+\.\d+\n", shmcache(tmp_path, "--version").stdout)
    told = shmcache(tmp_path, "run", "--help")
    assert told.returncode == 0
    for option in ("--workers", "--repeat", "--direct", "--time-scale", "--user", "--credits", "--arena", "--json"):
        assert option in told.stdout
