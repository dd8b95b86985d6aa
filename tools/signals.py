"""Signals that only queue: the handlers note them, a loop acts on them.

`set_wakeup_fd` has the interpreter write a byte for each signal to a pipe, so that a loop can wait for signals and
time at once and misses none between its look and its sleep.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections import deque
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

QUEUED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})


class SignalQueue:
    """SIGTERM, SIGINT and SIGCHLD of this process, from `__enter__` to `__exit__`; main thread only."""

    def __init__(self) -> None:
        self._asked_to_end: deque[signal.Signals] = deque()
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        self._reads, self._writes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in QUEUED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._reads)
        os.close(self._writes)

    @property
    def is_empty(self) -> bool:
        """Whether nobody has asked this process to end since the last `requests`."""
        return not self._asked_to_end

    def requests(self) -> Iterator[signal.Signals]:
        """Take the SIGTERMs and SIGINTs from the queue, oldest first."""
        while self._asked_to_end:
            yield self._asked_to_end.popleft()

    def wait(self, timeout_seconds: float) -> None:
        """Wait for any of the signals, or the timeout."""
        select.select([self._reads], [], [], timeout_seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._reads, 4096)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._asked_to_end.append(signal.Signals(number))
