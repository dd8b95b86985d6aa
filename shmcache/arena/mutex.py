"""A process-shared robust mutex in the segment: pthread's own, through ctypes.

Type: PTHREAD_PROCESS_SHARED, PTHREAD_MUTEX_ROBUST, PTHREAD_MUTEX_ERRORCHECK. What each step may answer:

    acquire   0            the lock is ours
              EBUSY        another holds it: wait with pthread_mutex_clocklock (CLOCK_MONOTONIC), at most the limit
              EOWNERDEAD   its owner died inside: it is ours, and made consistent at once, because whoever dies after
                           that leaves EOWNERDEAD again; the caller then repairs what the lock guards
              EDEADLK      this very thread holds it already: the caller knows whether that is a call from inside the
                           critical section, or the rest of one that an exception cut off
              ETIMEDOUT    LockTimeout, naming the holder
    release   0            free

A mutex whose new owner unlocks it without pthread_mutex_consistent is unusable for ever, hence the order above.
The kernel frees a dead thread's robust mutexes by the thread's own list: a mutex belongs to a thread, not to a process,
and a forked child holds none of its parent's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType

from shmcache.errors import ArenaError, LockTimeout
from shmcache.patience import before_waiting

SIZE = 64
"""Bytes set aside for a mutex: pthread_mutex_t has 40 on x86-64, 48 on arm64."""

_OWNER_OFFSET = 8  # glibc: int __lock, unsigned __count, int __owner
_OWNER_DIED = 0x40000000  # futex(2): FUTEX_OWNER_DIED
_THREAD_MASK = 0x3FFFFFFF  # futex(2): FUTEX_TID_MASK
_PROCESS_SHARED = 1
_ROBUST = 1
_ERRORCHECK = 2
_CLOCK_MONOTONIC = 1
_TURN_SECONDS = 1.0
_DOCTOR = ": shmcache doctor tries whether this kernel's robust mutexes work"
_SPINS = range(40)
"""Tries before sleeping: sections take some 5 us, a sleep and its wake-up 12 us and more."""

# PyDLL keeps the interpreter's lock during the call (for calls that never wait); CDLL gives it up (for the one that
# does).
_quick = ctypes.PyDLL(None, use_errno=False)
_waiting = ctypes.CDLL(None, use_errno=False)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_trylock = _quick.pthread_mutex_trylock
_unlock = _quick.pthread_mutex_unlock
_consistent = _quick.pthread_mutex_consistent
_clocklock = _waiting.pthread_mutex_clocklock
for _function in (_trylock, _unlock, _consistent):
    _function.argtypes = (ctypes.c_void_p,)
    _function.restype = ctypes.c_int
_clocklock.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Timespec))
_clocklock.restype = ctypes.c_int


class RobustMutex:
    """A robust mutex at an address of the mapped segment.

    `name` and `arena` are what errors call it, `address` is virtual, in this process and the children it forks."""

    __slots__ = ("address", "arena", "argument", "name", "quick_acquire", "quick_release")

    def __init__(self, name: str, address: int, arena: str = "") -> None:
        self.name = name
        self.arena = arena
        self.address = address
        self.argument = ctypes.c_void_p(address)
        # The critical section calls these two itself, which saves it 0.3 us.
        self.quick_acquire: Callable[[ctypes.c_void_p], int] = _trylock
        self.quick_release: Callable[[ctypes.c_void_p], int] = _unlock

    def initialize(self) -> None:
        """Make the mutex. Only for who creates the segment, before anybody else can see it."""
        attributes = ctypes.create_string_buffer(64)
        for result in (
            _quick.pthread_mutexattr_init(attributes),
            _quick.pthread_mutexattr_setpshared(attributes, _PROCESS_SHARED),
            _quick.pthread_mutexattr_setrobust(attributes, _ROBUST),
            _quick.pthread_mutexattr_settype(attributes, _ERRORCHECK),
            _quick.pthread_mutex_init(self.argument, attributes),
        ):
            if result:
                raise ArenaError(f"cannot make mutex {self.name!r}: {os.strerror(result)}{_DOCTOR}").of(self.arena)

    def try_acquire(self) -> tuple[bool, bool]:
        """Return (ours now, somebody had left it held). Never waits. A lock of this very thread's counts as both."""
        result = self.quick_acquire(self.argument)
        if result == errno.EBUSY:
            return False, False
        return True, bool(result) and self.inherit(result)

    def acquire(self, timeout_seconds: float) -> int:
        """Take the lock; return 0, or EOWNERDEAD or EDEADLK, upon which the caller repairs and calls `inherit`.

        Signal handlers run between turns of a second. Raises LockTimeout after `timeout_seconds`, and what
        `before_waiting` raises."""
        for _ in _SPINS:
            answer = self.quick_acquire(self.argument)
            if answer != errno.EBUSY:
                return answer
        deadline = time.monotonic() + timeout_seconds
        while True:
            before_waiting()
            turn = min(deadline, time.monotonic() + _TURN_SECONDS)
            limit = _Timespec(int(turn), int((turn % 1) * 1e9))
            result: int = _clocklock(self.argument, _CLOCK_MONOTONIC, ctypes.byref(limit))
            if result != errno.ETIMEDOUT:
                return result
            if turn >= deadline:
                raise LockTimeout(self.name, self.holder_pid(), timeout_seconds).of(self.arena)

    def release(self) -> None:
        """Give the lock back. Raises ArenaError where this thread does not hold it."""
        result = _unlock(self.argument)
        if result:
            raise ArenaError(f"cannot release mutex {self.name!r}: {os.strerror(result)}{_DOCTOR}").of(self.arena)

    def holder_pid(self) -> int:
        """Return the process id of the holder, 0 if nobody holds it (as seen from this pid namespace)."""
        thread: int = ctypes.c_int.from_address(self.address + _OWNER_OFFSET).value
        with contextlib.suppress(OSError, ValueError, StopIteration), open(f"/proc/{thread}/status") as status:
            return int(next(line for line in status if line.startswith("Tgid:")).split()[1])
        return thread

    def looks_abandoned(self) -> bool:
        """Say whether nobody alive holds the lock, without taking it (glibc: no owner, or the owner-died bit)."""
        word: int = ctypes.c_uint32.from_address(self.address).value
        return not word & _THREAD_MASK or bool(word & _OWNER_DIED)

    def is_held_here(self) -> bool:
        """Say whether this very thread holds the lock."""
        word: int = ctypes.c_uint32.from_address(self.address).value
        return word & _THREAD_MASK == threading.get_native_id()

    def inherit(self, result: int) -> bool:
        """Make usable a lock that `acquire` answered with EOWNERDEAD or EDEADLK; return True.

        Raises ArenaError for any other answer but 0."""
        if result == errno.EOWNERDEAD:
            result = _consistent(self.argument)
        elif result == errno.EDEADLK:
            # It may have been inherited and cut off before it was made consistent; else this does nothing (EINVAL).
            _consistent(self.argument)
            result = 0
        if result:
            raise ArenaError(f"cannot take mutex {self.name!r}: {os.strerror(result)}{_DOCTOR}").of(self.arena)
        return True


def is_on_stack(code: CodeType, depth: int) -> bool:
    """Say whether this thread is inside a function, `depth` frames up from the caller or further.

    Tells a lock that this thread uses further up its stack from one that an exception made it leave held."""
    frame: FrameType | None = sys._getframe(depth + 1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
