"""Charges settled: a ledger row each, keyed by its idempotency key, and the accounts' balances moved by what is new.

Whatever is repeated changes nothing: a charge whose key is in the ledger, a hold that is open or was settled, the end
of a hold that is not there. So a batch may be settled again, whole or in other parts, as long as the order is kept.

A charge lowers the balance and the lease of the host that held it, by the same amount. What a host has leased is there
to pay what it held against it; more than that (an estimate that was too low, a charge that was held against a lease
which has lapsed since and was taken) is paid as far as nobody else has leased the rest. What an account cannot pay so
is not charged but owed: the ledger's row has both parts, the account the sum. `opening_balance + sum(amount) =
balance`, `sum(owed) = debt` and `sum(holds.amount) = held` hold at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from shmcache.database.arrays import plain_array, text_array
from shmcache.database.leases import read_standings
from shmcache.database.statements import statement
from shmcache.writes import BLOCK, Charge, ChargeKind

_TEXTS = (0, 4, 7)
"""Which columns of the ledger's rows hold any text: key, reason, metadata."""


class Shortfall(NamedTuple):
    """A charge that could not be paid whole: `owed` of it became the user's debt."""

    transaction_key: str
    user_id: str
    node_exec_id: str | None
    graph_exec_id: str | None
    owed: int


class OpenHold(NamedTuple):
    """An estimate that is held until its node execution ends; since `held_at`, in seconds since the epoch."""

    transaction_key: str
    user_id: str
    amount: int
    node_exec_id: str
    graph_exec_id: str
    owner_pid: int
    held_at: float


class _Account:
    """What a batch does to one account."""

    __slots__ = ("balance", "bearable", "execution_count", "held", "noticed", "opening", "owed")

    def __init__(self, balance: int, noticed: bool) -> None:
        self.balance = self.opening = self.bearable = balance
        self.noticed = noticed
        self.owed = self.held = self.execution_count = 0


def settle(
    connection: psycopg.Connection[Any],
    charges: Sequence[tuple[int, Charge]],
    *,
    arena_id: str | None = None,
    low_balance: int = 0,
) -> list[Shortfall]:
    """Settle entries (a ChargeKind and a Charge each) inside the caller's transaction, in the order given.

    Returns what could not be paid, also of charges that were settled before. Where a balance goes below `low_balance`,
    a notice of it is written. Accounts are locked in the order of their ids, so that two settlements cannot deadlock.
    Raises psycopg.IntegrityError for an unknown account, psycopg.DataError for what is no user's identifier."""
    if not charges:
        return []
    spelled = {user: _canonical(user) for user in {charge.user_id for _, charge in charges}}
    users = sorted(set(spelled.values()))
    rows = connection.execute(
        statement(connection, "lock_accounts"), {"users": plain_array(users)}, prepare=True
    ).fetchall()
    accounts = {str(user): _Account(balance, noticed) for user, balance, noticed in rows}
    if len(accounts) < len(users):
        missing = next(user for user in users if user not in accounts)
        raise psycopg.errors.ForeignKeyViolation(f"no account {missing}")
    for user, standing in read_standings(connection, users, arena_id).items():
        accounts[user].bearable = standing.bearable
    keys = [charge.transaction_key for _, charge in charges]
    asked = {"keys": text_array(keys), "first": min(keys), "last": max(keys)}  # in the order that its bytes have
    known: dict[str, int] = dict(
        connection.execute(statement(connection, "settled_keys"), asked, prepare=True).fetchall()
    )
    opening: dict[str, Charge] = {}
    closing: set[str] = set()
    ledger: list[tuple[Any, ...]] = []
    shortfalls: list[Shortfall] = []
    for kind, charge in charges:
        key, user_id, amount, reason, node_exec_id, graph_exec_id, time, metadata_json, count, _ = charge
        user_id = spelled[user_id]
        account = accounts[user_id]
        account.execution_count = max(account.execution_count, count)
        if kind == ChargeKind.HOLD:
            if key not in known:
                opening[key] = charge._replace(user_id=user_id)
            continue
        if kind != ChargeKind.CHARGE:
            opening.pop(key, None)
            closing.add(key)
            if kind == ChargeKind.VOID:
                continue
        owed = known.get(key)
        if owed is None and amount:
            paid = max(0, min(amount, account.bearable))  # a platform of its own rules may have gone below 0
            owed = known[key] = amount - paid
            account.balance -= paid
            account.bearable -= paid
            account.owed += owed
            ledger.append((
                key, user_id, -paid, account.balance, reason, node_exec_id, graph_exec_id, metadata_json, time, owed,
            ))  # fmt: skip
        if owed:
            shortfalls.append(Shortfall(key, user_id, node_exec_id, graph_exec_id, owed))
    if closing:
        _add_held(
            accounts, -1, connection.execute(statement(connection, "close_holds"), {"keys": text_array(list(closing))})
        )
    if opening:
        _add_held(
            accounts,
            1,
            connection.execute(statement(connection, "open_holds"), _hold_columns(arena_id, opening.values())),
        )
    if ledger:
        columns = [
            text_array(column) if position in _TEXTS else plain_array(column)
            for position, column in enumerate(zip(*ledger, strict=True))
        ]
        connection.execute(statement(connection, "add_ledger_rows"), columns, prepare=True)
    _move_accounts(connection, accounts, arena_id, low_balance)
    return shortfalls


