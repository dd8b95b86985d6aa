"""The ledger by month: an old month's rows are carried forward, to one for each account, and its partition is dropped.

A ledger row is in the month of its key: a charge's begins with the identifier of its node execution. Keys without a
time (top-ups, debts that were paid, keys that a caller has chosen) outlive all months. With a month its charges go, and
what they came to is added to the account's row `carried:<user>`, in one transaction. So the sums over an account's
ledger are what they were, and no account is changed, nor waited for.

A key that is gone is not known as used any more. So:

    the month of a charge goes after    all executions of its time and before: nobody can go on with one, or take it
    it stays while there are            estimates held, and charges that are dead letters, of its time
    a charge that comes after that      is refused: a dead letter, or an error for who charges directly

The last is a trigger on the partition `ledger_rest`, where such keys would come to lie. Making months ahead, turns and
limits are those of `partitions`."""

from __future__ import annotations

from typing import Any

import msgpack
import psycopg
from psycopg import sql

from shmcache.database.partitions import BUSY, Gone, Month, drop_old, is_my_turn
from shmcache.writes import CHARGE_TYPES, Charge

LEDGER = ("ledger",)

_CARRYING = [kind for kind, type_ in CHARGE_TYPES.items() if type_ is Charge]

Connection = psycopg.Connection[Any]


def tidy_ledger(connection: Connection, retention_days: int) -> Gone:
    """Drop the months of the ledger that ended more than some days ago (0: none). In autocommit.

    Raises psycopg.errors.LockNotAvailable where a table was busy: then the rest is to be done another time."""
    return drop_old(connection, LEDGER, retention_days, _drop)


def _drop(connection: Connection, month: Month) -> str | None:
    """Carry a month forward and drop it; or return why not."""
    (name,) = month.tables()
    table = sql.Identifier(name)
    with connection.transaction():
        if not is_my_turn(connection):
            return BUSY
        # Nobody writes to it from here on; all others are written and read as ever until it is dropped.
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(table))
        reason = _what_needs(connection, month.bound)
        if reason is not None:
            return reason
        # step: checked
        connection.execute(_CARRY.format(table=table), {"until": month.ends})
        # step: carried
        connection.execute(_PUT_BY.format(table=table))
        connection.execute(sql.SQL("DROP TABLE {}").format(table))
        # step: dropped
        connection.execute("INSERT INTO ledger SELECT * FROM ledger_moved")
        connection.execute("DROP TABLE ledger_moved")
        connection.execute(
            "INSERT INTO ledger_dropped (until) VALUES (%s) ON CONFLICT ((true)) DO UPDATE SET until = excluded.until",
            (month.bound,),
        )
        # step: closed
    return None


def _what_needs(connection: Connection, bound: str) -> str | None:
    """Return who may still ask for the charges before a bound, None for nobody."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM graph_executions WHERE id < %(bound)s::uuid AND carries_time(id::text))"
        " OR EXISTS (SELECT FROM node_executions WHERE id < %(bound)s::uuid AND carries_time(id::text)),"
        ' (SELECT count(*) FROM holds WHERE transaction_key COLLATE "C" < %(bound)s::text'
        "  AND carries_time(transaction_key))",
        {"bound": bound},
    ).fetchone()
    assert row is not None
    has_executions, held = row
    if has_executions:
        return "executions of its time, or from before, are there"
    if held:
        return f"{held} estimates of its time are held"
    payloads = connection.execute(
        "SELECT payload FROM dead_letters WHERE ring = 'charge' AND kind = ANY (%s)", (_CARRYING,)
    )
    keys = [key for (payload,) in payloads if (key := _key_of(payload)) is not None]
    row = connection.execute(
        'SELECT count(*) FROM unnest(%s::text[]) AS given (key) WHERE key COLLATE "C" < %s::text AND carries_time(key)',
        (keys, bound),
    ).fetchone()
    assert row is not None
    return f"{row[0]} charges of its time are dead letters" if row[0] else None


def _key_of(payload: bytes) -> str | None:
    """Return the key of a charge as it was on the ring; None where that cannot be read, and so not be tried again."""
    try:
        key = msgpack.unpackb(payload)[0]
    except (ValueError, LookupError, TypeError, msgpack.UnpackException):
        return None
    return key if isinstance(key, str) and "\0" not in key else None


_CARRY = sql.SQL(
    "INSERT INTO ledger AS carried"
    " (transaction_key, user_id, amount, owed, running_balance, reason, metadata, created_at)"
    " SELECT 'carried:' || user_id, user_id, sum(amount), sum(owed),"
    "  (array_agg(running_balance ORDER BY created_at DESC, running_balance))[1], 'carried forward',"
    "  jsonb_build_object('until', %(until)s::timestamptz), max(created_at)"
    " FROM {table} WHERE carries_time(transaction_key) GROUP BY user_id"
    " ON CONFLICT (transaction_key) DO UPDATE SET"
    "  amount = carried.amount + excluded.amount, owed = carried.owed + excluded.owed,"
    "  running_balance = CASE WHEN excluded.created_at >= carried.created_at"
    "   THEN excluded.running_balance ELSE carried.running_balance END,"
    "  metadata = excluded.metadata, created_at = greatest(carried.created_at, excluded.created_at)"
)
_PUT_BY = sql.SQL("CREATE UNLOGGED TABLE ledger_moved AS SELECT * FROM {table} WHERE NOT carries_time(transaction_key)")
