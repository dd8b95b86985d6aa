"""Where records' bytes lie: slabs that are filled from front to back, and emptied by moving what still lives.

A record lies in one slot, 8-byte aligned:

    version 8 | CRC-32 4 | unused 4 | bytes, padded to 8

The CRC covers version, key and bytes; the length is part of the entry's LOCATION. A record too long for a slab has its
beginning in slabs of its own, and a slot with their offsets, 8 bytes each, and then the rest.

Each writer (the holder of the commit lock, or of a stripe's lock) fills a slab of its own, from POSITION to its end,
and moves POSITION before anything refers to what it wrote. A record that is replaced leaves a hole that nobody counts:
what lives in a slab is what entries refer to, found by one scan when free slabs run out (`shmcache.arena.room`).
Nothing is ever written to a slab that has been filled, so what a scan began to miss cannot come back. A death anywhere
leaves bytes that nothing refers to. (The idea: log-structured memory, Rumble and others, FAST 2014.)
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from shmcache.arena.layout import (
    FREE_SLAB,
    FREE_SLABS,
    LENGTH_MASK,
    OFFSET_SHIFT,
    POSITION,
    POSITION_END,
    SLAB_IN_USE,
    SLAB_OF_ENTRIES,
    SLAB_STAMP,
    SLAB_STATE,
    SLAB_WORDS,
    SLABS_TAKEN,
    STRIPE_BYTES,
    STRIPE_END,
    STRIPE_POSITION,
    WORD,
)
from shmcache.arena.memory import Memory, Stage
from shmcache.errors import ArenaDamaged

SLOT = struct.Struct("<QII")
SLOT_BYTES = SLOT.size
_unpack_slot = SLOT.unpack_from
_pack_slot = SLOT.pack_into
_crc32 = zlib.crc32
_LOW_HALF = 0xFFFFFFFF

RESERVED_SLABS = 3
"""Free slabs that only making room may use, so that it can always begin."""

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]


class NoRoom(Exception):
    """There are fewer free slabs, or entries, than a transaction needs as far as it has come."""

    def __init__(self, slabs: int = 0, entries: int = 0) -> None:
        super().__init__(slabs, entries)
        self.slabs = slabs
        self.entries = entries


class Parts(NamedTuple):
    """How a record of some length is divided: whole slabs, the bytes in its slot, and the room that the slot takes."""

    slabs: int
    rest: int
    room: int


def seed(key: bytes, version: int) -> int:
    """Return what the CRC of a key's record starts from."""
    return (version ^ int.from_bytes(key[:8], "big") ^ int.from_bytes(key[8:], "big")) & _LOW_HALF


