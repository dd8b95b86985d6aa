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

ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
"""Ask a process to end."""
OPERATING = frozenset({signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU, signal.SIGQUIT})
"""What an operator asks of a supervisor, beside SIGTERM and SIGINT."""
QUEUED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})


class SignalQueue:
    """SIGTERM, SIGINT, SIGCHLD and those in `also`, of this process, from `__enter__` to `__exit__`.

    Main thread only."""

    def __init__(self, also: frozenset[signal.Signals] = frozenset()) -> None:
        self._numbers = QUEUED | also
        self._requests: deque[signal.Signals] = deque()
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> Self:
        self._reads, self._writes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._writes, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, self._note) for number in self._numbers}
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
        return ENDING.isdisjoint(self._requests)

    def requests(self) -> Iterator[signal.Signals]:
        """Take the signals but SIGCHLD from the queue, oldest first."""
        while self._requests:
            yield self._requests.popleft()

    def wait(self, timeout_seconds: float) -> None:
        """Wait for any of the signals, or the timeout."""
        select.select([self._reads], [], [], timeout_seconds)
        with contextlib.suppress(BlockingIOError):
            os.read(self._reads, 4096)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._requests.append(signal.Signals(number))
