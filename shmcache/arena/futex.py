"""Waiting for a word of the segment to change, across processes: the futex system call, through ctypes.

A waiter reads the word, finds that what it waits for is not there yet, and calls `wait` with what it read: the kernel
puts it to sleep only if the word still has that value, so that no wake-up is lost between the look and the sleep.
Source: futex(2); operations FUTEX_WAIT and FUTEX_WAKE without the private flag, since the word is shared.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

from shmcache.errors import ArenaError

_FUTEX_WAIT = 0
_FUTEX_WAKE = 1
_EVERYBODY = 0x7FFFFFFF
_SYSTEM_CALL = {"x86_64": 202, "aarch64": 98}.get(platform.machine())

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def wait(address: int, expected: int, timeout_seconds: float) -> None:
    """Sleep until somebody calls `wake` on the address, unless its low 32 bits are no longer `expected`.

    Returns as well after the timeout, after a signal, and now and then without cause: look again."""
    if _SYSTEM_CALL is None:
        raise ArenaError(f"no futex on {platform.machine()}: shmcache runs on Linux, x86-64 and arm64")
    limit = _Timespec(int(timeout_seconds), int((timeout_seconds % 1) * 1e9))
    result = _syscall(
        ctypes.c_long(_SYSTEM_CALL),
        ctypes.c_void_p(address),
        ctypes.c_int(_FUTEX_WAIT),
        ctypes.c_uint32(expected & 0xFFFFFFFF),
        ctypes.byref(limit),
        None,
        ctypes.c_int(0),
    )
    if result and ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT):
        raise ArenaError(f"futex wait: {os.strerror(ctypes.get_errno())}: shmcache doctor tries whether futexes work")


def wake(address: int) -> None:
    """Wake everybody who sleeps on the address."""
    _syscall(
        ctypes.c_long(_SYSTEM_CALL or 0),
        ctypes.c_void_p(address),
        ctypes.c_int(_FUTEX_WAKE),
        ctypes.c_int(_EVERYBODY),
        None,
        None,
        ctypes.c_int(0),
    )
