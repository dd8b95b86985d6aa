"""How one writes rows of node executions to PostgreSQL without us: one by one, executemany, a pipeline, COPY.

All write the same Python values into our own tables, and turn values into JSON as they do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg

Connection = psycopg.Connection[Any]

_COLUMNS = {
    "node_executions": (
        "id", "graph_execution_id", "node_id", "status", "created_at", "queued_at", "started_at", "ended_at", "stats",
    ),
    "node_execution_inputs": ("node_execution_id", "name", "value", "time"),
    "node_execution_outputs": ("node_execution_id", "ordinal", "name", "value", "time"),
}  # fmt: skip


class Executed(NamedTuple):
    """A node execution with one input and one output: three rows."""

    id: str
    graph_exec_id: str
    node_id: str
    input_value: Any
    output_value: Any
    time: float


ROWS_EACH = 3


def _rows(executed: Sequence[Executed]) -> Mapping[str, Iterator[tuple[Any, ...]]]:
    dumps = json.dumps

    def time_of(each: Executed) -> datetime:
        return datetime.fromtimestamp(each.time, UTC)

    return {
        "node_executions": (
            (each.id, each.graph_exec_id, each.node_id, "COMPLETED", at, at, at, at, "{}")
            for each in executed
            for at in (time_of(each),)
        ),
        "node_execution_inputs": ((each.id, "value", dumps(each.input_value), time_of(each)) for each in executed),
        "node_execution_outputs": (
            (each.id, 0, "result", dumps(each.output_value), time_of(each)) for each in executed
        ),
    }


def _insert(table: str) -> str:
    columns = _COLUMNS[table]
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(['%s'] * len(columns))})"  # noqa: S608


def one_by_one(connection: Connection, executed: Sequence[Executed]) -> None:
    """An INSERT and its commit for each row."""
    for table, rows in _rows(executed).items():
        insert = _insert(table)
        for row in rows:
            connection.execute(insert, row, prepare=True)


def with_executemany(connection: Connection, executed: Sequence[Executed]) -> None:
    """One executemany for each table, in one transaction."""
    with connection.transaction(), connection.cursor() as cursor:
        for table, rows in _rows(executed).items():
            cursor.executemany(_insert(table), list(rows))


def in_a_pipeline(connection: Connection, executed: Sequence[Executed]) -> None:
    """Single INSERTs sent without waiting for each answer, in one transaction."""
    with connection.pipeline(), connection.transaction():
        for table, rows in _rows(executed).items():
            insert = _insert(table)
            for row in rows:
                connection.execute(insert, row, prepare=True)


def by_copy(connection: Connection, executed: Sequence[Executed]) -> None:
    """One COPY for each table, in one transaction: the fastest there is."""
    with connection.transaction(), connection.cursor() as cursor:
        for table, rows in _rows(executed).items():
            with cursor.copy(f"COPY {table} ({', '.join(_COLUMNS[table])}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)


WAYS: Mapping[str, Callable[[Connection, Sequence[Executed]], None]] = {
    "COPY": by_copy,
    "executemany": with_executemany,
    "pipeline": in_a_pipeline,
    "one by one": one_by_one,
}
