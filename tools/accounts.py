"""`shmcache accounts`: what users have, owe and were charged, top-ups, and the audit of all of it."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from shmcache.account_keys import ACCOUNTS, base_key, lease_key, part_key
from shmcache.arena import Arena, list_arenas
from shmcache.codec import unpack
from shmcache.config import Settings
from shmcache.database.accounts import top_up
from shmcache.database.audit import Totals, find_differences, list_accounts, list_holds, load_ledger
from shmcache.database.leases import release_leases
from shmcache.database.migrate import identity
from shmcache.database.queries import load_account
from shmcache.database.settlement import load_open_holds, settle, voiding
from shmcache.errors import ArenaExists, ArenaMissing, ArenaUnusable, NotFound
from shmcache.identifiers import id_bytes, id_text, new_id
from shmcache.records import Account
from shmcache.writes import CHARGE_TYPES, Charge, ChargeKind
from tools.database import open_database

_MOST_LOOKS = 200
_LOOK_AGAIN_SECONDS = 0.05


def show(settings: Settings, user_id: str | None, limit: int, as_json: bool) -> None:
    """Print an account, or those that owe most and have least. Raises NotFound."""
    with open_database(settings) as connection:
        if user_id is None:
            accounts = list_accounts(connection, limit)
        else:
            account = load_account(connection, id_text(id_bytes(user_id)))
            if account is None:
                raise NotFound("account", user_id)
            accounts = [account]
    rows = [_account(each) for each in accounts]
    _print("accounts", rows, as_json, rows if user_id is None else rows[0])


def add(settings: Settings, user_id: str, amount: int, key: str | None, as_json: bool) -> None:
    """Add credits to an account, once for each key, and print what it has then. Raises NotFound, InvalidValue."""
    user_id = id_text(id_bytes(user_id))
    key = new_id() if key is None else key
    with open_database(settings) as connection:
        _, is_new = top_up(connection, user_id, amount, key)
        account = load_account(connection, user_id)
    assert account is not None
    row = {**_account(account), "transaction_key": key, "added": amount if is_new else 0}
    _print("top-up", [row], as_json, row)


def ledger(settings: Settings, user_id: str, limit: int, as_json: bool) -> None:
    """Print an account's ledger, youngest first. Raises NotFound."""
    user_id = id_text(id_bytes(user_id))
    with open_database(settings) as connection:
        if load_account(connection, user_id) is None:
            raise NotFound("account", user_id)
        found = load_ledger(connection, user_id, limit)
    rows = [{**each._asdict(), "time": _time(each.time)} for each in found]
    _print(f"ledger of {user_id}", rows, as_json, rows)


def holds(settings: Settings, limit: int, as_json: bool) -> None:
    """Print the open estimates, oldest first."""
    with open_database(settings) as connection:
        found = list_holds(connection, limit)
    rows = [{**each._asdict(), "time": _time(each.time)} for each in found]
    _print("open estimates", rows, as_json, rows)


def void(settings: Settings, arena_id: str, as_json: bool) -> None:
    """Void the estimates of an arena that is gone, with a machine say, release what it had leased, and print how many.

    Raises ArenaExists where this host has it, InvalidValue."""
    arena_id = id_text(id_bytes(arena_id))
    for name in list_arenas():
        with contextlib.suppress(ArenaMissing, ArenaUnusable), Arena.attach(name) as arena:
            if arena.arena_id == arena_id:
                raise ArenaExists(name)
    with open_database(settings) as connection, connection.transaction():
        left = load_open_holds(connection, arena_id)
        voids = [voiding(key, user, node_exec, graph_exec) for key, user, _, node_exec, graph_exec, *_ in left]
        settle(connection, voids, arena_id=arena_id, low_balance=settings.low_balance)
        leases, leased = release_leases(connection, arena_id)
    row = {
        "voided": len(left), "credits": sum(each.amount for each in left), "leases": leases, "leased_credits": leased,
    }  # fmt: skip
    _print("voided", [row], as_json, row)


def audit(settings: Settings, as_json: bool) -> bool:
    """Prove the accounts, and print what does not add up; return whether all does.

    For every account: opening balance + sum of the ledger = balance, and the same for what is owed and held; no key
    twice. For every arena of this host and database: what is held in it is what its charge ring and the open estimates
    come to."""
    with open_database(settings) as connection:
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            totals, differences = find_differences(connection)
        arenas = []
        mine = identity(connection)
        for name in list_arenas():
            try:
                arena = Arena.attach(name)
            except (ArenaMissing, ArenaUnusable):
                continue
            try:
                if arena.identity == mine:
                    arenas.append(name)
                    differences += compare_holds(arena, connection)
            finally:
                arena.close()
    _print_audit(totals, arenas, differences, as_json)
    return not differences


