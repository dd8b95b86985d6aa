"""Looking at an arena from outside: nothing is written, no lock is needed, and what is seen is true."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmcache.arena import FLAG_PINNED, Arena, Counter, layout, survey
from shmcache.arena.transaction import Append, Delete, Enqueue, Put
from shmcache.arena.view import View
from shmcache.errors import ArenaMissing
from tests.unit.arena_state import commit, die, key, run_in_child


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"test-view-{os.getpid()}", 4 << 20, b"sixteen bytes...", lock_wait=60.0)
    yield made
    made.unlink()
    made.close()


def _content(arena: Arena) -> bytes:
    return (Path("/dev/shm") / f"shmcache.{os.getuid()}.{arena.name}").read_bytes()


def test_a_look_at_everything_changes_no_byte_and_cannot(arena: Arena) -> None:
    commit(arena, Put(key(1), b"one"), Append("write", 1, b"row"))
    before = _content(arena)
    with View(arena.name) as view:
        memory = view.memory
        for fact in (survey.header, survey.regions, survey.occupancy, survey.holders, survey.lanes, survey.rings):
            fact(memory)
        assert view.read(key(1)) is not None
        assert view.read(key(2)) is None
        assert [fact.key for fact in survey.largest(memory, 5)] == list(survey.keys(memory)) == [key(1)]
        with pytest.raises(TypeError):
            memory.words[layout.COMMIT_SEQUENCE] = 7
    assert _content(arena) == before
    assert len(arena.processes()) == 1
    with pytest.raises(ArenaMissing):
        View("test-view-nowhere")


def test_what_is_seen_is_what_is_there(arena: Arena) -> None:
    sizes = {1: 0, 2: 700, 3: 100_000, 4: 50}
    for number, size in sizes.items():
        commit(arena, Put(key(number), bytes(size), None, FLAG_PINNED if number == 4 else 0))
    commit(arena, Put(key(2), bytes(700)), Append("write", 1, b"row"))
    commit(arena, Enqueue(key(4), 1, key(9)))
    arena.count(Counter.NODE_RUNS, 7)
    with View(arena.name) as view:
        memory = view.memory
        occupancy = survey.occupancy(memory)
        assert (occupancy.records, occupancy.records_dirty, occupancy.records_pinned) == (4, 1, 1)
        assert occupancy.entries_used == 5
        assert occupancy.record_bytes == sum(sizes.values())
        assert sum(sizes.values()) < occupancy.live_bytes < 1.3 * sum(sizes.values())
        assert occupancy.live_bytes + occupancy.free_bytes <= occupancy.slab_bytes
        assert occupancy.unfinished_commit_words == 0
        largest = survey.largest(memory, 3)
        assert [(fact.key, fact.size) for fact in largest] == [(key(3), 100_000), (key(2), 700), (key(4), 50)]
        assert [(fact.dirty, fact.pinned, fact.queued) for fact in largest] == [
            (False, False, False), (True, False, False), (False, True, True)
        ]  # fmt: skip
        assert [fact.key for fact in survey.hottest(memory, 2)] == [key(2), key(4)]
        write, charge = survey.rings(memory)
        assert (write.entries, write.last_sequence, write.committed_sequence, charge.entries) == (1, 1, 0, 0)
        assert write.used_bytes == arena.write_ring.used_bytes > 0
        assert survey.work_outstanding(memory) == 1
        header = survey.header(memory)
        assert (header.arena_id, header.identity, header.size) == (arena.arena_id, b"sixteen bytes...", 4 << 20)
        (lane,) = survey.lanes(memory)
        assert (lane.pid, lane.alive, lane.counts["node_runs"]) == (os.getpid(), True, 7)
        regions = survey.regions(memory)
        assert regions[0].offset == 0
        assert sum(region.size for region in regions) == memory.layout.end
        assert survey.holders(memory) == []


def test_who_holds_a_lock_is_seen_alive_stopped_or_dead(arena: Arena) -> None:
    here, there = os.pipe()
    pid = os.fork()
    if not pid:
        arena.enter("worker")
        with arena.loads.loading(key(3)), arena._critical:
            os.write(there, b".")
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.read(here, 1)
    os.waitpid(pid, os.WUNTRACED)
    with View(arena.name) as view:
        assert [(holder.lock, holder.pid, holder.died) for holder in survey.holders(view.memory)] == [
            ("commit", pid, False), ("load 3", pid, False)
        ]  # fmt: skip
        assert {lane.pid: lane.alive for lane in survey.lanes(view.memory)} == {os.getpid(): True, pid: True}
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert {holder.lock: holder.died for holder in survey.holders(view.memory)} == {"commit": True, "load 3": True}
        assert {lane.pid: lane.alive for lane in survey.lanes(view.memory)} == {os.getpid(): True, pid: False}
        commit(arena, Put(key(1), b"goes on"))
        assert [holder.lock for holder in survey.holders(view.memory)] == ["load 3"]


def test_a_dead_arena_whose_last_process_died_inside_a_commit_can_be_looked_at(arena: Arena) -> None:
    def die_inside() -> None:
        with arena._critical:
            arena._words[layout.INTENT_OFFSET // layout.WORD] = 3
            die()

    commit(arena, Put(key(1), b"one"))
    assert run_in_child(die_inside) == -signal.SIGKILL
    with View(arena.name) as view:
        assert survey.occupancy(view.memory).unfinished_commit_words == 3
        found = view.read(key(1))
        assert found is not None
        assert found.record == b"one"
    arena._words[layout.INTENT_OFFSET // layout.WORD] = 0


def test_a_record_that_changes_under_the_look_is_seen_whole_or_not_at_all(arena: Arena) -> None:
    here, there = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(here)
        for number in range(3000):
            size = number * 37 % 3000
            commit(arena, Put(key(1), bytes([number % 256]) * size), Put(key(2), b"x" * size))
            if not number % 10:
                commit(arena, Delete(key(1)))
        os._exit(0)
    os.close(there)
    os.set_blocking(here, False)
    seen = 0
    with View(arena.name) as view:
        while True:
            found = view.read(key(1))
            if found is not None:
                seen += 1
                assert len(set(found.record)) <= 1
            for fact in survey.hottest(view.memory, 2):
                assert fact.size < 3000 or fact.key not in (key(1), key(2))
            try:
                assert os.read(here, 1) == b""
                break
            except BlockingIOError:
                pass
    assert os.waitpid(pid, 0)[1] == 0
    assert seen > 0
