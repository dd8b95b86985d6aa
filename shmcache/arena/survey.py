"""Facts about an arena, gathered from its memory without taking a lock or writing a word.

So they can be gathered of an arena that is only mapped for reading (`shmcache.arena.view`), of a dead one, and while
others change it: each number was true at some time during the look, not all of them at one time. What can only be
damage raises ArenaError.
"""

from __future__ import annotations

import contextlib
import struct
import uuid
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shmcache.arena import layout
from shmcache.arena.census import Census
from shmcache.arena.counters import ROLES, Counter, start_time
from shmcache.arena.layout import (
    CHAIN,
    DIRTY,
    FLAG_FINISHED,
    FLAG_PINNED,
    KEY_HIGH,
    KEY_LOW,
    LENGTH_MASK,
    LOCATION,
    QUEUE,
    READ_LATELY,
    STRIPE_BYTES,
    VERSION,
    VERSION_STEP,
    WORD,
)
from shmcache.arena.memory import Memory
from shmcache.arena.slab import Slabs
from shmcache.arena.table import Table
from shmcache.errors import ArenaDamaged

_pack_key = struct.Struct(">QQ").pack
_OWNER_DIED = 0x40000000  # futex(2)
_WAITERS = 0x80000000  # futex(2)
_THREAD_MASK = 0x3FFFFFFF  # futex(2)


class Header(NamedTuple):
    """What the segment was made with. `size` is what was asked for, in bytes."""

    arena_id: str
    identity: bytes
    size: int
    layout_hash: int
    pid_namespace: int


class Region(NamedTuple):
    """A part of the segment: where it begins and how long it is, in bytes."""

    name: str
    offset: int
    size: int


class Occupancy(NamedTuple):
    """What is in the table and in the slabs. `live_bytes` are those of all records with their headers and rounding;
    `record_bytes` those of the records alone; `slab_bytes` what all slabs could hold."""

    entries: int
    entries_used: int
    records: int
    records_dirty: int
    records_pinned: int
    finished: int
    record_bytes: int
    live_bytes: int
    free_bytes: int
    slab_bytes: int
    evictions: int
    commits: int
    recoveries: int
    unfinished_commit_words: int


class Holder(NamedTuple):
    """A lock that somebody has: the thread, and its process. `died`: whoever takes it next repairs what it left.
    `waited_for`: somebody else sleeps until it is free."""

    lock: str
    thread: int
    pid: int
    died: bool
    waited_for: bool


class Lane(NamedTuple):
    """An attached process and what it has counted, by lower-case names; counts of 0 are left out.

    `epoch` is the one in which it leads, 0 if it does not."""

    lane: int
    pid: int
    role: str
    alive: bool
    epoch: int
    counts: dict[str, int]


class RingDepth(NamedTuple):
    """A ring: bytes in use of its size, entries that are not durable yet, and the newest and the newest durable one."""

    name: str
    size: int
    used_bytes: int
    entries: int
    last_sequence: int
    committed_sequence: int


class RecordFact(NamedTuple):
    """A record: its key, its length in bytes, its version, its state.

    `read_lately`: read from the arena since eviction last passed by; what processes served decoded does not show."""

    key: bytes
    size: int
    version: int
    dirty: bool
    pinned: bool
    queued: bool
    read_lately: bool


def header(memory: Memory) -> Header:
    """Return what the segment's header says."""
    words = memory.words
    identity = words[layout.IDENTITY_WORD : layout.IDENTITY_WORD + 2].tobytes()
    arena_id = uuid.UUID(int=words[layout.ARENA_ID_WORD] << 64 | words[layout.ARENA_ID_WORD + 1])
    return Header(
        str(arena_id), identity, words[layout.SIZE_WORD], words[layout.LAYOUT_WORD], words[layout.NAMESPACE_WORD]
    )


def regions(memory: Memory) -> list[Region]:
    """Return the regions of the segment, in the order in which they lie."""
    placed = memory.layout
    starts = {
        "header and state": 0,
        "intent": layout.INTENT_OFFSET,
        "lanes": placed.lanes,
        "stripes": placed.stripes,
        "buckets": placed.buckets,
        "slab words": placed.slab_words,
        "slabs": placed.slabs,
        "entries": placed.entries_end - Table(memory).count * layout.ENTRY_WORDS * WORD,
        "write ring": placed.write_ring,
        "charge ring": placed.charge_ring,
        "load locks": placed.load_locks,
    }
    ends = [*list(starts.values())[1:], placed.end]
    return [Region(name, offset, end - offset) for (name, offset), end in zip(starts.items(), ends, strict=True)]


