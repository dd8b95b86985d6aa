"""Walks a whole arena and says what in it is not as it should be. Every structure accounts for all of its parts:

table      each used entry is reachable exactly once, from the bucket of its key; used + free = all
records    each LOCATION leads to a slot of its own key and version, whole; no two slots overlap
slabs      what lives lies in slabs in use; each is in use, free, or of entries; no two writers fill the same one
rings      entries parse from HEAD to TAIL, sequences follow each other, CRCs hold
families   siblings agree with their parent, which knows its first and last member
queue      the list holds just the entries that are queued; OUTSTANDING = queued + claimed
intent     empty
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from shmcache.arena import layout
from shmcache.arena.layout import (
    CHAIN,
    COMMIT_SEQUENCE,
    DIRTY,
    ENTRIES_USED,
    FAMILY,
    FLAG_PLAIN,
    FLAGS,
    FREE_ENTRY,
    INTENT_OFFSET,
    KEY_HIGH,
    KEY_LOW,
    LENGTH_MASK,
    LOCATION,
    LOW,
    MEMBERS,
    OFFSET_SHIFT,
    OUTSTANDING,
    QUEUE,
    QUEUE_CLAIMED,
    QUEUE_HEAD,
    QUEUE_QUEUED,
    QUEUE_TAIL,
    VERSION,
    WORD,
)
from shmcache.arena.memory import Memory
from shmcache.arena.ring import RingRegion
from shmcache.arena.slab import Slabs
from shmcache.arena.table import Table
from shmcache.arena.work import lane_of, state_of

_MOST_PROBLEMS = 50


def check(memory: Memory, table: Table, slabs: Slabs) -> list[str]:
    """Return what is wrong, each in one sentence, at most 50; nothing, if all is sound. Call under the commit lock."""
    found = _problems(memory, table, slabs)
    return [problem for problem, _ in zip(found, range(_MOST_PROBLEMS), strict=False)]


def _problems(memory: Memory, table: Table, slabs: Slabs) -> Iterator[str]:
    if memory.words[INTENT_OFFSET // WORD]:
        yield f"the intent holds {memory.words[INTENT_OFFSET // WORD]} pairs"
    entries = {table.entry_at(index): row for index, row in enumerate(table.rows().tolist())}
    used: set[int] = set()
    yield from _table_problems(memory, entries, used)
    in_use = {entry: entries[entry] for entry in used}
    yield from _record_problems(memory, table, slabs, in_use)
    yield from _ring_problems(memory)
    yield from _family_problems(in_use)
    yield from _queue_problems(memory, in_use)


def _newest_version(memory: Memory, version: int) -> int:
    """Return the newest version drawn where a version comes from: by commits, or by its stripe."""
    number = version % layout.VERSION_STEP - 1
    if number >= memory.layout.stripe_count:
        return 0
    stripe = (memory.layout.stripes + number * layout.STRIPE_BYTES) // WORD
    newest: int = memory.words[COMMIT_SEQUENCE if number < 0 else stripe + layout.STRIPE_SEQUENCE]
    return newest


def _table_problems(memory: Memory, entries: dict[int, list[int]], used: set[int]) -> Iterator[str]:
    """Fill `used` with the entries that are reachable from the buckets."""
    words = memory.words
    placed = memory.layout
    buckets = np.frombuffer(words, np.uint64, placed.bucket_count, placed.buckets)
    keys: set[tuple[int, int]] = set()
    for bucket in buckets.nonzero()[0].tolist():
        entry = int(buckets[bucket])
        while entry:
            if entry not in entries or entry in used:
                yield f"the chain of bucket {bucket} leads to {entry}: no entry, or one that was met before"
                break
            used.add(entry)
            row = entries[entry]
            key = (row[KEY_HIGH], row[KEY_LOW])
            if not row[CHAIN] & layout.FLAG_USED:
                yield f"entry {entry} is in use and not marked so"
            if row[KEY_LOW] % placed.bucket_count != bucket:
                yield f"entry {entry} hangs on bucket {bucket}, where its key does not belong"
            if key in keys:
                yield f"entry {entry} has a key that another has too"
            keys.add(key)
            if row[VERSION] > _newest_version(memory, row[VERSION]):
                yield f"entry {entry} has version {row[VERSION]}, which was not drawn yet"
            entry = row[CHAIN] & LOW
    free: set[int] = set()
    entry = words[FREE_ENTRY]
    while entry:
        if entry not in entries or entry in free or entry in used:
            yield f"the list of free entries leads to {entry}: no entry, in use, or met before"
            break
        free.add(entry)
        row = entries[entry]
        if row[VERSION] | row[LOCATION] | row[FAMILY] | row[MEMBERS] | row[QUEUE] | row[CHAIN] & FLAGS:
            yield f"entry {entry} is free and not empty"
        entry = row[CHAIN] & LOW
    if len(used) + len(free) != len(entries) and not words[layout.ENTRIES_LEAVE]:
        yield f"{len(used)} entries are in use and {len(free)} free, of {len(entries)}"
    if words[ENTRIES_USED] != len(used):
        yield f"ENTRIES_USED says {words[ENTRIES_USED]}, and {len(used)} are"


def _record_problems(memory: Memory, table: Table, slabs: Slabs, entries: dict[int, list[int]]) -> Iterator[str]:
    live: dict[int, int] = {}
    places: list[tuple[int, int]] = []
    for entry, row in entries.items():
        if row[DIRTY] > memory.words[layout.WRITE_RING_STATE + layout.LAST_SEQUENCE]:
            yield f"entry {entry} waits for sequence {row[DIRTY]}, which the write ring never had"
        location = row[LOCATION]
        if not location:
            continue
        version = slabs.version_at(location) if row[CHAIN] & FLAG_PLAIN else row[VERSION]
        if slabs.read(table.key_of(entry), location, version) is None:
            yield f"entry {entry} has no whole record of version {row[VERSION]} at {location >> OFFSET_SHIFT & ~7}"
            continue
        offset = location >> OFFSET_SHIFT & ~7
        length = location & LENGTH_MASK
        slots = [(offset, slabs.parts(length).room)]
        if length > slabs.longest_in_slot:
            slots += [(piece, slabs.size) for piece in slabs.pieces(offset, length)]
        for begin, room in slots:
            live[slabs.slab_of(begin)] = live.get(slabs.slab_of(begin), 0) + room
        places += slots
    places.sort()
    for (offset, room), (following, _) in pairwise(places):
        if offset + room > following:
            yield f"the slots at {offset} and {following} overlap"
    yield from slabs.problems(live)


def _ring_problems(memory: Memory) -> Iterator[str]:
    words = memory.words
    placed = memory.layout
    for name, state, first, size in (
        ("write", layout.WRITE_RING_STATE, placed.write_ring, placed.write_ring_size),
        ("charge", layout.CHARGE_RING_STATE, placed.charge_ring, placed.charge_ring_size),
    ):
        head, tail = words[state + layout.HEAD], words[state + layout.TAIL]
        committed, last = words[state + layout.COMMITTED], words[state + layout.LAST_SEQUENCE]
        if not head <= tail <= head + size or head % WORD or tail % WORD:
            yield f"the {name} ring of {size} bytes has its head at {head} and its tail at {tail}"
            continue
        entries = RingRegion(memory, name, state, first, size).read(committed, last + 1, size + 1)
        sequences = [entry.sequence for entry in entries]
        if sequences != list(range(committed + 1, last + 1)):
            yield f"the {name} ring has entries {sequences[:1]} to {sequences[-1:]}, not {committed + 1} to {last}"
        for entry in entries:
            if not entry.intact:
                yield f"entry {entry.sequence} of the {name} ring is damaged"


def _family_problems(entries: dict[int, list[int]]) -> Iterator[str]:
    children: dict[int, int] = {}
    for entry, row in entries.items():
        if row[FAMILY]:
            parent = row[FAMILY] >> 32
            children[parent] = children.get(parent, 0) + 1
            if parent not in entries:
                yield f"entry {entry} is a member of {parent}, which is no entry in use"
    for parent, row in entries.items():
        entry = row[MEMBERS] & LOW
        last = 0
        count = 0
        while entry and count <= len(entries):
            if entry not in entries or entries[entry][FAMILY] >> 32 != parent:
                yield f"entry {parent} lists {entry} as a member, which is none of its own"
                break
            last = entry
            count += 1
            entry = entries[entry][FAMILY] & LOW
        if last != row[MEMBERS] >> 32:
            yield f"entry {parent} has {row[MEMBERS] >> 32} for its last member, and {last} is"
        if count != children.get(parent, 0):
            yield f"entry {parent} lists {count} members, and {children.get(parent, 0)} name it as their parent"


def _queue_problems(memory: Memory, entries: dict[int, list[int]]) -> Iterator[str]:
    words = memory.words
    listed: list[int] = []
    entry = words[QUEUE_HEAD]
    while entry:
        if entry not in entries or len(listed) > len(entries) or state_of(entries[entry][QUEUE]) != QUEUE_QUEUED:
            yield f"the work queue leads to {entry}, which is not queued"
            break
        listed.append(entry)
        entry = entries[entry][QUEUE] & LOW
    if words[QUEUE_TAIL] != (listed[-1] if listed else 0):
        yield f"the work queue's tail is {words[QUEUE_TAIL]}, and {listed[-1:]} is its last"
    queued = sum(state_of(row[QUEUE]) == QUEUE_QUEUED for row in entries.values())
    claimed = [row[QUEUE] for row in entries.values() if state_of(row[QUEUE]) == QUEUE_CLAIMED]
    if queued != len(listed):
        yield f"{queued} entries are queued, and {len(listed)} are on the list"
    if words[OUTSTANDING] != queued + len(claimed):
        yield f"OUTSTANDING says {words[OUTSTANDING]}, and {queued} are queued and {len(claimed)} claimed"
    lanes = memory.layout.lanes // WORD
    for lane in {lane_of(word) for word in claimed}:
        if not words[lanes + lane * layout.LANE_BYTES // WORD + layout.LANE_PID]:
            yield f"lane {lane} has claims and no process"
