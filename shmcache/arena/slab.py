"""Where records' bytes lie: slabs that are filled from front to back, and cleaned by moving what still lives.

A record lies in one slot, or in a chain of slots when it is longer than a slab. A slot is 8-byte aligned:

    version 8 | record's length 4 | CRC-32 4 | entry 4 | bytes here 4 | offset of the next slot 8 | bytes ...

The CRC covers the version and the record's bytes (of the whole record; in the first slot). New slots are written
behind the USED mark of the current slab, memory that nothing refers to; the mark moves in the commit. A record that is
replaced leaves a hole, counted by LIVE. A slab without live bytes is free again, but only for the next commit: until
this one is decided, the old bytes must stay. When free slabs run out, the fullest of holes is cleaned: each slot that
its entry still refers to is copied and the entry's LOCATION is stored anew; the record's version stays, so that no
reader notices. A death anywhere leaves only bytes behind the USED mark, which nobody counts. (The idea: log-structured
memory, Rumble and others, FAST 2014.)
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

from shmcache.arena.layout import (
    CURRENT_SLAB,
    FREE_SLAB,
    FREE_SLABS,
    LOCATION,
    SLAB_IN_USE,
    SLAB_LIVE,
    SLAB_NEXT,
    SLAB_USED,
    SLAB_WORDS,
    VERSION,
    WORD,
)
from shmcache.arena.memory import Memory, Stage

_SLOT = struct.Struct("<QIIIIQ")
SLOT_BYTES = _SLOT.size
_crc32 = zlib.crc32

RESERVED_SLABS = 2
"""Free slabs that only cleaning may use, so that it can always begin."""

MOVES = 64
"""Slots moved in one commit of cleaning: bounds how long the commit lock is held."""


class NoRoom(Exception):
    """There is no free slab for a slot."""


def _rounded(size: int) -> int:
    return SLOT_BYTES + (size + 7 & ~7)


class Slabs:
    """The slabs over a memory."""

    __slots__ = ("_buffer", "_count", "_first", "_size", "_table", "_words", "largest_slot", "longest_record")

    def __init__(self, memory: Memory) -> None:
        self._buffer = memory.buffer
        self._words = memory.words
        self._first = memory.layout.slabs
        self._size = memory.layout.slab_size
        self._count = memory.layout.slab_count
        self._table = memory.layout.slab_words // WORD
        self.largest_slot = self._size - SLOT_BYTES
        self.longest_record = max(0, self._count // 2) * self.largest_slot

    def format(self) -> None:
        """Put all slabs on the free list. Only for who creates the segment."""
        for slab in range(self._count):
            self._words[self._table + slab * SLAB_WORDS + SLAB_NEXT] = slab + 2 if slab + 1 < self._count else 0
        self._words[FREE_SLAB] = 1
        self._words[FREE_SLABS] = self._count

    def write(self, stage: Stage, entry: int, version: int, record: bytes, reserve: int = RESERVED_SLABS) -> int:
        """Write a record into fresh slots; return the offset of the first. Raises NoRoom."""
        length = len(record)
        crc = _crc32(record, version & 0xFFFFFFFF)
        if length <= self.largest_slot:
            offset = self._take(stage, _rounded(length), reserve)
            _SLOT.pack_into(self._buffer, offset, version, length, crc, entry, length, 0)
            begin = offset + SLOT_BYTES
            self._buffer[begin : begin + length] = record
            return offset
        following = 0
        whole = memoryview(record)
        for begin in range((length - 1) // self.largest_slot * self.largest_slot, -1, -self.largest_slot):
            piece = whole[begin : begin + self.largest_slot]
            offset = self._take(stage, _rounded(len(piece)), reserve)
            _SLOT.pack_into(self._buffer, offset, version, length, crc, entry, len(piece), following)
            self._buffer[offset + SLOT_BYTES : offset + SLOT_BYTES + len(piece)] = piece
            following = offset
        return following

    def read(self, offset: int, entry: int, version: int) -> bytes | None:
        """Return a record's bytes, or None if they are not this version of this entry's record, whole."""
        buffer = self._buffer
        end = self._first + self._count * self._size
        if not self._first <= offset <= end - SLOT_BYTES or offset & 7:
            return None
        found, length, crc, owner, here, following = _SLOT.unpack_from(buffer, offset)
        if found != version or owner != entry:
            return None
        begin = offset + SLOT_BYTES
        if here == length:
            record = bytes(buffer[begin : begin + length])
        else:
            pieces = [bytes(buffer[begin : begin + here])]
            gathered = here
            while following and gathered < length:
                if not self._first <= following <= end - SLOT_BYTES or following & 7 or not here:
                    return None
                found, _, _, owner, here, ahead = _SLOT.unpack_from(buffer, following)
                if found != version or owner != entry:
                    return None
                pieces.append(bytes(buffer[following + SLOT_BYTES : following + SLOT_BYTES + here]))
                gathered += here
                following = ahead
            record = b"".join(pieces)
        if len(record) != length or _crc32(record, version & 0xFFFFFFFF) != crc:
            return None
        return record

    def discard(self, stage: Stage, offset: int, freed: list[int]) -> None:
        """Count a record's slots as holes; slabs that have no live bytes left are added to `freed`."""
        while offset:
            _, _, _, _, here, following = _SLOT.unpack_from(self._buffer, offset)
            slab = (offset - self._first) // self._size
            word = self._table + slab * SLAB_WORDS
            live = stage[word + SLAB_LIVE] - _rounded(here)
            stage[word + SLAB_LIVE] = max(live, 0)
            if live <= 0:
                freed.append(slab)
            offset = following

    def give_back(self, stage: Stage, freed: list[int]) -> None:
        """Put slabs without live bytes on the free list: the last thing staged in a commit."""
        for slab in freed:
            word = self._table + slab * SLAB_WORDS
            if (
                slab + 1 != stage[CURRENT_SLAB]
                and not stage[word + SLAB_LIVE]
                and stage[word + SLAB_NEXT] == SLAB_IN_USE
            ):
                stage[word + SLAB_USED] = 0
                stage[word + SLAB_NEXT] = stage[FREE_SLAB]
                stage[FREE_SLAB] = slab + 1
                stage[FREE_SLABS] = stage[FREE_SLABS] + 1

    def fullest_of_holes(self) -> int | None:
        """Return the slab in use (not the current one) with the fewest live bytes, None if cleaning frees too
        little."""
        table = np.frombuffer(self._words, np.uint64, self._count * SLAB_WORDS, self._table * WORD)
        table = table.reshape(self._count, SLAB_WORDS)
        in_use = table[:, SLAB_NEXT] == SLAB_IN_USE
        current = self._words[CURRENT_SLAB]
        if current:
            in_use[current - 1] = False
        live = np.where(in_use, table[:, SLAB_LIVE], np.uint64(2**63))
        slab = int(live.argmin())
        least = int(live[slab])
        return slab if least < self._size * 15 // 16 else None

    def live_bytes(self) -> int:
        """Return the bytes of all slots that records refer to."""
        table = np.frombuffer(self._words, np.uint64, self._count * SLAB_WORDS, self._table * WORD)
        return int(table.reshape(self._count, SLAB_WORDS)[:, SLAB_LIVE].sum())

    def move(self, stage: Stage, slab: int, begin: int, freed: list[int]) -> int | None:
        """Copy up to MOVES live slots of a slab away, from the place `begin` on; return where to go on, None at the
        end."""
        base = self._first + slab * self._size
        used = self._words[self._table + slab * SLAB_WORDS + SLAB_USED]
        place = begin
        moved = 0
        while place < used:
            if moved >= MOVES:
                return place
            offset = base + place
            version, _, _, entry, here, _ = _SLOT.unpack_from(self._buffer, offset)
            room = _rounded(here)
            if place + room > used:
                break
            holder = self._holder(stage, entry, version, offset)
            if holder:
                target = self._take(stage, room, 0)
                self._buffer[target : target + room] = self._buffer[offset : offset + room]
                link = (SLOT_BYTES - WORD) // WORD
                self._words[target // WORD + link] = stage[
                    offset // WORD + link
                ]  # its follower may have moved just now
                stage[holder] = target
                word = self._table + slab * SLAB_WORDS
                live = stage[word + SLAB_LIVE] - room
                stage[word + SLAB_LIVE] = max(live, 0)
                if live <= 0:
                    freed.append(slab)
                moved += 1
            place += room
        freed.append(slab)
        return None

    def _holder(self, stage: Stage, entry: int, version: int, offset: int) -> int:
        """Return the word that refers to a slot, 0 if none does: the entry's LOCATION, or its predecessor's link."""
        if entry + LOCATION >= len(self._words) or stage[entry + VERSION] != version:
            return 0
        holder = entry + LOCATION
        at = stage[holder]
        while at and at != offset:
            if not self._first <= at < self._first + self._count * self._size:
                return 0
            holder = (at + SLOT_BYTES - WORD) // WORD
            at = stage[holder]
        return holder if at else 0

    def _take(self, stage: Stage, room: int, reserve: int) -> int:
        current = stage[CURRENT_SLAB]
        if current:
            word = self._table + (current - 1) * SLAB_WORDS
            used = stage[word + SLAB_USED]
            if used + room <= self._size:
                stage[word + SLAB_USED] = used + room
                stage[word + SLAB_LIVE] = stage[word + SLAB_LIVE] + room
                return self._first + (current - 1) * self._size + used
        if stage[FREE_SLABS] <= reserve:
            raise NoRoom
        slab = stage[FREE_SLAB]
        word = self._table + (slab - 1) * SLAB_WORDS
        stage[FREE_SLAB] = stage[word + SLAB_NEXT]
        stage[FREE_SLABS] = stage[FREE_SLABS] - 1
        stage[word + SLAB_NEXT] = SLAB_IN_USE
        stage[word + SLAB_USED] = stage[word + SLAB_LIVE] = room
        stage[CURRENT_SLAB] = slab
        return self._first + (slab - 1) * self._size
