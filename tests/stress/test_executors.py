"""The judgement of the executors on one arena (`tests/stress/executors`) holds whatever happens to its workers, and
fails where something is wrong: whole runs of pytest, as anyone would start them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXECUTORS = Path(__file__).parent.relative_to(ROOT) / "executors"
HAMMERING = EXECUTORS / "test_hammering.py"
JUDGED = "executors on one arena"
SOUND = "nothing lost, doubled, reordered, overdrawn, unbalanced or left behind"


def run_pytest(*arguments: str | Path, steps: int = 20) -> subprocess.CompletedProcess[str]:
    """Run pytest on its own: nothing of the run that this test belongs to is known to it."""
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST_", "TESTS_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=240,
        env={**inherited, "EXECUTORS_STEPS": str(steps), "EXECUTORS_TURNS": "1", "TESTS_BESIDE": "1"},
    )  # fmt: skip


def test_a_worker_that_is_killed_in_a_write_is_replaced_and_nothing_is_lost() -> None:
    ran = run_pytest("-n", "3", "--max-worker-restart", "2", HAMMERING, EXECUTORS / "kills_its_worker.py")
    assert ran.returncode == 1, ran.stdout
    failed = re.findall(r"^FAILED (\S+)", ran.stdout, re.MULTILINE)
    assert len(failed) == 1, ran.stdout
    assert "kills_its_worker.py" in failed[0]
    assert re.search(r"worker 'gw\d' crashed while running", ran.stdout)
    assert SOUND in ran.stdout, ran.stdout
    undecided = re.search(r"(\d+) undecided", ran.stdout)
    assert undecided is not None
    assert int(undecided[1]) >= 1, "the call in which the worker was killed"


def test_one_process_is_executor_and_judge() -> None:
    ran = run_pytest("-n", "0", "-p", "no:randomly", HAMMERING)
    assert ran.returncode == 0, ran.stdout
    assert SOUND in ran.stdout


def test_the_judgement_fails_for_each_harm_though_every_test_passes() -> None:
    ran = run_pytest("-n", "1", EXECUTORS / "does_harm.py")
    assert ran.returncode == 1, ran.stdout
    assert "failed" not in ran.stdout
    assert SOUND not in ran.stdout
    wrong = re.findall(r"^wrong: (.*)$", ran.stdout, re.MULTILINE)
    for each in (
        "lost: O .*", "duplicated: O .* was written by nobody", "reordered: .*-.* 1", "unbalanced: account .*",
        "lost: the 7 credits spent as .*", "lost: O .* was acknowledged with 2 values",
    ):  # fmt: skip
        assert any(re.fullmatch(each, found) for found in wrong), (each, wrong)


def test_a_run_of_other_tests_starts_nothing() -> None:
    ran = run_pytest("-n", "1", "tests/unit/test_backoff.py")
    assert ran.returncode == 0, ran.stdout
    assert JUDGED not in ran.stdout
