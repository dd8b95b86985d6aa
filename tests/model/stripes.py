"""Plain records: overwritten under a stripe's lock alone, while others commit, read, and die.

(`shmcache.arena.stripes`.) One key, one entry, one stripe. `put` overwrites the record; where it may not, it commits.
`forget` is a commit that takes the record away, as an eviction does. Readers take no lock unless what they see does not
fit together; what they keep decoded they use while the entry's VERSION stands.

A slot is one word here: that a copy is whole is shown in `tests.model.table`. Slots are never written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from tests.model import commit
from tests.model.commit import DOUBT, LOCK, enter, publish
from tests.model.explorer import Acquire, Load, Memory, Note, Release, Steps, Store, System

STRIPE = "stripe lock"
SEQUENCE, POSITION, LOCATION, VERSION = "commit sequence", "position", "location", "version"
STRIPE_SEQUENCE = "stripe sequence"
STORED, TOLD, SEEN, FORGOTTEN = "stored", "told", "seen", "forgotten"
FIRST, BEGIN, END = 1, 2, 4
"""The slot of the record that is there at first; where the stripe's slab begins and ends; commits write behind it."""


def slot(position: int) -> tuple[str, int]:
    return ("slot", position)


# Writers


def overwrite(value: str) -> Steps:
    """Answer whether it did; if not, it takes a commit."""
    yield Acquire(STRIPE)
    doubt = yield Load(DOUBT)
    position = yield Load(POSITION)
    location = yield Load(LOCATION)
    if doubt or not location or position == END:
        yield Release(STRIPE)
        return False
    version = yield Load(STRIPE_SEQUENCE)
    yield Store(STRIPE_SEQUENCE, version + 2)
    yield Store(slot(position), (version + 2, value))
    # step: written
    yield Store(POSITION, position + 1)
    # step: reserved
    yield Store(LOCATION, position)
    # step: published
    yield Store(VERSION, version + 2)
    # step: versioned
    yield Release(STRIPE)
    return True


def with_stripe(change: Callable[[], Steps]) -> Steps:
    """Do a commit that concerns a plain key; answer what it found."""
    yield from enter()
    yield Acquire(STRIPE)
    yield Store(DOUBT, 1)
    found = yield from change()
    yield Store(DOUBT, 0)
    yield Release(STRIPE)
    yield Release(LOCK)
    return found


def put_by_commit(value: str, position: int) -> Steps:
    sequence = yield Load(SEQUENCE)
    yield Store(slot(position), (sequence + 2, value))
    yield from publish(((SEQUENCE, sequence + 2), (LOCATION, position), (VERSION, sequence + 2)))


def forget() -> Steps:
    sequence = yield Load(SEQUENCE)
    yield Note(lambda memory: memory.update({FORGOTTEN: True}))
    yield from publish(((SEQUENCE, sequence + 2), (VERSION, 0), (LOCATION, 0)))


def put(value: str, position: int, by_commit: bool) -> Steps:
    done = False
    if not by_commit:
        done = yield from overwrite(value)
    if not done:
        yield from with_stripe(partial(put_by_commit, value, position))
    yield Note(lambda memory: memory.update({TOLD: memory[TOLD] | {value}}))


def writer(name: str, place: int, work: str) -> Steps:
    """Put for each "p", put in a commit for each "c", forget for each "f"."""
    for index, what in enumerate(work):
        if what != "f":
            yield from put(f"{name}{index}", place + index, what == "c")
            continue
        yield from with_stripe(forget)


# Readers


def reader(times: int) -> Steps:
    kept: tuple[int, str] | None = None
    for _ in range(times):
        least = yield Note(least_to_be_seen)
        if kept is not None:
            current = yield Load(VERSION)
            if current != kept[0]:
                kept = None
        if kept is None:
            kept = yield from read()
        yield Note(partial(check_seen, least, kept and kept[1]))


def read() -> Steps:
    """Return version and value, or None."""
    version = yield Load(VERSION)
    location = yield Load(LOCATION)
    if location:
        found = yield Load(slot(location))
        if found[0] == version:
            return found
    found = yield from with_stripe(read_certainly)
    return found


def read_certainly() -> Steps:
    location = yield Load(LOCATION)
    if not location:
        return None
    found = yield Load(slot(location))
    version = yield Load(VERSION)
    if found[0] != version:
        sequence = yield Load(SEQUENCE)
        yield from publish(((SEQUENCE, sequence + 2), (VERSION, found[0])))
    return found


# What has to hold


def note_stored(memory: Memory) -> None:
    location = memory[LOCATION]
    if location:
        memory[STORED] = (*memory[STORED], memory[slot(location)][1])


def least_to_be_seen(memory: Memory) -> int:
    """Return how new the record is at least that who begins to read now has to get."""
    stored = memory[STORED]
    least: int = max([memory[SEEN], *(place for place, value in enumerate(stored) if value in memory[TOLD])])
    return least


def check_seen(least: int, value: str | None, memory: Memory) -> None:
    if value is None:
        assert memory[FORGOTTEN], "a record is not found that nobody forgot"
        return
    assert value in memory[STORED], "something is read that was never stored"
    place = memory[STORED].index(value)
    assert place >= least, f"{value} is read after {memory[STORED][least]} was there"
    memory[SEEN] = max(memory[SEEN], place)


def at_the_end(memory: Memory, _fates: Mapping[str, str]) -> str | None:
    stored = memory[STORED]
    if not memory[TOLD] <= set(stored):
        return "a put was acknowledged and never stored"
    if len(stored) != len(set(stored)):
        return f"a record came back: {stored}"
    return None


def system(*work: str, reads: tuple[int, ...], deaths: int) -> System:
    """Return writers, each with its work, and readers, each with so many reads."""
    return System(
        memory={
            **commit.words(),
            **dict.fromkeys((FORGOTTEN, SEEN), 0),
            **{slot(place): None for place in range(FIRST, END + 3 * len(work))},
            slot(FIRST): (2, "the first"),
            POSITION: BEGIN,
            LOCATION: FIRST,
            VERSION: 2,
            SEQUENCE: 2,
            STRIPE_SEQUENCE: 1,
            STORED: ("the first",),
            TOLD: frozenset(),
        },
        locks=[LOCK, STRIPE],
        processes={
            **{
                f"writer {number}": partial(writer, f"{number}.", END + 3 * number, each)
                for number, each in enumerate(work)
            },
            **{f"reader {number}": partial(reader, times) for number, times in enumerate(reads)},
        },
        deaths=deaths,
        finally_=at_the_end,
        watched=LOCATION,
        on_change=note_stored,
    )


def systems() -> list[System]:
    return [
        system("p", "c", reads=(1,), deaths=1),
        system("pf", "", reads=(2,), deaths=1),
        system("p", "p", reads=(2,), deaths=1),
        system("p", reads=(1, 2), deaths=1),
    ]


def large_systems() -> list[System]:
    return [
        system("pf", reads=(1, 2), deaths=1),
        system("ppp", "cf", reads=(2,), deaths=2),
    ]
