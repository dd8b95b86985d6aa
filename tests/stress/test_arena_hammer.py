"""Many processes on one arena, killed at random: nothing is lost, doubled, mixed up or left locked."""

from __future__ import annotations

import os
import random
import signal
import struct
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from shmcache.arena import Arena, Conflict
from shmcache.arena.transaction import Add, Append, Delete, Enqueue, Put, Release, SetCounter, Touch, Transaction
from shmcache.errors import ArenaFull
from tests.unit.arena_state import commit, key

_MARK = struct.Struct("<QQQ")  # producer, its how-manieth entry, length
COUNTED = key(1)
GRAPH = key(2)
RECORDS = [key(1000 + number) for number in range(60)]
PRODUCERS = 4
STEPS = 1500


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"test-hammer-{os.getpid()}", 6 << 20, lock_wait=60.0, ring_wait=60.0)
    yield made
    made.unlink()
    made.close()


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def _record(producer: int, number: int, length: int) -> bytes:
    return _MARK.pack(producer, number, length) + bytes([(producer * 31 + number) % 256]) * length


def _check_record(record: bytes) -> None:
    producer, number, length = _MARK.unpack_from(record)
    assert record == _record(producer, number, length)


def _produce(arena: Arena, producer: int, first: int, acknowledged: int) -> None:
    """Put, read, delete, append and work; write the number of each entry whose commit returned to a pipe."""
    arena.enter("worker")
    dice = random.Random(producer * 1000 + first)
    for number in range(first, STEPS + 1):
        length = dice.choice((0, 10, 500, 3000, 3000, 70_000 if dice.random() < 0.2 else 100))
        record = _record(producer, number, length)
        name = dice.choice(RECORDS)
        wanted = Transaction()
        wanted.operations += [
            Append("write", 1, _MARK.pack(producer, number, dice.randrange(1000))),
            Put(name, record),
            Add(COUNTED, 1),
        ]
        if number % 3 == 0:
            wanted.operations.append(Append("charge", 1, _MARK.pack(producer, number, 0)))
        if number % 5 == 0:
            work = producer * 10_000 + number
            wanted.operations.append(Enqueue(key(work), 1, GRAPH))
        if dice.random() < 0.3:
            wanted.rely_on(name, arena.version(name))
        while True:
            try:
                arena.commit(wanted)
                break
            except Conflict:
                wanted.expected.clear()
            except ArenaFull:
                continue
        os.write(acknowledged, struct.pack("<QQ", producer, number))
        for name in dice.sample(RECORDS, 3):
            found = arena.read(name)
            if found is not None:
                _check_record(found.record)
        if dice.random() < 0.1:
            commit(arena, Delete(dice.choice(RECORDS)))
        if dice.random() < 0.3:
            claim = arena.take_work(0)
            if claim is not None:
                commit(arena, Release(claim.key, GRAPH, 0), Delete(claim.key), Append("charge", 2, claim.key))


