"""What goes on in an arena: what was counted, who leads, who works on what, who waits; beside `survey`, as it does.

No lock is taken and no word is written, so this too works on a mapping for reading only, and on a dead arena.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shmcache.arena import layout, work
from shmcache.arena.counters import LEADING_ROLES, Counter, Lanes
from shmcache.arena.histograms import Observed
from shmcache.arena.layout import COUNTER, FAMILY, KEY_HIGH, KEY_LOW, QUEUE, QUEUE_CLAIMED
from shmcache.arena.memory import Memory
from shmcache.arena.ring import HEADER_BYTES, Entry, read_header
from shmcache.arena.survey import Lane, rows_of, stripe_puts
from shmcache.arena.table import Table

_pack_key = struct.Struct(">QQ").pack
_TRIES = 5


class Leader(NamedTuple):
    """Who drains a ring, and since which epoch."""

    pid: int
    epoch: int


class Claimed(NamedTuple):
    """What a lane's process works on: the kind and the key of an entry of the work queue, and the how-manieth attempt
    it is."""

    lane: int
    kind: int
    key: bytes
    attempt: int


class Waits(NamedTuple):
    """How many threads sleep: for a ring's head to move (they want room, or durability), for work, for its end."""

    write_ring: int
    charge_ring: int
    work: int
    idle: int


class Counted(NamedTuple):
    """A key and its counter, a signed number."""

    key: bytes
    counter: int


def totals(memory: Memory) -> dict[str, int]:
    """Return the sums of all counters over all processes, dead ones included, by lower-case name."""
    found = Lanes(memory).totals()
    found[Counter.COMMITS.name.lower()] += stripe_puts(memory)
    return found


def observed(memory: Memory) -> dict[str, Observed]:
    """Return what all histograms have seen, by name."""
    return Lanes(memory).observed()


def leaders(lanes: list[Lane]) -> dict[str, Leader]:
    """Return who leads each ring, of those that live: the one of the highest epoch. A ring without a leader is left
    out."""
    found: dict[str, Leader] = {}
    for ring, role in LEADING_ROLES.items():
        leading = [Leader(lane.pid, lane.epoch) for lane in lanes if lane.role == role and lane.alive and lane.epoch]
        if leading:
            found[ring] = max(leading, key=lambda leader: leader.epoch)
    return found


def claims(memory: Memory) -> list[Claimed]:
    """Return what is being worked on, by one scan over all entries."""
    rows = rows_of(memory)
    column = rows[:, QUEUE].copy()
    claimed = (column >> np.uint64(56) & np.uint64(15) == QUEUE_CLAIMED).nonzero()[0]
    found = []
    for number, word in zip(claimed.tolist(), column[claimed].tolist(), strict=True):
        row = rows[number].tolist()
        if row[QUEUE] == word:  # else it has ended meanwhile
            key = _pack_key(row[KEY_HIGH], row[KEY_LOW])
            found.append(Claimed(work.lane_of(word), word >> 60, key, word >> 48 & 255))
    return found


def waits(memory: Memory) -> Waits:
    """Return how many threads sleep for what. Those that were killed asleep may be counted still."""
    words = memory.words
    return Waits(
        words[layout.WRITE_RING_STATE + layout.ROOM_WAITERS],
        words[layout.CHARGE_RING_STATE + layout.ROOM_WAITERS],
        words[layout.QUEUE_WAITERS],
        words[layout.IDLE_WAITERS],
    )


def oldest_entry(memory: Memory, ring: str) -> Entry | None:
    """Return the oldest entry of a ring, "write" or "charge", that is not durable yet.

    None if there is none, or it is damaged, or entries become durable faster than this looks."""
    words = memory.words
    if ring == "write":
        state, first, size = layout.WRITE_RING_STATE, memory.layout.write_ring, memory.layout.write_ring_size
    else:
        state, first, size = layout.CHARGE_RING_STATE, memory.layout.charge_ring, memory.layout.charge_ring_size
    for _ in range(_TRIES):
        head, committed = words[state + layout.HEAD], words[state + layout.COMMITTED]
        if head >= words[state + layout.TAIL]:
            return None
        entry = _entry_at(memory, first, size, head % size, committed + 1)
        if entry is not None and words[state + layout.HEAD] == head:
            return entry
    return None


def _entry_at(memory: Memory, first: int, size: int, place: int, wanted: int) -> Entry | None:
    """Return the entry at a place of a ring if it is the one wanted, and whole."""
    if size - place < HEADER_BYTES:
        place = 0
    header = read_header(memory.buffer, first + place)
    if not header.sequence and header.length == size - place:
        place = 0
        header = read_header(memory.buffer, first)
    offset = first + place + HEADER_BYTES
    if header.sequence != wanted or header.length > size - place - HEADER_BYTES:
        return None
    payload = bytes(memory.buffer[offset : offset + header.length])
    return Entry(wanted, header.kind, payload, True) if header.is_of(payload) else None


def counted_members(memory: Memory, parent: bytes) -> list[Counted]:
    """Return the members of a parent's key with their counters, by one scan over all entries; none of a key that is
    not there."""
    entry = Table(memory).find(parent)
    if not entry:
        return []
    rows = rows_of(memory)
    members = (rows[:, FAMILY] >> np.uint64(32) == np.uint64(entry)).nonzero()[0]
    found: npt.NDArray[np.uint64] = rows[members]
    counters = found[:, COUNTER].astype(np.int64).tolist()
    return [
        Counted(_pack_key(high, low), counter)
        for high, low, counter in zip(found[:, KEY_HIGH].tolist(), found[:, KEY_LOW].tolist(), counters, strict=True)
    ]


def counter_at(memory: Memory, entry: int, key: bytes) -> tuple[int, int | None]:
    """Return where a key is kept and what its counter says; `entry` is where it was last, 0 if that is not known.

    (0, None) of a key that is not there."""
    words = memory.words
    table = Table(memory)
    if not entry or not table.is_entry(entry) or table.key_of(entry) != key:
        entry = table.find(key)
        if not entry:
            return 0, None
    value: int = words[entry + COUNTER]
    return entry, value - (1 << 64) if value >> 63 else value
