"""The arena: one segment of shared memory, its table, slabs, rings and work queue, changed by commits.

How a commit goes, and what a death after each step leaves (the names are those of `memory.fault_point`):

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
"""

from __future__ import annotations

import os
import time
import uuid
import weakref
from array import array
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np

from shmcache.arena import futex, layout, memory, segment, slab, transaction, work
from shmcache.arena.counters import Counter, Lanes, Process
from shmcache.arena.layout import (
    CHAIN,
    COMMIT_LOCK_OFFSET,
    COMMIT_SEQUENCE,
    COUNTER,
    DIRTY,
    ENTRY_WORDS,
    EVICTIONS,
    FAMILY,
    FLAG_FINISHED,
    FLAG_INDEXED,
    FLAG_PINNED,
    IDLE_SIGNAL,
    IDLE_WAITERS,
    INTENT_OFFSET,
    INTENT_PAIRS,
    LOCATION,
    LOW,
    MEMBERS,
    OUTSTANDING,
    QUEUE,
    QUEUE_HEAD,
    QUEUE_SIGNAL,
    QUEUE_WAITERS,
    RECOVERIES,
    VERSION,
    WORD,
)
from shmcache.arena.memory import Memory, Stage
from shmcache.arena.mutex import RobustMutex
from shmcache.arena.ring import Entry, NoRingRoom, RingRegion
from shmcache.arena.slab import NoRoom, Slabs
from shmcache.arena.table import Table
from shmcache.arena.transaction import Conflict, CounterTooLow, Outcome, Transaction
from shmcache.errors import ArenaError, ArenaFull, InvalidValue, RingFull, TransactionTooLarge

_INTENT_COUNT = INTENT_OFFSET // WORD
_INTENT = _INTENT_COUNT + 2
_SIGNED = 1 << 63
_WRAP = 1 << 64
_LARGEST_TURN_SECONDS = 1.0

_open_arenas: weakref.WeakSet[Arena] = weakref.WeakSet()


def _after_fork() -> None:
    for arena in _open_arenas:
        arena._forked()


os.register_at_fork(after_in_child=_after_fork)


class Found(NamedTuple):
    """A record read from the arena: its entry, its version, its bytes."""

    entry: int
    version: int
    record: bytes


