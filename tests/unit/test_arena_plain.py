"""Plain records: changed under their stripe's lock alone, killed and interrupted at every bytecode of it."""

from __future__ import annotations

import mmap
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from shmcache.arena import Arena, Conflict, critical
from shmcache.arena.stripes import Stripes
from shmcache.arena.transaction import Append, Delete, Put, Transaction
from shmcache.errors import ArenaError, LockTimeout
from tests import kill_points
from tests.unit.arena_state import Points, commit, die, key, run_in_child

SIZE = 8 << 20
ONE, OTHER = key(1), key(2)
RINGS = (64 << 10, 64 << 10)


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"test-plain-{os.getpid()}", SIZE, ring_bytes=RINGS, lock_wait=10.0, ring_wait=0.1)
    for name in (ONE, OTHER):
        made.put(name, b"first")
        made.put(name, b"before")
    yield made
    assert made.check() == []
    made.unlink()
    made.close()


def _record(arena: Arena, name: bytes) -> bytes | None:
    found = arena.read(name)
    return found and found.record


def _at_bytecode(wanted: int, act: Callable[[], None]) -> list[int]:
    """Call `act` before the n-th bytecode that this thread runs in `Stripes.overwrite`; return a list that counts."""
    seen = [0]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not Stripes.overwrite.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen[0] += 1
            if seen[0] == wanted:
                sys.settrace(None)
                act()
        return trace

    sys.settrace(trace)
    return seen


def test_a_put_killed_at_any_bytecode_is_whole_or_never_was(arena: Arena) -> None:
    note = mmap.mmap(-1, 4096)  # shared with the child
    outcomes = []
    for wanted in range(1, 2000):
        arena.put(ONE, b"before")
        decoded = arena.read(ONE)
        assert decoded is not None
        note[0] = 0

        def child(wanted: int = wanted) -> None:
            seen = _at_bytecode(wanted, die)
            arena.put(ONE, b"after")
            sys.settrace(None)
            note[0] = seen[0] < wanted

        code = run_in_child(child)
        assert code == (0 if note[0] else -signal.SIGKILL)
        # Who has the record decoded may go on with the old one; once anybody was given the new one, nobody may.
        found = arena.read(ONE)
        assert found is not None
        assert found.record in (b"before", b"after")
        assert (found.record == b"before") == (arena.version_words()[decoded.entry] == decoded.version)
        assert _record(arena, ONE) == found.record
        assert arena.check() == []
        outcomes.append(found.record)
        arena.put(ONE, b"again")
        assert _record(arena, ONE) == b"again"
        if note[0]:
            break
    else:
        pytest.fail("it never came to its end")
    # There is one moment from which on it has happened.
    assert outcomes == sorted(outcomes, reverse=True)
    assert outcomes[0] == b"before"
    assert outcomes[-2] == b"after"


def test_an_exception_at_any_bytecode_of_a_put_leaves_the_stripe_free_and_the_record_whole(arena: Arena) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    def write_from_elsewhere() -> None:
        arena.put(ONE, b"elsewhere")

    outcomes = []
    for wanted in range(1, 2000):
        arena.put(ONE, b"before")
        interrupted = False
        seen = _at_bytecode(wanted, interrupt)
        try:
            arena.put(ONE, b"after")
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(None)
        outcomes.append(_record(arena, ONE))
        assert outcomes[-1] in (b"before", b"after")
        if wanted % 10 == 0:  # nobody waits for a lock that was left behind
            assert run_in_child(write_from_elsewhere) == 0
        if not interrupted:
            assert seen[0] < wanted
            break
    else:
        pytest.fail("it never came to its end")
    assert outcomes == sorted(outcomes, key=lambda record: record != b"before")
    assert outcomes[-2] == b"after"