def occupancy(memory: Memory) -> Occupancy:
    """Return what is in the table and in the slabs."""
    words = memory.words
    table, slabs = Table(memory), Slabs(memory)
    rows = rows_of(memory)
    present = rows[:, LOCATION] != 0
    flags = rows[:, CHAIN]
    return Occupancy(
        entries=table.count,
        entries_used=words[layout.ENTRIES_USED],
        records=int(np.count_nonzero(present)),
        records_dirty=int(np.count_nonzero(present & _is_dirty(memory, rows))),
        records_pinned=int(np.count_nonzero(present & (flags & np.uint64(FLAG_PINNED) != 0))),
        finished=int(np.count_nonzero(flags & np.uint64(FLAG_FINISHED))),
        record_bytes=int(_sizes(rows[present]).sum()),
        live_bytes=Census(table, slabs, np.zeros(slabs.count, np.bool_)).live_bytes(),
        free_bytes=_free_bytes(slabs),
        slab_bytes=memory.layout.slab_count * memory.layout.slab_size,
        evictions=words[layout.EVICTIONS],
        commits=words[layout.COMMIT_SEQUENCE] // VERSION_STEP,
        recoveries=words[layout.RECOVERIES],
        unfinished_commit_words=words[layout.INTENT_OFFSET // WORD],
    )


def lock_places(memory: Memory) -> list[tuple[str, int]]:
    """Return the name and the byte offset of every lock in the segment, the lanes' life locks apart."""
    loads = memory.layout.load_locks
    return [
        ("commit", layout.COMMIT_LOCK_OFFSET),
        ("cleaning", layout.CLEANING_LOCK_OFFSET),
        *(
            (f"stripe {number}", memory.layout.stripes + number * STRIPE_BYTES)
            for number in range(memory.layout.stripe_count)
        ),
        *((f"load {number}", loads + number * layout.LOAD_LOCK_BYTES) for number in range(layout.LOAD_LOCKS)),
    ]


def holders(memory: Memory) -> list[Holder]:
    """Return the locks that are held at this instant, or were by a thread that has died."""
    found = []
    for name, offset in lock_places(memory):
        thread, died = _lock_owner(memory, offset)
        if thread or died:
            waited_for = bool(memory.words[offset // WORD] & _WAITERS)
            found.append(Holder(name, thread, _process_of(thread), died, waited_for))
    return found


def lanes(memory: Memory) -> list[Lane]:
    """Return the processes that are attached, and the dead whose lanes were not given back yet."""
    words = memory.words
    found = []
    for lane in range(1, memory.layout.lane_count):
        offset = memory.layout.lanes + lane * layout.LANE_BYTES
        word = offset // WORD
        pid = words[word + layout.LANE_PID]
        if not pid:
            continue
        if words[word + layout.LANE_BY_MUTEX]:
            thread, died = _lock_owner(memory, offset)
            alive = bool(thread) and not died
        else:
            alive = start_time(pid) == words[word + layout.LANE_STARTED]
        counts = {
            counter.name.lower(): words[word + layout.LANE_COUNTERS + counter]
            for counter in Counter
            if words[word + layout.LANE_COUNTERS + counter]
        }
        role = ROLES[words[word + layout.LANE_ROLE] % len(ROLES)]
        found.append(Lane(lane, pid, role, alive, words[word + layout.LANE_EPOCH], counts))
    return found


def rings(memory: Memory) -> list[RingDepth]:
    """Return how full the rings are."""
    words = memory.words
    found = []
    for name, state, size in (
        ("write", layout.WRITE_RING_STATE, memory.layout.write_ring_size),
        ("charge", layout.CHARGE_RING_STATE, memory.layout.charge_ring_size),
    ):
        last, committed = words[state + layout.LAST_SEQUENCE], words[state + layout.COMMITTED]
        used = words[state + layout.TAIL] - words[state + layout.HEAD]
        found.append(RingDepth(name, size, max(0, used), max(0, last - committed), last, committed))
    return found


def stripe_puts(memory: Memory) -> int:
    """Return how many records were overwritten under stripes alone."""
    first = memory.layout.stripes // WORD + layout.STRIPE_SEQUENCE
    step = STRIPE_BYTES // WORD
    words = memory.words
    return sum(words[first + number * step] // VERSION_STEP for number in range(memory.layout.stripe_count))


def work_outstanding(memory: Memory) -> int:
    """Return how many entries are on the work queue or claimed."""
    outstanding: int = memory.words[layout.OUTSTANDING]
    return outstanding


def keys(memory: Memory) -> Iterator[bytes]:
    """Return the keys that have a record. One that is there all the while is among them; what is being changed may
    come as a key that is none, and one that is deleted and put again meanwhile twice."""
    rows = rows_of(memory)
    found = _present(rows)
    return map(_pack_key, rows[found, KEY_HIGH].tolist(), rows[found, KEY_LOW].tolist())


def record_count(memory: Memory) -> int:
    """Return how many keys have a record."""
    return int(np.count_nonzero(rows_of(memory)[:, LOCATION]))


def largest(memory: Memory, count: int) -> list[RecordFact]:
    """Return the largest records, largest first."""
    rows = _rows_with_records(memory)
    order = np.argsort(_sizes(rows), kind="stable")[::-1]
    return _facts(memory, rows[order[:count]])


def hottest(memory: Memory, count: int) -> list[RecordFact]:
    """Return the records that were read lately, then the others, those with the highest versions first among each."""
    rows = _rows_with_records(memory)
    order = np.lexsort((rows[:, VERSION], rows[:, CHAIN] >= np.uint64(READ_LATELY)))[::-1]
    return _facts(memory, rows[order[:count]])


_Rows = npt.NDArray[np.uint64]
_Numbers = npt.NDArray[np.intp]


def rows_of(memory: Memory) -> _Rows:
    """Return all entries, as `Table.rows` does. Raises ArenaError."""
    try:
        return Table(memory).rows()
    except (ValueError, IndexError):
        raise ArenaDamaged("it says that it has more entries than fit into it").of(memory.name) from None


def _rows_with_records(memory: Memory) -> _Rows:
    """Return a copy of the entries that have a record."""
    rows = rows_of(memory)
    return rows[_present(rows)]


def _facts(memory: Memory, rows: _Rows) -> list[RecordFact]:
    dirty = _is_dirty(memory, rows).tolist()
    return [
        RecordFact(
            _pack_key(row[KEY_HIGH], row[KEY_LOW]),
            row[LOCATION] & LENGTH_MASK,
            row[VERSION],
            is_dirty,
            bool(row[CHAIN] & FLAG_PINNED),
            bool(row[QUEUE]),
            row[CHAIN] >= READ_LATELY,
        )
        for row, is_dirty in zip(rows.tolist(), dirty, strict=True)
    ]


def _present(rows: _Rows) -> _Numbers:
    """Return which entries have a record: by way of a copy, as numpy refuses to list what changes meanwhile."""
    present: _Numbers = (rows[:, LOCATION] != 0).nonzero()[0]
    return present


def _is_dirty(memory: Memory, rows: _Rows) -> npt.NDArray[np.bool_]:
    dirty: npt.NDArray[np.bool_] = rows[:, DIRTY] > np.uint64(memory.words[layout.WRITE_RING_STATE + layout.COMMITTED])
    return dirty


def _sizes(rows: _Rows) -> npt.NDArray[np.int64]:
    """Return the lengths of some entries' records."""
    return (rows[:, LOCATION] & np.uint64(LENGTH_MASK)).astype(np.int64)


def _free_bytes(slabs: Slabs) -> int:
    """Return what can be written to now, 0 where the words that say so are damaged."""
    try:
        return max(0, slabs.free_bytes())
    except IndexError:
        return 0


def _lock_owner(memory: Memory, offset: int) -> tuple[int, bool]:
    """Return the thread that holds a lock, 0 for none, and whether its owner died (glibc: the lock begins with it)."""
    word = memory.words[offset // WORD] & 0xFFFFFFFF
    return word & _THREAD_MASK, bool(word & _OWNER_DIED)


def _process_of(thread: int) -> int:
    """Return the process of a thread; the thread itself where it is gone."""
    with contextlib.suppress(OSError, ValueError, StopIteration), open(f"/proc/{thread}/status") as status:
        return int(next(line for line in status if line.startswith("Tgid:")).split()[1])
    return thread
