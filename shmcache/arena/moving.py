"""Moving and forgetting the records that a census found, a few in one commit, and giving slabs back.

A record is moved or forgotten only where the census found it: whatever was changed since then is somewhere else.
"""

from __future__ import annotations

from shmcache.arena.census import Census, Flags
from shmcache.arena.changes import Changes
from shmcache.arena.critical import Critical
from shmcache.arena.layout import (
    CHAIN,
    COMMIT_SEQUENCE,
    COUNTER,
    DIRTY,
    EVICTIONS,
    FAMILY,
    FLAG_PLAIN,
    FLAG_USED,
    FLAGS,
    FREE_SLABS,
    LENGTH_MASK,
    LOCATION,
    MEMBERS,
    OFFSET_SHIFT,
    POSITION,
    POSITION_END,
    QUEUE,
    READ_LATELY,
    READ_LATELY_BYTE,
    VERSION,
    VERSION_STEP,
    WORD,
)
from shmcache.arena.memory import Memory, Stage
from shmcache.arena.ring_ends import Ring
from shmcache.arena.slab import NoRoom, Numbers, Slabs
from shmcache.arena.stripes import Stripes
from shmcache.arena.table import Table

KEEPING_FLAGS = FLAGS & ~(FLAG_PLAIN | FLAG_USED)
"""Flags for whose sake an entry stays when its record goes."""

IN_ONE_COMMIT = 64
"""Records moved or forgotten in one commit: bounds how long the commit lock is held, and the intent."""

_SLABS_IN_ONE_COMMIT = 1024


class Mover:
    """What is done to records to make room.

    `evicted` counts the records forgotten, `gained` the slabs given back less those taken."""

    def __init__(
        self, mapped: Memory, critical: Critical, changes: Changes, stripes: Stripes, write_ring: Ring
    ) -> None:
        self.memory = mapped
        self.words = mapped.words
        self.critical = critical
        self.table: Table = changes.table
        self.slabs: Slabs = changes.slabs
        self.stripes = stripes
        self.ring = write_ring
        self.evicted = 0
        self.gained = 0
        self._remove = changes.remove

    def begin(self) -> Stage:
        """Return a stage for a commit. Inside the critical section."""
        stage = self.memory.stage()
        stage[COMMIT_SEQUENCE] = stage[COMMIT_SEQUENCE] + VERSION_STEP
        return stage

    def publish(self, stage: Stage) -> None:
        """Store what is staged. Inside the critical section."""
        before = self.words[FREE_SLABS]
        self.critical.publish(stage)
        self.gained += self.words[FREE_SLABS] - before

    def census(self) -> Census:
        """Return what lives where."""
        with self.critical, self.stripes.hold_all():
            filled = self.slabs.filled()
        return Census(self.table, self.slabs, filled)

    def may_go(self, words: memoryview | Stage, entry: int) -> bool:
        """Say whether an entry's record is in the database as it is here, and nobody is at work on it."""
        return words[entry + DIRTY] <= self.ring.committed_sequence and not words[entry + QUEUE]

    def give_back(self, slabs: list[int]) -> None:
        """Free slabs in use that nothing refers to."""
        for begin in range(0, len(slabs), _SLABS_IN_ONE_COMMIT):
            with self.critical:
                stage = self.begin()
                for slab in slabs[begin : begin + _SLABS_IN_ONE_COMMIT]:
                    self.slabs.give_back(stage, slab)
                self.publish(stage)

    def close_filling(self) -> None:
        """Count the slabs that are being filled as filled: what lies in them may go as well."""
        with self.critical, self.stripes.hold_all():
            stage = self.begin()
            self.stripes.close_slabs(stage)
            stage[POSITION] = stage[POSITION_END] = 0
            self.publish(stage)

    def move(self, census: Census, records: Numbers) -> bool:
        """Move records to the young end; return False if there was no slab left to move them to."""
        table, slabs = self.table, self.slabs
        buffer = self.memory.buffer
        entries = census.entries[records].tolist()
        locations = census.locations[records].tolist()
        rooms = census.rooms[records].tolist()
        for begin in range(0, len(entries), IN_ONE_COMMIT):
            with self.critical, self.stripes.hold_all():
                stage = self.begin()
                part = slice(begin, begin + IN_ONE_COMMIT)
                for number, location, room in zip(entries[part], locations[part], rooms[part], strict=True):
                    entry = table.entry_at(number)
                    if self.words[entry + LOCATION] != location:
                        continue
                    try:
                        target = slabs.take_for_move(stage, room)
                    except NoRoom:
                        return False
                    offset = location >> OFFSET_SHIFT & ~7
                    buffer[target : target + room] = buffer[offset : offset + room]
                    stage[entry + LOCATION] = target << OFFSET_SHIFT | location & LENGTH_MASK
                    if self.words[entry + CHAIN] >= READ_LATELY:
                        stage[entry + CHAIN] = self.words[entry + CHAIN] % READ_LATELY
                self.publish(stage)
        return True

    def clear_marks(self, entries: Numbers) -> None:
        """Mark entries, by their numbers, as not read lately: as bytes, without a lock, as readers mark them."""
        buffer = self.memory.buffer
        for number in entries.tolist():
            buffer[self.table.entry_at(number) * WORD + READ_LATELY_BYTE] = 0

    def is_gone(self, census: Census, records: Numbers) -> Flags:
        """Return which records are no longer where the census found them."""
        rows = self.table.rows()
        gone: Flags = rows[census.entries[records], LOCATION] != census.locations[records]
        return gone

    def forget(self, census: Census, records: Numbers) -> None:
        """Forget records that may go."""
        words = self.words
        entries = census.entries[records].tolist()
        locations = census.locations[records].tolist()
        for begin in range(0, len(entries), IN_ONE_COMMIT):
            with self.critical, self.stripes.hold_all():
                stage = self.begin()
                part = slice(begin, begin + IN_ONE_COMMIT)
                for number, location in zip(entries[part], locations[part], strict=True):
                    entry = self.table.entry_at(number)
                    if words[entry + LOCATION] == location and self.may_go(words, entry):
                        self._forget_one(stage, entry)
                        self.evicted += 1
                self.publish(stage)

    def _forget_one(self, stage: Stage, entry: int) -> None:
        """Stage that an entry's record goes; the entry stays where lists, a counter or flags need it."""
        if (
            stage[entry + FAMILY]
            or stage[entry + MEMBERS]
            or stage[entry + COUNTER]
            or stage[entry + CHAIN] & KEEPING_FLAGS
        ):
            stage[entry + LOCATION] = 0
            stage[entry + VERSION] = stage[COMMIT_SEQUENCE]
            stage[EVICTIONS] = stage[EVICTIONS] + 1
        else:
            self._remove(stage, entry)
