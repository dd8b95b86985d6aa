"""Processes that tests fork: bodies of their own, syncers."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator

import psutil
import pytest

from shmcache.arena import Arena
from shmcache.config import Settings
from syncer.sync_manager import SyncManager

_FORK = multiprocessing.get_context("fork")


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


@pytest.fixture
def start_syncer(arena: Arena, settings: Settings) -> Iterator[Callable[[str], psutil.Process]]:
    """Return a function that starts a syncer in a process of its own."""
    started: list[psutil.Process] = []

    def start(database_url: str) -> psutil.Process:
        process = _FORK.Process(
            target=lambda: SyncManager(arena, database_url, settings).run(lambda: False), daemon=True
        )
        process.start()
        started.append(psutil.Process(process.pid))
        return started[-1]

    yield start
    for each in started:
        with contextlib.suppress(psutil.NoSuchProcess):  # killed by the test, and reaped
            each.kill()
    psutil.wait_procs(started, timeout=10)
