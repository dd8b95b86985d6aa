"""Who leads: the holder of a lock file, with an epoch from the database that fences those before it.

    1  a candidate takes the lock file               death: the kernel frees the lock
       and writes its pid there                      death before that: those who wait look again 20 times a second
    2  it raises the epoch in the database           death: the epoch was raised for nothing
    3  it leads: each transaction of its checks that the epoch is still its own
    4  it leaves or dies: the lock is free

The lock decides quickly and alone is not enough: a leader that was stopped for a minute does not know that it lost
it, and a lock file that somebody deletes is no lock at all. The epoch is what keeps such a leader from writing.

The lock object is made in the process that uses it, after the fork; a leader forks nothing (see `charge_pool`).

A candidate that finds the file locked sleeps until the process that has it ends (a pidfd tells, see pidfd_open(2),
after the kernel has freed the locks of the dead), until a signal comes, or for a second at most: then it tries the file
again, which may have been deleted, or given back by a leader that lives on, or be held in another pid namespace.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

ROLES = ("supervisor", "syncer", "charger")
"""What is led: an arena, its write ring, its charge ring."""

_TURN_SECONDS = 1.0
_UNKNOWN_LEADER_TURN_SECONDS = 0.05


class Candidate:
    """Stands for the leadership of one role over one arena. The directory is made with mode 0700."""

    def __init__(self, state_dir: Path, arena_name: str, role: str) -> None:
        directory = state_dir / "locks"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = directory / f"{arena_name}.{role}.lock"
        self._lock = FileLock(self.path)

    def try_now(self) -> bool:
        """Take the lock if it is free; return whether this process holds it."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        self._sign()
        return True

    def wait(self, should_stop: Callable[[], bool]) -> bool:
        """Wait until this process holds the lock; return False if it was asked to stop before that."""
        if should_stop():
            return False
        if self.try_now():
            return True
        with _signal_pipe() as signals:
            while not should_stop():
                if self.try_now():
                    return True
                self._await_leaders_end(signals)
        return False

    def leave(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def _sign(self) -> None:
        """Write who leads to the lock file. Where somebody has deleted it, nobody waits for this leader's end."""
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(descriptor, str(os.getpid()).encode())
            finally:
                os.close(descriptor)

    def _await_leaders_end(self, signals: int) -> None:
        """Sleep until the process named in the lock file ends, a signal comes, or a turn is over."""
        try:
            leader = os.pidfd_open(int(self.path.read_text()))
        except (OSError, ValueError):
            # It has just ended, or has not signed yet, or is of another pid namespace.
            select.select([signals], [], [], _UNKNOWN_LEADER_TURN_SECONDS)
        else:
            try:
                select.select([leader, signals], [], [], _TURN_SECONDS)
            finally:
                os.close(leader)
        with contextlib.suppress(BlockingIOError):
            os.read(signals, 4096)


@contextlib.contextmanager
def _signal_pipe() -> Iterator[int]:
    """Give a descriptor that can be read once a signal has come, so that none is missed between look and sleep.

    Outside of the main thread, where no signal is handled, it stays silent."""
    reads, writes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    hears = threading.current_thread() is threading.main_thread()
    before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False) if hears else -1
    try:
        yield reads
    finally:
        if hears:
            signal.set_wakeup_fd(before)
        os.close(reads)
        os.close(writes)


def remove_locks(state_dir: Path, arena_name: str) -> None:
    """Remove the lock files of an arena that is gone. Who waits for one of them looks at a new file from then on."""
    for role in (*ROLES, "shadow"):
        (state_dir / "locks" / f"{arena_name}.{role}.lock").unlink(missing_ok=True)
