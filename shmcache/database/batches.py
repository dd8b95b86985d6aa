"""A batch of rows from the write ring, written by one statement a kind.

Parents go before children: graph executions, node executions, inputs, outputs. A key that stands twice in a batch is
merged first, because one INSERT ... ON CONFLICT refuses to touch a row twice: of an execution the last row stands
(each carries the whole row), with the earliest start and, if it has ended, the latest end. Writing a batch twice leaves
the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import psycopg

from shmcache.database.arrays import plain_array, text_array
from shmcache.database.numbers import exact_floats
from shmcache.database.statements import statement
from shmcache.writes import GraphExecutionWrite, InputWrite, NodeExecutionWrite, OutputWrite, Write

E = TypeVar("E", GraphExecutionWrite, NodeExecutionWrite)


class _Executions(dict[str, E]):
    """Rows of executions by identifier, merged as they are added."""

    def __init__(self) -> None:
        super().__init__()
        self._latest_end: dict[str, float] = {}

    def add(self, row: E) -> None:
        identifier = row.id
        earlier = self.get(identifier)
        if earlier is not None and earlier.started_at is not None:
            row = row._replace(started_at=min(earlier.started_at, row.started_at or earlier.started_at))
        if row.ended_at is not None:
            latest = self._latest_end[identifier] = max(row.ended_at, self._latest_end.get(identifier, row.ended_at))
            row = row._replace(ended_at=latest) if latest != row.ended_at else row
        self[identifier] = row


def write_batch(connection: psycopg.Connection[Any], writes: Sequence[Write]) -> None:
    """Write rows inside the caller's transaction. Raises psycopg.Error as the database does."""
    graph_executions: _Executions[GraphExecutionWrite] = _Executions()
    node_executions: _Executions[NodeExecutionWrite] = _Executions()
    inputs: dict[tuple[str, str], InputWrite] = {}
    outputs: dict[tuple[str, int], OutputWrite] = {}
    for write in writes:
        if type(write) is NodeExecutionWrite:
            node_executions.add(write)
        elif type(write) is OutputWrite:
            outputs.setdefault((write.node_exec_id, write.ordinal), write)
        elif type(write) is InputWrite:
            inputs[write.node_exec_id, write.name] = write
        elif type(write) is GraphExecutionWrite:
            graph_executions.add(write)
    for name, rows in (
        ("write_graph_executions", graph_executions),
        ("write_node_executions", node_executions),
        ("write_inputs", inputs),
        ("write_outputs", outputs),
    ):
        if rows:
            _write(connection, name, rows)


def _write(connection: psycopg.Connection[Any], name: str, rows: Mapping[Any, Write]) -> None:
    # Sorted by key, so that two hosts' batches lock rows in one order.
    ordered = [rows[key] for key in sorted(rows)]
    columns = [
        _array(field, column) for field, column in zip(ordered[0]._fields, zip(*ordered, strict=True), strict=True)
    ]
    connection.execute(statement(name), columns, prepare=True)


def _array(field: str, column: Sequence[Any]) -> str:
    if field.endswith("_json"):
        return text_array([exact_floats(text) for text in column])
    return text_array(column) if field == "name" else plain_array(column)
