"""Where everything lies in the segment: the one table of its regions and of the words in them.

    +--------------------+  0
    | header             |  what the segment is and was made with; never changes once `READY` is set
    | state              |  counters, list heads, ring positions: words that change under the commit lock
    | commit lock        |  one robust mutex
    +--------------------+
    | intent             |  count, then pairs (word, value): what the holder of the commit lock is about to store
    +--------------------+
    | lanes              |  one for each attached process: life lock, pid, role, counters, histograms
    | stripes            |  one for each part of the plain keys: lock, where it writes, its versions
    +--------------------+
    | buckets            |  one word each: the first entry of a hash chain, 0 for none
    | slab words         |  2 words a slab: next free slab or what it is used for, when it was taken
    +--------------------+
    | slabs              |  the records' bytes, filled from front to back
    |   ^                |
    | entries            |  10 words each: a key, where its record lies, and the lists and queues it is part of;
    +--------------------+  numbered from the end; the last slabs become entries when more are needed
    | write ring         |
    | charge ring        |
    +--------------------+
    | load locks         |  robust mutexes: who loads a missing record, and who waits for it
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
STRIPE_COUNT_WORD = 16

# State: words that change under the commit lock.
COMMIT_SEQUENCE = 64  # the versions that commits draw: multiples of VERSION_STEP
EVICTIONS = 66  # changes when a key is forgotten: voids the leases of fills under way
FREE_ENTRY = 67  # head of the list of free entries
ENTRIES_USED = 68
FREE_SLAB = 69  # head of the list of free slabs (index + 1)
FREE_SLABS = 70
SLABS_TAKEN = 71  # how many slabs were ever taken: the age of each is counted by it
QUEUE_HEAD = 72
QUEUE_TAIL = 73
OUTSTANDING = 74  # work entries queued or claimed
QUEUE_SIGNAL = 75  # futex: work came
QUEUE_WAITERS = 76
IDLE_SIGNAL = 77  # futex: OUTSTANDING became 0
IDLE_WAITERS = 78
RECOVERIES = 79  # how often a dead holder's intent was finished or undone
DAMAGED_INTENTS = 80  # how often an intent was none that a commit writes, and was dropped
POSITION = 81  # byte offset at which the next record of a commit is written
POSITION_END = 82  # and where that slab ends; both 0: none is taken
ENTRY_SLABS = 83  # how many slabs, from the last, have become entries
ENTRIES_LEAVE = 85  # 1: the last slab of entries is being given back; if that died, the free list is to be made anew
FORGET = 86  # raised when slabs of entries cannot be given back for what processes have decoded
HAND = 87  # eviction's clock: the stamp of the slab that it looked at last
LATEST_TIME = 88  # microseconds since 1970: no commit was told a later time; see `Arena.time_after`
ENDED = 95  # 1: its last process is about to remove the segment: whoever comes now must not write to it any more
DOUBT = 84  # 1: the holder of the commit lock is changing plain keys, and holds their stripes while it lives

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
CLEANING_LOCK_OFFSET = 2112  # whoever makes room holds it: one is enough
INTENT_OFFSET = PAGE
INTENT_PAIRS = 16 * 1024
INTENT_BYTES = 16 * INTENT_PAIRS + PAGE

# A lane.
LANE_BYTES = 1536
LANE_PID = 8  # words from the lane's first; its first 8 words are the life lock
LANE_ROLE = 9
LANE_STARTED = 10  # the process's start time in clock ticks, from /proc/PID/stat
LANE_LOWEST = 12  # the lowest entry that the process may have decoded; 0: none
LANE_BY_MUTEX = 11  # 1: the life lock tells whether the process lives; 0: pid and start time do
LANE_EPOCH = 13  # the epoch in which the process leads; 0: it does not
LANE_BEAT = 15  # grows each time the process shows that it goes on
LANE_COUNTERS = 16
COUNTERS = 48
LANE_HISTOGRAMS = LANE_COUNTERS + COUNTERS
HISTOGRAM_WORDS = 128
"""Counters and words of histograms in a lane. Lane 0 belongs to nobody: it keeps the sums of lanes that were given
back."""

# A stripe: words from its first; its first 8 are its lock.
STRIPE_BYTES = 128
STRIPE_POSITION = 8
STRIPE_END = 9
STRIPE_SEQUENCE = 10  # the versions that it draws: multiples of VERSION_STEP, plus its number + 1
MOST_STRIPES = 64
VERSION_STEP = 128
"""Versions are unique in the whole arena: each stripe draws its own, and commits draw theirs."""

# An entry: words from its first.
ENTRY_WORDS = 10
VERSION = 0  # another one at each change of the record, never used before; 0: the entry is free
LOCATION = 1  # slot's byte offset / 8 << 28 | record's length; 0: no bytes here (evicted, or never any)
KEY_HIGH = 2
KEY_LOW = 3
CHAIN = 4  # low half: next entry of the chain, or of the free list; above it: flags; highest byte: read lately
DIRTY = 5  # sequence on the write ring of its newest write: clean once that is committed
QUEUE = 6  # bits 0-31 next in the queue, 32-47 lane, 48-55 attempts, 56-59 state, 60-63 kind
FAMILY = 7  # low half: next sibling; high half: parent
MEMBERS = 8  # low half: first member; high half: last member
COUNTER = 9  # a signed number that belongs to the key

LOAD_LOCKS = 64
LOAD_LOCK_BYTES = 64

LOW = 0xFFFFFFFF
FLAG_PINNED = 1 << 32
"""Never evicted."""
FLAG_INDEXED = 1 << 33
"""The list of members is complete."""
FLAG_FINISHED = 1 << 34
"""The entry and its members may be dropped as soon as they are clean."""
FLAG_PLAIN = 1 << 35
"""The record is changed under the lock of its key's stripe, and by `Arena.put` under that alone."""
FLAG_USED = 1 << 36
"""The entry is some key's: all but this are free."""
FLAGS = 0x00FFFFFF << 32
READ_LATELY = 1 << 56
READ_LATELY_BYTE = CHAIN * WORD + 7
"""Set by readers, without a lock, as a byte; cleared by eviction. To lose it costs nothing."""