def compare_holds(arena: Arena, connection: psycopg.Connection[Any]) -> list[str]:
    """Return for which accounts of an arena what is held differs from what is unsettled, each in one sentence.

    All that changes either moves one end of the charge ring in the same commit: where that stood still while both were
    read, they belong together. Where it never does, the comparison says so."""
    ring = arena.charge_ring
    for _ in range(_MOST_LOOKS):
        before = ring.last_sequence, ring.committed_sequence
        unsettled = _unsettled(arena, connection, before[1])
        held = {user: _held(arena, user) for user in (id_text(key) for key in arena.members(ACCOUNTS) or ())}
        of_leases = {user: _held_of_lease(arena, user) for user in held}
        again = {user: _held(arena, user) for user in held}
        if (ring.last_sequence, ring.committed_sequence) == before and held == again:
            found = [
                f"arena {arena.name}: {amount} {what} for user {user}, the charges not settled come to "
                f"{unsettled.get(user, 0)}"
                for what, amounts in (("are held", held), ("of the lease are held", of_leases))
                for user, amount in amounts.items()
                if amount != unsettled.get(user, 0)
            ]
            return found + [
                f"arena {arena.name}: charges of {amount} for user {user}, who has no account there, are not settled"
                for user, amount in unsettled.items()
                if amount and user not in held
            ]
        time.sleep(_LOOK_AGAIN_SECONDS)
    return [f"arena {arena.name}: its charges never stood still: stop its workers for a moment and audit again"]


def _held(arena: Arena, user_id: str) -> int:
    return (arena.counter(base_key(user_id)) or 0) - (arena.counter(id_bytes(user_id)) or 0)


def _held_of_lease(arena: Arena, user_id: str) -> int:
    return (arena.counter(lease_key(user_id)) or 0) - (arena.counter(part_key(user_id)) or 0)


def _unsettled(arena: Arena, connection: psycopg.Connection[Any], committed: int) -> dict[str, int]:
    """Return for each user what the entries behind the head and the open estimates come to.

    The database may be ahead of the head, by a batch that is settled and not released: what the ring says counts."""
    estimates = {
        each.transaction_key: (each.user_id, each.amount) for each in load_open_holds(connection, arena.arena_id)
    }
    sums: dict[str, int] = {}
    for entry in arena.charge_ring.read(committed, sys.maxsize, sys.maxsize):
        if not entry.intact or CHARGE_TYPES.get(entry.kind) is not Charge:
            continue
        charge = Charge(*unpack(entry.payload))
        user_id = id_text(id_bytes(charge.user_id))
        if entry.kind == ChargeKind.HOLD:
            estimates[charge.transaction_key] = user_id, charge.amount
            continue
        if entry.kind != ChargeKind.CHARGE:
            estimates.pop(charge.transaction_key, None)
        if entry.kind != ChargeKind.VOID:
            sums[user_id] = sums.get(user_id, 0) + charge.amount
    for user_id, amount in estimates.values():
        sums[user_id] = sums.get(user_id, 0) + amount
    return sums


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _account(account: Account) -> dict[str, Any]:
    available = account.balance - account.debt - account.held
    return {**account._asdict(), "available": available}


def _print(title: str, rows: Sequence[dict[str, Any]], as_json: bool, value: Any) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value) + "\n")
        return
    table = Table(title=title)
    for name in rows[0] if rows else ("nothing",):
        table.add_column(name.replace("_", " "), overflow="fold", no_wrap=name == "user_id")
    for row in rows:
        table.add_row(*(f"{each:,}" if isinstance(each, int) else str(each or "") for each in row.values()))
    Console().print(table)


def _print_audit(totals: Totals, arenas: Sequence[str], differences: Sequence[str], as_json: bool) -> None:
    if as_json:
        found = {**totals._asdict(), "arenas": list(arenas), "differences": list(differences)}
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for each in differences:
        sys.stdout.write(each + "\n")
    sys.stdout.write(
        f"{totals.accounts:,} accounts, {totals.ledger_rows:,} ledger rows, {totals.charges:,} of them charges, "
        f"{len(arenas)} arenas: {f'{len(differences)} differences' if differences else 'everything adds up'}\n"
    )
