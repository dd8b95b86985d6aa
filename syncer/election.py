"""Who leads: the holder of a lock file, with an epoch from the database that fences those before it.

    1  a candidate waits for the lock file           death: the kernel frees the lock
    2  it raises the epoch in the database           death: the epoch was raised for nothing
    3  it leads: each transaction of its checks that the epoch is still its own
    4  it leaves or dies: the lock is free

The lock decides quickly and alone is not enough: a leader that was stopped for a minute does not know that it lost
it, and a lock file that somebody deletes is no lock at all. The epoch is what keeps such a leader from writing.

The lock object is made in the process that uses it, after the fork; a leader forks nothing (see `charge_pool`).
filelock knows no waiting but looking again: a candidate opens and tries the file 20 times a second, 65 us each, so that
a dead leader has a successor within 50 ms, for about a thousandth of a core.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

ROLES = ("supervisor", "syncer", "charger")
"""What is led: an arena, its write ring, its charge ring."""

_TURN_SECONDS = 0.05
_PATIENCE_SECONDS = 3600.0


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
        return True

    def wait(self, should_stop: Callable[[], bool]) -> bool:
        """Wait until this process holds the lock; return False if it was asked to stop before that."""
        while not should_stop():
            try:
                self._lock.acquire(timeout=_PATIENCE_SECONDS, poll_interval=_TURN_SECONDS, cancel_check=should_stop)
            except Timeout:
                continue
            if not should_stop():
                return True
            self._lock.release()
        return False

    def leave(self) -> None:
        """Give the lock back."""
        self._lock.release()


def remove_locks(state_dir: Path, arena_name: str) -> None:
    """Remove the lock files of an arena that is gone. Who waits for one of them looks at a new file from then on."""
    for role in ROLES:
        (state_dir / "locks" / f"{arena_name}.{role}.lock").unlink(missing_ok=True)