def test_a_put_that_meets_an_unfinished_commit_of_the_dead_finishes_it_first(arena: Arena) -> None:
    for step in range(1, 40):
        arena.put(ONE, b"before")

        def child(step: int = step) -> None:
            kill_points.arm(critical, Points(step, die))
            wanted = Transaction()
            wanted.operations += [Append("write", 1, b"row"), Put(ONE, b"in a commit"), Put(key(50), b"with it")]
            arena.commit(wanted)

        code = run_in_child(child)
        last = arena.write_ring.last_sequence
        arena.put(ONE, b"after")
        assert _record(arena, ONE) == b"after"
        assert (_record(arena, key(50)) is None) == (arena.write_ring.last_sequence == 0)
        assert arena.write_ring.last_sequence >= last
        assert arena.check() == []
        arena.write_ring.advance(arena.write_ring.last_sequence)
        if code == 0:
            break
        commit(arena, Delete(key(50)))
        if arena.write_ring.last_sequence:
            break  # from here on it is finished every time
    assert step > 3


def test_a_stopped_writer_holds_up_its_own_stripe_alone_and_is_named(arena: Arena) -> None:
    here, there = os.pipe()
    pid = os.fork()
    if not pid:

        def stop() -> None:
            os.write(there, b".")
            os.kill(os.getpid(), signal.SIGSTOP)

        _at_bytecode(150, stop)  # well inside the section
        arena.put(ONE, b"slow")
        os._exit(0)
    os.read(here, 1)
    os.waitpid(pid, os.WUNTRACED)
    arena.put(OTHER, b"not held up")
    arena._critical.lock_wait_seconds = 0.2
    with pytest.raises(LockTimeout, match=str(pid)):
        arena.put(ONE, b"mine")
    assert _record(arena, ONE) in (b"before", b"slow")
    os.kill(pid, signal.SIGCONT)
    assert os.waitpid(pid, 0)[1] == 0
    arena._critical.lock_wait_seconds = 10.0
    arena.put(ONE, b"mine")
    assert _record(arena, ONE) == b"mine"


def test_a_put_from_inside_a_put_is_refused_and_does_no_harm(arena: Arena) -> None:
    refused = []

    def again() -> None:
        with pytest.raises(ArenaError, match="inside a put"):
            arena.put(ONE, b"nested")
        refused.append(True)

    _at_bytecode(150, again)
    arena.put(ONE, b"outer")
    assert refused
    assert _record(arena, ONE) == b"outer"


def test_a_commit_from_inside_a_put_is_refused_and_leaves_the_put_its_stripe(arena: Arena) -> None:
    mutex = arena._stripes._mutexes[arena._stripes.number_of(ONE)]
    held = []

    def again() -> None:
        held.append(mutex.is_held_here())
        with pytest.raises(ArenaError, match="inside a put"):
            arena.check()
        held.append(mutex.is_held_here())

    _at_bytecode(150, again)
    arena.put(ONE, b"outer")
    assert held == [True, True]
    assert _record(arena, ONE) == b"outer"


def test_a_transaction_that_relied_on_a_plain_record_fails_if_that_was_put_meanwhile(arena: Arena) -> None:
    wanted = Transaction()
    wanted.rely_on(ONE, arena.version(ONE))
    wanted.operations.append(Put(OTHER, b"depends"))
    arena.put(ONE, b"changed")
    with pytest.raises(Conflict):
        arena.commit(wanted)
    assert _record(arena, OTHER) == b"before"
    commit(arena, Delete(ONE))
    assert arena.read(ONE) is None
    arena.put(ONE, b"anew")
    assert _record(arena, ONE) == b"anew"


def test_processes_that_write_and_read_the_same_plain_keys_never_see_another_record_or_an_older_one(
    arena: Arena,
) -> None:
    """Each record is its key's number, its writer and a count; a reader never sees a writer's count go back."""
    names = [key(1000 + number) for number in range(40)]
    rounds = 4000

    def write(writer: int) -> None:
        dice = random.Random(writer)
        seen: dict[tuple[int, int], int] = {}
        for count in range(1, rounds):
            number = dice.randrange(len(names))
            tail = bytes(dice.choice((0, 100, 900, 4000)))
            arena.put(names[number], b"%d %d %d " % (number, writer, count) + tail)
            other = dice.randrange(len(names))
            record = _record(arena, names[other])
            if record is not None:
                found, by, at, rest = record.split(b" ", 3)
                assert int(found) == other
                assert not rest.strip(b"\0")
                assert int(at) >= seen.get((other, int(by)), 0)
                seen[other, int(by)] = int(at)
            if count % 500 == writer:
                arena._room.clean()
            if count % 97 == writer:
                commit(arena, Delete(names[number]))

    pids = []
    for writer in range(3):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                write(writer)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]


