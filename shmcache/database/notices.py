"""Notices: what a platform is to be told of its users' accounts, written with what they tell of, delivered later.

A notice is taken by an advisory lock of its user, which the transaction keeps while somebody is told, so that no two
chargers tell of one user at the same time. No row is locked meanwhile, and nothing kept from vacuum: who is told may
change the account, and take its time. A charger that dies before it has marked the notice leaves it undelivered, with
its id: who is told twice can know it by that."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg

from shmcache.database.statements import statement


class Notice(NamedTuple):
    """Something to tell: `kind` is low_balance, insufficient_funds or top_up; amounts in the smallest unit.

    `amount` is the threshold that a balance went below, or what was asked for in vain."""

    id: str
    kind: str
    user_id: str
    graph_id: str | None
    graph_exec_id: str | None
    balance: int
    amount: int


def take_notice(connection: psycopg.Connection[Any]) -> Notice | None:
    """Return a notice that is due, with its user locked until the caller's transaction ends; None if there is none.

    The server does not end that transaction for being idle or long."""
    for (user_id,) in connection.execute(statement(connection, "users_to_tell")).fetchall():
        lock = "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 1))"
        if connection.execute(lock, (user_id,)).fetchone() == (True,):
            row = connection.execute(statement(connection, "take_notice"), {"user_id": user_id}).fetchone()
            if row is not None:
                connection.execute(statement(connection, "unlimit_transaction"))
                return Notice(*row)
    return None


def mark_delivered(connection: psycopg.Connection[Any], notice: Notice) -> None:
    """Note that a notice needs no further try."""
    connection.execute("UPDATE notices SET delivered_at = clock_timestamp(), error = NULL WHERE id = %s", (notice.id,))


def mark_failed(connection: psycopg.Connection[Any], notice: Notice, error: str, most_tries: int) -> None:
    """Note that a try failed: it is due again after a wait that doubles; after `most_tries` it is given up."""
    connection.execute(
        statement(connection, "fail_notice"),
        {"id": notice.id, "error": error.replace("\0", ""), "most_tries": most_tries},
    )


def ask_for_top_up(connection: psycopg.Connection[Any], notice: Notice) -> None:
    """Write the notice of an automatic top-up, unless one is under way for the user or came after this notice."""
    connection.execute(statement(connection, "ask_for_top_up"), {"id": notice.id, "user_id": notice.user_id})
