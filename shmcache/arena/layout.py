"""Where everything lies in the segment: the one table of its regions and of the words in them.

    +--------------------+  0
    | header             |  what the segment is and was made with; never changes once `READY` is set
    | state              |  counters, list heads, ring positions: words that change under the commit lock
    | commit lock        |  one robust mutex
    +--------------------+
    | intent             |  count, then pairs (word, value): what the holder of the commit lock is about to store
    +--------------------+
    | lanes              |  one for each attached process: life lock, pid, role, counters
    +--------------------+
    | buckets            |  one word each: the first entry of a hash chain, 0 for none
    | entries            |  10 words each: a key, where its record lies, and the lists and queues it is part of
    +--------------------+
    | slab words         |  3 words a slab: live bytes, used bytes, next free slab
    | slabs              |  the records' bytes
    +--------------------+
    | write ring         |
    | charge ring        |
    +--------------------+

Everything is addressed by the index of an 8-byte word ("word") or by a byte offset ("offset") from the segment's start.
An entry is named by the index of its first word, which is never 0.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

MAGIC = int.from_bytes(b"shmcache", "little")
WORD = 8
PAGE = 4096

# Header: words that are written once.
MAGIC_WORD = 0
LAYOUT_WORD = 1
SIZE_WORD = 2
READY_WORD = 3
ARENA_ID_WORD = 4  # two words
IDENTITY_WORD = 6  # two words
LANE_COUNT_WORD = 8
BUCKET_COUNT_WORD = 9
ENTRY_COUNT_WORD = 10
SLAB_COUNT_WORD = 11
SLAB_SIZE_WORD = 12
WRITE_RING_SIZE_WORD = 13
CHARGE_RING_SIZE_WORD = 14
NAMESPACE_WORD = 15  # its maker's pid namespace: locks name their holders by numbers that mean something only there

# State: words that change under the commit lock.
COMMIT_SEQUENCE = 64  # versions are drawn from it
EVICTIONS = 66  # changes when a key is forgotten: voids the leases of fills under way
FREE_ENTRY = 67  # head of the list of free entries
ENTRIES_USED = 68
FREE_SLAB = 69  # head of the list of free slabs (index + 1)
FREE_SLABS = 70
CURRENT_SLAB = 71  # index + 1 of the slab that is being filled
QUEUE_HEAD = 72
QUEUE_TAIL = 73
OUTSTANDING = 74  # work entries queued or claimed
QUEUE_SIGNAL = 75  # futex: work came
QUEUE_WAITERS = 76
IDLE_SIGNAL = 77  # futex: OUTSTANDING became 0
IDLE_WAITERS = 78
RECOVERIES = 79  # how often a dead holder's intent was finished or undone
DAMAGED_INTENTS = 80  # how often an intent was none that a commit writes, and was dropped

WRITE_RING_STATE = 96
CHARGE_RING_STATE = 112
# Words of a ring's state, from its first.
TAIL = 0  # byte position behind the newest entry; positions only grow, the place in the ring is position % size
LAST_SEQUENCE = 1
HEAD = 2  # byte position of the oldest entry that is not durable yet
COMMITTED = 3  # sequence of the newest durable entry
DRAIN_SIGNAL = 4  # futex: the consumer is asked to drain
DRAIN_WAITERS = 5
ROOM_SIGNAL = 6  # futex: the head moved
ROOM_WAITERS = 7

COMMIT_LOCK_OFFSET = 2048
INTENT_OFFSET = PAGE
INTENT_PAIRS = 16 * 1024
INTENT_BYTES = 16 * INTENT_PAIRS + PAGE

# A lane.
LANE_BYTES = 512
LANE_PID = 8  # words from the lane's first; its first 8 words are the life lock
LANE_ROLE = 9
LANE_STARTED = 10  # the process's start time in clock ticks, from /proc/PID/stat
LANE_BY_MUTEX = 11  # 1: the life lock tells whether the process lives; 0: pid and start time do
LANE_COUNTERS = 16
COUNTERS = 48
"""Counters in a lane. Lane 0 belongs to nobody: it keeps the sums of lanes that were given back."""

# An entry: words from its first.
ENTRY_WORDS = 10
VERSION = 0  # drawn from COMMIT_SEQUENCE at each change of the record; 0: the entry is free
LOCATION = 1  # byte offset of the record's slot; 0: no bytes here (evicted, or never any)
KEY_HIGH = 2
KEY_LOW = 3
CHAIN = 4  # low half: next entry of the chain, or of the free list; high half: flags
DIRTY = 5  # sequence on the write ring of its newest write: clean once that is committed
QUEUE = 6  # bits 0-31 next in the queue, 32-47 lane, 48-55 attempts, 56-59 state, 60-63 kind
FAMILY = 7  # low half: next sibling; high half: parent
MEMBERS = 8  # low half: first member; high half: last member
COUNTER = 9  # a signed number that belongs to the key

LOW = 0xFFFFFFFF
FLAG_PINNED = 1 << 32
"""Never evicted."""
FLAG_INDEXED = 1 << 33
"""The list of members is complete."""
FLAG_FINISHED = 1 << 34
"""The entry and its members may be dropped as soon as they are clean."""

QUEUE_IDLE = 0
QUEUE_QUEUED = 1
QUEUE_CLAIMED = 2

SLAB_WORDS = 3
SLAB_LIVE = 0
SLAB_USED = 1
SLAB_NEXT = 2
SLAB_IN_USE = 2**64 - 1

DESCRIPTION = (
    "shmcache arena, layout 2; header, state, commit lock, intent, lanes 512, entries 10 words, slabs 3 words, "
    "slots QIIIIQ, ring entries QIIII, counters 48"
)
LAYOUT_HASH = int.from_bytes(hashlib.blake2b(DESCRIPTION.encode(), digest_size=8).digest(), "little")


class Layout(NamedTuple):
    """The regions of one segment: counts, sizes in bytes, and where each begins (byte offsets)."""

    size: int
    lane_count: int
    bucket_count: int
    entry_count: int
    slab_count: int
    slab_size: int
    write_ring_size: int
    charge_ring_size: int
    lanes: int
    buckets: int
    entries: int
    slab_words: int
    slabs: int
    write_ring: int
    charge_ring: int
    end: int


def _page(offset: int) -> int:
    return -(-offset // PAGE) * PAGE


def place(
    size: int,
    lane_count: int,
    bucket_count: int,
    entry_count: int,
    slab_count: int,
    slab_size: int,
    write_ring_size: int,
    charge_ring_size: int,
) -> Layout:
    """Return where the regions lie, given their counts and sizes."""
    lanes = _page(INTENT_OFFSET + INTENT_BYTES)
    buckets = _page(lanes + lane_count * LANE_BYTES)
    entries = _page(buckets + bucket_count * WORD)
    slab_words = _page(entries + entry_count * ENTRY_WORDS * WORD)
    slabs = _page(slab_words + slab_count * SLAB_WORDS * WORD)
    write_ring = _page(slabs + slab_count * slab_size)
    charge_ring = _page(write_ring + write_ring_size)
    end = _page(charge_ring + charge_ring_size)
    return Layout(
        size, lane_count, bucket_count, entry_count, slab_count, slab_size, write_ring_size, charge_ring_size,
        lanes, buckets, entries, slab_words, slabs, write_ring, charge_ring, end,
    )  # fmt: skip


def plan(size: int) -> Layout:
    """Divide a segment of `size` bytes: an eighth for the write ring, a thirty-second for the charge ring, an entry for
    each 768 bytes, the rest for slabs. Raises ValueError for a size under 4 MiB."""
    if size < 4 << 20:
        raise ValueError(f"an arena needs at least 4 MiB, not {size:,} bytes")
    size = size // PAGE * PAGE
    slab_size = 64 << 10 if size < 64 << 20 else 256 << 10 if size < 1 << 30 else 1 << 20
    write_ring = _page(size // 8)
    charge_ring = _page(size // 32)
    entries = size // 768
    buckets = 1 << (entries - 1).bit_length()
    if buckets > 1.5 * entries:
        buckets //= 2
    without_slabs = place(size, 128, buckets, entries, 0, slab_size, write_ring, charge_ring).end
    slabs = (size - without_slabs) // (slab_size + SLAB_WORDS * WORD) - 1
    return place(size, 128, buckets, entries, slabs, slab_size, write_ring, charge_ring)
