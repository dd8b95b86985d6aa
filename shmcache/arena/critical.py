"""The critical section of an arena: its commit lock, and the intent that makes what is done inside all or nothing.

    with critical:                      the lock is ours; what its last holder left unfinished is finished or undone
        stage = memory.stage()          changes are prepared
        critical.publish(stage)         and stored

    intent: count 8 | 8 unused | (word 8, value 8) ...

The steps and what a death after each of them leaves are in `shmcache.arena.arena`. An exception between the steps (a
signal handler's, say) is treated like a death, by the same code, wherever it strikes: before the block, inside, or in
the release; if even the release did not come about, this thread's next use of the lock finds it and repairs.
"""

from __future__ import annotations

import errno
import struct
import sys
import time
from collections.abc import Callable
from itertools import chain
from types import FrameType

from shmcache.arena import futex
from shmcache.arena.layout import (
    COMMIT_LOCK_OFFSET,
    COMMIT_SEQUENCE,
    DAMAGED_INTENTS,
    DOUBT,
    INTENT_OFFSET,
    INTENT_PAIRS,
    RECOVERIES,
    WORD,
)
from shmcache.arena.memory import Memory, Stage
from shmcache.arena.mutex import RobustMutex
from shmcache.errors import ArenaDamaged, ArenaError, ShmcacheError, TransactionTooLarge
from shmcache.patience import before_waiting, to_the_end

_COUNT = INTENT_OFFSET // WORD
_PAIRS = _COUNT + 2
_PAIRS_OFFSET = _PAIRS * WORD
_LONGEST_TURN_SECONDS = 1.0

_writers: dict[int, Callable[..., None]] = {}


def _writer(count: int) -> Callable[..., None]:
    """Return what writes that many pairs to a buffer in one call (0.4 us for ten, where an array takes 0.9)."""
    writer = _writers[count] = struct.Struct(f"{2 * count}Q").pack_into
    return writer


def _do_nothing() -> None:
    pass


class Critical:
    """The critical section over a memory, as a context manager; one for each Arena object."""

    __slots__ = (
        "_argument",
        "_buffer",
        "_holder",
        "_memory",
        "_release",
        "_try",
        "_words",
        "lock_wait_seconds",
        "mutex",
        "on_wait",
    )

    def __init__(self, mapped: Memory, lock_wait_seconds: float) -> None:
        self.mutex = RobustMutex("commit", mapped.address + COMMIT_LOCK_OFFSET, mapped.name)
        self.lock_wait_seconds = lock_wait_seconds
        self._memory = mapped
        self._words = mapped.words
        self._buffer = mapped.buffer
        self._argument = self.mutex.argument
        self._try = self.mutex.quick_acquire
        self._release = self.mutex.quick_release
        self._holder: FrameType | None = None
        self.on_wait: Callable[[], None] = _do_nothing
        """Called in each turn of waiting, once a second at least."""

    def __enter__(self) -> None:
        try:
            if self._try(self._argument):
                self._enter_slowly()
            # step: locked
            self._holder = sys._getframe(1)  # last: from here on the block is entered
        except BaseException:
            if self.mutex.is_held_here() and not self._is_further_up():
                self.recover()
                self._holder = None
                self.mutex.release()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is not None:
            self.recover()
            if isinstance(error, ShmcacheError):
                error.of(self._memory.name)
        self._holder = None
        if self._release(self._argument):
            raise ArenaError(
                "the commit lock was lost inside the critical section: was the process forked there? fork elsewhere"
            ).of(self._memory.name)
        if isinstance(error, IndexError | struct.error | ValueError | OverflowError):
            # Words that lead nowhere, or are no numbers that fit: nobody but the memory gave them to us.
            raise ArenaDamaged(f"{type(error).__name__}: {error}").of(self._memory.name) from error

    def _enter_slowly(self) -> None:
        result = self.mutex.acquire(self.lock_wait_seconds)
        if not result:
            return
        if result == errno.EDEADLK and self._is_further_up():
            raise ArenaError(
                "it was used again from inside a commit (by a signal handler, a destructor): use it outside of those"
            ).of(self._memory.name)
        self.mutex.inherit(result)
        self.recover()

    def _is_further_up(self) -> bool:
        """Say whether this thread is inside the section already, further up its stack.

        If it holds the lock and is not, an exception struck between taking or giving it back and the block."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not _ENTER:
            frame = frame.f_back
        frame = frame and frame.f_back
        while frame is not None:
            if frame is self._holder or frame.f_code is _ENTER or frame.f_code is _EXIT:
                return True
            frame = frame.f_back
        return False

    def publish(self, stage: Stage) -> None:
        """Store what is staged, so that a death at any point leaves all of it or nothing. Inside the section.

        Raises TransactionTooLarge."""
        words = self._words
        count = len(stage)
        if count > INTENT_PAIRS:
            raise TransactionTooLarge(f"a transaction of {count:,} words, where {INTENT_PAIRS:,} fit")
        # step: staged
        write = _writers.get(count) or _writer(count)
        write(self._buffer, _PAIRS_OFFSET, *chain.from_iterable(stage.items()))
        words[_COUNT] = count
        # step: intended
        for word, value in stage.items():
            words[word] = value
            # step: committed
        # step: applied
        words[_COUNT] = 0
        # step: cleared

    def recover(self) -> None:
        """Finish or undo what a dead holder of the lock, or a block that raised, was about to do. The lock is held."""
        words = self._words
        count = words[_COUNT]
        if not count:
            words[DOUBT] = 0
            return
        if count > INTENT_PAIRS:
            words[DAMAGED_INTENTS] += 1
        else:
            pairs = words[_PAIRS : _PAIRS + 2 * count].tolist()
            targets = pairs[::2]
            state = range(COMMIT_SEQUENCE, COMMIT_LOCK_OFFSET // WORD)
            rest = range(self._memory.layout.lanes // WORD, len(words))
            if not all(word in state or word in rest for word in targets):
                words[DAMAGED_INTENTS] += 1
            elif words[targets[0]] == pairs[1]:
                for index in range(0, 2 * count, 2):
                    words[pairs[index]] = pairs[index + 1]
        words[_COUNT] = 0
        words[DOUBT] = 0
        words[RECOVERIES] += 1

    def wait(self, signal: int, waiters: int, there: Callable[[], bool], deadline: float) -> bool:
        """Sleep on a signal word until `there()` holds or the deadline (monotonic) has come; return whether it holds.

        Outside of the section. Who changes the signal does so inside, and wakes if it sees a waiter there. Raises what
        `before_waiting` raises."""
        words = self._words
        while not there():
            self.on_wait()
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            before_waiting()
            with self:
                seen = words[signal]
                if there():
                    return True
                words[waiters] += 1
            try:
                futex.wait(self._memory.address + signal * WORD, seen, min(left, _LONGEST_TURN_SECONDS))
            finally:
                with to_the_end(), self:
                    words[waiters] = max(words[waiters] - 1, 0)
        return True

    def wake(self, signal: int) -> None:
        """Wake everybody who sleeps on a signal word. Best outside of the section."""
        futex.wake(self._memory.address + signal * WORD)

    def forked(self) -> None:
        """Take note that this is a forked child, which holds no lock of its parent's."""
        self._holder = None


_ENTER = Critical.__enter__.__code__
_EXIT = Critical.__exit__.__code__
