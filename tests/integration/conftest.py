"""Processes that tests fork."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def in_child() -> Iterator[Callable[[Callable[[Callable[[], bool]], None]], int]]:
    """Return a function that forks a process which runs a body until SIGTERM."""
    pids: list[int] = []

    def fork(body: Callable[[Callable[[], bool]], None]) -> int:
        pid = os.fork()
        if not pid:
            stop = False

            def ask(*_: object) -> None:
                nonlocal stop
                stop = True

            signal.signal(signal.SIGTERM, ask)
            try:
                body(lambda: stop)
            finally:
                os._exit(0)
        pids.append(pid)
        return pid

    yield fork
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
