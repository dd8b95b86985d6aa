"""Charges settled: a ledger row each, keyed by its idempotency key, and the accounts' balances moved by what is new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg

from shmcache.database.arrays import plain_array, text_array
from shmcache.database.statements import statement
from shmcache.writes import Charge

_TEXTS = (0, 4, 7)
"""Which columns of the ledger's rows hold any text: key, reason, metadata."""


def settle(connection: psycopg.Connection[Any], charges: Sequence[Charge]) -> None:
    """Settle charges inside the caller's transaction, in the order given; those settled before change nothing.

    Accounts are locked in the order of their ids, so that two settlements cannot deadlock. Raises
    psycopg.IntegrityError for an unknown account, or where a balance would go below 0."""
    spelled = {user: _canonical(user) for user in {charge.user_id for charge in charges}}
    charges = [charge._replace(user_id=spelled[charge.user_id]) for charge in charges]
    users = sorted(set(spelled.values()))
    keys = text_array([charge.transaction_key for charge in charges])
    locked = connection.execute(statement("lock_accounts"), {"users": plain_array(users)}, prepare=True).fetchall()
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
        columns = [
            text_array(column) if position in _TEXTS else plain_array(column)
            for position, column in enumerate(zip(*rows, strict=True))
        ]
        connection.execute(statement("add_ledger_rows"), columns, prepare=True)
    moved = [user for user in users if user in balances]
    connection.execute(
        statement("move_accounts"),
        [plain_array(column) for column in (moved, map(balances.get, moved), map(counts.get, moved))],
        prepare=True,
    )


def _canonical(identifier: str) -> str:
    try:
        return str(UUID(identifier))
    except ValueError as error:
        raise psycopg.DataError(f"{identifier!r} is no user's identifier: {error}") from None
