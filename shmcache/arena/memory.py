"""The mapped segment as this process sees it, and the stage on which changes to its words are prepared."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import TypeAlias

from shmcache.arena.layout import Layout

Stage: TypeAlias = dict[int, int]
"""Words that are about to change: reads fall through to the memory, writes wait here for the commit.

The order of the first write to each word is the order in which they are stored; the first one is the commit point.
Made by `Memory.stage`."""


class Memory:
    """A mapped segment: `buffer` for bytes, `words` for aligned 8-byte words, `address` for locks and futexes.

    `mapped` itself gives copies of bytes, in half the time that a view and its copy take. `name` is the arena's, for
    errors."""

    __slots__ = ("_pinned", "address", "buffer", "layout", "mapped", "name", "stage", "words")

    def __init__(self, mapped: mmap.mmap, placed: Layout, name: str = "") -> None:
        self.mapped = mapped
        self.name = name
        self._pinned = False
        self.layout = placed
        self.buffer = memoryview(mapped)
        self.words: memoryview = self.buffer[: placed.end].cast("Q")
        anchor = ctypes.c_char.from_buffer(mapped)
        self.address = ctypes.addressof(anchor)
        del anchor
        # A builtin method as __missing__: a fall-through read takes 55 ns, where one in Python takes 140.
        missing = {"__slots__": (), "__missing__": self.words.__getitem__}
        self.stage: Callable[[], Stage] = type("Stage", (dict,), missing)

    def pin(self) -> None:
        """Keep the segment mapped until the process ends or calls `release`, whatever is collected or torn down.

        For who holds a robust lock in it for life: the kernel finds the locks of the dead in the memory of the dead,
        and a lock that is no longer mapped then would look held for ever."""
        if not self._pinned:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.mapped))
            self._pinned = True

    def release(self) -> None:
        """Unmap the segment. No object made from this memory may be used afterwards."""
        self.words.release()
        self.buffer.release()
        self.mapped.close()
