"""Load locks: of many threads and processes that miss one record at once, one loads it and the others wait for it.

    miss -> hold the key's lock -> look in the arena again -> load from the database -> fill -> let go

    lock i     64 bytes: a robust mutex; a key belongs to the lock that its last byte names

The locks guard nothing: they only keep a herd from the database. What makes a fill right is the fill's own lease (the
transaction fails if the key was written or forgotten since the miss). So every doubt is settled in favour of going on:

    the holder dies          EOWNERDEAD: its successor holds the lock and, if the record is still missing, loads
    the holder is stopped,   after `wait_seconds` each waiter loads by itself, and the log names the holder's pid
    or the database is slow
    a load within a load     takes no second lock, so that no two threads can wait for each other
    two keys share a lock    one waits for the other's load
    an exception, at any     the lock is given back if this thread has it
    instruction
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

from shmcache.arena.layout import LOAD_LOCK_BYTES, LOAD_LOCKS
from shmcache.arena.memory import Memory
from shmcache.arena.mutex import RobustMutex
from shmcache.errors import LockTimeout

logger = logging.getLogger(__name__)

WAIT_SECONDS = 5.0
"""How long another's load is waited for: longer than any load of a healthy database takes."""


class LoadLocks:
    """The load locks over a memory. `wait_seconds` is how long to wait for another's load before loading too."""

    __slots__ = ("_local", "_memory", "wait_seconds")

    def __init__(self, memory: Memory, wait_seconds: float = WAIT_SECONDS) -> None:
        self._memory = memory
        self._local = threading.local()
        self.wait_seconds = wait_seconds

    def format(self) -> None:
        """Make the locks. Only for who creates the segment."""
        for number in range(LOAD_LOCKS):
            self.lock(number).initialize()

    def lock(self, number: int) -> RobustMutex:
        """Return one of the locks."""
        place = self._memory.layout.load_locks + number * LOAD_LOCK_BYTES
        return RobustMutex(f"load {number}", self._memory.address + place, self._memory.name)

    @contextlib.contextmanager
    def loading(self, key: bytes) -> Iterator[None]:
        """Hold a key's lock around its load, waiting for another's load of it: look in the arena again inside.

        Goes on without the lock inside of another load of this thread, and after `wait_seconds`."""
        if getattr(self._local, "inside", False):
            yield
            return
        lock = self.lock(key[-1] % LOAD_LOCKS)
        self._local.inside = True
        try:
            self._acquire(lock)
            yield
        finally:
            self._local.inside = False
            if lock.is_held_here():
                lock.release()

    def _acquire(self, lock: RobustMutex) -> None:
        try:
            answer = lock.acquire(self.wait_seconds)
            if answer:
                lock.inherit(answer)
        except LockTimeout as late:
            logger.warning(
                "process %d has been loading a record for %.1f s (is it stopped?): loading it here too",
                late.holder_pid, self.wait_seconds,
            )  # fmt: skip

    def forked(self) -> None:
        """Take note that this is a forked child: it is inside of no load of its parent's."""
        self._local = threading.local()
