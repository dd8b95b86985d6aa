"""What was acknowledged, beside what is in the database: nothing lost, nothing twice, nothing out of order.

A write is looked for by its key. What is acknowledged must be there; what is there must have been acknowledged, or be
part of a call whose caller died before it was told.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from shmcache.database.audit import find_differences
from shmcache.records import FINAL_STATUSES
from tools.chaos.faults import Window
from tools.chaos.journal import digest

_ROWS_AT_ONCE = 5_000
_MOST_EXAMPLES = 20
_FINAL = [status.value for status in FINAL_STATUSES]


class Found(NamedTuple):
    """What came of a run: counts that must be 0, then others; `examples` has some of what is wrong, in words."""

    lost: int
    duplicated: int
    reordered: int
    overdrawn: int
    unbalanced: int
    not_ended: int
    acknowledged: int
    undecided: int
    dead_letters: int
    stall: Stall
    longest_call_ms: float
    examples: list[str]


class Stall(NamedTuple):
    """The longest that a call of a worker took which outlived it: how long, less the time that it could run and no core
    was free; which process, since when (monotonic)."""

    milliseconds: float
    pid: int
    began: float


class Journals:
    """What the journals of a directory say: by kind of write and key, what is acknowledged and what undecided."""

    def __init__(self, directory: Path, windows: Sequence[Window]) -> None:
        self.sure: dict[str, dict[Any, list[Any]]] = {kind: {} for kind in "EIOSCGPK"}
        self.unsure: dict[str, dict[Any, list[Any]]] = {kind: {} for kind in "EIOSCGPK"}
        self.acknowledged = 0
        self.undecided = 0
        self.stall = Stall(0.0, 0, 0.0)
        self.longest_call_ms = 0.0
        self._windows = windows
        for path in sorted(directory.iterdir()):
            self._read(path)

    def _read(self, path: Path) -> None:
        tried: dict[int, list[list[Any]]] = {}
        pid = path.name.partition("-")[0]
        for line in path.read_bytes().splitlines():
            try:
                kind, number, *rest = json.loads(line)
            except ValueError:
                continue  # cut off by the death of its writer
            if kind == "T":
                tried[number] = rest[0]
                continue
            writes = tried.pop(number, [])
            if kind == "D":
                self._add(self.sure, writes)
                self.acknowledged += len(writes)
                self._note_stall(pid, *rest)
        for writes in tried.values():
            self.undecided += 1
            self._add(self.unsure, writes)

    @staticmethod
    def _add(known: dict[str, dict[Any, list[Any]]], writes: Iterable[list[Any]]) -> None:
        for kind, identifier, *rest in writes:
            if kind in "IO":
                known[kind].setdefault((identifier, rest[0]), []).append(tuple(rest[1:]))
                known["E"].setdefault(identifier, [])
            else:
                known[kind].setdefault(identifier, []).append(tuple(rest))

    def _note_stall(self, pid: str, began: float, seconds: float, idle_ms: int = 0) -> None:
        """A call that took long, less the time that its worker or everybody was stopped for or the database was away,
        and that it waited for a core."""
        if seconds * 1e3 <= self.stall.milliseconds:
            return
        ended = began + seconds
        meant = sorted(
            (max(each.began, began), min(each.ended, ended))
            for each in self._windows
            if each.what in (pid, "all", "database") and each.began < ended and each.ended > began
        )
        reached = began
        for start, end in meant:
            seconds -= max(0.0, end - max(start, reached))
            reached = max(reached, end)
        milliseconds = round(seconds * 1e3, 1)
        self.longest_call_ms = max(self.longest_call_ms, milliseconds)
        if milliseconds - idle_ms > self.stall.milliseconds:
            self.stall = Stall(round(milliseconds - idle_ms, 1), int(pid), began)

    def knows(self, kind: str, key: Any) -> bool:
        """Say whether anybody was about to write this."""
        return key in self.sure[kind] or key in self.unsure[kind]

    def allowed(self, kind: str, key: Any) -> list[Any]:
        """Return what may be there under a key."""
        return [*self.sure[kind].get(key, ()), *self.unsure[kind].get(key, ())]


class _Comparison:
    """Counts differences, and keeps some of them in words."""

    def __init__(self, connection: psycopg.Connection[Any], journals: Journals) -> None:
        self._connection = connection
        self._journals = journals
        self.counts: Counter[str] = Counter()
        self.examples: list[str] = []

    def note(self, what: str, text: str, count: int = 1) -> None:
        """Count a difference."""
        if count:
            self.counts[what] += count
            if len(self.examples) < _MOST_EXAMPLES:
                self.examples.append(f"{what}: {text}")

    def rows(self, query: str) -> Iterable[tuple[Any, ...]]:
        """Return the rows of a query, some at a time."""
        with self._connection.transaction(), self._connection.cursor("chaos") as cursor:
            cursor.itersize = _ROWS_AT_ONCE
            yield from cursor.execute(query)

    def compare_values(self, kind: str, query: str) -> None:
        """Compare inputs or outputs: rows of (execution, key, name or None, value)."""
        journals, seen = self._journals, set()
        for identifier, place, *name, value in self.rows(query):
            key = (identifier, place)
            seen.add(key)
            allowed = journals.allowed(kind, key)
            if not allowed:
                self.note("duplicated", f"{kind} {key} was written by nobody")
            elif (*name, digest(value)) not in allowed:
                self.note("lost", f"{kind} {key} has another value than was written")
        for key in journals.sure[kind]:
            if key not in seen:
                self.note("lost", f"{kind} {key}")

    def compare_moves(self, kind: str, query: str) -> None:
        """Compare statuses: rows of (execution, status, moves). One that has moved on since is as good."""
        journals, seen = self._journals, set()
        for identifier, status, moves in self.rows(query):
            seen.add(identifier)
            acknowledged = journals.sure[kind].get(identifier, ())
            most = max((each[1] for each in acknowledged), default=0)
            if moves < most:
                self.note("lost", f"{kind} {identifier}: it moved {most} times, the database has {moves}")
            elif moves == most and acknowledged and (status, moves) not in journals.allowed(kind, identifier):
                self.note("lost", f"{kind} {identifier}: the database has {status} after {moves} moves")
            if not journals.knows("G" if kind == "G" else "E", identifier):
                self.note("duplicated", f"{kind} {identifier} was made by nobody")
        for identifier in journals.sure["G" if kind == "G" else "E"]:
            if identifier not in seen:
                self.note("lost", f"{kind} {identifier}")

    def compare_charges(self) -> None:
        """Compare what executions cost with the ledger."""
        journals, seen = self._journals, set()
        query = (
            "SELECT node_execution_id::text, -sum(amount - owed)::int8 FROM ledger "
            "WHERE node_execution_id IS NOT NULL GROUP BY 1"
        )
        for identifier, paid in self.rows(query):
            seen.add(identifier)
            allowed = [each[0] for each in journals.allowed("C", identifier)]
            if not allowed:
                self.note("duplicated", f"{paid} credits were charged for {identifier} by nobody")
            elif paid not in allowed:
                self.note(
                    "duplicated" if paid > max(allowed) else "lost",
                    f"{identifier} cost {allowed}, the ledger has {paid}",
                )
        for identifier, costs in journals.sure["C"].items():
            if identifier not in seen and any(each[0] for each in costs):
                self.note("lost", f"the charge for {identifier}")

    def compare_spends(self) -> None:
        """Compare what users spent on anything else with the ledger."""
        journals, seen = self._journals, set()
        for key, paid in self.rows("SELECT transaction_key, (owed - amount)::int8 FROM ledger WHERE reason = 'spend'"):
            seen.add(key)
            if (paid,) not in (allowed := journals.allowed("K", key)):
                self.note("duplicated", f"{paid} credits were spent as {key}, which was to cost {allowed}")
        for key, costs in journals.sure["K"].items():
            if key not in seen and any(each[0] for each in costs):
                self.note("lost", f"the {costs[0][0]} credits spent as {key}")

    def compare_letters(self) -> int:
        """Compare dead letters with the poisoned rows that were written; return how many there are."""
        sure, unsure = (sum(map(len, known["P"].values())) for known in (self._journals.sure, self._journals.unsure))
        row = self._connection.execute("SELECT count(*) FROM dead_letters").fetchone()
        assert row is not None
        letters = int(row[0])
        self.note("lost", "dead letters", max(0, sure - letters))
        self.note("duplicated", "dead letters", max(0, letters - sure - unsure))
        return letters

    def compare_runs(self) -> None:
        """Compare the completed executions of each graph with one another: they all did the same."""
        query = """
            SELECT g.graph_id::text, executions, outputs, count(*) FROM (
                SELECT e.graph_execution_id AS id, count(*) AS executions, coalesce(sum(o.number), 0)::int8 AS outputs
                FROM node_executions e LEFT JOIN (
                    SELECT node_execution_id AS id, count(*) AS number FROM node_execution_outputs GROUP BY 1
                ) o ON o.id = e.id GROUP BY 1
            ) n RIGHT JOIN graph_executions g USING (id) WHERE g.status = 'COMPLETED' GROUP BY 1, 2, 3 ORDER BY 4 DESC
        """
        usual: dict[str, tuple[int, int]] = {}
        for graph_id, executions, outputs, count in self._connection.execute(query).fetchall():
            expected = usual.setdefault(graph_id, (executions, outputs))
            if (executions, outputs) != expected:
                what = "duplicated" if (executions, outputs) > expected else "lost"
                self.note(what, f"graph {graph_id} ran as {executions} nodes with {outputs} outputs", count)

    def count(self, what: str, query: str, *arguments: Any) -> None:
        """Count what a query finds."""
        for row in self._connection.execute(query, arguments).fetchall():
            self.note(what, " ".join(map(str, row)))


def verify(connection: psycopg.Connection[Any], journals: Journals, arena_differences: Sequence[str]) -> Found:
    """Compare journals with the database; `arena_differences` is what the arena's own check has found."""
    # What a run has filled in minutes, much of it while autovacuum was killed, the server plans as if it were empty.
    connection.execute("ANALYZE")
    found = _Comparison(connection, journals)
    found.compare_moves("S", "SELECT id::text, status, moves FROM node_executions")
    found.compare_moves("G", "SELECT id::text, status, moves FROM graph_executions")
    found.compare_values("I", "SELECT node_execution_id::text, name, value FROM node_execution_inputs")
    found.compare_values("O", "SELECT node_execution_id::text, ordinal, name, value FROM node_execution_outputs")
    found.compare_charges()
    found.compare_spends()
    found.compare_runs()
    letters = found.compare_letters()
    found.count(
        "reordered",
        "SELECT id, ordinal FROM (SELECT node_execution_id AS id, ordinal, time, "
        "lag(time) OVER (PARTITION BY node_execution_id ORDER BY ordinal) AS before FROM node_execution_outputs) o "
        "WHERE before > time",
    )
    found.count(
        "reordered",
        "SELECT e.id FROM node_executions e JOIN graph_executions g ON g.id = e.graph_execution_id "
        "WHERE g.status = 'COMPLETED' AND (e.ended_at IS NULL OR e.ended_at > g.ended_at)",
    )
    found.count("overdrawn", "SELECT user_id, balance, debt FROM accounts WHERE balance < 0 OR debt > 0")
    found.count("not ended", "SELECT id, status FROM graph_executions WHERE status <> ALL (%s)", _FINAL)
    found.count("unbalanced", "SELECT transaction_key, 'is held still' FROM holds")
    with connection.transaction():
        _, differences = find_differences(connection)
    for each in (*differences, *arena_differences):
        found.note("unbalanced", each)
    counts = found.counts
    return Found(
        counts["lost"], counts["duplicated"], counts["reordered"], counts["overdrawn"], counts["unbalanced"],
        counts["not ended"], journals.acknowledged, journals.undecided, letters, journals.stall,
        journals.longest_call_ms, found.examples,
    )  # fmt: skip
