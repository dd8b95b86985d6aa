"""Plain records: single keys, changed under the lock of their stripe, so that writers of different keys do not meet.

A key is plain if its entry says so (FLAG_PLAIN). Its stripe, given by the key's lowest bits, has a robust mutex, a slab
that it fills, and versions of its own. Overwriting a plain record takes that mutex and nothing else:

    1 written     the record behind the stripe's POSITION, which nothing refers to
    2 reserved    POSITION moved behind it
    3 published   the entry's LOCATION: the commit point
    4 versioned   the entry's VERSION

A death after 1 or 2 leaves bytes that nothing refers to. A death after 3 leaves an entry whose VERSION is not that of
its slot; the slot is the truth. Who reads it so takes the commit lock and the stripe, and stores the slot's version;
until then whoever has the record decoded sees the one before, and nobody has seen the other.

Everything else (a new key, a delete, an eviction, a move, a transaction) happens in a commit, which takes the stripes
of its plain keys after the commit lock, in ascending order, and sets DOUBT for as long as it has them. If it dies, its
intent must be finished or undone before anybody overwrites those keys: whoever takes a stripe and finds DOUBT set
leaves it again and makes a commit instead, which repairs first.
"""

from __future__ import annotations

import errno
import struct
import zlib
from collections.abc import Collection, Iterable
from types import TracebackType

from shmcache.arena.critical import Critical
from shmcache.arena.layout import (
    CHAIN,
    DOUBT,
    FLAG_PLAIN,
    KEY_HIGH,
    KEY_LOW,
    LOCATION,
    OFFSET_SHIFT,
    STRIPE_BYTES,
    STRIPE_END,
    STRIPE_POSITION,
    STRIPE_SEQUENCE,
    VERSION,
    VERSION_STEP,
    WORD,
)
from shmcache.arena.memory import Memory, Stage
from shmcache.arena.mutex import RobustMutex, is_on_stack
from shmcache.arena.slab import SLOT, SLOT_BYTES, Slabs
from shmcache.arena.table import Table
from shmcache.errors import ArenaError

_crc32 = zlib.crc32
_pack_slot = SLOT.pack_into
_unpack_key = struct.Struct(">QQ").unpack


