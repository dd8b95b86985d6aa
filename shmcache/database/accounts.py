"""Accounts as the database has them: what can be spent, top-ups and what they pay, and what was noticed of them.

Everything here that changes a balance writes the ledger's row with it, in the caller's transaction or one of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

import psycopg

from shmcache.database.arrays import plain_array
from shmcache.database.leases import Standing, read_standings
from shmcache.database.statements import statement
from shmcache.errors import InvalidValue, NotFound
from shmcache.writes import Refusal

DROPPED = "ledger_dropped"
"""What the database calls its refusal of a key whose time the ledger has no longer: see `ledger_months`."""
MAXIMUM_BALANCE = 2**62
"""The most that an account may hold: above it, sums would leave 64 bits."""
LONGEST_KEY = 512
"""The longest transaction key, in characters."""


def check_amount(amount: Any, what: str = "an amount") -> int:
    """Return an amount of the smallest unit, from 0 to 2**62. Raises InvalidValue for anything else."""
    if type(amount) is not int:
        raise InvalidValue(f"{what} is a whole number of the smallest unit, not {amount!r}")
    if not 0 <= amount <= MAXIMUM_BALANCE:
        raise InvalidValue(f"{what} cannot be negative, nor more than 2**62: {amount}")
    return amount


def check_key(key: Any) -> str:
    """Return a transaction key that the ledger can hold. Raises InvalidValue."""
    if not isinstance(key, str) or not 0 < len(key) <= LONGEST_KEY or "\0" in key:
        raise InvalidValue(f"a transaction key is text of 1 to {LONGEST_KEY} characters without NUL, not {key!r:.80}")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InvalidValue(f"a transaction key cannot be encoded: {error}") from None
    return key


def top_up(
    connection: psycopg.Connection[Any],
    user_id: str,
    amount: int,
    transaction_key: str,
    reason: str = "top-up",
    metadata_json: str = "{}",
) -> tuple[int, bool]:
    """Add credits to an account, once for each key, and pay its debt; return (balance after it, whether it was new).

    Raises InvalidValue for an amount that is not above 0 or too much for the account, and for a key that was used for
    something else, or whose time the ledger has no longer; NotFound."""
    check_amount(amount, "a top-up")
    check_key(transaction_key)
    if not amount:
        raise InvalidValue("a top-up of 0 credits: give 1 or more")
    given = {
        "user_id": user_id, "amount": amount, "key": transaction_key, "reason": reason, "metadata": metadata_json,
    }  # fmt: skip
    with connection.transaction():
        row = connection.execute(statement(connection, "lock_balance"), {"user_id": user_id}).fetchone()
        if row is None:
            raise NotFound("account", user_id)
        before = connection.execute(statement(connection, "load_transaction"), given).fetchone()
        if before is not None:
            if before != (str(UUID(user_id)), amount):
                raise InvalidValue(
                    f"the key {transaction_key!r} belongs to another transaction ({before[1]} credits): choose another"
                )
            return int(row[0]), False
        if row[0] + amount > MAXIMUM_BALANCE:
            raise InvalidValue(f"{amount} more than {row[0]} is more than an account may hold (2**62): add less")
        try:
            connection.execute(statement(connection, "top_up"), given)
        except psycopg.errors.NumericValueOutOfRange:
            raise InvalidValue(f"{amount} more than {row[0]} is more than an account there holds: add less") from None
        except psycopg.errors.CheckViolation as error:
            if error.diag.constraint_name != DROPPED:
                raise
            raise InvalidValue(error.diag.message_primary or str(error)) from None
        pay_debt(connection, user_id)
        after = connection.execute(statement(connection, "lock_balance"), {"user_id": user_id}).fetchone()
        assert after is not None
        return int(after[0]), True


def pay_debt(connection: psycopg.Connection[Any], user_id: str) -> None:
    """Pay what an account owes, as far as its balance goes that nobody has leased, inside the caller's transaction."""
    connection.execute(statement(connection, "lock_balance"), {"user_id": user_id})
    connection.execute(statement(connection, "pay_debt"), {"user_id": user_id})


def look_at_accounts(
    connection: psycopg.Connection[Any], user_ids: Collection[str], arena_id: str, low_balance: int
) -> dict[str, Standing]:
    """Return how some accounts stand for an arena; unknown ones are left out.

    On the way debts are paid that can be, and balances that others brought below `low_balance` are noticed. Inside the
    caller's transaction."""
    given = {"users": plain_array(user_ids), "low_balance": low_balance}
    connection.execute(statement(connection, "notice_low"), given, prepare=True)
    standings = read_standings(connection, user_ids, arena_id)
    for user in sorted(user for user, each in standings.items() if each.is_payable):
        pay_debt(connection, user)
    return standings


def add_refusal(connection: psycopg.Connection[Any], refusal: Refusal) -> None:
    """Write the notice of a charge that was refused, once for a user and graph until the account is topped up."""
    connection.execute(statement(connection, "add_refusal"), refusal._asdict())
