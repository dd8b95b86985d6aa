"""`shmcache top`: what it shows is true, its keys do what they say, and looking leaves no trace."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from shmcache.arena import Arena, activity, list_arenas, survey
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.identifiers import new_id
from syncer.sync_manager import SyncManager
from tests.integration.test_clients import SINK, small_graph
from tests.unit.test_command_line import ROOT, shmcache
from tools.top.app import ArenaScreen, Confirm, LettersScreen, Top

Script = Callable[[Pilot[None]], Awaitable[None]]


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    made = Arena.create(f"top-{os.getpid()}", 32 << 20)
    made.enter("worker")
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, sync_interval=3600.0, database_url=database_url)


@pytest.fixture
def client(arena: Arena, database_url: str, settings: Settings) -> Iterator[CachedClient]:
    graph, nodes = small_graph()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
    with CachedClient(arena, database_url, settings) as made:
        yield made


@pytest.fixture
def syncers(arena: Arena, database_url: str, settings: Settings) -> Iterator[list[int]]:
    """Two syncers, one of which leads; the other waits for its turn."""

    def lead() -> None:
        asked: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _frame: asked.append(number))
        arena.enter("syncer")
        SyncManager(arena, database_url, settings).run(lambda: bool(asked))
        os._exit(0)

    pids = []
    for _ in range(2):
        pid = os.fork()
        if not pid:
            lead()
        pids.append(pid)
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def leader(arena: Arena) -> int:
    """Return who leads the write ring, 0 for nobody."""
    found = activity.leaders(survey.lanes(arena._memory)).get("write")
    return found.pid if found else 0


def drive(settings: Settings, name: str | None, script: Script, size: tuple[int, int] = (110, 34)) -> None:
    """Run the application without a terminal, and a script of keys on it."""

    async def run() -> None:
        app = Top(settings, name, interval_seconds=0.2)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await script(pilot)

    asyncio.run(run())


async def until(pilot: Pilot[None], there: Callable[[], object], seconds: float = 60.0) -> None:
    """Let the application go on until a condition holds."""
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, "it never came"
        await pilot.pause(0.05)


def shown(pilot: Pilot[None], selector: str) -> str:
    """Return the text of a part of the screen on top."""
    widget = pilot.app.screen.query_one(selector, Static)
    return "\n".join(widget.render_line(y).text for y in range(widget.size.height))


def rows(pilot: Pilot[None], selector: str = "DataTable") -> list[list[str]]:
    """Return the cells of the table on the screen on top."""
    table: DataTable[object] = pilot.app.screen.query_one(selector, DataTable)
    return [[str(cell) for cell in table.get_row_at(place)] for place in range(table.row_count)]


def test_an_arena_is_found_opened_and_shown_with_what_goes_on_in_it(
    arena: Arena, client: CachedClient, settings: Settings
) -> None:
    run = client.create_graph_execution(small_graph()[0].id, new_id()).id
    client.upsert_execution_input(SINK, run, None)
    client.upsert_execution_output(client.get_latest_node_execution(SINK, run).id, "out", 1)  # type: ignore[union-attr]

    async def script(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: arena.name in [row[0] for row in rows(pilot)])
        table = pilot.app.screen.query_one(DataTable)
        table.move_cursor(row=[row[0] for row in rows(pilot)].index(arena.name))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ArenaScreen) and rows(pilot))
        assert [row[:3] for row in rows(pilot)] == [[str(os.getpid()), "worker", "idle"]]
        assert "no syncer leads" in shown(pilot, "#head")
        assert "led by nobody" in shown(pilot, "#numbers")
        assert f"{arena.write_ring.last_sequence} waiting" in shown(pilot, "#numbers")
        assert "records" in shown(pilot, "#room")
        with arena.loads.loading(b"x" * 16):
            await until(pilot, lambda: "load" in shown(pilot, "#locks"))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(pilot.app.screen, ArenaScreen))

    drive(settings, None, script)


@pytest.mark.parametrize("size", [(80, 24), (200, 60)], ids=["small", "large"])
def test_it_fits_terminals_of_any_size(arena: Arena, settings: Settings, size: tuple[int, int]) -> None:
    async def script(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: rows(pilot))
        for selector in ("#head", "#tiles", "#room", "#numbers", "#processes", "#locks", "Footer"):
            region = pilot.app.screen.query_one(selector).region
            assert region.height > 0
            assert 0 <= region.y < region.bottom <= size[1], selector
            assert region.right <= size[0]

    drive(settings, arena.name, script, size)


def test_its_keys_drain_flush_and_elect_anew(
    arena: Arena, client: CachedClient, settings: Settings, syncers: list[int]
) -> None:
    async def script(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: leader(arena) and isinstance(pilot.app.screen, ArenaScreen) and rows(pilot))
        for key in ("d", "f"):
            client.create_graph_execution(small_graph()[0].id, new_id())
            waiting = arena.write_ring.last_sequence
            assert arena.write_ring.committed_sequence < waiting
            await pilot.press(key)
            await until(pilot, lambda waiting=waiting: arena.write_ring.committed_sequence >= waiting)  # type: ignore[misc]
        first = leader(arena)
        await pilot.press("e")
        await until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
        await pilot.press("n")
        await until(pilot, lambda: isinstance(pilot.app.screen, ArenaScreen))
        assert leader(arena) == first
        await pilot.press("e")
        await until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
        await pilot.press("y")
        (other,) = [pid for pid in syncers if pid != first]
        await until(pilot, lambda: leader(arena) == other)
        await until(pilot, lambda: f"by {other}, epoch 2" in shown(pilot, "#numbers"))

    drive(settings, arena.name, script)


def test_dead_letters_open_with_what_the_database_said(
    arena: Arena, client: CachedClient, settings: Settings, database_url: str
) -> None:
    run = client.create_graph_execution(small_graph()[0].id, new_id()).id
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    client.upsert_execution_output(identifier, "out", "a NUL: \0 [red]not markup[/red]")
    SyncManager(arena, database_url, settings).run_once()

    async def script(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "dead letters" in shown(pilot, "#numbers"))
        await pilot.press("l")
        await until(pilot, lambda: isinstance(pilot.app.screen, LettersScreen) and rows(pilot))
        assert "1 dead letter;" in shown(pilot, "#head")
        assert rows(pilot)[0][2:4] == ["write", "3"]
        assert "unsupported Unicode" in rows(pilot)[0][6]
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(pilot.app.screen, ArenaScreen))

    drive(settings, arena.name, script)


def test_a_dead_arena_is_shown_as_one_and_drained_by_a_key(
    database_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graph, nodes = small_graph()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
    name = f"top-dead-{os.getpid()}"
    pid = os.fork()
    if not pid:
        with connect(database_url, application_name="test") as connection:
            from shmcache.database.migrate import identity

            made = Arena.create(name, 32 << 20, identity(connection))
        CachedClient(made, database_url, settings).create_graph_execution(graph.id, new_id())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    monkeypatch.setenv("SHMCACHE_DATABASE_URL", database_url)
    monkeypatch.setenv("SHMCACHE_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    async def script(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: rows(pilot))
        assert [row[1:3] for row in rows(pilot)] == [["other", "dead"]]
        assert "dead: no process is attached that lives" in shown(pilot, "#head")
        await pilot.press("d")
        await until(pilot, lambda: name not in list_arenas())
        await until(pilot, lambda: "no arena named" in shown(pilot, "#head"))

    drive(settings, name, script)
    with connect(database_url, application_name="test") as connection:
        assert connection.execute("SELECT count(*) FROM graph_executions").fetchone() == (1,)


def test_in_a_real_terminal_it_draws_obeys_q_and_leaves_terminal_and_arena_as_they_were(
    arena: Arena, tmp_path: Path
) -> None:
    content = Path("/dev/shm") / f"shmcache.{os.getuid()}.{arena.name}"
    before = content.read_bytes()
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 34, 110, 0, 0))
    modes = termios.tcgetattr(its)
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.cli", "top", arena.name],
        stdin=its, stdout=its, stderr=its, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SHMCACHE_STATE_DIR": str(tmp_path), "TERM": "xterm-256color"},
    )  # fmt: skip
    drawn = b""
    try:
        deadline = time.monotonic() + 60
        while str(os.getpid()).encode() not in drawn or b"elect anew" not in drawn:
            assert time.monotonic() < deadline, drawn
            if select.select([ours], [], [], 0.2)[0]:
                drawn += os.read(ours, 1 << 16)
        os.write(ours, b"q")
        while process.poll() is None:
            assert time.monotonic() < deadline
            if select.select([ours], [], [], 0.2)[0]:
                drawn += os.read(ours, 1 << 16)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert b"\x1b[?1049h" in drawn  # the alternate screen, and back
    while select.select([ours], [], [], 0.2)[0]:
        drawn += os.read(ours, 1 << 16)
    assert drawn.rindex(b"\x1b[?1049l") > drawn.rindex(b"\x1b[?1049h")
    assert termios.tcgetattr(its) == modes
    os.close(ours)
    os.close(its)
    assert content.read_bytes() == before


def test_without_a_terminal_or_an_arena_it_says_so(tmp_path: Path) -> None:
    done = shmcache(tmp_path, "top")
    assert (done.returncode, "shmcache inspect" in done.stderr) == (2, True)
