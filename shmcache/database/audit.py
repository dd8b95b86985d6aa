"""What an audit of the accounts reads in the database: sums that must agree, and what is held there."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg

from shmcache.database.statements import statement
from shmcache.records import Account


class LedgerRow(NamedTuple):
    """A row of an account's ledger. `time` in seconds since the epoch; amounts in the smallest unit."""

    time: float
    amount: int
    running_balance: int
    owed: int
    reason: str
    transaction_key: str
    node_exec_id: str | None
    graph_exec_id: str | None


class Totals(NamedTuple):
    """How many accounts and ledger rows there are, and how many of the rows are charges."""

    accounts: int
    ledger_rows: int
    charges: int


def find_differences(connection: psycopg.Connection[Any]) -> tuple[Totals, list[str]]:
    """Return totals, and what does not add up in the database, a sentence each. Inside the caller's transaction."""
    differences: list[str] = []
    for row in connection.execute(statement(connection, "audit_accounts")):
        user, opening, balance, debt, held, amounts, owed, holds, reserved = (row[0], *map(int, row[1:]))
        if opening + amounts != balance:
            differences.append(
                f"account {user}: opening {opening} and ledger {amounts:+} make {opening + amounts}, "
                f"the balance is {balance}"
            )
        if owed != debt:
            differences.append(f"account {user}: the ledger says that {owed} are owed, the account {debt}")
        if holds != held:
            differences.append(f"account {user}: {holds} are held by executions, the account says {held}")
        if reserved and reserved + debt > balance:
            differences.append(
                f"account {user}: {reserved} are leased to hosts or held, and {debt} owed, the balance is {balance}"
            )
        if balance < 0:
            differences.append(f"account {user}: the balance is {balance}")
    for key, node_exec, reason, count in connection.execute(statement(connection, "audit_keys")):
        differences.append(f"node execution {node_exec} was charged {count} times for {reason}: {key} and others")
    counted = connection.execute(statement(connection, "audit_counts")).fetchone()
    assert counted is not None
    accounts, rows, keys, charges = counted
    if keys != rows:
        differences.append(f"{rows - keys} ledger rows have a key that another one has")
    return Totals(accounts, rows, charges), differences


def load_ledger(connection: psycopg.Connection[Any], user_id: str, limit: int) -> list[LedgerRow]:
    """Return an account's ledger, youngest first, at most `limit` rows."""
    return [
        LedgerRow(*row)
        for row in connection.execute(statement(connection, "load_ledger"), {"user_id": user_id, "limit": limit})
    ]


class HoldRow(NamedTuple):
    """An estimate that is held until its node execution ends. `arena_id` is None for one of a direct client."""

    transaction_key: str
    user_id: str
    amount: int
    node_exec_id: str
    graph_exec_id: str
    arena_id: str | None
    time: float


def list_holds(connection: psycopg.Connection[Any], limit: int) -> list[HoldRow]:
    """Return open estimates, oldest first, at most `limit`."""
    return [HoldRow(*row) for row in connection.execute(statement(connection, "list_holds"), {"limit": limit})]


def list_accounts(connection: psycopg.Connection[Any], limit: int) -> list[Account]:
    """Return accounts, those that owe most and have least first, at most `limit`."""
    return [Account(*row) for row in connection.execute(statement(connection, "list_accounts"), {"limit": limit})]
