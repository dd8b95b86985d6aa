"""The work queue: a first-in-first-out list of entries of the table, and who has claimed which.

    QUEUE_HEAD -> entry -> entry -> QUEUE_TAIL        through the low half of QUEUE

    idle --enqueue--> queued --take--> claimed --release--> idle
                        ^                  |
                        +--- reclaim ------+   the claimant died: attempts stay counted

Each entry on the queue belongs to a counter (of a graph execution's entry, say): enqueue adds one, release takes one
away, and the release that brings it to 0 puts the counter's own entry on the queue, in the same commit. All on a
Stage, under the commit lock.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shmcache.arena.layout import (
    COUNTER,
    IDLE_SIGNAL,
    LOW,
    OUTSTANDING,
    QUEUE,
    QUEUE_CLAIMED,
    QUEUE_HEAD,
    QUEUE_IDLE,
    QUEUE_QUEUED,
    QUEUE_SIGNAL,
    QUEUE_TAIL,
)
from shmcache.arena.memory import Stage
from shmcache.arena.table import Table

_LANE = 32
_ATTEMPTS = 48
_STATE = 56
_KIND = 60
_MOST_ATTEMPTS = 255


class Claim(NamedTuple):
    """An entry of the work queue that this process has claimed: its kind, its key, and the how-manieth attempt it
    is."""

    kind: int
    key: bytes
    attempt: int


def state_of(queue_word: int) -> int:
    """Return the state in an entry's QUEUE word."""
    return queue_word >> _STATE & 15


def lane_of(queue_word: int) -> int:
    """Return the lane that has claimed an entry, from its QUEUE word."""
    return queue_word >> _LANE & 0xFFFF


def enqueue(table: Table, stage: Stage, entry: int, kind: int, counter: int) -> bool:
    """Put an idle entry on the queue; return False if it is on it or claimed already."""
    if state_of(stage[entry + QUEUE]) != QUEUE_IDLE:
        return False
    _link(table, stage, entry, kind << _KIND | QUEUE_QUEUED << _STATE)
    stage[OUTSTANDING] = stage[OUTSTANDING] + 1
    stage[counter + COUNTER] = stage[counter + COUNTER] + 1
    return True


def take(table: Table, stage: Stage, lane: int) -> tuple[int, int, int] | None:
    """Claim the oldest entry for a lane; return (entry, kind, attempt), or None if the queue is empty."""
    entry = stage[QUEUE_HEAD]
    if not entry:
        return None
    table.require(entry)
    word = stage[entry + QUEUE]
    following = word & LOW
    stage[QUEUE_HEAD] = following
    if not following:
        stage[QUEUE_TAIL] = 0
    kind = word >> _KIND
    attempt = min((word >> _ATTEMPTS & 255) + 1, _MOST_ATTEMPTS)
    stage[entry + QUEUE] = kind << _KIND | QUEUE_CLAIMED << _STATE | attempt << _ATTEMPTS | lane << _LANE
    return entry, kind, attempt


def release(table: Table, stage: Stage, entry: int, counter: int, follow_kind: int, lane: int) -> None:
    """End a claim of this lane's. If it was its counter's last, the counter's entry follows (with kind 0: it does not).

    Nothing happens if the claim is another's by now: its holder was taken for dead, and the work was given on."""
    word = stage[entry + QUEUE]
    if state_of(word) != QUEUE_CLAIMED or lane_of(word) != lane:
        return
    stage[entry + QUEUE] = 0
    stage[OUTSTANDING] = max(stage[OUTSTANDING] - 1, 0)
    left = stage[counter + COUNTER] - 1
    stage[counter + COUNTER] = max(left, 0)
    if left <= 0 and follow_kind:
        enqueue(table, stage, counter, follow_kind, counter)
    if not stage[OUTSTANDING]:
        stage[IDLE_SIGNAL] = stage[IDLE_SIGNAL] + 1


def reclaim(table: Table, stage: Stage, entry: int) -> None:
    """Put a claimed entry back at the queue's end, its attempts kept."""
    word = stage[entry + QUEUE]
    _link(table, stage, entry, word & 15 << _KIND | word & 255 << _ATTEMPTS | QUEUE_QUEUED << _STATE)


def claimed_by(table: Table, lane: int) -> list[int]:
    """Return the entries that a lane has claimed, by one scan over all entries."""
    queue = table.rows()[:, QUEUE]
    mine = (queue >> np.uint64(_STATE) & np.uint64(15) == QUEUE_CLAIMED) & (
        queue >> np.uint64(_LANE) & np.uint64(0xFFFF) == lane
    )
    return [table.entry_at(row) for row in mine.nonzero()[0]]


def unfinished(table: Table) -> list[int]:
    """Return the entries that are on the queue or claimed, by one scan over all entries."""
    return [table.entry_at(row) for row in (table.rows()[:, QUEUE] >> np.uint64(_STATE) & np.uint64(15)).nonzero()[0]]


def _link(table: Table, stage: Stage, entry: int, word: int) -> None:
    stage[entry + QUEUE] = word
    tail = stage[QUEUE_TAIL]
    if tail:
        table.require(tail)
        stage[tail + QUEUE] = stage[tail + QUEUE] & ~LOW | entry
    else:
        stage[QUEUE_HEAD] = entry
    stage[QUEUE_TAIL] = entry
    stage[QUEUE_SIGNAL] = stage[QUEUE_SIGNAL] + 1
