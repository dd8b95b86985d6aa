"""The two ends of a ring: producers that wait for room or for durability, and the one consumer."""

from __future__ import annotations

import time
from collections.abc import Callable

from shmcache.arena import layout
from shmcache.arena.critical import Critical
from shmcache.arena.layout import COMMIT_SEQUENCE, VERSION_STEP
from shmcache.arena.memory import Memory
from shmcache.arena.ring import Entry, RingRegion

_NEVER_SECONDS = 1e9


class Ring:
    """A ring as producers that wait and its one consumer see it; entries are appended by `Arena.commit`."""

    __slots__ = ("_critical", "_memory", "_region", "_seen_signal", "_words", "name")

    def __init__(self, mapped: Memory, critical: Critical, region: RingRegion) -> None:
        self._critical = critical
        self._memory = mapped
        self._words = mapped.words
        self._region = region
        self._seen_signal = 0
        self.name = region.name

    @property
    def last_sequence(self) -> int:
        """The sequence of the newest entry; 0 if there never was one."""
        sequence: int = self._words[self._region.state + layout.LAST_SEQUENCE]
        return sequence

    @property
    def committed_sequence(self) -> int:
        """Everything up to this sequence is durable."""
        sequence: int = self._words[self._region.state + layout.COMMITTED]
        return sequence

    @property
    def used_bytes(self) -> int:
        """Bytes between the oldest entry that is not durable and the newest."""
        return self._region.used_bytes()

    @property
    def is_high(self) -> bool:
        """Whether as much waits for the consumer as it is asked to drain for."""
        return self._region.used_bytes() >= self._region.high_water

    @property
    def is_waited_for(self) -> bool:
        """Whether a process sleeps until more of the ring is durable; one killed asleep may be counted still."""
        return self._region.used_bytes() > 0 and self._words[self._region.state + layout.ROOM_WAITERS] > 0

    @property
    def size(self) -> int:
        """Size of the ring in bytes."""
        return self._region.size

    def read(self, after: int, limit_entries: int, limit_bytes: int) -> list[Entry]:
        """Return entries younger than `after`, oldest first, within limits. For the one consumer; takes no lock.

        What is damaged comes back as an entry that is not intact, which may stand for several."""
        entries = self._region.read(after, limit_entries, limit_bytes)
        if all(entry.intact for entry in entries):
            return entries
        with self._critical:  # damaged, or another consumer moved the head meanwhile
            return self._region.read(after, limit_entries, limit_bytes)

    def advance(self, sequence: int) -> None:
        """Say that everything up to `sequence` is durable: room for producers, and the end of waiting for flushers."""
        words = self._words
        with self._critical:
            stage = self._memory.stage()
            stage[COMMIT_SEQUENCE] = words[COMMIT_SEQUENCE] + VERSION_STEP
            if self._region.advance(stage, sequence):
                self._critical.publish(stage)
            sleepers = words[self._region.state + layout.ROOM_WAITERS]
        if sleepers:
            self._critical.wake(self._region.state + layout.ROOM_SIGNAL)

    def request_drain(self) -> None:
        """Ask the consumer to drain now."""
        signal = self._region.state + layout.DRAIN_SIGNAL
        with self._critical:
            self._words[signal] += 1
        self._critical.wake(signal)

    def wait_for_drain(self, timeout_seconds: float, give_up: Callable[[], bool] = lambda: False) -> int:
        """For the consumer: wait until asked to drain since the last call, or until the timeout; return how often.

        `give_up` is asked after each signal that the process gets, and ends the waiting too."""
        words = self._words
        signal = self._region.state + layout.DRAIN_SIGNAL
        seen = self._seen_signal
        deadline = time.monotonic() + timeout_seconds
        waiters = self._region.state + layout.DRAIN_WAITERS
        self._critical.wait(signal, waiters, lambda: words[signal] != seen or give_up(), deadline)
        self._seen_signal = words[signal]
        return self._seen_signal - seen

    def wait_committed(self, sequence: int, timeout_seconds: float | None) -> bool:
        """Wait until everything up to `sequence` is durable; return whether it is. None waits without limit."""
        committed = self._region.state + layout.COMMITTED
        words = self._words
        deadline = time.monotonic() + (_NEVER_SECONDS if timeout_seconds is None else timeout_seconds)
        return self._wait_for_head(lambda: words[committed] >= sequence, deadline)

    def wait_for_advance(self, after: int, timeout_seconds: float, give_up: Callable[[], bool]) -> None:
        """Wait until more than `after` is durable, at most so long, or until `give_up()` after a `nudge`."""
        committed = self._region.state + layout.COMMITTED
        words = self._words
        self._wait_for_head(lambda: words[committed] != after or give_up(), time.monotonic() + timeout_seconds)

    def nudge(self) -> None:
        """Have everybody who waits for the ring to advance look again."""
        signal = self._region.state + layout.ROOM_SIGNAL
        with self._critical:
            self._words[signal] += 1
        self._critical.wake(signal)

    def wait_for_room(self, head: int, deadline: float) -> bool:
        """For producers: ask for a drain and wait until the head is no longer at `head`; return whether it is not."""
        words = self._words
        place = self._region.state + layout.HEAD
        self.request_drain()
        return self._wait_for_head(lambda: words[place] != head, deadline)

    def _wait_for_head(self, there: Callable[[], bool], deadline: float) -> bool:
        state = self._region.state
        return self._critical.wait(state + layout.ROOM_SIGNAL, state + layout.ROOM_WAITERS, there, deadline)
