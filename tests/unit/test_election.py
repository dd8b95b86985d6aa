"""Who leads, whoever dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from syncer.election import Candidate

_FORK = multiprocessing.get_context("fork")


def _stand(directory: Path, says: Connection) -> None:
    candidate = Candidate(directory, "arena", "syncer")
    if candidate.wait(lambda: False):
        says.send(os.getpid())
        signal.pause()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Callable[[], tuple[BaseProcess, Connection]]]:
    """Return a function that starts a candidate; its connection tells when it leads."""
    started: list[BaseProcess] = []

    def start() -> tuple[BaseProcess, Connection]:
        hears, says = _FORK.Pipe(duplex=False)
        process = _FORK.Process(target=_stand, args=(tmp_path, says))
        process.start()
        says.close()
        started.append(process)
        return process, hears

    yield start
    for process in started:
        process.kill()
        process.join()


def test_a_killed_leader_is_followed_by_the_next(stand: Callable[[], tuple[BaseProcess, Connection]]) -> None:
    first, first_says = stand()
    assert first_says.recv() == first.pid
    second, second_says = stand()
    assert not second_says.poll(0.3)
    first.kill()
    assert second_says.poll(10)
    assert second_says.recv() == second.pid


def test_of_many_candidates_one_leads_at_a_time(stand: Callable[[], tuple[BaseProcess, Connection]]) -> None:
    candidates = dict(stand() for _ in range(4))
    for _ in range(4):
        leading = multiprocessing.connection.wait(list(candidates.values()), timeout=10)
        assert len(leading) == 1
        leader = next(process for process, says in candidates.items() if says in leading)
        del candidates[leader]
        leader.kill()
        leader.join()


def test_a_stopped_leader_keeps_the_lead(stand: Callable[[], tuple[BaseProcess, Connection]]) -> None:
    first, first_says = stand()
    assert first_says.poll(10)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGSTOP)
    _, second_says = stand()
    assert not second_says.poll(0.3)


def test_a_lock_file_that_is_deleted_elects_a_second_leader(
    stand: Callable[[], tuple[BaseProcess, Connection]], tmp_path: Path
) -> None:
    """The lock alone is not enough: the epoch in the database is what fences the first."""
    _, first_says = stand()
    assert first_says.poll(10)
    Candidate(tmp_path, "arena", "syncer").path.unlink()
    _, second_says = stand()
    assert second_says.poll(10)


def test_a_candidate_that_is_asked_to_stop_leaves_the_lock_alone(tmp_path: Path) -> None:
    holder, waiting = (Candidate(tmp_path, "arena", "syncer") for _ in range(2))
    assert holder.try_now()
    deadline = time.monotonic() + 0.1
    assert not waiting.wait(lambda: time.monotonic() > deadline)
    assert not waiting.try_now()
    holder.leave()
    assert not waiting.wait(lambda: True)
    assert waiting.try_now()
    waiting.leave()


def test_roles_and_arenas_are_led_apart_and_the_directory_is_private(tmp_path: Path) -> None:
    candidates = [Candidate(tmp_path, *each) for each in (("a", "syncer"), ("a", "charger"), ("b", "syncer"))]
    assert all(candidate.try_now() for candidate in candidates)
    assert (tmp_path / "locks").stat().st_mode & 0o777 == 0o700
    for candidate in candidates:
        candidate.leave()


def test_a_candidate_sleeps_while_another_leads(stand: Callable[[], tuple[BaseProcess, Connection]]) -> None:
    _, first_says = stand()
    assert first_says.poll(10)
    second, second_says = stand()
    assert not second_says.poll(0.3)
    waits = psutil.Process(second.pid)
    before = waits.num_ctx_switches().voluntary
    assert not second_says.poll(3)
    assert waits.num_ctx_switches().voluntary - before <= 12, "some three turns, not sixty"


def test_a_candidate_that_sleeps_leaves_at_the_first_signal(tmp_path: Path) -> None:
    holder = Candidate(tmp_path, "arena", "syncer")
    assert holder.try_now()
    hears, says = _FORK.Pipe(duplex=False)

    def wait() -> None:
        asked: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
        says.send(None)
        assert not Candidate(tmp_path, "arena", "syncer").wait(lambda: bool(asked))

    process = _FORK.Process(target=wait)
    process.start()
    hears.recv()
    process.terminate()
    process.join(30)
    assert process.exitcode == 0
    holder.leave()


def test_a_leader_that_gives_the_lock_back_and_lives_on_is_followed(tmp_path: Path) -> None:
    holder = Candidate(tmp_path, "arena", "syncer")
    assert holder.try_now()
    hears, says = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_stand, args=(tmp_path, says))
    process.start()
    assert not hears.poll(0.3)
    holder.leave()
    assert hears.poll(30)
    process.kill()
    process.join()
