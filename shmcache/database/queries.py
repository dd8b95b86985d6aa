"""What is read from the database, as records; and the definitions and accounts that are written at once.

Every `load_` function is one round trip."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg.types.json import Jsonb

from shmcache.codec import json_text
from shmcache.database.numbers import exact_floats
from shmcache.database.statements import statement
from shmcache.frozen import FrozenDict, FrozenList, freeze
from shmcache.records import (
    Account,
    ExecutionStatus,
    Graph,
    GraphExecution,
    InputSource,
    Link,
    NodeDefinition,
    NodeExecution,
)

Connection = psycopg.Connection[Any]


class Definition(NamedTuple):
    """A graph with its nodes; `version` (a UUID) is another one after each change in the database."""

    graph: Graph
    nodes: list[NodeDefinition]
    version: str

    def records(self) -> list[Graph | NodeDefinition]:
        """Return the graph, then its nodes."""
        return [self.graph, *self.nodes]


def _jsonb(value: Any) -> Jsonb:
    return Jsonb(value, dumps=lambda each: exact_floats(json_text(each)))


def save_graph(connection: Connection, graph: Graph, nodes: Sequence[NodeDefinition]) -> None:
    """Save a graph and its nodes. A graph that is there already is left as it is: its id names its content."""
    links = list(dict.fromkeys(link for node in nodes for link in node.output_links))
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(statement("save_graph"), {"id": graph.id, "name": graph.name, "starts": _jsonb(graph.starts)})
        cursor.executemany(
            statement("save_node"),
            [
                {
                    **{name: getattr(node, name) for name in ("id", "graph_id", "name", "block_id")},
                    "position": position,
                    "input_default": _jsonb(node.input_default),
                    "constants": _jsonb(node.constants),
                }
                for position, node in enumerate(nodes)
            ],
        )
        cursor.executemany(
            statement("save_link"),
            [{**link._asdict(), "graph_id": graph.id, "position": position} for position, link in enumerate(links)],
        )


def load_graph(connection: Connection, graph_id: str) -> Definition | None:
    """Return a graph and its nodes, or None."""
    return _graph(connection, "load_graph", graph_id)


def load_graph_of_node(connection: Connection, node_id: str) -> Definition | None:
    """Return the graph that a node is part of, and all its nodes, or None."""
    return _graph(connection, "load_graph_of_node", node_id)


def graph_versions(connection: Connection, graph_ids: Collection[str]) -> dict[str, str]:
    """Return the versions of those of some graphs that are there."""
    rows = connection.execute(statement("graph_versions"), {"ids": list(graph_ids)})
    return {str(graph_id): str(version) for graph_id, version in rows}


def _graph(connection: Connection, name: str, identifier: str) -> Definition | None:
    row = connection.execute(statement(name), {"id": identifier}).fetchone()
    if row is None:
        return None
    graph_id = str(row[0])
    incoming: dict[str, list[Link]] = {}
    outgoing: dict[str, list[Link]] = {}
    for fields in row[4]:
        link = Link(*fields)
        outgoing.setdefault(link.source_node_id, []).append(link)
        incoming.setdefault(link.sink_node_id, []).append(link)
    nodes = [
        NodeDefinition(
            node_id,
            graph_id,
            node_name,
            block_id,
            freeze(input_default),
            freeze(constants),
            tuple(incoming.get(node_id, ())),
            tuple(outgoing.get(node_id, ())),
        )
        for node_id, node_name, block_id, input_default, constants in row[3]
    ]
    graph = Graph(graph_id, row[1], FrozenList(node.id for node in nodes), freeze(row[2]))
    return Definition(graph, nodes, str(row[5]))


def load_node(connection: Connection, node_id: str) -> NodeDefinition | None:
    """Return one node with its links, or None."""
    row = connection.execute(statement("load_node"), {"id": node_id}).fetchone()
    if row is None:
        return None
    links_in, links_out = (tuple(Link(*fields) for fields in links) for links in row[6:])
    return NodeDefinition(str(row[0]), str(row[1]), row[2], row[3], freeze(row[4]), freeze(row[5]), links_in, links_out)


def load_graph_execution(connection: Connection, graph_exec_id: str) -> GraphExecution | None:
    """Return a graph execution, or None."""
    row = connection.execute(statement("load_graph_execution"), {"id": graph_exec_id}).fetchone()
    return None if row is None else graph_execution(row)


def graph_execution(row: Sequence[Any]) -> GraphExecution:
    """Return the record of a row as `sql/load_graph_execution.sql` gives it."""
    return GraphExecution(
        str(row[0]), str(row[1]), str(row[2]), ExecutionStatus(row[3]), freeze(row[4]),
        float(row[5]), _time(row[6]), _time(row[7]), freeze(row[8]), row[9],
    )  # fmt: skip


def load_node_execution(connection: Connection, node_exec_id: str) -> NodeExecution | None:
    """Return a node execution with its inputs and outputs, or None."""
    row = connection.execute(statement("load_node_execution"), {"id": node_exec_id}).fetchone()
    return None if row is None else node_execution(row)


def load_node_executions(
    connection: Connection,
    graph_exec_id: str,
    node_id: str | None = None,
    block_ids: Collection[str] | None = None,
    statuses: Collection[ExecutionStatus] | None = None,
    limit: int | None = None,
) -> list[NodeExecution]:
    """Return the executions of a graph execution that match all filters, oldest first, at most `limit`."""
    rows = connection.execute(
        statement("load_node_executions"),
        {
            "graph_exec_id": graph_exec_id,
            "node_id": node_id,
            "block_ids": None if block_ids is None else list(block_ids),
            "statuses": None if statuses is None else [status.value for status in statuses],
            "limit": limit,
        },
    ).fetchall()
    return [node_execution(row) for row in rows]


def load_latest_node_execution(connection: Connection, node_id: str, graph_exec_id: str) -> NodeExecution | None:
    """Return the youngest execution of a node in a graph execution, or None."""
    row = connection.execute(
        statement("load_latest_node_execution"), {"node_id": node_id, "graph_exec_id": graph_exec_id}
    ).fetchone()
    return None if row is None else node_execution(row)


def node_execution(row: Sequence[Any]) -> NodeExecution:
    """Return the record of a row of the view node_execution_records."""
    outputs: dict[str, list[Any]] = {}
    for name, value in row[8]:
        outputs.setdefault(name, []).append(freeze(value))
    return NodeExecution(
        id=str(row[0]),
        graph_exec_id=str(row[1]),
        node_id=str(row[2]),
        block_id=row[3],
        user_id=str(row[4]),
        status=ExecutionStatus(row[5]),
        inputs=freeze(row[6]),
        sources=FrozenDict({name: InputSource(*source) for name, source in row[7].items()}),
        outputs=FrozenDict({name: FrozenList(values) for name, values in outputs.items()}),
        output_count=len(row[8]),
        created_at=float(row[9]),
        queued_at=_time(row[10]),
        started_at=_time(row[11]),
        ended_at=_time(row[12]),
        stats=freeze(row[13]),
        moves=row[14],
    )


def load_account(connection: Connection, user_id: str) -> Account | None:
    """Return a user's account, or None."""
    row = connection.execute(statement("load_account"), {"user_id": user_id}).fetchone()
    return None if row is None else Account(str(row[0]), *row[1:])


def create_account(connection: Connection, user_id: str, opening_balance: int) -> Account:
    """Open an account with some credits; return it. One that is there already is returned as it is."""
    connection.execute(statement("create_account"), {"user_id": user_id, "balance": opening_balance})
    account = load_account(connection, user_id)
    assert account is not None
    return account


def _time(value: Any) -> float | None:
    return None if value is None else float(value)