class _Consumer:
    """Reads both rings in the parent, as the syncer does, and checks the order."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.write_seen: dict[int, int] = dict.fromkeys(range(PRODUCERS), 0)
        self.charge_seen: dict[int, int] = dict.fromkeys(range(PRODUCERS), 0)
        self.entries = 0
        self.ended_work: list[bytes] = []

    def drain(self) -> None:
        for ring in (self._arena.write_ring, self._arena.charge_ring):
            entries = ring.read(ring.committed_sequence, 500, 1 << 20)
            for expected, entry in enumerate(entries, ring.committed_sequence + 1):
                assert entry.intact
                assert entry.sequence == expected
                if entry.kind == 2:
                    self.ended_work.append(entry.payload)
                    continue
                producer, number, _ = _MARK.unpack(entry.payload)
                seen = self.write_seen if ring.name == "write" else self.charge_seen
                step = 1 if ring.name == "write" else 3
                assert number == seen[producer] + step
                seen[producer] = number
                self.entries += ring.name == "write"
            if entries:
                ring.advance(entries[-1].sequence)


def test_four_processes_killed_at_random_lose_nothing_and_double_nothing(arena: Arena) -> None:
    commit(arena, Touch(COUNTED), SetCounter(COUNTED, 0))
    dice = random.Random(7)
    consumer = _Consumer(arena)
    acknowledged, notes = os.pipe()
    os.set_blocking(acknowledged, False)
    last_acknowledged = dict.fromkeys(range(PRODUCERS), 0)
    left = b""

    def read_notes() -> None:
        nonlocal left
        while True:
            try:
                left += os.read(acknowledged, 1 << 16)
            except BlockingIOError:
                break
        whole = len(left) // 16 * 16
        for producer, number in struct.iter_unpack("<QQ", left[:whole]):
            last_acknowledged[producer] = number
        left = left[whole:]

    running = {_fork(partial(_produce, arena, producer, 1, notes)): producer for producer in range(PRODUCERS)}
    kills = 0
    rounds = 0
    while running:
        rounds += 1
        read_notes()
        consumer.drain()
        if kills < 40 and dice.random() < 0.2:
            victim = dice.choice(list(running))
            os.kill(victim, signal.SIGKILL)
            kills += 1
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            arena.write_ring.wait_for_drain(0.002)
            continue
        producer = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL)
        arena.release_dead()
        if rounds % 4 == 0:
            assert arena.check() == []
        if code:
            read_notes()
            while arena.write_ring.last_sequence > arena.write_ring.committed_sequence:
                consumer.drain()
            # What it was told is there is there; what it was not told may be there: then it goes on behind that.
            assert consumer.write_seen[producer] in (last_acknowledged[producer], last_acknowledged[producer] + 1)
            # Killed again before its first note, the next one has told nothing beyond what was found here.
            last_acknowledged[producer] = consumer.write_seen[producer]
            first = consumer.write_seen[producer] + 1
            running[_fork(partial(_produce, arena, producer, first, notes))] = producer
    assert kills >= 10
    for ring in (arena.write_ring, arena.charge_ring):
        while ring.last_sequence > ring.committed_sequence:
            consumer.drain()
    arena.release_dead()
    assert arena.check() == []
    assert consumer.write_seen == dict.fromkeys(range(PRODUCERS), STEPS)
    assert arena.counter(COUNTED) == consumer.entries == PRODUCERS * STEPS
    while (claim := arena.take_work(0)) is not None:
        commit(arena, Release(claim.key, GRAPH, 0), Append("charge", 2, claim.key))
    consumer.drain()
    assert arena.outstanding() == arena.counter(GRAPH) == 0
    assert len(consumer.ended_work) == len(set(consumer.ended_work)) == PRODUCERS * STEPS // 5
    assert len(arena.processes()) == 1
    assert arena.check() == []


HAND_OVERS = 20_000


@pytest.fixture
def no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waiters sleep until they are woken, so that a lost wake-up is not made good by looking again."""
    monkeypatch.setattr("shmcache.arena.critical._LONGEST_TURN_SECONDS", 1000.0)


@pytest.mark.usefixtures("no_second_look")
def test_no_wake_up_is_lost_in_twenty_thousand_hand_overs(arena: Arena) -> None:
    """One process puts work on the queue and waits until it is done, the other waits for work and does it."""

    def give() -> None:
        for _ in range(HAND_OVERS // 2):
            commit(arena, Enqueue(key(10), 1, GRAPH))
            assert arena.wait_idle(30.0), "the end of the work woke nobody"

    def take() -> None:
        for _ in range(HAND_OVERS // 2):
            claim = arena.take_work(30.0)
            assert claim is not None, "the work woke nobody"
            commit(arena, Release(claim.key, GRAPH, 0))

    pids = [_fork(give), _fork(take)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    assert arena.outstanding() == 0
    arena.release_dead()
    assert arena.check() == []


@pytest.mark.usefixtures("no_second_look")
def test_waiters_for_durability_for_drains_and_for_idleness_are_all_woken(arena: Arena) -> None:
    rounds = 300

    def produce() -> None:
        for number in range(rounds):
            sequence = commit(arena, Append("write", 1, b"x"), Enqueue(key(100 + number), 1, GRAPH)).write_sequence
            arena.write_ring.request_drain()
            assert arena.write_ring.wait_committed(sequence, 30.0)
            assert arena.wait_idle(30.0)

    def consume() -> None:
        while arena.write_ring.committed_sequence < rounds:
            arena.write_ring.wait_for_drain(30.0)
            arena.write_ring.advance(arena.write_ring.last_sequence)

    def work() -> None:
        for _ in range(rounds):
            claim = arena.take_work(30.0)
            assert claim is not None
            commit(arena, Release(claim.key, GRAPH, 0), Delete(claim.key))

    pids = [_fork(produce), _fork(consume), _fork(work)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert arena.check() == []