def load_open_holds(connection: psycopg.Connection[Any], arena_id: str) -> list[OpenHold]:
    """Return the estimates that processes of an arena hold, as far as its charge ring is settled."""
    rows = connection.execute(statement(connection, "holds_of_arena"), {"arena_id": arena_id})
    return [
        OpenHold(key, str(user), amount, str(node_exec), str(graph_exec), pid, held_at)
        for key, user, amount, node_exec, graph_exec, pid, held_at in rows
    ]


def voiding(
    transaction_key: str, user_id: str, node_exec_id: str | None, graph_exec_id: str | None
) -> tuple[int, Charge]:
    """Return what ends an estimate at no cost, for `settle`."""
    return ChargeKind.VOID, Charge(transaction_key, user_id, 0, BLOCK, node_exec_id, graph_exec_id, 0.0, "{}")


def _hold_columns(arena_id: str | None, charges: Iterable[Charge]) -> list[str | None]:
    keys, users, amounts, _, node_execs, graph_execs, times, _, _, pids = zip(*charges, strict=True)
    return [
        arena_id, text_array(keys),
        *(plain_array(column) for column in (users, amounts, node_execs, graph_execs, pids, times)),
    ]  # fmt: skip


def _add_held(accounts: dict[str, _Account], sign: int, rows: Iterable[tuple[UUID, int]]) -> None:
    for user, amount in rows:
        accounts[str(user)].held += sign * amount


def _move_accounts(
    connection: psycopg.Connection[Any], accounts: dict[str, _Account], arena_id: str | None, low_balance: int
) -> None:
    lows = {user: account.balance < low_balance for user, account in accounts.items()}
    moves = [
        (user, each.opening - each.balance, each.owed, each.held, lows[user], each.execution_count)
        for user, each in accounts.items()
    ]
    columns = [plain_array(column) for column in zip(*moves, strict=True)]
    given = [*columns, arena_id and UUID(arena_id)]
    moved = connection.execute(statement(connection, "move_accounts"), given, prepare=True).rowcount
    if moved != len(moves):
        raise psycopg.errors.SerializationFailure("a balance changed under its lock")
    crossed = [
        user
        for user, each in accounts.items()
        if lows[user] and (not each.noticed or each.opening >= low_balance)  # topped up since it was noticed
    ]
    if crossed:
        balances = [accounts[user].balance for user in crossed]
        connection.execute(
            statement(connection, "add_low_notices"), [low_balance, plain_array(crossed), plain_array(balances)]
        )


def _canonical(identifier: str) -> str:
    try:
        return str(UUID(identifier))
    except ValueError as error:
        raise psycopg.DataError(f"{identifier!r} is no user's identifier: {error}") from None
