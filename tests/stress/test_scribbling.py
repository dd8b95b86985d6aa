"""Random bytes anywhere in a segment but its locks: nobody crashes, nobody hangs, nobody is told what was never put."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import traceback
from collections.abc import Callable, Iterator

import pytest

from shmcache.arena import FLAG_FINISHED, FLAG_INDEXED, Arena, layout, survey
from shmcache.arena.mutex import SIZE as LOCK_BYTES
from shmcache.arena.transaction import Append, Delete, Enqueue, Put
from shmcache.errors import ArenaError, ShmcacheError
from tests.unit.arena_state import commit, key

ROUNDS = 1000
ROUND_SECONDS = 30
KEYS = [key(number) for number in range(1, 41)]
PARENT, GRAPH, MISSING = key(50), key(51), key(52)
MEMBERS = [key(number) for number in range(60, 66)]
_ROUND = struct.Struct("<I")


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"test-scribble-{os.getpid()}", 4 << 20, lock_wait=60.0, ring_wait=0.01)
    yield made
    made.unlink()
    made.close()


def _value(number: int, generation: int) -> bytes:
    size = (0, 9, 700, 3000, 70_000, 150_000)[number % 6 if number < 12 else number % 4]
    return struct.pack("<II", number, generation) + bytes([number, generation]) * (size // 2)


def _fill(arena: Arena) -> dict[bytes, set[bytes]]:
    """Put records of all sizes, a family, entries on rings and queue; return every value put under each key."""
    put: dict[bytes, set[bytes]] = {}
    for generation in (1, 2):
        for number, name in enumerate(KEYS):
            if generation == 1 or number % 3:
                put.setdefault(name, set()).add(_value(number, generation))
                commit(
                    arena, Put(name, _value(number, generation)), *[Append("write", 1, b"row" * number)] * (number % 2)
                )
    commit(arena, Put(PARENT, b"parent", None, FLAG_INDEXED | FLAG_FINISHED))
    put[PARENT] = {b"parent"}
    for name in MEMBERS:
        commit(arena, Put(name, b"member " + name, PARENT))
        put[name] = {b"member " + name}
    commit(arena, Enqueue(KEYS[0], 1, GRAPH), Append("charge", 1, b"charge"))
    commit(arena, Delete(KEYS[-1]))
    return put


def _targets(arena: Arena, *, with_state: bool = True) -> list[range]:
    """Return the words of the segment, by region, but for the locks, and if so wished for header and state."""
    memory = arena._memory
    locked: set[int] = set()
    for _, offset in survey.lock_places(memory):
        locked.update(range(offset // layout.WORD, (offset + LOCK_BYTES) // layout.WORD))
    regions = []
    for region in survey.regions(memory):
        begin, end = region.offset // layout.WORD, (region.offset + region.size) // layout.WORD
        if region.name == "lanes":  # the first of each lane is its life lock
            lane = layout.LANE_BYTES // layout.WORD
            regions += [range(first + layout.LANE_PID, first + lane) for first in range(begin, begin + 4 * lane, lane)]
        elif not locked.intersection(range(begin, end)):
            regions.append(range(begin, end))
        elif region.name == "header and state" and with_state:
            first = min(locked.intersection(range(begin, end)))
            regions += [range(begin, first), range(max(locked.intersection(range(begin, end))) + 1, end)]
    return regions


def _in_use(arena: Arena, regions: list[range]) -> list[list[int]]:
    """Return the words of each region that are not 0: most of a segment is empty, and harmless to change."""
    words = arena._memory.words
    found = ([word for word in region if words[word]] for region in regions)
    return [used for used in found if used]


def _scribble(arena: Arena, regions: list[range], in_use: list[list[int]], dice: random.Random) -> None:
    """Change one to sixteen bytes, or whole words to what words often are: nothing, everything, another's place."""
    words, buffer = arena._memory.words, arena._memory.buffer
    for _ in range(dice.choice((1, 1, 4, 16))):
        word = dice.choice(dice.choice(in_use if dice.random() < 0.8 else regions))
        if dice.random() < 0.6:
            buffer[word * 8 + dice.randrange(8)] = dice.randrange(256)
        else:
            another = dice.choice(dice.choice(in_use))
            words[word] = dice.choice((0, 2**64 - 1, another, words[another], dice.randrange(2**64)))


