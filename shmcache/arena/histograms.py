"""Histograms in the lanes: how often something took how long, or was how large, each in words of the lane that saw it.

    bucket 0 | bucket 1 | ... | bucket n, beyond the last bound | sum, in `per_unit`-ths

Like counters they are added to by their own process alone, without a lock, and summed up over all lanes by who reads.
What is observed here is observed once a batch of the syncer or the charger, never by who reads or writes a record.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from shmcache.arena.layout import HISTOGRAM_WORDS


class Histogram(NamedTuple):
    """A histogram: its name, the upper bounds of its buckets, and where in a lane's histogram words it begins.

    Sums are whole numbers of 1 / `per_unit`: of microseconds for seconds."""

    name: str
    bounds: tuple[float, ...]
    per_unit: int
    first: int

    @property
    def words(self) -> int:
        """The words that it takes: its buckets, the one beyond them, and the sum."""
        return len(self.bounds) + 2

    def bucket(self, value: float) -> int:
        """Return the bucket that a value belongs to: the first whose bound is not below it."""
        return bisect_left(self.bounds, value)


class Observed(NamedTuple):
    """What a histogram has seen: how many values in each bucket (the last is beyond all bounds), and their sum."""

    counts: tuple[int, ...]
    sum: float

    @property
    def total(self) -> int:
        """How many values there were."""
        return sum(self.counts)


_LAG_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
_COMMIT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ENTRIES = (1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 10_000.0)
_MICROSECONDS = 1_000_000

_first = 0


def _define(name: str, bounds: Sequence[float], per_unit: int) -> Histogram:
    global _first  # noqa: PLW0603 - while the module is loaded
    made = Histogram(name, tuple(bounds), per_unit, _first)
    _first += made.words
    assert _first <= HISTOGRAM_WORDS, "a lane has no room for more histograms"
    return made


WRITE_LAG = _define("write_lag_seconds", _LAG_SECONDS, _MICROSECONDS)
"""From when an entry of the write ring was made to when it was in the database."""
CHARGE_LAG = _define("charge_lag_seconds", _LAG_SECONDS, _MICROSECONDS)
"""The same of the charge ring."""
HOLD_TIME = _define("hold_seconds", _LAG_SECONDS, _MICROSECONDS)
"""From when credits were held to when that was settled or voided."""
WRITE_COMMIT = _define("write_commit_seconds", _COMMIT_SECONDS, _MICROSECONDS)
"""How long a batch of the write ring took, all of its transaction."""
CHARGE_COMMIT = _define("charge_commit_seconds", _COMMIT_SECONDS, _MICROSECONDS)
"""How long a batch of the charge ring took, all of its transactions."""
WRITE_BATCH = _define("write_batch_entries", _ENTRIES, 1)
"""How many entries a batch of the write ring had."""
CHARGE_BATCH = _define("charge_batch_entries", _ENTRIES, 1)
"""How many entries a batch of the charge ring had."""

HISTOGRAMS = (WRITE_LAG, CHARGE_LAG, HOLD_TIME, WRITE_COMMIT, CHARGE_COMMIT, WRITE_BATCH, CHARGE_BATCH)
