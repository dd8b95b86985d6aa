"""The decoded layer: what this process has read of an arena lately, decoded, each with one word that proves it current.

    key -> entry, version, value, hits      current while words[entry] == version

Any process's write, delete or eviction changes that word, so every process sees it at its next get. The test and the
count stand in the `get` of each subclass, whose hot path they are: two lookups, a comparison, an addition, no call.
What is counted goes to this process's lane of the arena now and then, off the hot path.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Any

from shmcache.arena.arena import Arena
from shmcache.arena.counters import Counter
from shmcache.errors import ArenaError

_READS_BETWEEN_REPORTS = 256
_REPORTS_BETWEEN_GATHERINGS = 1024

# By their ids: some are mappings, which cannot be hashed.
_layers: weakref.WeakValueDictionary[int, DecodedLayer] = weakref.WeakValueDictionary()


def _after_fork() -> None:
    for layer in _layers.values():
        layer._decoded.clear()  # the parent has said what it may have decoded, the child has not
        layer._reported = (layer.hits, layer.reads, layer.misses)  # the rest is the parent's to report


os.register_at_fork(after_in_child=_after_fork)


class DecodedLayer:
    """Base of the caches over an arena. `limit` bounds the values kept decoded in this process; 0 keeps none.

    `hits` counts gets that were served decoded, `reads` records read from the arena and decoded, `misses` keys that the
    arena did not have; of this process. Threads that count at the same instant may lose a count."""

    __slots__ = (
        "__weakref__",
        "_arena",
        "_decoded",
        "_gathered",
        "_limit",
        "_own",
        "_reported",
        "_reports",
        "_words",
        "hits",
        "misses",
        "reads",
    )

    def __init__(self, arena: Arena, limit: int) -> None:
        self._arena = arena
        self._own = arena.own_lane
        self._words = arena.version_words()
        # [entry, version, value, hits not gathered yet]; a float, because adding to it takes 6 ns less than to an int
        self._decoded: dict[Any, list[Any]] = {}
        self._limit = limit
        self.hits = 0.0
        self.reads = self.misses = self._gathered = self._reports = 0
        self._reported = (0.0, 0, 0)
        _layers[id(self)] = self

    def _keep(self, key: Any, entry: int, version: int, value: Any) -> None:
        """Keep a value decoded, as this version of this entry; when there are too many, the oldest eighth goes."""
        own = self._own
        if (entry < own.lowest or own.must_forget()) and not self._may_keep(entry, version):
            return
        decoded = self._decoded
        if len(decoded) >= self._limit:
            if not self._limit:
                return
            for oldest in list(decoded)[: max(1, self._limit // 8)]:
                self._drop(oldest)
        before = decoded.get(key)
        if before is not None:
            self.hits += before[3]
        decoded[key] = [entry, version, value, 0.0]

    def _drop(self, key: Any) -> None:
        """Forget a key's value, if there is one: another thread may have been here too."""
        kept = self._decoded.pop(key, None)
        if kept is not None:
            self.hits += kept[3]

    def _forget(self) -> None:
        """Forget all values."""
        for key in list(self._decoded):
            self._drop(key)

    def _gather(self) -> None:
        """Add up the hits, and mark what was hit in the arena, where hits leave no trace: eviction spares it once."""
        hit = []
        for kept in list(self._decoded.values()):
            if kept[3]:
                self.hits += kept[3]
                kept[3] = 0.0
                if self._words[kept[0]] == kept[1]:
                    hit.append(kept[0])
        self._arena.mark_read(hit)
        self._gathered = self.reads + self.misses

    def _may_keep(self, entry: int, version: int) -> bool:
        own = self._own
        if own.must_forget():
            for layer in list(_layers.values()):
                if layer._own is own:
                    layer._forget()
            own.forgotten()
        return own.may_keep(entry, version)

    def _count_read(self, found: bool) -> None:
        """Count a read of the arena that was, or was not, answered; report every so often."""
        if found:
            self.reads += 1
        else:
            self.misses += 1
        if not (self.reads + self.misses) % _READS_BETWEEN_REPORTS:
            if self.reads + self.misses - self._gathered >= len(self._decoded) // 8:
                self._gather()
            self._report()

    def report_often(self) -> None:
        """As `report`, for who calls it often: hits are gathered one time in a thousand."""
        self._reports += 1
        if not self._reports % _REPORTS_BETWEEN_GATHERINGS:
            self._gather()
        self._report()

    def report(self) -> None:
        """Add what was counted since the last report to this process's counters in the arena, where all can read it."""
        self._gather()
        self._report()

    def _report(self) -> None:
        before, now = self._reported, (self.hits, self.reads, self.misses)
        if now != before:
            self._reported = now
            with contextlib.suppress(ArenaError):  # no lane is free: statistics are not worth a failure
                for counter, old, new in zip(_COUNTED, before, now, strict=True):
                    self._arena.count(counter, int(new - old))


_COUNTED = (Counter.DECODED_HITS, Counter.READS, Counter.MISSES)
