"""Rates, ratios and quantiles; counters that never shrink; ages of what waits."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from shmcache.arena import Arena, Counter
from shmcache.arena.histograms import WRITE_BATCH, WRITE_LAG, Observed
from shmcache.arena.layout import LANE_BYTES, WORD
from shmcache.arena.transaction import Append
from shmcache.arena.view import View
from shmcache.codec import pack
from shmcache.writes import NodeExecutionWrite, OutputWrite, WriteKind
from tests.unit.arena_state import commit
from tools.monitoring import figures, reader
from tools.monitoring.figures import Watch, quantile
from tools.monitoring.reader import Reader
from tools.monitoring.readiness import problems


class Clock:
    """The time of day, as the test sets it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (figures, reader):
        monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"test-figures-{os.getpid()}", 4 << 20, lock_wait=60.0)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def watch(arena: Arena) -> Iterator[Watch]:
    made = Watch(Reader(View(arena.name)))
    yield made
    made.close()


def test_a_quantile_lies_evenly_within_its_bucket_as_prometheus_reckons() -> None:
    bounds = WRITE_LAG.bounds
    counts = [0] * (len(bounds) + 1)
    counts[bounds.index(1.0)] = 10  # 0.5 to 1
    counts[bounds.index(2.0)] = 10  # 1 to 2
    seen = Observed(tuple(counts), 25.0)
    assert quantile(WRITE_LAG.name, seen, 0.5) == pytest.approx(1.0)
    assert quantile(WRITE_LAG.name, seen, 0.25) == pytest.approx(0.75)
    assert quantile(WRITE_LAG.name, seen, 0.95) == pytest.approx(1.9)
    beyond = Observed((*[0] * len(bounds), 3), 1e6)
    assert quantile(WRITE_LAG.name, beyond, 0.5) == bounds[-1]
    assert quantile(WRITE_LAG.name, Observed((0,) * (len(bounds) + 1), 0.0), 0.5) is None


def test_rates_are_between_two_looks_and_ratios_over_a_minute(arena: Arena, watch: Watch, clock: Clock) -> None:
    watch.look()
    arena.count(Counter.DECODED_HITS, 90)
    arena.count(Counter.READS, 6)
    arena.count(Counter.MISSES, 4)
    clock.now += 2
    _, seen = watch.look()
    assert (seen.gets, seen.decoded_hit_ratio, seen.arena_hit_ratio) == (50.0, 0.9, 0.6)
    clock.now += 4
    _, seen = watch.look()
    assert (seen.gets, seen.decoded_hit_ratio) == (0.0, 0.9)
    clock.now += 61
    watch.look()
    clock.now += 1
    _, seen = watch.look()
    assert (seen.decoded_hit_ratio, seen.arena_hit_ratio, seen.batch_entries) == (None, None, None)
    arena.observe(WRITE_BATCH, 30)
    arena.observe(WRITE_BATCH, 50)
    clock.now += 1
    assert watch.look()[1].batch_entries == 40
    assert [point.gets for point in watch.points()][:3] == [0.0, 50.0, 0.0]
    assert watch.look(not_older_than=0.5)[0] is watch.look(not_older_than=0.5)[0]


def test_counters_do_not_shrink_while_a_lane_is_given_back(arena: Arena, watch: Watch) -> None:
    arena.count(Counter.NODE_RUNS, 5)
    arena.observe(WRITE_LAG, 1.0, times=5)
    assert watch.look()[0].counters["node_runs"] == 5
    first = (arena._memory.layout.lanes + arena.own_lane.lane * LANE_BYTES) // WORD
    lane = arena._words[first + 16 : first + LANE_BYTES // WORD].tolist()
    for place in range(len(lane)):
        arena._words[first + 16 + place] = 0  # gone from the lane, and not kept elsewhere yet
    snapshot, _ = watch.look()
    assert snapshot.counters["node_runs"] == 5
    assert snapshot.histograms[WRITE_LAG.name].total == 5
    for place, amount in enumerate(lane):
        arena._words[first + 16 + place] = amount
    arena.count(Counter.NODE_RUNS, 1)
    assert watch.look()[0].counters["node_runs"] == 6


def test_the_oldest_entry_is_as_old_as_what_it_carries_and_no_older_than_a_look_without_it(
    arena: Arena, watch: Watch, clock: Clock
) -> None:
    assert watch.look()[0].ring("write").oldest_seconds == 0.0
    clock.now += 10
    commit(arena, Append("write", WriteKind.OUTPUT, pack(OutputWrite("x", 0, "out", "1", clock.now - 4))))
    assert watch.look()[0].ring("write").oldest_seconds == pytest.approx(4)
    arena.write_ring.advance(1)
    watch.look()
    clock.now += 3
    statistics = NodeExecutionWrite("x", "g", "n", "COMPLETED", 5.0, 6.0, 7.0, 8.0, "{}", 3)  # ended long ago
    commit(arena, Append("write", WriteKind.NODE_EXECUTION, pack(statistics)))
    clock.now += 2
    assert watch.look()[0].ring("write").oldest_seconds == pytest.approx(5)
    clock.now += 100
    snapshot, _ = watch.look()
    assert snapshot.ring("write").oldest_seconds == pytest.approx(105)
    assert any("oldest entry of the write ring waits for 105 s" in each for each in problems(snapshot))


def test_what_is_wrong_is_said_in_sentences(arena: Arena, watch: Watch) -> None:
    wrong = problems(watch.look()[0])
    assert wrong == [
        "no syncer leads: the write ring is not drained",
        "no charger leads: the charge ring is not drained",
        "no worker lives",
    ]
    assert problems(watch.look()[0], is_cached=False) == ["no worker lives"]
    arena.enter("worker")
    assert problems(watch.look()[0], is_cached=False) == []
    size = arena.write_ring.size
    for _ in range(9):
        commit(arena, Append("write", 2, bytes(size // 10)))
    assert "the write ring is 90% full: writers will have to wait" in problems(watch.look()[0])
