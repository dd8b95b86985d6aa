"""Keys to entries: a hash table of chains, whose entries never move, and the lists and counters that hang on an entry.

    bucket[key & mask] -> entry -> entry -> 0          chain, through the low half of CHAIN
    parent.MEMBERS first -> sibling -> ... -> last     members, through the low half of FAMILY

Entries are numbered from the end of their region downwards, and the slabs before it become entries when they run out:
entry number n begins (n + 1) * 10 words before the end, wherever the region begins by then.

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
    ENTRIES_LEAVE,
    ENTRIES_USED,
    ENTRY_SLABS,
    ENTRY_WORDS,
    FAMILY,
    FLAG_USED,
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
from shmcache.arena.slab import NoRoom
from shmcache.errors import ArenaDamaged

_KEY = struct.Struct(">QQ")
_unpack_key = _KEY.unpack
_HOPS = range(64)
"""How far a chain is followed in haste: a reader without the lock may have been led onto the list of free entries."""
_LOST = -1


class Table:
    """The table over a memory. Keys are 16 bytes; entries are named by the index of their first word."""

    __slots__ = (
        "_buckets",
        "_end",
        "_first_bytes",
        "_lowest",
        "_mask",
        "_slab_count",
        "_slab_size",
        "_words",
    )

    def __init__(self, memory: Memory) -> None:
        placed = memory.layout
        self._words = memory.words
        self._buckets = placed.buckets // WORD
        self._mask = placed.bucket_count - 1
        self._end = placed.entries_end // WORD
        self._first_bytes = placed.entries_end - placed.slabs - placed.slab_count * placed.slab_size
        self._slab_size = placed.slab_size
        self._slab_count = placed.slab_count
        self._lowest = (-1, 0)  # where the lowest entry begins, with so many slabs of entries

    def format(self) -> None:
        """Put all entries on the free list. Only for who creates the segment."""
        self._words[FREE_ENTRY] = self._link_free(0, self.count, 0)

    @property
    def count(self) -> int:
        """How many entries there are, used and free."""
        return self._count_with(self._words[ENTRY_SLABS])

    @property
    def free(self) -> int:
        """How many entries are free."""
        free: int = self.count - self._words[ENTRIES_USED]
        return free

    def _count_with(self, slabs: int) -> int:
        return (self._first_bytes + min(slabs, self._slab_count) * self._slab_size) // (ENTRY_WORDS * WORD)

    def grow(self, stage: Stage) -> int:
        """Stage that one more slab, the last that is none yet, is entries; return which slab. It must be free then."""
        slabs = stage[ENTRY_SLABS]
        stage[FREE_ENTRY] = self._link_free(self._count_with(slabs), self._count_with(slabs + 1), stage[FREE_ENTRY])
        stage[ENTRY_SLABS] = slabs + 1
        return slabs

    def _link_free(self, begin: int, end: int, following: int) -> int:
        """Empty entries begin..end-1, which nobody knows yet, and chain them to `following`; return the first."""
        first = self._end - end * ENTRY_WORDS
        rows = np.frombuffer(self._words, np.uint64, (end - begin) * ENTRY_WORDS, first * WORD).reshape(-1, ENTRY_WORDS)
        rows[:] = 0
        rows[:-1, CHAIN] = np.arange(first + ENTRY_WORDS, self._end - begin * ENTRY_WORDS, ENTRY_WORDS)
        rows[-1, CHAIN] = following
        return first

    def find(self, key: bytes) -> int:
        """Return the entry of a key, or 0, which without the commit lock proves nothing."""
        return max(self._walk(key), 0)

    def _walk(self, key: bytes) -> int:
        """Return the entry of a key, 0 where its chain ends, _LOST where that was not seen."""
        words = self._words
        high, low = _unpack_key(key)
        try:
            entry = words[self._buckets + (low & self._mask)]
            # Nearly always it is the first of its chain: no loop then.
            if words[entry + KEY_LOW] == low and words[entry + KEY_HIGH] == high and entry:
                first: int = entry
                return first
            for _ in _HOPS:
                if not entry:
                    return 0
                if words[entry + KEY_LOW] == low and words[entry + KEY_HIGH] == high:
                    found: int = entry
                    return found
                entry = words[entry + CHAIN] & LOW
        except IndexError:  # a word that somebody else damaged
            pass
        return _LOST

    def find_certainly(self, key: bytes) -> int:
        """Return the entry of a key, or 0 if there is none. Under the commit lock."""
        entry = self._walk(key)
        return entry if entry >= 0 else self._find_far(self._words, key)

    def find_staged(self, stage: Stage, key: bytes) -> int:
        """Return the entry of a key as the stage has it, or 0."""
        entry = self._walk(key)
        # Keys and chains change by `insert`, `remove` and `move` only: all move FREE_ENTRY, and write to their entry's
        # key or to another's.
        if entry >= 0 and (FREE_ENTRY not in stage or (entry and entry + KEY_LOW not in stage)):
            return entry
        return self._find_far(stage, key)

    def _find_far(self, words: memoryview | Stage, key: bytes) -> int:
        high, low = _unpack_key(key)
        try:
            entry = words[self._buckets + (low & self._mask)]
            for _ in range(self.count):
                if not entry:
                    return 0
                if words[entry + KEY_LOW] == low and words[entry + KEY_HIGH] == high:
                    return entry
                entry = words[entry + CHAIN] & LOW
        except IndexError:
            pass
        return 0

    def insert(self, stage: Stage, key: bytes) -> int:
        """Take a free entry for a key that has none; return it. Raises NoRoom."""
        entry = stage[FREE_ENTRY]
        if not entry and (self._words[ENTRIES_LEAVE] or stage[ENTRIES_USED] >= self.count):
            raise NoRoom(entries=max(1, stage[ENTRIES_USED] + 1 - self._words[ENTRIES_USED]))
        self.require(entry)
        if stage[entry + CHAIN] & FLAG_USED:
            raise ArenaDamaged(f"the list of free entries leads to {entry}, which is in use")
        high, low = _unpack_key(key)
        bucket = self._buckets + (low & self._mask)
        free = stage[entry + CHAIN] & LOW
        stage[entry + KEY_HIGH] = high
        stage[entry + KEY_LOW] = low
        stage[entry + LOCATION] = stage[entry + DIRTY] = stage[entry + QUEUE] = 0
        stage[entry + FAMILY] = stage[entry + MEMBERS] = stage[entry + COUNTER] = 0
        stage[entry + CHAIN] = stage[bucket] | FLAG_USED
        stage[bucket] = entry
        stage[FREE_ENTRY] = free
        stage[ENTRIES_USED] = stage[ENTRIES_USED] + 1
        return entry

    def remove(self, stage: Stage, entry: int) -> None:
        """Take an entry out of its chain and put it on the free list. It must be on no other list any more."""
        self._unlink(stage, entry)
        if stage[entry + COUNTER]:  # a reader without the lock may meet the entry again when it is a new key's
            stage[entry + COUNTER] = 0
        stage[entry + CHAIN] = stage[FREE_ENTRY]
        stage[FREE_ENTRY] = entry
        stage[ENTRIES_USED] = stage[ENTRIES_USED] - 1

    def _unlink(self, stage: Stage, entry: int) -> None:
        bucket = self._buckets + (stage[entry + KEY_LOW] & self._mask)
        following = stage[entry + CHAIN] & LOW
        current = stage[bucket]
        if current == entry:
            stage[bucket] = following
        else:
            for _ in range(self.count):
                if (ahead := stage[current + CHAIN] & LOW) == entry:
                    break
                current = ahead
                self.require(current)
            else:
                raise ArenaDamaged(f"entry {entry} is not on the chain of its key")
            stage[current + CHAIN] = stage[current + CHAIN] & ~LOW | following
        stage[entry + VERSION] = stage[entry + LOCATION] = 0
        stage[entry + KEY_HIGH] = stage[entry + KEY_LOW] = 0

    # Giving entries back

    def last_slab(self) -> range:
        """Return the numbers of the entries that lie, in part at least, in the slab that became entries last."""
        slabs = self._words[ENTRY_SLABS]
        return range(self._count_with(slabs - 1), self._count_with(slabs))

    def relist_free(self, leaving: bool) -> None:
        """Make the list of free entries anew, without those of the last slab if that is leaving.

        Under the commit lock. A death in between leaves ENTRIES_LEAVE set, and this to be done again."""
        words = self._words
        words[ENTRIES_LEAVE] = 1
        words[FREE_ENTRY] = 0
        rows = self.rows()
        if leaving:
            rows = rows[: self.last_slab().start]
        free = (rows[:, CHAIN] & np.uint64(FLAG_USED) == 0).nonzero()[0]
        places = self._end - (free + 1) * ENTRY_WORDS
        rows[free, CHAIN] = np.append(places[1:], 0).astype(np.uint64)
        words[FREE_ENTRY] = int(places[0]) if len(places) else 0
        words[ENTRIES_LEAVE] = int(leaving)

    def move(self, stage: Stage, entry: int) -> None:
        """Stage that a key's entry, on no list but its chain, is another one; the old one goes on no list."""
        words = self._words
        target = stage[FREE_ENTRY]
        bucket = self._buckets + (stage[entry + KEY_LOW] & self._mask)
        stage[FREE_ENTRY] = stage[target + CHAIN] & LOW
        for word in (VERSION, LOCATION, KEY_HIGH, KEY_LOW, DIRTY, QUEUE, FAMILY, MEMBERS, COUNTER):
            stage[target + word] = words[entry + word]
        flags = words[entry + CHAIN] & ~LOW
        self._unlink(stage, entry)
        stage[entry + CHAIN] = 0
        stage[target + CHAIN] = stage[bucket] | flags
        stage[bucket] = target

    def shrink(self, stage: Stage) -> None:
        """Stage that the last slab of entries, of which none is used any more, is none."""
        stage[ENTRY_SLABS] = stage[ENTRY_SLABS] - 1
        stage[ENTRIES_LEAVE] = 0

    def adopt(self, stage: Stage, parent: int, entry: int) -> None:
        """Append an entry to the members of a parent."""
        members = stage[parent + MEMBERS]
        stage[entry + FAMILY] = parent << 32
        last = members >> 32
        if last:
            self.require(last)
            stage[last + FAMILY] = stage[last + FAMILY] & ~LOW | entry
            stage[parent + MEMBERS] = members & LOW | entry << 32
        else:
            stage[parent + MEMBERS] = entry << 32 | entry

    def drop_first_member(self, stage: Stage, parent: int) -> int:
        """Take the first member off its parent's list; return it, or 0."""
        members = stage[parent + MEMBERS]
        first = members & LOW
        if first:
            self.require(first)
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
                if family >> 32 != parent or len(found) > self.count:
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
        """Return all entries, used and free, by their numbers, as an array over the memory. Keep it no longer than
        needed."""
        count = self.count
        rows = np.frombuffer(self._words, np.uint64, count * ENTRY_WORDS, (self._end - count * ENTRY_WORDS) * WORD)
        return rows.reshape(count, ENTRY_WORDS)[::-1]

    def entry_at(self, number: int | np.intp) -> int:
        """Return the entry of a number, which is a row of `rows`."""
        return self._end - (int(number) + 1) * ENTRY_WORDS

    def is_entry(self, word: int) -> bool:
        """Say whether a word is the first of an entry."""
        # Every list that is followed asks this of each entry: where entries begin is reckoned anew only when it moved.
        slabs, lowest = self._lowest
        if self._words[ENTRY_SLABS] != slabs:
            slabs = self._words[ENTRY_SLABS]
            lowest = self._end - self._count_with(slabs) * ENTRY_WORDS
            self._lowest = slabs, lowest
        place = self._end - word
        return lowest <= word and place > 0 and not place % ENTRY_WORDS

    def require(self, word: int) -> None:
        """Raise ArenaDamaged unless a word, to which a list has led, is the first of an entry."""
        if not self.is_entry(word):
            raise ArenaDamaged(f"a list of entries leads to {word}")
