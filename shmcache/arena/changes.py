"""What each operation of a transaction changes.

Records and ring entries are written to memory that nothing refers to, the words that will refer to them are staged. All
inside the critical section; nothing of it is visible before `Critical.publish`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any, TypeAlias

from shmcache.arena import transaction, work
from shmcache.arena.layout import (
    CHAIN,
    COMMIT_SEQUENCE,
    COMMITTED,
    COUNTER,
    DIRTY,
    EVICTIONS,
    FAMILY,
    FLAG_PLAIN,
    FREE_ENTRY,
    KEY_HIGH,
    KEY_LOW,
    LOCATION,
    MEMBERS,
    OFFSET_SHIFT,
    QUEUE,
    VERSION,
    VERSION_STEP,
    WORD,
)
from shmcache.arena.memory import Memory, Stage
from shmcache.arena.reading import signed
from shmcache.arena.ring import RingRegion
from shmcache.arena.slab import SLOT, SLOT_BYTES, Slabs
from shmcache.arena.table import Table
from shmcache.arena.transaction import AlreadySet, Append, Conflict, CounterTooLow, Outcome, Put, Transaction
from shmcache.errors import InvalidValue

_unpack_key = struct.Struct(">QQ").unpack
_pack_slot = SLOT.pack_into
_crc32 = zlib.crc32
# A named tuple's own constructor takes twice as long.
_new_outcome = tuple.__new__

Counters: TypeAlias = dict[bytes, int]
"""The counters that a transaction asked for, as it leaves them."""

_SIGNED = 1 << 63
_WRAP = 1 << 64


class NeedsStripes(Exception):
    """The transaction changes plain keys: their stripes must be held."""


class Changes:
    """Stages transactions over a memory."""

    __slots__ = (
        "_buckets",
        "_buffer",
        "_charge_ring",
        "_mapped",
        "_mask",
        "_words",
        "_write_ring",
        "slabs",
        "table",
    )

    def __init__(
        self, mapped: Memory, table: Table, slabs: Slabs, write_ring: RingRegion, charge_ring: RingRegion
    ) -> None:
        self._words = mapped.words
        self._buffer = mapped.buffer
        self._mapped = mapped.mapped
        self._buckets = mapped.layout.buckets // WORD
        self._mask = mapped.layout.bucket_count - 1
        self.table = table
        self.slabs = slabs
        self._write_ring = write_ring
        self._charge_ring = charge_ring

    def stage(self, wanted: Transaction, stage: Stage, lane: int) -> Outcome:
        """Stage all of a transaction, for the process of a lane. With the stripes of its keys held, if it is plain.

        Raises Conflict, CounterTooLow, NeedsStripes, NoRoom, NoRingRoom, InvalidValue: the stage is worth nothing
        then."""
        dirty = charged = 0
        others: list[transaction.Operation] = []
        # Ring entries are staged first, so that a tail is the first word stored: the commit point.
        for operation in wanted.operations:
            if type(operation) is Append:
                ring, kind, payload = operation
                if ring == "write":
                    dirty = self._write_ring.append(stage, kind, payload)
                else:
                    charged = self._charge_ring.append(stage, kind, payload)
            else:
                others.append(operation)
        stage[COMMIT_SEQUENCE] = version = self._words[COMMIT_SEQUENCE] + VERSION_STEP
        counters: dict[bytes, int] = {}
        written: list[tuple[int, int]] = []
        plain = wanted.plain
        for operation in others:
            if type(operation) is Put:
                written.append(self._put(stage, operation, version, dirty, plain))
            else:
                _STAGED_BY[type(operation)](self, stage, operation, lane, counters, plain)
        return _new_outcome(Outcome, (dirty, charged, counters, written))

    def _put(self, stage: Stage, put: Put, version: int, dirty: int, plain: bool) -> tuple[int, int]:
        key, record, parent_key, flags = put
        words = self._words
        high, low = _unpack_key(key)
        if FREE_ENTRY in stage:
            entry = self.table.find_staged(stage, key)
        else:
            # Nothing inserted or removed yet: the key is looked up in the memory, and is nearly always the first.
            entry = words[self._buckets + (low & self._mask)]
            if entry and (words[entry + KEY_LOW] != low or words[entry + KEY_HIGH] != high):
                entry = self.table.find_certainly(key)
        entry = entry or self.table.insert(stage, key)
        if parent_key is not None and not stage[entry + FAMILY]:
            parent = self.table.find_staged(stage, parent_key)
            if not parent:
                raise Conflict
            self.table.adopt(stage, parent, entry)
        chain = stage[entry + CHAIN]
        if (chain | flags) & FLAG_PLAIN and not plain:
            raise NeedsStripes
        if entry + VERSION in stage:
            # Written twice in one transaction: a version of its own keeps the two slots apart.
            stage[COMMIT_SEQUENCE] = version = stage[COMMIT_SEQUENCE] + VERSION_STEP
        length = len(record)
        if length <= self.slabs.longest_in_slot:
            offset = self.slabs.take(stage, SLOT_BYTES + (length + 7 & ~7))
            begin = offset + SLOT_BYTES
            _pack_slot(self._buffer, offset, version, _crc32(record, (version ^ high ^ low) & 0xFFFFFFFF), 0)
            self._mapped[begin : begin + length] = record
            stage[entry + LOCATION] = offset << OFFSET_SHIFT | length
        elif length <= self.slabs.longest_record:
            stage[entry + LOCATION] = self.slabs.write_long(stage, key, version, record)
        else:
            raise InvalidValue(
                f"a record of {length:,} bytes under key {key.hex()}: this arena takes {self.slabs.longest_record:,}; "
                "set SHMCACHE_ARENA_SIZE higher"
            )
        stage[entry + VERSION] = version
        if dirty:
            stage[entry + DIRTY] = dirty
        if flags & ~chain:
            stage[entry + CHAIN] = chain | flags
        return entry, version

    # The other operations: each stages one, for the process of a lane, and notes the counters it was asked for.

    def _add(self, stage: Stage, operation: transaction.Add, _lane: int, counters: Counters, _plain: bool) -> None:
        key, amount, minimum = operation
        entry = self._required(stage, key)
        value = signed(stage[entry + COUNTER]) + amount
        if minimum is not None and value < minimum:
            raise CounterTooLow(key, value - amount)
        counters[key] = self._set_counter(stage, entry, value)

    def _set_once(
        self, stage: Stage, operation: transaction.SetOnce, _lane: int, _counters: Counters, _plain: bool
    ) -> None:
        key, value = operation
        entry = self.table.find_staged(stage, key) or self.table.insert(stage, key)
        if stage[entry + COUNTER] or stage[entry + LOCATION]:
            raise AlreadySet
        self._set_counter(stage, entry, value)

    def _touch(self, stage: Stage, operation: transaction.Touch, _lane: int, _counters: Counters, _plain: bool) -> None:
        key, set_flags, clear_flags = operation
        entry = self.table.find_staged(stage, key) or self.table.insert(stage, key)
        stage[entry + CHAIN] = stage[entry + CHAIN] & ~clear_flags | set_flags

    def _forget(
        self, stage: Stage, operation: transaction.Delete, _lane: int, _counters: Counters, plain: bool
    ) -> None:
        self._delete(stage, self.table.find_staged(stage, operation.key), plain)

    def _enqueue(
        self, stage: Stage, operation: transaction.Enqueue, _lane: int, _counters: Counters, _plain: bool
    ) -> None:
        key, kind, counter_key = operation
        entry = self.table.find_staged(stage, key) or self.table.insert(stage, key)
        counter = self.table.find_staged(stage, counter_key) or self.table.insert(stage, counter_key)
        work.enqueue(self.table, stage, entry, kind, counter)

    def _release(
        self, stage: Stage, operation: transaction.Release, lane: int, _counters: Counters, _plain: bool
    ) -> None:
        key, counter_key, follow_kind = operation
        entry = self.table.find_staged(stage, key)
        counter = self.table.find_staged(stage, counter_key)
        if entry and counter:
            work.release(self.table, stage, entry, counter, follow_kind, lane)

    def _assign(
        self, stage: Stage, operation: transaction.SetCounter, _lane: int, counters: Counters, _plain: bool
    ) -> None:
        key, value = operation
        counters[key] = self._set_counter(stage, self._required(stage, key), value)

    def _number(
        self, stage: Stage, operation: transaction.Number, _lane: int, counters: Counters, _plain: bool
    ) -> None:
        key, counter_key = operation
        entry = self._required(stage, key)
        counter = self._required(stage, counter_key)
        if not stage[entry + COUNTER]:
            number = self._set_counter(stage, counter, signed(stage[counter + COUNTER]) + 1)
            self._set_counter(stage, entry, number)
        counters[key] = signed(stage[entry + COUNTER])

    def _clear(self, stage: Stage, operation: transaction.Clear, _lane: int, _counters: Counters, plain: bool) -> None:
        key, expected = operation
        entry = self.table.find_staged(stage, key)
        if expected is not None and (signed(stage[entry + COUNTER]) if entry else 0) != expected:
            raise Conflict
        if entry:
            stage[entry + COUNTER] = 0
            self._delete(stage, entry, plain)

    def _exchange(
        self, stage: Stage, operation: transaction.Exchange, _lane: int, _counters: Counters, plain: bool
    ) -> None:
        key, record = operation
        entry = self.table.find_staged(stage, key)
        if entry and stage[entry + COUNTER]:
            stage[entry + COUNTER] = 0
            self._put(stage, Put(key, record), stage[COMMIT_SEQUENCE], 0, plain)

    def _rebase(
        self, stage: Stage, operation: transaction.Rebase, _lane: int, counters: Counters, _plain: bool
    ) -> None:
        key, base_key, value, released, versioned, version = operation
        entry = self.table.find_staged(stage, key)
        base = self.table.find_staged(stage, base_key)
        if versioned is not None:
            known = self.table.find_staged(stage, versioned)
            if not known:
                return
            if version > stage[known + COUNTER]:
                stage[known + COUNTER] = version
            elif base:
                value = signed(stage[base + COUNTER])
        if entry and base:
            moved = value - (signed(stage[base + COUNTER]) - released)
            counters[key] = self._set_counter(stage, entry, signed(stage[entry + COUNTER]) + moved)
            self._set_counter(stage, base, value)

    def _advance(
        self, stage: Stage, operation: transaction.Advance, _lane: int, _counters: Counters, _plain: bool
    ) -> None:
        ring, after, sequence = operation
        region = self._write_ring if ring == "write" else self._charge_ring
        if stage[region.state + COMMITTED] != after:
            raise Conflict
        region.advance(stage, sequence)

    def _delete(self, stage: Stage, entry: int, plain: bool) -> None:
        """Stage that an entry is forgotten, if it is one and nothing refers to it."""
        if entry and not (
            stage[entry + FAMILY] | stage[entry + MEMBERS] | stage[entry + QUEUE] | stage[entry + COUNTER]
        ):
            if stage[entry + CHAIN] & FLAG_PLAIN and not plain:
                raise NeedsStripes
            self.remove(stage, entry)

    def _required(self, stage: Stage, key: bytes) -> int:
        entry = self.table.find_staged(stage, key)
        if not entry:
            raise Conflict
        return entry

    def _set_counter(self, stage: Stage, entry: int, value: int) -> int:
        if not -_SIGNED <= value < _SIGNED:
            raise InvalidValue(f"a counter cannot hold {value}")
        stage[entry + COUNTER] = value % _WRAP
        return value

    def remove(self, stage: Stage, entry: int) -> None:
        """Stage that an entry, on no list any more, is forgotten with its record."""
        self.table.remove(stage, entry)
        stage[EVICTIONS] = stage[EVICTIONS] + 1


_STAGED_BY: dict[type[transaction.Operation], Callable[[Changes, Stage, Any, int, Counters, bool], None]] = {
    transaction.Add: Changes._add,
    transaction.SetOnce: Changes._set_once,
    transaction.Touch: Changes._touch,
    transaction.Delete: Changes._forget,
    transaction.Enqueue: Changes._enqueue,
    transaction.Release: Changes._release,
    transaction.SetCounter: Changes._assign,
    transaction.Number: Changes._number,
    transaction.Clear: Changes._clear,
    transaction.Exchange: Changes._exchange,
    transaction.Rebase: Changes._rebase,
    transaction.Advance: Changes._advance,
}
