"""Keys to entries: a hash table of chains, whose entries never move, and the lists and counters that hang on an entry.

    bucket[key & mask] -> entry -> entry -> 0          chain, through the low half of CHAIN
    parent.MEMBERS first -> sibling -> ... -> last     members, through the low half of FAMILY

Changes are prepared on a Stage under the commit lock. Readers walk without a lock: an entry that carries the key is
the right one if its version still stands after the record was copied; a walk that finds nothing proves nothing (an
entry may have moved between chains under the reader) and is repeated under the lock.
"""

from __future__ import annotations

import struct

import numpy as np

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
_unpack_key = _KEY.unpack
_HOPS = range(64)
"""How far a reader without the lock follows a chain: it may have been led onto the list of free entries."""


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
        """Return the entry of a key, or 0, which without the commit lock proves nothing."""
        words = self._words
        high, low = _unpack_key(key)
        try:
            entry = words[self._buckets + (low & self._mask)]
            for _ in _HOPS:
                if not entry:
                    return 0
                if words[entry + KEY_LOW] == low and words[entry + KEY_HIGH] == high:
                    found: int = entry
                    return found
                entry = words[entry + CHAIN] & LOW
        except IndexError:  # a word that somebody else damaged
            pass
        return 0

    def find_certainly(self, key: bytes) -> int:
        """Return the entry of a key, or 0 if there is none. Under the commit lock."""
        return self.find(key) or self._find_far(self._words, key)

    def find_staged(self, stage: Stage, key: bytes) -> int:
        """Return the entry of a key as the stage has it, or 0."""
        # Keys and chains change by `insert` and `remove` only, and both move FREE_ENTRY.
        return self._find_far(stage, key) if FREE_ENTRY in stage else self.find_certainly(key)

    def _find_far(self, words: memoryview | Stage, key: bytes) -> int:
        high, low = _unpack_key(key)
        try:
            entry = words[self._buckets + (low & self._mask)]
            for _ in range(self._entry_count):
                if not entry:
                    return 0
                if words[entry + KEY_LOW] == low and words[entry + KEY_HIGH] == high:
                    return entry
                entry = words[entry + CHAIN] & LOW
        except IndexError:
            pass
        return 0

    def insert(self, stage: Stage, key: bytes) -> int:
        """Take a free entry for a key that has none; return it. Raises ArenaFull."""
        entry = stage[FREE_ENTRY]
        if not entry:
            raise ArenaFull(ENTRY_WORDS * WORD, f"all {self._entry_count:,} entries are taken")
        high, low = _unpack_key(key)
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
        try:
            entry = words[parent + MEMBERS] & LOW
            while entry:
                family = words[entry + FAMILY]
                if family >> 32 != parent or len(found) > self._entry_count:
                    return None
                found.append(entry)
                entry = family & LOW
        except IndexError:
            return None
        return found

    def key_of(self, entry: int) -> bytes:
        """Return the key of an entry."""
        return _KEY.pack(self._words[entry + KEY_HIGH], self._words[entry + KEY_LOW])

    def rows(self) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
        """Return all entries, used and free, as the rows of an array over the memory. Keep it no longer than needed."""
        rows = np.frombuffer(self._words, np.uint64, self._entry_count * ENTRY_WORDS, self._entries * WORD)
        return rows.reshape(self._entry_count, ENTRY_WORDS)

    def entry_at(self, row: int | np.intp) -> int:
        """Return the entry of a row."""
        return self._entries + int(row) * ENTRY_WORDS

    def is_entry(self, word: int) -> bool:
        """Say whether a word is the first of an entry."""
        place = word - self._entries
        return 0 <= place < self._entry_count * ENTRY_WORDS and not place % ENTRY_WORDS
