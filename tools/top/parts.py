"""Parts of the screens of `shmcache top`: what a look found, as text and tables."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Label, Sparkline

from tools.monitoring.figures import Point
from tools.monitoring.reader import Snapshot
from tools.top.texts import bar, duration, number, size
from tools.top.watching import Look

_BAR = 14
COLUMNS_OF_ARENAS = (
    "arena", "of", "processes", "records", "in use", "gets/s", "puts/s", "unsynced", "oldest", "state"
)  # fmt: skip


def arena_row(look: Look) -> list[Text | str]:
    """Return an arena's row in the list."""
    snapshot, figures = look.snapshot, look.figures
    if snapshot is None or figures is None:
        return [look.name, *[""] * 8, Text(look.problem, "red")]
    wrong = Text("; ".join(look.problems), "red") if look.problems else Text("ready", "green")
    alive = sum(process.state != "dead" for process in snapshot.processes)
    return [
        look.name, "SharedMapping" if snapshot.is_mapping else "executors", right(str(alive)),
        right(number(snapshot.occupancy.records)),
        right(f"{size(snapshot.occupancy.live_bytes)} of {size(snapshot.size)}"),
        right(number(figures.gets)), right(number(figures.puts)),
        right(number(sum(ring.entries for ring in snapshot.rings))),
        right(duration(max(ring.oldest_seconds for ring in snapshot.rings))), wrong,
    ]  # fmt: skip


def right(text: str) -> Text:
    """Return a cell that ends where its column does."""
    return Text(text, justify="right")


class Tile(Vertical):
    """A figure and its last minutes."""

    def __init__(self, name: str, series: str) -> None:
        super().__init__(classes="tile")
        self._title = name
        self._series = series

    def compose(self) -> ComposeResult:
        """Lay out the tile."""
        yield Label(self._title)
        yield Sparkline([], summary_function=max)

    def show(self, value: str, points: tuple[Point, ...]) -> None:
        """Show the value of now, and the last minutes."""
        self.query_one(Label).update(Text.assemble((f"{self._title} ", "dim"), (value, "bold")))
        values = [getattr(point, self._series) or 0.0 for point in points]
        self.query_one(Sparkline).data = values[-2 * max(self.size.width, 10) :]


def room(snapshot: Snapshot) -> Table:
    """Return how full the parts of an arena are."""
    table = Table.grid(padding=(0, 1))
    for fill in snapshot.fills:
        written = size if fill.is_bytes else number
        fullness = fill.used / fill.size if fill.size else 0.0
        style = "red" if fullness > 0.8 and not fill.grows else "green"
        shown = Text("grows", "dim") if fill.grows else Text(bar(fullness, _BAR), style)
        table.add_row(Text(fill.name, "dim"), shown, right(f"{written(fill.used)} of {written(fill.size)}"))
    return table


def numbers(look: Look) -> Table:
    """Return what is on its way and what was done."""
    snapshot, figures = look.snapshot, look.figures
    assert snapshot is not None
    assert figures is not None
    counters = snapshot.counters
    table = Table.grid(padding=(0, 1))
    for ring in snapshot.rings:
        leader = f"by {ring.leader_pid}, epoch {ring.epoch}" if ring.leader_pid else "led by nobody"
        style = "" if ring.leader_pid or snapshot.is_mapping else "red"
        table.add_row(Text(f"{ring.name} ring", "dim"), Text(f"{number(ring.entries)} waiting, {leader}", style))
    batches = snapshot.histograms["write_batch_entries"].total
    table.add_row(
        Text("batches", "dim"), f"{number(batches)}, commit {duration(figures.commit_seconds)}, "
        f"{number(counters['retries'])} retries"
    )  # fmt: skip
    letters = counters["dead_letters"]
    table.add_row(Text("dead letters", "dim"), Text(number(letters), "red" if letters else ""))
    held, owed = snapshot.credits.held, snapshot.credits.owed
    table.add_row(
        Text("charges", "dim"), Text.assemble(
            f"{number(counters['charges_settled'])} settled, {number(held)} held, ",
            (f"{number(owed)} in debt", "red" if owed else ""),
        )
    )  # fmt: skip
    table.add_row(Text("work", "dim"), f"{number(snapshot.work_outstanding)} outstanding, "
                  f"{number(counters['restarts'])} restarts")  # fmt: skip
    return table


def locks(snapshot: Snapshot) -> Text:
    """Return who holds which lock."""
    if not snapshot.locks:
        return Text("locks: none held at this instant", "dim")
    text = Text("locks: ", "dim")
    for place, lock in enumerate(snapshot.locks):
        state = ", died" if lock.died else ", others wait" if lock.waited_for else ""
        text.append(f"{'; ' if place else ''}{lock.lock} by {lock.pid}{state}", "red" if state else "")
    return text
