"""Load locks: one loads, the others wait for it; who dies, stops or raises inside keeps nobody from going on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from shmcache.arena import Arena
from shmcache.arena.layout import LOAD_LOCKS
from tests.unit.arena_state import die, key, run_in_child


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"test-loads-{os.getpid()}", 4 << 20)
    made.loads.wait_seconds = 60.0
    yield made
    assert made.check() == []
    made.unlink()
    made.close()


def _assert_all_free(arena: Arena) -> None:
    for number in range(LOAD_LOCKS):
        assert arena.loads.lock(number).try_acquire() == (True, False)
        arena.loads.lock(number).release()


def test_a_second_loader_waits_until_the_first_is_done(arena: Arena) -> None:
    here, there = os.pipe()

    def second() -> None:
        os.write(there, b"waiting")
        with arena.loads.loading(key(1)):
            os.write(there, b"second")

    with arena.loads.loading(key(1)):
        pid = os.fork()
        if not pid:
            second()
            os._exit(0)
        assert os.read(here, 7) == b"waiting"
        os.write(there, b"first")
    assert os.waitpid(pid, 0)[1] == 0
    assert os.read(here, 100) == b"firstsecond"
    _assert_all_free(arena)


def test_after_the_limit_a_waiter_goes_on_without_the_lock_and_names_who_has_it(
    arena: Arena, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = os.pipe()
    pid = os.fork()
    if not pid:
        with arena.loads.loading(key(1)):
            os.write(there, b".")
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.read(here, 1)
    os.waitpid(pid, os.WUNTRACED)
    arena.loads.wait_seconds = 0.1
    inside = False
    with arena.loads.loading(key(1)):
        inside = True
    assert inside
    assert f"process {pid} has been loading a record for 0.1 s" in caplog.text
    os.kill(pid, signal.SIGCONT)
    assert os.waitpid(pid, 0)[1] == 0
    _assert_all_free(arena)


def test_the_lock_of_a_killed_loader_goes_to_the_next(arena: Arena, caplog: pytest.LogCaptureFixture) -> None:
    def load_and_die() -> None:
        with arena.loads.loading(key(1)):
            die()

    for _ in range(2):
        assert run_in_child(load_and_die) == -signal.SIGKILL
        with arena.loads.loading(key(1)):
            assert arena.loads.lock(1).is_held_here()
    assert caplog.text == ""
    _assert_all_free(arena)


def test_loads_within_loads_never_wait_for_each_other(arena: Arena) -> None:
    """Two processes hold a lock each and load within it what belongs to the other's."""
    ready, go = os.pipe(), os.pipe()
    pids = []
    for own, other in ((1, 2), (2, 1)):
        pid = os.fork()
        if not pid:
            with arena.loads.loading(key(own)):
                os.write(ready[1], b".")
                os.read(go[0], 1)
                with arena.loads.loading(key(other)):
                    assert arena.loads.lock(own).is_held_here()
                assert arena.loads.lock(own).is_held_here()
            os._exit(0)
        pids.append(pid)
    os.read(ready[0], 1)
    os.read(ready[0], 1)
    arena.loads.wait_seconds = 1e6
    os.write(go[1], b"..")
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    _assert_all_free(arena)


def test_an_exception_gives_the_lock_back_and_threads_wait_for_each_other(arena: Arena) -> None:
    with pytest.raises(KeyboardInterrupt), arena.loads.loading(key(1)):
        raise KeyboardInterrupt
    _assert_all_free(arena)
    order: list[str] = []

    def second() -> None:
        with arena.loads.loading(key(1)):
            order.append("second")

    with arena.loads.loading(key(1)):
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_child_forked_inside_a_load_is_in_none(arena: Arena) -> None:
    with arena.loads.loading(key(1)):

        def child() -> None:
            with arena.loads.loading(key(2)):
                assert arena.loads.lock(2).is_held_here()

        assert run_in_child(child) == 0
        assert arena.loads.lock(1).is_held_here()
    _assert_all_free(arena)
