"""The robust mutex: whoever dies, is cut off or is stopped while holding it, the others are told or go on."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from shmcache.arena import Arena
from shmcache.arena.memory import Memory
from shmcache.arena.mutex import RobustMutex
from shmcache.arena.transaction import Put
from shmcache.errors import ArenaError, LockTimeout
from tests.unit.arena_state import commit, die, key, run_in_child


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"test-mutex-{os.getpid()}", 4 << 20, lock_wait=0.2)
    yield made
    made.unlink()
    made.close()


@pytest.fixture
def mutex(arena: Arena) -> RobustMutex:
    return arena._critical.mutex


def test_a_lock_whose_holder_was_killed_is_inherited_and_works_again(mutex: RobustMutex) -> None:
    def hold_and_die() -> None:
        mutex.acquire(1.0)
        die()

    for _ in range(3):
        assert run_in_child(hold_and_die) == -signal.SIGKILL
        result = mutex.acquire(1.0)
        assert result == errno.EOWNERDEAD
        assert mutex.inherit(result)
        mutex.release()
        assert mutex.acquire(1.0) == 0
        mutex.release()


def test_a_lock_inherited_and_cut_off_before_it_was_made_consistent_is_still_usable(mutex: RobustMutex) -> None:
    def hold_and_die() -> None:
        mutex.acquire(1.0)
        die()

    run_in_child(hold_and_die)
    assert mutex.acquire(1.0) == errno.EOWNERDEAD  # and here an exception struck
    again = mutex.acquire(1.0)
    assert again == errno.EDEADLK
    assert mutex.inherit(again)
    mutex.release()
    assert mutex.acquire(1.0) == 0  # not ENOTRECOVERABLE
    mutex.release()


def test_a_thread_that_ends_while_holding_leaves_a_lock_that_is_inherited(arena: Arena) -> None:
    mutex = arena._critical.mutex
    holder = threading.Thread(target=mutex.acquire, args=(1.0,))
    holder.start()
    holder.join()
    commit(arena, Put(key(1), b"went on"))
    assert arena.check() == []


def test_only_the_holder_can_release(mutex: RobustMutex) -> None:
    with pytest.raises(ArenaError, match="cannot release"):
        mutex.release()


def test_a_forked_child_does_not_hold_its_parents_lock(mutex: RobustMutex) -> None:
    mutex.acquire(1.0)

    def child() -> None:
        assert not mutex.is_held_here()
        assert mutex.try_acquire() == (False, False)
        with pytest.raises(LockTimeout):
            mutex.acquire(0.05)

    assert run_in_child(child) == 0
    assert mutex.is_held_here()
    mutex.release()


def test_a_stopped_holder_is_named_and_all_goes_on_when_it_does(arena: Arena) -> None:
    here, there = os.pipe()
    pid = os.fork()
    if not pid:
        with arena._critical:
            os.write(there, b".")
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.read(here, 1)
    os.waitpid(pid, os.WUNTRACED)
    with pytest.raises(LockTimeout, match=str(pid)) as caught:
        commit(arena, Put(key(1), b"waits"))
    assert caught.value.holder_pid == pid
    assert caught.value.lock == "commit"
    os.kill(pid, signal.SIGCONT)
    os.waitpid(pid, 0)
    commit(arena, Put(key(1), b"goes on"))
    assert arena.check() == []


def test_a_waiter_gets_the_lock_when_it_is_released(arena: Arena) -> None:
    arena._critical.lock_wait_seconds = 30.0
    arena._critical.mutex.acquire(1.0)
    waiter = threading.Thread(target=commit, args=(arena, Put(key(1), b"late")))
    waiter.start()
    arena._critical.mutex.release()
    waiter.join(30)
    found = arena.read(key(1))
    assert found is not None
    assert found.record == b"late"


def test_a_child_forked_while_another_thread_commits_can_commit_and_the_parent_too(arena: Arena) -> None:
    arena._critical.lock_wait_seconds = 30.0
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with arena._critical:
            inside.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(30)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            commit(arena, Put(key(2), b"child"))
            code = 0
        finally:
            os._exit(code)
    leave.set()
    holder.join()
    assert os.waitpid(pid, 0)[1] == 0
    commit(arena, Put(key(1), b"parent"))
    assert arena.read(key(2)) is not None
    assert arena.check() == []


def test_two_mappings_of_one_segment_share_the_lock(arena: Arena) -> None:
    with Arena.attach(arena.name, lock_wait=0.05) as other:
        for number in range(10):
            commit(arena if number % 2 else other, Put(key(number), b"x"))
        assert other.check() == []
        assert isinstance(other._memory, Memory)


def test_a_mutex_needs_no_segment_of_ours() -> None:
    with mmap.mmap(-1, 4096) as shared:
        import ctypes

        anchor = ctypes.c_char.from_buffer(shared)
        lock = RobustMutex("of its own", ctypes.addressof(anchor))
        lock.initialize()
        assert lock.looks_abandoned()
        assert lock.try_acquire() == (True, False)
        assert not lock.looks_abandoned()
        assert lock.holder_pid() == os.getpid()
        lock.release()
        del anchor
