"""Every error says what happened, to which arena and to what in it, and what to do; its fields survive pickling.

First each class by itself, then what is raised where it really happens. A class that is missing here fails a test."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import re
import signal
from collections.abc import Callable, Iterator

import pytest

import tools.chaos.run
import tools.dead_letters
import tools.drain
import tools.graph_executions
import tools.processes
import tools.target
from shmcache.arena import Arena, SharedMapping, Transaction, layout, segment
from shmcache.arena.transaction import Append, Put
from shmcache.errors import (
    ArenaDamaged,
    ArenaEnded,
    ArenaError,
    ArenaExists,
    ArenaFull,
    ArenaMissing,
    ArenaUnusable,
    BlockError,
    ClientClosed,
    DatabaseUnavailable,
    Fenced,
    FlushTimeout,
    GraphFileError,
    InsufficientBalanceError,
    InvalidValue,
    LockTimeout,
    NotFound,
    NotOwner,
    RingFull,
    SettingsError,
    SharedMemoryTooSmall,
    ShmcacheError,
    StillAtWork,
    TransactionMisused,
    TransactionTooLarge,
    Unavailable,
    UnknownBlock,
)

KEY = b"0123456789abcdef"
_BASES = (ShmcacheError, Unavailable)
_SAMPLES: dict[type[ShmcacheError], tuple[ShmcacheError, list[str]]] = {
    # an error, and what its text must hold: what it concerns, and what to do
    SettingsError: (SettingsError("workers (in /etc/x): 'many': no number"), ["workers", "/etc/x"]),
    ArenaError: (ArenaError("it was used twice").of("main"), ["'main'", "used twice"]),
    ArenaMissing: (ArenaMissing("main"), ["'main'", "start what makes it"]),
    ArenaEnded: (ArenaEnded().of("main"), ["'main'", "call get_db_client() again"]),
    ArenaExists: (ArenaExists("main"), ["'main'", "choose another name"]),
    ArenaUnusable: (ArenaUnusable("main", "it is truncated: remove it"), ["'main'", "remove it"]),
    SharedMemoryTooSmall: (SharedMemoryTooSmall("main", 5000, 10), ["'main'", "5,000", "--shm-size"]),
    ArenaFull: (ArenaFull(64, "all is in use").of("main"), ["'main'", "64", "SHMCACHE_ARENA_SIZE"]),
    ArenaDamaged: (ArenaDamaged("a list ends nowhere").of("main"), ["'main'", "nowhere", "shmcache drain"]),
    TransactionTooLarge: (
        TransactionTooLarge("a transaction of 9 words").of("main"),
        ["'main'", "9 words", "write less"],
    ),
    LockTimeout: (LockTimeout("commit", 4711, 2.5).of("main"), ["'main'", "'commit'", "4711", "2.5 s", "kill it"]),
    RingFull: (RingFull("write", 4096, 2.5).of("main"), ["'main'", "write", "4,096", "shmcache doctor"]),
    InvalidValue: (InvalidValue("a set is no JSON: make it a list").of("main"), ["'main'", "make it a list"]),
    NotFound: (NotFound("node", "4711"), ["node", "4711", "check the identifier"]),
    InsufficientBalanceError: (InsufficientBalanceError("4711", 3, 5), ["4711", "3", "5", "top the account up"]),
    TransactionMisused: (TransactionMisused("a coroutine: call it outside"), ["call it outside"]),
    ClientClosed: (ClientClosed(), ["was closed", "not lost"]),
    GraphFileError: (GraphFileError("x.json", "nodes[3]", "expected text, got 5"), ["x.json", "nodes[3]", "expected"]),
    UnknownBlock: (UnknownBlock("own.block"), ["own.block", "installed?"]),
    BlockError: (BlockError("shmcache.merge: input 'a' is missing: expected a value"), ["shmcache.merge", "'a'"]),
    DatabaseUnavailable: (
        DatabaseUnavailable("host:5432/db", "refused"),
        ["host:5432/db", "refused", "shmcache doctor"],
    ),
    Fenced: (Fenced("syncer", 7).of("main"), ["'main'", "syncer", "epoch 7", "stand for election again"]),
    NotOwner: (NotOwner("4711", "main", 2, 3.5), ["4711", "main", "token 2", "3.5 s more", "when that is over"]),
    StillAtWork: (StillAtWork("4711"), ["4711", "work on this host", "take it when that ended"]),
    FlushTimeout: (
        FlushTimeout("write", 3, 9, 2.5).of("main"),
        ["'main'", "write", "6 entries", "2.5 s", "wait again"],
    ),
    tools.drain.ArenaInUse: (tools.drain.ArenaInUse("main", [4711]), ["'main'", "4711", "its own syncer drains it"]),
    tools.dead_letters.NoSuchDeadLetter: (tools.dead_letters.NoSuchDeadLetter(7), ["7", "dead-letters list"]),
    tools.graph_executions.BrokerUnavailable: (
        tools.graph_executions.BrokerUnavailable("redis://me:secret@host", "no route", 2),
        ["redis://me:***@host", "no route", "2 graph executions", "check --broker"],
    ),
    tools.processes.CannotStart: (
        tools.processes.CannotStart("a worker fails: see the log"),
        ["worker", "see the log"],
    ),
    tools.target.CannotImport: (
        tools.target.CannotImport("the process that imported 'work:run' died (wait status 9)"),
        ["work:run", "wait status 9"],
    ),
    tools.chaos.run.ChaosError: (tools.chaos.run.ChaosError("the plan is lost: run again"), ["run again"]),
}


def _classes(base: type[ShmcacheError]) -> Iterator[type[ShmcacheError]]:
    for each in base.__subclasses__():
        yield each
        yield from _classes(each)


def test_every_class_of_error_is_tried_here() -> None:
    own = {each for each in _classes(ShmcacheError) if each.__module__.startswith(("shmcache", "syncer", "tools"))}
    assert own - set(_BASES) == set(_SAMPLES)


@pytest.mark.parametrize("kind", _SAMPLES, ids=lambda kind: kind.__name__)
def test_an_error_says_what_it_concerns_and_what_to_do_in_one_line(kind: type[ShmcacheError]) -> None:
    error, said = _SAMPLES[kind]
    assert type(error) is kind
    assert "\n" not in str(error)
    for text in said:
        assert text in str(error)


@pytest.mark.parametrize("kind", _SAMPLES, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_with_its_fields(kind: type[ShmcacheError]) -> None:
    error, _ = _SAMPLES[kind]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_the_arena_is_named_once() -> None:
    error = ArenaFull(64, "all is in use")
    assert error.of("") is error
    assert error.of("first").of("second").arena == "first"
    assert str(error).startswith("arena 'first': ")
    assert str(ArenaMissing("main").of("main")).count("'main'") == 1


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"errors-{os.getpid()}", 4 << 20, lock_wait=0.2, ring_wait=0.1)
    yield made
    with contextlib.suppress(ArenaError):
        made.close()
    made.unlink()


def assert_told(arena: Arena, kind: type[ShmcacheError], call: Callable[[], object], *said: str) -> None:
    """Check that a call raises an error that names the arena, once, and says some more."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert text.count(repr(arena.name)) == 1, text
    assert caught.value.arena == arena.name
    for each in said:
        assert each in text


