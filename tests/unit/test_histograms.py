"""Histograms and leaders in the lanes: nothing is counted twice or lost, whoever dies, and no reader sees it shrink."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from shmcache.arena import Arena, Counter, activity, critical, survey
from shmcache.arena.histograms import HISTOGRAMS, HOLD_TIME, WRITE_BATCH, WRITE_LAG
from shmcache.arena.layout import HISTOGRAM_WORDS, LANE_BYTES, LANE_HISTOGRAMS, WORD
from shmcache.arena.view import View
from tests import kill_points
from tests.unit.arena_state import Points, die, run_in_child


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"test-histograms-{os.getpid()}", 4 << 20, lock_wait=60.0)
    yield made
    made.close()
    made.unlink()


def test_all_histograms_fit_into_a_lane_side_by_side() -> None:
    begin = 0
    for each in HISTOGRAMS:
        assert each.first == begin
        assert list(each.bounds) == sorted(set(each.bounds))
        begin += each.words
    assert begin <= HISTOGRAM_WORDS
    assert (LANE_HISTOGRAMS + HISTOGRAM_WORDS) * WORD <= LANE_BYTES


def test_a_value_is_in_the_bucket_whose_bound_it_does_not_exceed(arena: Arena) -> None:
    arena.observe(WRITE_BATCH, 1)
    arena.observe(WRITE_BATCH, 2)
    arena.observe(WRITE_BATCH, 10_000, times=3)
    arena.observe(WRITE_BATCH, 10_001)
    with View(arena.name) as view:
        seen = activity.observed(view.memory)[WRITE_BATCH.name]
    assert seen.counts == (1, 1, 0, 0, 0, 0, 0, 3, 1)
    assert (seen.total, seen.sum) == (6, 1 + 2 + 30_000 + 10_001)


def test_durations_are_summed_to_the_microsecond_and_never_below_nothing(arena: Arena) -> None:
    arena.observe(HOLD_TIME, 0.0123456)
    arena.observe(HOLD_TIME, 2.5, times=2)
    arena.observe(HOLD_TIME, -1.0)  # a clock that was set back
    seen = activity.observed(arena._memory)[HOLD_TIME.name]
    assert seen.sum == pytest.approx(5.012346, abs=1e-9)
    assert (seen.total, seen.counts[0]) == (4, 1)


def test_what_a_killed_process_observed_and_counted_is_kept_once(arena: Arena) -> None:
    def work() -> None:
        arena.enter("syncer")
        for _ in range(5):
            arena.observe(WRITE_LAG, 1.5)
        arena.count(Counter.DEBT_CREDITS, 7)
        die()

    for _ in range(3):
        assert run_in_child(work) == -signal.SIGKILL
        arena.release_dead()
        arena.release_dead()
    seen = activity.observed(arena._memory)[WRITE_LAG.name]
    assert (seen.total, seen.sum) == (15, 22.5)
    assert activity.totals(arena._memory)["debt_credits"] == 21


def test_a_lane_that_is_given_back_is_never_counted_twice_at_any_step_and_whole_if_it_dies_there(arena: Arena) -> None:
    """The child dies at each step of giving its lane back; at each step a reader looks."""

    def leave(step: int) -> None:
        arena.enter("syncer")
        arena.observe(WRITE_LAG, 1.0, times=10)
        arena.count(Counter.RETRIES, 10)
        before = activity.observed(arena._memory)[WRITE_LAG.name].total, arena.counter_totals()["retries"]
        most = 0

        def look() -> None:
            nonlocal most
            most = max(most, activity.observed(arena._memory)[WRITE_LAG.name].total)
            assert most <= before[0]
            assert arena.counter_totals()["retries"] <= before[1]

        class Looking(Points):
            def __call__(self, name: str) -> None:
                look()
                super().__call__(name)

        kill_points.arm(critical, Looking(step, die))
        arena.own_lane.leave()
        look()

    step = 0
    while True:
        step += 1
        code = run_in_child(lambda step=step: leave(step))  # type: ignore[misc]
        arena.release_dead()
        assert activity.observed(arena._memory)[WRITE_LAG.name].total == 10 * step
        assert arena.counter_totals()["retries"] == 10 * step
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert step > 8


def test_who_leads_is_seen_with_its_epoch_until_it_dies(arena: Arena) -> None:
    def leaders() -> dict[str, activity.Leader]:
        return activity.leaders(survey.lanes(arena._memory))

    here, there = os.pipe()
    pids = []
    for epoch in (3, 4):
        pid = os.fork()
        if not pid:
            arena.enter("syncer")
            arena.lead(epoch)
            os.write(there, b".")
            signal.pause()
        pids.append(pid)
        os.read(here, 1)
        assert leaders() == {"write": activity.Leader(pid, epoch)}
    for pid, left in ((pids[1], {"write": activity.Leader(pids[0], 3)}), (pids[0], {})):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert leaders() == left
    arena.enter("charger")
    arena.lead(9)
    assert leaders() == {"charge": activity.Leader(os.getpid(), 9)}
    arena.lead(0)
    assert leaders() == {}