def _live_share(arena: Arena) -> float:
    """Return the share of the room for records that records take."""
    census = arena._room._mover.census()
    slabs = arena._slabs
    return census.live_bytes() / (slabs.count * slabs.size)


def test_small_then_large_then_small_records_are_served_from_a_full_arena_each_time(arena: Arena) -> None:
    served = 0
    for turn, size in enumerate((50, 300_000, 700, 2_000_000, 90, 20_000)):
        share = 0.0
        count = max(3 * SIZE // (size + 120), 3)
        for number in range(count):
            arena.put(key(1_000_000 * (turn + 1) + number), bytes([turn]) * size)
            served += 1
        share = _live_share(arena)
        newest = arena.read(key(1_000_000 * (turn + 1) + count - 1))
        assert newest is not None
        assert newest.record == bytes([turn]) * size
        slabs = arena._slabs
        entries = arena._words[83] * slabs.size / (slabs.count * slabs.size)
        if size <= 20_000:
            assert share + entries > 0.8, (size, share, entries)
    assert arena.check() == []


@pytest.mark.parametrize("size", [0, 8])
def test_records_smaller_than_their_entries_make_room_for_each_other_too(arena: Arena, size: int) -> None:
    """Entries run out before slabs do: records go whose entries go with them."""
    count = SIZE // 100
    for number in range(count):
        arena.put(key(1_000_000 + number), bytes(size))
    assert arena.counter_totals()["evicted"] > 0
    assert arena.read(key(1_000_000)) is None
    assert _record(arena, key(1_000_000 + count - 1)) == bytes(size)
    assert arena.check() == []


def test_random_overwrites_wear_nothing_out(arena: Arena) -> None:
    """Records of all sizes, four times the segment's bytes written over them: all that fit at first fit at last."""
    dice = random.Random(3)
    names = [key(5000 + number) for number in range(1500)]
    model: dict[bytes, bytes] = {}
    for _ in range(12_000):
        name = dice.choice(names)
        record = bytes([dice.randrange(256)]) * int(50 * 2 ** dice.uniform(0, 9))
        arena.put(name, record)
        model[name] = record
        if sum(map(len, model.values())) > SIZE // 3:
            gone = dice.choice(list(model))
            commit(arena, Delete(gone))
            del model[gone]
    assert arena.counter_totals()["evicted"] == 0
    assert {name: _record(arena, name) for name in names} == {name: model.get(name) for name in names}


def test_nothing_is_forgotten_while_there_are_holes_to_clean(arena: Arena) -> None:
    dice = random.Random(5)
    names = [key(8000 + number) for number in range(3000)]
    records = [bytes([number]) * int(50 * 2 ** dice.uniform(0, 6.5)) for number in range(97)]
    last: dict[bytes, bytes] = {}
    for _ in range(60_000):
        name = dice.choice(names)
        last[name] = dice.choice(records)
        arena.put(name, last[name])
    assert arena.counter_totals()["cleaned_slabs"] > 100
    assert arena.counter_totals()["evicted"] == 0
    assert {name: _record(arena, name) for name in last} == last


def test_what_is_read_stays_and_what_is_not_read_goes(arena: Arena) -> None:
    hot = [key(7000 + number) for number in range(300)]
    for name in hot:
        arena.put(name, b"hot" * 200)
    for number in range(30_000):
        arena.put(key(100_000 + number), bytes(600))
        assert arena.read(hot[number % 300]) is not None
    assert arena.read(key(100_000)) is None
    assert arena.counter_totals()["evicted"] > 10_000


def test_a_pinned_plain_record_stays(arena: Arena) -> None:
    from shmcache.arena import FLAG_PINNED, FLAG_PLAIN

    commit(arena, Put(key(9), b"pinned", None, FLAG_PINNED | FLAG_PLAIN))
    for number in range(20_000):
        arena.put(key(100_000 + number), bytes(600))
    assert _record(arena, key(9)) == b"pinned"
