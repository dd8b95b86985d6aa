"""What a leader notes of each batch, in its lane's histograms: how many entries, how long, how old they were by then.

An entry has no time of its own on the ring (putting one there would cost every write); what it carries has. That is the
time of the event, and of a few kinds of change older than the entry, but no entry is older than the one before it, nor
than the look before the one that found it: the youngest of these is taken. Of a large batch some entries stand for all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

from shmcache.arena import Arena, Entry
from shmcache.arena.histograms import (
    CHARGE_BATCH,
    CHARGE_COMMIT,
    CHARGE_LAG,
    HOLD_TIME,
    WRITE_BATCH,
    WRITE_COMMIT,
    WRITE_LAG,
    Histogram,
)
from shmcache.errors import ArenaError
from shmcache.writes import written_at
from syncer.entries import CHARGE_RING, read_entry

_MOST_SAMPLES = 64

T = TypeVar("T")


class Measures:
    """The notes of one leader over a ring of an arena."""

    def __init__(self, arena: Arena, ring: str) -> None:
        self._arena = arena
        self._ring = ring
        self._looked_at = self._not_older_than = 0.0
        is_charge = ring == CHARGE_RING
        self._lag = CHARGE_LAG if is_charge else WRITE_LAG
        self._commit = CHARGE_COMMIT if is_charge else WRITE_COMMIT
        self._entries = CHARGE_BATCH if is_charge else WRITE_BATCH

    def looks(self) -> None:
        """Take note that the ring is looked at now."""
        self._looked_at = time.time()

    def read_all(self) -> None:
        """Take note that all that was on the ring when it was looked at last has been carried."""
        self._not_older_than = max(self._not_older_than, self._looked_at)

    def batch(self, entries: Sequence[Entry], seconds: float) -> None:
        """Note a batch that is in the database now, and how long that took."""
        now = time.time()
        self._note(self._entries, len(entries))
        self._note(self._commit, seconds)
        for entry, stands_for in sample(entries, _MOST_SAMPLES):
            with contextlib.suppress(ValueError, TypeError):  # of what cannot be read nobody knows the age
                at = written_at(read_entry(self._ring, entry.kind, entry.payload))
                if at is not None:
                    self._not_older_than = max(self._not_older_than, min(at, now))
                    self._note(self._lag, now - self._not_older_than, stands_for)

    def holds_ended(self, held_since: Sequence[float]) -> None:
        """Note that what was held since then is settled or voided now."""
        now = time.time()
        for since, stands_for in sample(held_since, _MOST_SAMPLES):
            self._note(HOLD_TIME, max(0.0, now - since), stands_for)

    def _note(self, histogram: Histogram, value: float, times: int = 1) -> None:
        with contextlib.suppress(ArenaError, ValueError):  # no lane is free, or its words are damaged
            self._arena.observe(histogram, value, times)


def sample(values: Sequence[T], most: int) -> Iterator[tuple[T, int]]:
    """Yield at most so many of some values, evenly spread, each with how many it stands for, in all as many as there
    are."""
    step = max(1, -(-len(values) // most))
    for place, value in zip(range(0, len(values), step), islice(values, 0, None, step), strict=True):
        yield value, min(step, len(values) - place)
