"""What each operation of a transaction changes.

Records and ring entries are written to memory that nothing refers to, the words that will refer to them are staged. All
inside the critical section; nothing of it is visible before `Critical.publish`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

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

_SIGNED = 1 << 63
_WRAP = 1 << 64


class NeedsStripes(Exception):
    """The transaction changes plain keys: their stripes must be held."""


class Changes:
    """Stages transactions over a memory."""

    __slots__ = ("_buckets", "_buffer", "_mapped", "_mask", "_rings", "_words", "slabs", "table")

    def __init__(self, mapped: Memory, table: Table, slabs: Slabs, rings: Mapping[str, RingRegion]) -> None:
        self._words = mapped.words
        self._buffer = mapped.buffer
        self._mapped = mapped.mapped
        self._buckets = mapped.layout.buckets // WORD
        self._mask = mapped.layout.bucket_count - 1
        self.table = table
        self.slabs = slabs
        self._rings = rings

    def stage(self, wanted: Transaction, stage: Stage, lane: int) -> Outcome:
        """Stage all of a transaction, for the process of a lane. With the stripes of its keys held, if it is plain.

        Raises Conflict, CounterTooLow, NeedsStripes, NoRoom, NoRingRoom, InvalidValue: the stage is worth nothing
        then."""
        operations = wanted.operations
        dirty = charged = 0
        # Ring entries are staged first, so that a tail is the first word stored: the commit point.
        for operation in operations:
            if type(operation) is Append:
                ring, kind, payload = operation
                region = self._rings[ring]
                if len(payload) > region.longest_payload:
                    raise InvalidValue(
                        f"an entry of {len(payload):,} bytes: the {ring} ring takes {region.longest_payload:,}; "
                        "set SHMCACHE_ARENA_SIZE higher"
                    )
                sequence = region.append(stage, kind, payload)
                if ring == "write":
                    dirty = sequence
                else:
                    charged = sequence
        stage[COMMIT_SEQUENCE] = version = self._words[COMMIT_SEQUENCE] + VERSION_STEP
        counters: dict[bytes, int] = {}
        written: list[tuple[int, int]] = []
        for operation in operations:
            if type(operation) is Put:
                written.append(self._put(stage, operation, version, dirty, wanted.plain))
            elif type(operation) is not Append:
                self._change(stage, operation, lane, counters, wanted.plain)
        return Outcome(dirty, charged, counters, written)

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

    def _change(
        self,
        stage: Stage,
        operation: transaction.Operation,
        lane: int,
        counters: dict[bytes, int],
        plain: bool,
    ) -> None:
        find = self.table.find_staged
        match operation:
            case transaction.Add(key, amount, minimum):
                entry = self._required(stage, key)
                value = signed(stage[entry + COUNTER]) + amount
                if minimum is not None and value < minimum:
                    raise CounterTooLow(key, value - amount)
                counters[key] = self._set_counter(stage, entry, value)
            case transaction.SetOnce(key, value):
                entry = find(stage, key) or self.table.insert(stage, key)
                if stage[entry + COUNTER] or stage[entry + LOCATION]:
                    raise AlreadySet
                self._set_counter(stage, entry, value)
            case transaction.Touch(key, set_flags, clear_flags):
                entry = find(stage, key) or self.table.insert(stage, key)
                stage[entry + CHAIN] = stage[entry + CHAIN] & ~clear_flags | set_flags
            case transaction.Delete(key):
                self._delete(stage, find(stage, key), plain)
            case transaction.Enqueue(key, kind, counter_key):
                entry = find(stage, key) or self.table.insert(stage, key)
                counter = find(stage, counter_key) or self.table.insert(stage, counter_key)
                work.enqueue(self.table, stage, entry, kind, counter)
            case transaction.Release(key, counter_key, follow_kind):
                entry = find(stage, key)
                counter = find(stage, counter_key)
                if entry and counter:
                    work.release(self.table, stage, entry, counter, follow_kind, lane)
            case transaction.SetCounter(key, value):
                counters[key] = self._set_counter(stage, self._required(stage, key), value)
            case transaction.Number(key, counter_key):
                entry = self._required(stage, key)
                counter = self._required(stage, counter_key)
                if not stage[entry + COUNTER]:
                    number = self._set_counter(stage, counter, signed(stage[counter + COUNTER]) + 1)
                    self._set_counter(stage, entry, number)
                counters[key] = signed(stage[entry + COUNTER])
            case transaction.Clear(key, expected):
                entry = find(stage, key)
                if expected is not None and (signed(stage[entry + COUNTER]) if entry else 0) != expected:
                    raise Conflict
                if entry:
                    stage[entry + COUNTER] = 0
                    self._delete(stage, entry, plain)
            case transaction.Exchange(key, record):
                entry = find(stage, key)
                if entry and stage[entry + COUNTER]:
                    stage[entry + COUNTER] = 0
                    self._put(stage, Put(key, record), stage[COMMIT_SEQUENCE], 0, plain)
            case transaction.Rebase(key, base_key, value, released):
                entry = find(stage, key)
                base = find(stage, base_key)
                if entry and base:
                    moved = value - (signed(stage[base + COUNTER]) - released)
                    counters[key] = self._set_counter(stage, entry, signed(stage[entry + COUNTER]) + moved)
                    self._set_counter(stage, base, value)
            case transaction.Advance(ring, after, sequence):
                region = self._rings[ring]
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
