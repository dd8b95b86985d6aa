"""The supervisor's children: started, started again, stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shmcache.arena import Arena
from shmcache.arena.transaction import Append
from tests.unit.arena_state import commit
from tools.processes import CannotStart, Processes, Role, ShouldStop
from tools.signals import SignalQueue


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"processes-{os.getpid()}", 8 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def processes(arena: Arena) -> Iterator[Processes]:
    made = Processes(arena)
    yield made
    made.kill()


def until(processes: Processes, done: Callable[[], bool]) -> None:
    """Look after the processes until `done()`."""
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        processes.look_after()


def wait_for_stop(should_stop: ShouldStop) -> None:
    """Wait as a worker does that looks now and then."""
    while not should_stop():
        signal.sigtimedwait([], 0.01)


def test_a_killed_process_is_started_again(arena: Arena, processes: Processes) -> None:
    first = processes.start(Role("worker", wait_for_stop))
    until(processes, lambda: any(each.pid == first for each in arena.processes()))
    os.kill(first, signal.SIGKILL)
    until(processes, lambda: processes.restarts.get("worker") == 1)
    until(processes, lambda: [each.alive for each in arena.processes() if each.role == "worker"] == [True])
    assert all(each.pid != first for each in arena.processes()), "the lane of the dead was freed"


def test_a_process_that_returns_is_finished_or_started_again_as_its_role_says(processes: Processes) -> None:
    processes.start(Role("worker", lambda _: None, restart_on_return=False))
    processes.start(Role("syncer", lambda _: None))
    until(processes, lambda: not processes.count("worker") and processes.restarts.get("syncer", 0) >= 2)
    assert processes.restarts.get("worker") is None


def test_what_fails_as_soon_as_it_is_started_is_given_up(processes: Processes) -> None:
    def fail(_: ShouldStop) -> None:
        raise LookupError("no such thing")

    processes.start(Role("worker", fail))
    with pytest.raises(CannotStart, match="a worker fails"):
        until(processes, lambda: False)
    assert processes.restarts["worker"] == 4


def test_what_dies_suddenly_is_started_again_for_ever_with_growing_waits(processes: Processes) -> None:
    """A node that kills its worker must not end the run: the next one is tried by another worker."""
    begun = time.monotonic()
    processes.start(Role("worker", lambda _: os.kill(os.getpid(), signal.SIGKILL)))
    until(processes, lambda: processes.restarts.get("worker", 0) >= 7)
    assert time.monotonic() - begun > 0.05 * (2 + 4 + 8 + 16) / 2, "chance takes off half at most"


def test_one_that_leads_is_killed_when_it_is_stopped_for_long_and_a_worker_is_not(arena: Arena) -> None:
    processes = Processes(arena, stopped_seconds=0.2)
    try:
        worker = processes.start(Role("worker", wait_for_stop))
        leader = processes.start(Role("syncer", wait_for_stop, leads=True))
        until(processes, lambda: {worker, leader} <= {each.pid for each in arena.processes()})
        with arena._critical:
            pass  # neither of them holds it any more: they hold no lock now
        for pid in (worker, leader):
            os.kill(pid, signal.SIGSTOP)
        until(processes, lambda: processes.restarts.get("syncer") == 1)
        assert psutil.Process(worker).status() == psutil.STATUS_STOPPED
        os.kill(worker, signal.SIGCONT)
        until(processes, lambda: psutil.Process(worker).status() != psutil.STATUS_STOPPED)
        assert processes.restarts == {"syncer": 1}
    finally:
        processes.kill()


def test_one_that_is_continued_in_time_lives_on(arena: Arena) -> None:
    processes = Processes(arena, stopped_seconds=5)
    try:
        leader = processes.start(Role("syncer", wait_for_stop, leads=True))
        os.kill(leader, signal.SIGSTOP)
        until(processes, lambda: processes._children[leader].stopped is not None)
        os.kill(leader, signal.SIGCONT)
        until(processes, lambda: processes._children[leader].stopped is None)
        assert not processes.restarts
    finally:
        processes.kill()


def test_a_worker_that_is_stopped_with_the_commit_lock_is_killed_soon_and_the_arena_goes_on(
    arena: Arena, tmp_path: Path
) -> None:
    def stop_inside(should_stop: ShouldStop) -> None:
        if not (tmp_path / "stopped").exists():
            with arena._critical:
                (tmp_path / "stopped").touch()
                os.kill(os.getpid(), signal.SIGSTOP)
        wait_for_stop(should_stop)

    arena.lock_wait_seconds = 60
    processes = Processes(arena, stopped_seconds=60)
    assert arena.lock_wait_seconds == 0.3, "who is to free the lock must not wait long for it"
    try:
        leader = processes.start(Role("syncer", wait_for_stop, leads=True))
        until(processes, lambda: leader in {each.pid for each in arena.processes()})
        with arena._critical:
            os.kill(leader, signal.SIGSTOP)
        processes.start(Role("worker", stop_inside))
        until(processes, lambda: processes.restarts.get("worker") == 1)
        arena.put(bytes(16), b"record")
        assert arena.check() == []
        assert processes.restarts == {"worker": 1}, "one that leads may be stopped for as long as was said"
    finally:
        processes.kill()


def test_one_that_leads_is_killed_soon_when_the_ring_fills_up_while_it_is_stopped(arena: Arena) -> None:
    processes = Processes(arena, stopped_seconds=60)
    try:
        leader = processes.start(Role("syncer", wait_for_stop, leads=True))
        until(processes, lambda: leader in {each.pid for each in arena.processes()})
        with arena._critical:
            os.kill(leader, signal.SIGSTOP)
        until(processes, lambda: processes._children[leader].stopped is not None)
        while 2 * arena.write_ring.used_bytes < arena.write_ring.size:
            assert not processes.restarts
            commit(arena, Append("write", 1, bytes(5000)))
        until(processes, lambda: processes.restarts.get("syncer") == 1)
    finally:
        processes.kill()


def test_one_that_leads_is_killed_soon_when_somebody_waits_for_the_ring_while_it_is_stopped(arena: Arena) -> None:
    processes = Processes(arena, stopped_seconds=60)
    try:
        leader = processes.start(Role("syncer", wait_for_stop, leads=True))
        until(processes, lambda: leader in {each.pid for each in arena.processes()})
        commit(arena, Append("write", 1, b"row"))
        with arena._critical:
            os.kill(leader, signal.SIGSTOP)
        until(processes, lambda: processes._children[leader].stopped is not None)
        assert not arena.write_ring.is_waited_for

        def wait(_: ShouldStop) -> None:
            assert arena.write_ring.wait_committed(1, 120.0)

        processes.start(Role("worker", wait, restart_on_return=False))
        until(processes, lambda: processes.restarts.get("syncer") == 1)
        arena.write_ring.advance(1)
        until(processes, lambda: not processes.count("worker"))
        assert not arena.write_ring.is_waited_for
    finally:
        processes.kill()


def test_no_signal_is_lost_however_early_it_comes(processes: Processes) -> None:
    with SignalQueue():
        for _ in range(40):
            processes.start(Role("worker", wait_for_stop))
            processes.stop("worker")
        until(processes, lambda: not processes.count())


def test_a_body_that_asks_nobody_gets_an_exception(processes: Processes, tmp_path: Path) -> None:
    def work(_: ShouldStop) -> None:
        try:
            (tmp_path / "began").touch()
            signal.pause()
        finally:
            (tmp_path / "cleaned up").touch()

    processes.start(Role("worker", work, stop_raises=True))
    until(processes, (tmp_path / "began").exists)
    processes.stop("worker")
    until(processes, lambda: not processes.count())
    assert (tmp_path / "cleaned up").exists()


def test_a_child_is_asked_to_stop_when_its_parent_is_killed(arena: Arena) -> None:
    reads, writes = os.pipe()
    parent = os.fork()
    if not parent:
        os.write(writes, str(Processes(arena).start(Role("worker", wait_for_stop))).encode())
        signal.pause()
    os.close(writes)
    child = psutil.Process(int(os.read(reads, 20)))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(reads, 1) == b"", "the pipe ends with the child"
    os.close(reads)
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()


def test_kill_leaves_no_child(arena: Arena) -> None:
    made = Processes(arena)
    children = [psutil.Process(made.start(Role("worker", wait_for_stop))) for _ in range(3)]
    made.kill()
    assert made.count() == 0
    assert not any(child.is_running() for child in children)
    assert [each for each in arena.processes() if each.role == "worker"] == []


def test_signals_are_queued_in_order_end_a_wait_and_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with SignalQueue() as queue:
        assert queue.is_empty
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        begun = time.monotonic()
        queue.wait(30)
        assert time.monotonic() - begun < 25
        assert list(queue.requests()) == [signal.SIGTERM, signal.SIGINT]
        assert queue.is_empty
        child = os.fork()
        if not child:
            os._exit(0)
        queue.wait(30)
        os.waitpid(child, 0)
        assert queue.is_empty, "a child's end wakes the loop and asks nobody to end"
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_supervisor_waits_longer_for_a_lock_where_it_would_not_try_again(arena: Arena) -> None:
    arena.lock_wait_seconds = 60
    made = Processes(arena, stopped_seconds=10)
    hasty = arena.lock_wait_seconds
    assert hasty < 1
    with made.patient():
        assert arena.lock_wait_seconds == 60
    assert arena.lock_wait_seconds == hasty
