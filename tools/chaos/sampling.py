"""Whether a long run grows: memory and descriptors of its processes, connections, segments, looked at now and then."""

from __future__ import annotations

import os
import shutil
import time
from statistics import median
from typing import NamedTuple

import psutil

from shmcache.arena import list_arenas
from tools.chaos.faults import Faults
from tools.chaos.ground import SHARED_MEMORY

_EVERY_SECONDS = 2.0
_AGAIN_SECONDS = 0.3
_WARM_SECONDS = 300.0
_LAST_SECONDS = 300.0
_LEAST_SAMPLES = 10
_MOST_FACTOR = 1.25


class Growth(NamedTuple):
    """Medians of what was looked at: in the first five minutes, and in the last five of a run of more than ten."""

    what: str
    first: float
    last: float

    @property
    def is_too_much(self) -> bool:
        """Whether there is more at the end than noise makes."""
        return self.last > self.first * _MOST_FACTOR

    def __str__(self) -> str:
        return f"{self.what}: {self.first:g}, at the end {self.last:g}"


class _Sample(NamedTuple):
    time: float
    figures: dict[str, float]


class Samples:
    """What was seen of a run, from time to time."""

    def __init__(self) -> None:
        self._samples: list[_Sample] = []
        self._next = 0.0

    def take(self, faults: Faults, workers: int) -> None:
        """Look, if it is time to, and all processes that there should be are there."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _AGAIN_SECONDS
        if not faults.is_whole(workers):
            return
        self._next = now + _EVERY_SECONDS
        memory, descriptors = [], []
        for process in faults.everything():
            try:
                used = process.memory_info()
                memory.append((used.rss - used.shared) / (1 << 20))
                descriptors.append(process.num_fds())
            except psutil.Error:
                continue  # it has just been killed
        connections = faults.connections()
        if not memory or connections is None:
            return
        figures = {
            "processes": float(len(memory)),
            "MiB of their own, of all processes": sum(memory),
            "MiB of its own, of the largest process": max(memory),
            "descriptors, of all processes": float(sum(descriptors)),
            "descriptors, of the process with most": float(max(descriptors)),
            "connections": float(connections),
            "segments": float(faults.arena in list_arenas()),
        }
        if faults.has_own_memory:
            figures["files in /dev/shm"] = float(len(os.listdir(SHARED_MEMORY)))
            figures["MiB in /dev/shm"] = shutil.disk_usage(SHARED_MEMORY).used / (1 << 20)
        self.add(now, figures)

    def add(self, now: float, figures: dict[str, float]) -> None:
        """Note what was seen at a time (monotonic); the same figures each time."""
        self._samples.append(_Sample(now, figures))

    def growth(self) -> list[Growth]:
        """Return how each figure grew; nothing for a run that is too short to say, or had too few moments to look."""
        if not self._samples:
            return []
        begin, end = self._samples[0].time, self._samples[-1].time
        if end - begin < _WARM_SECONDS + _LAST_SECONDS:
            return []
        first = [each.figures for each in self._samples if each.time < begin + _WARM_SECONDS]
        last = [each.figures for each in self._samples if each.time > end - _LAST_SECONDS]
        if min(len(first), len(last)) < _LEAST_SAMPLES:
            return []
        return [
            Growth(name, round(median(each[name] for each in first), 1), round(median(each[name] for each in last), 1))
            for name in first[0]
        ]
