"""What runs leave in the database, less identifiers and times: two runs of one graph compare equal, row by row."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from shmcache.database.connection import connect

_NODES = """
    SELECT e.id, e.graph_execution_id, n.name, e.status, e.stats FROM node_executions e JOIN nodes n ON n.id = e.node_id
"""
_INPUTS = """
    SELECT i.node_execution_id, i.name, i.value, i.source_ordinal, n.name
    FROM node_execution_inputs i
    LEFT JOIN node_executions e ON e.id = i.source_execution_id
    LEFT JOIN nodes n ON n.id = e.node_id
"""
_OUTPUTS = (
    "SELECT node_execution_id, ordinal, name, value FROM node_execution_outputs ORDER BY node_execution_id, ordinal"
)
_LEDGER = "SELECT amount, reason, node_execution_id FROM ledger"


def rows_left_behind(database_url: str) -> dict[str, list[str]]:
    """Return all rows of executions, inputs, outputs, charges and accounts, each as a text, sorted, by table."""
    with connect(database_url, application_name="test") as connection:
        nodes = connection.execute(_NODES).fetchall()
        name_of = {row[0]: row[2] for row in nodes}
        graphs = connection.execute(
            "SELECT g.name, e.status, e.stats, e.inputs FROM graph_executions e JOIN graphs g ON g.id = e.graph_id"
        ).fetchall()
        inputs = connection.execute(_INPUTS).fetchall()
        outputs = connection.execute(_OUTPUTS).fetchall()
        charges = connection.execute(_LEDGER).fetchall()
        accounts = connection.execute("SELECT opening_balance, balance, execution_count FROM accounts").fetchall()
    return {
        "graph_executions": _texts(graphs),
        "node_executions": _texts((name, status, stats) for _, _, name, status, stats in nodes),
        "inputs": _texts((name_of[row[0]], *row[1:]) for row in inputs),
        "outputs": _texts((name_of[row[0]], *row[1:]) for row in outputs),
        # The fee falls on whichever execution was the hundredth: that depends on who was faster.
        "ledger": _texts((row[0], row[1], name_of.get(row[2]) if row[1] != "fee" else None) for row in charges),
        "accounts": _texts(accounts),
    }


def _texts(rows: Iterable[Iterable[Any]]) -> list[str]:
    return sorted(json.dumps(list(row), sort_keys=True, default=str) for row in rows)
