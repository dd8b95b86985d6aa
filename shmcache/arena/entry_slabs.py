"""Slabs that become entries when entries run out, and records' again when they are not needed any more.

    grow      1 the last slab that is none yet is emptied
              2 its entries are put on the free list, and its state is changed: one commit
    shrink    1 ENTRIES_LEAVE is set, the free list made anew without the entries of the slab that became entries last
              2 the used ones of those become others, a few in one commit
              3 the slab is given back, ENTRIES_LEAVE cleared: one commit, unless somebody has decoded an entry in it

A death in a shrink leaves ENTRIES_LEAVE set, and whoever makes room next makes the free list anew, with those entries.
"""

from __future__ import annotations

import numpy as np

from shmcache.arena.census import Census
from shmcache.arena.counters import Lanes
from shmcache.arena.layout import (
    CHAIN,
    ENTRIES_LEAVE,
    ENTRIES_USED,
    ENTRY_SLABS,
    FAMILY,
    FLAG_USED,
    FORGET,
    FREE_ENTRY,
    FREE_SLABS,
    LOCATION,
    MEMBERS,
    OFFSET_SHIFT,
    QUEUE,
)
from shmcache.arena.moving import IN_ONE_COMMIT, Mover
from shmcache.arena.slab import RESERVED_SLABS


class EntrySlabs:
    """The slabs of entries over a memory. All under the cleaning lock."""

    def __init__(self, mover: Mover, lanes: Lanes) -> None:
        self._mover = mover
        self._lanes = lanes
        self._words = mover.words
        self._table = mover.table
        self._slabs = mover.slabs

    def repair(self) -> None:
        """Make good what a death in the middle of `shrink` has left."""
        if self._words[ENTRIES_LEAVE]:
            with self._mover.critical:
                self._table.relist_free(leaving=False)

    def grow(self) -> bool:
        """Make the last slab that is none yet one of entries, moving what lives in it; return whether that was done."""
        mover, slabs, words = self._mover, self._slabs, self._words
        slab = slabs.count - 1 - words[ENTRY_SLABS]
        if slab < slabs.count // 3 or words[FREE_SLABS] <= RESERVED_SLABS:
            return False
        for _ in range(2):
            with mover.critical, mover.stripes.hold_all():
                stage = mover.begin()
                if slabs.make_entries(stage, slab):
                    self._table.grow(stage)
                    mover.publish(stage)
                    return True
            mover.close_filling()  # it is in use: nobody may go on filling it
            census = mover.census()
            if slab in census.whole:
                self._move_piece(census, slab)
            elif not mover.move(census, census.records_in([slab])):
                return False
            mover.give_back([slab])
        return False

    def shrink(self) -> bool:
        """Give back the slab that became entries last, if there are far more free entries than needed.

        Returns False, and has given nothing back, if an entry in it is part of a list and cannot become another."""
        mover, table, words = self._mover, self._table, self._words
        leaving = table.last_slab()
        if not words[ENTRY_SLABS] or table.free < len(leaving) + max(len(leaving), words[ENTRIES_USED] // 8):
            return False
        try:
            with mover.critical:
                table.relist_free(leaving=True)
            for begin in range(leaving.start, leaving.stop, IN_ONE_COMMIT):
                if not self._vacate(range(begin, min(begin + IN_ONE_COMMIT, leaving.stop))):
                    return False
            with mover.critical:
                rows = table.rows()[leaving.start :]
                if (rows[:, CHAIN] & np.uint64(FLAG_USED)).any():
                    return False  # others freed one of them meanwhile, and took it again
                del rows
                lowest = self._lanes.lowest()
                if lowest is not None and lowest <= table.entry_at(leaving.start):
                    words[FORGET] += 1  # asks them; until they have, it stays what it is
                    return False
                table.relist_free(leaving=True)
                stage = mover.begin()
                self._slabs.give_back(stage, self._slabs.count - words[ENTRY_SLABS])
                table.shrink(stage)
                mover.publish(stage)
        finally:
            self.repair()
        return True

    def _vacate(self, numbers: range) -> bool:
        """Let the used ones among some entries become others."""
        mover, table = self._mover, self._table
        with mover.critical, mover.stripes.hold_all():
            stage = mover.begin()
            for number in numbers:
                entry = table.entry_at(number)
                if not stage[entry + CHAIN] & FLAG_USED:
                    continue
                listed = stage[entry + FAMILY] | stage[entry + MEMBERS] | stage[entry + QUEUE]
                if listed or not stage[FREE_ENTRY]:
                    return False
                table.move(stage, entry)
            mover.publish(stage)
        return True

    def _move_piece(self, census: Census, slab: int) -> None:
        """Move the slab of a long record to another one."""
        place, number = census.whole[slab]
        slabs = self._slabs
        entry = self._table.entry_at(census.entries[place])
        location = int(census.locations[place])
        mover = self._mover
        with mover.critical, mover.stripes.hold_all():
            if self._words[entry + LOCATION] != location:
                return  # it is another record by now, and the slab nobody's
            stage = mover.begin()
            target = slabs.take_slab(stage)
            begin = slabs.first + slab * slabs.size
            buffer = mover.memory.buffer
            buffer[target : target + slabs.size] = buffer[begin : begin + slabs.size]
            stage[slabs.piece_word(location >> OFFSET_SHIFT & ~7, number)] = target
            mover.publish(stage)
