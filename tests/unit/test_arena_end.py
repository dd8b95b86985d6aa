"""The end of an arena: nobody's write goes to a segment that is being removed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmcache.arena import Arena, Transaction, list_arenas
from shmcache.arena.transaction import Append
from shmcache.config import load_settings
from shmcache.errors import ArenaEnded
from tools.leftovers import open_arena, remove

IDENTITY = bytes(range(16))


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"end-{os.getpid()}", 8 << 20, IDENTITY)
    yield made
    made.close()
    made.unlink()


def write(arena: Arena) -> None:
    """Put an entry on the write ring."""
    wanted = Transaction()
    wanted.operations.append(Append("write", 1, b"row"))
    arena.commit(wanted)


def test_an_arena_that_another_living_process_is_in_cannot_be_ended(arena: Arena) -> None:
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        arena.join()
        os.write(writes, b"+")
        signal.pause()
    os.read(reads, 1)
    assert not arena.end()
    write(arena)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert arena.end(), "the dead need it no more"
    os.close(reads)
    os.close(writes)


def test_who_comes_after_the_end_writes_nothing_and_is_told_so(arena: Arena) -> None:
    with Arena.attach(arena.name) as late:
        assert arena.end()
        before = arena.write_ring.last_sequence
        for act in (lambda: write(late), late.join, lambda: late.take_work(0), lambda: late.put(bytes(16), b"record")):
            with pytest.raises(ArenaEnded, match="get_db_client"):
                act()
        assert arena.write_ring.last_sequence == before


def test_what_was_written_after_the_drain_keeps_the_arena(arena: Arena, tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path)
    write(arena)
    assert not remove(arena, settings)
    assert arena.name in list_arenas()
    with Arena.attach(arena.name) as late:
        write(late)
    for ring in (arena.write_ring, arena.charge_ring):
        ring.advance(ring.last_sequence)
    assert remove(arena, settings)
    assert arena.name not in list_arenas()


def test_an_end_whose_process_died_before_the_removal_is_undone_by_the_next_supervisor(
    arena: Arena, tmp_path: Path
) -> None:
    name = arena.name
    child = os.fork()
    if not child:
        os.close(os.open(tmp_path / "begun", os.O_CREAT))
        arena.own_lane.join()
        os._exit(0 if not arena.end() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "this process is in it"
    assert arena.end()
    arena.own_lane.leave()
    taken_over = open_arena(name, 8 << 20, IDENTITY, load_settings(state_dir=tmp_path), lambda: False)
    write(taken_over)
    taken_over.close()
