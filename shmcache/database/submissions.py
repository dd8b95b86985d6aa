"""Graph executions that are handed out by a broker, and those that are to be cancelled: what the database knows.

A submission is a row that stands until its graph execution has ended. A message of a broker is only a hint that there
is one: messages may be lost, come twice or come too early. Who may run a graph execution is decided by its owner's row
(`database.ownership`), and what nobody runs is offered again from here, by a new message:

- one whose owner's lease is over, at once, and again after a while if nobody took it;
- one that nobody ever took, after a while that doubles each time, if its queue is empty: else its message waits there.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import psycopg

from shmcache.codec import json_text
from shmcache.database.numbers import exact_floats
from shmcache.database.queries import load_graph_execution
from shmcache.database.statements import statement
from shmcache.errors import NotFound
from shmcache.identifiers import id_bytes, id_text, new_id
from shmcache.records import FINAL_STATUSES, ExecutionStatus, GraphExecution

Connection = psycopg.Connection[Any]


class Submission(NamedTuple):
    """A graph execution that is to be offered, the queue that it goes to, and whether a host had it that was lost."""

    graph_exec_id: str
    queue: str
    was_owned: bool


def submit(
    connection: Connection,
    graph_id: str,
    user_id: str,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    queue: str,
    graph_version: int = 1,
    preset_id: str | None = None,
) -> str:
    """Create a QUEUED graph execution that belongs to no host yet, with its submission; return its id.

    As `ExecutionDataClient.create_graph_execution` otherwise. Raises NotFound for an unknown graph, InvalidValue."""
    identifier = new_id()
    given = {
        "id": identifier, "graph_id": id_text(id_bytes(graph_id)), "user_id": id_text(id_bytes(user_id)),
        "inputs": None if inputs is None else exact_floats(json_text(dict(inputs))), "time": time.time(),
        "graph_version": graph_version, "preset_id": preset_id,
    }  # fmt: skip
    with connection.transaction():
        if not connection.execute(statement(connection, "create_graph_execution"), given).rowcount:
            raise NotFound("graph", graph_id)
        connection.execute(statement(connection, "add_submission"), {"id": identifier, "queue": queue})
    return identifier


def offer(connection: Connection, again_seconds: float) -> list[Submission]:
    """Return what is to be offered now, and note that it is; inside the transaction in which it is sent.

    What is offered to one caller is offered to no other one for `again_seconds`. Whether the queue of what nobody ever
    took is empty is for the caller to find out."""
    # A host that is cut off now must not keep from the others what it was about to send.
    connection.execute("SET LOCAL idle_in_transaction_session_timeout = '5s'")
    rows = connection.execute(statement(connection, "offer_submissions"), {"again_seconds": again_seconds})
    return [Submission(*row) for row in rows]


def forget_ended(connection: Connection) -> None:
    """Remove the submissions and cancellations of graph executions that have ended."""
    connection.execute(statement(connection, "end_submissions"))


def submitted(connection: Connection, graph_exec_ids: Collection[str]) -> set[str]:
    """Return those of some graph executions that are handed out by a broker and not ended."""
    rows = connection.execute(statement(connection, "submitted"), {"ids": list(graph_exec_ids)})
    return {row[0] for row in rows}


def of_arena(connection: Connection, arena_id: str, limit: int) -> list[str]:
    """Return submitted graph executions that an arena owns, those offered longest ago first."""
    rows = connection.execute(statement(connection, "own_submissions"), {"arena_id": arena_id, "limit": limit})
    return [row[0] for row in rows]


def cancel(connection: Connection, graph_exec_id: str) -> ExecutionStatus:
    """Have a graph execution end as TERMINATED, wherever it is; return the status that it had.

    Its owner is told, and starts no further node of it. One that nobody has begun ends here and now.
    Raises NotFound."""
    given = {"id": id_text(id_bytes(graph_exec_id))}
    before = load_graph_execution(connection, given["id"])
    if before is None:
        raise NotFound("graph execution", graph_exec_id)
    if before.status in FINAL_STATUSES:
        return before.status
    # First the wish, in a transaction of its own, then the owner. Who takes it locks its row too, and looks the other
    # way round.
    connection.execute(statement(connection, "add_cancellation"), given)
    with connection.transaction():
        connection.execute(statement(connection, "lock_graph_execution"), given)
        if connection.execute(statement(connection, "load_owner"), given).fetchone() is None:
            _end_unowned(connection, before)
        else:
            connection.execute(statement(connection, "tell_cancellation"), given)
    return before.status


def is_cancelled(connection: Connection, graph_exec_id: str) -> bool:
    """Say whether somebody has asked to end a graph execution."""
    return connection.execute(statement(connection, "is_cancelled"), {"id": graph_exec_id}).fetchone() is not None


def cancelled_of_arena(connection: Connection, arena_id: str) -> list[str]:
    """Return the graph executions that an arena owns and is to end."""
    rows = connection.execute(statement(connection, "own_cancellations"), {"arena_id": arena_id})
    return [row[0] for row in rows]


def _end_unowned(connection: Connection, execution: GraphExecution) -> None:
    """End a graph execution that no host has begun; have one that runs without a host's arena start no further node."""
    end = ExecutionStatus.TERMINATED if execution.status is ExecutionStatus.QUEUED else None
    moved = {
        "id": execution.id, "status": end, "stats": json_text({"error": "cancelled"}), "time": time.time(),
        "allowed": [ExecutionStatus.QUEUED],
    }  # fmt: skip
    connection.execute(statement(connection, "move_graph_execution"), moved)
