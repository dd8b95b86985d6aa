"""`shmcache accounts`, as a person uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from shmcache.account_keys import base_key
from shmcache.arena import Arena, Transaction
from shmcache.arena.transaction import Add, Append
from shmcache.cached_client import CachedClient
from shmcache.config import load_settings
from shmcache.database.connection import connect
from shmcache.database.migrate import identity
from shmcache.identifiers import id_bytes, new_id
from shmcache.writes import Charge, ChargeKind
from tests.integration.charging import PER_RUN, PER_SECOND, begin, open_account, priced_graph, queued, settle_now

OPENING = 1_000


@pytest.fixture
def accounts(database_url: str, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs a command with --json; it returns what was printed and the exit status."""

    def ask(*arguments: str) -> tuple[Any, int]:
        done = subprocess.run(  # noqa: PLW1510 - the status is what is asked for
            [sys.executable, "-m", "tools.cli", "accounts", *arguments, "--json"],
            env={**os.environ, "SHMCACHE_DATABASE_URL": database_url, "SHMCACHE_STATE_DIR": str(tmp_path)},
            cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return (json.loads(done.stdout) if done.stdout else done.stderr), done.returncode

    return ask


@pytest.fixture
def user(database_url: str) -> str:
    return open_account(database_url, OPENING)


@pytest.fixture
def arena(database_url: str) -> Iterator[Arena]:
    with connect(database_url, application_name="test") as connection:
        made = Arena.create(f"accounts-{os.getpid()}", 16 << 20, identity(connection))
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def client(arena: Arena, database_url: str) -> Iterator[CachedClient]:
    made = CachedClient(arena, database_url, load_settings())
    yield made
    made.close()


def test_an_account_is_shown_topped_up_once_a_key_and_its_ledger_listed(
    user: str, accounts: Callable[..., Any]
) -> None:
    shown, status = accounts("show", user)
    assert (status, shown["balance"], shown["available"]) == (0, OPENING, OPENING)
    for added in (250, 0):
        shown, status = accounts("top-up", user, "250", "--key", "card 1")
        assert (status, shown["balance"], shown["added"]) == (0, OPENING + 250, added)
    assert [(row["amount"], row["transaction_key"]) for row in accounts("ledger", user)[0]] == [(250, "card 1")]
    assert [row["user_id"] for row in accounts("show")[0]] == [user]


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "nobody"), ("show", "00000000-0000-7000-8000-000000000000"), ("top-up", "USER", "0"),
        ("top-up", "USER", "9999999999999999999999"), ("top-up", "USER", "5", "--key", ""), ("top-up", "USER", "many"),
        ("ledger", "00000000-0000-7000-8000-000000000000"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_clear_error(
    user: str, accounts: Callable[..., Any], arguments: tuple[str, ...]
) -> None:
    said, status = accounts(*(user if each == "USER" else each for each in arguments))
    assert status == 2
    assert said


def test_the_audit_is_content_with_what_adds_up_and_names_what_does_not(
    user: str, client: CachedClient, arena: Arena, accounts: Callable[..., Any], database_url: str, tmp_path: Path
) -> None:
    settings = load_settings(state_dir=tmp_path)
    run = client.create_graph_execution(priced_graph()[0].id, user).id
    begin(client, queued(client, run, PER_RUN))
    begin(client, queued(client, run, PER_SECOND, seconds=4))
    settle_now(arena, database_url, settings)
    begin(client, queued(client, run, PER_SECOND, seconds=2))
    client.spend_credits(user, 11)
    found, status = accounts("audit")
    assert found == {"accounts": 1, "ledger_rows": 1, "charges": 1, "arenas": [arena.name], "differences": []}
    assert status == 0

    def differs(*parts: str) -> None:
        found, status = accounts("audit")
        assert status == 1
        assert len(found["differences"]) == len(parts)
        for part, said in zip(parts, found["differences"], strict=True):
            assert part in said

    with connect(database_url, application_name="test") as connection:
        connection.execute("UPDATE accounts SET balance = balance + 1")
        differs("the balance is 998")
        connection.execute("UPDATE accounts SET balance = balance - 1, debt = 5, held = held + 2")
        differs("0 are owed, the account 5", "40 are held by executions, the account says 42")
        connection.execute("UPDATE accounts SET debt = 0, held = held - 2")
        connection.execute(
            "INSERT INTO ledger"
            " (transaction_key, user_id, amount, running_balance, reason, node_execution_id, metadata, created_at)"
            " SELECT 'again', user_id, 0, 0, reason, node_execution_id, '{}', now() FROM ledger"
        )
        differs("was charged 2 times")
        connection.execute("DELETE FROM ledger WHERE transaction_key = 'again'")
    wanted = Transaction()
    wanted.operations.append(Add(id_bytes(user), 1))
    arena.commit(wanted)
    differs("70 are held for user")
    wanted = Transaction()
    stranger = new_id()
    charge = Charge(new_id(), stranger, 9, "spend", None, None, 0.0, "{}")
    wanted.operations += [Add(base_key(user), 1), Append("charge", ChargeKind.CHARGE, msgpack.packb(charge))]
    arena.commit(wanted)
    differs(f"charges of 9 for user {stranger}")


def test_what_a_lost_machine_held_is_listed_and_voided(
    user: str, client: CachedClient, arena: Arena, accounts: Callable[..., Any], database_url: str, tmp_path: Path
) -> None:
    settings = load_settings(state_dir=tmp_path)
    run = client.create_graph_execution(priced_graph()[0].id, user).id
    begin(client, queued(client, run, PER_SECOND, seconds=4))
    settle_now(arena, database_url, settings)
    listed, _ = accounts("holds")
    assert [(row["user_id"], row["amount"], row["arena_id"]) for row in listed] == [(user, 40, arena.arena_id)]
    said, status = accounts("void-holds", arena.arena_id)
    assert status == 2, said
    arena.unlink()
    assert accounts("void-holds", arena.arena_id) == (
        {"voided": 1, "credits": 40, "leases": 1, "leased_credits": 500},
        0,
    )
    shown, _ = accounts("show", user)
    assert (shown["held"], shown["available"]) == (0, OPENING)
    assert accounts("audit")[1] == 0
