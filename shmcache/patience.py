"""How long a thread may wait: without limit of its own (every thread at first), not at all, or until it is given up.

    thread of an event loop, during a call     HURRIED   where the call would wait, WouldWait is raised instead
    thread that runs a call for a loop         an Errand; where it waits, Abandoned is raised once nobody wants it
    every other                                None      waits as long as the limits say

Asked only where a thread is about to sleep (`mutex`, `critical`, `room`, `shmcache.backing_store`): who need not wait
pays nothing. All of those places come before anything is published: a call that ends in WouldWait or Abandoned has
changed nothing but what was loaded. Both are BaseExceptions, so that no `except Exception` on the way takes them for
an error.

An errand's effect is guarded by a handshake, because to abandon it and to begin to write are decided by two threads:

    the thread     begin      raises Abandoned if it was given up; from here on it writes
                   relent     what it began came to nothing (a conflict, a full ring): it may be given up again
    the loop       abandon    True: it has not begun and never will; False: it is writing, wait for its end
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal


class WouldWait(BaseException):
    """A thread that may not wait would have to."""


class Abandoned(BaseException):
    """Nobody wants any more what this thread was asked to do."""


class Errand:
    """A call that a thread makes for an event loop."""

    __slots__ = ("_abandoned", "_begun", "_turn")

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._abandoned = False
        self._begun = False

    def begin(self) -> None:
        """Say that what follows is written. Raises Abandoned."""
        with self._turn:
            if self._abandoned:
                raise Abandoned
            self._begun = True

    def relent(self) -> None:
        """Say that what was begun was not written."""
        with self._turn:
            self._begun = False

    def abandon(self) -> bool:
        """Give the errand up; return whether that was before it began. If not, it goes on, but waits no more."""
        with self._turn:
            self._abandoned = True
            return not self._begun

    def check(self) -> None:
        """Raise Abandoned if it was given up. Only where nothing is half done."""
        if self._abandoned:
            raise Abandoned


HURRIED: Final = "hurried"


class _Patience(threading.local):
    of_this_thread: Errand | Literal["hurried"] | None = None


patience = _Patience()
"""`patience.of_this_thread` is what this thread's waiting is bound by."""


def before_waiting() -> None:
    """Called by who is about to wait, and between turns of waiting. Raises WouldWait, Abandoned."""
    bound = patience.of_this_thread
    if bound is None:
        return
    if isinstance(bound, Errand):
        bound.check()
    else:
        raise WouldWait


@contextmanager
def to_the_end() -> Iterator[None]:
    """Let this thread wait inside, whatever it is bound by: for what has to be undone."""
    bound, patience.of_this_thread = patience.of_this_thread, None
    try:
        yield
    finally:
        patience.of_this_thread = bound
