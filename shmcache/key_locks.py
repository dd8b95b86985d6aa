"""Locks by key between processes: byte ranges of a file, at the places that keys say (fcntl(2), record locks).

The kernel frees those of the dead, and says of a wait that it could never end: that is not waited for, and the key not
locked. So they serve where to go without is better than to stand still: two clients that are compared in shadow mode
may then count a difference that is none.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path


class KeyLocks:
    """Locks of one process on keys; the file and its directory are made when they are needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._owner_pid = 0
        self._held: set[int] = set()

    def hold(self, key: bytes) -> bool:
        """Hold a key's lock until `release`; return whether it was not held before."""
        if self._owner_pid != os.getpid():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._owner_pid = os.getpid()
            self._held = set()
        place = int.from_bytes(key[-8:], "big") >> 2
        if place in self._held:
            return False
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, place)
        except OSError as error:
            if error.errno != errno.EDEADLK:
                raise
        self._held.add(place)
        return True

    def release(self) -> None:
        """Let go of all."""
        if self._held:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
            self._held.clear()

    def close(self) -> None:
        """Close the file."""
        if self._owner_pid == os.getpid():
            os.close(self._descriptor)
            self._owner_pid = 0
