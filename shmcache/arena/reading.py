"""Reading an arena: records without a lock, and what takes one to be proved.

    1 entry    the bucket of the key, then the chain      2 version, location   two words of the entry
    3 slot     version and CRC, then a copy of the bytes   4 compare             the slot's version, the CRC

The slot's version is of one put of one key, and the CRC covers both and the bytes: if all agree, the copy is what that
put wrote, whatever else happened meanwhile. If not, the record was just being changed, or is damaged: again, and then
under the commit lock. So is a key that is not found, because an entry may have moved between chains under the reader.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

from shmcache.arena.critical import Critical
from shmcache.arena.layout import (
    CHAIN,
    COMMIT_SEQUENCE,
    COUNTER,
    EVICTIONS,
    FAMILY,
    FLAG_INDEXED,
    KEY_HIGH,
    KEY_LOW,
    LENGTH_MASK,
    LOCATION,
    OFFSET_SHIFT,
    READ_LATELY_BYTE,
    VERSION,
    VERSION_STEP,
    WORD,
)
from shmcache.arena.memory import Memory
from shmcache.arena.slab import SLOT, SLOT_BYTES, Slabs
from shmcache.arena.stripes import Stripes
from shmcache.arena.table import Table
from shmcache.errors import ArenaDamaged

# Bound once: a name of the module is found faster than an attribute of one.
unpack_key = struct.Struct(">QQ").unpack
unpack_slot = SLOT.unpack_from
crc32 = zlib.crc32
struct_error = struct.error
new_found = tuple.__new__


class Found(NamedTuple):
    """A record read from the arena: its entry, its version, its bytes."""

    entry: int
    version: int
    record: bytes


def signed(word: int) -> int:
    """Return the signed number that a counter's word stands for."""
    return word - (1 << 64) if word >> 63 else word


