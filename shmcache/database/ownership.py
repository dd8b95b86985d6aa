"""Which host may write to a graph execution: leases of hosts, owners of graph executions, and what a taking shuts out.

A host owns what it makes. Another may take a graph execution when the owner's lease is over: that raises the token, and
shuts the old owner out by one row that both have to change. The old owner's every transaction moves its checkpoint
first; who takes changes that same row before the owner. So a transaction of the old owner's is either committed before
the taking, and then it was the owner's, or it begins after it and sees `checkpoints.taken`: it looks then what of its
rows is still its own. An arena from which nothing was ever taken asks nothing more than it did.

All times are the database's: clocks of hosts do not matter."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import psycopg

from shmcache.database.leases import be_brief
from shmcache.database.lost_hosts import charge_executions
from shmcache.database.queries import load_graph_execution, load_node_executions
from shmcache.database.statements import statement
from shmcache.database.submissions import is_cancelled
from shmcache.errors import InvalidValue, NotFound, NotOwner
from shmcache.identifiers import id_bytes
from shmcache.records import GraphExecution, NodeExecution
from shmcache.writes import Charge, GraphExecutionWrite, NodeExecutionWrite, Write

Connection = psycopg.Connection[Any]

_MOST_TRIES = 10


class Owner(NamedTuple):
    """Who owns a graph execution: by which token, and since which sequence of its write ring."""

    graph_exec_id: str
    arena_id: str
    token: int
    since: int


def renew_lease(connection: Connection, arena_id: str, seconds: float) -> bool:
    """Say that a host lives, and that nobody is to take what it owns for some time; return whether there are hosts that
    were lost and are not made good (`database.lost_hosts`)."""
    row = connection.execute(statement(connection, "renew_host"), {"arena_id": arena_id, "seconds": seconds}).fetchone()
    return row is not None and bool(row[0])


def release_lease(connection: Connection, arena_id: str) -> None:
    """Say that a host has ended: what it owns may be taken from now on."""
    connection.execute(statement(connection, "release_host"), {"arena_id": arena_id})


def forget_hosts(connection: Connection) -> None:
    """Remove what is known of hosts that were heard of last more than a day ago: their leases are over in any case."""
    connection.execute(statement(connection, "forget_hosts"))


def own(connection: Connection, arena_id: str, graph_exec_ids: Collection[str]) -> None:
    """Make an arena the owner of those of some graph executions that have none. In a pipeline too."""
    if graph_exec_ids:
        given = {"arena_id": arena_id, "ids": sorted(graph_exec_ids)}
        connection.execute(statement(connection, "own_graph_executions"), given, prepare=True)


def owner_of(connection: Connection, graph_exec_id: str) -> tuple[str, int] | None:
    """Return the arena that owns a graph execution, and its token; None if none does."""
    found = connection.execute(statement(connection, "load_owner"), {"id": graph_exec_id}).fetchone()
    return None if found is None else (found[0], found[1])


class Taken(NamedTuple):
    """A graph execution as it was when it was taken: the token, all that is in the database of it, and whether somebody
    has asked to end it. `record` is None where it was the taker's before: then the owner's host looks for the last."""

    token: int
    record: GraphExecution | None = None
    executions: Sequence[NodeExecution] = ()
    is_cancelled: bool = False


def take(connection: Connection, graph_exec_id: str, arena_id: str, since: int, low_balance: int = 0) -> Taken:
    """Make an arena the owner of a graph execution, and load that. Asking again gives the same token.

    One that is taken from another counts it in its statistics (`lost_hosts`), and its node executions that are RUNNING
    count an attempt (`lost_attempts`); those that have ended and are not charged are charged. `since` is how far the
    arena's write ring reaches. Waits for the old owner's transaction, if it is just in one.
    Raises NotOwner while the owner's lease lasts, NotFound."""
    given = {"id": graph_exec_id, "arena_id": arena_id, "since": since}
    for _ in range(_MOST_TRIES):
        with connection.transaction():
            be_brief(connection)
            found = connection.execute(statement(connection, "load_owner"), given).fetchone()
            if found is not None and found[0] == arena_id:
                return Taken(int(found[1]))
            if found is None:
                row = connection.execute(statement(connection, "own_unowned"), given).fetchone()
            else:
                row = _take_from(connection, given, found, low_balance)
            if row is not None:
                return Taken(
                    int(row[0]),
                    load_graph_execution(connection, graph_exec_id),
                    load_node_executions(connection, graph_exec_id),
                    # Who asks for that now finds the owner (`submissions.cancel`).
                    is_cancelled(connection, graph_exec_id),
                )
            if found is None and load_graph_execution(connection, graph_exec_id) is None:
                raise NotFound("graph execution", graph_exec_id)
    raise NotOwner(graph_exec_id, *(owner_of(connection, graph_exec_id) or ("", 0)))


