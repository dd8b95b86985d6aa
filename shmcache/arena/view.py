"""A segment mapped for reading only: for who looks at an arena, also a dead one, without leaving a trace in it.

The kernel refuses every store (PROT_READ). No lane is taken and no lock: what is read may be changed underneath, so a
record counts only if its checksum holds and its version is the same afterwards.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Self

from shmcache.arena import segment
from shmcache.arena.layout import LOCATION, VERSION, Layout
from shmcache.arena.memory import Memory
from shmcache.arena.reading import Found
from shmcache.arena.slab import Slabs
from shmcache.arena.table import Table
from shmcache.errors import ArenaError

_TRIES = 10


class ReadOnlyMemory(Memory):
    """A memory whose words can be read; it has no address, hence no locks."""

    __slots__ = ()

    def __init__(self, mapped: mmap.mmap, placed: Layout, name: str) -> None:
        self.mapped = mapped
        self.name = name
        self._pinned = False
        self.layout = placed
        self.buffer = memoryview(mapped)
        self.words = self.buffer[: placed.end].cast("Q")
        self.address = 0


class View:
    """An arena as it can be seen from outside. `memory` is for `shmcache.arena.survey`."""

    def __init__(self, name: str) -> None:
        """Look at an arena by its name. Raises ArenaMissing, ArenaUnusable."""
        self.name = name
        self.memory: Memory = ReadOnlyMemory(*segment.attach_segment(name, read_only=True), name)

    @classmethod
    def inherited(cls, name: str, mapped: Memory) -> Self:
        """Look at an arena through the mapping that this process inherited by a fork, which from now on the kernel lets
        it only read. For a process that has no lane of its own. Raises ArenaError."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(mapped.address), ctypes.c_size_t(mapped.layout.end), mmap.PROT_READ):
            raise ArenaError(f"arena {name!r} cannot be made read-only here: {os.strerror(ctypes.get_errno())}")
        made = cls.__new__(cls)
        made.name, made.memory = name, mapped
        return made

    def read(self, key: bytes) -> Found | None:
        """Return a key's record, or None if it has none, or it is damaged, or changes all the time."""
        words = self.memory.words
        table, slabs = Table(self.memory), Slabs(self.memory)
        for _ in range(_TRIES):
            entry = table.find_certainly(key)
            if not entry:
                continue  # it may have moved between chains under this walk
            version = words[entry + VERSION]
            record = slabs.read(key, words[entry + LOCATION], version)
            if record is not None and words[entry + VERSION] == version and table.key_of(entry) == key:
                return Found(entry, version, record)
        return None

    def close(self) -> None:
        """Let go of the segment."""
        self.memory.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
