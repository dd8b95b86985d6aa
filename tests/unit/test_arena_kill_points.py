"""Every operation of the arena, killed and interrupted at each step: all of it is there afterwards, or nothing."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from shmcache.arena import FLAG_FINISHED, FLAG_INDEXED, FLAG_PLAIN, Arena, Counter, committing, critical, layout
from shmcache.arena.transaction import (
    Add,
    Advance,
    Append,
    Clear,
    Delete,
    Enqueue,
    Exchange,
    Number,
    Put,
    Rebase,
    Release,
    SetCounter,
    SetOnce,
    Touch,
)
from tests import kill_points
from tests.unit.arena_state import Points, commit, die, key, run_in_child, state

FAMILY, GROUP, MEMBER, OTHER, LONG, PLAIN, GRAPH, NUMBERED, COUNTED = (key(n) for n in range(1, 10))
SINGLE = key(10)
QUEUED = key(20)
NEW = key(30)
BASE = key(31)
LONG_RECORD = bytes(range(256)) * 700  # eleven slabs of 16 KiB


class Case(NamedTuple):
    """An operation, what a child does just before it, and whether it is one commit."""

    operate: Callable[[Arena], object]
    begin: Callable[[Arena], object] = lambda _: None
    one_commit: bool = True


def _take(arena: Arena) -> None:
    claim = arena.take_work(0)
    assert claim is not None
    assert claim.key == QUEUED


CASES = {
    "put new": Case(lambda a: commit(a, Put(NEW, b"n" * 300))),
    "put new member": Case(lambda a: commit(a, Put(NEW, b"n", GROUP, FLAG_INDEXED))),
    "put existing": Case(lambda a: commit(a, Put(PLAIN, b"changed" * 50))),
    "put larger than a slab": Case(lambda a: commit(a, Put(NEW, LONG_RECORD))),
    "put over one larger than a slab": Case(lambda a: commit(a, Put(LONG, LONG_RECORD[::-1]))),
    "put twice": Case(lambda a: commit(a, Put(PLAIN, b"one"), Put(PLAIN, b"two"), Put(PLAIN, b"three"))),
    "delete": Case(lambda a: commit(a, Delete(PLAIN))),
    "touch": Case(lambda a: commit(a, Touch(NEW, FLAG_FINISHED))),
    "append to the write ring": Case(lambda a: commit(a, Append("write", 2, b"row"))),
    "put and append": Case(lambda a: commit(a, Put(PLAIN, b"p"), Append("write", 2, b"row"), Put(NEW, b"q"))),
    "append to both rings": Case(
        lambda a: commit(a, Append("charge", 1, b"c" * 99), Append("write", 2, b"w"), Add(COUNTED, -3, 0))
    ),
    "enqueue": Case(lambda a: commit(a, Enqueue(NEW, 1, GRAPH))),
    "take work": Case(_take),
    "release with follow": Case(lambda a: commit(a, Release(QUEUED, GRAPH, 2)), _take),
    "number": Case(lambda a: commit(a, Number(NUMBERED, COUNTED))),
    "add": Case(lambda a: commit(a, Add(COUNTED, 5))),
    "hold": Case(lambda a: commit(a, Append("charge", 1, b"c"), Add(COUNTED, -3, 0), SetOnce(NEW, -4))),
    "clear": Case(lambda a: commit(a, Clear(COUNTED, 41), Clear(NEW, 0), Append("charge", 1, b"v"))),
    "exchange": Case(lambda a: commit(a, Exchange(COUNTED, b"settled"), Exchange(NEW, b"nothing"))),
    "release": Case(lambda a: commit(a, Advance("charge", 0, 1), Rebase(COUNTED, BASE, 38, 5), Rebase(NEW, BASE, 1))),
    "advance": Case(lambda a: a.write_ring.advance(2)),
    "put the first plain record": Case(lambda a: a.put(NEW, b"n" * 300)),
    "delete a plain record": Case(lambda a: commit(a, Delete(SINGLE))),
    "exchange a plain record": Case(lambda a: commit(a, Put(SINGLE, LONG_RECORD, None, FLAG_PLAIN))),
    "give a stripe a slab": Case(lambda a: a._stripes.refill(SINGLE)),
    "sweep": Case(lambda a: a.sweep(), lambda a: commit(a, Delete(LONG)), one_commit=False),
    "grow": Case(lambda a: a._room._alone(a._room._entry_slabs.grow), one_commit=False),
    "clean": Case(lambda a: a._room.clean(), one_commit=False),
    "evict": Case(lambda a: a._room.evict(), one_commit=False),
    "drop family": Case(lambda a: a.drop_family(FAMILY), one_commit=False),
    "count and enter": Case(lambda a: a.count(Counter.NODE_RUNS, 2), one_commit=False),
    "release dead": Case(lambda a: a.release_dead(), one_commit=False),
}


@pytest.fixture(scope="module")
def prepared() -> Iterator[tuple[Arena, bytes]]:
    """An arena with something of everything in it, and its bytes."""
    arena = Arena.create(f"test-kill-{os.getpid()}", 4 << 20, lock_wait=5.0, ring_wait=0.2)
    try:
        commit(arena, Touch(FAMILY, FLAG_INDEXED))
        commit(arena, Put(GROUP, b"group", FAMILY, FLAG_INDEXED), Put(MEMBER, b"member", GROUP))
        commit(arena, Put(OTHER, b"other", FAMILY))
        commit(arena, Put(LONG, LONG_RECORD), Put(PLAIN, b"plain"), Put(NUMBERED, b"numbered"))
        commit(arena, Touch(COUNTED), SetCounter(COUNTED, 41), Touch(BASE), SetCounter(BASE, 50))
        for number in range(3):
            arena.put(SINGLE, b"single" * number)
        for number in range(100, 250):
            commit(arena, Put(key(number), bytes([number]) * 1500))
        for number in range(100, 250, 2):
            commit(arena, Delete(key(number)))
        commit(arena, Append("write", 1, b"1"), Append("charge", 1, b"x"))
        commit(arena, Append("write", 1, b"2"), Append("write", 1, b"3"), Put(PLAIN, b"plain, dirty"))
        commit(arena, Enqueue(QUEUED, 1, GRAPH))
        assert run_in_child(lambda: arena.enter("worker")) == 0  # a lane of a dead process
        yield arena, bytes(arena._memory.buffer)
    finally:
        arena.close()
        arena.unlink()


def _restore(arena: Arena, image: bytes) -> None:
    arena._memory.buffer[:] = image


def _outcome(arena: Arena, image: bytes, case: Case) -> tuple[object, object]:
    _restore(arena, image)
    case.begin(arena)
    before = state(arena)
    _restore(arena, image)  # what was read just now is marked so, which decides who is evicted
    case.begin(arena)
    case.operate(arena)
    return before, state(arena)


@pytest.mark.parametrize("name", CASES)
def test_an_operation_killed_at_any_step_is_whole_or_never_was(prepared: tuple[Arena, bytes], name: str) -> None:
    arena, image = prepared
    case = CASES[name]
    before, after = _outcome(arena, image, case)
    note = mmap.mmap(-1, 4096)  # shared with the child
    survived = False
    for step in range(1, 2000):
        _restore(arena, image)
        note[0] = 0

        def child(step: int = step) -> None:
            case.begin(arena)
            points: Points

            def end() -> None:
                note[0] = points.committed
                die()

            points = Points(step, end)
            kill_points.arm(critical, points)
            case.operate(arena)

        survived = run_in_child(child) == 0
        assert arena.check() == [], f"step {step}"  # the first operation recovers
        found = state(arena)
        if survived:
            assert found == after
            break
        if case.one_commit:
            assert found == (after if note[0] else before), f"step {step}"
        commit(arena, Put(key(99), b"still usable"))
        if not case.one_commit and name != "count and enter":
            case.operate(arena)
        assert arena.check() == []
        arena.release_dead()
        assert arena.check() == []
        assert not [process for process in arena.processes() if not process.alive]
    assert survived


@pytest.mark.parametrize("name", CASES)
def test_an_exception_at_any_step_leaves_the_arena_sound_and_usable(prepared: tuple[Arena, bytes], name: str) -> None:
    arena, image = prepared
    # In a child: putting the image back also puts back life locks, which the kernel believes this process to hold.
    assert run_in_child(lambda: _interrupt_at_every_step(arena, image, CASES[name])) == 0


def _interrupt_at_every_step(arena: Arena, image: bytes, case: Case) -> None:
    _restore(arena, image)
    arena.enter("other")
    image = bytes(arena._memory.buffer)
    before, after = _outcome(arena, image, case)

    def interrupt() -> None:
        raise KeyboardInterrupt

    for step in range(1, 2000):
        _restore(arena, image)
        case.begin(arena)
        points = Points(step, interrupt)
        kill_points.arm(critical, points)
        interrupted = False
        try:
            case.operate(arena)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            kill_points.disarm(critical)
        if not interrupted:
            break
        assert not arena._critical.mutex.is_held_here()  # others need not wait for this process's next use
        assert arena.check() == []
        if case.one_commit:
            assert state(arena) == (after if points.committed else before), f"step {step}"
        commit(arena, Put(key(99), b"still usable"))
    else:
        pytest.fail("it never came to its end")
    assert arena.check() == []
    assert state(arena) == after


def test_a_death_in_the_middle_of_a_recovery_is_recovered_too(prepared: tuple[Arena, bytes]) -> None:
    arena, image = prepared
    operate = CASES["append to both rings"].operate
    _, after = _outcome(arena, image, CASES["append to both rings"])
    _restore(arena, image)

    def child() -> None:
        points = Points(-1, die)
        kill_points.arm(critical, points)
        points.act_at = 4  # locked, staged, intended, the first pair stored
        operate(arena)

    assert run_in_child(child) == -9
    count = arena._words[layout.INTENT_OFFSET // layout.WORD]
    assert count

    def second() -> None:
        arena._critical.mutex.inherit(arena._critical.mutex.acquire(1.0))
        die()  # it has the lock, consistent, and has stored nothing yet

    assert run_in_child(second) == -9
    assert arena._words[layout.INTENT_OFFSET // layout.WORD] == count
    assert arena.check() == []
    assert state(arena) == after


@pytest.mark.parametrize(
    ("count", "pairs"),
    [
        (2**64 - 1, []),
        (layout.INTENT_PAIRS + 1, []),
        (3, [2**63, 1, 2, 3, 4, 5]),
        (1, [layout.READY_WORD, 1]),
        (1, [layout.COMMIT_LOCK_OFFSET // layout.WORD, 0]),
        (2, [layout.COMMIT_SEQUENCE, 2**64 - 1, 10**9, 5]),
    ],
)
def test_an_intent_of_garbage_is_dropped_and_counted(
    prepared: tuple[Arena, bytes], count: int, pairs: list[int]
) -> None:
    arena, image = prepared
    _restore(arena, image)
    before = state(arena)

    def child() -> None:
        with arena._critical:
            intent = layout.INTENT_OFFSET // layout.WORD
            for place, word in enumerate(pairs):
                arena._words[intent + 2 + place] = word
            arena._words[intent] = count
            die()

    assert run_in_child(child) == -9
    assert arena.check() == []
    assert state(arena) == before
    assert arena._words[layout.RECOVERIES] == 1
    assert arena._words[layout.DAMAGED_INTENTS] == (0 if pairs[:1] == [layout.COMMIT_SEQUENCE] and count == 1 else 1)


def test_using_the_arena_from_inside_a_commit_is_refused_and_does_no_harm(prepared: tuple[Arena, bytes]) -> None:
    arena, image = prepared
    _restore(arena, image)
    from shmcache.errors import ArenaError

    for step in ("locked", "staged", "intended", "committed", "cleared"):
        refused: list[str] = []

        def again(name: str, step: str = step, refused: list[str] = refused) -> None:
            if name == step and not refused:
                refused.append(name)
                with pytest.raises(ArenaError, match="inside a commit"):
                    commit(arena, Put(key(98), b"nested"))
                assert arena._critical.mutex.is_held_here()

        kill_points.arm(critical, again)
        try:
            commit(arena, Put(key(97), step.encode()))
        finally:
            kill_points.disarm(critical)
        found = arena.read(key(97))
        assert refused == [step]
        assert found is not None
        assert found.record == step.encode()
        assert arena.read(key(98)) is None
        assert arena.check() == []


def test_the_steps_of_a_commit_are_those_that_its_description_names_and_the_product_has_no_hook(
    prepared: tuple[Arena, bytes],
) -> None:
    arena, image = prepared
    _restore(arena, image)
    own = critical.Critical.publish.__code__
    points = Points(0, die)
    kill_points.arm(critical, points)
    try:
        commit(arena, Put(key(96), b"armed"))
    finally:
        kill_points.disarm(critical)
    assert list(dict.fromkeys(points.names)) == kill_points.steps_of(critical)
    assert all(f"\n    {name} " in (committing.__doc__ or "") for name in points.names)
    assert critical.Critical.publish.__code__ is own
    assert not any("kill_point" in name for name in own.co_names)
    seen = points.seen
    commit(arena, Put(key(96), b"and no more"))
    assert points.seen == seen
