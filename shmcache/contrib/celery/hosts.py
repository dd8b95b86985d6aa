"""What the processes of a worker know of their host: its queue, whether it is ending, whether somebody works there.

`stopping`      one byte of memory that the worker's main process shares with the children of its pool
`Attendance`    a lock on a file, shared by the processes that work on graph executions: the kernel lets go for the dead
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from kombu.entity import Queue

_UNUSED_SECONDS = 3600

_stopping = mmap.mmap(-1, mmap.PAGESIZE)


def begin() -> None:
    """Take note that the worker starts."""
    _stopping[0] = 0


def end() -> None:
    """Have the children end after the node at hand."""
    _stopping[0] = 1


def is_stopping() -> bool:
    """Say whether the worker is ending."""
    return bool(_stopping[0])


def queue_of(arena_id: str) -> Queue:
    """Return the queue of a host: what only it can go on with. A broker that can removes one that nobody uses."""
    name = f"shmcache.{arena_id}"
    return Queue(name, routing_key=name, expires=_UNUSED_SECONDS)  # type: ignore[no-untyped-call]


class Attendance:
    """Who works on an arena's graph executions, on this host."""

    def __init__(self, state_dir: Path, arena_name: str) -> None:
        # Named as the lock files of the arena's leaders are.
        self._path = state_dir.expanduser() / "locks" / f"{arena_name}.attended.lock"

    @contextlib.contextmanager
    def attending(self) -> Iterator[None]:
        """Be one of them for a while."""
        with self._locked(fcntl.LOCK_SH):
            yield

    def is_nobody(self) -> bool:
        """Say whether nobody does."""
        try:
            with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                return True
        except BlockingIOError:
            return False

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)
