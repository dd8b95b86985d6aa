"""Keys to entries: a hash table of chains, whose entries never move, and the lists and counters that hang on an entry.

    bucket[key & mask] -> entry -> entry -> 0          chain, through the low half of CHAIN
    parent.MEMBERS first -> sibling -> ... -> last     members, through the low half of FAMILY

Changes are prepared on a Stage under the commit lock. Readers walk without a lock: an entry that carries the key is
the right one if its version still stands after the record was copied; a walk that finds nothing proves nothing (an
entry may have moved between chains under the reader) and is repeated under the lock.
"""

from __future__ import annotations

import struct

from shmcache.arena.layout import (
    CHAIN,
    COUNTER,
    DIRTY,
    ENTRIES_USED,
    ENTRY_WORDS,
    FAMILY,
    FREE_ENTRY,
    KEY_HIGH,
    KEY_LOW,
    LOCATION,
    LOW,
    MEMBERS,
    QUEUE,
    VERSION,
    WORD,
)
from shmcache.arena.memory import Memory, Stage
from shmcache.errors import ArenaFull

_KEY = struct.Struct(">QQ")


class Table:
    """The table over a memory. Keys are 16 bytes; entries are named by the index of their first word."""

    __slots__ = ("_buckets", "_entries", "_entry_count", "_mask", "_words")

    def __init__(self, memory: Memory) -> None:
        self._words = memory.words
        self._buckets = memory.layout.buckets // WORD
        self._entries = memory.layout.entries // WORD
        self._mask = memory.layout.bucket_count - 1
        self._entry_count = memory.layout.entry_count

    def format(self) -> None:
        """Put all entries on the free list. Only for who creates the segment."""
        words = self._words
        last = self._entries + (self._entry_count - 1) * ENTRY_WORDS
        for entry in range(self._entries, last, ENTRY_WORDS):
            words[entry + CHAIN] = entry + ENTRY_WORDS
        words[last + CHAIN] = 0
        words[FREE_ENTRY] = self._entries

    def find(self, key: bytes) -> int:
        """Return the entry of a key, or 0. Without the commit lock, 0 proves nothing."""
        words = self._words
        high, low = _KEY.unpack(key)
        entry: int = words[self._buckets + (low & self._mask)]
        for _ in range(self._entry_count):
            if not entry:
                return 0
            if words[entry + KEY_LOW] == low and words[entry + KEY_HIGH] == high:
                return entry
            entry = words[entry + CHAIN] & LOW
        return 0

    def find_staged(self, stage: Stage, key: bytes) -> int:
        """Return the entry of a key as the stage has it, or 0."""
        high, low = _KEY.unpack(key)
        entry = stage[self._buckets + (low & self._mask)]
        while entry:
            if stage[entry + KEY_LOW] == low and stage[entry + KEY_HIGH] == high:
                return entry
            entry = stage[entry + CHAIN] & LOW
        return 0

    def insert(self, stage: Stage, key: bytes) -> int:
        """Take a free entry for a key that has none; return it. Raises ArenaFull."""
        entry = stage[FREE_ENTRY]
        if not entry:
            raise ArenaFull(ENTRY_WORDS * WORD, f"all {self._entry_count:,} entries are taken")
        high, low = _KEY.unpack(key)
        bucket = self._buckets + (low & self._mask)
        free = stage[entry + CHAIN] & LOW
        stage[entry + KEY_HIGH] = high
        stage[entry + KEY_LOW] = low
        stage[entry + LOCATION] = stage[entry + DIRTY] = stage[entry + QUEUE] = 0
        stage[entry + FAMILY] = stage[entry + MEMBERS] = stage[entry + COUNTER] = 0
        stage[entry + CHAIN] = stage[bucket]
        stage[bucket] = entry
        stage[FREE_ENTRY] = free
        stage[ENTRIES_USED] = stage[ENTRIES_USED] + 1
        return entry

    def remove(self, stage: Stage, entry: int) -> None:
        """Take an entry out of its chain and put it on the free list. It must be on no other list any more."""
        bucket = self._buckets + (stage[entry + KEY_LOW] & self._mask)
        following = stage[entry + CHAIN] & LOW
        current = stage[bucket]
        if current == entry:
            stage[bucket] = following
        else:
            while (ahead := stage[current + CHAIN] & LOW) != entry:
                current = ahead
            stage[current + CHAIN] = stage[current + CHAIN] & ~LOW | following
        stage[entry + VERSION] = stage[entry + LOCATION] = 0
        stage[entry + KEY_HIGH] = stage[entry + KEY_LOW] = 0
        stage[entry + CHAIN] = stage[FREE_ENTRY]
        stage[FREE_ENTRY] = entry
        stage[ENTRIES_USED] = stage[ENTRIES_USED] - 1

    def adopt(self, stage: Stage, parent: int, entry: int) -> None:
        """Append an entry to the members of a parent."""
        members = stage[parent + MEMBERS]
        stage[entry + FAMILY] = parent << 32
        last = members >> 32
        if last:
            stage[last + FAMILY] = stage[last + FAMILY] & ~LOW | entry
            stage[parent + MEMBERS] = members & LOW | entry << 32
        else:
            stage[parent + MEMBERS] = entry << 32 | entry

    def drop_first_member(self, stage: Stage, parent: int) -> int:
        """Take the first member off its parent's list; return it, or 0."""
        members = stage[parent + MEMBERS]
        first = members & LOW
        if first:
            following = stage[first + FAMILY] & LOW
            stage[parent + MEMBERS] = members & ~LOW | following if following else 0
            stage[first + FAMILY] = 0
        return first

    def members(self, parent: int) -> list[int] | None:
        """Return a parent's members, oldest first; None if the list changed underfoot (take the lock and ask again)."""
        words = self._words
        found: list[int] = []
        entry = words[parent + MEMBERS] & LOW
        while entry:
            family = words[entry + FAMILY]
            if family >> 32 != parent or len(found) > self._entry_count:
                return None
            found.append(entry)
            entry = family & LOW
        return found

    def key_of(self, entry: int) -> bytes:
        """Return the key of an entry."""
        return _KEY.pack(self._words[entry + KEY_HIGH], self._words[entry + KEY_LOW])

    def every_entry(self) -> range:
        """Return all entries, used and free."""
        return range(self._entries, self._entries + self._entry_count * ENTRY_WORDS, ENTRY_WORDS)