class Stripes:
    """The stripes over a memory."""

    __slots__ = (
        "_arguments",
        "_bucket_mask",
        "_buckets",
        "_buffer",
        "_critical",
        "_find",
        "_first",
        "_longest",
        "_mapped",
        "_mask",
        "_memory",
        "_mutexes",
        "_slabs",
        "_words",
    )

    def __init__(self, memory: Memory, critical: Critical, table: Table, slabs: Slabs) -> None:
        placed = memory.layout
        self._memory = memory
        self._critical = critical
        self._words = memory.words
        self._buffer = memory.buffer
        self._mapped = memory.mapped
        self._find = table.find
        self._buckets = placed.buckets // WORD
        self._bucket_mask = placed.bucket_count - 1
        self._slabs = slabs
        self._longest = slabs.longest_in_slot
        self._first = placed.stripes // WORD
        self._mask = placed.stripe_count - 1
        self._mutexes = [
            RobustMutex(f"stripe {number}", memory.address + placed.stripes + number * STRIPE_BYTES, memory.name)
            for number in range(placed.stripe_count)
        ]
        self._arguments = [mutex.argument for mutex in self._mutexes]

    def format(self) -> None:
        """Make the locks. Only for who creates the segment."""
        for number, mutex in enumerate(self._mutexes):
            mutex.initialize()
            self._words[self._word(number) + STRIPE_SEQUENCE] = number + 1

    def overwrite(self, key: bytes, record: bytes) -> int:
        """Overwrite the record of a plain key, under its stripe's lock alone; return the new version.

        Returns 0, and has changed nothing, where that takes a commit: the key is new or not plain, the record is too
        long for a slab, the stripe's slab is full, or a dead process left a commit unfinished. Raises LockTimeout."""
        words = self._words
        high, low = _unpack_key(key)
        entry = words[self._buckets + (low & self._bucket_mask)]
        if words[entry + KEY_LOW] != low or words[entry + KEY_HIGH] != high:
            entry = self._find(key)
        length = len(record)
        if not entry or length > self._longest or not words[entry + CHAIN] & FLAG_PLAIN:
            return 0
        number = low & self._mask
        mutex = self._mutexes[number]
        argument = self._arguments[number]
        stripe = self._first + number * (STRIPE_BYTES // WORD)
        try:
            taken = mutex.quick_acquire(argument)
            if taken:
                self._take_slowly(mutex, taken)
            position = words[stripe + STRIPE_POSITION]
            end = position + SLOT_BYTES + (length + 7 & ~7)
            if (
                words[DOUBT]
                or not self._slabs.first < end <= words[stripe + STRIPE_END] <= self._slabs.end
                or words[entry + KEY_LOW] != low
                or words[entry + KEY_HIGH] != high
                or not words[entry + LOCATION]
                or not words[entry + CHAIN] & FLAG_PLAIN
            ):
                version = 0
            else:
                words[stripe + STRIPE_SEQUENCE] = version = words[stripe + STRIPE_SEQUENCE] + VERSION_STEP
                begin = position + SLOT_BYTES
                _pack_slot(self._buffer, position, version, _crc32(record, (version ^ high ^ low) & 0xFFFFFFFF), 0)
                self._mapped[begin : begin + length] = record
                # step: written
                words[stripe + STRIPE_POSITION] = end
                # step: reserved
                words[entry + LOCATION] = position << OFFSET_SHIFT | length
                # step: published
                words[entry + VERSION] = version
                # step: versioned
            if mutex.quick_release(argument):
                lost = f"{mutex.name} was lost inside its section: was the process forked there? fork elsewhere"
                raise ArenaError(lost).of(mutex.arena)
        except BaseException:
            if mutex.is_held_here() and not is_on_stack(_OVERWRITE, 1):
                mutex.release()
            raise
        return version

    def number_of(self, key: bytes) -> int:
        """Return the number of a key's stripe."""
        return key[-1] & self._mask

    def hold(self, numbers: Iterable[int]) -> _Hold:
        """Return a context that holds stripes. Only inside the critical section, and once."""
        return _Hold(self, sorted(set(numbers)))

    def hold_all(self) -> _Hold:
        """Return a context that holds all stripes."""
        return _Hold(self, range(self._mask + 1))

    def refill(self, key: bytes) -> None:
        """Give the stripe of a key a new slab to fill, if its own has no room for a longest record. Raises NoRoom."""
        number = self.number_of(key)
        stripe = self._word(number)
        with self._critical, self.hold((number,)):
            stage: Stage = self._memory.stage()
            self._slabs.require_free(stage)
            begin = self._slabs.take_slab(stage)
            stage[stripe + STRIPE_POSITION] = begin
            stage[stripe + STRIPE_END] = begin + self._slabs.size
            self._critical.publish(stage)

    def close_slabs(self, stage: Stage) -> None:
        """Stage that no stripe fills a slab any more. With all stripes held."""
        for number in range(self._mask + 1):
            stripe = self._word(number)
            if self._words[stripe + STRIPE_END]:
                stage[stripe + STRIPE_POSITION] = stage[stripe + STRIPE_END] = 0

    def puts(self) -> int:
        """Return how many records were overwritten under stripes alone."""
        numbers = range(self._mask + 1)
        return sum(self._words[self._word(number) + STRIPE_SEQUENCE] // VERSION_STEP for number in numbers)

    def _word(self, number: int) -> int:
        return self._first + number * (STRIPE_BYTES // WORD)

    def _take_slowly(self, mutex: RobustMutex, result: int) -> None:
        """Take a stripe's lock that could not be had at once, for one of several reasons. Raises LockTimeout."""
        if result == errno.EBUSY:
            result = mutex.acquire(self._critical.lock_wait_seconds)
        if result == errno.EDEADLK and is_on_stack(_OVERWRITE, 2):
            raise ArenaError(
                "it was used again from inside a put (by a signal handler, a destructor): use it outside of those"
            ).of(mutex.arena)
        mutex.inherit(result)

    def _take(self, numbers: Iterable[int]) -> None:
        taken: list[int] = []
        try:
            for number in numbers:
                mutex = self._mutexes[number]
                result = mutex.quick_acquire(self._arguments[number])
                if result:
                    self._take_slowly(mutex, result)
                taken.append(number)
            self._words[DOUBT] = 1
        except BaseException:
            self._abandon(taken)
            raise

    def _let_go(self, numbers: Collection[int]) -> None:
        try:
            self._words[DOUBT] = 0
            for number in numbers:
                self._mutexes[number].release()
        except BaseException:
            self._abandon(numbers)
            raise

    def _abandon(self, taken: Collection[int]) -> None:
        """Let go of the stripes taken, and of any that an exception left held; not of that of a put further up."""
        self._words[DOUBT] = 0
        inside_a_put = is_on_stack(_OVERWRITE, 1)
        for number, mutex in enumerate(self._mutexes):
            if mutex.is_held_here() and (number in taken or not inside_a_put):
                mutex.release()


class _Hold:
    """Some stripes, held."""

    __slots__ = ("_numbers", "_stripes")

    def __init__(self, stripes: Stripes, numbers: Collection[int]) -> None:
        self._stripes = stripes
        self._numbers = numbers

    def __enter__(self) -> None:
        self._stripes._take(self._numbers)

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is not None:
            # What was begun is finished or undone before anybody else can get at the stripes.
            self._stripes._critical.recover()
        self._stripes._let_go(self._numbers)


_OVERWRITE = Stripes.overwrite.__code__
