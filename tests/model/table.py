"""Records read without a lock, while they are put, moved and forgotten and their places used again.

(`shmcache.arena.reading`, `table`, `slab`, `moving`.) One bucket, two entries, slots of two words of bytes. A writer
does what a script says, each in a commit that may be cut off by its death; a reader reads one key, and reads it again
from what it keeps decoded while the entry's version stands.

    entry    key, version, location, the next one on its chain       slot    (version, CRC), then two words of bytes

The CRC covers key, version and bytes. Whatever has no lock may see each store of a commit by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.model import commit
from tests.model.commit import LOCK, enter, publish
from tests.model.explorer import Load, Memory, Note, Release, Steps, Store, System

SEQUENCE, BUCKET, FREE, CURRENT, FORGOTTEN, SEEN = "sequence", "bucket", "free", "current", "forgotten", "seen"
ENTRIES = ("entry 1", "entry 2")
SLOTS = ("slot 1", "slot 2")
HOPS = 3


def crc(key: str, version: int, record: tuple[int, int]) -> tuple[object, ...]:
    return (key, version, record)


# The writer. Its own reads are under the lock: what it finds is what `words` was at the end of its last commit.


def in_commit(change: Callable[[], Steps]) -> Steps:
    yield from enter()
    yield from change()
    yield Release(LOCK)


def find_certainly(key: str) -> Steps:
    """Return a key's entry and the one before it on the chain."""
    before = None
    entry = yield Load(BUCKET)
    while entry is not None:
        found = yield Load((entry, "key"))
        if found == key:
            break
        before = entry
        entry = yield Load((entry, "next"))
    return entry, before


def put(key: str, number: int, slot: str) -> Steps:
    """Put record `number` under a key, into a slot that nothing refers to."""
    entry, _ = yield from find_certainly(key)
    sequence = yield Load(SEQUENCE)
    version = sequence + 1
    record = (number, number)
    yield Store((slot, "head"), (version, crc(key, version, record)))
    yield Store((slot, 0), record[0])
    yield Store((slot, 1), record[1])
    stage: tuple[tuple[object, object], ...] = ((SEQUENCE, version),)
    if entry is None:
        entry = yield Load(FREE)
        following = yield Load(BUCKET)
        free = yield Load((entry, "next"))
        stage = (
            *stage, ((entry, "key"), key), ((entry, "location"), slot),
            ((entry, "next"), following), (BUCKET, entry), (FREE, free),
        )  # fmt: skip
    else:
        stage = (*stage, ((entry, "location"), slot))
    yield from publish((*stage, ((entry, "version"), version)))
    yield Note(lambda memory: memory.update({(CURRENT, key): number}))


def forget(key: str, slot: str) -> Steps:
    """Forget a key; its slot is free from then on."""
    entry, before = yield from find_certainly(key)
    sequence = yield Load(SEQUENCE)
    following = yield Load((entry, "next"))
    free = yield Load(FREE)
    yield Note(lambda memory: memory.update({FORGOTTEN: memory[FORGOTTEN] | {key}}))
    link = (BUCKET, following) if before is None else ((before, "next"), following)
    yield from publish((
        (SEQUENCE, sequence + 1), link, ((entry, "version"), 0), ((entry, "location"), None), ((entry, "key"), None),
        ((entry, "next"), free), (FREE, entry),
    ))  # fmt: skip


def move(key: str, slot: str) -> Steps:
    """Copy a key's record to another slot, as it is; the old one is free from then on."""
    entry, _ = yield from find_certainly(key)
    sequence = yield Load(SEQUENCE)
    old = yield Load((entry, "location"))
    for _, part in enumerate(("head", 0, 1)):
        word = yield Load((old, part))
        yield Store((slot, part), word)
    yield from publish(((SEQUENCE, sequence + 1), ((entry, "location"), slot)))


def writer(script: tuple[tuple[Any, ...], ...]) -> Steps:
    for _, (what, *how) in enumerate(script):
        yield from in_commit(partial(what, *how))


# The reader


def reader(key: str, times: int) -> Steps:
    kept = None
    for _ in range(times):
        least = yield Note(lambda memory: max(memory[CURRENT, key], memory[SEEN]))
        if kept is not None:
            current = yield Load((kept[0], "version"))
            if current != kept[1]:
                kept = None
        if kept is None:
            kept = yield from peek(key)
        yield Note(partial(check_seen, key, least, kept and kept[2]))


