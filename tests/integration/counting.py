"""Counts what an operation costs in things that do not depend on the machine: waits for the database, locks taken,
records copied out of the arena and decoded, records encoded to be copied in, entries put on a ring."""

from __future__ import annotations

import sys
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

from shmcache import codec
from shmcache.arena import Arena, Counter, reading

_DECODE = codec.decode.__code__
_ENCODE = codec.encode.__code__
_PEEK = reading.Readable.peek.__code__


class Costs(NamedTuple):
    """What an operation took."""

    waits: int = 0
    """Times that the process waited for the database."""
    commit_locks: int = 0
    stripe_locks: int = 0
    copied_out: int = 0
    decoded: int = 0
    encoded: int = 0
    entries: int = 0
    """Entries put on the rings."""


def costs(arena: Arena, operation: Callable[[], Any]) -> Costs:
    """Do an operation once and return what it took."""
    tally: Tally[Any] = Tally()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            tally[frame.f_code] += 1

    rings = (arena.write_ring, arena.charge_ring)
    before = _waits(arena), sum(ring.last_sequence for ring in rings)
    with _counted_locks(arena, tally):
        sys.setprofile(profile)
        try:
            operation()
        finally:
            sys.setprofile(None)
    after = _waits(arena), sum(ring.last_sequence for ring in rings)
    return Costs(
        after[0] - before[0], tally["commit"], tally["stripe"], tally[_PEEK], tally[_DECODE], tally[_ENCODE],
        after[1] - before[1],
    )  # fmt: skip


def _waits(arena: Arena) -> int:
    return arena.counter_totals()[Counter.BLOCKING_DB_OPERATIONS.name.lower()]


@contextmanager
def _counted_locks(arena: Arena, tally: Tally[Any]) -> Iterator[None]:
    critical = arena._critical
    mutexes = arena._stripes._mutexes

    def counted(name: str, acquire: Callable[[Any], int]) -> Callable[[Any], int]:
        def acquire_and_count(argument: Any) -> int:
            tally[name] += 1
            return acquire(argument)

        return acquire_and_count

    plain = critical._try, [mutex.quick_acquire for mutex in mutexes]
    critical._try = counted("commit", critical._try)
    for mutex in mutexes:
        mutex.quick_acquire = counted("stripe", mutex.quick_acquire)
    try:
        yield
    finally:
        critical._try = plain[0]
        for mutex, acquire in zip(mutexes, plain[1], strict=True):
            mutex.quick_acquire = acquire
