"""Making room: clean slabs that are full of holes, forget clean records, forget finished families whole."""

from __future__ import annotations

import time

import numpy as np

from shmcache.arena.changes import Changes
from shmcache.arena.critical import Critical
from shmcache.arena.layout import (
    CHAIN,
    COMMIT_SEQUENCE,
    COUNTER,
    DIRTY,
    EVICTIONS,
    FAMILY,
    FLAG_FINISHED,
    FLAG_INDEXED,
    FLAG_PINNED,
    LOCATION,
    LOW,
    MEMBERS,
    QUEUE,
    VERSION,
)
from shmcache.arena.memory import Memory, Stage
from shmcache.arena.ring_ends import Ring
from shmcache.arena.slab import SLOT_BYTES, NoRoom, Slabs
from shmcache.arena.table import Table
from shmcache.errors import ArenaFull

_IN_ONE_COMMIT = 64
"""Records forgotten in one commit: bounds how long the commit lock is held, and the intent."""

_MOST_EVICTED = 1024
_FAMILIES_AT_ONCE = 64


class Room:
    """What an arena does when slabs or entries run out. Counts what it did in `evicted` and `cleaned`."""

    __slots__ = ("_changes", "_critical", "_memory", "_ring", "_slabs", "_table", "_words", "cleaned", "evicted")

    def __init__(self, mapped: Memory, critical: Critical, changes: Changes, write_ring: Ring) -> None:
        self._memory = mapped
        self._words = mapped.words
        self._critical = critical
        self._changes = changes
        self._table: Table = changes.table
        self._slabs: Slabs = changes.slabs
        self._ring = write_ring
        self.cleaned = 0
        self.evicted = 0

    def make(self, lacking: NoRoom, deadline: float) -> None:
        """Free slabs or entries: clean, else evict, else wait for the syncer. Raises ArenaFull.

        Each returns true only if it gained something, so that a caller who tries again and again comes to an end."""
        if time.monotonic() < deadline:
            if (not lacking.of_entries and self.clean()) or self.evict(lacking.of_entries):
                return
            ring = self._ring
            committed = ring.committed_sequence
            if ring.last_sequence > committed:
                ring.request_drain()
                if ring.wait_committed(committed + 1, max(0.0, deadline - time.monotonic())):
                    return
        raise ArenaFull(SLOT_BYTES, "everything in it is in use or waits for the database")

    def clean(self) -> bool:
        """Empty the slab with the most holes by moving what lives in it; return whether that gained room."""
        with self._critical:
            before = self._slabs.free_bytes()
            victim = self._slabs.fullest_of_holes()
        place: int | None = 0
        while victim is not None and place is not None:
            with self._critical:
                if not self._slabs.is_filled(victim):  # others emptied it, and it may be in use anew
                    return True
                stage = self._begin()
                freed: list[int] = []
                try:
                    place = self._slabs.move(stage, self._table, victim, place, freed)
                except NoRoom:
                    return False
                if place is None and self._slabs.live_in(stage, victim):
                    self._critical.publish(stage)
                    stage = self._begin()
                    self._slabs.recount(stage, self._records(), freed)
                self._slabs.give_back(stage, freed)
                self._critical.publish(stage)
                if place is None:
                    self.cleaned += 1
                    return self._slabs.free_bytes() > before
        return False

    def evict(self, entries_too: bool = False) -> bool:
        """Forget clean records: finished families first, then the longest unchanged; return whether any went.

        With `entries_too` only those whose entry goes with them."""
        with self._critical:
            finished = self._finished_families()
        if finished and sum(self.drop_family(key) for key in finished[:_FAMILIES_AT_ONCE]):
            return True
        with self._critical:
            rows = self._table.rows()
            clean = (
                (rows[:, LOCATION] != 0)
                & (rows[:, DIRTY] <= np.uint64(self._ring.committed_sequence))
                & (rows[:, QUEUE] == 0)
                & (rows[:, CHAIN] & np.uint64(FLAG_PINNED) == 0)
            )
            if entries_too:
                clean &= (rows[:, FAMILY] | rows[:, MEMBERS] | rows[:, COUNTER] | rows[:, CHAIN] >> np.uint64(32)) == 0
            candidates = clean.nonzero()[0]
            wanted = min(max(16, len(candidates) // 8), _MOST_EVICTED)
            if wanted < len(candidates):
                candidates = candidates[rows[candidates, VERSION].argpartition(wanted)[:wanted]]
            oldest = [self._table.entry_at(row) for row in candidates]
            for begin in range(0, len(oldest), _IN_ONE_COMMIT):
                stage = self._begin()
                freed: list[int] = []
                for entry in oldest[begin : begin + _IN_ONE_COMMIT]:
                    self._forget(stage, entry, freed)
                self._slabs.give_back(stage, freed)
                self._critical.publish(stage)
            self.evicted += len(oldest)
            return bool(oldest)

    def drop_family(self, key: bytes) -> bool:
        """Forget a key with all its members and theirs, if all are clean; return whether it went.

        All lists of the family are marked incomplete first, so that nobody reads a part of one as the whole."""
        with self._critical:
            root = self._table.find_certainly(key)
            if not root:
                return False
            family = [root]
            for entry in family:
                family.extend(self._table.members(entry) or ())
            words = self._words
            if not all(self._may_go(words, each) for each in family):
                return False
            indexed = [each for each in family if words[each + CHAIN] & FLAG_INDEXED]
            for begin in range(0, len(indexed), _FAMILIES_AT_ONCE):
                stage = self._begin()
                for each in indexed[begin : begin + _FAMILIES_AT_ONCE]:
                    stage[each + CHAIN] = words[each + CHAIN] & ~FLAG_INDEXED
                self._critical.publish(stage)
        gone: bool | None = None
        while gone is None:
            with self._critical:
                gone = self._drop_some(key)
        return gone

    def _drop_some(self, key: bytes) -> bool | None:
        """Forget the first few of a family, the youngest generation first; return None if there are more."""
        root = self._table.find_certainly(key)
        if not root:
            return True
        stage = self._begin()
        freed: list[int] = []
        gone: bool | None = None
        dropped = 0
        while gone is None and dropped < _IN_ONE_COMMIT:
            parent, leaving = 0, root
            while first := stage[leaving + MEMBERS] & LOW:
                parent, leaving = leaving, first
            if not self._may_go(stage, leaving):
                gone = False
                break
            if parent:
                self._table.drop_first_member(stage, parent)
            else:
                gone = True
            self._changes.remove(stage, leaving, freed)
            dropped += 1
        self._slabs.give_back(stage, freed)
        self._critical.publish(stage)
        self.evicted += dropped
        return gone

    def forget_damaged(self, entry: int) -> None:
        """Forget a record whose bytes do not hold what its entry says. Inside the critical section."""
        stage = self._begin()
        version = stage[COMMIT_SEQUENCE]
        stage[entry + LOCATION] = 0
        stage[entry + VERSION] = version
        stage[EVICTIONS] = stage[EVICTIONS] + 1
        self._critical.publish(stage)
        stage = self._begin()
        freed: list[int] = []
        self._slabs.recount(stage, self._records(), freed)
        self._slabs.give_back(stage, freed)
        self._critical.publish(stage)

    def _begin(self) -> Stage:
        stage = self._memory.stage()
        stage[COMMIT_SEQUENCE] = stage[COMMIT_SEQUENCE] + 1
        return stage

    def _may_go(self, words: memoryview | Stage, entry: int) -> bool:
        return words[entry + DIRTY] <= self._ring.committed_sequence and not words[entry + QUEUE]

    def _forget(self, stage: Stage, entry: int, freed: list[int]) -> None:
        """Stage that an entry's record goes; the entry stays where lists, a counter or flags need it."""
        if stage[entry + FAMILY] or stage[entry + MEMBERS] or stage[entry + COUNTER] or stage[entry + CHAIN] >> 32:
            self._slabs.discard(stage, entry, freed)
            stage[entry + LOCATION] = 0
            stage[entry + VERSION] = stage[COMMIT_SEQUENCE]
            stage[EVICTIONS] = stage[EVICTIONS] + 1
        else:
            self._changes.remove(stage, entry, freed)

    def _finished_families(self) -> list[bytes]:
        rows = self._table.rows()
        finished = (
            (rows[:, CHAIN] & np.uint64(FLAG_FINISHED) != 0)
            & (rows[:, DIRTY] <= np.uint64(self._ring.committed_sequence))
            & (rows[:, QUEUE] == 0)
        )
        return [self._table.key_of(self._table.entry_at(row)) for row in finished.nonzero()[0]]

    def _records(self) -> list[tuple[int, int, int]]:
        rows = self._table.rows()
        found = rows[:, LOCATION].nonzero()[0]
        return [(self._table.entry_at(row), int(rows[row, VERSION]), int(rows[row, LOCATION])) for row in found]
