"""What each operation of a transaction changes.

Records and ring entries are written to memory that nothing refers to, the words that will refer to them are staged. All
inside the critical section; nothing of it is visible before `Critical.publish`.
"""

from __future__ import annotations

from collections.abc import Mapping

from shmcache.arena import transaction, work
from shmcache.arena.layout import (
    CHAIN,
    COMMIT_SEQUENCE,
    COUNTER,
    DIRTY,
    EVICTIONS,
    FAMILY,
    FLAG_PLAIN,
    FREE_ENTRY,
    LOCATION,
    MEMBERS,
    QUEUE,
    VERSION,
    VERSION_STEP,
)
from shmcache.arena.memory import Memory, Stage
from shmcache.arena.ring import RingRegion
from shmcache.arena.slab import Slabs
from shmcache.arena.table import Table
from shmcache.arena.transaction import Conflict, CounterTooLow, Outcome, Transaction
from shmcache.errors import InvalidValue

_SIGNED = 1 << 63
_WRAP = 1 << 64


def signed(word: int) -> int:
    """Return the signed number that a counter's word stands for."""
    return word - _WRAP if word >= _SIGNED else word


class NeedsStripes(Exception):
    """The transaction changes plain keys: their stripes must be held."""


class Changes:
    """Stages transactions over a memory."""

    __slots__ = ("_rings", "_words", "slabs", "table")

    def __init__(self, mapped: Memory, table: Table, slabs: Slabs, rings: Mapping[str, RingRegion]) -> None:
        self._words = mapped.words
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
            if type(operation) is transaction.Append:
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
        for operation in operations:
            if type(operation) is transaction.Put:
                self._put(stage, operation, version, dirty, wanted.plain)
            elif type(operation) is not transaction.Append:
                self._change(stage, operation, lane, counters, wanted.plain)
        return Outcome(dirty, charged, counters)

    def _put(self, stage: Stage, put: transaction.Put, version: int, dirty: int, plain: bool) -> None:
        key, record, parent_key, flags = put
        if len(record) > self.slabs.longest_record:
            raise InvalidValue(
                f"a record of {len(record):,} bytes: this arena takes {self.slabs.longest_record:,}; "
                "set SHMCACHE_ARENA_SIZE higher"
            )
        # Nothing inserted or removed yet: the key is looked up in the memory, which saves two calls.
        entry = FREE_ENTRY not in stage and self.table.find(key)
        entry = entry or self.table.find_staged(stage, key) or self.table.insert(stage, key)
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
        stage[entry + LOCATION] = self.slabs.write(stage, key, version, record)
        stage[entry + VERSION] = version
        if dirty:
            stage[entry + DIRTY] = dirty
        if flags & ~chain:
            stage[entry + CHAIN] = chain | flags

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
            case transaction.Touch(key, set_flags, clear_flags):
                entry = find(stage, key) or self.table.insert(stage, key)
                stage[entry + CHAIN] = stage[entry + CHAIN] & ~clear_flags | set_flags
            case transaction.Delete(key):
                entry = find(stage, key)
                if entry and not (
                    stage[entry + FAMILY] | stage[entry + MEMBERS] | stage[entry + QUEUE] | stage[entry + COUNTER]
                ):
                    if stage[entry + CHAIN] & FLAG_PLAIN and not plain:
                        raise NeedsStripes
                    self.remove(stage, entry)
            case transaction.Enqueue(key, kind, counter_key):
                entry = find(stage, key) or self.table.insert(stage, key)
                counter = find(stage, counter_key) or self.table.insert(stage, counter_key)
                work.enqueue(stage, entry, kind, counter)
            case transaction.Release(key, counter_key, follow_kind):
                entry = find(stage, key)
                counter = find(stage, counter_key)
                if entry and counter:
                    work.release(stage, entry, counter, follow_kind, lane)
            case transaction.Add(key, amount, minimum):
                entry = self._required(stage, key)
                value = signed(stage[entry + COUNTER]) + amount
                if minimum is not None and value < minimum:
                    raise CounterTooLow(key, value - amount)
                counters[key] = self._set_counter(stage, entry, value)
            case transaction.SetCounter(key, value):
                counters[key] = self._set_counter(stage, self._required(stage, key), value)
            case transaction.Number(key, counter_key):
                entry = self._required(stage, key)
                counter = self._required(stage, counter_key)
                if not stage[entry + COUNTER]:
                    number = self._set_counter(stage, counter, signed(stage[counter + COUNTER]) + 1)
                    self._set_counter(stage, entry, number)
                counters[key] = signed(stage[entry + COUNTER])

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
