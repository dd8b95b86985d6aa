"""Executions by month: partitions made ahead, and old ones dropped whole. The ledger's: see `ledger_months`.

Graph executions, node executions, their inputs and their outputs are partitioned by the time in their identifiers (UUID
version 7), so a key is unique in all of a table and a write finds its partition by nothing but itself. A month is one
partition of each of the four. What no month takes (an identifier without a time) is in the partition `_rest`: no write
is ever refused for want of one. It is never dropped.

A month is dropped when it is older than wanted, and every graph execution of it and of what came before has ended, with
nothing held for it. Dropping waits for nobody longer than a moment: what is busy is tried again later. Of hosts that
want to do the same at once one does it. The AutoGPT Platform's tables are its own, and not partitioned here.

All this is PostgreSQL's own partitioning; pg_partman would do it too, as an extension, which the embedded server and
many hosted ones have not."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from shmcache.database.connection import table_set_of

Connection = psycopg.Connection[Any]

TABLES = ("node_execution_outputs", "node_execution_inputs", "node_executions", "graph_executions")
MONTHS_AHEAD = 3
BUSY = "another host is about it"

_LOCK = 0x73686D70  # "shmp": whoever makes or drops partitions holds this advisory lock
_LOCK_TIMEOUT = "500ms"
"""Less than the second after which the server looks for deadlocks: whoever waits for us is never the one to give up."""
_BOUND = re.compile(r"TO \('([0-9a-f-]{36})'\)")
_UNIX_MILLISECONDS = slice(0, 12)


class Month(NamedTuple):
    """A partition of each of some tables: `name` is a month (2026_12), or `before` for all until the first of them.

    `rows` is the server's estimate; `size` in bytes, with indexes; `bound` the first identifier after it."""

    name: str
    ends: datetime.datetime
    rows: int
    size: int
    bound: str
    parents: Sequence[str] = TABLES

    def tables(self) -> list[str]:
        """Return the names of its tables, children first."""
        return [f"{table}_{self.name}" for table in self.parents]


class Kept(NamedTuple):
    """A month that is old enough to go, and why it did not."""

    name: str
    reason: str


class Gone(NamedTuple):
    """Which old months were dropped, and which stayed."""

    dropped: list[str]
    kept: list[Kept]


class Tidied(NamedTuple):
    """What was done: how many tables were made, which months were dropped, and which stayed."""

    made: int
    dropped: list[str]
    kept: list[Kept]


def are_partitioned(connection: Connection) -> bool:
    """Say whether the tables of executions, and the ledger, are ours to partition."""
    return table_set_of(connection) == "shmcache"


def months(connection: Connection, parents: Sequence[str] = TABLES) -> list[Month]:
    """Return the months that there are of some tables, oldest first."""
    rows = connection.execute(
        "SELECT substring(c.relname FROM length(%(parent)s) + 2), pg_get_expr(c.relpartbound, c.oid),"
        " sums.rows, sums.size"
        " FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid CROSS JOIN LATERAL ("
        "  SELECT sum(greatest(p.reltuples, 0))::int8 AS rows, sum(pg_total_relation_size(p.oid))::int8 AS size"
        "  FROM unnest(%(parents)s::text[]) AS given (name)"
        "  JOIN pg_class p ON p.oid = to_regclass(given.name || substring(c.relname FROM length(%(parent)s) + 1))"
        " ) AS sums"
        " WHERE i.inhparent = to_regclass(%(parent)s)",
        {"parent": parents[-1], "parents": list(parents)},
    )
    found = []
    for name, text, count, size in rows:
        bound = _BOUND.search(text or "")  # none: it has just been dropped, or no month
        if bound is not None:
            milliseconds = int(bound[1].replace("-", "")[_UNIX_MILLISECONDS], 16)
            ends = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
            found.append(Month(name, ends, count or 0, size or 0, bound[1], parents))
    return sorted(found, key=lambda month: month.ends)


def tidy(connection: Connection, retention_days: int) -> Tidied:
    """Make the months ahead, and drop those that ended more than some days ago (0: none). In autocommit.

    Raises psycopg.errors.LockNotAvailable where a table was busy: then the rest is to be done another time."""
    made = _make_ahead(connection)
    return Tidied(made, *drop_old(connection, TABLES, retention_days, _drop))


def drop_old(
    connection: Connection, parents: Sequence[str], retention_days: int, drop: Callable[[Connection, Month], str | None]
) -> Gone:
    """Drop the months that ended more than some days ago (0: none), by a function that returns why it did not."""
    dropped: list[str] = []
    if retention_days:
        row = connection.execute("SELECT now() - %s * interval '1 day'", (retention_days,)).fetchone()
        assert row is not None
        for month in [each for each in months(connection, parents) if each.ends <= row[0]]:
            reason = drop(connection, month)
            if reason is not None:
                return Gone(dropped, [Kept(month.name, reason)])  # what keeps it keeps all that came after it
            dropped.append(month.name)
    return Gone(dropped, [])


def is_my_turn(connection: Connection) -> bool:
    """Take the turn for this transaction, in which no lock is waited for for long."""
    connection.execute("SELECT set_config('lock_timeout', %s, true)", (_LOCK_TIMEOUT,))
    return connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,)).fetchone() == (True,)


def _make_ahead(connection: Connection) -> int:
    with connection.transaction():
        if not is_my_turn(connection):
            return 0
        row = connection.execute("SELECT make_partitions(%s)", (MONTHS_AHEAD,)).fetchone()
    assert row is not None
    return int(row[0])


def _drop(connection: Connection, month: Month) -> str | None:
    """Drop a month; or return why not."""
    tables = [sql.Identifier(name) for name in month.tables()]
    with connection.transaction():
        if not is_my_turn(connection):
            return BUSY
        # Nobody writes to it from here on, so what is found stays so.
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(sql.SQL(", ").join(reversed(tables))))
        row = connection.execute(
            "SELECT (SELECT count(*) FROM graph_executions WHERE id < %(bound)s"
            " AND status NOT IN ('COMPLETED', 'FAILED', 'TERMINATED')),"
            " (SELECT count(*) FROM holds WHERE graph_execution_id < %(bound)s)",
            {"bound": month.bound},
        ).fetchone()
        assert row is not None
        running, held = row
        if running:
            return f"{running} graph executions have not ended"
        if held:
            return f"{held} estimates are held for its executions"
        # step: checked
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.SQL(", ").join(tables)))
        connection.execute("DELETE FROM owners WHERE graph_execution_id < %s", (month.bound,))
        # step: dropped
    return None
