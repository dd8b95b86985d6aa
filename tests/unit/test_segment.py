"""Segments missing, foreign, damaged, too large or in the making are refused, and never lost to a bystander."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmcache.arena import Arena, free_bytes, layout, list_arenas, segment, unlink_segment
from shmcache.arena.transaction import Put
from shmcache.errors import ArenaExists, ArenaMissing, ArenaUnusable, SharedMemoryTooSmall
from tests.unit.arena_state import commit, key, run_in_child

SIZE = 4 << 20


@pytest.fixture
def name() -> Iterator[str]:
    chosen = f"test-segment-{os.getpid()}"
    yield chosen
    unlink_segment(chosen)


def _path(name: str) -> Path:
    return Path("/dev/shm") / f"shmcache.{os.getuid()}.{name}"


def _make(name: str) -> None:
    Arena.create(name, SIZE).close()


def _poke(name: str, word: int, value: int) -> None:
    with open(_path(name), "r+b") as file:
        file.seek(word * layout.WORD)
        file.write(value.to_bytes(8, "little"))


def test_a_missing_segment_is_named(name: str) -> None:
    with pytest.raises(ArenaMissing, match=name):
        Arena.attach(name)


def test_a_file_of_somebody_elses_is_refused_and_left_alone(name: str) -> None:
    _path(name).write_bytes(b"not ours at all " * 1000)
    _path(name).chmod(0o600)
    with pytest.raises(ArenaUnusable, match="no shmcache arena"):
        Arena.attach(name)
    assert _path(name).read_bytes() == b"not ours at all " * 1000


@pytest.mark.parametrize("size", [0, 7, 127, 4096, SIZE // 2])
def test_a_truncated_segment_is_refused(name: str, size: int) -> None:
    _make(name)
    os.truncate(_path(name), size)
    with pytest.raises(ArenaUnusable, match="truncated"):
        Arena.attach(name)


@pytest.mark.parametrize(
    ("word", "value", "reason"),
    [
        (layout.LAYOUT_WORD, 1, "another version"),
        (layout.SIZE_WORD, 2**63, "damaged"),
        (layout.SIZE_WORD, 0, "damaged"),
        (layout.SLAB_SIZE_WORD, 0, "damaged"),
        (layout.BUCKET_COUNT_WORD, 3, "damaged"),
        (layout.NAMESPACE_WORD, 1, "pid namespace"),
        (layout.READY_WORD, 0, "never finished"),
        (layout.MAGIC_WORD, 5, "no shmcache arena"),
    ],
)
def test_a_header_that_is_not_as_it_was_made_is_refused(name: str, word: int, value: int, reason: str) -> None:
    _make(name)
    _poke(name, word, value)
    with pytest.raises(ArenaUnusable, match=reason):
        Arena.attach(name)


def test_a_segment_that_others_may_open_is_refused(name: str) -> None:
    _make(name)
    assert _path(name).stat().st_mode & 0o777 == 0o600
    _path(name).chmod(0o666)
    with pytest.raises(ArenaUnusable, match="mode 666"):
        Arena.attach(name)


def test_a_symbolic_link_is_not_followed(name: str, tmp_path: Path) -> None:
    _path(name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArenaUnusable):
        Arena.attach(name)
    with pytest.raises(ArenaExists):
        Arena.create(name, SIZE)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("bad", ["a/b", "../x", "", "x" * 65, "a b", "nul\0"])
def test_a_name_with_anything_but_plain_characters_is_refused(bad: str) -> None:
    for use in (lambda: Arena.create(bad, SIZE), lambda: Arena.attach(bad), lambda: unlink_segment(bad)):
        with pytest.raises(ArenaUnusable, match="a name is"):
            use()


def test_a_size_larger_than_what_is_free_is_an_error_at_once_and_leaves_nothing(name: str) -> None:
    free = free_bytes()
    with pytest.raises(SharedMemoryTooSmall) as caught:
        Arena.create(name, free + (1 << 30))
    assert caught.value.needed > caught.value.available > 0
    assert not _path(name).exists()
    assert free_bytes() > free // 2


@pytest.mark.parametrize("arguments", [(1 << 20, bytes(16)), (SIZE, b"short")])
def test_a_size_or_identity_that_cannot_be_is_refused(name: str, arguments: tuple[int, bytes]) -> None:
    with pytest.raises(ValueError, match="bytes"):
        Arena.create(name, *arguments)
    assert name not in list_arenas()


def test_of_many_creators_at_once_one_wins(name: str) -> None:
    go, ready = os.pipe()
    pids = []
    for _ in range(8):
        pid = os.fork()
        if not pid:
            os.close(ready)
            os.read(go, 1)  # until all are there
            try:
                Arena.create(name, SIZE)
                os._exit(0)
            except ArenaExists:
                os._exit(1)
            finally:
                os._exit(2)
        pids.append(pid)
    os.close(go)
    os.close(ready)
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
    assert codes == [0] + [1] * 7
    with Arena.attach(name) as arena:
        assert arena.check() == []


def test_an_arena_has_no_name_before_it_is_ready(name: str) -> None:
    mapped, descriptor = segment.reserve_segment(name, layout.plan(SIZE))
    assert name not in list_arenas()
    with pytest.raises(ArenaMissing):
        Arena.attach(name)
    with Arena.create(name, SIZE):
        with pytest.raises(ArenaExists):
            segment.publish_segment(name, descriptor)
        with pytest.raises(ArenaExists):
            Arena.create(name, SIZE)
    mapped.close()
    os.close(descriptor)


def test_a_maker_that_is_killed_before_its_arena_is_ready_leaves_nothing(name: str) -> None:
    def die_while_making() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("shmcache.arena.table.Table.format", lambda _: os.kill(os.getpid(), signal.SIGKILL))
            Arena.create(name, 64 << 20)

    assert run_in_child(die_while_making) == -signal.SIGKILL
    assert name not in list_arenas()


def test_creating_that_is_interrupted_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shmcache.arena.table.Table.format", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Arena.create(name, SIZE)
    assert name not in list_arenas()


def test_an_attach_that_cannot_map_leaves_the_segment_to_the_others(name: str) -> None:
    with Arena.create(name, 256 << 20) as arena:
        commit(arena, Put(key(1), b"here"))

        def attach_without_memory() -> None:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
            resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), used + (64 << 20)))
            with pytest.raises(ArenaUnusable, match="cannot be mapped"):
                Arena.attach(name)

        assert run_in_child(attach_without_memory) == 0
        assert name in list_arenas()
        with Arena.attach(name) as other:
            found = other.read(key(1))
            assert found is not None
            assert found.record == b"here"


def _attach_and_end(name: str) -> None:
    Arena.attach(name).enter("worker")


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_the_end_of_an_attached_child_leaves_the_segment(name: str, method: str) -> None:
    with Arena.create(name, SIZE) as arena:
        context: Any = multiprocessing.get_context(method)
        child = context.Process(target=_attach_and_end, args=(name,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert name in list_arenas()
        assert arena.check() == []


@pytest.mark.parametrize(
    "ending", ["", "del arena; __import__('gc').collect()", "arena.close()", "import os; os._exit(0)"]
)
def test_a_process_that_ended_in_any_way_counts_as_dead_and_the_segment_stays(name: str, ending: str) -> None:
    with Arena.create(name, SIZE) as arena:
        code = f"from shmcache.arena import Arena\narena = Arena.attach({name!r})\narena.enter('worker')\n{ending}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert [process.role for process in arena.processes() if process.alive] == ["other"]
        arena.release_dead()
        assert len(arena.processes()) == 1
        assert name in list_arenas()
        assert arena.check() == []


def test_all_of_the_segment_is_reserved_when_it_is_made(name: str) -> None:
    with Arena.create(name, SIZE):
        status = _path(name).stat()
        assert status.st_blocks * 512 >= status.st_size


def test_a_reservation_that_fails_on_its_way_leaves_nothing_and_says_how_much_was_needed(name: str) -> None:
    """More was free when it was looked at than when it was taken: here by a limit on the size of files."""

    def create_too_much() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))
        with pytest.raises(SharedMemoryTooSmall, match="needs 4,") as caught:
            Arena.create(name, SIZE)
        assert caught.value.name == name
        assert caught.value.needed > 4_000_000

    assert run_in_child(create_too_much) == 0
    assert name not in list_arenas()


def test_a_maker_that_is_stopped_in_the_middle_keeps_nobody_from_making_or_attaching(name: str) -> None:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("shmcache.arena.table.Table.format", lambda _: os.kill(os.getpid(), signal.SIGSTOP))
                Arena.create(name, SIZE)
        except ArenaExists:
            code = 0
        finally:
            os._exit(code)
    os.waitpid(pid, os.WUNTRACED)
    with pytest.raises(ArenaMissing):
        Arena.attach(name)
    with Arena.create(name, SIZE) as arena:
        commit(arena, Put(key(1), b"here"))
        os.kill(pid, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with Arena.attach(name) as other:
            assert other.read(key(1)) is not None


def test_who_attaches_while_another_makes_and_removes_finds_a_whole_arena_or_none(name: str) -> None:
    stop, stopping = os.pipe()

    def make_and_remove() -> None:
        os.close(stopping)
        while not select.select([stop], [], [], 0)[0]:
            with Arena.create(name, SIZE) as arena:
                commit(arena, Put(key(1), b"made"))
            unlink_segment(name)

    pid = os.fork()
    if not pid:
        code = 1
        try:
            make_and_remove()
            code = 0
        finally:
            os._exit(code)
    attached = 0
    while attached < 25:
        assert os.waitpid(pid, os.WNOHANG)[0] == 0
        try:
            arena = Arena.attach(name)
        except ArenaMissing:
            continue
        with arena:
            attached += 1
            found = arena.read(key(1))
            assert found is None or found.record == b"made"
            commit(arena, Put(key(2), b"mine"))
            assert arena.check() == []
    os.close(stopping)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(stop)