def _read_all(arena: Arena, put: dict[bytes, set[bytes]]) -> None:
    for name in (*KEYS, PARENT, *MEMBERS, MISSING):
        found = arena.read(name)
        assert found is None or found.record in put.get(name, ()), f"read {found} of {name!r}"
    for look in (lambda: arena.members(PARENT), lambda: arena.is_indexed(PARENT), lambda: arena.counter(GRAPH)):
        look()
    with contextlib.suppress(ArenaError):
        survey.occupancy(arena._memory)
        survey.largest(arena._memory, 5)
        survey.hottest(arena._memory, 5)
        survey.rings(arena._memory)
        list(survey.keys(arena._memory))


def _write_some(arena: Arena, put: dict[bytes, set[bytes]], dice: random.Random) -> None:
    for _ in range(5):
        number = dice.randrange(len(KEYS))
        value = _value(number, 100 + dice.randrange(100))
        put[KEYS[number]].add(value)
        try:
            commit(arena, Put(KEYS[number], value), *[Append("write", 1, value[:50])] * dice.randrange(2))
            commit(arena, Delete(dice.choice(KEYS)))
        except ShmcacheError:
            pass


def _in_a_child(arena: Arena, regions: list[range], one_round: Callable[[int], None]) -> None:
    """Do all rounds in a forked child, each on the segment as it was; fail with the round that it did not end well."""
    here, there = os.pipe()
    memory = arena._memory
    parts = [
        (slice(each[0] * 8, (each[-1] + 1) * 8), bytes(memory.buffer[each[0] * 8 : (each[-1] + 1) * 8]))
        for each in regions
    ]

    def restore() -> None:  # but not the locks, which the threads that hold them are linked to
        for place, content in parts:
            memory.buffer[place] = content

    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        code = 1
        try:
            for number in range(ROUNDS):
                os.write(there, _ROUND.pack(number))
                signal.alarm(ROUND_SECONDS)
                one_round(number)
                restore()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(there)
    last = b""
    while more := os.read(here, 1 << 16):
        last = more
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    restore()
    assert code == 0, f"round {_ROUND.unpack(last[-4:])[0]} ended with {code} (14: it hung)"


def _survives(
    arena: Arena, regions: list[range], use: Callable[[dict[bytes, set[bytes]], random.Random], None]
) -> None:
    put = _fill(arena)
    in_use = _in_use(arena, regions)

    def one_round(number: int) -> None:
        dice = random.Random(number)
        _scribble(arena, regions, in_use, dice)
        use({name: set(values) for name, values in put.items()}, dice)

    _in_a_child(arena, regions, one_round)


def test_readers_survive_and_get_nothing_that_was_never_put(arena: Arena) -> None:
    _survives(arena, _targets(arena, with_state=False), lambda put, _: _read_all(arena, put))


def test_readers_survive_changes_of_the_state_too(arena: Arena) -> None:
    _survives(arena, _targets(arena), lambda put, _: _read_all(arena, put))


def test_writers_survive_and_leave_nothing_that_was_never_put(arena: Arena) -> None:
    def use(put: dict[bytes, set[bytes]], dice: random.Random) -> None:
        _write_some(arena, put, dice)
        _read_all(arena, put)

    _survives(arena, _targets(arena), use)


def test_the_consumer_of_a_ring_survives(arena: Arena) -> None:
    payloads = {b"charge", *(b"row" * number for number in range(41))}

    def use(_put: dict[bytes, set[bytes]], _dice: random.Random) -> None:
        for ring in (arena.write_ring, arena.charge_ring):
            for entry in ring.read(ring.committed_sequence, 1000, 1 << 20):
                assert not entry.intact or entry.payload in payloads

    _survives(arena, _targets(arena), use)
