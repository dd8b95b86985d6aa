"""The schedule of a chaos run."""

from __future__ import annotations

import os
import signal
import subprocess
from itertools import islice
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from shmcache.errors import SettingsError
from tools.chaos.command import chaos
from tools.chaos.faults import Faults
from tools.chaos.journal import digest
from tools.chaos.schedule import ALL, KILLS, schedule


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    first, again, other = ([*islice(schedule(seed, ALL), 200)] for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_every_fault_comes_and_only_those_asked_for() -> None:
    assert {event.fault for event in islice(schedule(1, ALL), 2_000)} == set(ALL)
    assert {event.fault for event in islice(schedule(1, ["cut", "kill-all"]), 200)} == {"cut", "kill-all"}


def test_every_fault_can_be_made() -> None:
    """Those that are no signals are methods of the same name."""
    signals = {*KILLS, *(fault for fault in ALL if fault.startswith("stop-"))} - {"stop-database"}
    assert all(hasattr(Faults, "_" + fault.replace("-", "_")) for fault in {*ALL} - signals)


def test_the_command_prints_a_schedule_and_refuses_what_it_does_not_know() -> None:
    printed = CliRunner().invoke(chaos, ["--kills", "3", "--schedule", "--seed", "5"], standalone_mode=False).stdout
    assert [line.split()[1] for line in printed.splitlines()] == [event.fault for event in islice(schedule(5, ALL), 3)]
    refused = CliRunner().invoke(chaos, ["--faults", "cut,earthquake"], standalone_mode=False)
    assert isinstance(refused.exception, SettingsError)
    assert "earthquake" in str(refused.exception)


def test_a_digest_is_that_of_the_value_as_jsonb_gives_it_back() -> None:
    assert digest({"b": 1e3, "a": [1.5, (2.0,)]}) == digest({"a": [1.5, [2]], "b": 1000})
    assert digest([1]) != digest(["1"])


def test_processes_are_known_by_their_sessions_and_a_session_that_is_over_is_forgotten(tmp_path: Path) -> None:
    """Its number may be another's soon, who must not be counted, let alone killed."""

    def start(script: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["/bin/sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)

    any_of_them: Any = None
    faults = Faults(any_of_them, "none", any_of_them, tmp_path, any_of_them)
    first, second = start("read line"), start("read line")
    try:
        for started in (first, second):
            faults.supervised = started
        assert first.pid in {each.pid for each in faults.everything()}
        first.communicate(b"\n")
        assert {os.getsid(each.pid) for each in faults.everything()} == {second.pid}
        assert faults._sessions == {second.pid}
    finally:
        os.killpg(second.pid, signal.SIGKILL)
        second.communicate()