class Readable:
    """What can be read of an arena. A part of `Arena`."""

    def __init__(self, mapped: Memory, lock_wait_seconds: float) -> None:
        self._memory = mapped
        self._words = mapped.words
        self._buffer = mapped.buffer
        self._mapped = mapped.mapped
        self._critical = Critical(mapped, lock_wait_seconds)
        self._table = Table(mapped)
        self._slabs = Slabs(mapped)
        self._stripes = Stripes(mapped, self._critical, self._table, self._slabs)
        self._buckets = mapped.layout.buckets // WORD
        self._mask = mapped.layout.bucket_count - 1
        self._longest = self._slabs.longest_in_slot

    def read(self, key: bytes) -> Found | None:
        """Return a key's record, or None if the arena does not have it, and mark it as read lately."""
        found = self.peek(key)
        if found is not None:
            self._buffer[found.entry * WORD + READ_LATELY_BYTE] = 1
        return found

    def peek(self, key: bytes) -> Found | None:
        """Return a key's record, or None if the arena does not have it. Takes no lock on a hit."""
        words = self._words
        high, low = unpack_key(key)
        try:
            entry = words[self._buckets + (low & self._mask)]
            if words[entry + KEY_LOW] != low or words[entry + KEY_HIGH] != high:
                entry = self._table.find(key)
            version = words[entry]
            location = words[entry + LOCATION]
            length = location & LENGTH_MASK
            if entry and length <= self._longest:
                # The CRC covers key and version, which is of this one put: nothing need be looked at twice.
                offset = location >> OFFSET_SHIFT & ~7
                found, crc, _ = unpack_slot(self._buffer, offset)
                offset += SLOT_BYTES
                record = self._mapped[offset : offset + length]
                if found == version and crc32(record, (version ^ high ^ low) & 0xFFFFFFFF) == crc:
                    return new_found(Found, (entry, version, record))
        except (IndexError, ValueError, struct_error):
            pass  # led astray by a change under way, or by damage
        return self._read_slowly(key)

    def _read_slowly(self, key: bytes) -> Found | None:
        """Read a record that is too long for a slot, or is just being changed; prove that there is none."""
        words = self._words
        for _ in range(3):
            entry = self._table.find(key)
            if not entry:
                break
            version = words[entry + VERSION]
            location = words[entry + LOCATION]
            if version and location:
                record = self._slabs.read(key, location, version)
                if record is not None:
                    return Found(entry, version, record)
        try:
            return self._read_certainly(key)
        except ArenaDamaged:
            return None  # a reader has the database to turn to; who writes next is told

    def _read_certainly(self, key: bytes) -> Found | None:
        words = self._words
        with self._critical, self._stripes.hold((self._stripes.number_of(key),)):
            entry = self._table.find_certainly(key)
            for _ in range(2):
                if not entry or not words[entry + LOCATION]:
                    return None
                version = words[entry + VERSION]
                record = self._slabs.read(key, words[entry + LOCATION], version)
                if record is not None:
                    return Found(entry, version, record)
                self._settle(key, entry)
            return None

    def _settle(self, key: bytes, entry: int) -> None:
        """Store the version of an entry's slot, where a put died before it did; forget a record that is none.

        Inside the critical section, with the key's stripe held."""
        stage = self._memory.stage()
        stage[COMMIT_SEQUENCE] = unused = stage[COMMIT_SEQUENCE] + VERSION_STEP
        location = self._words[entry + LOCATION]
        version = self._slabs.version_at(location)
        if version and self._slabs.read(key, location, version) is not None:
            stage[entry + VERSION] = version
        else:
            stage[entry + LOCATION] = 0
            stage[entry + VERSION] = unused
            stage[EVICTIONS] = stage[EVICTIONS] + 1
        self._critical.publish(stage)

    def version(self, key: bytes) -> int:
        """Return the version of a key's record, 0 if there is none (proved under the lock)."""
        entry = self._table.find(key)
        if entry and self._words[entry + LOCATION]:
            version: int = self._words[entry + VERSION]
            return version
        with self._critical:
            entry = self._table.find_certainly(key)
            return self._words[entry + VERSION] if entry and self._words[entry + LOCATION] else 0

    def has_entry(self, key: bytes) -> bool:
        """Say whether the arena knows a key, by a record, a counter, members or as one (proved under the lock)."""
        with self._critical:
            return self._table.find_certainly(key) != 0

    def version_words(self) -> memoryview:
        """Return the words of the segment: `words[found.entry]` is the version of that entry's record now."""
        return self._words

    def counter(self, key: bytes) -> int | None:
        """Return the signed counter of a key, None if the key has no entry."""
        with self._critical:
            entry = self._table.find_certainly(key)
            return signed(self._words[entry + COUNTER]) if entry else None

    def seen_counter(self, key: bytes) -> int | None:
        """Return a key's counter as `counter` does, without the lock where it is found.

        What a process that died was just committing may be missing yet: for who has it checked by a commit."""
        entry = self._table.find(key)
        if entry:
            value: int = self._words[entry + COUNTER]
            if self._table.key_of(entry) == key:  # it was the key's when its counter was read
                return signed(value)
        return self.counter(key)

    def members(self, key: bytes) -> list[bytes] | None:
        """Return the keys of a key's members, oldest first; None if the key has no complete list of them."""
        words = self._words
        table = self._table
        evictions = words[EVICTIONS]
        entry = table.find(key)
        if entry and words[entry + CHAIN] & FLAG_INDEXED:
            found = table.members(entry)
            if found is not None:
                keys = [table.key_of(member) for member in found]
                # Who drops a family marks it first, in a commit of its own, and counts each drop: if neither shows now,
                # no member was missing from the list while it was walked.
                if (
                    all(words[member + FAMILY] >> 32 == entry for member in found)
                    and words[entry + CHAIN] & FLAG_INDEXED
                    and table.key_of(entry) == key
                    and words[EVICTIONS] == evictions
                ):
                    return keys
        with self._critical:
            entry = table.find_certainly(key)
            if not entry or not words[entry + CHAIN] & FLAG_INDEXED:
                return None
            found = table.members(entry)
            return None if found is None else [table.key_of(member) for member in found]

    def is_indexed(self, key: bytes) -> bool:
        """Say whether a key has a complete list of its members."""
        entry = self._table.find(key)
        if entry and self._words[entry + CHAIN] & FLAG_INDEXED and self._table.key_of(entry) == key:
            return True
        with self._critical:
            entry = self._table.find_certainly(key)
            return bool(entry and self._words[entry + CHAIN] & FLAG_INDEXED)

    def mark_read(self, entries: Iterable[int]) -> None:
        """Mark entries as read lately, for who reads them without the arena; eviction spares them once."""
        for entry in entries:
            self._buffer[entry * WORD + READ_LATELY_BYTE] = 1

    def evictions(self) -> int:
        """Return the number that changes whenever a key is forgotten: the lease of a fill."""
        evictions: int = self._words[EVICTIONS]
        return evictions
