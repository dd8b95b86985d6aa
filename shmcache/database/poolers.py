"""Poolers between us and PostgreSQL (PgBouncer in transaction mode): how one is seen, and what must be right behind it.

Such a pooler gives each transaction any of its server's sessions. So what belongs to a session is not there for us: no
statement is prepared by name (psycopg prepares none where its threshold is None), no lock and no setting outlasts its
transaction, and nothing is heard by LISTEN. Options of the connection may not arrive: then the search path is not ours,
tables would be made in another schema, and the connection is refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg
from psycopg import sql

_UTC = frozenset({"UTC", "Etc/UTC", "GMT", "Etc/GMT", "UCT", "Etc/UCT", "Zulu", "Universal"})


class Session(NamedTuple):
    """What a connection's session really is. `problem` says what of it is not as we asked for, and what to do."""

    is_pooled: bool
    problem: str | None


def look_at_session(connection: psycopg.Connection[Any], wanted_path: str) -> Session:
    """Ask what a session is, in one round trip: a pooler makes up the process id that it gives its clients."""
    row = connection.execute(
        "SELECT pg_backend_pid(), current_setting('search_path'), current_setting('TimeZone'),"
        " current_user::text, current_database()::text"
    ).fetchone()
    assert row is not None
    # Texts of an SQL_ASCII database come as bytes.
    path, zone, user, database = (
        each.decode(errors="replace") if isinstance(each, bytes) else str(each) for each in row[1:]
    )
    wanted = _names(wanted_path)
    missing = []
    if _names(path)[: len(wanted)] != wanted:
        missing.append((f"search_path is {path}", f"search_path = {wanted_path}"))
    if zone not in _UTC:
        missing.append((f"TimeZone is {zone}", "TimeZone = 'UTC'"))
    is_pooled = row[0] != connection.info.backend_pid
    if not missing:
        return Session(is_pooled, None)
    place = sql.SQL("ALTER ROLE {} IN DATABASE {} SET ").format(sql.Identifier(user), sql.Identifier(database))
    orders = "; ".join(place.as_string(None) + order for _, order in missing)
    return Session(
        is_pooled,
        f"a pooler stands between and keeps the connection's options back: {', '.join(found for found, _ in missing)}."
        f" Give them to our role in the server: {orders}; then RECONNECT in the pooler",
    )


def _names(path: str) -> list[str]:
    return [name.strip().strip('"') for name in path.split(",")]
