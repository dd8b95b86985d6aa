"""The rings: every entry once and in order, around the end, when full, and with damage in the middle."""

from __future__ import annotations

import os
import random
import struct
import threading
import zlib
from collections.abc import Callable, Iterator

import pytest

from shmcache.arena import Arena, Conflict, layout
from shmcache.arena.ring import HEADER_BYTES
from shmcache.arena.transaction import Add, Append, Put, Transaction
from shmcache.errors import InvalidValue, RingFull, TransactionTooLarge
from tests.unit.arena_state import commit, key


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"test-ring-{os.getpid()}", 4 << 20, ring_wait=0.1)
    yield made
    made.unlink()
    made.close()


def _payload(sequence: int, size: int) -> bytes:
    return sequence.to_bytes(8, "big") + bytes([sequence % 251]) * size


def test_entries_come_out_once_and_in_order_around_the_end_of_the_ring(arena: Arena) -> None:
    ring = arena.write_ring
    dice = random.Random(1)
    appended = 0
    read = 0
    while appended < 6000:
        for _ in range(dice.randrange(1, 40)):
            appended += 1
            commit(arena, Append("write", appended % 5, _payload(appended, dice.choice((0, 1, 7, 8, 300, 5000)))))
        for entry in ring.read(read, dice.randrange(1, 60), dice.randrange(1, 200_000)):
            read += 1
            assert (entry.sequence, entry.kind, entry.intact) == (read, read % 5, True)
            assert entry.payload[:8] == read.to_bytes(8, "big")
        if ring.used_bytes > ring.size // 3:
            read = appended if dice.random() < 0.1 else read
            ring.advance(read)
    assert ring.last_sequence == appended > ring.committed_sequence
    assert arena.check() == []


@pytest.mark.parametrize(("entries", "bytes_"), [(1, 1 << 30), (7, 1 << 30), (1 << 30, 1), (1 << 30, 5_000)])
def test_what_is_read_ends_with_a_whole_commit_whatever_the_limits(arena: Arena, entries: int, bytes_: int) -> None:
    dice = random.Random(2)
    ends: list[int] = []
    for number in range(320):
        wanted = [Append("write", 1, _payload(0, dice.choice((0, 9, 2_000)))) for _ in range(dice.randrange(1, 6))]
        ends.append(commit(arena, *wanted, Append("charge", 1, b"")).write_sequence)
        if number < 300 and dice.random() < 0.2:  # around the end of the ring
            arena.write_ring.advance(ends[-1])
    read = arena.write_ring.committed_sequence
    batches = 0
    while some := arena.write_ring.read(read, entries, bytes_):
        assert [entry.sequence for entry in some] == list(range(read + 1, some[-1].sequence + 1))
        read = some[-1].sequence
        assert read in ends
        batches += 1
    assert read == ends[-1]
    assert batches > 3


def test_a_new_consumer_begins_behind_what_is_durable_and_behind_its_checkpoint(arena: Arena) -> None:
    for number in range(1, 11):
        commit(arena, Append("write", 1, _payload(number, number)))
    arena.write_ring.advance(3)
    arena.write_ring.advance(2)  # never back
    assert arena.write_ring.committed_sequence == 3
    with Arena.attach(arena.name) as other:
        assert [entry.sequence for entry in other.write_ring.read(0, 100, 1 << 30)] == list(range(4, 11))
        assert [entry.sequence for entry in other.write_ring.read(7, 100, 1 << 30)] == [8, 9, 10]
        assert other.write_ring.read(10, 100, 1 << 30) == []
        other.write_ring.advance(8)
        other.write_ring.advance(10**6)
        assert other.write_ring.committed_sequence == 10
        assert other.write_ring.used_bytes == 0
    assert arena.check() == []


