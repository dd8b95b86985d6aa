"""A ring: many producers, one consumer. Entries are appended in a commit and exist once TAIL has moved.

    HEAD                                              TAIL
     |  seq 41 | seq 42 | seq 43 ............ seq 97   |   free   ... and around
        sequence 8 | length 4 | CRC-32 4 | kind 4 | joins 4 | payload, padded to 8

An entry never wraps: where the end of the ring is too near, a filler (sequence 0) covers the rest. Positions grow for
ever; the place is position % size.

    append    under the commit lock: 1 bytes behind TAIL   2 TAIL and LAST_SEQUENCE, staged; TAIL is the commit point
    read      the consumer, no lock: TAIL, then entries from HEAD on; their bytes cannot change before HEAD moves
    advance   the consumer, under the commit lock, after the entries are durable: HEAD and COMMITTED

`joins` is 1 where an entry is of the same commit as the one before it: what is read ends with a whole commit, so that
whoever has only what was carried by then (the database, when this machine is lost) has whole steps.

The CRC covers sequence, kind and payload. Sequences are consecutive, so the consumer knows which one comes next: a
header with another one is damaged, and what it hides is read as one entry that is not intact, up to the next whole one.

A producer that dies before TAIL is stored leaves bytes that nobody sees. A consumer that dies before `advance` leaves
entries that its successor reads again and skips by the checkpoint. HEAD never moves back: a consumer that was stopped
and superseded can only confirm what is durable anyway.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from shmcache.arena.layout import COMMITTED, DRAIN_SIGNAL, HEAD, LAST_SEQUENCE, ROOM_SIGNAL, TAIL, WORD
from shmcache.arena.memory import Memory, Stage
from shmcache.errors import InvalidValue

_HEADER = struct.Struct("<QIIII")
HEADER_BYTES = _HEADER.size
_MOST_TRIED = 8
"""So many times its size a ring is summed up in search of a whole entry behind damage: it is all damaged then, or made
to look like entries, and whoever waits for the lock has waited long enough."""
_HIGH_WATER_BYTES = 1 << 20
"""What waits for the consumer when it is asked to drain, in a large ring. Some 3,000 entries are a batch that is worth
its transaction; with more the consumer would stand still while the producers work, and they while it does."""
_CURSORS = 4
"""Ends of so many reads are remembered: who reads ahead advances the head to an earlier one."""
_crc32 = zlib.crc32
_pack_header = _HEADER.pack_into


class Entry(NamedTuple):
    """An entry as the consumer reads it; `intact` is whether its CRC holds."""

    sequence: int
    kind: int
    payload: bytes
    intact: bool


def _seed(sequence: int, kind: int) -> int:
    """Return what the CRC starts from, so that it covers the sequence and the kind."""
    return (sequence ^ kind << 24) & 0xFFFFFFFF


class Header(NamedTuple):
    """What stands before an entry's payload."""

    sequence: int
    length: int
    crc: int
    kind: int

    def is_of(self, payload: bytes) -> bool:
        """Say whether the CRC holds."""
        return _crc32(payload, _seed(self.sequence, self.kind)) == self.crc


def read_header(buffer: memoryview, offset: int) -> Header:
    """Return the header at an offset, for who looks at a ring from outside."""
    return Header(*_HEADER.unpack_from(buffer, offset)[:4])


class NoRingRoom(Exception):
    """The ring has no room for an entry now."""

    def __init__(self, region: RingRegion, head: int) -> None:
        super().__init__(region.name)
        self.region = region
        self.head = head