LENGTH_BITS = 28
LENGTH_MASK = (1 << LENGTH_BITS) - 1
OFFSET_SHIFT = LENGTH_BITS - 3
"""A location is an offset (a multiple of 8) shifted by this, and the length."""

QUEUE_IDLE = 0
QUEUE_QUEUED = 1
QUEUE_CLAIMED = 2

SLAB_WORDS = 2
SLAB_STATE = 0  # of a free slab: the next free one (index + 1), 0 for the last
SLAB_STAMP = 1  # SLABS_TAKEN when it was taken
SLAB_IN_USE = 2**64 - 1
SLAB_OF_ENTRIES = 2**64 - 2

DESCRIPTION = (
    "shmcache arena, layout 5; header, state, commit lock, intent, lanes 1536, stripes 128, entries 10 words from the "
    "end, slabs 2 words, slots QII, locations 36+28, ring entries QIIII, counters 48, histograms 128, "
    "load locks 64"
)
LAYOUT_HASH = int.from_bytes(hashlib.blake2b(DESCRIPTION.encode(), digest_size=8).digest(), "little")


class Layout(NamedTuple):
    """The regions of one segment: counts, sizes in bytes, and where each begins (byte offsets).

    `entry_count` is what the segment begins with; entries end at `entries_end` and grow downwards from there."""

    size: int
    lane_count: int
    bucket_count: int
    entry_count: int
    slab_count: int
    slab_size: int
    write_ring_size: int
    charge_ring_size: int
    stripe_count: int
    lanes: int
    stripes: int
    buckets: int
    slab_words: int
    slabs: int
    entries_end: int
    write_ring: int
    charge_ring: int
    load_locks: int
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
    stripe_count: int,
) -> Layout:
    """Return where the regions lie, given their counts and sizes."""
    lanes = _page(INTENT_OFFSET + INTENT_BYTES)
    stripes = _page(lanes + lane_count * LANE_BYTES)
    buckets = _page(stripes + stripe_count * STRIPE_BYTES)
    slab_words = _page(buckets + bucket_count * WORD)
    slabs = _page(slab_words + slab_count * SLAB_WORDS * WORD)
    entries_end = _page(slabs + slab_count * slab_size + entry_count * ENTRY_WORDS * WORD)
    write_ring = entries_end
    charge_ring = _page(write_ring + write_ring_size)
    load_locks = _page(charge_ring + charge_ring_size)
    end = _page(load_locks + LOAD_LOCKS * LOAD_LOCK_BYTES)
    return Layout(
        size, lane_count, bucket_count, entry_count, slab_count, slab_size, write_ring_size, charge_ring_size,
        stripe_count, lanes, stripes, buckets, slab_words, slabs, entries_end, write_ring, charge_ring, load_locks, end,
    )  # fmt: skip


def plan(size: int, write_ring_size: int | None = None, charge_ring_size: int | None = None) -> Layout:
    """Divide a segment of `size` bytes: an eighth for the write ring and a thirty-second for the charge ring if nothing
    else is said, a bucket for about each KiB, a few entries, the rest for slabs. Raises ValueError for a size under
    4 MiB, and for rings that leave less than 2 MiB."""
    if size < 4 << 20:
        raise ValueError(f"an arena needs at least 4 MiB, not {size:,} bytes")
    size = size // PAGE * PAGE
    slab_size = 16 << 10 if size < 16 << 20 else 64 << 10 if size < 128 << 20 else 256 << 10
    if size >= 1 << 30:
        slab_size = 1 << 20
    write_ring = _page(size // 8 if write_ring_size is None else max(write_ring_size, PAGE))
    charge_ring = _page(size // 32 if charge_ring_size is None else max(charge_ring_size, PAGE))
    if size - write_ring - charge_ring < 2 << 20:
        raise ValueError(f"rings of {write_ring:,} and {charge_ring:,} bytes leave no room for records in {size:,}")
    buckets = 1 << (size // 1024).bit_length() - 1
    stripes = 1 << max(0, min(size // slab_size // 32, MOST_STRIPES).bit_length() - 1)
    entries = slab_size // (ENTRY_WORDS * WORD)
    without_slabs = place(size, 128, buckets, entries, 0, slab_size, write_ring, charge_ring, stripes).end
    slabs = (size - without_slabs) // (slab_size + SLAB_WORDS * WORD) - 1
    return place(size, 128, buckets, entries, slabs, slab_size, write_ring, charge_ring, stripes)
