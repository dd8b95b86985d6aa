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
The steps are in `critical`, what operations stage in `changes`, what happens when there is no room in `room`.
"""

from __future__ import annotations

import os
import struct
import time
import uuid
import weakref
import zlib
from collections.abc import Callable
from typing import NamedTuple, Self, TypeVar

from shmcache.arena import check, layout, segment, work
from shmcache.arena.changes import Changes, NeedsStripes, signed
from shmcache.arena.counters import Counter, Lanes, Process
from shmcache.arena.critical import Critical
from shmcache.arena.layout import (
    CHAIN,
    COMMIT_SEQUENCE,
    COUNTER,
    EVICTIONS,
    FAMILY,
    FLAG_INDEXED,
    FLAG_PLAIN,
    IDLE_SIGNAL,
    IDLE_WAITERS,
    KEY_HIGH,
    KEY_LOW,
    LENGTH_MASK,
    LOCATION,
    OFFSET_SHIFT,
    OUTSTANDING,
    QUEUE_HEAD,
    QUEUE_SIGNAL,
    QUEUE_WAITERS,
    READ_LATELY_BYTE,
    VERSION,
    VERSION_STEP,
    WORD,
)
from shmcache.arena.memory import Memory, Stage
from shmcache.arena.ring import NoRingRoom, RingRegion
from shmcache.arena.ring_ends import Ring
from shmcache.arena.room import Room
from shmcache.arena.slab import SLOT, SLOT_BYTES, NoRoom, Slabs
from shmcache.arena.stripes import Stripes
from shmcache.arena.table import Table
from shmcache.arena.transaction import Conflict, Outcome, Put, Transaction
from shmcache.errors import ArenaError, RingFull, TransactionTooLarge

_IDENTITY_BYTES = 16
_LOW_HALF = (1 << 64) - 1
T = TypeVar("T")
unpack_key = struct.Struct(">QQ").unpack
unpack_slot = SLOT.unpack_from
crc32 = zlib.crc32
struct_error = struct.error
new_found = tuple.__new__

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
        self.ring_wait_seconds = ring_wait
        self._memory = mapped
        self._words = words = mapped.words
        self._critical = Critical(mapped, lock_wait)
        self._table = Table(mapped)
        self._slabs = Slabs(mapped)
        self._lanes = Lanes(mapped)
        self._lane = 0
        self._role = "other"
        placed = mapped.layout
        self._buffer = mapped.buffer
        self._mapped = mapped.mapped
        self._buckets = placed.buckets // WORD
        self._mask = placed.bucket_count - 1
        self._longest = self._slabs.longest_in_slot
        write = RingRegion(mapped, "write", layout.WRITE_RING_STATE, placed.write_ring, placed.write_ring_size)
        charge = RingRegion(mapped, "charge", layout.CHARGE_RING_STATE, placed.charge_ring, placed.charge_ring_size)
        self._regions = (write, charge)
        self.write_ring = Ring(mapped, self._critical, write)
        self.charge_ring = Ring(mapped, self._critical, charge)
        self._changes = Changes(mapped, self._table, self._slabs, {"write": write, "charge": charge})
        self._stripes = Stripes(mapped, self._critical, self._table, self._slabs)
        self._room = Room(mapped, self._critical, self._changes, self._stripes, self.write_ring)
        self.identity = words[layout.IDENTITY_WORD].to_bytes(8, "little") + words[layout.IDENTITY_WORD + 1].to_bytes(
            8, "little"
        )
        self.arena_id = str(uuid.UUID(int=words[layout.ARENA_ID_WORD] << 64 | words[layout.ARENA_ID_WORD + 1]))
        _open_arenas.add(self)

    @classmethod
    def create(
        cls,
        name: str,
        size_bytes: int,
        identity: bytes = bytes(_IDENTITY_BYTES),
        *,
        ring_bytes: tuple[int, int] | None = None,
        lock_wait: float = 30.0,
        ring_wait: float = 10.0,
    ) -> Self:
        """Make a segment of about `size_bytes` with all its pages reserved, and attach to it.

        `identity` is 16 bytes that say what its contents belong to, `ring_bytes` the sizes of the write ring and the
        charge ring. Raises ArenaExists, SharedMemoryTooSmall, ArenaUnusable, ValueError for a size under 4 MiB, for
        rings that leave no room, or another identity."""
        if len(identity) != _IDENTITY_BYTES:
            raise ValueError(f"an identity is {_IDENTITY_BYTES} bytes, not {len(identity)}")
        planned = layout.plan(size_bytes, *(ring_bytes or ()))
        mapped, descriptor = segment.reserve_segment(name, planned)
        arena = None
        try:
            memory = Memory(mapped, planned)
            words = memory.words
            words[layout.MAGIC_WORD] = layout.MAGIC
            words[layout.LAYOUT_WORD] = layout.LAYOUT_HASH
            words[layout.SIZE_WORD] = planned.size
            for index, number in enumerate(planned[1:8]):
                words[layout.LANE_COUNT_WORD + index] = number
            words[layout.NAMESPACE_WORD] = segment.pid_namespace()
            words[layout.STRIPE_COUNT_WORD] = planned.stripe_count
            random = uuid.uuid4().int
            words[layout.ARENA_ID_WORD] = random >> 64
            words[layout.ARENA_ID_WORD + 1] = random & _LOW_HALF
            words[layout.IDENTITY_WORD] = int.from_bytes(identity[:8], "little")
            words[layout.IDENTITY_WORD + 1] = int.from_bytes(identity[8:], "little")
            arena = cls(name, memory, lock_wait, ring_wait)
            arena._critical.mutex.initialize()
            arena._room.format()
            arena._stripes.format()
            arena._lanes.format()
            arena._table.format()
            arena._slabs.format()
            words[COMMIT_SEQUENCE] = VERSION_STEP
            # The maker is in its lane before anybody can look: an arena without a living process counts as left over.
            with arena._critical:
                arena._lane_now()
            words[layout.READY_WORD] = 1
            segment.publish_segment(name, descriptor)
        except BaseException:
            if arena is not None:
                arena.close()
            raise
        finally:
            os.close(descriptor)
        return arena

    @classmethod
    def attach(cls, name: str, **waits: float) -> Self:
        """Attach to an existing arena by its name alone. Raises ArenaMissing, ArenaUnusable."""
        return cls(name, Memory(*segment.attach_segment(name)), **waits)

    def close(self) -> None:
        """Give back this process's claims and its lane, and unmap the segment."""
        if self._lane:
            with self._critical:
                self._give_claims_back(self._lane)
                self._retire(self._lane)
                unlocked = self._lanes.unlock(self._lane)
                self._lane = 0
                waiters = self._words[QUEUE_WAITERS]
            if waiters:
                self._critical.wake(QUEUE_SIGNAL)
            if not unlocked:
                return  # the thread that entered still holds a lock in the segment: it stays mapped until that ends
        _open_arenas.discard(self)
        self._memory.release()

    def unlink(self) -> None:
        """Remove the segment from /dev/shm. Who has it mapped keeps it until they close it."""
        segment.unlink_segment(self.name)

    def check(self) -> list[str]:
        """Return what is wrong in the arena, each in one sentence; nothing, if it is sound. Holds the commit lock."""
        with self._critical, self._stripes.hold_all():
            return check.check(self._memory, self._table, self._slabs)

    def sweep(self) -> int:
        """Give back all room that nothing refers to, such as a crash may have left; return how many slabs that freed.

        Room that is needed is found anyway. Readers do not notice, writers wait no longer than for each other."""
        return self._room.sweep()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def read(self, key: bytes) -> Found | None:
        """Return a key's record, or None if the arena does not have it. Takes no lock on a hit."""
        words = self._words
        high, low = unpack_key(key)
        try:
            entry = words[self._buckets + (low & self._mask)]
            if words[entry + KEY_LOW] != low or words[entry + KEY_HIGH] != high:
                entry = self._table.find(key)
            version = words[entry]
            location = words[entry + LOCATION]
            length = location & LENGTH_MASK
            if entry and length <= self._longest:
                # The CRC covers key and version, which is of this one put: nothing need be looked at twice.
                offset = location >> OFFSET_SHIFT & ~7
                found, crc, _ = unpack_slot(self._buffer, offset)
                offset += SLOT_BYTES
                record = self._mapped[offset : offset + length]
                if found == version and crc32(record, (version ^ high ^ low) & 0xFFFFFFFF) == crc:
                    self._buffer[entry * WORD + READ_LATELY_BYTE] = 1
                    return new_found(Found, (entry, version, record))
        except (IndexError, ValueError, struct_error):
            pass  # led astray by a change under way, or by damage
        return self._read_slowly(key)

    def _read_slowly(self, key: bytes) -> Found | None:
        """Read a record that is too long for a slot, or is just being changed; prove that there is none."""
        words = self._words
        for _ in range(3):
            entry = self._table.find(key)
            if not entry:
                break
            version = words[entry + VERSION]
            location = words[entry + LOCATION]
            if version and location:
                record = self._slabs.read(key, location, version)
                if record is not None:
                    return Found(entry, version, record)
        with self._critical, self._stripes.hold((self._stripes.number_of(key),)):
            entry = self._table.find_certainly(key)
            for _ in range(2):
                if not entry or not words[entry + LOCATION]:
                    return None
                version = words[entry + VERSION]
                record = self._slabs.read(key, words[entry + LOCATION], version)
                if record is not None:
                    return Found(entry, version, record)
                self._settle(key, entry)
            return None

    def _settle(self, key: bytes, entry: int) -> None:
        """Store the version of an entry's slot, where a put died before it did; forget a record that is none.

        Inside the critical section, with the key's stripe held."""
        stage = self._memory.stage()
        stage[COMMIT_SEQUENCE] = unused = stage[COMMIT_SEQUENCE] + VERSION_STEP
        location = self._words[entry + LOCATION]
        version = self._slabs.version_at(location)
        if version and self._slabs.read(key, location, version) is not None:
            stage[entry + VERSION] = version
        else:
            stage[entry + LOCATION] = 0
            stage[entry + VERSION] = unused
            stage[EVICTIONS] = stage[EVICTIONS] + 1
        self._critical.publish(stage)

    def version(self, key: bytes) -> int:
        """Return the version of a key's record, 0 if there is none (proved under the lock)."""
        entry = self._table.find(key)
        if entry and self._words[entry + LOCATION]:
            version: int = self._words[entry + VERSION]
            return version
        with self._critical:
            entry = self._table.find_certainly(key)
            return self._words[entry + VERSION] if entry and self._words[entry + LOCATION] else 0

    def version_words(self) -> memoryview:
        """Return the words of the segment: `words[found.entry]` is the version of that entry's record now."""
        return self._words

    def counter(self, key: bytes) -> int | None:
        """Return the signed counter of a key, None if the key has no entry."""
        with self._critical:
            entry = self._table.find_certainly(key)
            return signed(self._words[entry + COUNTER]) if entry else None

    def members(self, key: bytes) -> list[bytes] | None:
        """Return the keys of a key's members, oldest first; None if the key has no complete list of them."""
        words = self._words
        table = self._table
        evictions = words[EVICTIONS]
        entry = table.find(key)
        if entry and words[entry + CHAIN] & FLAG_INDEXED:
            found = table.members(entry)
            if found is not None:
                keys = [table.key_of(member) for member in found]
                # Who drops a family marks it first, in a commit of its own, and counts each drop: if neither shows now,
                # no member was missing from the list while it was walked.
                if (
                    all(words[member + FAMILY] >> 32 == entry for member in found)
                    and words[entry + CHAIN] & FLAG_INDEXED
                    and table.key_of(entry) == key
                    and words[EVICTIONS] == evictions
                ):
                    return keys
        with self._critical:
            entry = table.find_certainly(key)
            if not entry or not words[entry + CHAIN] & FLAG_INDEXED:
                return None
            found = table.members(entry)
            return None if found is None else [table.key_of(member) for member in found]

    def is_indexed(self, key: bytes) -> bool:
        """Say whether a key has a complete list of its members."""
        entry = self._table.find(key)
        if entry and self._words[entry + CHAIN] & FLAG_INDEXED and self._table.key_of(entry) == key:
            return True
        with self._critical:
            entry = self._table.find_certainly(key)
            return bool(entry and self._words[entry + CHAIN] & FLAG_INDEXED)

    def evictions(self) -> int:
        """Return the number that changes whenever a key is forgotten: the lease of a fill."""
        evictions: int = self._words[EVICTIONS]
        return evictions

    # Changing

    def put(self, key: bytes, record: bytes) -> int:
        """Store a plain record: one that no transaction, ring or list is concerned with; return its version.

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
        wanted.operations.append(Put(key, record, None, FLAG_PLAIN))
        self.commit(wanted)
        return self.version(key)

    def commit(self, wanted: Transaction) -> Outcome:
        """Apply a transaction, all of it or nothing.

        Waits for room, on the ring or in the slabs, up to `ring_wait_seconds`. Raises Conflict, CounterTooLow,
        RingFull, ArenaFull, TransactionTooLarge, LockTimeout, InvalidValue for a record or entry that is too long."""
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
                    ) from None
                if not ring.wait_for_room(full.head, deadline):
                    raise RingFull(ring.name, region.size, self.ring_wait_seconds) from None
            except NoRoom as lacking:
                deadline = deadline or time.monotonic() + self.ring_wait_seconds
                self._make_room(lacking, deadline)

    def _commit_once(self, wanted: Transaction) -> Outcome:
        if wanted.plain:
            number_of = self._stripes.number_of
            with self._critical, self._stripes.hold([number_of(key) for key in wanted.keys_concerned()]):
                outcome, wake = self._apply(wanted)
        else:
            try:
                with self._critical:
                    outcome, wake = self._apply(wanted)
            except NeedsStripes:
                wanted.plain = True
                return self._commit_once(wanted)
        if wake:
            for word in wake:
                self._critical.wake(word)
        return outcome

    def _apply(self, wanted: Transaction) -> tuple[Outcome, list[int] | None]:
        lane = self._lane or self._lane_or_none()
        if wanted.evictions is not None or wanted.expected:
            self._check_expectations(wanted, lane)
        stage = self._memory.stage()
        outcome = self._changes.stage(wanted, stage, lane)
        wake: list[int] | None = None
        if outcome.write_sequence or outcome.charge_sequence or QUEUE_SIGNAL in stage or IDLE_SIGNAL in stage:
            wake = self._wakeups(stage, outcome)
        self._critical.publish(stage)
        self._words[self._lanes.first_counter(lane)] += 1
        return outcome, wake

    def _check_expectations(self, wanted: Transaction, lane: int) -> None:
        words = self._words
        find = self._table.find_certainly
        meant = wanted.evictions is None or words[EVICTIONS] == wanted.evictions
        if meant:
            for key, version in wanted.expected.items():
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
        for region, sequence in zip(self._regions, outcome, strict=False):
            if sequence and region.is_crossed(stage):
                region.ask_to_drain(stage)
                if words[region.state + layout.DRAIN_WAITERS]:
                    wake.append(region.state + layout.DRAIN_SIGNAL)
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
            self.count(Counter.CLEANED_SLABS, room.cleaned - cleaned)
            self.count(Counter.EVICTED, room.evicted - evicted)

    def drop_family(self, key: bytes) -> bool:
        """Forget a key with all its members and theirs, if all are clean; return whether it went."""
        return self._room.families.drop(key)

    # Work

    def take_work(self, timeout_seconds: float) -> work.Claim | None:
        """Claim the oldest entry of the work queue, waiting for one; None after the timeout."""
        words = self._words
        deadline = time.monotonic() + timeout_seconds
        while True:
            if words[QUEUE_HEAD]:
                with self._critical:
                    lane = self._lane_now()
                    stage = self._memory.stage()
                    taken = work.take(stage, lane)
                    if taken:
                        entry, kind, attempt = taken
                        claim = work.Claim(kind, self._table.key_of(entry), attempt)
                        self._critical.publish(stage)
                        return claim
            if not self._critical.wait(QUEUE_SIGNAL, QUEUE_WAITERS, lambda: bool(words[QUEUE_HEAD]), deadline):
                return None

    def release_dead(self) -> int:
        """Put the claims of dead processes back on the queue and free their lanes; return how many claims."""
        returned = 0
        for process in self._lanes.processes():
            if not process.alive and process.lane != self._lane:
                with self._critical:
                    returned += self._release_if_dead(process.lane)
                    waiters = self._words[QUEUE_WAITERS]
                if waiters:
                    self._critical.wake(QUEUE_SIGNAL)
        if returned:
            self.count(Counter.RECLAIMED_WORK, returned)
        return returned

    def _release_if_dead(self, lane: int) -> int:
        if not self._lanes.is_dead(lane):
            return 0
        returned = self._give_claims_back(lane)
        self._retire(lane)
        self._lanes.unlock(lane)
        return returned

    def _give_claims_back(self, lane: int) -> int:
        claimed = work.claimed_by(self._table, lane)
        for entry in claimed:
            stage = self._memory.stage()
            work.reclaim(stage, entry)
            self._critical.publish(stage)
        return len(claimed)

    def outstanding(self) -> int:
        """Return how many entries are on the work queue or claimed."""
        outstanding: int = self._words[OUTSTANDING]
        return outstanding

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until nothing is on the work queue or claimed; return whether that came."""
        words = self._words
        deadline = time.monotonic() + timeout_seconds
        return self._critical.wait(IDLE_SIGNAL, IDLE_WAITERS, lambda: not words[OUTSTANDING], deadline)

    def unfinished(self) -> list[bytes]:
        """Return the keys of all entries that are on the work queue or claimed."""
        with self._critical:
            return [self._table.key_of(entry) for entry in work.unfinished(self._table)]

    # Processes and counters

    def enter(self, role: str) -> None:
        """Take a lane for this process, or rename it: "supervisor", "worker", "syncer", "charger" or "other".

        Raises ArenaError where all lanes are taken by processes that live."""
        self._role = role
        with self._critical:
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

    def _lane_now(self) -> int:
        """Return this process's lane; take one if it has none, from the dead if need be. Inside the section."""
        if not self._lane:
            try:
                self._lane = self._lanes.enter(self._role)
            except ArenaError:
                for process in self._lanes.processes():
                    if not process.alive:
                        self._release_if_dead(process.lane)
                self._lane = self._lanes.enter(self._role)
        return self._lane

    def _lane_or_none(self) -> int:
        """Return this process's lane, or where all are taken lane 0, which may be counted on inside the section."""
        try:
            return self._lane_now()
        except ArenaError:
            return 0

    def _retire(self, lane: int) -> None:
        stage = self._memory.stage()
        self._lanes.retire(stage, lane)
        self._critical.publish(stage)

    def _forked(self) -> None:
        self._lane = 0
        self._critical.forked()
