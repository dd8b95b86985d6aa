"""Charges settled: a ledger row each, keyed by its idempotency key, and the accounts' balances moved by what is new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

from shmcache.database.statements import statement
from shmcache.writes import Charge


def settle(connection: psycopg.Connection[Any], charges: Sequence[Charge]) -> None:
    """Settle charges inside the caller's transaction, in the order given; those settled before change nothing.

    Accounts are locked in the order of their ids, so that two settlements cannot deadlock. Raises
    psycopg.IntegrityError for an unknown account, or where a balance would go below 0."""
    users = sorted({charge.user_id for charge in charges})
    keys = [charge.transaction_key for charge in charges]
    locked = connection.execute(statement("lock_accounts"), {"users": users}, prepare=True).fetchall()
    balances: dict[str, int] = {str(user): balance for user, balance in locked}
    known = {row[0] for row in connection.execute(statement("settled_keys"), {"keys": keys}, prepare=True)}
    counts = dict.fromkeys(users, 0)
    rows: list[tuple[Any, ...]] = []
    for charge in charges:
        counts[charge.user_id] = max(counts[charge.user_id], charge.execution_count)
        if charge.amount and charge.transaction_key not in known:
            known.add(charge.transaction_key)
            left = balances[charge.user_id] = balances.get(charge.user_id, 0) - charge.amount
            rows.append((
                charge.transaction_key, charge.user_id, -charge.amount, left, charge.reason,
                charge.node_exec_id, charge.graph_exec_id, charge.metadata_json, charge.time,
            ))  # fmt: skip
    if rows:
        columns = [list(column) for column in zip(*rows, strict=True)]
        connection.execute(statement("add_ledger_rows"), columns, prepare=True)
    known_users = [user for user in users if user in balances]
    connection.execute(
        statement("move_accounts"),
        (known_users, [balances[user] for user in known_users], [counts[user] for user in known_users]),
        prepare=True,
    )
