"""The sign of life of a process that neither writes nor looks for work: called by what takes long and means to.

A supervisor with SHMCACHE_WORKER_TIMEOUT replaces workers that show none. Writes, and all waiting for the arena, are
signs of life by themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_TURN_SECONDS = 1.0

_beat: Callable[[], None] | None = None


def heartbeat() -> None:
    """Say that this process goes on. May be called as often as one likes, and where there is no arena."""
    if _beat is not None:
        _beat()


def beat_with(beat: Callable[[], None] | None) -> None:
    """Say what a heartbeat does in this process and in those it forks."""
    global _beat  # noqa: PLW0603 - one a process, like the client
    _beat = beat


def sleep(seconds: float) -> None:
    """Sleep, with a heartbeat each second."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _TURN_SECONDS))
        heartbeat()
