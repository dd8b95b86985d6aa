"""Watch: any number of tasks, of any event loops, that wait for one word of the arena; one thread sleeps for them all.

    task      notes what it waits for, then looks: it is there already, or the thread will see it
    thread    1 notes the word    2 looks for each of the tasks, wakes those whose time has come
              3 sleeps until the word is another than it was; then again

A change between a task's look and the thread's sleep is no loss: the word is another by then than the thread noted. The
thread begins with the first task and ends some time after the last, or at `stop`; it holds nothing while it sleeps.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from shmcache.errors import ClientClosed

_TURN_SECONDS = 5.0


class _Waiting(NamedTuple):
    there: Callable[[], bool]
    loop: asyncio.AbstractEventLoop
    seen: asyncio.Future[None]


class Watch:
    """Watches a word.

    `read()` returns it, `sleep(seen, timeout_seconds, give_up)` waits until it is another, or until `give_up()` after
    `nudge()`."""

    def __init__(
        self,
        name: str,
        read: Callable[[], int],
        sleep: Callable[[int, float, Callable[[], bool]], None],
        nudge: Callable[[], None],
    ) -> None:
        self._name = name
        self._read = read
        self._sleep = sleep
        self._nudge = nudge
        self.forked()
        _all.add(self)

    def forked(self) -> None:
        """Take note that this is a forked child: the parent's thread and tasks are not here."""
        self._turn = threading.Lock()
        self._waiting: dict[asyncio.Future[None], _Waiting] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False

    async def until(self, there: Callable[[], bool], timeout_seconds: float | None) -> bool:
        """Wait until `there()`, which changes with the word only; return whether that came. None: without limit.

        Raises what ended the thread: ClientClosed, or an error of the arena."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(there, loop, loop.create_future())
        with self._turn:
            if self._stopping:
                raise ClientClosed
            self._waiting[waiting.seen] = waiting
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        try:
            if there():
                return True
            async with asyncio.timeout(timeout_seconds):
                await waiting.seen
            return True
        except TimeoutError:
            return there()
        finally:
            with self._turn:
                self._waiting.pop(waiting.seen, None)

    def stop(self) -> None:
        """End the thread, and wait for its end: it uses the arena no more. Who still waits gets ClientClosed."""
        with self._turn:
            thread = self._thread
            self._stopping = thread is not None
        if thread is not None:
            self._nudge()
            thread.join()
            self._stopping = False

    def _run(self) -> None:
        try:
            while True:
                seen = self._read()
                with self._turn:
                    if not self._waiting:
                        self._thread = None
                        return
                    waiting = list(self._waiting.values())
                if self._stopping:
                    raise ClientClosed
                for each in waiting:
                    if each.there():
                        _settle(each, None)
                self._sleep(seen, _TURN_SECONDS, lambda: self._stopping)
        except Exception as error:
            with self._turn:
                stranded, self._waiting, self._thread = list(self._waiting.values()), {}, None
            for each in stranded:
                _settle(each, error)


def _settle(waiting: _Waiting, error: Exception | None) -> None:
    def settle() -> None:
        if waiting.seen.done():
            return
        if error is None:
            waiting.seen.set_result(None)
        else:
            waiting.seen.set_exception(error)

    with suppress(RuntimeError):  # its loop was closed
        waiting.loop.call_soon_threadsafe(settle)


_all: weakref.WeakSet[Watch] = weakref.WeakSet()


def _after_fork() -> None:
    for watch in _all:
        watch.forked()


os.register_at_fork(after_in_child=_after_fork)
