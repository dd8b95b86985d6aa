"""What goes on in an arena, as it is seen from outside through a mapping that cannot be written to."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from shmcache.arena import Arena, activity, layout, survey
from shmcache.arena.transaction import Append, Enqueue, Put, SetCounter, Touch
from shmcache.arena.view import View
from tests.unit.arena_state import commit, key, run_in_child

RING = 64 << 10


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"test-activity-{os.getpid()}", 4 << 20, ring_bytes=(RING, RING), lock_wait=60.0)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def view(arena: Arena) -> Iterator[View]:
    with View(arena.name) as made:
        yield made


def test_the_oldest_entry_is_the_first_that_is_not_durable_wherever_the_ring_has_come_to(
    arena: Arena, view: View
) -> None:
    assert activity.oldest_entry(view.memory, "write") is None
    sequence = 0
    for turn in range(300):  # several times around, and past every kind of end
        commit(arena, Append("write", 2, b"%d" % turn * (1 + turn * 37 % 400)), Append("write", 2, b"second"))
        oldest = activity.oldest_entry(view.memory, "write")
        assert oldest is not None
        assert (oldest.sequence, oldest.payload) == (sequence + 1, b"%d" % turn * (1 + turn * 37 % 400))
        arena.write_ring.advance(sequence + 1)
        second = activity.oldest_entry(view.memory, "write")
        assert second is not None
        assert (second.sequence, second.payload) == (sequence + 2, b"second")
        sequence += 2
        arena.write_ring.advance(sequence)
        assert activity.oldest_entry(view.memory, "write") is None
    assert activity.oldest_entry(view.memory, "charge") is None


@pytest.mark.parametrize("damage", [0, 8, 12, 16, 24], ids=["sequence", "length", "crc", "kind", "payload"])
def test_an_oldest_entry_that_is_damaged_is_none(arena: Arena, view: View, damage: int) -> None:
    commit(arena, Append("write", 2, b"payload"))
    arena._memory.buffer[arena._memory.layout.write_ring + damage] ^= 0x7F
    assert activity.oldest_entry(view.memory, "write") is None


def test_what_is_claimed_is_seen_with_who_works_on_it(arena: Arena, view: View) -> None:
    commit(arena, Put(key(1), b"a"), Enqueue(key(1), 2, key(9)), Enqueue(key(2), 3, key(9)))
    assert activity.claims(view.memory) == []
    taken = arena.take_work(0.0)
    assert taken is not None
    assert activity.claims(view.memory) == [activity.Claimed(arena.own_lane.lane, 2, key(1), 1)]

    def take() -> None:
        assert arena.take_work(0.0) is not None

    assert run_in_child(take) == 0
    assert {(claim.kind, claim.key) for claim in activity.claims(view.memory)} == {(2, key(1)), (3, key(2))}
    arena.release_dead()
    assert [claim.key for claim in activity.claims(view.memory)] == [key(1)]


def test_who_sleeps_is_counted(arena: Arena, view: View, in_thread: Callable[[Callable[[], object]], None]) -> None:
    in_thread(lambda: arena.take_work(30.0))
    while activity.waits(view.memory).work != 1:
        pass
    assert activity.waits(view.memory) == activity.Waits(0, 0, 1, 0)
    commit(arena, Enqueue(key(2), 3, key(9)))
    while activity.waits(view.memory).work:
        pass


@pytest.fixture
def in_thread() -> Iterator[Callable[[Callable[[], object]], None]]:
    threads: list[threading.Thread] = []

    def start(work: Callable[[], object]) -> None:
        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


def test_a_lock_that_somebody_waits_for_is_told_from_one_that_is_only_held(arena: Arena, view: View) -> None:
    with arena.loads.loading(key(3)):
        assert [(each.lock, each.waited_for) for each in survey.holders(view.memory)] == [("load 3", False)]
        pid = os.fork()
        if not pid:
            with arena.loads.loading(key(3)):
                os._exit(0)
        while not survey.holders(view.memory)[0].waited_for:
            pass
    assert os.waitpid(pid, 0)[1] == 0


def test_members_come_with_their_counters_negative_ones_too(arena: Arena, view: View) -> None:
    assert activity.counted_members(view.memory, key(1)) == []
    commit(arena, Touch(key(1), layout.FLAG_PINNED))
    for number, amount in ((10, 5), (11, -7), (12, 0)):
        commit(arena, Put(key(number), b"account", key(1)), SetCounter(key(number), amount))
    commit(arena, Put(key(13), b"no member"), SetCounter(key(13), 99))
    found = {member.key: member.counter for member in activity.counted_members(view.memory, key(1))}
    assert found == {key(10): 5, key(11): -7, key(12): 0}
    entry, found_there = activity.counter_at(view.memory, 0, key(11))
    assert found_there == -7
    assert activity.counter_at(view.memory, entry, key(11)) == (entry, -7)
    assert activity.counter_at(view.memory, entry, key(12))[1] == 0  # what is remembered is checked
    assert activity.counter_at(view.memory, 7, key(10))[1] == 5
    assert activity.counter_at(view.memory, 0, key(99)) == (0, None)


def test_a_child_that_only_looks_sees_everything_and_cannot_write(arena: Arena) -> None:
    commit(arena, Put(key(1), b"one"), Append("write", 2, b"row"))

    def look() -> None:
        seen = arena.as_view()
        found = seen.read(key(1))
        assert found is not None
        assert found.record == b"one"
        assert activity.oldest_entry(seen.memory, "write") is not None
        assert survey.occupancy(seen.memory).records == 1

    def write() -> None:
        arena.as_view()
        faulthandler.disable()  # the end that is wanted needs no trace
        arena._words[layout.COMMIT_SEQUENCE] = 1

    assert run_in_child(look) == 0
    assert run_in_child(write) == -signal.SIGSEGV
    commit(arena, Put(key(1), b"two"))  # the parent's mapping is its own
    assert len(arena.processes()) == 1
