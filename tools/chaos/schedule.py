"""When which fault comes: drawn from a seed alone, so that the same seed gives the same schedule."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

KILLS = {
    "kill-worker": 8,
    "kill-leader": 4,
    "kill-standby": 2,
    "kill-charger": 4,
    "kill-pool": 3,
    "kill-supervisor": 1,
    "kill-all": 1,
}
"""Faults that are SIGKILLs, with how often each comes beside the others."""

OTHERS = {
    "stop-worker": 3,
    "stop-leader": 2,
    "stop-charger": 2,
    "cut": 2,
    "delay": 2,
    "half-close": 1,
    "terminate-backends": 2,
    "stop-database": 1,
    "delete-lock": 1,
    "poison": 2,
    "disk-full": 1,
    "memory-full": 1,
}
"""The other faults, likewise."""

ALL = (*KILLS, *OTHERS)
_LEAST_PAUSE_SECONDS = 0.05
_MOST_PAUSE_SECONDS = 0.6


class Event(NamedTuple):
    """A fault: `delay_seconds` after the one before it. `part`, from 0 to 1, is for the fault itself: which of several
    processes, how long."""

    delay_seconds: float
    fault: str
    part: float


def make_schedule(seed: int, faults: Sequence[str], kills: int | None, minutes: float | None) -> list[Event]:
    """Return events until there are so many kills, or until so many minutes are over, whichever comes first.

    Without any kill among `faults`, `kills` counts events. One of the two limits must be given."""
    assert kills is not None or minutes is not None
    source = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    weights = [{**KILLS, **OTHERS}[fault] for fault in faults]
    counts_all = not any(fault in KILLS for fault in faults)
    events: list[Event] = []
    killed, seconds = 0, 0.0
    while (kills is None or killed < kills) and (minutes is None or seconds < minutes * 60):
        delay = source.uniform(_LEAST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS)
        fault = source.choices(faults, weights)[0]
        events.append(Event(delay, fault, source.random()))
        killed += counts_all or fault in KILLS
        seconds += delay
    return events
