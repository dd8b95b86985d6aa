"""The mapped segment as this process sees it, and the stage on which changes to its words are prepared."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from multiprocessing import shared_memory

from shmcache.arena.layout import Layout

fault_point: Callable[[str], None] | None = None
"""Called with the name of each step of a critical section. None but in tests, which die there or look."""


class Memory:
    """A mapped segment: `buffer` for bytes, `words` for aligned 8-byte words, `address` for locks and futexes."""

    __slots__ = ("address", "buffer", "layout", "segment", "words")

    def __init__(self, segment: shared_memory.SharedMemory, placed: Layout) -> None:
        buffer = segment.buf
        assert buffer is not None
        self.segment = segment
        self.layout = placed
        self.buffer: memoryview = buffer
        self.words: memoryview = buffer[: placed.end].cast("Q")
        anchor = ctypes.c_char.from_buffer(buffer)
        self.address = ctypes.addressof(anchor)
        del anchor

    def release(self) -> None:
        """Unmap the segment. No object made from this memory may be used afterwards."""
        self.words.release()
        self.buffer.release()
        self.segment.close()


class Stage(dict[int, int]):
    """Words that are about to change: reads fall through to the memory, writes wait here for the commit.

    The order of the first write to each word is the order in which they are stored; the first one is the commit
    point."""

    __slots__ = ("words",)

    def __init__(self, words: memoryview) -> None:
        super().__init__()
        self.words = words

    def __missing__(self, word: int) -> int:
        return self.words[word]
