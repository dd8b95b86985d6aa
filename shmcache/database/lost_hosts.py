"""What hosts that were lost have not charged, charged by another.

A host's charges go to the ledger after the rows of what they are for; who is lost in between leaves node executions
that have ended, have a cost, and are not paid. They are settled by the key that the host's own charge has, out of what
the host has leased of the account: should it come back, and settle them too, that changes nothing. What was held for
executions that have ended is held no longer.

Whoever takes a graph execution charges for it in the transaction that takes it: no row of the old owner's comes after
that. What nobody takes, because it has ended or waits for somebody, is looked through a part in a transaction:

    1  wait     for the transaction that the host's syncer may be in: later ones begin anew what is done here (they
                change the host's row, see `move_checkpoint`)
    2  lock     the host, if its lease is over, and nothing has changed it since the first part
    3  settle   what it has not paid of this part
    4  note     in the transaction of the last part, that this was all
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from time import time as now
from typing import Any
from uuid import UUID

import msgpack
import psycopg

from shmcache.codec import json_text
from shmcache.database.bookkeeping import IDLE_SECONDS, add_dead_letter, limit_transaction
from shmcache.database.settlement import Shortfall, settle, voiding
from shmcache.database.statements import statement
from shmcache.writes import BLOCK, Charge, ChargeKind, charge_key

logger = logging.getLogger(__name__)

_AT_ONCE = 500
_MOST_SECONDS = 60
_BEFORE = timedelta(days=1)
"""Graph executions that ended longer than that before a lease's end were paid: charges wait for no more than their
rows, and a second. Clocks of hosts may differ by less than that."""
_PLACES = 1 << 62

Connection = psycopg.Connection[Any]


def make_good(connection: Connection, low_balance: int = 0) -> int:
    """Charge what lost hosts have not; return how many charges that were. In autocommit.

    Fees for every so many executions are not made good: nothing says that they were due. Waits for no lock longer than
    a second: a host of which one is held is left to the next time. Raises psycopg.OperationalError."""
    made = 0
    for arena_id, lease_until, renewed_at in connection.execute(statement(connection, "find_lost_hosts")).fetchall():
        try:
            made += _make_host_good(connection, arena_id, lease_until, renewed_at, low_balance)
        except psycopg.errors.LockNotAvailable as error:
            logger.warning("what host %s has not charged is charged later: %s", arena_id, error)
    return made


def charge_executions(
    connection: Connection, graph_exec_ids: Collection[str], arena_id: str, low_balance: int = 0
) -> int:
    """Charge what an arena has not of some graph executions, in the caller's transaction, which keeps rows of it from
    coming after that; return how many charges that were."""
    given = {"ids": list(graph_exec_ids), "suffix": charge_key("", BLOCK)}
    of_user: defaultdict[str, list[Charge]] = defaultdict(list)
    for node_exec, graph_exec, user, cost, time in connection.execute(statement(connection, "unpaid_of"), given):
        key = charge_key(node_exec, BLOCK)
        of_user[user].append(Charge(key, user, cost, BLOCK, node_exec, graph_exec, time, "{}"))
    made = 0
    for _, charges in sorted(of_user.items()):
        refused = _settle(connection, charges, arena_id, low_balance)
        if refused:
            refused = [pair for each in charges for pair in _settle(connection, [each], arena_id, low_balance)]
        for charge, error in refused:
            _put_aside(connection, charge, arena_id, error)
        made += len(charges) - len(refused)
    return made


def void_lost_holds(connection: Connection) -> int:
    """Void what is still held by hosts whose leases of credits are over for a day: for executions that nobody ended.

    Returns how many estimates that were. In autocommit. Whoever comes back after all settles them as if it had held
    nothing. Raises psycopg.OperationalError."""
    voided = 0
    while True:
        with connection.transaction():
            _be_brief(connection)
            rows = connection.execute(statement(connection, "lost_holds"), {"limit": _AT_ONCE}).fetchall()
            settle(connection, [voiding(*row) for row in rows])
        voided += len(rows)
        if len(rows) < _AT_ONCE:
            return voided


def _make_host_good(
    connection: Connection, arena_id: str, lease_until: datetime, renewed_at: datetime, low_balance: int
) -> int:
    given = {
        "arena_id": arena_id, "renewed_at": renewed_at, "since": lease_until - _BEFORE, "after": None,
        "limit": _AT_ONCE,
    }  # fmt: skip
    made = 0
    is_all = False
    while not is_all:
        # step: begun
        with connection.transaction():
            _be_brief(connection)
            connection.execute(statement(connection, "lock_checkpoint"), given)
            if connection.execute(statement(connection, "lock_lost_host"), given).fetchone() is None:
                break  # it lives, has written something, or another one is at it
            # step: locked
            executions = connection.execute(statement(connection, "executions_of_host"), given).fetchall()
            made += charge_executions(
                connection, [id_ for id_, is_late in executions if is_late], arena_id, low_balance
            )
            # step: charged
            is_all = len(executions) < _AT_ONCE
            if is_all:
                connection.execute(statement(connection, "make_host_good"), given)
            else:
                given["after"] = executions[-1][0]
            # step: noted
    if made:
        logger.warning("host %s was lost: %d charges of it are made in its place", arena_id, made)
    return made


def _be_brief(connection: Connection) -> None:
    """Limit the transaction at hand, in which accounts are locked: nobody waits long for it, nor it for anybody."""
    connection.execute("SET LOCAL lock_timeout = '1s'")
    limit_transaction(connection, IDLE_SECONDS, _MOST_SECONDS)


def _settle(
    connection: Connection, charges: Sequence[Charge], arena_id: str, low_balance: int
) -> list[tuple[Charge, Exception]]:
    """Settle charges, all or none; return those that the database refuses, and why."""
    try:
        with connection.transaction():
            items = [(ChargeKind.SETTLE, each) for each in charges]
            for shortfall in settle(connection, items, arena_id=arena_id, low_balance=low_balance):
                _tell(connection, shortfall)
    except (psycopg.IntegrityError, psycopg.DataError) as error:
        return [(each, error) for each in charges]
    return []


def _tell(connection: Connection, shortfall: Shortfall) -> None:
    """Say in a graph execution that was not paid for that it was not: whoever goes on with it starts no other node."""
    assert shortfall.graph_exec_id is not None
    logger.warning(
        "charge %s: %d credits of user %s are owed", shortfall.transaction_key, shortfall.owed, shortfall.user_id
    )
    stats = {"error": f"insufficient balance: {shortfall.owed} credits of a charge are owed"}
    told: dict[str, Any] = {
        "id": shortfall.graph_exec_id,
        "status": None,
        "stats": json_text(stats),
        "time": now(),
        "allowed": [],
    }
    connection.execute(statement(connection, "move_graph_execution"), told)


def _put_aside(connection: Connection, charge: Charge, arena_id: str, error: Exception) -> None:
    """Keep a charge that the database refuses as a dead letter of the host's, once; it never had a place on a ring."""
    logger.warning("charge %s of a lost host is refused, and a dead letter: %s", charge.transaction_key, error)
    assert charge.node_exec_id is not None
    place = -1 - UUID(charge.node_exec_id).int % _PLACES
    payload = msgpack.packb(charge)
    add_dead_letter(connection, arena_id, "charge", place, ChargeKind.SETTLE, payload, error)
