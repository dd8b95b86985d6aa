"""What the arena promises to one process: records, families, work, lanes, room; and what damage may cost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from shmcache.arena import FLAG_FINISHED, FLAG_INDEXED, FLAG_PINNED, Arena, Conflict, Counter, CounterTooLow, layout
from shmcache.arena.transaction import (
    Add,
    Append,
    Delete,
    Enqueue,
    Number,
    Put,
    Release,
    SetCounter,
    Touch,
    Transaction,
)
from shmcache.errors import ArenaError, ArenaFull, InvalidValue
from tests.unit.arena_state import commit, die, key, run_in_child


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"test-arena-{os.getpid()}", 4 << 20, lock_wait=10.0, ring_wait=0.1)
    yield made
    assert made.check() == []
    made.unlink()
    made.close()


def _record(arena: Arena, name: bytes) -> bytes | None:
    found = arena.read(name)
    return found and found.record


def _fill(arena: Arena, size: int) -> int:
    """Put dirty records until the arena refuses; return the number of the one it refused."""
    for number in range(100, 100_000):
        try:
            commit(arena, Put(key(number), bytes(size)), Append("write", 1, b""))
        except ArenaFull:
            return number
    raise AssertionError("it took more than it can hold")


def test_a_transaction_that_relied_on_what_changed_changes_nothing(arena: Arena) -> None:
    commit(arena, Put(key(1), b"one"))
    wanted = Transaction()
    wanted.rely_on(key(1), arena.version(key(1)))
    wanted.rely_on(key(2), 0)
    wanted.operations.append(Put(key(3), b"three"))
    commit(arena, Put(key(2), b"two"))
    with pytest.raises(Conflict):
        arena.commit(wanted)
    assert arena.read(key(3)) is None
    lease = Transaction()
    lease.evictions = arena.evictions()
    lease.operations.append(Put(key(3), b"three"))
    commit(arena, Delete(key(2)))
    with pytest.raises(Conflict):
        arena.commit(lease)
    assert arena.counter_totals()["conflicts"] == 2


def test_counters_hold_signed_numbers_and_keep_their_limit(arena: Arena) -> None:
    commit(arena, Touch(key(1)), SetCounter(key(1), 5), Touch(key(2)), Put(key(3), b"n"), Put(key(4), b"m"))
    assert commit(arena, Add(key(1), -5, 0)).counters == {key(1): 0}
    with pytest.raises(CounterTooLow) as caught:
        commit(arena, Add(key(1), 2), Add(key(1), -3, 0))
    assert caught.value.value == 2
    assert arena.counter(key(1)) == 0
    for _ in range(2):
        assert commit(arena, Number(key(3), key(2))).counters == {key(3): 1}
    assert commit(arena, Number(key(4), key(2))).counters == {key(4): 2}
    with pytest.raises(InvalidValue):
        commit(arena, SetCounter(key(1), 2**63))
    commit(arena, Add(key(1), -7))
    assert arena.counter(key(1)) == -7
    commit(arena, Add(key(1), 7))


def test_three_puts_of_one_key_in_one_transaction_leave_the_last(arena: Arena) -> None:
    long = bytes(200_000)
    commit(arena, Put(key(1), b"0"))
    commit(arena, Put(key(1), long), Put(key(1), b"2"), Put(key(1), long[::-1] + b"3"))
    assert _record(arena, key(1)) == long + b"3"
    commit(arena, Put(key(1), b"4"), Delete(key(1)), Put(key(1), b"5"))
    assert _record(arena, key(1)) == b"5"


def test_members_come_oldest_first_and_none_stands_for_an_incomplete_list(arena: Arena) -> None:
    assert arena.members(key(1)) is None
    commit(arena, Put(key(1), b"parent"))
    commit(arena, *(Put(key(number), b"child", key(1)) for number in range(10, 15)))
    assert arena.members(key(1)) is None
    commit(arena, Touch(key(1), FLAG_INDEXED))
    assert arena.members(key(1)) == [key(number) for number in range(10, 15)]
    with pytest.raises(Conflict):
        commit(arena, Put(key(20), b"orphan", key(99)))
    # a key that was there first, on the work queue say, becomes a member as well
    commit(arena, Touch(key(15)))
    commit(arena, Put(key(15), b"late", key(1)))
    assert arena.members(key(1)) == [key(number) for number in range(10, 16)]


def test_a_family_goes_whole_or_not_at_all_while_it_is_dirty_or_at_work(arena: Arena) -> None:
    commit(arena, Put(key(1), b"root", None, FLAG_INDEXED))
    commit(arena, Put(key(2), b"group", key(1), FLAG_INDEXED), Put(key(3), b"leaf", key(2)), Append("write", 1, b"row"))
    commit(arena, *(Put(key(number), b"leaf", key(2)) for number in range(100, 400)))
    assert not arena.drop_family(key(1))
    arena.write_ring.advance(1)
    commit(arena, Enqueue(key(3), 1, key(50)))
    assert not arena.drop_family(key(1))
    assert len(arena.members(key(2)) or ()) == 301
    assert arena.take_work(0) is not None
    commit(arena, Release(key(3), key(50), 0))
    assert arena.drop_family(key(1))
    assert not arena.drop_family(key(1))
    assert [arena.read(key(number)) for number in (1, 2, 3, 399)] == [None] * 4


def test_no_reader_takes_a_family_that_is_being_dropped_for_a_whole_one(arena: Arena) -> None:
    """A child drops and rebuilds a family again and again; every list read meanwhile is the whole one, or none."""
    names = [key(number) for number in range(100, 140)]
    stop = key(7)

    def build_and_drop() -> None:
        for _ in range(150):
            commit(arena, Put(key(1), b"root", None, FLAG_INDEXED), Put(key(2), b"group", key(1)))
            commit(arena, *(Put(name, b"leaf", key(2)) for name in names))
            commit(arena, Touch(key(2), FLAG_INDEXED))
            assert arena.drop_family(key(1))
        commit(arena, Put(stop, b"stop"))

    pid = os.fork()
    if not pid:
        code = 1
        try:
            build_and_drop()
            code = 0
        finally:
            os._exit(code)
    seen: set[int] = set()
    while not arena.version(stop):
        for parent in (key(2), key(1)):
            found = arena.members(parent)
            if parent == key(2) and found is not None:
                seen.add(len(found))
                assert found == names
    assert os.waitpid(pid, 0)[1] == 0


def test_the_work_queue_is_first_in_first_out_and_a_graph_follows_its_last_entry(arena: Arena) -> None:
    graph = key(1)
    for number in (10, 11):
        commit(arena, Enqueue(key(number), 1, graph))
        commit(arena, Enqueue(key(number), 1, graph))  # once is enough
    assert arena.outstanding() == arena.counter(graph) == 2
    assert sorted(arena.unfinished()) == [key(10), key(11)]
    claims = [arena.take_work(0) for _ in range(2)]
    assert [(claim.key, claim.attempt) for claim in claims if claim] == [(key(10), 1), (key(11), 1)]
    assert arena.take_work(0) is None
    commit(arena, Release(key(11), graph, 2))
    assert arena.take_work(0) is None
    commit(arena, Release(key(10), graph, 2))
    last = arena.take_work(0)
    assert last is not None
    assert (last.key, last.kind) == (graph, 2)
    assert not arena.wait_idle(0)
    commit(arena, Release(graph, graph, 0))
    assert arena.wait_idle(0)
    assert arena.counter(graph) == 0


def test_claims_of_the_killed_come_back_counted_and_those_of_the_living_do_not(arena: Arena) -> None:
    for number in (10, 11, 12):
        commit(arena, Enqueue(key(number), 1, key(1)))
    mine = arena.take_work(0)

    def take_and_die() -> None:
        arena.take_work(0)
        arena.take_work(0)
        die()

    assert run_in_child(take_and_die) == -9
    assert arena.release_dead() == 2
    assert arena.release_dead() == 0
    again = [arena.take_work(0) for _ in range(2)]
    assert {(claim.key, claim.attempt) for claim in again if claim} == {(key(11), 2), (key(12), 2)}
    assert mine is not None
    assert mine.key == key(10)
    assert arena.counter_totals()["reclaimed_work"] == 2


def test_two_processes_that_release_the_dead_at_once_give_each_claim_back_once(arena: Arena) -> None:
    for round_number in range(10):
        for number in range(20):
            commit(arena, Enqueue(key(1000 + round_number * 20 + number), 1, key(1)))

        def take_and_die() -> None:
            while arena.take_work(0):
                pass
            die()

        assert run_in_child(take_and_die) == -9
        pids = []
        for _ in range(3):
            pid = os.fork()
            if not pid:
                os._exit(arena.release_dead())
            pids.append(pid)
        assert sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids) == 20
        arena.release_dead()  # the releasers' own lanes
        taken = [arena.take_work(0) for _ in range(21)]
        assert [claim.attempt if claim else 0 for claim in taken] == [2] * 20 + [0]
        for claim in taken[:20]:
            assert claim is not None
            commit(arena, Release(claim.key, key(1), 0))


def test_who_was_taken_for_dead_cannot_end_the_claim_of_its_successor(arena: Arena) -> None:
    commit(arena, Enqueue(key(10), 1, key(1)))
    assert arena.take_work(0) is not None

    def release_what_is_not_mine() -> None:
        commit(arena, Release(key(10), key(1), 2))

    assert run_in_child(release_what_is_not_mine) == 0
    assert arena.outstanding() == 1
    commit(arena, Release(key(10), key(1), 0))
    assert arena.outstanding() == 0


def test_closing_gives_claims_and_lane_back(arena: Arena) -> None:
    commit(arena, Enqueue(key(10), 1, key(1)))
    other = Arena.attach(arena.name)
    other.enter("worker")
    other.count(Counter.NODE_RUNS, 3)
    assert other.take_work(0) is not None
    assert len(arena.processes()) == 2
    other.close()
    assert len(arena.processes()) == 1
    claim = arena.take_work(0)
    assert claim is not None
    assert claim.attempt == 2
    assert arena.counter_totals()["node_runs"] == 3
    commit(arena, Release(key(10), key(1), 0))


def test_a_forked_child_that_closes_leaves_its_parents_lane_and_claims(arena: Arena) -> None:
    arena.enter("supervisor")
    commit(arena, Enqueue(key(10), 1, key(1)))
    assert arena.take_work(0) is not None
    assert run_in_child(arena.close) == 0

    def use_and_close() -> None:
        arena.count(Counter.NODE_RUNS)
        arena.close()

    assert run_in_child(use_and_close) == 0
    assert [process.role for process in arena.processes()] == ["supervisor"]
    assert arena.outstanding() == 1
    assert arena.take_work(0) is None
    commit(arena, Release(key(10), key(1), 0))


def test_a_process_that_entered_from_a_thread_is_alive_until_it_ends(arena: Arena) -> None:
    here, there = os.pipe()
    done, go = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(go)
        thread = threading.Thread(target=arena.enter, args=("worker",))
        thread.start()
        thread.join()
        os.write(there, b".")
        os.read(done, 1)
        os._exit(0)
    os.read(here, 1)
    assert [process.alive for process in arena.processes() if process.role == "worker"] == [True]
    assert arena.release_dead() == 0
    os.close(go)
    os.waitpid(pid, 0)
    arena.release_dead()
    assert [process.role for process in arena.processes()] == ["other"]


def test_when_all_lanes_are_taken_those_of_the_dead_are_used_and_commits_go_on(arena: Arena) -> None:
    lanes = arena._memory.layout.lane_count - 1
    others = [Arena.attach(arena.name) for _ in range(lanes - 1)]
    for other in others[:-1]:
        other.enter("worker")
    assert run_in_child(lambda: others[-1].enter("syncer")) == 0  # dead, in the last lane
    late = Arena.attach(arena.name)
    late.enter("charger")
    assert len(arena.processes()) == lanes
    too_late = Arena.attach(arena.name)
    with pytest.raises(ArenaError, match="lanes"):
        too_late.enter("worker")
    with pytest.raises(ArenaError, match="lanes"):
        too_late.count(Counter.READS)
    commit(arena, Enqueue(key(10), 1, key(1)))
    with pytest.raises(ArenaError, match="lanes"):
        too_late.take_work(0)
    before = arena.counter_totals()["commits"]
    commit(too_late, Put(key(2), b"still"))
    assert arena.counter_totals()["commits"] == before + 1
    assert arena.take_work(0) is not None
    commit(arena, Release(key(10), key(1), 0))
    for other in (*others, late, too_late):
        other.close()
    assert len(arena.processes()) == 1


def test_old_clean_records_make_room_and_dirty_and_pinned_ones_stay(arena: Arena) -> None:
    commit(arena, Put(key(1), b"pinned", None, FLAG_PINNED), Put(key(2), b"dirty"), Append("write", 1, b"row"))
    evictions = arena.evictions()
    for number in range(100, 1100):
        commit(arena, Put(key(number), number.to_bytes(2, "big") * 4000))
    assert _record(arena, key(1)) == b"pinned"
    assert _record(arena, key(2)) == b"dirty"
    assert arena.read(key(100)) is None
    assert _record(arena, key(1099)) == (1099).to_bytes(2, "big") * 4000
    assert arena.evictions() > evictions
    assert arena.counter_totals()["evicted"] > 0


def test_finished_families_go_before_others(arena: Arena) -> None:
    commit(arena, Put(key(1), b"root", None, FLAG_INDEXED | FLAG_FINISHED), Put(key(2), bytes(100_000), key(1)))
    commit(arena, Put(key(3), b"older than most"))
    number = 100
    while arena.read(key(1)):
        commit(arena, Put(key(number), bytes(50_000)))
        number += 1
    assert arena.read(key(2)) is None
    assert _record(arena, key(3)) == b"older than most"
    assert _record(arena, key(100)) is not None


@pytest.mark.parametrize("size", [2_000, 34_000, 60_000, 150_000])
def test_an_arena_full_of_dirty_records_refuses_and_takes_again_once_they_are_durable(arena: Arena, size: int) -> None:
    """34,000 bytes leave each slab half empty with nothing to gain by cleaning: that must come to an end too."""
    arena.ring_wait_seconds = 0.05
    number = _fill(arena, size)
    assert number > 110
    assert all(_record(arena, key(each)) == bytes(size) for each in range(100, number))
    arena.write_ring.advance(arena.write_ring.last_sequence)
    for extra in range(10):
        commit(arena, Put(key(5000 + extra), bytes(size)))


def test_running_out_of_entries_evicts_what_frees_entries_only(arena: Arena) -> None:
    count = arena._memory.layout.entry_count
    commit(arena, Put(key(1), b"root"))
    for number in range(count - 50):
        commit(arena, Put(key(10_000 + number), b"", key(1)))
    for number in range(200):
        commit(arena, Put(key(90_000 + number), b"x"))
    assert _record(arena, key(10_000)) == b""  # members keep their entries, so their records were left alone
    assert _record(arena, key(90_199)) == b"x"


def test_a_damaged_record_is_forgotten_and_costs_no_space(arena: Arena) -> None:
    commit(arena, Put(key(1), bytes(300)), Put(key(2), bytes(150_000)), Put(key(3), b"whole"))
    for name, offset in ((key(1), 40), (key(2), 100), (key(2), 12)):
        if name == key(2):
            commit(arena, Put(key(2), bytes(150_000)))
        found = arena.read(name)
        assert found is not None
        slot = arena._words[found.entry + layout.LOCATION] >> layout.OFFSET_SHIFT & ~7
        arena._memory.buffer[slot + offset - (offset == 12) * 4] ^= 0xFF
        assert arena.check() != []
        assert arena.read(name) is None
        assert arena.version(name) == 0
        assert arena.check() == []
    assert _record(arena, key(3)) == b"whole"
    commit(arena, Put(key(1), b"again"))


def test_garbage_in_chains_and_lists_neither_crashes_nor_hangs_a_reader(arena: Arena) -> None:
    commit(arena, Put(key(1), b"one", None, FLAG_INDEXED), Put(key(2), b"two", key(1)))
    found = arena.read(key(1))
    assert found is not None
    words = arena._words
    for word in (layout.CHAIN, layout.MEMBERS, layout.LOCATION, layout.FAMILY):
        place = found.entry + word
        good = words[place]
        for bad in (layout.LOW, found.entry, 2**64 - 1):
            words[place] = bad
            arena._table.find(key(3))
            arena._table.members(found.entry)
            arena._slabs.read(key(1), words[found.entry + layout.LOCATION], found.version)
            assert arena.check() != [] or word == layout.FAMILY
        words[place] = good
    assert _record(arena, key(1)) == b"one"


def test_records_of_any_length_come_back_as_they_were_put(arena: Arena) -> None:
    slot = arena._slabs.longest_in_slot
    for size in (0, 1, 7, 8, slot - 1, slot, slot + 1, 2 * slot, 2 * slot + 1, 1 << 20):
        record = bytes(range(256)) * (size // 256) + bytes(size % 256)
        commit(arena, Put(key(1), record))
        assert _record(arena, key(1)) == record
        assert arena.check() == []
    with pytest.raises(InvalidValue):
        commit(arena, Put(key(1), bytes(arena._slabs.longest_record + 1)))


@pytest.mark.parametrize("step_seconds", [-3600, 3600])
def test_times_go_on_where_the_clock_is_set_back(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, step_seconds: int
) -> None:
    """Also for a process that attaches after the step, and so knows no time of its own."""
    before = arena.time_after(0)
    wanted = Transaction()
    wanted.time = before
    arena.commit(wanted)
    real, step = time.time_ns, step_seconds * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: real() + step)
    with Arena.attach(arena.name) as another:
        after = another.time_after(0)
        assert after > before
        assert another.time_after(after) > after
        assert (after == before + 1) == (step_seconds < 0)


def test_a_time_that_no_clock_gave_is_not_believed(arena: Arena) -> None:
    now = arena.time_after(0)
    arena._words[layout.LATEST_TIME] = (1 << 64) - 1
    assert now < arena.time_after(now) < now + 60_000_000
    wanted = Transaction()
    wanted.time = now
    arena.commit(wanted)
    assert arena._words[layout.LATEST_TIME] == now


def test_a_commit_told_an_earlier_time_does_not_turn_the_clock_back(arena: Arena) -> None:
    latest = arena.time_after(0)
    for told in (latest, latest - 1_000_000, 0):
        wanted = Transaction()
        wanted.time = told
        arena.commit(wanted)
    assert arena._words[layout.LATEST_TIME] == latest
