"""Workers: added, taken away, replaced one by one, ended when they hang; over real processes."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmcache.arena import Arena, Counter
from shmcache.config import load_settings
from tools.processes import CannotStart, Processes, Role, ShouldStop
from tools.workers import NAME, Workers


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"workers-{os.getpid()}", 8 << 20)
    made.enter("supervisor")
    yield made
    made.close()
    made.unlink()


class Host:
    """A supervisor's processes and workers."""

    def __init__(self, arena: Arena, role: Role, count: int, settings: dict[str, Any]) -> None:
        self.processes = Processes(arena)
        self.workers = Workers(self.processes, role, arena, load_settings(**settings))
        self.workers.start(count)

    def until(self, done: Callable[[], bool]) -> None:
        """Look after them until `done()`."""
        deadline = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline
            self.processes.look_after()
            self.workers.look_after()
            time.sleep(0.01)

    def pids(self) -> set[int]:
        """Return the workers that there are."""
        return {pid for pid, _ in self.processes.children(NAME)}

    def ended(self, pid: int) -> bool:
        """Say whether a worker has ended and was reaped."""
        return pid not in self.pids()


@pytest.fixture
def host(arena: Arena) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(
        body: Callable[[ShouldStop], None], count: int = 2, role: dict[str, Any] | None = None, **set_: Any
    ) -> Host:
        made.append(Host(arena, Role("worker", body, **(role or {})), count, set_))
        return made[-1]

    yield make
    for each in made:
        each.processes.kill()


def wait_for_stop(should_stop: ShouldStop) -> None:
    """Wait as a worker does that looks now and then."""
    while not should_stop():
        signal.sigtimedwait([], 0.01)


def test_workers_are_added_and_the_oldest_is_taken_away(host: Callable[..., Host]) -> None:
    run = host(wait_for_stop)
    run.until(lambda: run.workers.are_up)
    first = next(run.processes.children(NAME))[0]
    run.workers.add()
    run.until(lambda: len(run.pids()) == 3 and run.workers.are_up)
    run.workers.remove()
    run.until(lambda: run.ended(first))
    run.workers.remove()
    run.until(lambda: len(run.pids()) == 1)
    run.workers.remove()
    run.until(lambda: run.workers.are_up)
    assert len(run.pids()) == 1, "the last one stays"
    assert run.processes.restarts == {}, "who was asked to end is not started again"


def test_a_reload_replaces_one_at_a_time_and_never_has_fewer(host: Callable[..., Host]) -> None:
    run = host(wait_for_stop, 3)
    run.until(lambda: run.workers.are_up)
    before = run.pids()
    numbers: set[int] = set()
    run.workers.reload()

    def is_over() -> bool:
        up = [pid for pid, child in run.processes.children(NAME) if child.up is not None and not child.asked_to_stop]
        numbers.add(len(up))
        return not run.workers.are_reloading

    run.until(is_over)
    assert not run.pids() & before
    assert len(run.pids()) == 3
    assert numbers <= {3, 4}
    assert run.processes.restarts == {}


def test_a_second_reload_during_the_first_replaces_the_new_ones_too(host: Callable[..., Host]) -> None:
    run = host(wait_for_stop, 2)
    run.until(lambda: run.workers.are_up)
    run.workers.reload()
    run.until(lambda: run.workers.reloads == 1)
    run.workers.reload()
    run.until(lambda: not run.workers.are_reloading)
    assert run.workers.reloads == 2
    assert len(run.pids()) == 2


def test_a_new_worker_that_does_not_come_up_is_given_up_for_the_next_reload(
    host: Callable[..., Host], tmp_path: Path
) -> None:
    def prepare() -> None:
        while (tmp_path / "slow").exists():
            signal.sigtimedwait([], 0.05)

    run = host(wait_for_stop, 2, role={"prepare": prepare, "stop_raises": True})
    run.until(lambda: run.workers.are_up)
    before = run.pids()
    (tmp_path / "slow").touch()
    run.workers.reload()
    run.until(lambda: len(run.pids()) == 3)
    (tmp_path / "slow").unlink()
    run.workers.reload()
    run.until(lambda: run.workers.reloads == 2 and not run.workers.are_reloading)
    assert len(run.pids()) == 2
    assert not run.pids() & before


