"""The lease of a fill: what is loaded from the database never covers what was written meanwhile.

(`shmcache.record_store`, `shmcache.arena.committing`.) One record, a number. Writers add one to it: they read it, by a
fill if the arena does not have it, and commit if it is as they read it. A syncer carries it to the database, and what
is clean may be forgotten at any time. A commit is one step here, and so is a statement of the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tests.model.explorer import Atomically, Load, Memory, Note, Rest, Steps, System

RECORD, VERSION, DIRTY, EVICTIONS, SEQUENCE = "record", "version", "dirty", "evictions", "sequence"
ROW, DATABASE = "row on the ring", "database"
TOLD, BEGUN, LEFT = "told", "begun", "evictions left"


def reader(times: int) -> Steps:
    for _ in range(times):
        least = yield Load(TOLD)
        value, _ = yield from read()
        assert value >= least, f"{value} is read after {least} was there"


def writer(times: int) -> Steps:
    for _ in range(times):
        yield Note(lambda memory: memory.update({BEGUN: memory[BEGUN] + 1}))
        done = False
        while not done:
            value, version = yield from read()
            done = yield Atomically(partial(write, value + 1, version))
        yield Note(lambda memory: memory.update({TOLD: memory[TOLD] + 1}))


def read() -> Steps:
    """Return the record and its version, bringing it from the database if need be."""
    while True:
        found = yield Atomically(lambda memory: (memory[RECORD], memory[VERSION]))
        if found[0] is not None:
            return found
        lease = yield Load(EVICTIONS)
        version = yield Load(VERSION)
        if version:
            continue
        loaded = yield Load(DATABASE)
        yield Atomically(partial(fill, loaded, lease))


def fill(loaded: int, lease: int, memory: Memory) -> None:
    if memory[EVICTIONS] != lease or memory[VERSION]:
        return
    memory[SEQUENCE] += 1
    memory[RECORD], memory[VERSION] = loaded, memory[SEQUENCE]


def write(value: int, version: int, memory: Memory) -> bool:
    if memory[VERSION] != version:
        return False
    memory[SEQUENCE] += 1
    memory[RECORD], memory[VERSION] = value, memory[SEQUENCE]
    memory[ROW], memory[DIRTY] = value, memory[SEQUENCE]
    return True


def syncer() -> Steps:
    """Carry what is on the ring to the database, and then say that it is there."""
    while True:
        yield Rest(lambda memory: memory[DIRTY] != 0)
        dirty, value = yield Atomically(lambda memory: (memory[DIRTY], memory[ROW]))
        yield Atomically(lambda memory: memory.update({DATABASE: value}))
        yield Atomically(lambda memory: memory[DIRTY] == dirty and memory.update({DIRTY: 0}))
        dirty = value = None


def evictor() -> Steps:
    while True:
        yield Rest(lambda memory: memory[LEFT] and memory[RECORD] is not None and not memory[DIRTY])
        yield Atomically(forget)


def forget(memory: Memory) -> None:
    if memory[RECORD] is not None and not memory[DIRTY]:
        memory[RECORD], memory[VERSION] = None, 0
        memory[EVICTIONS] += 1
        memory[LEFT] -= 1


def at_the_end(memory: Memory, fates: Mapping[str, str]) -> str | None:
    if not memory[TOLD] <= memory[DATABASE] <= memory[BEGUN] and fates["syncer"] != "died":
        return f"{memory[TOLD]} additions were acknowledged, {memory[DATABASE]} are in the database"
    return None


def system(writers: int, times: int, evictions: int, readers: int = 0, deaths: int = 1) -> System:
    """Return writers and readers, a syncer, and what makes room."""
    return System(
        memory={
            **dict.fromkeys((VERSION, DIRTY, EVICTIONS, SEQUENCE, ROW, DATABASE, TOLD, BEGUN), 0),
            RECORD: None,
            LEFT: evictions,
        },
        processes={
            **{f"writer {number}": partial(writer, times) for number in range(1, writers + 1)},
            **{f"reader {number}": partial(reader, 1) for number in range(1, readers + 1)},
            "syncer": syncer,
            "evictor": evictor,
        },
        deaths=deaths,
        finally_=at_the_end,
    )


def systems() -> list[System]:
    return [
        system(writers=2, times=1, evictions=2),
        system(writers=1, times=2, evictions=2, readers=1),
        system(writers=2, times=2, evictions=2, deaths=0),
    ]


def large_systems() -> list[System]:
    return [system(writers=3, times=1, evictions=2), system(writers=2, times=2, evictions=3)]
