"""Lanes: one for each attached process. Who lives, who has died, and what each has counted.

    word 0-7   life lock: a robust mutex that the process's main thread holds until it ends
    word 8     pid, 0 for a lane that is free   9 role   10 start time   11 whether the life lock speaks for the process
    word 12    the lowest entry that the process may have decoded   13 the epoch in which it leads
    word 15    heartbeat
    word 16-   counters   64- histograms

Whether a process lives is asked of its life lock: EBUSY is alive, EOWNERDEAD is dead, for certain; pids are reused and
mean different processes in different containers. A process that attaches from a thread other than its main one cannot
leave the lock to that thread; its pid and start time speak for it.

A lane is given back in a commit, so that what it counted is added to lane 0, which belongs to nobody, exactly once.
The segment stays mapped for as long as a life lock in it is held: the kernel looks for it there when the process ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from shmcache.arena.histograms import HISTOGRAMS, Histogram, Observed
from shmcache.arena.layout import (
    COUNTERS,
    HISTOGRAM_WORDS,
    LANE_BEAT,
    LANE_BY_MUTEX,
    LANE_BYTES,
    LANE_COUNTERS,
    LANE_EPOCH,
    LANE_HISTOGRAMS,
    LANE_LOWEST,
    LANE_PID,
    LANE_ROLE,
    LANE_STARTED,
    WORD,
)
from shmcache.arena.memory import Memory, Stage
from shmcache.arena.mutex import RobustMutex
from shmcache.errors import ArenaError

_LANE_WORDS = LANE_BYTES // WORD
_WORD_MASK = (1 << 64) - 1
ROLES = ("other", "supervisor", "worker", "syncer", "charger")
LEADING_ROLES = {"write": "syncer", "charge": "charger"}
"""Whose leader drains which ring."""


class Counter(IntEnum):
    """What processes count. Sums are over all processes, dead ones included."""

    COMMITS = 0
    READS = 1
    MISSES = 2
    FILLS = 3
    CONFLICTS = 4
    EVICTED = 5
    CLEANED_SLABS = 6
    RECLAIMED_WORK = 7
    BLOCKING_DB_OPERATIONS = 8
    NODE_RUNS = 9
    BATCHES = 10
    SYNCED_OUTPUTS = 11
    SYNCED_STATUSES = 12
    DEAD_LETTERS = 13
    RETRIES = 14
    LEADERS = 15
    CHARGES_SETTLED = 16
    POOL_REPLACED = 17
    DECODED_HITS = 18
    CHARGES_IN_DEBT = 19
    DEBT_CREDITS = 20
    RESTARTS = 21


class Process(NamedTuple):
    """A process that is attached to the arena, or was when it died."""

    lane: int
    pid: int
    role: str
    alive: bool


class Lanes:
    """The lanes over a memory."""

    __slots__ = ("_count", "_first", "_memory", "_words")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._words = memory.words
        self._first = memory.layout.lanes // WORD
        self._count = memory.layout.lane_count

    def format(self) -> None:
        """Make the life locks. Only for who creates the segment."""
        for lane in range(1, self._count):
            self.lock(lane).initialize()

    def lock(self, lane: int) -> RobustMutex:
        """Return the life lock of a lane."""
        memory = self._memory
        return RobustMutex(
            f"life of lane {lane}", memory.address + memory.layout.lanes + lane * LANE_BYTES, memory.name
        )

    def enter(self, role: str) -> int:
        """Take a free lane for this process; return its number. Call under the commit lock. Raises ArenaError."""
        by_mutex = threading.current_thread() is threading.main_thread()
        if by_mutex:
            self._memory.pin()
        for lane in range(1, self._count):
            word = self._word(lane)
            if self._words[word + LANE_PID]:
                continue
            if by_mutex:
                if not self.lock(lane).try_acquire()[0]:
                    continue
            elif not self.lock(lane).looks_abandoned():
                continue
            self.set_role(lane, role)
            self._words[word + LANE_LOWEST] = self._words[word + LANE_EPOCH] = self._words[word + LANE_BEAT] = 0
            self._words[word + LANE_STARTED] = start_time(os.getpid())
            self._words[word + LANE_BY_MUTEX] = by_mutex
            self._words[word + LANE_PID] = os.getpid()
            return lane
        raise ArenaError(
            f"all its {self._count - 1} lanes are taken: too many processes are attached, end some of them"
        ).of(self._memory.name)

    def set_role(self, lane: int, role: str) -> None:
        """Change what this process is called."""
        self._words[self._word(lane) + LANE_ROLE] = ROLES.index(role) if role in ROLES else 0

    def set_lowest(self, lane: int, entry: int) -> None:
        """Say which is the lowest entry that the process of a lane may have decoded, 0 for none."""
        self._words[self._word(lane) + LANE_LOWEST] = entry

    def set_epoch(self, lane: int, epoch: int) -> None:
        """Say in which epoch the process of a lane leads, 0 for not at all."""
        self._words[self._word(lane) + LANE_EPOCH] = epoch

    def lowest(self) -> int | None:
        """Return the lowest entry that any process which lives may have decoded, None if none has any."""
        lanes = (self._words[self._word(process.lane) + LANE_LOWEST] for process in self.processes() if process.alive)
        return min((entry for entry in lanes if entry), default=None)

    def retire(self, stage: Stage, lane: int) -> None:
        """Stage that a lane is free and its counters are kept. Under the commit lock, when it has no claims."""
        words = self._words
        word = self._word(lane)
        # First it is gone, then it is kept: who sums meanwhile may miss it for an instant, and never has it twice.
        for counter in range(LANE_COUNTERS, LANE_COUNTERS + COUNTERS + HISTOGRAM_WORDS):
            amount = words[word + counter]
            if amount:
                stage[word + counter] = 0
                stage[self._first + counter] = words[self._first + counter] + amount & _WORD_MASK
        stage[word + LANE_PID] = 0

    def unlock(self, lane: int) -> bool:
        """Let go of a retired lane's life lock; return False if another thread of this process has to, by ending.

        A death before this leaves a free lane with an abandoned lock, which `enter` takes."""
        lock = self.lock(lane)
        if self._words[self._word(lane) + LANE_BY_MUTEX] and lock.is_held_here():
            lock.release()
        return lock.looks_abandoned()

    def is_dead(self, lane: int) -> bool:
        """Say whether a lane's process has died. If so and its life lock told it, that lock is ours now:
        `free_dead`."""
        word = self._word(lane)
        if not self._words[word + LANE_PID]:
            return False
        if self._words[word + LANE_BY_MUTEX]:
            return self.lock(lane).looks_abandoned() and self.lock(lane).try_acquire()[0]
        return start_time(self._words[word + LANE_PID]) != self._words[word + LANE_STARTED]

    def processes(self) -> list[Process]:
        """Return all lanes in use. A dead process stays until its lane is given back."""
        found = []
        for lane in range(1, self._count):
            word = self._word(lane)
            pid = self._words[word + LANE_PID]
            if pid:
                alive = not self._seems_dead(lane)
                found.append(Process(lane, pid, ROLES[self._words[word + LANE_ROLE] % len(ROLES)], alive))
        return found

    def count(self, lane: int, counter: int, amount: int) -> None:
        """Add to a counter of a lane that is this process's own."""
        self._words[self._word(lane) + LANE_COUNTERS + counter] += amount

    def observe(self, lane: int, histogram: Histogram, value: float, times: int) -> None:
        """Note a value in a histogram of a lane that is this process's own, so many times."""
        words = self._words
        first = self._word(lane) + LANE_HISTOGRAMS + histogram.first
        words[first + histogram.bucket(value)] += times
        words[first + histogram.words - 1] += max(0, round(value * times * histogram.per_unit))

    def counted(self, lane: int, counter: int) -> int:
        """Return what a counter of a lane has come to."""
        amount: int = self._words[self._word(lane) + LANE_COUNTERS + counter]
        return amount

    def beat(self, lane: int) -> None:
        """Note that the process of a lane goes on."""
        self._words[self._word(lane) + LANE_BEAT] += 1

    def beats(self) -> dict[int, tuple[int, int]]:
        """Return what changes, by pid, while a process goes on: its heartbeat, and how often it has committed."""
        words = self._words
        found = {}
        for lane in range(1, self._count):
            word = self._word(lane)
            pid = words[word + LANE_PID]
            if pid:
                found[pid] = words[word + LANE_BEAT], words[word + LANE_COUNTERS + Counter.COMMITS]
        return found

    def first_counter(self, lane: int) -> int:
        """Return the word of a lane's counter 0, which is COMMITS: the one that is counted inside every commit."""
        return self._first + lane * _LANE_WORDS + LANE_COUNTERS

    def totals(self) -> dict[str, int]:
        """Return the sum of each counter over all lanes, by lower-case name."""
        sums = self._sums(LANE_COUNTERS, COUNTERS)
        return {counter.name.lower(): sums[counter] for counter in Counter}

    def observed(self) -> dict[str, Observed]:
        """Return what each histogram has seen, over all lanes, by name."""
        sums = self._sums(LANE_HISTOGRAMS, HISTOGRAM_WORDS)
        found = {}
        for each in HISTOGRAMS:
            *counts, total = sums[each.first : each.first + each.words]
            found[each.name] = Observed(tuple(counts), total / each.per_unit)
        return found

    def _sums(self, begin: int, count: int) -> list[int]:
        """Return the sums over all lanes of some words of a lane.

        Lane 0 is read first: what a lane gives back meanwhile is missed for now, and not counted twice."""
        lanes = np.frombuffer(self._words, np.uint64, self._count * _LANE_WORDS, self._first * WORD)
        columns = lanes.reshape(self._count, _LANE_WORDS)[:, begin : begin + count]
        kept = columns[0].copy()
        sums: list[int] = (columns[1:].sum(axis=0) + kept).tolist()
        return sums

    def _seems_dead(self, lane: int) -> bool:
        word = self._word(lane)
        pid = self._words[word + LANE_PID]
        if not self._words[word + LANE_BY_MUTEX]:
            return start_time(pid) != self._words[word + LANE_STARTED]
        lock = self.lock(lane)
        # Held here though it is another's: freeing it was begun here and cut off by an exception.
        return lock.looks_abandoned() or (pid != os.getpid() and lock.is_held_here())

    def _word(self, lane: int) -> int:
        return self._first + lane * _LANE_WORDS


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if there is no such process."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
        if fields[0] not in "ZX":
            return int(fields[19])
    return 0
