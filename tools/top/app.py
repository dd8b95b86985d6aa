"""The terminal: a list of arenas, one arena, dead letters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid, Horizontal, Vertical
from textual.css.query import NoMatches
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Footer, Label, Static

from shmcache.config import Settings
from shmcache.errors import ShmcacheError
from tools.monitoring.reader import Snapshot
from tools.top import actions
from tools.top.parts import COLUMNS_OF_ARENAS, Tile, arena_row, locks, numbers, right, room
from tools.top.texts import duration, number, ratio, size
from tools.top.watching import Arenas, Look

FLUSH_SECONDS = 30.0
_QUIT = Binding("q,ctrl+c", "app.quit", "quit", key_display="q")


class Top(App[None]):
    """The application. `name` is the arena to open at once."""

    CSS = """
    #head { height: auto; padding: 0 1; }
    #tiles { grid-size: 4; grid-gutter: 0 2; height: auto; grid-rows: 3; padding: 0 1; margin-top: 1; }
    .tile { height: 3; }
    .tile Label { width: 100%; text-overflow: ellipsis; text-wrap: nowrap; }
    .tile Sparkline { height: 1; }
    #middle { height: auto; margin: 1 0; padding: 0 1; }
    #room { width: 1fr; height: auto; margin-right: 2; }
    #numbers { width: 1fr; height: auto; }
    #processes, #arenas, #letters { height: 1fr; min-height: 4; }
    #locks { height: auto; max-height: 5; padding: 0 1; }
    Confirm { align: center middle; }
    Confirm > Vertical { width: 64; max-width: 90%; height: auto; border: round $warning; padding: 1 2;
                         background: $surface; }
    """
    TITLE = "shmcache top"
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, settings: Settings, name: str | None, interval_seconds: float = 1.0) -> None:
        super().__init__()
        self.settings = settings
        self.arenas = Arenas()
        self.interval_seconds = interval_seconds
        self._name = name

    def on_mount(self) -> None:
        """Show the list, or the arena that was asked for."""
        self.push_screen(ArenasScreen())
        if self._name is not None:
            self.push_screen(ArenaScreen(self._name))

    def on_unmount(self) -> None:
        """Let go of the arenas."""
        self.arenas.close()


class _Live(Screen[None]):
    """A screen that looks again and again, in a thread, as long as it is on top."""

    app: Top

    def on_mount(self) -> None:
        """Begin to look."""
        self.look()
        self.set_interval(self.app.interval_seconds, self._tick)

    def on_screen_resume(self) -> None:
        """Look as soon as the screen is back."""
        self.look()

    def _tick(self) -> None:
        if self.is_current:
            self.look()

    @work(thread=True, exclusive=True, group="look")
    def look(self) -> None:
        """Look, and show what was found."""
        found = self.found()
        with contextlib.suppress(NoMatches, RuntimeError):  # the screen, or the application, is closing
            self.app.call_from_thread(self.show, found)

    def found(self) -> list[Look]:
        """Look; in a thread of its own."""
        raise NotImplementedError

    def show(self, looks: list[Look]) -> None:
        """Show what was found."""
        raise NotImplementedError


class ArenasScreen(_Live):
    """All arenas of this user."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "open", "open", priority=True), _QUIT]

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield Static("arenas of this user", id="head")
        yield DataTable(id="arenas", cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        self.query_one(DataTable).add_columns(*COLUMNS_OF_ARENAS)
        super().on_mount()

    def action_open(self) -> None:
        """Open the arena under the cursor."""
        table = self.query_one(DataTable)
        if table.is_valid_row_index(table.cursor_row):
            name = str(table.get_row_at(table.cursor_row)[0])
            self.app.push_screen(ArenaScreen(name))

    def found(self) -> list[Look]:
        """Look at all arenas."""
        return self.app.arenas.look_at_all()

    def show(self, looks: list[Look]) -> None:
        """Fill the list."""
        table: DataTable[Text | str] = self.query_one(DataTable)
        row = table.cursor_row
        chosen = str(table.get_row_at(row)[0]) if table.is_valid_row_index(row) else ""
        table.clear()
        for look in looks:
            table.add_row(*arena_row(look))
        names = [look.name for look in looks]
        table.move_cursor(row=names.index(chosen) if chosen in names else min(row, max(0, len(names) - 1)))
        self.query_one("#head", Static).update(
            f"[b]{len(looks)}[/b] arena{'s' * (len(looks) != 1)} of this user" if looks else "no arena of this user"
        )


class ArenaScreen(_Live):
    """One arena."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "arenas"),
        Binding("d", "drain", "drain"),
        Binding("f", "flush", "flush"),
        Binding("e", "elect", "elect anew"),
        Binding("l", "letters", "dead letters"),
        _QUIT,
    ]
    _TILES = (
        ("gets/s", "gets"), ("puts/s", "puts"), ("nodes/s", "nodes"), ("hits decoded", "decoded_hit_ratio"),
        ("unsynced", "unsynced"), ("oldest", "oldest_seconds"), ("sync lag", "sync_lag_seconds"),
        ("hits arena", "arena_hit_ratio"),
    )  # fmt: skip
    _COLUMNS = ("pid", "role", "state", "memory", "for", "works on")

    def __init__(self, arena: str) -> None:
        super().__init__()
        self._arena = arena

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield Static(f"[b]{self._arena}[/b]", id="head")
        with Grid(id="tiles"):
            for name, series in self._TILES:
                yield Tile(name, series)
        with Horizontal(id="middle"):
            yield Static(id="room")
            yield Static(id="numbers")
        yield DataTable(id="processes", cursor_type="row", zebra_stripes=True)
        yield Static(id="locks")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        self.query_one(DataTable).add_columns(*self._COLUMNS)
        super().on_mount()

    def found(self) -> list[Look]:
        """Look at the arena."""
        return [self.app.arenas.look(self._arena)]

    def show(self, looks: list[Look]) -> None:
        """Fill the screen."""
        look = looks[0]
        head = Text.assemble((self._arena, "bold"))
        if look.snapshot is None or look.figures is None:
            head.append(f"  {look.problem}", "red")
            self.query_one("#head", Static).update(head)
            return
        snapshot, figures = look.snapshot, look.figures
        head.append(f"  {size(snapshot.size)}  {'SharedMapping' if snapshot.is_mapping else 'executors'}  ", "dim")
        head.append("; ".join(look.problems) or "ready", "red" if look.problems else "green")
        self.query_one("#head", Static).update(head)
        values = (
            number(figures.gets), number(figures.puts), number(figures.nodes), ratio(figures.decoded_hit_ratio),
            number(sum(ring.entries for ring in snapshot.rings)),
            duration(max(ring.oldest_seconds for ring in snapshot.rings)), duration(figures.sync_lag_seconds),
            ratio(figures.arena_hit_ratio),
        )  # fmt: skip
        for tile, value in zip(self.query(Tile), values, strict=True):
            tile.show(value, look.points)
        self.query_one("#room", Static).update(room(snapshot))
        self.query_one("#numbers", Static).update(numbers(look))
        self._show_processes(snapshot)
        self.query_one("#locks", Static).update(locks(snapshot))

    def _show_processes(self, snapshot: Snapshot) -> None:
        table: DataTable[Text | str] = self.query_one(DataTable)
        row, scroll = table.cursor_row, table.scroll_y
        table.clear()
        for each in snapshot.processes:
            style = "red" if each.state in ("dead", "stopped") else "green" if each.state == "working" else ""
            table.add_row(
                right(str(each.pid)), each.role, Text(each.state, style), right(size(each.private_bytes)),
                right(duration(each.seconds) if each.seconds else ""), Text(each.doing),
            )  # fmt: skip
        table.move_cursor(row=min(row, max(0, len(snapshot.processes) - 1)), scroll=False)
        table.scroll_to(y=scroll, animate=False)

    # Keys

    def action_drain(self) -> None:
        """Have what waits carried to the database now."""
        self._do(partial(actions.drain, self._arena))

    def action_flush(self) -> None:
        """Have it carried, and wait until it is there."""
        self.notify("waiting until all is in PostgreSQL ...", timeout=3)
        self._do(partial(actions.flush, self._arena, FLUSH_SECONDS))

    def action_elect(self) -> None:
        """Ask the leading syncer to end, once that is confirmed."""

        def decide(sure: bool | None) -> None:
            if sure:
                self._do(partial(actions.elect, self._arena))

        question = "Ask the syncer that leads to end after its batch? Another one takes over at once; nothing is lost."
        self.app.push_screen(Confirm(question), decide)

    def action_letters(self) -> None:
        """Show what the database refused."""
        self.app.push_screen(LettersScreen())

    @work(thread=True, group="keys")  # a look that begins ends those of its own group
    def _do(self, action: Callable[[], str]) -> None:
        try:
            said = action()
        except (ShmcacheError, OSError) as error:
            self.app.call_from_thread(self.app.notify, str(error), severity="error", timeout=10, markup=False)
        else:
            self.app.call_from_thread(self.app.notify, said, timeout=8, markup=False)
        self.app.call_from_thread(self.look)


class Confirm(ModalScreen[bool]):
    """A question that is answered with y or n."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"), Binding("n,escape", "answer(False)", "no")
    ]  # fmt: skip

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """Lay out the question."""
        with Vertical():
            yield Label(self._question)
            yield Label("\n[b]y[/b] yes   [b]n[/b] no")

    def action_answer(self, answer: bool) -> None:
        """Close with the answer."""
        self.dismiss(answer)