class RingRegion:
    """The bytes and words of one ring in a memory."""

    __slots__ = (
        "_buffer",
        "_cursors",
        "_first",
        "_mapped",
        "_words",
        "high_water",
        "longest_payload",
        "name",
        "size",
        "state",
    )

    def __init__(self, memory: Memory, name: str, state: int, first: int, size: int) -> None:
        self.name = name
        self.state = state
        self.size = size
        self.high_water = min(size // 2, _HIGH_WATER_BYTES)
        self.longest_payload = size // 2 - 2 * HEADER_BYTES
        self._buffer = memory.buffer
        self._mapped = memory.mapped
        self._words = memory.words
        self._first = first
        self._cursors: list[tuple[int, int]] = []

    def append(self, stage: Stage, kind: int, payload: bytes) -> int:
        """Write an entry behind the tail and stage the tail's move; return its sequence.

        Raises NoRingRoom, InvalidValue for an entry that is too long."""
        tail_word = self.state + TAIL
        sequence_word = self.state + LAST_SEQUENCE
        tail = stage[tail_word]
        size = self.size
        length = len(payload)
        if length > self.longest_payload:
            raise InvalidValue(
                f"an entry of {length:,} bytes: the {self.name} ring takes {self.longest_payload:,}; "
                "set SHMCACHE_ARENA_SIZE higher"
            )
        needed = HEADER_BYTES + (length + 7 & ~7)
        joins = 1 if sequence_word in stage else 0
        place = tail % size
        if place + needed > size:
            tail = self._fill_up(tail)
            place = 0
        if tail + needed - self._words[self.state + HEAD] > size:
            raise NoRingRoom(self, self._words[self.state + HEAD])
        sequence = stage[sequence_word] + 1
        offset = self._first + place
        begin = offset + HEADER_BYTES
        crc = _crc32(payload, (sequence ^ kind << 24) & 0xFFFFFFFF)  # as `_seed`, without its call
        _pack_header(self._buffer, offset, sequence, length, crc, kind, joins)
        self._mapped[begin : begin + length] = payload
        stage[tail_word] = tail + needed
        stage[sequence_word] = sequence
        return sequence

    def _fill_up(self, tail: int) -> int:
        """Cover the end of the ring, which is too near for an entry, with a filler; return where the entry goes."""
        filler = self.size - tail % self.size
        if tail + filler - self._words[self.state + HEAD] > self.size:
            raise NoRingRoom(self, self._words[self.state + HEAD])
        if filler >= HEADER_BYTES:
            _pack_header(self._buffer, self._first + self.size - filler, 0, filler, 0, 0, 0)
        return tail + filler

    def read(self, after: int, limit_entries: int, limit_bytes: int) -> list[Entry]:
        """Return entries younger than sequence `after`, oldest first, up to the end of the commit that passes a limit.

        Bytes that are no entry come back as one that is not intact, numbered as the last of those that it may have
        been. Without the commit lock it may be that the head has moved on meanwhile: read again under it then."""
        size = self.size
        position, sequence = self._start(after)
        tail = min(self._words[self.state + TAIL], self._words[self.state + HEAD] + size)
        entries: list[Entry] = []
        gathered = 0
        # Local names, and whole entries first: 1.9 us an entry, where the loop below alone takes 2.7.
        buffer, first = self._buffer, self._first
        unpack, append = _HEADER.unpack_from, entries.append
        while position < tail:
            full = len(entries) >= limit_entries or gathered >= limit_bytes
            place = position % size
            left = size - place
            if left >= HEADER_BYTES:
                found, length, crc, kind, joins = unpack(buffer, first + place)
                needed = HEADER_BYTES + (length + 7 & ~7)
                if found == sequence + 1 and needed <= left and position + needed <= tail:
                    if full and not joins:
                        break
                    sequence = found
                    position += needed
                    if sequence > after:
                        offset = first + place + HEADER_BYTES
                        payload = bytes(buffer[offset : offset + length])
                        intact = _crc32(payload, (sequence ^ kind << 24) & 0xFFFFFFFF) == crc
                        append(Entry(sequence, kind if intact else kind & 255, payload, intact))
                        gathered += needed
                    continue
            header = self._header(place, left)
            if header is None:
                position += left
                continue
            if full:
                break
            begin = position
            position, sequence = self._resume(position, tail, sequence + 1)
            if sequence > after:
                append(Entry(sequence, 0, self._bytes(begin, position), False))
                gathered += position - begin
        if entries:
            self._cursors = [(entries[-1].sequence, position), *self._cursors[: _CURSORS - 1]]
        return entries

    def advance(self, stage: Stage, sequence: int) -> bool:
        """Stage that everything up to `sequence` is durable; return whether that moves the head."""
        state = self.state
        if sequence <= stage[state + COMMITTED]:
            return False
        tail = stage[state + TAIL]
        if sequence >= stage[state + LAST_SEQUENCE]:
            stage[state + HEAD] = tail
        else:
            stage[state + HEAD] = self._position_after(sequence, min(tail, stage[state + HEAD] + self.size))
        stage[state + COMMITTED] = min(sequence, stage[state + LAST_SEQUENCE])
        stage[state + ROOM_SIGNAL] = stage[state + ROOM_SIGNAL] + 1
        return True

    def ask_to_drain(self, stage: Stage) -> None:
        """Stage the signal that wakes the consumer."""
        stage[self.state + DRAIN_SIGNAL] = stage[self.state + DRAIN_SIGNAL] + 1

    def used_bytes(self) -> int:
        """Return the bytes between head and tail."""
        return max(0, self._words[self.state + TAIL] - self._words[self.state + HEAD])

    def _start(self, after: int) -> tuple[int, int]:
        """Return a position from which to read entries younger than `after`, and the sequence before it."""
        # In this order: where another consumer moves the head in between, what lies there has a later sequence than is
        # expected. The other way round, an entry that is written and not committed could be just what is expected.
        committed = self._words[self.state + COMMITTED]
        head = self._words[self.state + HEAD]
        for sequence, position in self._cursors:
            if sequence <= after and head <= position <= self._words[self.state + TAIL]:
                return position, sequence
        return head, committed

    def _position_after(self, wanted: int, tail: int) -> int:
        position, sequence = self._start(wanted)
        while position < tail and sequence < wanted:
            place = position % self.size
            header = self._header(place, self.size - place)
            if header is None:
                position += self.size - place
                continue
            sequence += 1
            needed = HEADER_BYTES + (header[1] + 7 & ~7)
            if header[0] != sequence or position + needed > tail:
                resumed, sequence = self._resume(position, tail, sequence)
                if sequence > wanted:
                    break
                position = resumed
            else:
                position += needed
        return position

    def _header(self, place: int, left: int) -> tuple[int, int, int, int] | None:
        """Return (sequence, length, CRC, kind) of what lies at a place; None for what fills the ring's end."""
        if left < HEADER_BYTES:
            return None
        sequence, length, crc, kind, _ = _HEADER.unpack_from(self._buffer, self._first + place)
        return None if not sequence and length == left else (sequence, length, crc, kind)

    def _resume(self, position: int, tail: int, sequence: int) -> tuple[int, int]:
        """Return where the next whole entry begins behind damaged bytes, and the sequence of the last one they held."""
        newest = self._words[self.state + LAST_SEQUENCE]
        left = _MOST_TRIED * self.size
        while (position := position + WORD) < tail:
            place = position % self.size
            header = self._header(place, self.size - place)
            if header is None or not sequence < header[0] <= newest:
                continue
            found, length, crc, kind = header
            if length > min(self.size - place, tail - position) - HEADER_BYTES:
                continue
            left -= length
            if left < 0:
                break
            offset = self._first + place + HEADER_BYTES
            if _crc32(self._buffer[offset : offset + length], _seed(found, kind)) == crc:
                return position, found - 1
        return tail, max(newest, sequence)

    def _bytes(self, begin: int, end: int) -> bytes:
        place = begin % self.size
        first = self._buffer[self._first + place : self._first + min(place + end - begin, self.size)]
        return bytes(first) + bytes(self._buffer[self._first : self._first + max(0, end - begin - len(first))])
