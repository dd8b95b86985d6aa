"""`shmcache accounts`: the commands; what they do is in `tools.accounts`."""

from __future__ import annotations

import click

from tools.command_settings import command_settings


@click.group()
def accounts() -> None:
    """What users have, owe and were charged."""


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_limit = click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Print at most so many.")


@accounts.command("show")
@click.argument("user", required=False)
@_limit
@_json
def accounts_show(user: str | None, limit: int, as_json: bool) -> None:
    """Print a user's account; without one, those that owe most and have least."""
    from tools.accounts import show

    show(command_settings(), user, limit, as_json)


@accounts.command("top-up")
@click.argument("user")
@click.argument("amount", type=int)
@click.option("--key", help="The transaction's key: with one, asking again adds nothing.")
@_json
def accounts_top_up(user: str, amount: int, key: str | None, as_json: bool) -> None:
    """Add credits to a user's account; what it owes is paid from them first."""
    from tools.accounts import add

    add(command_settings(), user, amount, key, as_json)


@accounts.command("ledger")
@click.argument("user")
@_limit
@_json
def accounts_ledger(user: str, limit: int, as_json: bool) -> None:
    """Print what a user was charged and credited, youngest first."""
    from tools.accounts import ledger

    ledger(command_settings(), user, limit, as_json)


@accounts.command("holds")
@_limit
@_json
def accounts_holds(limit: int, as_json: bool) -> None:
    """Print what is held for runs whose price comes at their end, oldest first."""
    from tools.accounts import holds

    holds(command_settings(), limit, as_json)


@accounts.command("void-holds")
@click.argument("arena_id")
@_json
def accounts_void_holds(arena_id: str, as_json: bool) -> None:
    """Void what is held by an arena that is gone for good: its machine was lost, or has lost its memory."""
    from tools.accounts import void

    void(command_settings(), arena_id, as_json)


@accounts.command("audit")
@_json
def accounts_audit(as_json: bool) -> int:
    """Prove that every account adds up, and that what this host's arenas hold is what is not settled yet.

    Exit status 0 if all does, 1 with the differences if not."""
    from tools.accounts import audit

    return 0 if audit(command_settings(), as_json) else 1
