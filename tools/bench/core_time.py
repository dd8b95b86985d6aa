"""What processes take of the cores: how long they have run so far, by what they do."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import psutil

from shmcache.arena import Arena

POSTGRESQL = "PostgreSQL"
_CPU_CLOCK = 2


def core_seconds(arena: Arena, server_directory: Path) -> dict[str, float]:
    """Return the core time so far of an arena's processes and theirs by role, and of the server with that data.

    A server's process that has ended counts through its parent; one of ours does not, so nothing of ours may end
    between two looks that are compared."""
    seconds: defaultdict[str, float] = defaultdict(float)
    attached = {each.pid: each.role for each in arena.processes() if each.alive}
    for pid, role in attached.items():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            seconds[role] += _own(process)
            for child in process.children():
                if child.pid not in attached:
                    seconds[f"{role}'s pool"] += _own(child)
    postmaster = psutil.Process(int((server_directory / "postmaster.pid").read_text().split("\n", 1)[0]))
    spent = postmaster.cpu_times()
    seconds[POSTGRESQL] = _own(postmaster) + spent.children_user + spent.children_system
    for process in postmaster.children():
        with suppress(psutil.NoSuchProcess):
            seconds[POSTGRESQL] += _own(process)
    return dict(seconds)


def _own(process: psutil.Process) -> float:
    """Return what a process has taken, to the nanosecond (clock_getcpuclockid(3)); psutil counts ticks of 10 ms."""
    try:
        return time.clock_gettime((~process.pid << 3) | _CPU_CLOCK)
    except OSError:
        raise psutil.NoSuchProcess(process.pid) from None