def _take_from(
    connection: Connection, given: dict[str, Any], found: tuple[str, int, float], low_balance: int
) -> tuple[int] | None:
    """Take a graph execution from a host that is lost; return the new token, None if another was quicker."""
    owner, token, seconds = found
    if seconds > 0:
        raise NotOwner(given["id"], owner, token, seconds)
    connection.execute(statement(connection, "note_taking"), {"arena_id": owner})
    # step: shut
    row = connection.execute(
        statement(connection, "take_graph_execution"), {**given, "from": owner, "token": token}
    ).fetchone()
    # step: taken
    if row is not None:
        charge_executions(connection, [given["id"]], owner, low_balance)
        # step: charged
        # Before anybody loads it: what ran there was an attempt, also where nobody there lives to count it.
        connection.execute(statement(connection, "count_lost_attempts"), given)
        connection.execute(statement(connection, "count_lost_host"), given)
    return row


def lost(
    connection: Connection, arena_id: str, rows: Iterable[tuple[int, Write]], *, lock: bool = False
) -> dict[int, NotOwner]:
    """Return which rows of an arena (with their sequences on its write ring) are not its own to write, and why.

    `lock` keeps what is found so until the caller's transaction ends, for who has not moved the checkpoint."""
    if lock:
        connection.execute(statement(connection, "lock_checkpoint"), {"arena_id": arena_id})
    known = list(rows)
    graph_of = {row.id: row.graph_exec_id for _, row in known if isinstance(row, NodeExecutionWrite)}
    concerned = {sequence: _concerned(row, graph_of) for sequence, row in known}
    graph_execs = {key for key, is_node in concerned.values() if key and not is_node}
    node_execs = {key for key, is_node in concerned.values() if key and is_node}
    owners = {
        key: Owner(*owner)
        for key, *owner in connection.execute(
            statement(connection, "owners_of"), {"graph_execs": list(graph_execs), "node_execs": list(node_execs)}
        )
    }
    found: dict[int, NotOwner] = {}
    for sequence, (key, _) in concerned.items():
        owner = owners.get(key)
        if owner is not None and (owner.arena_id != arena_id or sequence <= owner.since):
            found[sequence] = NotOwner(owner.graph_exec_id, owner.arena_id, owner.token)
    return found


def lost_charges(connection: Connection, arena_id: str, charges: Iterable[tuple[int, Charge]]) -> dict[int, NotOwner]:
    """Return which charges of an arena (by any numbers) are for node executions that never came to be, and why.

    An execution whose row is there was its host's when that wrote it, and who took it over charges it under the same
    key. One whose row is not there, of a graph execution that was taken once, was done elsewhere by another execution;
    also if its host has taken that back since. So rows go before charges (`ChargePool`)."""
    known = [
        (number, each) for number, each in charges if _is_named(each.node_exec_id) and _is_named(each.graph_exec_id)
    ]
    if not known:
        return {}
    given = {
        "arena_id": arena_id,
        "node_execs": [each.node_exec_id for _, each in known],
        "graph_execs": [each.graph_exec_id for _, each in known],
    }
    rows = connection.execute(statement(connection, "lost_charges"), given)
    reasons = {node_exec_id: NotOwner(*owner) for node_exec_id, *owner in rows}
    return {number: reasons[each.node_exec_id] for number, each in known if each.node_exec_id in reasons}


def _is_named(identifier: str | None) -> bool:
    try:
        return identifier is not None and bool(id_bytes(identifier))
    except InvalidValue:
        return False


def _concerned(row: Write, graph_of: dict[str, str]) -> tuple[str, bool]:
    """Return what a row's owner is found by, and whether that is a node execution; "" for what is no identifier."""
    if isinstance(row, GraphExecutionWrite):
        key, is_node = row.id, False
    elif isinstance(row, NodeExecutionWrite):
        key, is_node = row.graph_exec_id, False
    else:
        key = graph_of.get(row.node_exec_id, "")
        is_node = not key
        key = key or row.node_exec_id
    try:
        id_bytes(key)
    except InvalidValue:
        return "", is_node
    return key, is_node
