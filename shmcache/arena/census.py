"""What lives where: one scan over all entries, by numpy, from which free slabs, holes and victims are found.

The scan takes no lock and stops nobody. It may count what is gone by the time it ends, and so find less room than
there is; it cannot miss what lives in a slab that was filled when it began: nothing is written to such a slab any more.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shmcache.arena.layout import LENGTH_MASK, LOCATION, OFFSET_SHIFT
from shmcache.arena.slab import Numbers, Slabs
from shmcache.arena.table import Table

Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]


class Census:
    """What a scan found. Records are named by their place in these arrays, slabs by their number.

    `entries` the numbers of the entries that have records     `locations` their locations
    `slabs` the slab of each one's slot                        `rooms` the bytes that the slot takes
    `live` the live bytes of each slab"""

    __slots__ = ("_slabs", "entries", "filled", "live", "locations", "rooms", "slabs", "whole")

    def __init__(self, table: Table, slabs: Slabs, filled: Flags) -> None:
        self._slabs = slabs
        self.filled = filled
        """The slabs that were in use, and filled by nobody any more, when the scan began."""
        column = table.rows()[:, LOCATION].copy()
        self.entries = column.nonzero()[0]
        self.locations = column[self.entries]
        offsets = (self.locations >> np.uint64(OFFSET_SHIFT)).astype(np.int64) & ~7
        lengths = (self.locations & np.uint64(LENGTH_MASK)).astype(np.int64)
        self.slabs: Numbers = (offsets - slabs.first) // slabs.size
        self.rooms: Numbers = slabs.rooms(lengths)
        sound = (self.slabs >= 0) & (self.slabs < slabs.count)
        if not sound.all():  # damaged locations lead nowhere
            self.entries, self.locations, offsets = self.entries[sound], self.locations[sound], offsets[sound]
            lengths, self.slabs, self.rooms = lengths[sound], self.slabs[sound], self.rooms[sound]
        self.live: Numbers = np.bincount(self.slabs, self.rooms, slabs.count).astype(np.int64)
        self.whole: dict[int, tuple[int, int]] = {}
        """Slabs that belong to one long record each: its place in the arrays, and the how-manieth of it the slab is."""
        for place in (lengths > slabs.longest_in_slot).nonzero()[0].tolist():
            for number, piece in enumerate(slabs.pieces(int(offsets[place]), int(lengths[place]))):
                self.whole[slabs.slab_of(piece)] = (place, number)
                self.live[slabs.slab_of(piece)] = slabs.size

    def empty(self) -> list[int]:
        """Return the filled slabs that nothing refers to."""
        found: list[int] = (self.filled & (self.live == 0)).nonzero()[0].tolist()
        return found

    def emptiest(self) -> list[int]:
        """Return the filled slabs that could be emptied by moving, those with the fewest live bytes first."""
        live = np.where(self.filled, self.live, self._slabs.size)
        order = live.argsort(kind="stable")
        return [int(slab) for slab in order[live[order] < self._slabs.size] if int(slab) not in self.whole]

    def records_in(self, slabs: list[int]) -> Numbers:
        """Return the records whose slots lie in some slabs, by place."""
        wanted = np.zeros(self._slabs.count, np.bool_)
        wanted[slabs] = True
        return wanted[self.slabs].nonzero()[0]

    def by_slab(self, slabs: list[int]) -> Iterator[tuple[int, Numbers]]:
        """Yield each slab, in the order given, with the records whose slots lie in it, by place."""
        records = self.records_in(slabs)
        records = records[self.slabs[records].argsort(kind="stable")]
        owners = self.slabs[records]
        for slab in slabs:
            yield slab, records[owners.searchsorted(slab) : owners.searchsorted(slab, "right")]

    def pieces(self) -> dict[int, list[int]]:
        """Return the slabs that each long record has to itself, by the record's place."""
        found: dict[int, list[int]] = {}
        for slab, (place, _) in self.whole.items():
            found.setdefault(place, []).append(slab)
        return found

    def live_bytes(self) -> int:
        """Return the bytes that records take."""
        return int(self.live.sum())
