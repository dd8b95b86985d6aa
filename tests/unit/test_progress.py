"""The sign of life of a process that computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

import shmcache
from shmcache import session
from shmcache.arena import Arena
from shmcache.blocks import get_block
from shmcache.config import load_settings
from shmcache.progress import beat_with


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How often this process has shown a sign of life."""
    for name in ("ARENA", "DATABASE_URL", "MODE"):
        monkeypatch.setenv(f"SHMCACHE_{name}", "")
    arena = Arena.create(f"progress-{os.getpid()}", 8 << 20)
    session.prepare(arena, "postgresql://127.0.0.1:1/none", load_settings(database_url="", arena="x", mode="cached"))
    yield lambda: arena.beats()[os.getpid()][0]
    session.forget()
    arena.close()
    arena.unlink()


def test_a_heartbeat_is_a_sign_of_life(beats: Callable[[], int]) -> None:
    before = beats()
    shmcache.heartbeat()
    assert beats() == before + 1


def test_blocks_that_only_wait_give_one_each_second(beats: Callable[[], int]) -> None:
    before = beats()
    assert list(get_block("shmcache.delay").run({"seconds": 1.2, "value": 7}) or ()) == [("value", 7)]
    assert beats() >= before + 2


def test_without_an_arena_it_does_nothing() -> None:
    beat_with(None)
    shmcache.heartbeat()