def _append(arena: Arena, size: int) -> None:
    wanted = Transaction()
    wanted.operations.append(Append("write", 1, bytes(size)))
    arena.commit(wanted)


def test_a_full_ring_names_its_arena(arena: Arena) -> None:
    def fill() -> None:
        while True:
            _append(arena, 1000)

    assert_told(arena, RingFull, fill, "write ring", "SHMCACHE_ARENA_SIZE")


def test_a_full_arena_names_itself(arena: Arena) -> None:
    def fill() -> None:
        number = 0
        while True:
            number += 1
            wanted = Transaction()
            wanted.operations += [Put(number.to_bytes(16, "big"), bytes(8000)), Append("write", 1, b"")]
            arena.commit(wanted)

    assert_told(arena, ArenaFull, fill, "SHMCACHE_ARENA_SIZE")


def test_a_full_pinned_mapping_names_itself() -> None:
    name = f"errors-mapping-{os.getpid()}"
    with SharedMapping.create(name, "4 MiB", pinned=True) as mapping:
        try:
            with pytest.raises(ArenaFull) as caught:
                mapping.update({number: bytes(4000) for number in range(10_000)})
        finally:
            mapping.unlink()
    assert str(caught.value).count(name) == 1
    assert "delete some" in str(caught.value)


def test_a_record_that_is_too_long_names_its_key(arena: Arena) -> None:
    assert_told(arena, InvalidValue, lambda: arena.put(KEY, bytes(3 << 20)), KEY.hex(), "SHMCACHE_ARENA_SIZE")


