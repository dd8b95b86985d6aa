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
from collections.abc import Iterable, Iterator

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
from shmcache.arena.table import Table

_SLOT = struct.Struct("<QIIIIQ")
SLOT_BYTES = _SLOT.size
_LINK = (SLOT_BYTES - WORD) // WORD
_unpack_slot = _SLOT.unpack_from
_pack_slot = _SLOT.pack_into
_crc32 = zlib.crc32

RESERVED_SLABS = 2
"""Free slabs that only cleaning may use, so that it can always begin."""

MOVES = 64
"""Slots moved in one commit of cleaning: bounds how long the commit lock is held."""


_LONGEST_RECORD = 1 << 30


class NoRoom(Exception):
    """There is no free slab for a slot, or no free entry for a key."""

    def __init__(self, of_entries: bool = False) -> None:
        super().__init__(of_entries)
        self.of_entries = of_entries


def _rounded(size: int) -> int:
    return SLOT_BYTES + (size + 7 & ~7)


class Slabs:
    """The slabs over a memory."""

    __slots__ = ("_buffer", "_count", "_first", "_last", "_size", "_table", "_words", "largest_slot", "longest_record")

    def __init__(self, memory: Memory) -> None:
        self._buffer = memory.buffer
        self._words = memory.words
        self._first = memory.layout.slabs
        self._size = memory.layout.slab_size
        self._count = memory.layout.slab_count
        self._last = self._first + self._count * self._size - SLOT_BYTES
        self._table = memory.layout.slab_words // WORD
        self.largest_slot = self._size - SLOT_BYTES
        self.longest_record = min(max(0, self._count // 2) * self.largest_slot, _LONGEST_RECORD)

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
            _pack_slot(self._buffer, offset, version, length, crc, entry, length, 0)
            begin = offset + SLOT_BYTES
            self._buffer[begin : begin + length] = record
            return offset
        following = 0
        whole = memoryview(record)
        for begin in range((length - 1) // self.largest_slot * self.largest_slot, -1, -self.largest_slot):
            piece = whole[begin : begin + self.largest_slot]
            offset = self._take(stage, _rounded(len(piece)), reserve)
            _pack_slot(self._buffer, offset, version, length, crc, entry, len(piece), following)
            self._buffer[offset + SLOT_BYTES : offset + SLOT_BYTES + len(piece)] = piece
            following = offset
        return following

    def read(self, offset: int, entry: int, version: int) -> bytes | None:
        """Return a record's bytes, or None if they are not this version of this entry's record, whole."""
        if not self._first <= offset <= self._last or offset & 7:
            return None
        buffer = self._buffer
        found, length, crc, owner, here, _ = _unpack_slot(buffer, offset)
        if found != version or owner != entry:
            return None
        begin = offset + SLOT_BYTES
        if here == length <= self.largest_slot:
            record = bytes(buffer[begin : begin + length])
        else:
            pieces = []
            gathered = 0
            for _, place, size in self._chain(buffer, offset, entry, version):
                pieces.append(bytes(buffer[place + SLOT_BYTES : place + SLOT_BYTES + size]))
                gathered += size
            if gathered != length:
                return None
            record = b"".join(pieces)
        return record if _crc32(record, version & 0xFFFFFFFF) == crc else None

    def _chain(
        self, buffer: memoryview, offset: int, entry: int, version: int, stage: Stage | None = None
    ) -> Iterator[tuple[int, int, int]]:
        """Yield (word that refers to it, offset, bytes here) of each slot of a record, from a given one on.

        Ends early where a slot is not this version of this entry's record. With a stage, links are read from it."""
        holder = entry + LOCATION
        for _ in range(self._count + 1):
            if not self._first <= offset <= self._last or offset & 7:
                return
            found, _, _, owner, here, following = _unpack_slot(buffer, offset)
            if found != version or owner != entry or here > self.largest_slot:
                return
            yield holder, offset, here
            holder = (offset + SLOT_BYTES - WORD) // WORD
            offset = following if stage is None else stage[holder]

    def discard(self, stage: Stage, entry: int, freed: list[int]) -> None:
        """Count an entry's slots as holes; slabs that have no live bytes left are added to `freed`."""
        version = stage[entry + VERSION]
        offset = stage[entry + LOCATION]
        if self._first <= offset <= self._last:
            found, length, _, owner, here, _ = _unpack_slot(self._buffer, offset)
            if here == length <= self.largest_slot and found == version and owner == entry:
                self._count_hole(stage, offset, here, freed)  # one slot, as nearly always: 0.8 us less
                return
        for _, place, size in self._chain(self._buffer, offset, entry, version, stage):
            self._count_hole(stage, place, size, freed)

    def _count_hole(self, stage: Stage, offset: int, here: int, freed: list[int]) -> None:
        slab = (offset - self._first) // self._size
        word = self._table + slab * SLAB_WORDS + SLAB_LIVE
        live = stage[word] - (SLOT_BYTES + (here + 7 & ~7))
        if live > 0:
            stage[word] = live
        else:
            stage[word] = 0
            freed.append(slab)

    def slots(self, entry: int, version: int, location: int) -> Iterator[tuple[int, int, int]]:
        """Yield (slab, offset, bytes taken) of each slot of a record."""
        for _, offset, here in self._chain(self._buffer, location, entry, version):
            yield (offset - self._first) // self._size, offset, _rounded(here)

    def recount(self, stage: Stage, records: Iterable[tuple[int, int, int]], freed: list[int]) -> None:
        """Set LIVE of every slab from the records there are, given as (entry, version, location).

        For when a damaged slot was met, and what it held cannot be subtracted. Nothing else may be staged on slabs."""
        live = [0] * self._count
        for record in records:
            for slab, _, room in self.slots(*record):
                live[slab] += room
        for slab, amount in enumerate(live):
            word = self._table + slab * SLAB_WORDS
            if stage[word + SLAB_NEXT] == SLAB_IN_USE and stage[word + SLAB_LIVE] != amount:
                stage[word + SLAB_LIVE] = amount
                if not amount:
                    freed.append(slab)

    def problems(self, live: list[int]) -> Iterator[str]:
        """Yield what is wrong with the slabs, given the live bytes that the records have in each."""
        words = self._words
        free: set[int] = set()
        slab = words[FREE_SLAB]
        while slab:
            if slab > self._count or slab in free:
                yield f"the list of free slabs leads to {slab}, which is none, or was met before"
                break
            free.add(slab)
            slab = words[self._table + (slab - 1) * SLAB_WORDS + SLAB_NEXT]
        if words[FREE_SLABS] != len(free):
            yield f"FREE_SLABS says {words[FREE_SLABS]}, and {len(free)} are"
        for index, amount in enumerate(live):
            word = self._table + index * SLAB_WORDS
            if (words[word + SLAB_NEXT] == SLAB_IN_USE) == (index + 1 in free):
                yield f"slab {index} is both in use and free, or neither"
            if words[word + SLAB_LIVE] != amount:
                yield f"slab {index} says it has {words[word + SLAB_LIVE]} live bytes, and it has {amount}"
            if not amount <= words[word + SLAB_USED] <= self._size:
                yield f"slab {index} of {self._size} bytes says {words[word + SLAB_USED]} are used"

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
        """Return the slab in use (not the current one) with the fewest live bytes; None if they are all full."""
        table = self._rows()
        in_use = table[:, SLAB_NEXT] == SLAB_IN_USE
        current = self._words[CURRENT_SLAB]
        if current:
            in_use[current - 1] = False
        live = np.where(in_use, table[:, SLAB_LIVE], np.uint64(2**63))
        slab = int(live.argmin())
        return slab if int(live[slab]) < self._size * 15 // 16 else None

    def live_bytes(self) -> int:
        """Return the bytes of all slots that records refer to."""
        return int(self._rows()[:, SLAB_LIVE].sum())

    def free_bytes(self) -> int:
        """Return the bytes that slots can be written to now: of free slabs, and behind the current slab's mark."""
        current = self._words[CURRENT_SLAB]
        used = self._words[self._table + (current - 1) * SLAB_WORDS + SLAB_USED] if current else self._size
        free: int = self._words[FREE_SLABS] * self._size + self._size - used
        return free

    def is_filled(self, slab: int) -> bool:
        """Say whether a slab is in use and no longer the current one."""
        in_use: bool = self._words[self._table + slab * SLAB_WORDS + SLAB_NEXT] == SLAB_IN_USE
        return in_use and slab + 1 != self._words[CURRENT_SLAB]

    def live_in(self, stage: Stage, slab: int) -> int:
        """Return the live bytes of a slab as the stage has it."""
        return stage[self._table + slab * SLAB_WORDS + SLAB_LIVE]

    def move(self, stage: Stage, table: Table, slab: int, begin: int, freed: list[int]) -> int | None:
        """Copy up to MOVES live slots of a slab away, from the place `begin` on; return where to go on, or None.

        Raises NoRoom."""
        base = self._first + slab * self._size
        word = self._table + slab * SLAB_WORDS
        used = self._words[word + SLAB_USED]
        place = begin
        moved = 0
        while place + SLOT_BYTES <= used:
            if moved >= MOVES:
                return place
            offset = base + place
            version, _, _, entry, here, _ = _unpack_slot(self._buffer, offset)
            room = _rounded(here)
            if place + room > used:
                break
            holder = 0
            if table.is_entry(entry) and stage[entry + VERSION] == version:
                slots = self._chain(self._buffer, stage[entry + LOCATION], entry, version, stage)
                holder = next((referrer for referrer, at, _ in slots if at == offset), 0)
            if holder:
                target = self._take(stage, room, 0)
                self._buffer[target : target + room] = self._buffer[offset : offset + room]
                # Its follower may have been moved in this very commit.
                self._words[target // WORD + _LINK] = stage[offset // WORD + _LINK]
                stage[holder] = target
                stage[word + SLAB_LIVE] = max(stage[word + SLAB_LIVE] - room, 0)
                moved += 1
            place += room
        freed.append(slab)
        return None

    def _rows(self) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
        rows = np.frombuffer(self._words, np.uint64, self._count * SLAB_WORDS, self._table * WORD)
        return rows.reshape(self._count, SLAB_WORDS)

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
        if not slab:
            raise NoRoom
        word = self._table + (slab - 1) * SLAB_WORDS
        stage[FREE_SLAB] = stage[word + SLAB_NEXT]
        stage[FREE_SLABS] = stage[FREE_SLABS] - 1
        stage[word + SLAB_NEXT] = SLAB_IN_USE
        stage[word + SLAB_USED] = stage[word + SLAB_LIVE] = room
        stage[CURRENT_SLAB] = slab
        return self._first + (slab - 1) * self._size
