"""Making room when slabs or entries run out: what nothing refers to, holes, finished families, then CLOCK.

    1 free      slabs that nothing refers to are free again
    2 clean     slabs with the most holes are emptied by moving what lives in them, while that gains enough
    3 shrink    slabs of entries that are not needed any more hold records again
    4 drop      finished families go whole
    5 evict     CLOCK, or second chance (Corbato 1968): the hand goes over the slabs in the order in which they were
                filled. Where enough records are clean and were not read since it last came by, they are forgotten and
                the others moved to the young end; where not, all lose their marks
    6 wait      for the syncer, if everything is dirty

One process does this at a time, under a lock of its own; it takes the commit lock for a few records at a time, and
readers never wait. A death anywhere leaves what it had done, and the next one goes on.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from itertools import product
from typing import TypeVar

import numpy as np

from shmcache.arena.census import Census
from shmcache.arena.changes import Changes
from shmcache.arena.counters import Lanes
from shmcache.arena.critical import Critical
from shmcache.arena.entry_slabs import EntrySlabs
from shmcache.arena.families import Families
from shmcache.arena.layout import (
    CHAIN,
    CLEANING_LOCK_OFFSET,
    COUNTER,
    DIRTY,
    FAMILY,
    FLAG_PINNED,
    FREE_SLABS,
    HAND,
    MEMBERS,
    QUEUE,
    READ_LATELY,
)
from shmcache.arena.memory import Memory
from shmcache.arena.moving import KEEPING_FLAGS, Mover
from shmcache.arena.mutex import RobustMutex, is_on_stack
from shmcache.arena.ring_ends import Ring
from shmcache.arena.slab import RESERVED_SLABS, SLOT_BYTES, NoRoom
from shmcache.arena.stripes import Stripes
from shmcache.errors import ArenaError, ArenaFull
from shmcache.patience import before_waiting

T = TypeVar("T")

_SLABS_AT_ONCE = 16
_WORTH_CLEANING = 0.9
"""A slab with more live bytes than this is not cleaned while there is something to evict."""


class Room:
    """What an arena does when slabs or entries run out. Counts what it did in `evicted` and `cleaned`."""

    def __init__(
        self, mapped: Memory, critical: Critical, changes: Changes, stripes: Stripes, lanes: Lanes, write_ring: Ring
    ) -> None:
        self._words = mapped.words
        self._wait_seconds = critical.lock_wait_seconds
        self._mover = Mover(mapped, critical, changes, stripes, write_ring)
        self._table = changes.table
        self._slabs = changes.slabs
        self._ring = write_ring
        self._entry_slabs = EntrySlabs(self._mover, lanes)
        self.families = Families(self._mover, changes.remove)
        self._lock = RobustMutex("cleaning", mapped.address + CLEANING_LOCK_OFFSET, mapped.name)
        self.cleaned = 0

    @property
    def evicted(self) -> int:
        """How many records were forgotten."""
        return self._mover.evicted

    def format(self) -> None:
        """Make the lock. Only for who creates the segment."""
        self._lock.initialize()

    def make(self, lacking: NoRoom, deadline: float) -> None:
        """Free slabs or entries, or wait for the syncer if nothing can be freed before that. Raises ArenaFull.

        Returns only if it, or somebody else meanwhile, gained something: who tries again and again comes to an end."""
        before_waiting()  # it may take milliseconds
        if self._alone(lambda: self._gain(lacking)):
            return
        ring = self._ring
        committed = ring.committed_sequence
        if ring.last_sequence > committed and time.monotonic() < deadline:
            ring.request_drain()
            if ring.wait_committed(committed + 1, max(0.0, deadline - time.monotonic())):
                return
        raise ArenaFull(SLOT_BYTES, "everything in it is in use or waits for the database").of(self._lock.arena)

    def sweep(self) -> int:
        """Free every slab that nothing refers to; return how many. What a crash has left is found here."""
        return self._alone(lambda: self._free(self._mover.census()))

    def clean(self) -> int:
        """Empty the slabs with the most holes while that gains anything; return how many were emptied."""

        def clean() -> int:
            before = self.cleaned
            self._clean(self._mover.census(), self._slabs.count, 1.0)
            return self.cleaned - before

        return self._alone(clean)

    def evict(self) -> int:
        """Forget clean records as if slabs had run out; return how many went."""

        def evict() -> int:
            before = self._mover.evicted
            if not self.families.drop_finished():
                self._turn_clock(self._mover.census(), self._words[FREE_SLABS] + 1)
            return self._mover.evicted - before

        return self._alone(evict)

    def _alone(self, work: Callable[[], T]) -> T:
        lock = self._lock
        try:
            result = lock.acquire(self._wait_seconds)
            if result == errno.EDEADLK and is_on_stack(_ALONE, 1):
                raise ArenaError(
                    "it was used again from inside its cleaning (by a signal handler, a destructor): use it outside of"
                    " those"
                ).of(lock.arena)
            lock.inherit(result)
            self._entry_slabs.repair()
            return work()
        finally:
            if lock.is_held_here() and not is_on_stack(_ALONE, 1):
                lock.release()

    def _gain(self, lacking: NoRoom) -> bool:
        words = self._words
        self._mover.gained = 0
        if lacking.entries:
            return self._gain_entries(lacking.entries)
        wanted = lacking.slabs + RESERVED_SLABS
        if words[FREE_SLABS] < wanted:
            self._gain_slabs(wanted)
        return self._mover.gained > 0 or words[FREE_SLABS] >= wanted

    def _gain_entries(self, needed: int) -> bool:
        """Make slabs entries; where no more can be, forget records whose entries go with them."""
        table = self._table
        for _ in range(2):
            while table.free < needed and self._entry_slabs.grow():
                pass
            if table.free >= needed:
                return True
            self._gain_slabs(2 + RESERVED_SLABS)
        before = -1
        while before < table.free < needed:
            before = table.free
            if not self.families.drop_finished():
                self._mover.close_filling()
                self._turn_clock(self._mover.census(), self._words[FREE_SLABS] + 1, entries_too=True)
        return table.free >= needed

    def _gain_slabs(self, needed: int) -> None:
        """Go through the steps until there are as many free slabs as needed, and by each some more while at it.

        Nothing is forgotten while moving what lives makes room enough."""
        words = self._words
        wanted = needed + min(8, self._slabs.count // 64)
        census = self._mover.census()
        self._free(census)
        if words[FREE_SLABS] < wanted:
            self._clean(census, wanted, _WORTH_CLEANING)
        while words[FREE_SLABS] < needed and self._entry_slabs.shrink():
            pass
        if words[FREE_SLABS] < needed and self.families.drop_finished():
            census = self._mover.census()
            self._free(census)
            self._clean(census, wanted, _WORTH_CLEANING)
        if words[FREE_SLABS] < needed:
            self._turn_clock(self._mover.census(), wanted)
        if self._mover.gained <= 0:
            self._mover.close_filling()
            self._turn_clock(self._mover.census(), wanted)
        if self._mover.gained <= 0:
            self._clean(self._mover.census(), wanted, 1.0)

    def _free(self, census: Census) -> int:
        empty = census.empty()
        self._mover.give_back(empty)
        census.filled[empty] = False
        return len(empty)

    def _clean(self, census: Census, wanted: int, worth: float) -> None:
        """Empty slabs until as many as wanted are free, but none that has more live bytes than it is worth."""
        size = self._slabs.size
        live = 0
        victims: list[int] = []
        for slab in census.emptiest():
            if self._words[FREE_SLABS] + len(victims) + live // -size > wanted or census.live[slab] > worth * size:
                break
            victims.append(slab)
            live += int(census.live[slab])
        if len(victims) - live // size < 1:
            return
        for slab, records in census.by_slab(victims):
            if not self._mover.move(census, records):
                return
            self._mover.give_back([slab])
            self.cleaned += 1

    def _turn_clock(self, census: Census, wanted: int, *, entries_too: bool = False) -> None:
        """Empty slabs of records that may go, from the clock's hand on, until as many as wanted are free.

        With `entries_too` only of those whose entries go with them."""
        slabs = self._slabs
        words = self._words
        rows = self._table.rows()
        entries = census.entries
        may_go = (
            (rows[entries, DIRTY] <= np.uint64(self._ring.committed_sequence))
            & (rows[entries, QUEUE] == 0)
            & (rows[entries, CHAIN] & np.uint64(FLAG_PINNED) == 0)
        )
        if entries_too:
            kept_for = rows[entries, FAMILY] | rows[entries, MEMBERS] | rows[entries, COUNTER]
            may_go &= (kept_for | (rows[entries, CHAIN] & np.uint64(KEEPING_FLAGS))) == 0
        unread = may_go & (rows[entries, CHAIN] < np.uint64(READ_LATELY))
        del rows
        # The slabs that a long record has to itself are gained with it, wherever its slot lies.
        pieces = census.pieces()
        gains = census.rooms.copy()
        for place, own in pieces.items():
            gains[place] += len(own) * slabs.size
        gain = slabs.size - census.live + np.bincount(census.slabs, may_go * gains, slabs.count).astype(np.int64)
        candidates = (census.filled & (gain >= slabs.size // 8)).nonzero()[0]
        stamps = slabs.stamps()[candidates]
        candidates = candidates[stamps.argsort(kind="stable")]
        begin = int(np.searchsorted(np.sort(stamps), words[HAND], "right"))
        around = [*candidates[begin:].tolist(), *candidates[:begin].tolist()]
        emptied: set[int] = set()
        for lap, begin in product(range(2), range(0, len(around), _SLABS_AT_ONCE)):
            for slab, inside in census.by_slab(around[begin : begin + _SLABS_AT_ONCE]):
                if words[FREE_SLABS] >= wanted:
                    return
                if slab in emptied:
                    continue
                words[HAND] = slabs.stamp(slab)
                going = inside[unread[inside]]
                unread[inside] = may_go[inside]
                if int(gains[going].sum()) + slabs.size - census.live[slab] < slabs.size // 4 and not lap:
                    self._mover.clear_marks(census.entries[inside])  # a second chance for nearly all of it
                    continue
                self._mover.forget(census, going)
                gone = going[self._mover.is_gone(census, going)]
                self._mover.give_back([each for place in gone.tolist() for each in pieces.pop(place, ())])
                if self._mover.move(census, np.setdiff1d(inside, gone, assume_unique=True)):
                    self._mover.give_back([slab])
                    emptied.add(slab)


_ALONE = Room._alone.__code__
