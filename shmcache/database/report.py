"""What runs came to, counted in the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg

from shmcache.database.statements import statement


class RunFigures(NamedTuple):
    """Counts of rows and sums of credits of some graph executions and the accounts that they charged."""

    graph_executions: int
    graph_executions_by_status: dict[str, int]
    node_executions: int
    completed: int
    failed: int
    terminated: int
    outputs: int
    charges: int
    credits_charged: int
    opening_balance: int
    closing_balance: int


def summarize(
    connection: psycopg.Connection[Any], graph_exec_ids: Sequence[str], user_ids: Sequence[str]
) -> RunFigures:
    """Return the figures of some graph executions; charges are those of these executions, balances of these users."""
    row = connection.execute(
        statement(connection, "summarize"), {"graph_exec_ids": list(graph_exec_ids), "user_ids": list(user_ids)}
    ).fetchone()
    assert row is not None
    by_graph, by_node, outputs, charges, credits_charged, opening, closing = row
    return RunFigures(
        sum(by_graph.values()),
        by_graph,
        sum(by_node.values()),
        by_node.get("COMPLETED", 0),
        by_node.get("FAILED", 0),
        by_node.get("TERMINATED", 0),
        outputs,
        charges,
        int(credits_charged),
        int(opening),
        int(closing),
    )
