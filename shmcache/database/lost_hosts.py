"""What hosts that were lost have not charged, charged by another.

A host's charges go to the ledger after the rows of what they are for; who is lost in between leaves node executions
that have ended, have a cost, and are not paid. They are settled by the key that the host's own charge has, out of what
the host has leased of the account: should it come back, and settle them too, that changes nothing.

    1  lock     a host whose lease is over and that nobody has looked after yet
    2  settle   what it owned (or what was taken from it, until then) and has not paid, a batch in a transaction
    3  note     in the same transaction, where that was all of it
"""

from __future__ import annotations

import logging
from collections import defaultdict
from datetime import timedelta
from typing import Any

import psycopg

from shmcache.database.settlement import settle
from shmcache.database.statements import statement
from shmcache.writes import BLOCK, Charge, ChargeKind, charge_key

logger = logging.getLogger(__name__)

_AT_ONCE = 2_000
_MOST_BATCHES = 3
_BEFORE = timedelta(hours=1)
"""What ended longer than that before a lease's end was paid: charges wait for no more than their rows, and a second."""


def make_good(connection: psycopg.Connection[Any], low_balance: int = 0) -> int:
    """Charge what lost hosts have not; return how many charges that were. In autocommit; some now, the rest next time.

    Fees for every so many executions are not made good: nothing says that they were due. Waits for no lock longer than
    a second, and no statement longer than two: raises psycopg.errors.LockNotAvailable, QueryCanceled then."""
    made = 0
    for _ in range(_MOST_BATCHES):
        with connection.transaction():
            # Whoever does this has a lease of its own to renew.
            connection.execute("SET LOCAL lock_timeout = '1s'")
            connection.execute("SET LOCAL statement_timeout = '2s'")
            found = connection.execute(statement(connection, "lock_lost_host")).fetchone()
            if found is None:
                return made
            arena_id, lease_until = found
            given = {"arena_id": arena_id, "since": lease_until - _BEFORE, "limit": _AT_ONCE}
            rows = connection.execute(statement(connection, "unpaid_of_host"), given).fetchall()
            of_user: defaultdict[str, list[tuple[int, Charge]]] = defaultdict(list)
            for node_exec, graph_exec, user, cost, time in rows:
                key = charge_key(node_exec, BLOCK)
                charge = Charge(key, user, cost, BLOCK, node_exec, graph_exec, time, "{}")
                of_user[user].append((ChargeKind.SETTLE, charge))
            left = 0
            for user, charges in sorted(of_user.items()):
                try:
                    with connection.transaction():
                        settle(connection, charges, arena_id=arena_id, low_balance=low_balance)
                except (psycopg.IntegrityError, psycopg.DataError) as error:
                    left += len(charges)
                    logger.warning("%d charges of user %s stay unpaid: %s", len(charges), user, error)
            made += len(rows) - left
            # step: charged
            if len(rows) < _AT_ONCE or left == len(rows):
                connection.execute(statement(connection, "make_host_good"), {"arena_id": arena_id})
            # step: noted
        if rows:
            logger.warning("host %s was lost: its %d charges are made in its place", arena_id, len(rows) - left)
    return made
