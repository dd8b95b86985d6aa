"""The shared memory of an arena, a file in /dev/shm: create, attach, check and unlink.

A segment belongs to one user: it is made with mode 0600, and a segment of another owner, of another layout, truncated,
or still being made is refused before it is mapped. `multiprocessing.shared_memory` does not do the mapping: it unlinks
a segment whose mapping fails under everybody who uses it, and before Python 3.13 a resource tracker does the same when
a process is killed between attaching and taking that back.

    create    1 a file without a name (O_TMPFILE)   2 reserve every page (posix_fallocate)   3 map; header, locks
              4 READY = 1   5 give the file its name (linkat)
    attach    1 open, stat   2 read the header through the descriptor   3 map the same descriptor
              (the same with O_RDONLY and PROT_READ for who only looks)

A segment has a name only when it is ready: a death before step 5 of create leaves nothing, the kernel frees the file.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import struct
from pathlib import Path

from shmcache.arena import layout
from shmcache.arena.layout import Layout
from shmcache.errors import ArenaExists, ArenaMissing, ArenaUnusable, SharedMemoryTooSmall

_DIRECTORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
_HEADER = struct.Struct("<17Q")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _prefix() -> str:
    return f"shmcache.{os.getuid()}."


def segment_path(name: str) -> Path:
    """Return where the segment of an arena lies. Raises ArenaUnusable for what is no name."""
    if not _NAME.fullmatch(name):
        raise ArenaUnusable(name, "a name is 1 to 64 of A-Z a-z 0-9 _ . -")
    return _DIRECTORY / (_prefix() + name)


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


def reserve_segment(name: str, planned: Layout) -> tuple[mmap.mmap, int]:
    """Reserve and map all pages of a segment that has no name yet; return the mapping and a descriptor.

    Raises ArenaExists, SharedMemoryTooSmall, ArenaUnusable."""
    if segment_path(name).exists():
        raise ArenaExists(name)
    available = free_bytes()
    if planned.end > available:
        # Reserving would take all there is, page by page, before it fails: enough to get somebody killed.
        raise SharedMemoryTooSmall(name, planned.end, available)
    try:
        descriptor = os.open(_DIRECTORY, os.O_RDWR | os.O_TMPFILE, 0o600)
    except OSError as error:
        raise ArenaUnusable(name, f"cannot be created: {error.strerror} (shmcache doctor looks into it)") from None
    try:
        os.posix_fallocate(descriptor, 0, planned.end)
        return mmap.mmap(descriptor, planned.end), descriptor
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ENOSPC, errno.EFBIG):
            raise SharedMemoryTooSmall(name, planned.end, available) from None
        raise ArenaUnusable(name, f"cannot be created: {error.strerror} (shmcache doctor looks into it)") from None


def publish_segment(name: str, descriptor: int) -> None:
    """Give a segment that is ready its name. Raises ArenaExists where another one has it."""
    directory = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.link(str(descriptor), segment_path(name), src_dir_fd=directory, follow_symlinks=True)
    except FileExistsError:
        raise ArenaExists(name) from None
    finally:
        os.close(directory)


def attach_segment(name: str, *, read_only: bool = False) -> tuple[mmap.mmap, Layout]:
    """Map an existing segment, for reading only if asked so; return it with its layout, read from its own header.

    Raises ArenaMissing, ArenaUnusable."""
    try:
        descriptor = os.open(segment_path(name), (os.O_RDONLY if read_only else os.O_RDWR) | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise ArenaMissing(name) from None
    except OSError as error:
        raise ArenaUnusable(name, f"cannot be opened: {error.strerror} (shmcache doctor looks into it)") from None
    try:
        placed = _check(name, os.fstat(descriptor), os.pread(descriptor, _HEADER.size, 0))
        protection = mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(descriptor, placed.end, prot=protection), placed
    except OSError as error:
        raise ArenaUnusable(name, f"cannot be mapped: {error.strerror} (shmcache doctor looks into it)") from None
    finally:
        os.close(descriptor)


def _check(name: str, status: os.stat_result, header: bytes) -> Layout:
    """Return the layout that a segment's header names, if all is as `create` leaves it. Raises ArenaUnusable."""
    if status.st_uid != os.getuid():
        raise ArenaUnusable(name, f"it belongs to user {status.st_uid}, not to us: choose another name")
    if status.st_mode & 0o077:
        raise ArenaUnusable(
            name, f"others may write or read it (mode {status.st_mode & 0o777:o}), it is no arena of ours: remove it"
        )
    if len(header) < _HEADER.size:
        raise ArenaUnusable(name, "it is truncated: remove it")
    words = _HEADER.unpack(header)
    if words[layout.MAGIC_WORD] not in (0, layout.MAGIC):
        raise ArenaUnusable(name, "it is no shmcache arena: remove it, or choose another name")
    if words[layout.READY_WORD] != 1:
        raise ArenaUnusable(name, "it was never finished: remove it")
    if words[layout.MAGIC_WORD] != layout.MAGIC:
        raise ArenaUnusable(name, "its header is damaged: remove it, what was not synced is lost")
    if words[layout.LAYOUT_WORD] != layout.LAYOUT_HASH:
        raise ArenaUnusable(name, "another version of shmcache made it: drain it with that version, then remove it")
    if words[layout.NAMESPACE_WORD] != pid_namespace():
        raise ArenaUnusable(
            name, "it was made in another pid namespace, where locks name their holders otherwise: share that namespace"
        )
    try:
        placed = layout.plan(
            min(words[layout.SIZE_WORD], 1 << 46),
            words[layout.WRITE_RING_SIZE_WORD],
            words[layout.CHARGE_RING_SIZE_WORD],
        )
    except ValueError:
        placed = None
    if (
        placed is None
        or words[layout.SIZE_WORD] != placed.size
        or words[layout.LANE_COUNT_WORD : layout.NAMESPACE_WORD] != placed[1:8]
        or words[layout.STRIPE_COUNT_WORD] != placed.stripe_count
    ):
        raise ArenaUnusable(name, "its header is damaged: remove it, what was not synced is lost")
    if placed.end != status.st_size:
        raise ArenaUnusable(
            name, f"it is truncated: {status.st_size:,} bytes where its header says {placed.end:,}: remove it"
        )
    return placed


def pid_namespace() -> int:
    """Return the number of this process's pid namespace, 0 where /proc does not say."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def unlink_segment(name: str) -> None:
    """Remove a segment from /dev/shm; processes that have it mapped keep it. Nothing happens if it is gone."""
    segment_path(name).unlink(missing_ok=True)


def free_bytes() -> int:
    """Return the free bytes of /dev/shm."""
    status = os.statvfs(_DIRECTORY)
    return status.f_bavail * status.f_frsize
