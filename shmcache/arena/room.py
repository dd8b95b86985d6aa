"""Making room when slabs or entries run out: what nothing refers to, holes, finished families, then CLOCK.

    1 free      slabs that nothing refers to are free again
    2 clean     slabs with the most holes are emptied by moving what lives in them, while that gains enough
    3 shrink    slabs of entries that are not needed any more hold records again
    4 drop      finished families go whole
    5 evict     the slabs filled longest ago are emptied: clean records that nobody has read since the last time are
                forgotten, the others move to the young end and lose their mark (CLOCK, or second chance: Corbato 1968;
                the slabs, in the order in which they were filled, are the clock's face)
    6 wait      for the syncer, if everything is dirty

One process does this at a time, under a lock of its own; it takes the commit lock for a few records at a time, and
readers never wait. A death anywhere leaves what it had done, and the next one goes on.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

import numpy as np

from shmcache.arena.census import Census, Flags
from shmcache.arena.changes import Changes
from shmcache.arena.critical import Critical
from shmcache.arena.layout import (
    CHAIN,
    CLEANING_LOCK_OFFSET,
    COMMIT_SEQUENCE,
    COUNTER,
    DIRTY,
    ENTRIES_LEAVE,
    ENTRIES_USED,
    ENTRY_SLABS,
    EVICTIONS,
    FAMILY,
    FLAG_FINISHED,
    FLAG_INDEXED,
    FLAG_PINNED,
    FLAG_PLAIN,
    FLAG_USED,
    FLAGS,
    FREE_ENTRY,
    FREE_SLABS,
    LENGTH_MASK,
    LOCATION,
    LOW,
    MEMBERS,
    OFFSET_SHIFT,
    POSITION,
    POSITION_END,
    QUEUE,
    READ_LATELY,
    VERSION,
    VERSION_STEP,
)
from shmcache.arena.memory import Memory, Stage
from shmcache.arena.mutex import RobustMutex, is_on_stack
from shmcache.arena.ring_ends import Ring
from shmcache.arena.slab import RESERVED_SLABS, SLOT_BYTES, NoRoom, Numbers, Slabs
from shmcache.arena.stripes import Stripes
from shmcache.arena.table import Table
from shmcache.errors import ArenaError, ArenaFull

_IN_ONE_COMMIT = 64
"""Records moved or forgotten in one commit: bounds how long the commit lock is held, and the intent."""

_FAMILIES_AT_ONCE = 64
_SLABS_AT_ONCE = 16
_WORTH_CLEANING = 0.9
"""A slab with more live bytes than this is not cleaned while there is something to evict."""


class Room:
    """What an arena does when slabs or entries run out. Counts what it did in `evicted` and `cleaned`."""

    __slots__ = (
        "_changes",
        "_critical",
        "_lock",
        "_memory",
        "_net",
        "_ring",
        "_slabs",
        "_stripes",
        "_table",
        "_words",
        "cleaned",
        "evicted",
    )

    def __init__(
        self, mapped: Memory, critical: Critical, changes: Changes, stripes: Stripes, write_ring: Ring
    ) -> None:
        self._memory = mapped
        self._words = mapped.words
        self._critical = critical
        self._changes = changes
        self._table: Table = changes.table
        self._slabs: Slabs = changes.slabs
        self._stripes = stripes
        self._ring = write_ring
        self._lock = RobustMutex("cleaning", mapped.address + CLEANING_LOCK_OFFSET)
        self._net = 0  # slabs gained less slabs taken, by the making of room at hand
        self.cleaned = 0
        self.evicted = 0

    def format(self) -> None:
        """Make the lock. Only for who creates the segment."""
        self._lock.initialize()

    def make(self, lacking: NoRoom, deadline: float) -> None:
        """Free slabs or entries, or wait for the syncer if nothing can be freed before that. Raises ArenaFull.

        Returns only if it, or somebody else meanwhile, gained something: who tries again and again comes to an end."""
        if self._alone(lambda: self._gain(lacking)):
            return
        ring = self._ring
        committed = ring.committed_sequence
        if ring.last_sequence > committed and time.monotonic() < deadline:
            ring.request_drain()
            if ring.wait_committed(committed + 1, max(0.0, deadline - time.monotonic())):
                return
        raise ArenaFull(SLOT_BYTES, "everything in it is in use or waits for the database")

    def sweep(self) -> int:
        """Free every slab that nothing refers to; return how many. What a crash has left is found here."""
        return self._alone(lambda: self._free(self._census()))

    def clean(self) -> int:
        """Empty the slabs with the most holes while that gains anything; return how many were emptied."""

        def clean() -> int:
            before = self.cleaned
            self._clean(self._census(), self._slabs.count, 1.0)
            return self.cleaned - before

        return self._alone(clean)

    def evict(self) -> int:
        """Forget clean records as if slabs had run out; return how many went."""

        def evict() -> int:
            before = self.evicted
            if not self._drop_finished():
                self._turn_clock(self._census(), self._words[FREE_SLABS] + 1)
            return self.evicted - before

        return self._alone(evict)

    def _alone(self, work: Callable[[], int]) -> int:
        lock = self._lock
        try:
            result = lock.acquire(self._critical.lock_wait_seconds)
            if result == errno.EDEADLK and is_on_stack(_ALONE, 1):
                raise ArenaError(
                    "the arena was used again from inside its cleaning (by a signal handler, a destructor)"
                )
            lock.inherit(result)
            return work()
        finally:
            if lock.is_held_here() and not is_on_stack(_ALONE, 1):
                lock.release()

    def _gain(self, lacking: NoRoom) -> int:
        words = self._words
        self._net = 0
        table = self._table
        if words[ENTRIES_LEAVE]:  # whoever was at it has died
            with self._critical:
                table.relist_free(leaving=False)
        if lacking.entries:
            while table.free < lacking.entries and self._grow():
                pass
            if table.free < lacking.entries:
                self._gain_slabs(2 + RESERVED_SLABS)
                while table.free < lacking.entries and self._grow():
                    pass
            return int(table.free >= lacking.entries)
        wanted = lacking.slabs + RESERVED_SLABS
        if words[FREE_SLABS] < wanted:
            self._gain_slabs(wanted)
        return int(self._net > 0 or words[FREE_SLABS] >= wanted)

    def _gain_slabs(self, wanted: int) -> None:
        """Go through the steps until there are as many free slabs as wanted, and some more."""
        words = self._words
        wanted += min(8, self._slabs.count // 64)
        census = self._census()
        self._free(census)
        if words[FREE_SLABS] < wanted:
            self._clean(census, wanted, _WORTH_CLEANING)
        while words[FREE_SLABS] < wanted and self._shrink():
            pass
        if words[FREE_SLABS] < wanted and self._drop_finished():
            census = self._census()
            self._free(census)
            self._clean(census, wanted, _WORTH_CLEANING)
        if words[FREE_SLABS] < wanted:
            self._turn_clock(self._census(), wanted)
        if self._net <= 0:
            self._close_filling()
            self._turn_clock(self._census(), wanted)
        if self._net <= 0:
            self._clean(self._census(), wanted, 1.0)

    def _close_filling(self) -> None:
        """Count the slabs that are being filled as filled: what lies in them may go as well."""
        with self._critical, self._stripes.hold_all():
            stage = self._begin()
            self._stripes.close_slabs(stage)
            stage[POSITION] = stage[POSITION_END] = 0
            self._critical.publish(stage)

    def _census(self) -> Census:
        with self._critical, self._stripes.hold_all():
            filled = self._slabs.filled()
        return Census(self._table, self._slabs, filled)

    def _free(self, census: Census) -> int:
        empty = census.empty()
        self._give_back(empty)
        return len(empty)

    def _give_back(self, slabs: list[int]) -> None:
        for begin in range(0, len(slabs), 1024):
            with self._critical:
                stage = self._begin()
                for slab in slabs[begin : begin + 1024]:
                    self._slabs.give_back(stage, slab)
                self._publish(stage)

    def _publish(self, stage: Stage) -> None:
        before = self._words[FREE_SLABS]
        self._critical.publish(stage)
        self._net += self._words[FREE_SLABS] - before

    def _clean(self, census: Census, wanted: int, worth: float) -> None:
        """Empty slabs until as many as wanted are free, but none that has more live bytes than it is worth."""
        size = self._slabs.size
        live = 0
        victims: list[int] = []
        for slab in census.emptiest():
            if self._words[FREE_SLABS] + len(victims) - live // size >= wanted or census.live[slab] > worth * size:
                break
            victims.append(slab)
            live += int(census.live[slab])
        if len(victims) - live // size < 1:
            return
        for slab, records in census.by_slab(victims):
            if not self._move(census, records):
                return
            self._give_back([slab])
            self.cleaned += 1

    def _move(self, census: Census, records: Numbers) -> bool:
        table, slabs = self._table, self._slabs
        buffer = self._memory.buffer
        entries = census.entries[records].tolist()
        locations = census.locations[records].tolist()
        rooms = census.rooms[records].tolist()
        for begin in range(0, len(entries), _IN_ONE_COMMIT):
            with self._critical, self._stripes.hold_all():
                stage = self._begin()
                part = slice(begin, begin + _IN_ONE_COMMIT)
                for number, location, room in zip(entries[part], locations[part], rooms[part], strict=True):
                    entry = table.entry_at(number)
                    if self._words[entry + LOCATION] != location:
                        continue
                    try:
                        target = slabs.take_for_move(stage, room)
                    except NoRoom:
                        return False
                    offset = location >> OFFSET_SHIFT & ~7
                    buffer[target : target + room] = buffer[offset : offset + room]
                    stage[entry + LOCATION] = target << OFFSET_SHIFT | location & LENGTH_MASK
                    if self._words[entry + CHAIN] >= READ_LATELY:
                        stage[entry + CHAIN] = self._words[entry + CHAIN] % READ_LATELY
                self._publish(stage)
        return True

    # Forgetting

    def _turn_clock(self, census: Census, wanted: int) -> None:
        """Empty the slabs filled longest ago of records that may go, until as many as wanted are free."""
        slabs = self._slabs
        words = self._words
        rows = self._table.rows()
        entries = census.entries
        may_go = (
            (rows[entries, DIRTY] <= np.uint64(self._ring.committed_sequence))
            & (rows[entries, QUEUE] == 0)
            & (rows[entries, CHAIN] & np.uint64(FLAG_PINNED) == 0)
        )
        unread = may_go & (rows[entries, CHAIN] < np.uint64(READ_LATELY))
        del rows
        # The slabs that a long record has to itself are gained with it, wherever its slot lies.
        pieces = census.pieces()
        gains = census.rooms.copy()
        for place, own in pieces.items():
            gains[place] += len(own) * slabs.size
        gain = slabs.size - census.live + np.bincount(census.slabs, may_go * gains, slabs.count).astype(np.int64)
        candidates = (census.filled & (gain >= slabs.size // 8)).nonzero()[0]
        oldest = candidates[slabs.stamps()[candidates].argsort(kind="stable")].tolist()
        spared = 0
        for begin in range(0, len(oldest), _SLABS_AT_ONCE):
            if words[FREE_SLABS] >= wanted:
                return
            for slab, inside in census.by_slab(oldest[begin : begin + _SLABS_AT_ONCE]):
                if words[FREE_SLABS] >= wanted:
                    return
                going = inside[unread[inside]]
                if int(gains[going].sum()) + slabs.size - census.live[slab] < slabs.size // 4:
                    # Nearly all were read lately. Where all the arena is, some go nevertheless, before all is moved.
                    spared += 1
                    if spared > slabs.count // 8:
                        going = inside[may_go[inside]]
                        going = going[: max(1, len(going) // 2)]
                self._forget(census, going)
                gone = going[self._is_gone(census, going)]
                self._give_back([each for place in gone.tolist() for each in pieces.get(place, ())])
                if self._move(census, np.setdiff1d(inside, gone, assume_unique=True)):
                    self._give_back([slab])

    def _is_gone(self, census: Census, records: Numbers) -> Flags:
        """Return which records are no longer where the census found them."""
        rows = self._table.rows()
        gone: Flags = rows[census.entries[records], LOCATION] != census.locations[records]
        return gone

    def _forget(self, census: Census, records: Numbers) -> None:
        words = self._words
        entries = census.entries[records].tolist()
        locations = census.locations[records].tolist()
        for begin in range(0, len(entries), _IN_ONE_COMMIT):
            with self._critical, self._stripes.hold_all():
                stage = self._begin()
                part = slice(begin, begin + _IN_ONE_COMMIT)
                for number, location in zip(entries[part], locations[part], strict=True):
                    entry = self._table.entry_at(number)
                    if words[entry + LOCATION] == location and self._may_go(words, entry):
                        self._forget_one(stage, entry)
                        self.evicted += 1
                self._publish(stage)

    def _forget_one(self, stage: Stage, entry: int) -> None:
        """Stage that an entry's record goes; the entry stays where lists, a counter or flags need it."""
        if (
            stage[entry + FAMILY]
            or stage[entry + MEMBERS]
            or stage[entry + COUNTER]
            or stage[entry + CHAIN] & FLAGS & ~(FLAG_PLAIN | FLAG_USED)
        ):
            stage[entry + LOCATION] = 0
            stage[entry + VERSION] = stage[COMMIT_SEQUENCE]
            stage[EVICTIONS] = stage[EVICTIONS] + 1
        else:
            self._changes.remove(stage, entry)

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
            with self._critical, self._stripes.hold_all():
                gone = self._drop_some(key)
        return gone

    def _drop_some(self, key: bytes) -> bool | None:
        """Forget the first few of a family, the youngest generation first; return None if there are more."""
        root = self._table.find_certainly(key)
        if not root:
            return True
        stage = self._begin()
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
            self._changes.remove(stage, leaving)
            dropped += 1
        self._critical.publish(stage)
        self.evicted += dropped
        return gone

    def _drop_finished(self) -> int:
        rows = self._table.rows()
        finished = (
            (rows[:, CHAIN] & np.uint64(FLAG_FINISHED) != 0)
            & (rows[:, DIRTY] <= np.uint64(self._ring.committed_sequence))
            & (rows[:, QUEUE] == 0)
        )
        numbers = finished.nonzero()[0][:_FAMILIES_AT_ONCE]
        del rows
        return sum(self.drop_family(self._table.key_of(self._table.entry_at(number))) for number in numbers)

    def settle_record(self, key: bytes, entry: int) -> None:
        """Store the version of an entry's slot, where a put died before it did; forget a record that is none.

        Inside the critical section, with the key's stripe held."""
        stage = self._begin()
        version = self._slabs.version_at(self._words[entry + LOCATION])
        if version and self._slabs.read(key, self._words[entry + LOCATION], version) is not None:
            stage[entry + VERSION] = version
        else:
            stage[entry + LOCATION] = 0
            stage[entry + VERSION] = stage[COMMIT_SEQUENCE]
            stage[EVICTIONS] = stage[EVICTIONS] + 1
        self._critical.publish(stage)

    # Entries

    def _grow(self) -> int:
        """Make the last slab that is none yet one of entries, moving what lives in it; return whether that was done."""
        slabs, words = self._slabs, self._words
        slab = slabs.count - 1 - words[ENTRY_SLABS]
        if slab < slabs.count // 3 or words[FREE_SLABS] <= RESERVED_SLABS:
            return 0
        for _ in range(2):
            with self._critical, self._stripes.hold_all():
                stage = self._begin()
                if slabs.make_entries(stage, slab):
                    self._table.grow(stage)
                    self._critical.publish(stage)
                    return 1
            # It is in use: nobody may go on filling it.
            self._close_filling()
            census = self._census()
            if slab in census.whole:
                self._move_piece(census, slab)
            elif not self._move(census, census.records_in([slab])):
                return 0
            self._give_back([slab])
        return 0

    def _shrink(self) -> bool:
        """Give back the slab that became entries last, if there are far more free entries than needed.

        Returns False, and has given nothing back, if one in it is part of a list and cannot move."""
        table, words = self._table, self._words
        slab = self._slabs.count - words[ENTRY_SLABS]
        leaving = table.last_slab()
        if not words[ENTRY_SLABS] or table.free < len(leaving) + max(len(leaving), words[ENTRIES_USED] // 8):
            return False
        with self._critical, self._stripes.hold_all():
            table.relist_free(leaving=True)
        done = False
        try:
            for begin in range(leaving.start, leaving.stop, _IN_ONE_COMMIT):
                with self._critical, self._stripes.hold_all():
                    stage = self._begin()
                    for number in range(begin, min(begin + _IN_ONE_COMMIT, leaving.stop)):
                        entry = table.entry_at(number)
                        if stage[entry + CHAIN] & FLAG_USED:
                            if stage[entry + FAMILY] | stage[entry + MEMBERS] | stage[entry + QUEUE]:
                                return False
                            if not stage[FREE_ENTRY]:
                                return False  # others took them all meanwhile
                            table.move(stage, entry)
                    self._critical.publish(stage)
            with self._critical:
                stage = self._begin()
                table.shrink(stage)
                self._slabs.give_back(stage, slab)
                self._publish(stage)
            done = True
        finally:
            if not done:
                with self._critical:
                    table.relist_free(leaving=False)
        return True

    def _move_piece(self, census: Census, slab: int) -> None:
        """Move the slab of a long record to another one."""
        place, number = census.whole[slab]
        slabs = self._slabs
        entry = self._table.entry_at(census.entries[place])
        location = int(census.locations[place])
        with self._critical, self._stripes.hold_all():
            if self._words[entry + LOCATION] != location:
                return  # it is another record by now, and the slab nobody's
            stage = self._begin()
            target = slabs.take_slab(stage)
            begin = slabs.first + slab * slabs.size
            self._memory.buffer[target : target + slabs.size] = self._memory.buffer[begin : begin + slabs.size]
            stage[slabs.piece_word(location >> OFFSET_SHIFT & ~7, number)] = target
            self._critical.publish(stage)

    def _begin(self) -> Stage:
        stage = self._memory.stage()
        stage[COMMIT_SEQUENCE] = stage[COMMIT_SEQUENCE] + VERSION_STEP
        return stage

    def _may_go(self, words: memoryview | Stage, entry: int) -> bool:
        return words[entry + DIRTY] <= self._ring.committed_sequence and not words[entry + QUEUE]


_ALONE = Room._alone.__code__
