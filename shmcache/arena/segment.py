"""The SharedMemory segment of an arena: create, attach, check and unlink.

A segment belongs to one user: it is made with mode 0600, and a segment of another owner, of another layout, truncated,
or still being made is refused before it is mapped. `multiprocessing.shared_memory` unlinks a segment whose mapping
fails, under everybody who uses it, so the file is looked at first and mapped only when it is whole. Before Python 3.13
it also registers each attachment with a resource tracker that unlinks the segment when the process ends: this is
undone at once.

    create    1 open with O_EXCL   2 reserve every page (posix_fallocate)   3 write header, locks   4 READY = 1
    attach    1 stat   2 read the header through a file descriptor   3 map

A death before step 4 of create leaves a segment that nobody attaches; `unlink_segment` removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

from shmcache.arena import layout
from shmcache.arena.layout import Layout
from shmcache.errors import ArenaExists, ArenaMissing, ArenaUnusable, SharedMemoryTooSmall

_DIRECTORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
_HEADER = struct.Struct("<15Q")


def _prefix() -> str:
    return f"shmcache.{os.getuid()}."


class _Segment(shared_memory.SharedMemory):
    """A SharedMemory that nothing but `unlink_segment` unlinks: not a failed mapping, not a resource tracker."""

    def __init__(self, name: str, size: int | None) -> None:
        if sys.version_info >= (3, 13):
            super().__init__(name, create=size is not None, size=size or 0, track=False)
        else:
            super().__init__(name, create=size is not None, size=size or 0)
            resource_tracker.unregister(f"/{name}", "shared_memory")

    def unlink(self) -> None:
        """Do nothing: see the class."""


def list_arenas() -> list[str]:
    """Return the names of this user's arenas on this machine."""
    prefix = _prefix()
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in _DIRECTORY.iterdir():
            with contextlib.suppress(OSError):
                if path.name.startswith(prefix) and path.stat().st_uid == os.getuid():
                    found.append(path.name[len(prefix) :])
    return sorted(found)


def create_segment(name: str, planned: Layout) -> shared_memory.SharedMemory:
    """Create the segment and reserve all its pages; READY is left 0. Raises ArenaExists, SharedMemoryTooSmall."""
    try:
        segment = _Segment(_prefix() + name, planned.end)
    except FileExistsError:
        raise ArenaExists(name) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise SharedMemoryTooSmall(name, planned.end, free_bytes()) from None
        raise ArenaUnusable(name, f"cannot be created: {error.strerror}") from None
    path = _DIRECTORY / (_prefix() + name)
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, planned.end)
    except OSError as error:
        available = free_bytes()
        segment.close()
        path.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            raise SharedMemoryTooSmall(name, planned.end, available) from None
        raise
    finally:
        os.close(descriptor)
    return segment


def attach_segment(name: str) -> tuple[shared_memory.SharedMemory, Layout]:
    """Map an existing segment; return it with its layout, read from its own header.

    Raises ArenaMissing, ArenaUnusable."""
    path = _DIRECTORY / (_prefix() + name)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise ArenaMissing(name) from None
    except OSError as error:
        raise ArenaUnusable(name, f"cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        header = os.pread(descriptor, _HEADER.size, 0)
    finally:
        os.close(descriptor)
    if status.st_uid != os.getuid():
        raise ArenaUnusable(name, f"it belongs to user {status.st_uid}, not to us")
    if len(header) < _HEADER.size:
        raise ArenaUnusable(name, "it is truncated; remove it if nobody is making it right now")
    words = _HEADER.unpack(header)
    if words[layout.MAGIC_WORD] != layout.MAGIC and words[layout.READY_WORD]:
        raise ArenaUnusable(name, "it is no shmcache arena")
    if not words[layout.READY_WORD]:
        raise ArenaUnusable(name, "it is still being made, or its maker died: remove it if nobody is making it")
    if words[layout.LAYOUT_WORD] != layout.LAYOUT_HASH:
        raise ArenaUnusable(name, "another version of shmcache made it: drain it with that version, then remove it")
    placed = layout.place(words[layout.SIZE_WORD], *words[layout.LANE_COUNT_WORD : layout.CHARGE_RING_SIZE_WORD + 1])
    if placed.end > status.st_size or placed.end > 1 << 46:
        raise ArenaUnusable(name, f"it is truncated: {status.st_size:,} bytes where its header says {placed.end:,}")
    try:
        segment = _Segment(_prefix() + name, None)
    except FileNotFoundError:
        raise ArenaMissing(name) from None
    except OSError as error:
        raise ArenaUnusable(name, f"cannot be mapped: {error.strerror}") from None
    return segment, placed


def unlink_segment(name: str) -> None:
    """Remove a segment from /dev/shm; processes that have it mapped keep it. Nothing happens if it is gone."""
    (_DIRECTORY / (_prefix() + name)).unlink(missing_ok=True)


def free_bytes() -> int:
    """Return the free bytes of /dev/shm."""
    status = os.statvfs(_DIRECTORY)
    return status.f_bavail * status.f_frsize