class Slabs:
    """The slabs over a memory."""

    __slots__ = (
        "_buffer",
        "_layout",
        "_table",
        "_words",
        "count",
        "end",
        "first",
        "last",
        "longest_in_slot",
        "longest_record",
        "size",
    )

    def __init__(self, memory: Memory) -> None:
        self._buffer = memory.buffer
        self._words = memory.words
        self._layout = memory.layout
        self.first = memory.layout.slabs
        self.size = memory.layout.slab_size
        self.count = memory.layout.slab_count
        self.end = self.first + self.count * self.size
        self.last = self.end - SLOT_BYTES
        self._table = memory.layout.slab_words // WORD
        self.longest_in_slot = self.size - SLOT_BYTES
        pieces = min(self.count // 2, self.longest_in_slot // WORD // 2)
        self.longest_record = min(max(0, pieces) * self.size, LENGTH_MASK)

    def format(self) -> None:
        """Put all slabs on the free list. Only for who creates the segment."""
        states = self._rows()[:, SLAB_STATE]
        states[:] = np.arange(2, self.count + 2, dtype=np.uint64)
        states[-1] = 0
        self._words[FREE_SLAB] = 1
        self._words[FREE_SLABS] = self.count

    def parts(self, length: int) -> Parts:
        """Return how a record of a length is divided."""
        if length <= self.longest_in_slot:
            return Parts(0, length, SLOT_BYTES + (length + 7 & ~7))
        slabs = -(-(length - self.longest_in_slot) // (self.size - WORD))
        rest = max(0, length - slabs * self.size)
        return Parts(slabs, rest, SLOT_BYTES + WORD * slabs + (rest + 7 & ~7))

    def rooms(self, lengths: Numbers) -> Numbers:
        """Return the room that the slots of records of these lengths take: `parts` for many at once."""
        slabs = np.maximum(0, -(-(lengths - self.longest_in_slot) // (self.size - WORD)))
        rests = np.maximum(0, lengths - slabs * self.size)
        rooms: Numbers = SLOT_BYTES + WORD * slabs + (rests + 7 & ~7)
        return rooms

    # Records

    def write_long(self, stage: Stage, key: bytes, version: int, record: bytes) -> int:
        """Write a record too long for a slot where nothing refers to yet; return its location. Raises NoRoom."""
        length = len(record)
        buffer = self._buffer
        slabs, rest, room = self.parts(length)
        self.require_free(stage, slabs + 1)
        offset = self.take(stage, room)
        _pack_slot(buffer, offset, version, _crc32(record, seed(key, version)), 0)
        whole = memoryview(record)
        place = offset + SLOT_BYTES
        for number in range(slabs):
            piece = whole[number * self.size : (number + 1) * self.size]
            begin = self.take_slab(stage)
            buffer[begin : begin + len(piece)] = piece
            self._words[place // WORD] = begin
            place += WORD
        if rest:
            buffer[place : place + rest] = whole[length - rest :]
        return offset << OFFSET_SHIFT | length

    def read(self, key: bytes, location: int, version: int) -> bytes | None:
        """Return a record's bytes, or None if they are not this version of this key's record, whole."""
        offset = location >> OFFSET_SHIFT & ~7
        length = location & LENGTH_MASK
        if not self.first <= offset <= self.last:
            return None
        buffer = self._buffer
        found, crc, _ = _unpack_slot(buffer, offset)
        if found != version:
            return None
        if length <= self.longest_in_slot:
            begin = offset + SLOT_BYTES
            record = bytes(buffer[begin : begin + length])
        else:
            record = self._gather(offset, length)
        return record if _crc32(record, seed(key, version)) == crc else None

    def version_at(self, location: int) -> int:
        """Return the version in the slot at a location; 0 if that is no place for a slot."""
        offset = location >> OFFSET_SHIFT & ~7
        if not self.first <= offset <= self.last:
            return 0
        version: int = _unpack_slot(self._buffer, offset)[0]
        return version

    def _gather(self, offset: int, length: int) -> bytes:
        rest = self.parts(length).rest
        pieces = []
        left = length - rest
        for begin in self.pieces(offset, length):
            pieces.append(bytes(self._buffer[begin : begin + min(left, self.size)]))
            left -= self.size
        begin = offset + SLOT_BYTES + WORD * len(pieces)
        pieces.append(bytes(self._buffer[begin : begin + rest]))
        return b"".join(pieces)

    def pieces(self, offset: int, length: int) -> list[int]:
        """Return the offsets of the slabs that a record's slot refers to; those that are none are left out."""
        slabs = self.parts(length).slabs
        first = (offset + SLOT_BYTES) // WORD
        end = min(first + slabs, len(self._words))
        return [
            place
            for place in self._words[first:end].tolist()
            if self.first <= place <= self.last and not (place - self.first) % self.size
        ]

    def piece_word(self, offset: int, number: int) -> int:
        """Return the word of a slot that holds the offset of its record's n-th slab."""
        return (offset + SLOT_BYTES) // WORD + number

    # Room

    def take(self, stage: Stage, room: int) -> int:
        """Take room for a slot in the slab that commits fill, or in a new one; return its offset. Raises NoRoom."""
        offset = stage[POSITION]
        end = offset + room
        if not self.first <= end <= stage[POSITION_END] <= self.end:
            self.require_free(stage)
            return self._begin_slab(stage, room)
        stage[POSITION] = end
        return offset

    def take_for_move(self, stage: Stage, room: int) -> int:
        """Take room for a slot that is moved: from the reserve, if need be. Raises NoRoom."""
        offset = stage[POSITION]
        if not self.first <= offset + room <= stage[POSITION_END] <= self.end:
            return self._begin_slab(stage, room)
        stage[POSITION] = offset + room
        return offset

    def _begin_slab(self, stage: Stage, room: int) -> int:
        offset = self.take_slab(stage)
        stage[POSITION] = offset + room
        stage[POSITION_END] = offset + self.size
        return offset

    def require_free(self, stage: Stage, wanted: int = 1) -> None:
        """Raise NoRoom unless there are so many free slabs besides the reserved ones."""
        free = stage[FREE_SLABS]
        if free < wanted + RESERVED_SLABS:
            raise NoRoom(wanted + self._words[FREE_SLABS] - free)

    def take_slab(self, stage: Stage) -> int:
        """Stage that a free slab is in use; return its offset. Raises NoRoom if there is none at all."""
        slab = stage[FREE_SLAB]
        if not slab and not stage[FREE_SLABS]:
            raise NoRoom(1)
        if not 0 < slab <= self.count or stage[self._table + (slab - 1) * SLAB_WORDS] >= SLAB_OF_ENTRIES:
            raise ArenaDamaged(f"the list of free slabs leads to {slab}")
        word = self._table + (slab - 1) * SLAB_WORDS
        stage[FREE_SLAB] = stage[word + SLAB_STATE]
        stage[FREE_SLABS] = stage[FREE_SLABS] - 1
        stage[word + SLAB_STATE] = SLAB_IN_USE
        stage[SLABS_TAKEN] = stage[word + SLAB_STAMP] = stage[SLABS_TAKEN] + 1
        return self.first + (slab - 1) * self.size

    def give_back(self, stage: Stage, slab: int) -> None:
        """Stage that a slab in use, which nothing refers to, is free."""
        word = self._table + slab * SLAB_WORDS
        if stage[word + SLAB_STATE] < SLAB_OF_ENTRIES:
            raise ArenaDamaged(f"slab {slab} is free already")
        stage[word + SLAB_STATE] = stage[FREE_SLAB]
        stage[FREE_SLAB] = slab + 1
        stage[FREE_SLABS] = stage[FREE_SLABS] + 1

    def make_entries(self, stage: Stage, slab: int) -> bool:
        """Stage that a slab is one of entries; return False if it is not free."""
        word = self._table + slab * SLAB_WORDS
        if self._words[word + SLAB_STATE] >= SLAB_OF_ENTRIES:
            return False
        following = stage[word + SLAB_STATE]
        if stage[FREE_SLAB] == slab + 1:
            stage[FREE_SLAB] = following
        else:
            before = int((self._rows()[:, SLAB_STATE] == slab + 1).nonzero()[0][0])
            stage[self._table + before * SLAB_WORDS + SLAB_STATE] = following
        stage[FREE_SLABS] = stage[FREE_SLABS] - 1
        stage[word + SLAB_STATE] = SLAB_OF_ENTRIES
        return True

    def stamp(self, slab: int) -> int:
        """Return when a slab was taken."""
        stamp: int = self._words[self._table + slab * SLAB_WORDS + SLAB_STAMP]
        return stamp

    def stamps(self) -> Numbers:
        """Return when each slab was taken."""
        return self._rows()[:, SLAB_STAMP].astype(np.int64)

    def filled(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Return which slabs are in use and filled by nobody any more. Under the commit lock and all stripes."""
        filled: np.ndarray[tuple[int], np.dtype[np.bool_]] = self._rows()[:, SLAB_STATE] == SLAB_IN_USE
        for end in self._ends():
            if end:
                filled[(end - 1 - self.first) // self.size] = False
        return filled

    def _ends(self) -> list[int]:
        words = self._words
        first = self._layout.stripes // WORD
        stripes = range(first, first + self._layout.stripe_count * STRIPE_BYTES // WORD, STRIPE_BYTES // WORD)
        return [words[POSITION_END], *(words[stripe + STRIPE_END] for stripe in stripes)]

    def free_bytes(self) -> int:
        """Return the bytes that slots can be written to now: of free slabs, and of those that are being filled."""
        words = self._words
        first = self._layout.stripes // WORD
        stripes = range(first, first + self._layout.stripe_count * STRIPE_BYTES // WORD, STRIPE_BYTES // WORD)
        left = sum(words[stripe + STRIPE_END] - words[stripe + STRIPE_POSITION] for stripe in stripes)
        free: int = words[FREE_SLABS] * self.size + words[POSITION_END] - words[POSITION] + left
        return free

    def slab_of(self, offset: int) -> int:
        """Return the slab that an offset lies in."""
        return (offset - self.first) // self.size

    def problems(self, live: dict[int, int]) -> Iterator[str]:
        """Yield what is wrong with the slabs, given the live bytes that the records have in each."""
        words = self._words
        free: set[int] = set()
        slab = words[FREE_SLAB]
        while slab:
            if slab > self.count or slab in free:
                yield f"the list of free slabs leads to {slab}, which is none, or was met before"
                break
            free.add(slab)
            slab = words[self._table + (slab - 1) * SLAB_WORDS]
        if words[FREE_SLABS] != len(free):
            yield f"FREE_SLABS says {words[FREE_SLABS]}, and {len(free)} are"
        filling = [self.slab_of(end - 1) for end in self._ends() if end]
        if len(filling) != len(set(filling)):
            yield f"one slab is being filled by two: {sorted(filling)}"
        for index in range(self.count):
            state = words[self._table + index * SLAB_WORDS + SLAB_STATE]
            if (state >= SLAB_OF_ENTRIES) == (index + 1 in free):
                yield f"slab {index} is both in use and free, or neither"
            if live.get(index) and state != SLAB_IN_USE:
                yield f"slab {index} has {live[index]} live bytes and is not in use for records"
            if live.get(index, 0) > self.size:
                yield f"slab {index} has {live[index]} live bytes, more than its {self.size}"
            if index in filling and state != SLAB_IN_USE:
                yield f"slab {index} is being filled and not in use"

    def _rows(self) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
        rows = np.frombuffer(self._words, np.uint64, self.count * SLAB_WORDS, self._table * WORD)
        return rows.reshape(self.count, SLAB_WORDS)
