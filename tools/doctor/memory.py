"""Shared memory: where it is mounted, whether the arena fits (by really reserving it), what limits or removes it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from shmcache.arena import free_bytes, list_arenas
from shmcache.arena.layout import plan
from shmcache.arena.segment import reserve_segment
from shmcache.config import Settings
from shmcache.errors import ArenaUnusable, SharedMemoryTooSmall
from shmcache.setting_texts import shown_bytes
from tools.doctor.finding import Finding, failure, ok, skipped, warning
from tools.doctor.host import Host, MemoryLimit
from tools.supervisor import arena_size

_NAME = "/dev/shm"  # noqa: S108 - where POSIX shared memory lives on Linux
_SHARED_MEMORY = Path(_NAME)
_DOCKER_DEFAULT = 64 << 20
_PROCESS_BYTES = 60 << 20
"""What a process of ours takes for itself, about: the interpreter, numpy, the database driver."""
_FIRST_USER = 1000
"""Users below are system users, whose shared memory systemd-logind leaves alone."""
_ENLARGE = (
    "make it larger (docker run --shm-size, shm_size in a compose file, an emptyDir with medium Memory in Kubernetes,"
    " mount -o remount,size=... /dev/shm), or the arena smaller (SHMCACHE_ARENA_SIZE)"
)


def check_mount(host: Host) -> Finding:
    """Look at what /dev/shm is."""
    mount = host.mount_of(_SHARED_MEMORY)
    if mount is None or not _SHARED_MEMORY.is_dir():
        return failure(_NAME, "not there", "mount a tmpfs on /dev/shm")
    status = os.statvfs(_SHARED_MEMORY)
    size = status.f_blocks * status.f_frsize
    found = f"{mount.kind}, {_about(size)}, {_about(free_bytes())} free"
    if mount.kind != "tmpfs":
        return failure(_NAME, f"on {mount.directory} ({mount.kind})", "mount a tmpfs on /dev/shm: it must be memory")
    if "ro" in mount.options or not os.access(_SHARED_MEMORY, os.W_OK | os.X_OK):
        return failure(_NAME, f"{found}, cannot be written", "mount it for writing, mode 1777")
    if size == _DOCKER_DEFAULT:
        return warning(_NAME, f"{found}: Docker's default", f"an arena takes half of it at most: {_ENLARGE}")
    return ok(_NAME, found)


def check_fit(settings: Settings, host: Host) -> Finding:
    """Reserve the arena, every page of it, and give it back; not where that might get somebody killed."""
    if settings.arena in list_arenas():
        return ok("arena fits", f"arena {settings.arena} is there")
    size = arena_size(settings)
    asked = f"arena {settings.arena} of {shown_bytes(size)}{' (auto)' if settings.arena_size == 'auto' else ''}"
    planned = plan(size)
    for limit in host.memory_limits():
        if limit.limit - limit.used < planned.end:
            return failure(
                "arena fits", f"{asked}: {limit.what} has {_about(limit.limit - limit.used)} of memory left",
                "give it more memory, or make the arena smaller (SHMCACHE_ARENA_SIZE): shared memory counts",
            )  # fmt: skip
    try:
        mapped, descriptor = reserve_segment(f"doctor-{os.getpid()}", planned)
    except SharedMemoryTooSmall as error:
        return failure("arena fits", f"{asked}: /dev/shm has {_about(error.available)} free", _ENLARGE)
    except ArenaUnusable as error:
        return failure(
            "arena fits", f"{asked}: {error.reason}", "use a kernel and a /dev/shm with O_TMPFILE (Linux 3.11)"
        )
    mapped.close()
    os.close(descriptor)
    return ok("arena fits", f"{asked} was reserved, and given back")


def check_memory_limit(settings: Settings, host: Host) -> Finding:
    """Look whether arena and processes together fit into what the control groups and the machine have."""
    processes = process_count(settings)
    needed = plan(arena_size(settings)).end + processes * _PROCESS_BYTES
    asked = f"arena and {processes} processes take about {_about(needed)}"
    limits = host.memory_limits()
    if not limits:
        return skipped("memory limit", "neither control groups nor /proc/meminfo say anything")
    tightest = min(limits, key=_room)
    found = f"{asked}; {tightest.what} allows {_about(tightest.limit)}, {_about(_room(tightest))} of it free"
    if tightest.limit < needed:
        return failure("memory limit", found, "raise the limit: pages of /dev/shm count like any other memory")
    if _room(tightest) < needed and settings.arena not in list_arenas():  # what runs has its memory already
        return warning("memory limit", found, "free some memory, or raise the limit, before you start")
    return ok("memory limit", found)


def check_removal(host: Host, user_id: int | None = None) -> Finding:
    """Look whether systemd-logind would remove a user's segments when that user logs out."""
    check = "systemd-logind"
    user_id = os.getuid() if user_id is None else user_id
    said = host.removes_ipc()
    if said is None:
        return ok(check, "not here, or RemoveIPC=no")
    if user_id < _FIRST_USER:
        return ok(check, f"RemoveIPC=yes ({said}), which leaves system users alone")
    name = _user_name(user_id)
    if (host.root / "var/lib/systemd/linger" / name).exists():
        return ok(check, f"RemoveIPC=yes ({said}), but {name} lingers and so never logs out")
    return failure(
        check, f"RemoveIPC=yes ({said}): when {name} logs out, the arena is deleted under its processes",
        f"run as a system user; or loginctl enable-linger {name}; or write [Login] and RemoveIPC=no into"
        " /etc/systemd/logind.conf.d/shmcache.conf and restart systemd-logind",
    )  # fmt: skip


def process_count(settings: Settings) -> int:
    """Return how many processes a supervisor has: itself, its workers, two syncers, the charger with its pool."""
    return 1 + settings.workers + 2 + 1 + settings.charge_workers


def _room(limit: MemoryLimit) -> int:
    return limit.limit - limit.used


def _about(size: int) -> str:
    """Return a size to three digits."""
    for length, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if abs(size) >= length:
            return f"{size / length:.3g} {unit}" if size / length < 1000 else f"{size / length:,.0f} {unit}"
    return f"{size} B"


def _user_name(user_id: int) -> str:
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:
        return str(user_id)
