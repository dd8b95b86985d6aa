"""Errands: calls that threads make for event loops, and what becomes of them when nobody wants them any more.

A task that is cancelled while it waits for an errand goes on at once, unless the errand is writing at that moment: then
it waits for the errand's end, which is near, so that what a cancelled call did is done when the cancelling is.
(`shmcache.patience` has the handshake.)
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import TypeVar

from shmcache.patience import Errand, patience

T = TypeVar("T")


class Errands:
    """A pool of at most `threads` threads, started as they are needed. A forked child has its own."""

    def __init__(self, threads: int) -> None:
        self._limit = threads
        self.forked()
        _all.add(self)

    def forked(self) -> None:
        """Take note that this is a forked child: the parent's threads are not here."""
        self._turn = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, work: Callable[[], T], *, at_once: bool = False) -> T:
        """Do `work` in a thread; return what it returns. `at_once`: once it has started, it is not to be given up."""
        errand = Errand()
        with self._turn:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._limit, thread_name_prefix="shmcache errand")
            future = self._pool.submit(copy_context().run, _do, errand, work, at_once)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not (future.cancel() or errand.abandon()):
                await _end_of(future)
            raise

    def stop(self) -> None:
        """Return when the threads have done what they are at, and ended. Who needs one later starts others."""
        with self._turn:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()


def _do(errand: Errand, work: Callable[[], T], at_once: bool) -> T:
    if at_once:
        errand.begin()
    patience.of_this_thread = errand
    try:
        return work()
    finally:
        patience.of_this_thread = None


async def _end_of(future: Future[T]) -> None:
    """Return when a thread is done, however often the task is cancelled meanwhile."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def settle() -> None:
        if not ended.done():
            ended.set_result(None)

    def tell(_: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(settle)

    future.add_done_callback(tell)
    while not ended.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([ended])


_all: weakref.WeakSet[Errands] = weakref.WeakSet()


def _after_fork() -> None:
    for errands in _all:
        errands.forked()


os.register_at_fork(after_in_child=_after_fork)
