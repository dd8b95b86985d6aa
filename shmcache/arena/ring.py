"""A ring: many producers, one consumer. Entries are appended in a commit and exist once TAIL has moved.

    HEAD                                              TAIL
     |  seq 41 | seq 42 | seq 43 ............ seq 97   |   free   ... and around
        sequence 8 | length 4 | CRC-32 4 | kind 4 | 4 unused | payload, padded to 8

An entry never wraps: where the end of the ring is too near, a filler (sequence 0) covers the rest. Positions grow for
ever; the place is position % size.

    append    under the commit lock: 1 bytes behind TAIL   2 TAIL and LAST_SEQUENCE, staged; TAIL is the commit point
    read      the consumer, no lock: TAIL, then entries from HEAD on; their bytes cannot change before HEAD moves
    advance   the consumer, under the commit lock, after the entries are durable: HEAD and COMMITTED

A producer that dies before TAIL is stored leaves bytes that nobody sees. A consumer that dies before `advance` leaves
entries that its successor reads again and skips by the checkpoint. HEAD never moves back: a consumer that was stopped
and superseded can only confirm what is durable anyway.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from shmcache.arena.layout import COMMITTED, DRAIN_SIGNAL, HEAD, LAST_SEQUENCE, ROOM_SIGNAL, TAIL
from shmcache.arena.memory import Memory, Stage

_HEADER = struct.Struct("<QIIII")
HEADER_BYTES = _HEADER.size
_crc32 = zlib.crc32


class Entry(NamedTuple):
    """An entry as the consumer reads it; `intact` is whether its CRC holds."""

    sequence: int
    kind: int
    payload: bytes
    intact: bool


class NoRingRoom(Exception):
    """The ring has no room for an entry now."""

    def __init__(self, region: RingRegion, head: int) -> None:
        super().__init__(region.name)
        self.region = region
        self.head = head


class RingRegion:
    """The bytes and words of one ring in a memory."""

    __slots__ = ("_buffer", "_cursor", "_first", "_words", "high_water", "longest_payload", "name", "size", "state")

    def __init__(self, memory: Memory, name: str, state: int, first: int, size: int) -> None:
        self.name = name
        self.state = state
        self.size = size
        self.high_water = size // 2
        self.longest_payload = size // 2 - 2 * HEADER_BYTES
        self._buffer = memory.buffer
        self._words = memory.words
        self._first = first
        self._cursor = (0, 0)

    def append(self, stage: Stage, kind: int, payload: bytes) -> int:
        """Write an entry behind the tail and stage the tail's move; return its sequence. Raises NoRingRoom."""
        state = self.state
        tail = stage[state + TAIL]
        size = self.size
        length = len(payload)
        needed = HEADER_BYTES + (length + 7 & ~7)
        place = tail % size
        filler = size - place if size - place < needed else 0
        if tail + filler + needed - self._words[state + HEAD] > size:
            raise NoRingRoom(self, self._words[state + HEAD])
        if filler:
            if filler >= HEADER_BYTES:
                _HEADER.pack_into(self._buffer, self._first + place, 0, filler, 0, 0, 0)
            tail += filler
            place = 0
        sequence = stage[state + LAST_SEQUENCE] + 1
        offset = self._first + place
        crc = _crc32(payload, sequence & 0xFFFFFFFF)
        _HEADER.pack_into(self._buffer, offset, sequence, length, crc, kind, 0)
        self._buffer[offset + HEADER_BYTES : offset + HEADER_BYTES + length] = payload
        stage[state + TAIL] = tail + needed
        stage[state + LAST_SEQUENCE] = sequence
        return sequence

    def read(self, after: int, limit_entries: int, limit_bytes: int) -> list[Entry]:
        """Return entries younger than sequence `after`, oldest first, within the limits (but at least one).

        What follows a header that cannot be right comes back as one entry that is not intact, numbered as the last."""
        words = self._words
        tail = words[self.state + TAIL]
        position = words[self.state + HEAD]
        cursor_sequence, cursor_position = self._cursor
        if cursor_sequence == after and position <= cursor_position <= tail:
            position = cursor_position
        entries: list[Entry] = []
        gathered = 0
        while position < tail and len(entries) < limit_entries and gathered < limit_bytes:
            place = position % self.size
            left = self.size - place
            if left < HEADER_BYTES:
                position += left
                continue
            offset = self._first + place
            sequence, length, crc, kind, _ = _HEADER.unpack_from(self._buffer, offset)
            if not sequence and length == left:
                position += left
                continue
            needed = HEADER_BYTES + (length + 7 & ~7)
            if not sequence or needed > left or position + needed > tail:
                rest = bytes(self._buffer[offset : offset + min(left, tail - position)])
                entries.append(Entry(words[self.state + LAST_SEQUENCE], kind, rest, False))
                position = tail
                break
            position += needed
            if sequence <= after:
                continue
            payload = bytes(self._buffer[offset + HEADER_BYTES : offset + HEADER_BYTES + length])
            entries.append(Entry(sequence, kind, payload, _crc32(payload, sequence & 0xFFFFFFFF) == crc))
            gathered += needed
        if entries:
            self._cursor = (entries[-1].sequence, position)
        return entries

    def advance(self, stage: Stage, sequence: int) -> bool:
        """Stage that everything up to `sequence` is durable; return whether that moves the head."""
        state = self.state
        if sequence <= stage[state + COMMITTED]:
            return False
        position = stage[state + HEAD]
        tail = stage[state + TAIL]
        cursor_sequence, cursor_position = self._cursor
        if sequence >= stage[state + LAST_SEQUENCE]:
            position = tail
        elif cursor_sequence == sequence and position <= cursor_position <= tail:
            position = cursor_position
        else:
            position = self._position_after(position, tail, sequence)
        stage[state + HEAD] = position
        stage[state + COMMITTED] = min(sequence, stage[state + LAST_SEQUENCE])
        stage[state + ROOM_SIGNAL] = stage[state + ROOM_SIGNAL] + 1
        return True

    def ask_to_drain(self, stage: Stage) -> None:
        """Stage the signal that wakes the consumer."""
        stage[self.state + DRAIN_SIGNAL] = stage[self.state + DRAIN_SIGNAL] + 1

    def used_bytes(self) -> int:
        """Return the bytes between head and tail."""
        return max(0, self._words[self.state + TAIL] - self._words[self.state + HEAD])

    def _position_after(self, position: int, tail: int, sequence: int) -> int:
        while position < tail:
            place = position % self.size
            left = self.size - place
            if left < HEADER_BYTES:
                position += left
                continue
            found, length, _, _, _ = _HEADER.unpack_from(self._buffer, self._first + place)
            if not found and length == left:
                position += left
                continue
            if found > sequence or not found:
                break
            position += HEADER_BYTES + (length + 7 & ~7)
        return min(position, tail)