def test_a_worker_that_is_taken_away_during_a_reload_leaves_no_one_too_many(host: Callable[..., Host]) -> None:
    run = host(wait_for_stop, 2)
    run.until(lambda: run.workers.are_up)
    run.workers.reload()
    run.workers.look_after()
    run.workers.look_after()
    run.workers.remove()
    run.until(lambda: not run.workers.are_reloading)
    run.until(lambda: all(not child.asked_to_stop for _, child in run.processes.children(NAME)))
    assert len(run.pids()) == 1


def test_when_a_new_worker_cannot_come_up_the_old_ones_stay(
    host: Callable[..., Host], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def prepare() -> None:
        if (tmp_path / "broken").exists():
            raise LookupError("the new code is broken")

    run = host(wait_for_stop, 2, role={"prepare": prepare})
    run.until(lambda: run.workers.are_up)
    before = run.pids()
    (tmp_path / "broken").touch()
    with caplog.at_level(logging.INFO):
        run.workers.reload()
        run.until(lambda: run.workers.reloads == 1 and not run.workers.are_reloading)
    assert run.pids() == before
    assert "ended before it was up" in caplog.text
    (tmp_path / "broken").unlink()
    run.workers.reload()
    run.until(lambda: run.workers.reloads == 2 and not run.workers.are_reloading)
    assert not run.pids() & before


def test_what_never_comes_up_is_given_up_however_long_each_try_takes(host: Callable[..., Host]) -> None:
    def prepare() -> None:
        signal.sigtimedwait([], 1.2)
        raise LookupError("no such thing")

    run = host(wait_for_stop, 3, role={"prepare": prepare})
    with pytest.raises(CannotStart, match="a worker fails") as refused:
        run.until(lambda: False)
    assert refused.value.exit_status == 3


def test_a_worker_leaves_between_two_nodes_after_its_number_of_them(
    host: Callable[..., Host], arena: Arena, tmp_path: Path
) -> None:
    def work(should_stop: ShouldStop) -> None:
        while not should_stop():
            arena.take_work(0.001)
            arena.count(Counter.NODE_RUNS)
            with (tmp_path / str(os.getpid())).open("a") as runs:
                runs.write("x")

    run = host(work, 2, max_requests=20, max_requests_jitter=10)
    run.until(lambda: len(list(tmp_path.iterdir())) >= 14)
    gone = [path for path in tmp_path.iterdir() if run.ended(int(path.name))]
    counts = {len(path.read_text()) for path in gone}
    assert counts <= set(range(20, 31))
    assert len(counts) > 1, "chance keeps them apart"
    assert run.processes.restarts == {}, "it is no death"


def hang(_: ShouldStop) -> None:
    """Make no progress, deaf to SIGTERM."""
    while True:
        signal.sigtimedwait([], 10)


def test_a_worker_that_shows_no_sign_of_life_is_ended_and_replaced(
    host: Callable[..., Host], capfd: pytest.CaptureFixture[str]
) -> None:
    run = host(hang, 1, worker_timeout=1)
    run.until(lambda: run.workers.are_up)
    first = run.pids()
    run.until(lambda: run.processes.restarts.get(NAME) == 1)
    run.until(lambda: bool(run.pids()))
    assert not run.pids() & first
    assert "in hang" in capfd.readouterr().err, "it says where it was"


def test_one_that_is_stopped_as_well(host: Callable[..., Host]) -> None:
    run = host(wait_for_stop, 1, worker_timeout=1)
    run.until(lambda: run.workers.are_up)
    os.kill(next(iter(run.pids())), signal.SIGSTOP)
    run.until(lambda: run.processes.restarts.get(NAME) == 1)


def test_who_beats_waits_or_writes_lives_as_long_as_it_likes(host: Callable[..., Host], arena: Arena) -> None:
    def body(should_stop: ShouldStop) -> None:
        acts: list[Callable[[], object]] = [
            arena.beat,
            lambda: arena.put(bytes(16), b"x"),
            lambda: arena.take_work(0.2),
        ]
        started = time.monotonic()
        while not should_stop():
            acts[int(time.monotonic() - started) % 3]()
            signal.sigtimedwait([], 0.05)

    run = host(body, 1, worker_timeout=1.5)
    began = time.monotonic()
    run.until(lambda: time.monotonic() - began > 5)
    assert run.processes.restarts == {}


def test_by_default_nobody_is_ended_for_being_silent(host: Callable[..., Host]) -> None:
    assert load_settings().worker_timeout == 0
    run = host(hang, 1)
    began = time.monotonic()
    run.until(lambda: time.monotonic() - began > 2.5)
    assert run.processes.restarts == {}
