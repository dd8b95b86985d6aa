"""Changing an arena: transactions, and single plain records.

How a commit goes, and what a death after each step leaves (`critical` has the names, at their places):

    locked      the commit lock is ours; if its last holder died, its intent is finished or undone first
                death: nothing had happened
    staged      records and ring entries written to memory that nothing refers to; new words prepared on a Stage
                death: nothing had happened, the bytes lie behind marks that did not move
    intended    the prepared (word, value) pairs copied to the intent, its count stored last
                death: the next holder sees that the first pair was not stored, and drops the intent: undone
    committed   the first pair stored. For a transaction with ring entries this is the ring's TAIL
                death: the next holder sees that it was stored, and stores all pairs again: finished
    applied     all pairs stored
                death: as above; storing them again changes nothing
    cleared     the intent's count is 0
                death: the lock is free, nothing else
    then the lock is released and sleepers are woken (a death before that: they look again when their time is up)

An exception in between (a signal handler's, say) is treated like a death, by the same code.
The steps are in `critical`, what operations stage in `changes`, what happens when there is no room in `room`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from shmcache.arena import layout
from shmcache.arena.changes import Changes, NeedsStripes
from shmcache.arena.counters import Counter, Lanes
from shmcache.arena.layout import (
    CHAIN,
    EVICTIONS,
    FLAG_PLAIN,
    HEAD,
    IDLE_SIGNAL,
    IDLE_WAITERS,
    LATEST_TIME,
    LOCATION,
    QUEUE_SIGNAL,
    QUEUE_WAITERS,
    TAIL,
    VERSION,
)
from shmcache.arena.memory import Memory, Stage
from shmcache.arena.own_lane import OwnLane
from shmcache.arena.reading import Readable
from shmcache.arena.ring import NoRingRoom, RingRegion
from shmcache.arena.ring_ends import Ring
from shmcache.arena.room import Room
from shmcache.arena.slab import NoRoom
from shmcache.arena.transaction import Advance, Append, Conflict, Outcome, Put, Transaction
from shmcache.errors import ArenaDamaged, InvalidValue, RingFull, TransactionTooLarge

T = TypeVar("T")

KEY_BYTES = 16
_TRUSTED_MICROSECONDS = 86_400_000_000


class Changeable(Readable):
    """What can be changed in an arena. A part of `Arena`."""

    def __init__(self, mapped: Memory, lock_wait_seconds: float, ring_wait_seconds: float) -> None:
        super().__init__(mapped, lock_wait_seconds)
        self.ring_wait_seconds = ring_wait_seconds
        placed = mapped.layout
        write = RingRegion(mapped, "write", layout.WRITE_RING_STATE, placed.write_ring, placed.write_ring_size)
        charge = RingRegion(mapped, "charge", layout.CHARGE_RING_STATE, placed.charge_ring, placed.charge_ring_size)
        self._regions = (write, charge)
        self.write_ring = Ring(mapped, self._critical, write)
        self.charge_ring = Ring(mapped, self._critical, charge)
        self._changes = Changes(mapped, self._table, self._slabs, write, charge)
        self._lanes = Lanes(mapped)
        self._room = Room(mapped, self._critical, self._changes, self._stripes, self._lanes, self.write_ring)
        self.own_lane = OwnLane(mapped, self._critical, self._table, self._lanes)

    def time_after(self, known: int) -> int:
        """Return the time in whole microseconds, later than `known` and than any that was written to this arena.

        The clock may be set back; what was read was written before what is written then, all the same. What would be
        more than a day ahead of the clock is no time that this arena was told."""
        now = time.time_ns() // 1000
        latest = self._words[LATEST_TIME]
        if now <= latest <= now + _TRUSTED_MICROSECONDS:
            now = latest + 1
        return now if now > known else known + 1

    def put(self, key: bytes, record: bytes, flags: int = FLAG_PLAIN) -> int:
        """Store a plain record: one that no transaction, ring or list is concerned with; return its version.

        `flags` are set on the entry of a new key: FLAG_PLAIN, and FLAG_PINNED for one that is never evicted.

        The fast way for single keys: writers of different keys hardly ever wait for each other. Raises as `commit`."""
        version = self._stripes.overwrite(key, record)
        if version:
            return version
        entry = self._table.find(key)
        if entry and self._words[entry + CHAIN] & FLAG_PLAIN and len(record) <= self._longest:
            self._with_room(lambda: self._stripes.refill(key))
            version = self._stripes.overwrite(key, record)
            if version:
                return version
        wanted = Transaction(plain=True)
        wanted.operations.append(Put(key, record, None, flags))
        return self.commit(wanted).written[-1][1]

    def commit(self, wanted: Transaction) -> Outcome:
        """Apply a transaction, all of it or nothing.

        Waits for room, on the ring or in the slabs, up to `ring_wait_seconds`. Raises Conflict, CounterTooLow,
        RingFull, ArenaFull, TransactionTooLarge, LockTimeout, InvalidValue for a record or entry that is too long."""
        try:
            if not wanted.plain:
                return self._commit_once(wanted)
        except NeedsStripes:
            wanted.plain = True
        except (NoRingRoom, NoRoom):
            pass  # make room, and again
        except ArenaDamaged:
            if any(len(each.key) != KEY_BYTES for each in wanted.operations if not isinstance(each, Append | Advance)):
                raise InvalidValue(f"a key is {KEY_BYTES} bytes") from None
            raise
        return self._with_room(lambda: self._commit_once(wanted))

    def _with_room(self, work: Callable[[], T]) -> T:
        """Do something that may lack room, on a ring or for records, and make room or wait for it until it is done."""
        deadline: float | None = None
        while True:
            try:
                return work()
            except NoRingRoom as full:
                deadline = deadline or time.monotonic() + self.ring_wait_seconds
                region = full.region
                ring = self.write_ring if region.name == "write" else self.charge_ring
                if not region.used_bytes():
                    raise TransactionTooLarge(
                        f"a transaction with more entries than the {region.name} ring ({region.size:,} bytes) holds"
                    ).of(self._memory.name) from None
                if not ring.wait_for_room(full.head, deadline):
                    full_ring = RingFull(ring.name, region.size, self.ring_wait_seconds)
                    raise full_ring.of(self._memory.name) from None
            except NoRoom as lacking:
                deadline = deadline or time.monotonic() + self.ring_wait_seconds
                self._make_room(lacking, deadline)

    def _commit_once(self, wanted: Transaction) -> Outcome:
        if wanted.plain:
            numbers = [self._stripes.number_of(key) for key in wanted.keys_concerned()]
            with self._critical, self._stripes.hold(numbers):
                outcome, wake = self._apply(wanted)
        else:
            with self._critical:
                outcome, wake = self._apply(wanted)
        if wake:
            for word in wake:
                self._critical.wake(word)
        return outcome

    def _apply(self, wanted: Transaction) -> tuple[Outcome, list[int] | None]:
        lane = self.own_lane.lane or self.own_lane.or_none()
        if wanted.evictions is not None or wanted.expected:
            self._check_expectations(wanted, lane)
        if wanted.time:
            latest = self._words[LATEST_TIME]
            if wanted.time > latest or latest > wanted.time + _TRUSTED_MICROSECONDS:
                self._words[LATEST_TIME] = wanted.time  # at once: should nothing else come of the commit, no harm done
        stage = self._memory.stage()
        outcome = self._changes.stage(wanted, stage, lane)
        wake: list[int] | None = None
        if outcome.write_sequence or outcome.charge_sequence or QUEUE_SIGNAL in stage or IDLE_SIGNAL in stage:
            wake = self._wakeups(stage, outcome)
        self._critical.publish(stage)
        self._words[self.own_lane.commits_word] += 1
        return outcome, wake

    def _check_expectations(self, wanted: Transaction, lane: int) -> None:
        words = self._words
        find = self._table.find_certainly
        meant = wanted.evictions is None or words[EVICTIONS] == wanted.evictions
        if meant:
            for key, (version, seen) in wanted.expected.items():
                # No two records ever have one version, so where it stands in an entry, that is the key's, unchanged.
                if (
                    seen
                    and words[seen + VERSION] == version
                    and self._table.is_entry(seen)
                    and not words[seen + CHAIN] & FLAG_PLAIN
                ):
                    continue
                entry = find(key)
                if entry and words[entry + CHAIN] & FLAG_PLAIN and not wanted.plain:
                    raise NeedsStripes
                if (words[entry + VERSION] if entry and words[entry + LOCATION] else 0) != version:
                    meant = False
                    break
        if not meant:
            self._lanes.count(lane, Counter.CONFLICTS, 1)
            raise Conflict

    def _wakeups(self, stage: Stage, outcome: Outcome) -> list[int]:
        """Return the signals that somebody waits for and that the stage changes; stage a drain that has become due."""
        wake = []
        words = self._words
        write, charge = self._regions
        for region in (write, charge) if outcome.charge_sequence else (write,):
            state = region.state
            limit = words[state + HEAD] + region.high_water
            # Whether the newest entry takes the ring over its high-water mark; where there is none, TAIL stands still.
            if words[state + TAIL] < limit <= stage[state + TAIL]:
                region.ask_to_drain(stage)
                if words[state + layout.DRAIN_WAITERS]:
                    wake.append(state + layout.DRAIN_SIGNAL)
        if QUEUE_SIGNAL in stage and words[QUEUE_WAITERS]:
            wake.append(QUEUE_SIGNAL)
        if IDLE_SIGNAL in stage and words[IDLE_WAITERS]:
            wake.append(IDLE_SIGNAL)
        return wake

    def _make_room(self, lacking: NoRoom, deadline: float) -> None:
        room = self._room
        cleaned, evicted = room.cleaned, room.evicted
        try:
            room.make(lacking, deadline)
        finally:
            self.own_lane.count(Counter.CLEANED_SLABS, room.cleaned - cleaned)
            self.own_lane.count(Counter.EVICTED, room.evicted - evicted)

    def drop_family(self, key: bytes) -> bool:
        """Forget a key with all its members and theirs, if all are clean; return whether it went."""
        return self._room.families.drop(key)
