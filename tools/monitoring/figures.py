"""What snapshots say together: rates, ratios and quantiles between two of them, and the last minutes of each figure."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from shmcache.arena.histograms import HISTOGRAMS, Observed
from tools.monitoring.reader import Reader, Snapshot

_KEPT = 300
_WINDOW_SECONDS = 60.0
"""Ratios and quantiles are over so long, rates between two looks."""


class Figures(NamedTuple):
    """What happened lately. Rates are a second; a ratio or a duration is None where there was nothing to tell it by."""

    gets: float
    puts: float
    nodes: float
    synced: float
    settled: float
    decoded_hit_ratio: float | None
    arena_hit_ratio: float | None
    sync_lag_seconds: float | None
    sync_lag_p95_seconds: float | None
    commit_seconds: float | None
    batch_entries: float | None
    charge_lag_seconds: float | None
    hold_seconds: float | None


class Point(NamedTuple):
    """One look, as plots show it."""

    at: float
    gets: float
    puts: float
    nodes: float
    unsynced: int
    oldest_seconds: float
    sync_lag_seconds: float | None
    decoded_hit_ratio: float | None
    arena_hit_ratio: float | None
    record_bytes: int
    ring_fullness: float


def figures(before: Snapshot, then: Snapshot, now: Snapshot) -> Figures:
    """Return the figures at `now`: rates since `before`, the look before it, the rest since `then`, some time ago."""
    seconds = max(now.taken_at - before.taken_at, 1e-3)

    def grown(name: str, since: Snapshot) -> int:
        return now.counters[name] - since.counters.get(name, 0)

    def seen(name: str) -> Observed:
        earlier = then.histograms[name]
        later = now.histograms[name]
        counts = tuple(a - b for a, b in zip(later.counts, earlier.counts, strict=True))
        return Observed(counts, later.sum - earlier.sum)

    def rate(*names: str) -> float:
        return sum(grown(name, before) for name in names) / seconds

    hits, reads, misses = (grown(name, then) for name in ("decoded_hits", "reads", "misses"))
    moved = [now.ring(name).committed_sequence - before.ring(name).committed_sequence for name in ("write", "charge")]
    lag = seen("write_lag_seconds")
    return Figures(
        gets=rate("decoded_hits", "reads", "misses"),
        puts=rate("commits"),
        nodes=rate("node_runs"),
        synced=moved[0] / seconds,
        settled=rate("charges_settled"),
        decoded_hit_ratio=_ratio(hits, hits + reads + misses),
        arena_hit_ratio=_ratio(reads, reads + misses),
        sync_lag_seconds=quantile("write_lag_seconds", lag, 0.5),
        sync_lag_p95_seconds=quantile("write_lag_seconds", lag, 0.95),
        commit_seconds=quantile("write_commit_seconds", seen("write_commit_seconds"), 0.5),
        batch_entries=_mean(seen("write_batch_entries")),
        charge_lag_seconds=quantile("charge_lag_seconds", seen("charge_lag_seconds"), 0.5),
        hold_seconds=quantile("hold_seconds", seen("hold_seconds"), 0.5),
    )


def quantile(name: str, observed: Observed, fraction: float) -> float | None:
    """Return about the value below which so large a part of what a histogram has seen lies; None if it is empty.

    As Prometheus reckons it: evenly spread within a bucket, and beyond the last bound that bound."""
    bounds = next(each.bounds for each in HISTOGRAMS if each.name == name)
    wanted = observed.total * fraction
    below, lower = 0, 0.0
    for bound, count in zip(bounds, observed.counts, strict=False):
        if count and below + count >= wanted:
            return lower + (bound - lower) * (wanted - below) / count
        below, lower = below + count, bound
    return bounds[-1] if observed.total else None


def _mean(observed: Observed) -> float | None:
    return observed.sum / observed.total if observed.total else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole > 0 else None


class Watch:
    """Looks at an arena again and again, and remembers the last minutes. May be asked by several threads."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._turn = threading.Lock()
        self._looks: deque[Snapshot] = deque()
        self._points: deque[Point] = deque(maxlen=_KEPT)
        self._figures: Figures | None = None

    def look(self, not_older_than: float = 0.0) -> tuple[Snapshot, Figures]:
        """Return a snapshot and its figures: the last one if it is not older than so many seconds, else a new one.

        Raises ArenaError."""
        with self._turn:
            if not self._looks or not self._figures or time.time() - self._looks[-1].taken_at > not_older_than:
                self._look()
            assert self._figures is not None
            return self._looks[-1], self._figures

    def points(self) -> Sequence[Point]:
        """Return the last minutes, oldest first."""
        with self._turn:
            return tuple(self._points)

    def close(self) -> None:
        """Let go of the arena."""
        with self._turn:
            self._reader.close()

    def _look(self) -> None:
        now = self._reader.read()
        looks = self._looks
        before = looks[-1] if looks else now
        looks.append(now)
        while len(looks) > 2 and looks[1].taken_at <= now.taken_at - _WINDOW_SECONDS:
            looks.popleft()
        found = self._figures = figures(before, looks[0], now)
        write = now.ring("write")
        self._points.append(
            Point(
                now.taken_at, found.gets, found.puts, found.nodes, sum(ring.entries for ring in now.rings),
                max(ring.oldest_seconds for ring in now.rings), found.sync_lag_seconds, found.decoded_hit_ratio,
                found.arena_hit_ratio, now.occupancy.live_bytes, write.fullness,
            )
        )  # fmt: skip
