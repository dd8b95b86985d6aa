"""Facts about an arena, gathered from its memory without taking a lock or writing a word.

So they can be gathered of an arena that is only mapped for reading (`shmcache.arena.view`), of a dead one, and while
others change it: each number was true at some time during the look, not all of them at one time.
"""

from __future__ import annotations

import contextlib
import struct
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shmcache.arena import layout
from shmcache.arena.counters import ROLES, Counter, start_time
from shmcache.arena.layout import (
    CHAIN,
    DIRTY,
    FLAG_FINISHED,
    FLAG_PINNED,
    KEY_HIGH,
    KEY_LOW,
    LOCATION,
    QUEUE,
    VERSION,
    WORD,
)
from shmcache.arena.memory import Memory
from shmcache.arena.slab import SLOT_BYTES, Slabs
from shmcache.arena.table import Table

_pack_key = struct.Struct(">QQ").pack
_LENGTH_OFFSET = 8  # of a record's length in its first slot
_OWNER_DIED = 0x40000000  # futex(2)
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
    """A lock that somebody has: the thread, and its process. `died`: whoever takes it next repairs what it left."""

    lock: str
    thread: int
    pid: int
    died: bool


class Lane(NamedTuple):
    """An attached process and what it has counted, by lower-case names; counts of 0 are left out."""

    lane: int
    pid: int
    role: str
    alive: bool
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
    """A record: its key, its length in bytes, its version (of two records the younger has the higher), its state."""

    key: bytes
    size: int
    version: int
    dirty: bool
    pinned: bool
    queued: bool


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
    names = placed._fields[placed._fields.index("lanes") :]
    starts = [("header", 0), ("intent", layout.INTENT_OFFSET), *((name, getattr(placed, name)) for name in names)]
    ends = [offset for _, offset in starts[1:]]
    return [Region(name, offset, end - offset) for (name, offset), end in zip(starts[:-1], ends, strict=True)]


def occupancy(memory: Memory) -> Occupancy:
    """Return what is in the table and in the slabs."""
    words = memory.words
    rows = Table(memory).rows()
    slabs = Slabs(memory)
    present = rows[:, LOCATION] != 0
    flags = rows[:, CHAIN]
    return Occupancy(
        entries=memory.layout.entry_count,
        entries_used=words[layout.ENTRIES_USED],
        records=int(np.count_nonzero(present)),
        records_dirty=int(np.count_nonzero(present & _is_dirty(memory, rows))),
        records_pinned=int(np.count_nonzero(present & (flags & np.uint64(FLAG_PINNED) != 0))),
        finished=int(np.count_nonzero(flags & np.uint64(FLAG_FINISHED))),
        record_bytes=int(_sizes(memory, rows, _present(rows)).sum()),
        live_bytes=slabs.live_bytes(),
        free_bytes=_free_bytes(slabs),
        slab_bytes=memory.layout.slab_count * memory.layout.slab_size,
        evictions=words[layout.EVICTIONS],
        commits=words[layout.COMMIT_SEQUENCE],
        recoveries=words[layout.RECOVERIES],
        unfinished_commit_words=words[layout.INTENT_OFFSET // WORD],
    )


def lock_places(memory: Memory) -> list[tuple[str, int]]:
    """Return the name and the byte offset of every lock in the segment, the lanes' life locks apart."""
    loads = memory.layout.load_locks
    return [
        ("commit", layout.COMMIT_LOCK_OFFSET),
        *((f"load {number}", loads + number * layout.LOAD_LOCK_BYTES) for number in range(layout.LOAD_LOCKS)),
    ]


def holders(memory: Memory) -> list[Holder]:
    """Return the locks that are held at this instant, or were by a thread that has died."""
    found = []
    for name, offset in lock_places(memory):
        thread, died = _lock_owner(memory, offset)
        if thread or died:
            found.append(Holder(name, thread, _process_of(thread), died))
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
        found.append(Lane(lane, pid, ROLES[words[word + layout.LANE_ROLE] % len(ROLES)], alive, counts))
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


def work_outstanding(memory: Memory) -> int:
    """Return how many entries are on the work queue or claimed."""
    outstanding: int = memory.words[layout.OUTSTANDING]
    return outstanding


def keys(memory: Memory) -> Iterator[bytes]:
    """Return the keys that have a record. One that is there all the while is among them; what is being changed may
    come as a key that is none, and one that is deleted and put again meanwhile twice."""
    rows = Table(memory).rows()
    found = _present(rows)
    return map(_pack_key, rows[found, KEY_HIGH].tolist(), rows[found, KEY_LOW].tolist())


def record_count(memory: Memory) -> int:
    """Return how many keys have a record."""
    return int(np.count_nonzero(Table(memory).rows()[:, LOCATION]))


def largest(memory: Memory, count: int) -> list[RecordFact]:
    """Return the largest records, largest first."""
    rows = Table(memory).rows()
    present = _present(rows)
    order = np.argsort(_sizes(memory, rows, present), kind="stable")[::-1]
    return list(_facts(memory, rows, present[order[:count]]))


def youngest(memory: Memory, count: int) -> list[RecordFact]:
    """Return the records that were changed last, youngest first."""
    rows = Table(memory).rows()
    present = _present(rows)
    order = np.argsort(rows[present, VERSION], kind="stable")[::-1]
    return list(_facts(memory, rows, present[order[:count]]))


_Rows = npt.NDArray[np.uint64]
_Numbers = npt.NDArray[np.intp]


def _facts(memory: Memory, rows: _Rows, numbers: _Numbers) -> Iterable[RecordFact]:
    dirty = _is_dirty(memory, rows[numbers])
    sizes = _sizes(memory, rows, numbers)
    for row, is_dirty, size in zip(rows[numbers].tolist(), dirty.tolist(), sizes.tolist(), strict=True):
        key = _pack_key(row[KEY_HIGH], row[KEY_LOW])
        queued = bool(row[QUEUE])
        yield RecordFact(key, size, row[VERSION], is_dirty, bool(row[CHAIN] & FLAG_PINNED), queued)


def _present(rows: _Rows) -> _Numbers:
    """Return which entries have a record: by way of a copy, as numpy refuses to list what changes meanwhile."""
    present: _Numbers = (rows[:, LOCATION] != 0).nonzero()[0]
    return present


def _is_dirty(memory: Memory, rows: _Rows) -> npt.NDArray[np.bool_]:
    dirty: npt.NDArray[np.bool_] = rows[:, DIRTY] > np.uint64(memory.words[layout.WRITE_RING_STATE + layout.COMMITTED])
    return dirty


def _sizes(memory: Memory, rows: _Rows, numbers: _Numbers) -> npt.NDArray[np.uint32]:
    """Return the lengths of some entries' records, 0 for one that is being moved, or whose place is none."""
    places, versions = rows[numbers, LOCATION], rows[numbers, VERSION]
    placed = memory.layout
    end = placed.slabs + placed.slab_count * placed.slab_size - SLOT_BYTES
    sound = (places >= np.uint64(placed.slabs)) & (places <= np.uint64(end)) & (places % np.uint64(WORD) == 0)
    slots = (np.where(sound, places, np.uint64(0)) // np.uint64(WORD)).astype(np.intp)
    words = np.frombuffer(memory.words, np.uint64)
    lengths = np.frombuffer(memory.words, np.uint32)[2 * slots + _LENGTH_OFFSET // 4]
    sound &= words[slots] == versions  # a slot begins with its version: those bytes are this record's still
    return np.where(sound, lengths, np.uint32(0))


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
