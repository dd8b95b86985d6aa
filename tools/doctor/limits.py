"""What this process and those it starts may have: descriptors, processes, sizes of files and address space."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from shmcache.arena.layout import plan
from shmcache.config import Settings
from shmcache.setting_texts import shown_bytes
from tools.doctor.finding import Finding, failure, ok, warning
from tools.doctor.host import Host
from tools.doctor.memory import process_count
from tools.supervisor import arena_size

_FEWEST_DESCRIPTORS = 64
_FEW_DESCRIPTORS = 256
_ADDRESS_SPACE_BYTES = 1 << 30
"""What an interpreter with numpy maps besides the arena, about."""
_THREADS_A_PROCESS = 4
_UNLIMITED = resource.RLIM_INFINITY


def check_descriptors() -> Finding:
    """Look at how many files a process may have open."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{_shown(limit)} a process"
    advice = f"raise it: ulimit -n 1024 (the hard limit is {_shown(most)}), or LimitNOFILE= in the unit file"
    if limit != _UNLIMITED and limit < _FEWEST_DESCRIPTORS:
        return failure("open files", found, advice)
    if limit != _UNLIMITED and limit < _FEW_DESCRIPTORS:
        return warning("open files", found, advice)
    return ok("open files", found)


def check_process_limit(settings: Settings, host: Host) -> Finding:
    """Look whether the processes of a supervisor may be started."""
    needed = process_count(settings) * _THREADS_A_PROCESS
    rooms: dict[str, int] = {}
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit != _UNLIMITED and os.geteuid() != 0:  # it does not bind root
        rooms[f"ulimit -u {limit}"] = limit - _threads_of_user()
    room = host.process_limit()
    if room is not None:
        rooms["pids.max of the control group"] = room
    if not rooms:
        return ok("processes", f"no limit; {process_count(settings)} are needed")
    what, least = min(rooms.items(), key=lambda each: each[1])
    found = f"{what} leaves room for {max(0, least):,}; {process_count(settings)} with their threads are {needed}"
    if least < needed:
        return failure("processes", found, "raise it: ulimit -u, TasksMax= in the unit file, docker run --pids-limit")
    return ok("processes", found)


def check_sizes(settings: Settings) -> Finding:
    """Look at the limits on the size of a file, which the segment is, and on address space."""
    size = plan(arena_size(settings)).end
    for number, option, needed in (
        (resource.RLIMIT_FSIZE, "ulimit -f", size),
        (resource.RLIMIT_AS, "ulimit -v", size + _ADDRESS_SPACE_BYTES),
    ):
        limit = resource.getrlimit(number)[0]
        if limit != _UNLIMITED and limit < needed:
            return failure(
                "file size, address space", f"{option} allows {shown_bytes(limit)}, {shown_bytes(needed)} are needed",
                f"raise it: {option} unlimited",
            )  # fmt: skip
    return ok("file size, address space", "large enough for the arena")


def check_locked_memory() -> Finding:
    """Say what may be locked in memory: nothing of the arena is, so it may be swapped out."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    try:
        swaps = len(Path("/proc/swaps").read_text().splitlines()) > 1
    except OSError:
        swaps = False
    found = f"{_shown(limit) if limit == _UNLIMITED else shown_bytes(limit)}; none is needed, the arena is not locked"
    if swaps:
        return warning(
            "locked memory", f"{found}, and this machine swaps",
            "leave enough memory free that the arena is not swapped out, or turn swap off for its control group",
        )  # fmt: skip
    return ok("locked memory", found)


def _threads_of_user() -> int:
    """Return how many threads this user has, as the kernel counts them for the limit."""
    count = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            facts = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue  # it has just ended
        if facts["Uid"].split()[0] == str(os.getuid()):
            count += int(facts["Threads"])
    return count


def _shown(limit: int) -> str:
    return "unlimited" if limit == _UNLIMITED else f"{limit:,}"
