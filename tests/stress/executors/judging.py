"""The judgement of the controlling process, when every executor has ended."""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.database.connection import connect
from shmcache.errors import NotFound
from shmcache.execution_data_client import ExecutionDataClient
from shmcache.manager import Manager
from shmcache.records import FINAL_STATUSES, ExecutionStatus
from tests.stress.executors.ground import Ground
from tools.accounts import compare_holds
from tools.chaos.verify import Found, Journals, verify

_END_SECONDS = 60.0
_TURN_SECONDS = 0.02
_EXECUTORS = ("worker", "other")
_MOST_ATTEMPTS = 100
"""Workers are killed on purpose: no node is to fail of that."""


class Judgement(NamedTuple):
    """What is wrong, in words; and what was found, for the summary."""

    wrong: list[str]
    found: Found
    counters: dict[str, int]
    journals: int


def judge(ground: Ground) -> Judgement:
    """Do the work that was left, wait until the rings are drained, compare everything.

    Raises what keeps it from that."""
    with ground.attach() as arena:
        wrong = _living(arena)
        arena.release_dead()
        with CachedClient(arena, ground.database_url, ground.settings()) as client:
            _end_all(ground, arena, client)
        wrong += _drain(arena)
        differences = arena.check()
        journals = Journals(ground.journals, [])
        with connect(ground.database_url, application_name="tests") as connection:
            differences += compare_holds(arena, connection)
            found = verify(connection, journals, differences)
        for key, written in journals.sure["O"].items():
            if len(set(written)) > 1:
                wrong.append(f"lost: O {key} was acknowledged with {len(set(written))} values")
        for name, count in found._asdict().items():
            if name in ("lost", "duplicated", "reordered", "overdrawn", "unbalanced", "not_ended", "dead_letters"):
                wrong += [f"{name}: {count}"] * bool(count)
        wrong += found.examples
        return Judgement(wrong, found, arena.counter_totals(), len(list(ground.journals.iterdir())))


def _living(arena: Arena) -> list[str]:
    """Wait until no executor is there any more; return those that stay."""
    deadline = time.monotonic() + _END_SECONDS
    while True:
        living = [
            each for each in arena.processes() if each.alive and each.role in _EXECUTORS and each.pid != os.getpid()
        ]
        if not living or time.monotonic() > deadline:
            return [f"left behind: process {each.pid} is still attached" for each in living]
        time.sleep(_TURN_SECONDS)


def _end_all(ground: Ground, arena: Arena, cached: CachedClient) -> None:
    """Be the last executor: do what is on the work queue, end what the dead have left open."""
    journals = Journals(ground.journals, [])
    journaling = ground.journaling(cached)
    client: ExecutionDataClient = journaling.for_manager()
    manager = Manager(client, lambda: False, _MOST_ATTEMPTS)
    deadline = time.monotonic() + _END_SECONDS
    while arena.outstanding():
        work = client.take_work(_TURN_SECONDS)
        if work is not None:
            manager.do(work)
        assert time.monotonic() < deadline, f"{arena.outstanding()} entries of the work queue do not end"
    for identifier in {*journals.sure["E"], *journals.unsure["E"]}:
        with contextlib.suppress(NotFound):  # its maker died before it was made
            if client.get_node_execution(identifier).status not in FINAL_STATUSES:
                client.update_node_execution_status(identifier, ExecutionStatus.TERMINATED)
    for identifier in {*journals.sure["G"], *journals.unsure["G"]}:
        with contextlib.suppress(NotFound):
            if client.get_graph_execution(identifier).status not in FINAL_STATUSES:
                client.update_graph_execution_stats(identifier, ExecutionStatus.TERMINATED)
    journaling.close_journal()


def _drain(arena: Arena) -> list[str]:
    """Wait until both rings are in the database; return which are not."""
    left = []
    for ring in (arena.write_ring, arena.charge_ring):
        ring.request_drain()
        last = ring.last_sequence
        if not ring.wait_committed(last, _END_SECONDS):
            left.append(f"the {ring.name} ring is not drained: {ring.committed_sequence} of {last}")
    return left
