"""When which fault comes: drawn from a seed alone, so that the same seed gives the same schedule."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
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
    "stop-standby": 1,
    "stop-charger": 2,
    "stop-pool": 1,
    "stop-supervisor": 1,
    "stop-all": 1,
    "cut": 2,
    "delay": 2,
    "half-close": 1,
    "terminate-backends": 2,
    "stop-database": 1,
    "delete-lock": 1,
    "poison": 2,
    "disk-full": 1,
    "memory-full": 1,
    "clock-step": 1,
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


def schedule(seed: int, faults: Sequence[str]) -> Iterator[Event]:
    """Yield events for ever, of some of the faults."""
    source = random.Random(seed)  # noqa: S311 - a schedule, not a secret
    weights = [{**KILLS, **OTHERS}[fault] for fault in faults]
    while True:
        delay = source.uniform(_LEAST_PAUSE_SECONDS, _MOST_PAUSE_SECONDS)
        yield Event(delay, source.choices(faults, weights)[0], source.random())