def peek(key: str) -> Steps:
    """Return entry, version and record of a key, or None."""
    found = yield from try_once(key)
    if found is None:
        yield from enter()
        found = yield from try_once(key)
        yield Release(LOCK)
    return found


def try_once(key: str) -> Steps:
    entry = yield Load(BUCKET)
    for _ in range(HOPS):
        if entry is None:
            return None
        name = yield Load((entry, "key"))
        if name == key:
            break
        entry = yield Load((entry, "next"))
    else:
        return None
    version = yield Load((entry, "version"))
    slot = yield Load((entry, "location"))
    if slot is None:
        return None
    head = yield Load((slot, "head"))
    first = yield Load((slot, 0))
    second = yield Load((slot, 1))
    if head != (version, crc(key, version, (first, second))):
        return None
    return entry, version, (first, second)


# What has to hold


def check_seen(key: str, least: int, record: tuple[int, int] | None, memory: Memory) -> None:
    if record is None:
        assert key in memory[FORGOTTEN], "a record is not found that nobody forgot"
        return
    assert record[0] == record[1], "a record is half of one and half of another"
    assert record[0] in RECORDS[key], "another key's record is read"
    assert record[0] >= least, f"record {record[0]} is read after {least} was there"
    memory[SEEN] = record[0]


RECORDS = {"K": range(10), "L": range(10, 20)}


def system(script: tuple[tuple[Any, ...], ...], reads: int, deaths: int = 1, chain: str = "K") -> System:
    """Return a writer over K's record 1, or K's and L's with L before it on the chain, and a reader of K."""
    memory: Memory = {
        **commit.words(8),
        SEQUENCE: 2,
        BUCKET: "entry 1",
        FREE: "entry 2",
        (CURRENT, "K"): 1,
        (CURRENT, "L"): 10,
        FORGOTTEN: frozenset(),
        SEEN: 0,
        **{(entry, what): None for entry in (*ENTRIES, "entry 3") for what in ("key", "location", "next")},
        **{(entry, "version"): 0 for entry in (*ENTRIES, "entry 3")},
        **{(slot, what): None for slot in (*SLOTS, "slot 3") for what in ("head", 0, 1)},
    }
    memory |= {("entry 1", "key"): "K", ("entry 1", "version"): 2, ("entry 1", "location"): "slot 1"}
    memory |= {("slot 1", "head"): (2, crc("K", 2, (1, 1))), ("slot 1", 0): 1, ("slot 1", 1): 1}
    if chain == "LK":
        memory |= {BUCKET: "entry 2", FREE: "entry 3", ("entry 2", "next"): "entry 1"}
        memory |= {("entry 2", "key"): "L", ("entry 2", "version"): 1, ("entry 2", "location"): "slot 2"}
        memory |= {("slot 2", "head"): (1, crc("L", 1, (10, 10))), ("slot 2", 0): 10, ("slot 2", 1): 10}
    return System(
        memory=memory,
        locks=[LOCK],
        processes={"writer": partial(writer, script), "reader": partial(reader, "K", reads)},
        deaths=deaths,
    )


OVERWRITTEN = ((put, "K", 2, "slot 2"), (put, "K", 3, "slot 1"))
REUSED = ((forget, "K", "slot 1"), (put, "L", 11, "slot 1"), (put, "K", 2, "slot 2"))
MOVED = ((move, "K", "slot 2"), (put, "L", 11, "slot 1"))
BEHIND = ((forget, "L", "slot 2"), (put, "L", 11, "slot 2"))


LEFT_BEHIND = ((forget, "K", "slot 1"), (forget, "L", "slot 2"), (put, "K", 2, "slot 2"))


def systems() -> list[System]:
    return [
        system(OVERWRITTEN, 2),
        system(REUSED, 2),
        system(MOVED, 2),
        system(BEHIND, 2, chain="LK"),
        system(LEFT_BEHIND, 2, chain="LK"),
        system((*REUSED, (move, "K", "slot 3"), (forget, "L", "slot 1"), (put, "K", 3, "slot 1")), 3),
        system((*MOVED, (put, "K", 2, "slot 3"), (forget, "L", "slot 1"), (put, "L", 12, "slot 2")), 3),
    ]


def large_systems() -> list[System]:
    script = (*REUSED, (move, "K", "slot 3"), (forget, "L", "slot 1"), (put, "K", 3, "slot 1"))
    return [system((*script, (forget, "K", "slot 1"), (put, "K", 4, "slot 2")), 4)]
