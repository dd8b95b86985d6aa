"""The arena: one segment of shared memory, its table, slabs, rings and work queue, changed by commits.

`reading` says how it is read, `committing` how it is changed; here are its life, its work queue and its processes.
"""

from __future__ import annotations

import os
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Self

from shmcache.arena import check, layout, segment, survey, work
from shmcache.arena.committing import Changeable
from shmcache.arena.counters import Counter, Process
from shmcache.arena.histograms import Histogram
from shmcache.arena.layout import (
    COMMIT_SEQUENCE,
    IDLE_SIGNAL,
    IDLE_WAITERS,
    OUTSTANDING,
    QUEUE_HEAD,
    QUEUE_SIGNAL,
    QUEUE_WAITERS,
    VERSION_STEP,
)
from shmcache.arena.load_locks import LoadLocks
from shmcache.arena.memory import Memory
from shmcache.arena.view import View

_IDENTITY_BYTES = 16
_LOW_HALF = (1 << 64) - 1

_open_arenas: weakref.WeakSet[Arena] = weakref.WeakSet()


def _after_fork() -> None:
    for arena in _open_arenas:
        arena._forked()


os.register_at_fork(after_in_child=_after_fork)


class Arena(Changeable):
    """An attached arena. Make one with `create` or `attach`; a process forked afterwards uses the same object.

    | what                   | survives                                                            |
    |------------------------|---------------------------------------------------------------------|
    | fork                   | yes; the child takes a lane of its own at its first need            |
    | end of a thread        | yes, unless it was the one that entered: then its claims go back    |
    | end or kill of a process | the arena stays as it is; claims go back by `release_dead`        |
    | reboot                 | no: shared memory is gone, what was committed is in the database    |
    """

    def __init__(self, name: str, mapped: Memory, lock_wait: float = 30.0, ring_wait: float = 10.0) -> None:
        super().__init__(mapped, lock_wait, ring_wait)
        self.name = name
        self.loads = LoadLocks(mapped)
        self.before_work: Callable[[], None] | None = None
        """Called by this process each time it looks for work, when it has none; may raise."""
        words = mapped.words
        self.identity = words[layout.IDENTITY_WORD].to_bytes(8, "little") + words[layout.IDENTITY_WORD + 1].to_bytes(
            8, "little"
        )
        self.arena_id = str(uuid.UUID(int=words[layout.ARENA_ID_WORD] << 64 | words[layout.ARENA_ID_WORD + 1]))
        _open_arenas.add(self)

    @classmethod
    def create(
        cls,
        name: str,
        size_bytes: int,
        identity: bytes = bytes(_IDENTITY_BYTES),
        *,
        ring_bytes: tuple[int, int] | None = None,
        lock_wait: float = 30.0,
        ring_wait: float = 10.0,
    ) -> Self:
        """Make a segment of about `size_bytes` with all its pages reserved, and attach to it.

        `identity` is 16 bytes that say what its contents belong to, `ring_bytes` the sizes of the write ring and the
        charge ring. Raises ArenaExists, SharedMemoryTooSmall, ArenaUnusable, ValueError for a size under 4 MiB, for
        rings that leave no room, or another identity."""
        if len(identity) != _IDENTITY_BYTES:
            raise ValueError(f"an identity is {_IDENTITY_BYTES} bytes, not {len(identity)}")
        planned = layout.plan(size_bytes, *(ring_bytes or ()))
        mapped, descriptor = segment.reserve_segment(name, planned)
        arena = None
        try:
            memory = Memory(mapped, planned, name)
            words = memory.words
            words[layout.MAGIC_WORD] = layout.MAGIC
            words[layout.LAYOUT_WORD] = layout.LAYOUT_HASH
            words[layout.SIZE_WORD] = planned.size
            for index, number in enumerate(planned[1:8]):
                words[layout.LANE_COUNT_WORD + index] = number
            words[layout.NAMESPACE_WORD] = segment.pid_namespace()
            words[layout.STRIPE_COUNT_WORD] = planned.stripe_count
            random = uuid.uuid4().int
            words[layout.ARENA_ID_WORD] = random >> 64
            words[layout.ARENA_ID_WORD + 1] = random & _LOW_HALF
            words[layout.IDENTITY_WORD] = int.from_bytes(identity[:8], "little")
            words[layout.IDENTITY_WORD + 1] = int.from_bytes(identity[8:], "little")
            arena = cls(name, memory, lock_wait, ring_wait)
            arena._critical.mutex.initialize()
            arena._room.format()
            arena._stripes.format()
            arena._lanes.format()
            arena.loads.format()
            arena._table.format()
            arena._slabs.format()
            words[COMMIT_SEQUENCE] = VERSION_STEP
            # The maker is in its lane before anybody can look: an arena without a living process counts as left over.
            with arena._critical:
                arena.own_lane.now()
            words[layout.READY_WORD] = 1
            segment.publish_segment(name, descriptor)
        except BaseException:
            if arena is not None:
                arena.close()
            raise
        finally:
            os.close(descriptor)
        return arena

    @classmethod
    def attach(cls, name: str, **waits: float) -> Self:
        """Attach to an existing arena by its name alone. Who takes it over after a crash sweeps it.

        Raises ArenaMissing, ArenaUnusable."""
        return cls(name, Memory(*segment.attach_segment(name), name), **waits)

    def as_view(self) -> View:
        """Make this process, a forked child without a lane, one that can only look; return what it looks through.

        The arena's other methods may not be called any more. Raises ArenaError."""
        return View.inherited(self.name, self._memory)

    def close(self) -> None:
        """Give back this process's claims and its lane, and unmap the segment."""
        if self.own_lane.lane and not self.own_lane.leave():
            return  # the thread that entered still holds a lock in the segment: it stays mapped until that ends
        _open_arenas.discard(self)
        self._memory.release()

    def unlink(self) -> None:
        """Remove the segment from /dev/shm. Who has it mapped keeps it until they close it."""
        segment.unlink_segment(self.name)

    def check(self) -> list[str]:
        """Return what is wrong in the arena, each in one sentence; nothing, if it is sound. Holds the commit lock."""
        with self._critical, self._stripes.hold_all():
            return check.check(self._memory, self._table, self._slabs)

    def sweep(self) -> int:
        """Give back all room that nothing refers to, such as a crash may have left; return how many slabs that freed.

        Room that is needed is found anyway. Readers do not notice, writers wait no longer than for each other."""
        return self._room.sweep()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Work

    def take_work(self, timeout_seconds: float) -> work.Claim | None:
        """Claim the oldest entry of the work queue, waiting for one; None after the timeout."""
        words = self._words
        deadline = time.monotonic() + timeout_seconds
        if self.before_work is not None:
            self.before_work()
        self.own_lane.join()
        self.own_lane.beat()
        while True:
            if words[QUEUE_HEAD]:
                with self._critical:
                    lane = self.own_lane.now()
                    stage = self._memory.stage()
                    taken = work.take(self._table, stage, lane)
                    if taken:
                        entry, kind, attempt = taken
                        claim = work.Claim(kind, self._table.key_of(entry), attempt)
                        self._critical.publish(stage)
                        return claim
            if not self._critical.wait(QUEUE_SIGNAL, QUEUE_WAITERS, lambda: bool(words[QUEUE_HEAD]), deadline):
                return None

    def has_work(self) -> bool:
        """Say whether something is on the work queue that nobody has claimed. Takes no lock."""
        return bool(self._words[QUEUE_HEAD])

    def work_signal(self) -> int:
        """Return the number that changes whenever something is put on the work queue."""
        signal: int = self._words[QUEUE_SIGNAL]
        return signal

    def wait_for_signal(self, seen: int, timeout_seconds: float, give_up: Callable[[], bool]) -> None:
        """Wait until `work_signal` is another than it was, at most so long, or until `give_up()` after a `nudge`.

        Claims nothing."""
        words = self._words
        deadline = time.monotonic() + timeout_seconds
        self._critical.wait(QUEUE_SIGNAL, QUEUE_WAITERS, lambda: words[QUEUE_SIGNAL] != seen or give_up(), deadline)

    def nudge(self) -> None:
        """Have everybody who waits for work look again."""
        with self._critical:
            self._words[QUEUE_SIGNAL] += 1
        self._critical.wake(QUEUE_SIGNAL)

    def wait_for_lock(self) -> None:
        """Return when the commit lock could be had. Raises LockTimeout."""
        with self._critical:
            pass

    def release_dead(self) -> int:
        """Put the claims of dead processes back on the queue and free their lanes; return how many claims."""
        return self.own_lane.release_dead()

    def outstanding(self) -> int:
        """Return how many entries are on the work queue or claimed."""
        outstanding: int = self._words[OUTSTANDING]
        return outstanding

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until nothing is on the work queue or claimed; return whether that came."""
        words = self._words
        deadline = time.monotonic() + timeout_seconds
        return self._critical.wait(IDLE_SIGNAL, IDLE_WAITERS, lambda: not words[OUTSTANDING], deadline)

    def unfinished(self) -> list[bytes]:
        """Return the keys of all entries that are on the work queue or claimed."""
        with self._critical:
            return [self._table.key_of(entry) for entry in work.unfinished(self._table)]

    def keys(self) -> Iterator[bytes]:
        """Return the keys that have a record; see `survey.keys` for what is changed meanwhile."""
        return survey.keys(self._memory)

    # Processes and counters

    def enter(self, role: str) -> None:
        """Take a lane for this process, or rename it: "supervisor", "worker", "syncer", "charger" or "other".

        Raises ArenaError where all lanes are taken by processes that live."""
        self.own_lane.enter(role)

    def join(self) -> None:
        """Take a lane for this process if it has none. Raises ArenaError as `enter`, ArenaEnded."""
        self.own_lane.join()

    def processes(self) -> list[Process]:
        """Return the processes that are attached, and the dead whose lanes were not given back yet."""
        return self._lanes.processes()

    @property
    def lock_wait_seconds(self) -> float:
        """How long this process waits for the commit lock before LockTimeout."""
        return self._critical.lock_wait_seconds

    @lock_wait_seconds.setter
    def lock_wait_seconds(self, seconds: float) -> None:
        self._critical.lock_wait_seconds = seconds

    def lock_holders(self) -> set[int]:
        """Return the processes that hold one of the arena's locks at this instant. Takes none."""
        return {holder.pid for holder in survey.holders(self._memory) if holder.pid and not holder.died}

    def end(self) -> bool:
        """Let no other process in any more, so that the segment can be removed; return False if one that lives is in.

        A process that has it mapped and is not in gets ArenaEnded from its next write."""
        return self.own_lane.end_arena()

    def reopen(self) -> None:
        """Undo an `end` whose process died before it removed the segment. For the one that holds the supervisor's
        lock."""
        self.own_lane.reopen_arena()

    def beat(self) -> None:
        """Show that this process goes on, where it neither writes nor looks for work."""
        self.own_lane.beat()

    def beats(self) -> dict[int, tuple[int, int]]:
        """Return, by the pids of the attached processes, what changes as long as they go on."""
        return self._lanes.beats()

    def counted(self, counter: Counter) -> int:
        """Return what this process has counted."""
        return self.own_lane.counted(counter)

    def count(self, counter: Counter, amount: int = 1) -> None:
        """Add to one of this process's counters. Raises ArenaError as `enter`."""
        self.own_lane.count(counter, amount)

    def observe(self, histogram: Histogram, value: float, times: int = 1) -> None:
        """Note a value in one of this process's histograms, `times` times. Raises ArenaError as `enter`."""
        self.own_lane.observe(histogram, value, times)

    def lead(self, epoch: int) -> None:
        """Say in which epoch this process leads its ring, where all can see it; 0 for not at all."""
        self.own_lane.lead(epoch)

    def counter_totals(self) -> dict[str, int]:
        """Return the sums of all counters over all processes, by lower-case name."""
        totals = self._lanes.totals()
        totals[Counter.COMMITS.name.lower()] += self._stripes.puts()
        return totals

    def _forked(self) -> None:
        self.own_lane.forked()
        self._critical.forked()
        self.loads.forked()