@pytest.mark.parametrize("damage", ["sequence", "length", "payload", "kind", "all", "zeros"])
def test_damage_costs_the_entries_it_hit_and_no_other(arena: Arena, damage: str) -> None:
    for number in range(1, 11):
        commit(arena, Append("write", 3, _payload(number, 100)))
    first = arena._memory.layout.write_ring
    stride = arena.write_ring.used_bytes // 10
    place = first + 4 * stride  # entry 5
    buffer = arena._memory.buffer
    if damage == "sequence":
        buffer[place : place + 8] = (10**15).to_bytes(8, "little")
    elif damage == "length":
        buffer[place + 8 : place + 12] = b"\xff\xff\xff\x7f"
    elif damage == "payload":
        buffer[place + 40] ^= 1
    elif damage == "kind":
        buffer[place + 16 : place + 20] = b"\xff\xff\xff\xff"
    else:
        buffer[place : place + stride] = bytes([0xFF if damage == "all" else 0]) * stride
    entries = arena.write_ring.read(0, 100, 1 << 30)
    assert [entry.sequence for entry in entries] == list(range(1, 11))
    assert [entry.sequence for entry in entries if not entry.intact] == [5]
    assert all(entry.kind < 2**15 for entry in entries)
    assert arena.check() != []
    commit(arena, Append("write", 3, b"later"))
    arena.write_ring.advance(entries[-1].sequence)
    assert [entry.payload for entry in arena.write_ring.read(10, 100, 1 << 30)] == [b"later"]
    assert arena.check() == []


def test_damage_over_several_entries_is_one_entry_that_says_up_to_where(arena: Arena) -> None:
    for number in range(1, 11):
        commit(arena, Append("write", 3, _payload(number, 100)))
    stride = arena.write_ring.used_bytes // 10
    begin = arena._memory.layout.write_ring + 2 * stride + 8
    arena._memory.buffer[begin : begin + 3 * stride] = b"\x55" * (3 * stride)
    entries = arena.write_ring.read(0, 100, 1 << 30)
    assert [(entry.sequence, entry.intact) for entry in entries if entry.sequence < 8] == [
        (1, True),
        (2, True),
        (6, False),
        (7, True),
    ]
    arena.write_ring.advance(2)
    arena.write_ring.advance(7)
    assert [entry.sequence for entry in arena.write_ring.read(7, 100, 1 << 30)] == [8, 9, 10]


def test_a_damaged_end_does_not_swallow_what_is_appended_behind_it(arena: Arena) -> None:
    for number in range(1, 4):
        commit(arena, Append("write", 3, _payload(number, 100)))
    stride = arena.write_ring.used_bytes // 3
    begin = arena._memory.layout.write_ring + 2 * stride
    arena._memory.buffer[begin : begin + 8] = b"\xee" * 8
    damaged = arena.write_ring.read(2, 100, 1 << 30)
    assert [(entry.sequence, entry.intact) for entry in damaged] == [(3, False)]
    commit(arena, Append("write", 3, b"behind"))
    arena.write_ring.advance(damaged[-1].sequence)
    assert [(entry.sequence, entry.payload) for entry in arena.write_ring.read(3, 100, 1 << 30)] == [(4, b"behind")]