class Arena:
    """An attached arena. Make one with `create` or `attach`; a process forked afterwards uses the same object.

    | what                   | survives                                                            |
    |------------------------|---------------------------------------------------------------------|
    | fork                   | yes; the child takes a lane of its own at its first need            |
    | end of a thread        | yes, unless it was the one that entered: then its claims go back    |
    | end or kill of a process | the arena stays as it is; claims go back by `release_dead`        |
    | reboot                 | no: shared memory is gone, what was committed is in the database    |
    """

    def __init__(self, name: str, mapped: Memory, lock_wait: float = 30.0, ring_wait: float = 10.0) -> None:
        self.name = name
        self.lock_wait_seconds = lock_wait
        self.ring_wait_seconds = ring_wait
        self._memory = mapped
        self._words = mapped.words
        self._lock = RobustMutex("commit", mapped.address + COMMIT_LOCK_OFFSET)
        self._inside = False
        self._table = Table(mapped)
        self._slabs = Slabs(mapped)
        self._lanes = Lanes(mapped)
        self._lane = 0
        self._role = "other"
        placed = mapped.layout
        write = RingRegion(mapped, "write", layout.WRITE_RING_STATE, placed.write_ring, placed.write_ring_size)
        charge = RingRegion(mapped, "charge", layout.CHARGE_RING_STATE, placed.charge_ring, placed.charge_ring_size)
        self._regions = {"write": write, "charge": charge}
        self.write_ring = Ring(self, write)
        self.charge_ring = Ring(self, charge)
        self.identity = self._words[layout.IDENTITY_WORD].to_bytes(8, "little") + self._words[
            layout.IDENTITY_WORD + 1
        ].to_bytes(8, "little")
        self.arena_id = str(
            uuid.UUID(int=self._words[layout.ARENA_ID_WORD] << 64 | self._words[layout.ARENA_ID_WORD + 1])
        )
        _open_arenas.add(self)

    @classmethod
    def create(cls, name: str, size_bytes: int, identity: bytes = bytes(16), **waits: float) -> Self:
        """Make a segment of about `size_bytes` with all its pages reserved, and attach to it.

        `identity` is 16 bytes that say what its contents belong to. Raises ArenaExists, SharedMemoryTooSmall,
        ArenaUnusable, ValueError for a size under 4 MiB."""
        planned = layout.plan(size_bytes)
        mapped = Memory(segment.create_segment(name, planned), planned)
        words = mapped.words
        words[layout.MAGIC_WORD] = layout.MAGIC
        words[layout.LAYOUT_WORD] = layout.LAYOUT_HASH
        words[layout.SIZE_WORD] = planned.size
        for index, number in enumerate(planned[1:8]):
            words[layout.LANE_COUNT_WORD + index] = number
        random = uuid.uuid4().int
        words[layout.ARENA_ID_WORD] = random >> 64
        words[layout.ARENA_ID_WORD + 1] = random & (_WRAP - 1)
        words[layout.IDENTITY_WORD] = int.from_bytes(identity[:8], "little")
        words[layout.IDENTITY_WORD + 1] = int.from_bytes(identity[8:], "little")
        arena = cls(name, mapped, **waits)
        arena._lock.initialize()
        arena._lanes.format()
        arena._table.format()
        arena._slabs.format()
        words[COMMIT_SEQUENCE] = 1
        # The maker is in its lane before anybody can look: an arena without a living process counts as left over.
        with arena._locked():
            arena._lane_now()
        words[layout.READY_WORD] = 1
        return arena

    @classmethod
    def attach(cls, name: str, **waits: float) -> Self:
        """Attach to an existing arena by its name alone. Raises ArenaMissing, ArenaUnusable."""
        attached, placed = segment.attach_segment(name)
        return cls(name, Memory(attached, placed), **waits)

    def close(self) -> None:
        """Give back this process's lane and unmap the segment."""
        if self._lane:
            with self._locked():
                self._lanes.leave(self._lane)
            self._lane = 0
        _open_arenas.discard(self)
        self._memory.release()

    def unlink(self) -> None:
        """Remove the segment from /dev/shm. Who has it mapped keeps it until they close it."""
        segment.unlink_segment(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def read(self, key: bytes) -> Found | None:
        """Return a key's record, or None if the arena does not have it. Takes no lock on a hit."""
        words = self._words
        find = self._table.find
        for _ in range(4):
            entry = find(key)
            if not entry:
                break
            version = words[entry + VERSION]
            location = words[entry + LOCATION]
            if version and location:
                record = self._slabs.read(location, entry, version)
                if record is not None and words[entry + VERSION] == version and self._table.key_of(entry) == key:
                    return Found(entry, version, record)
        with self._locked():
            entry = find(key)
            if not entry or not words[entry + LOCATION]:
                return None
            version = words[entry + VERSION]
            record = self._slabs.read(words[entry + LOCATION], entry, version)
            if record is not None:
                return Found(entry, version, record)
            self._forget_damaged(entry)
            return None

    def version(self, key: bytes) -> int:
        """Return the version of a key's record, 0 if there is none (proved under the lock)."""
        entry = self._table.find(key)
        if entry and self._words[entry + LOCATION]:
            version: int = self._words[entry + VERSION]
            return version
        with self._locked():
            entry = self._table.find(key)
            return self._words[entry + VERSION] if entry and self._words[entry + LOCATION] else 0

    def version_words(self) -> memoryview:
        """Return the words of the segment: `words[found.entry]` is the version of that entry's record now."""
        return self._words

    def counter(self, key: bytes) -> int | None:
        """Return the signed counter of a key, None if the key has no entry."""
        with self._locked():
            entry = self._table.find(key)
            return _signed(self._words[entry + COUNTER]) if entry else None

    def members(self, key: bytes) -> list[bytes] | None:
        """Return the keys of a key's members, oldest first; None if the key has no complete list of them."""
        entry = self._table.find(key)
        found = self._table.members(entry) if entry and self._words[entry + CHAIN] & FLAG_INDEXED else None
        if found is not None and self._table.key_of(entry) == key:
            keys = [self._table.key_of(member) for member in found]
            if all(self._words[member + FAMILY] >> 32 == entry for member in found):
                return keys
        with self._locked():
            entry = self._table.find(key)
            if not entry or not self._words[entry + CHAIN] & FLAG_INDEXED:
                return None
            return [self._table.key_of(member) for member in self._table.members(entry) or ()]

    def is_indexed(self, key: bytes) -> bool:
        """Say whether a key has a complete list of its members."""
        entry = self._table.find(key)
        if entry and self._words[entry + CHAIN] & FLAG_INDEXED and self._table.key_of(entry) == key:
            return True
        with self._locked():
            entry = self._table.find(key)
            return bool(entry and self._words[entry + CHAIN] & FLAG_INDEXED)

    def evictions(self) -> int:
        """Return the number that changes whenever a key is forgotten: the lease of a fill."""
        evictions: int = self._words[EVICTIONS]
        return evictions

    # Changing

    def commit(self, wanted: Transaction) -> Outcome:
        """Apply a transaction, all of it or nothing.

        Waits for room, on the ring or in the slabs, up to `ring_wait_seconds`. Raises Conflict, CounterTooLow,
        RingFull, ArenaFull, TransactionTooLarge, LockTimeout, InvalidValue for a record or entry that is too long."""
        deadline: float | None = None
        while True:
            try:
                return self._commit_once(wanted)
            except NoRingRoom as full:
                deadline = deadline or time.monotonic() + self.ring_wait_seconds
                ring = self.write_ring if full.region.name == "write" else self.charge_ring
                if not ring._wait_for_room(full.head, deadline):
                    raise RingFull(ring.name, full.region.size, self.ring_wait_seconds) from None
            except NoRoom:
                deadline = deadline or time.monotonic() + self.ring_wait_seconds
                self._make_room(deadline)

    def _commit_once(self, wanted: Transaction) -> Outcome:
        with self._locked():
            stage = Stage(self._words)
            appended = [0, 0]
            freed: list[int] = []
            counters: dict[bytes, int] = {}
            self._check_expectations(wanted)
            # The ring's tail is staged first, which makes it the commit point.
            for operation in wanted.operations:
                if type(operation) is transaction.Append:
                    region = self._regions[operation.ring]
                    if len(operation.payload) > region.longest_payload:
                        raise InvalidValue(
                            f"an entry of {len(operation.payload):,} bytes: the {region.name} ring takes "
                            f"{region.longest_payload:,}; set SHMCACHE_ARENA_SIZE higher"
                        )
                    appended[region.name == "charge"] = region.append(stage, operation.kind, operation.payload)
            version = stage[COMMIT_SEQUENCE] + 1
            stage[COMMIT_SEQUENCE] = version
            for operation in wanted.operations:
                if type(operation) is transaction.Put:
                    self._put(stage, operation, version, appended[0], freed)
                elif type(operation) is not transaction.Append:
                    self._change(stage, operation, freed, counters)
            self._slabs.give_back(stage, freed)
            wake = self._wakeups(stage, appended)
            self._publish(stage)
            self._count(Counter.COMMITS, 1)
        for word in wake:
            futex.wake(self._memory.address + word * WORD)
        return Outcome(appended[0], appended[1], counters)

    def _check_expectations(self, wanted: Transaction) -> None:
        words = self._words
        if wanted.evictions is not None and words[EVICTIONS] != wanted.evictions:
            raise Conflict
        for key, version in wanted.expected.items():
            entry = self._table.find(key)
            if (words[entry + VERSION] if entry and words[entry + LOCATION] else 0) != version:
                self._count(Counter.CONFLICTS, 1)
                raise Conflict

    def _put(self, stage: Stage, put: transaction.Put, version: int, sequence: int, freed: list[int]) -> None:
        if len(put.record) > self._slabs.longest_record:
            raise InvalidValue(
                f"a record of {len(put.record):,} bytes: this arena takes {self._slabs.longest_record:,}; "
                "set SHMCACHE_ARENA_SIZE higher"
            )
        entry = self._table.find_staged(stage, put.key)
        if not entry:
            entry = self._insert(stage, put.key)
            if put.parent is not None:
                parent = self._table.find_staged(stage, put.parent)
                if not parent:
                    raise Conflict
                self._table.adopt(stage, parent, entry)
        old = stage[entry + LOCATION]
        if old:
            if stage[entry + VERSION] == version:
                # Written twice in one transaction: a version of its own keeps the two slots apart.
                version = stage[COMMIT_SEQUENCE] + 1
                stage[COMMIT_SEQUENCE] = version
            self._slabs.discard(stage, old, freed)
        location = self._slabs.write(stage, entry, version, put.record)
        stage[entry + LOCATION] = location
        stage[entry + VERSION] = version
        if sequence:
            stage[entry + DIRTY] = sequence
        if put.flags:
            stage[entry + CHAIN] = stage[entry + CHAIN] | put.flags

    def _change(
        self, stage: Stage, operation: transaction.Operation, freed: list[int], counters: dict[bytes, int]
    ) -> None:
        find = self._table.find_staged
        match operation:
            case transaction.Touch(key, set_flags, clear_flags):
                entry = find(stage, key) or self._insert(stage, key)
                stage[entry + CHAIN] = stage[entry + CHAIN] & ~clear_flags | set_flags
            case transaction.Delete(key):
                entry = find(stage, key)
                if entry and not (
                    stage[entry + FAMILY] | stage[entry + MEMBERS] | stage[entry + QUEUE] | stage[entry + COUNTER]
                ):
                    self._remove(stage, entry, freed)
            case transaction.Enqueue(key, kind, counter_key):
                entry = find(stage, key) or self._insert(stage, key)
                counter = find(stage, counter_key) or self._insert(stage, counter_key)
                work.enqueue(stage, entry, kind, counter)
            case transaction.Release(key, counter_key, follow_kind):
                entry = find(stage, key)
                counter = find(stage, counter_key)
                if entry and counter:
                    work.release(stage, entry, counter, follow_kind)
            case transaction.Add(key, amount, minimum):
                entry = find(stage, key)
                if not entry:
                    raise Conflict
                value = _signed(stage[entry + COUNTER]) + amount
                if minimum is not None and value < minimum:
                    raise CounterTooLow(key, value - amount)
                if not -_SIGNED <= value < _SIGNED:
                    raise InvalidValue(f"a counter cannot hold {value}")
                stage[entry + COUNTER] = value % _WRAP
                counters[key] = value
            case transaction.SetCounter(key, value):
                entry = find(stage, key)
                if not entry:
                    raise Conflict
                stage[entry + COUNTER] = value % _WRAP
                counters[key] = value
            case transaction.Number(key, counter_key):
                entry = find(stage, key)
                counter = find(stage, counter_key)
                if not entry or not counter:
                    raise Conflict
                if not stage[entry + COUNTER]:
                    stage[counter + COUNTER] = stage[entry + COUNTER] = stage[counter + COUNTER] + 1
                counters[key] = stage[entry + COUNTER]

    def _insert(self, stage: Stage, key: bytes) -> int:
        try:
            return self._table.insert(stage, key)
        except ArenaFull:
            raise NoRoom from None

    def _remove(self, stage: Stage, entry: int, freed: list[int]) -> None:
        if stage[entry + LOCATION]:
            self._slabs.discard(stage, stage[entry + LOCATION], freed)
        self._table.remove(stage, entry)
        stage[EVICTIONS] = stage[EVICTIONS] + 1

    def _wakeups(self, stage: Stage, appended: list[int]) -> list[int]:
        wake = []
        if appended[0] or appended[1]:
            for region in self._regions.values():
                tail = stage.get(region.state + layout.TAIL)
                if tail is None:
                    continue
                before = region.used_bytes()
                after = tail - self._words[region.state + layout.HEAD]
                if before < region.high_water <= after:
                    region.ask_to_drain(stage)
                    if self._words[region.state + layout.DRAIN_WAITERS]:
                        wake.append(region.state + layout.DRAIN_SIGNAL)
        if QUEUE_SIGNAL in stage and self._words[QUEUE_WAITERS]:
            wake.append(QUEUE_SIGNAL)
        if IDLE_SIGNAL in stage and self._words[IDLE_WAITERS]:
            wake.append(IDLE_SIGNAL)
        return wake

    def _publish(self, stage: Stage) -> None:
        """Store what is staged, so that a death at any point leaves all of it or nothing. The lock is held."""
        words = self._words
        count = len(stage)
        if count > INTENT_PAIRS:
            raise TransactionTooLarge(f"a transaction of {count:,} words, where {INTENT_PAIRS:,} fit")
        point = memory.fault_point
        if point:
            point("staged")
        pairs = array("Q", [number for pair in stage.items() for number in pair])
        words[_INTENT : _INTENT + 2 * count] = memoryview(pairs)
        words[_INTENT_COUNT] = count
        if point:
            point("intended")
        for word, value in stage.items():
            words[word] = value
            if point:
                point("committed")
        if point:
            point("applied")
        words[_INTENT_COUNT] = 0
        if point:
            point("cleared")

    def _recover(self) -> None:
        """Finish or undo what a dead holder of the commit lock was about to do. The lock is held."""
        words = self._words
        count = words[_INTENT_COUNT]
        if not count:
            return
        if count <= INTENT_PAIRS:
            pairs = words[_INTENT : _INTENT + 2 * count].tolist()
            if words[pairs[0]] == pairs[1]:
                for index in range(0, 2 * count, 2):
                    words[pairs[index]] = pairs[index + 1]
        words[_INTENT_COUNT] = 0
        words[RECOVERIES] += 1

    def _locked(self) -> _Locked:
        return _Locked(self)

    # Work

    def take_work(self, timeout_seconds: float) -> work.Claim | None:
        """Claim the oldest entry of the work queue, waiting for one; None after the timeout."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            if self._words[QUEUE_HEAD]:
                with self._locked():
                    lane = self._lane_now()
                    stage = Stage(self._words)
                    taken = work.take(stage, lane)
                    if taken:
                        key = self._table.key_of(taken[0])
                        self._publish(stage)
                        return work.Claim(taken[1], key, taken[2])
            if not self._wait(QUEUE_SIGNAL, QUEUE_WAITERS, lambda: bool(self._words[QUEUE_HEAD]), deadline):
                return None

    def release_dead(self) -> int:
        """Put the claims of dead processes back on the queue and free their lanes; return how many claims."""
        returned = 0
        for process in self._lanes.processes():
            if process.alive or process.lane == self._lane:
                continue
            with self._locked():
                if not self._lanes.is_dead(process.lane):
                    continue
                for entry in work.claimed_by(self._memory, process.lane):
                    stage = Stage(self._words)
                    work.reclaim(stage, entry)
                    self._publish(stage)
                    returned += 1
                self._lanes.free_dead(process.lane)
            if self._words[QUEUE_WAITERS]:
                futex.wake(self._memory.address + QUEUE_SIGNAL * WORD)
        if returned:
            self.count(Counter.RECLAIMED_WORK, returned)
        return returned

    def outstanding(self) -> int:
        """Return how many entries are on the work queue or claimed."""
        outstanding: int = self._words[OUTSTANDING]
        return outstanding

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until nothing is on the work queue or claimed; return whether that came."""
        deadline = time.monotonic() + timeout_seconds
        return self._wait(IDLE_SIGNAL, IDLE_WAITERS, lambda: not self._words[OUTSTANDING], deadline)

    def unfinished(self) -> list[bytes]:
        """Return the keys of all entries that are on the work queue or claimed."""
        with self._locked():
            return [
                self._table.key_of(entry)
                for entry in self._table.every_entry()
                if work.state_of(self._words[entry + QUEUE])
            ]

    # Processes and counters

    def enter(self, role: str) -> None:
        """Take a lane for this process, or rename it: "supervisor", "worker", "syncer", "charger" or "other"."""
        self._role = role
        with self._locked():
            if self._lane:
                self._lanes.set_role(self._lane, role)
            else:
                self._lane_now()

    def processes(self) -> list[Process]:
        """Return the processes that are attached, and the dead whose lanes were not given back yet."""
        return self._lanes.processes()

    def count(self, counter: Counter, amount: int = 1) -> None:
        """Add to one of this process's counters."""
        if not self._lane:
            self.enter(self._role)
        self._lanes.count(self._lane, counter, amount)

    def counter_totals(self) -> dict[str, int]:
        """Return the sums of all counters over all processes, by lower-case name."""
        return self._lanes.totals()

    def _count(self, counter: Counter, amount: int) -> None:
        self._lanes.count(self._lane_now(), counter, amount)

    def _lane_now(self) -> int:
        """Return this process's lane; take one if it has none. The lock is held."""
        if not self._lane:
            self._lane = self._lanes.enter(self._role)
        return self._lane

    def _forked(self) -> None:
        self._lane = 0
        self._inside = False

    # Waiting

    def _wait(self, signal: int, waiters: int, there: Callable[[], bool], deadline: float) -> bool:
        """Sleep on a signal word until `there()` holds; return whether it does."""
        words = self._words
        while not there():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with self._locked():
                seen = words[signal]
                if there():
                    return True
                words[waiters] += 1
            try:
                futex.wait(self._memory.address + signal * WORD, seen, min(left, _LARGEST_TURN_SECONDS))
            finally:
                with self._locked():
                    words[waiters] = max(words[waiters] - 1, 0)
        return True

    # Making room

    def _make_room(self, deadline: float) -> None:
        """Free slabs or entries: clean, else evict, else wait for the syncer. Raises ArenaFull after the deadline."""
        if self._clean() or self._evict():
            return
        ring = self.write_ring
        committed = ring.committed_sequence
        ring.request_drain()
        if time.monotonic() >= deadline or not ring.wait_committed(
            committed + 1, max(0.0, deadline - time.monotonic())
        ):
            raise ArenaFull(slab.SLOT_BYTES, "everything in it is in use or waits for the database")

    def _clean(self) -> bool:
        """Empty the slab with the most holes by moving what lives in it; return whether there was one worth it."""
        with self._locked():
            if not self._words[layout.FREE_ENTRY]:
                return False
            victim = self._slabs.fullest_of_holes()
        if victim is None:
            return False
        place: int | None = 0
        while place is not None:
            with self._locked():
                stage = Stage(self._words)
                freed: list[int] = []
                stage[COMMIT_SEQUENCE] = stage[COMMIT_SEQUENCE] + 1
                try:
                    place = self._slabs.move(stage, victim, place, freed)
                except NoRoom:
                    return False
                self._slabs.give_back(stage, freed)
                self._publish(stage)
                self._count(Counter.CLEANED_SLABS, place is None)
        return True

    def _evict(self) -> bool:
        """Forget clean records: finished families first, then the longest unchanged; return whether any went."""
        with self._locked():
            finished = self._finished_families()
        if finished:
            for key in finished[:64]:
                self.drop_family(key)
            return True
        with self._locked():
            placed = self._memory.layout
            entries = np.frombuffer(self._words, np.uint64, placed.entry_count * ENTRY_WORDS, placed.entries)
            entries = entries.reshape(placed.entry_count, ENTRY_WORDS)
            clean = (
                (entries[:, LOCATION] != 0)
                & (entries[:, DIRTY] <= np.uint64(self.write_ring.committed_sequence))
                & (entries[:, QUEUE] == 0)
                & (entries[:, CHAIN] & np.uint64(FLAG_PINNED) == 0)
            )
            candidates = clean.nonzero()[0]
            if not len(candidates):
                return False
            oldest = candidates[entries[candidates, VERSION].argsort()[: max(16, len(candidates) // 8)]][:1024]
            first = placed.entries // WORD
            for begin in range(0, len(oldest), 64):
                stage = Stage(self._words)
                freed: list[int] = []
                stage[COMMIT_SEQUENCE] = stage[COMMIT_SEQUENCE] + 1
                for index in oldest[begin : begin + 64]:
                    self._forget(stage, first + int(index) * ENTRY_WORDS, freed)
                self._slabs.give_back(stage, freed)
                self._publish(stage)
            self._count(Counter.EVICTED, len(oldest))
            return True

    def _forget(self, stage: Stage, entry: int, freed: list[int]) -> None:
        """Stage that an entry's record goes; the entry stays where lists or a counter need it."""
        if stage[entry + FAMILY] or stage[entry + MEMBERS] or stage[entry + COUNTER] or stage[entry + CHAIN] >> 32:
            self._slabs.discard(stage, stage[entry + LOCATION], freed)
            stage[entry + LOCATION] = 0
            stage[entry + VERSION] = stage[COMMIT_SEQUENCE]
            stage[EVICTIONS] = stage[EVICTIONS] + 1
        else:
            self._remove(stage, entry, freed)

    def _forget_damaged(self, entry: int) -> None:
        """Forget a record whose bytes do not hold what its entry says. The lock is held."""
        stage = Stage(self._words)
        stage[COMMIT_SEQUENCE] = stage[COMMIT_SEQUENCE] + 1
        stage[entry + LOCATION] = 0
        stage[entry + VERSION] = stage[COMMIT_SEQUENCE]
        stage[EVICTIONS] = stage[EVICTIONS] + 1
        self._publish(stage)

    def _finished_families(self) -> list[bytes]:
        placed = self._memory.layout
        entries = np.frombuffer(self._words, np.uint64, placed.entry_count * ENTRY_WORDS, placed.entries)
        entries = entries.reshape(placed.entry_count, ENTRY_WORDS)
        finished = (
            (entries[:, CHAIN] & np.uint64(FLAG_FINISHED) != 0)
            & (entries[:, DIRTY] <= np.uint64(self.write_ring.committed_sequence))
            & (entries[:, QUEUE] == 0)
        )
        first = placed.entries // WORD
        return [self._table.key_of(first + int(index) * ENTRY_WORDS) for index in finished.nonzero()[0]]

    def drop_family(self, key: bytes) -> bool:
        """Forget a key with all its members and theirs, if all are clean; return whether it went.

        The list is marked incomplete first, so that nobody reads a part of it as the whole."""
        with self._locked():
            root = self._table.find(key)
            if not root:
                return False
            family = [root]
            for entry in family:
                family.extend(self._table.members(entry) or ())
            committed = self.write_ring.committed_sequence
            if any(self._words[each + DIRTY] > committed or self._words[each + QUEUE] for each in family):
                return False
            stage = Stage(self._words)
            stage[COMMIT_SEQUENCE] = stage[COMMIT_SEQUENCE] + 1
            stage[root + CHAIN] = stage[root + CHAIN] & ~FLAG_INDEXED
            self._publish(stage)
        while True:
            with self._locked():
                root = self._table.find(key)
                if not root:
                    return True
                stage = Stage(self._words)
                freed: list[int] = []
                stage[COMMIT_SEQUENCE] = stage[COMMIT_SEQUENCE] + 1
                for _ in range(64):
                    parent = root
                    while first := stage[parent + MEMBERS] & LOW:
                        if not stage[first + MEMBERS]:
                            self._table.drop_first_member(stage, parent)
                            break
                        parent = first
                    leaving = first or root
                    if stage[leaving + DIRTY] > self.write_ring.committed_sequence:
                        return False
                    self._remove(stage, leaving, freed)
                    if not first:
                        break
                self._slabs.give_back(stage, freed)
                self._publish(stage)
                self._count(Counter.EVICTED, 1)


class _Locked:
    """Holds the commit lock for a block; repairs what a dead holder, or a block that raised, left unfinished."""

    __slots__ = ("_arena",)

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def __enter__(self) -> None:
        arena = self._arena
        owner_died = arena._lock.acquire(arena.lock_wait_seconds)
        if owner_died and arena._inside:
            raise ArenaError("the arena was used again from inside a commit (a signal handler, a destructor)")
        arena._inside = True
        if owner_died:
            arena._recover()
        point = memory.fault_point
        if point:
            point("locked")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        arena = self._arena
        if kind is not None:
            arena._recover()
        arena._inside = False
        arena._lock.release()


class Ring:
    """A ring as producers that wait and its one consumer see it; entries are appended by `Arena.commit`."""

    __slots__ = ("_arena", "_region", "_seen_signal", "name")

    def __init__(self, arena: Arena, region: RingRegion) -> None:
        self._arena = arena
        self._region = region
        self._seen_signal = 0
        self.name = region.name

    @property
    def last_sequence(self) -> int:
        """The sequence of the newest entry; 0 if there never was one."""
        sequence: int = self._arena._words[self._region.state + layout.LAST_SEQUENCE]
        return sequence

    @property
    def committed_sequence(self) -> int:
        """Everything up to this sequence is durable."""
        sequence: int = self._arena._words[self._region.state + layout.COMMITTED]
        return sequence

    @property
    def used_bytes(self) -> int:
        """Bytes between the oldest entry that is not durable and the newest."""
        return self._region.used_bytes()

    @property
    def size(self) -> int:
        """Size of the ring in bytes."""
        return self._region.size

    def read(self, after: int, limit_entries: int, limit_bytes: int) -> list[Entry]:
        """Return entries younger than `after`, oldest first, within limits. For the one consumer; takes no lock."""
        return self._region.read(after, limit_entries, limit_bytes)

    def advance(self, sequence: int) -> None:
        """Say that everything up to `sequence` is durable: room for producers, and the end of waiting for flushers."""
        arena = self._arena
        state = self._region.state
        with arena._locked():
            stage = Stage(arena._words)
            stage[COMMIT_SEQUENCE] = stage[COMMIT_SEQUENCE] + 1
            if self._region.advance(stage, sequence):
                arena._publish(stage)
            sleepers = arena._words[state + layout.ROOM_WAITERS]
        if sleepers:
            futex.wake(arena._memory.address + (state + layout.ROOM_SIGNAL) * WORD)

    def request_drain(self) -> None:
        """Ask the consumer to drain now."""
        arena = self._arena
        state = self._region.state
        with arena._locked():
            arena._words[state + layout.DRAIN_SIGNAL] += 1
        futex.wake(arena._memory.address + (state + layout.DRAIN_SIGNAL) * WORD)

    def wait_for_drain(self, timeout_seconds: float, give_up: Callable[[], bool] = lambda: False) -> None:
        """For the consumer: wait until asked to drain since the last call, or until the timeout.

        `give_up` is asked after each signal that the process gets, and ends the waiting too."""
        arena = self._arena
        signal = self._region.state + layout.DRAIN_SIGNAL
        seen = self._seen_signal
        deadline = time.monotonic() + timeout_seconds
        arena._wait(
            signal,
            self._region.state + layout.DRAIN_WAITERS,
            lambda: arena._words[signal] != seen or give_up(),
            deadline,
        )
        self._seen_signal = arena._words[signal]

    def wait_committed(self, sequence: int, timeout_seconds: float | None) -> bool:
        """Wait until everything up to `sequence` is durable; return whether it is. None waits without limit."""
        state = self._region.state
        words = self._arena._words
        deadline = time.monotonic() + (1e9 if timeout_seconds is None else timeout_seconds)
        return self._arena._wait(
            state + layout.ROOM_SIGNAL,
            state + layout.ROOM_WAITERS,
            lambda: words[state + layout.COMMITTED] >= sequence,
            deadline,
        )

    def _wait_for_room(self, head: int, deadline: float) -> bool:
        """Wait until the head is no longer at `head`; return whether it is not."""
        state = self._region.state
        words = self._arena._words
        self.request_drain()
        return self._arena._wait(
            state + layout.ROOM_SIGNAL,
            state + layout.ROOM_WAITERS,
            lambda: words[state + layout.HEAD] != head,
            deadline,
        )


def _signed(word: int) -> int:
    return word - _WRAP if word >= _SIGNED else word