class LettersScreen(Screen[None]):
    """What the database refused, and why."""

    app: Top
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "back"), Binding("r", "reload", "read again"), _QUIT
    ]  # fmt: skip

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield Static("reading dead letters ...", id="head")
        yield DataTable(id="letters", cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Read them."""
        self.query_one(DataTable).add_columns("id", "put aside", "ring", "sequence", "tries", "SQLSTATE", "error")
        self.action_reload()

    @work(thread=True, exclusive=True)
    def action_reload(self) -> None:
        """Read them from the database."""
        try:
            letters = actions.dead_letters(self.app.settings)
        except ShmcacheError as error:
            self.app.call_from_thread(self.query_one("#head", Static).update, Text(str(error), "red"))
            return
        rows = [
            (right(str(each.id)), f"{each.put_aside_at:%Y-%m-%d %H:%M:%S}", each.ring, right(str(each.sequence)),
             right(str(each.tries)), each.sqlstate or "-", Text(each.error.split("\n", maxsplit=1)[0]))
            for each in letters
        ]  # fmt: skip
        self.app.call_from_thread(self._show, rows)

    def _show(self, rows: list[tuple[Text | str, ...]]) -> None:
        table: DataTable[Text | str] = self.query_one(DataTable)
        table.clear()
        for row in rows:
            table.add_row(*row)
        said = (
            f"{len(rows):,} dead letter{'s' * (len(rows) != 1)}; shmcache dead-letters shows, replays and discards them"
        )
        self.query_one("#head", Static).update(said if rows else "no dead letters")