def test_a_transaction_that_is_too_large_names_the_arena(arena: Arena) -> None:
    def write() -> None:
        wanted = Transaction()
        wanted.operations += [Put(number.to_bytes(16, "big"), b"x") for number in range(1, 5000)]
        arena.commit(wanted)

    assert_told(arena, TransactionTooLarge, write, "nothing was written", "write less")


def _hold(name: str, told: int) -> None:
    with Arena.attach(name)._critical:
        os.write(told, b"1")
        signal.pause()


def test_a_lock_that_another_process_holds_names_arena_and_holder(arena: Arena) -> None:
    told, tell = os.pipe()
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(arena.name, tell))
    holder.start()
    os.read(told, 1)
    try:
        assert_told(arena, LockTimeout, lambda: _append(arena, 1), f"process {holder.pid} holds it", "kill it")
    finally:
        holder.kill()
        holder.join()
        os.close(told)
        os.close(tell)
    _append(arena, 1)


def test_damage_names_the_arena_and_how_to_save_what_is_in_it(arena: Arena) -> None:
    arena.put(KEY, b"x")
    arena._memory.words[layout.FREE_SLAB] = 1 << 40
    assert_told(arena, ArenaDamaged, lambda: arena.put(KEY, bytes(500_000)), "damaged from outside", "shmcache drain")


def test_the_second_maker_the_missing_and_the_too_large_are_named(arena: Arena) -> None:
    assert_told(arena, ArenaExists, lambda: Arena.create(arena.name, 4 << 20), "choose another name")
    with pytest.raises(ArenaMissing, match="'errors-none'") as missing:
        Arena.attach("errors-none")
    assert "SHMCACHE_ARENA" in str(missing.value)
    with pytest.raises(SharedMemoryTooSmall, match="'errors-none'") as too_small:
        Arena.create("errors-none", 1 << 45)
    assert "--shm-size" in str(too_small.value)


@pytest.mark.parametrize(
    ("content", "mode", "advice"),
    [
        (b"", 0o600, "remove it"), (b"no arena" * 1000, 0o600, "remove it"), (b"no arena" * 1000, 0o644, "remove it"),
    ],
)  # fmt: skip
def test_a_segment_that_cannot_be_used_says_what_to_do_with_it(content: bytes, mode: int, advice: str) -> None:
    name = f"errors-spoilt-{os.getpid()}"
    path = segment.segment_path(name)
    path.write_bytes(content)
    path.chmod(mode)
    try:
        with pytest.raises(ArenaUnusable) as caught:
            Arena.attach(name)
    finally:
        path.unlink()
    assert re.match(rf"arena '{name}' cannot be used: ", str(caught.value))
    assert advice in str(caught.value)


def test_more_processes_than_lanes_are_told_which_arena_is_crowded(arena: Arena) -> None:
    lanes = arena._lanes
    for lane in range(1, arena._memory.layout.lane_count):
        arena._memory.words[lanes._word(lane) + 8] = os.getpid()
    with arena._critical, pytest.raises(ArenaError) as caught:
        lanes.enter("test")
    assert str(caught.value).startswith(f"arena {arena.name!r}: all its ")
    assert "end some" in str(caught.value)