def test_a_full_ring_refuses_after_the_limit_and_writes_nothing(arena: Arena) -> None:
    filler = bytes(arena.charge_ring.size // 4)
    for _ in range(3):
        commit(arena, Append("charge", 1, filler), Put(key(1), b"x"))
    with pytest.raises(RingFull, match="charge"):
        commit(arena, Append("charge", 1, filler), Put(key(1), b"x"))
    last = arena.charge_ring.last_sequence
    version = arena.version(key(1))
    with pytest.raises(RingFull):
        commit(arena, Append("write", 1, b"w"), Append("charge", 1, filler), Put(key(1), b"y"))
    assert (arena.charge_ring.last_sequence, arena.write_ring.last_sequence) == (last, 0)
    assert arena.version(key(1)) == version
    assert arena.check() == []
    arena.charge_ring.advance(last)
    commit(arena, Append("charge", 1, filler))
    assert arena.charge_ring.last_sequence == last + 1


def test_a_writer_that_waits_for_room_goes_on_when_the_head_moves(arena: Arena) -> None:
    arena.ring_wait_seconds = 30.0
    filler = bytes(arena.charge_ring.size // 3)
    for _ in range(2):
        commit(arena, Append("charge", 1, filler))
    writer = threading.Thread(target=commit, args=(arena, Append("charge", 1, filler)))
    writer.start()
    arena.charge_ring.wait_for_drain(30.0)  # the writer asks for it
    arena.charge_ring.advance(2)
    writer.join(30)
    assert arena.charge_ring.last_sequence == 3


def test_what_can_never_fit_is_refused_at_once(arena: Arena) -> None:
    arena.ring_wait_seconds = 1e6
    with pytest.raises(InvalidValue):
        commit(arena, Append("charge", 1, bytes(arena.charge_ring.size)))
    wanted = Transaction()
    wanted.operations.extend([Append("charge", 1, bytes(arena.charge_ring.size // 3))] * 4)
    with pytest.raises(TransactionTooLarge):
        arena.commit(wanted)
    assert arena.charge_ring.last_sequence == 0
    assert arena.check() == []


def test_the_high_water_mark_wakes_the_consumer(arena: Arena) -> None:
    state = layout.CHARGE_RING_STATE
    words = arena.version_words()
    part = bytes(arena.charge_ring.size // 5)
    signals = []
    for _ in range(4):
        commit(arena, Append("charge", 1, part))
        signals.append(words[state + layout.DRAIN_SIGNAL])
    assert signals == [0, 0, 1, 1]
    arena.charge_ring.wait_for_drain(30.0)  # at once


def test_waiting_for_durability_ends_with_it_or_with_the_limit(arena: Arena) -> None:
    ring = arena.write_ring
    commit(arena, Append("write", 1, b"x"))
    assert not ring.wait_committed(1, 0.01)
    advance = threading.Thread(target=ring.advance, args=(1,))
    advance.start()
    assert ring.wait_committed(1, None)
    advance.join()
    assert ring.wait_committed(0, 0.0)


class _Watched:
    """The words of a ring, of which one is followed, when it is read, by what others do at that moment."""

    def __init__(self, words: memoryview, word: int, then: Callable[[], object]) -> None:
        self._words = words
        self._word = word
        self._then: Callable[[], object] | None = then

    def __getitem__(self, word: int) -> int:
        value: int = self._words[word]
        if word == self._word and self._then is not None:
            then, self._then = self._then, None
            then()
        return value


@pytest.mark.parametrize("word", [layout.HEAD, layout.COMMITTED, layout.TAIL])
def test_bytes_that_are_no_entry_yet_are_none_whenever_another_consumer_moves_the_head(arena: Arena, word: int) -> None:
    """What a charger reads it settles, also one that was superseded a moment ago and does not know it."""
    region = arena.write_ring._region
    quarter = bytes(region.size // 4 - HEADER_BYTES)
    for _ in range(4):
        commit(arena, Append("write", 1, quarter))

    def move_on() -> None:
        arena.write_ring.advance(4)
        wanted = Transaction()  # written where the first entry was, and not committed
        wanted.operations += [Append("write", 1, quarter), Add(key(1), -1, 0)]
        with pytest.raises(Conflict):
            arena.commit(wanted)

    region._words = _Watched(region._words, region.state + word, move_on)  # type: ignore[assignment]
    read = arena.write_ring.read(0, 1, 1 << 30)
    assert arena.write_ring.last_sequence == 4
    assert [entry.sequence for entry in read if entry.sequence > 4] == []
    assert arena.check() == []


def test_a_ring_full_of_what_looks_like_entries_is_given_up_in_bounded_time(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = arena.write_ring._region
    summed = [0]

    def crc32(data: memoryview, seed: int) -> int:
        summed[0] += len(data)
        return zlib.crc32(data, seed)

    monkeypatch.setattr("shmcache.arena.ring._crc32", crc32)
    piece = struct.pack("<QII", 5, 100_000, 0)
    region._buffer[region._first : region._first + region.size] = piece * (region.size // len(piece))
    arena._words[region.state + layout.TAIL] = region.size
    arena._words[region.state + layout.LAST_SEQUENCE] = 10**6
    found = region.read(0, 10, 1 << 20)
    assert [(entry.sequence, entry.intact) for entry in found] == [(10**6, False)]
    assert 0 < summed[0] <= 9 * region.size
