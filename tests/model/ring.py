"""The write ring, from a put to its row in the database, under two leaders (`shmcache.arena.ring`, `syncer.consumer`).

Producers append entries behind the tail, under the commit lock; that a commit is all or nothing is shown in
`tests.model.commit`, so here it is one step. The lock file that elects a leader may be deleted, and a leader may be
stopped past its takeover: so two leaders lead whenever they like, and only the epoch is between them. The database does
a transaction in one step; its answer may get lost after the commit.

An entry is two words: its header, which says the sequence and what the payload has to be (the CRC), and the payload.
The ring has room for one or two.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

from tests.model.explorer import Acquire, Atomically, Choose, Load, Memory, Note, Release, Rest, Steps, Store, System

LOCK = "commit lock"
HEAD, TAIL, COMMITTED, LAST = "head", "tail", "committed", "last sequence"
EPOCH, CHECKPOINT, ROWS, LETTERS = "epoch", "checkpoint", "rows", "dead letters"
PUT, TOLD, LEADER = "put", "told", "leader"


Entry: TypeAlias = tuple[int, object, bool]
"""Sequence, payload, and whether it is intact."""


class Sizes(NamedTuple):
    """How large a system is: what the ring holds, who puts how many entries, how often leaders stand and fail."""

    ring: int = 2
    producers: int = 1
    entries: int = 2
    leaders: int = 2
    leads: int = 1
    failures: int = 1
    deaths: int = 1


def header(position: int, sizes: Sizes) -> tuple[str, int]:
    return ("header", position % sizes.ring)


def payload(position: int, sizes: Sizes) -> tuple[str, int]:
    return ("payload", position % sizes.ring)


# Producers


def producer(name: str, sizes: Sizes) -> Steps:
    for number in range(sizes.entries):
        yield from put((name, number), sizes)


def put(value: tuple[str, int], sizes: Sizes) -> Steps:
    while True:
        yield Acquire(LOCK)
        # What changes under the lock alone is read in one step: nobody can tell the difference.
        tail, head, sequence = yield Atomically(lambda memory: (memory[TAIL], memory[HEAD], memory[LAST]))
        if tail - head < sizes.ring:
            break
        yield Release(LOCK)
        yield Rest(lambda memory: memory[HEAD] != head)
    yield Store(header(tail, sizes), (sequence + 1, value))
    yield Store(payload(tail, sizes), value)
    yield Atomically(lambda memory: memory.update({TAIL: tail + 1, LAST: sequence + 1}))
    yield Note(lambda memory: memory.update({PUT: (*memory[PUT], value)}))
    yield Release(LOCK)
    yield Note(lambda memory: memory.update({TOLD: memory[TOLD] | {value}}))


# A leader


def leader(name: str, sizes: Sizes) -> Steps:
    for _ in range(sizes.leads):
        yield from lead(name, sizes)


def lead(name: str, sizes: Sizes) -> Steps:
    """Lead until another has taken over."""
    epoch, after = yield Atomically(lambda memory: begin_epoch(memory, name))
    # step: begun
    yield from advance(after)
    # step: resumed
    failures = sizes.failures
    while True:
        entries = yield from take(after, sizes)
        # step: taken
        if not entries:
            yield Rest(lambda memory: memory[LAST] > after)
            continue
        outcome = yield from carry(epoch, entries, failures)
        if outcome == "fenced":
            return
        if outcome == "error":
            failures -= 1
            continue
        # step: carried
        after = entries[-1][0]
        entries = outcome = None
        yield from advance(after)
        # step: advanced


def carry(epoch: int, entries: tuple[Entry, ...], failures: int) -> Steps:
    """Have the database write entries: it does; or it cannot be reached; or it does, and nobody hears of it."""
    connection = yield Choose(("good", "cut before", "cut after") if failures else ("good",))
    if connection == "cut before":
        return "error"
    is_ours = yield Atomically(lambda memory: write(memory, epoch, entries))
    if connection == "cut after":
        return "error"
    return "written" if is_ours else "fenced"


def begin_epoch(memory: Memory, name: str) -> tuple[int, int]:
    memory[LEADER] = name
    memory[EPOCH] += 1
    return memory[EPOCH], memory[CHECKPOINT]


def take(after: int, sizes: Sizes) -> Steps:
    """Return entries behind a sequence, as (sequence, payload, whether they are intact)."""
    entries = yield from read(after, sizes)
    if all(intact for _, _, intact in entries):
        return entries
    yield Acquire(LOCK)
    entries = yield from read(after, sizes)
    yield Release(LOCK)
    return entries


def read(after: int, sizes: Sizes) -> Steps:
    # In this order: a head that moves in between is ahead of the sequence, and what is found there is not what is
    # expected. The other way round, bytes that are no entry yet may be just what is expected.
    sequence = yield Load(COMMITTED)
    position = yield Load(HEAD)
    tail = yield Load(TAIL)
    head = yield Load(HEAD)
    entries: tuple[Entry, ...] = ()
    while position < min(tail, head + sizes.ring):
        found = yield Load(header(position, sizes))
        value = yield Load(payload(position, sizes))
        sequence += 1
        position += 1
        if sequence > after:
            intact = found == (sequence, value)
            entries = (*entries, (sequence, value, intact))
    return entries


def write(memory: Memory, epoch: int, entries: tuple[Entry, ...]) -> bool:
    """Write rows and checkpoint in one transaction; return False, having written nothing, if the epoch is over."""
    if memory[EPOCH] != epoch:
        return False
    before = memory[CHECKPOINT]
    for sequence, value, intact in entries:
        if sequence > before:
            where = ROWS if intact else LETTERS
            memory[where] = (*memory[where], value)
    memory[CHECKPOINT] = max(before, entries[-1][0])
    return True


def advance(sequence: int) -> Steps:
    yield Acquire(LOCK)
    yield Atomically(lambda memory: move_head(memory, sequence))
    yield Release(LOCK)


def move_head(memory: Memory, sequence: int) -> None:
    if sequence > memory[COMMITTED]:
        memory[HEAD] = memory[COMMITTED] = sequence


# What has to hold


def always(sizes: Sizes, memory: Memory) -> str | None:
    put, rows, checkpoint = memory[PUT], memory[ROWS], memory[CHECKPOINT]
    if memory[LETTERS]:
        return "an entry that nobody damaged is a dead letter"
    if rows != put[:checkpoint]:
        return f"rows {rows} with the checkpoint at {checkpoint}, of entries {put}"
    if memory[COMMITTED] > checkpoint:
        return "the ring says that something is durable which is not"
    for position in range(memory[HEAD], memory[TAIL]):
        if (memory[header(position, sizes)], memory[payload(position, sizes)]) != (
            (position + 1, put[position]),
            put[position],
        ):
            return "an entry that is on the ring is overwritten"
    return None


def at_the_end(memory: Memory, fates: Mapping[str, str]) -> str | None:
    if not memory[TOLD] <= set(memory[PUT]):
        return "an entry was acknowledged and is not there"
    if fates.get(memory[LEADER]) == "rests":
        if memory[ROWS] != memory[PUT]:
            return f"the leader is at rest, and of {memory[PUT]} the database has {memory[ROWS]}"
        if "rests" in (fate for name, fate in fates.items() if name.startswith("producer")):
            return "a producer waits for room that nobody will make"
    return None


def system(sizes: Sizes) -> System:
    """Return producers and leaders over a ring."""
    producers = [f"producer {number}" for number in range(1, sizes.producers + 1)]
    leaders = [f"leader {number}" for number in range(1, sizes.leaders + 1)]
    return System(
        memory={
            **dict.fromkeys((HEAD, TAIL, COMMITTED, LAST, EPOCH, CHECKPOINT), 0),
            **dict.fromkeys((ROWS, LETTERS, PUT), ()),
            TOLD: frozenset(),
            LEADER: None,
            **{word(position, sizes): None for position in range(sizes.ring) for word in (header, payload)},
        },
        locks=[LOCK],
        processes={
            **{name: partial(producer, name, sizes) for name in producers},
            **{name: partial(leader, name, sizes) for name in leaders},
        },
        deaths=sizes.deaths,
        always=partial(always, sizes),
        finally_=at_the_end,
    )


def systems() -> list[System]:
    return [
        system(Sizes(ring=1, failures=0, deaths=0)),
        system(Sizes(ring=1, producers=2, leaders=1, leads=3, failures=2)),
        system(Sizes(failures=0)),
        system(Sizes(ring=1)),
    ]


def large_systems() -> list[System]:
    return [
        system(Sizes()),
        system(Sizes(entries=3, failures=0)),
        system(Sizes(ring=1, producers=2, entries=1)),
        system(Sizes(ring=1, leads=2)),
        system(Sizes(failures=0, producers=2, entries=1, deaths=2)),
    ]
