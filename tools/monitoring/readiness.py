"""What is wrong with an arena and its processes, in words: for /readyz, the page and `shmcache top` alike."""

from __future__ import annotations

from shmcache.arena.counters import LEADING_ROLES
from tools.monitoring.reader import Snapshot

RING_FULLNESS = 0.8
OLDEST_SECONDS = 60.0


def problems(snapshot: Snapshot, *, is_cached: bool = True, needs_workers: bool = True) -> list[str]:
    """Return what keeps an arena from doing its work as it should, each in one sentence; nothing if all is well.

    `is_cached`: its rings are to be drained. `needs_workers`: somebody is to take work."""
    found: list[str] = []
    if snapshot.is_mapping:
        return found
    if is_cached:
        for ring in snapshot.rings:
            if not ring.leader_pid:
                found.append(f"no {LEADING_ROLES[ring.name]} leads: the {ring.name} ring is not drained")
            if ring.fullness > RING_FULLNESS:
                found.append(f"the {ring.name} ring is {ring.fullness:.0%} full: writers will have to wait")
            if ring.oldest_seconds > OLDEST_SECONDS:
                waits = f"the oldest entry of the {ring.name} ring waits for {ring.oldest_seconds:.0f} s"
                found.append(f"{waits}: is PostgreSQL away?")
    if needs_workers and not any(each.role == "worker" and each.state != "dead" for each in snapshot.processes):
        found.append("no worker lives")
    stopped = [each for each in snapshot.processes if each.state == "stopped"]
    found += [f"{each.role} {each.pid} is stopped (SIGSTOP, a debugger)" for each in stopped]
    found += [
        f"lock {each.lock!r} was left by thread {each.thread}, which died: whoever takes it next repairs"
        for each in snapshot.locks
        if each.died and each.lock in ("commit", "cleaning") and each.waited_for
    ]
    return found
