"""What the doctor finds of a real PostgreSQL: as it should be, and in each way in which it may not be."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from shmcache.config import load_settings
from shmcache.database.bookkeeping import add_dead_letter
from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import migrate, migrations
from shmcache.identifiers import new_id
from tests.integration.pooler import Pooler, give_settings
from tools.doctor.database import check_database
from tools.doctor.finding import Finding, Verdict

ROOT = Path(__file__).parents[2]


def examine(url: str) -> dict[str, Finding]:
    """Return what is found of a database, by check; every one that is not well says what to do."""
    found = check_database(load_settings(database_url=url))
    for each in found:
        assert bool(each.advice) == (each.verdict in (Verdict.WARNING, Verdict.FAILURE)), each
    return {each.check: each for each in found}


def execute(url: str, *statements: str) -> None:
    with connect(url, application_name="tests") as connection:
        for each in statements:
            connection.execute(each.encode())


@pytest.fixture
def name(database_url: str) -> str:
    """The name of the test's database, quoted."""
    return f'"{conninfo_to_dict(database_url)["dbname"]}"'


@pytest.fixture
def empty_url(server: EmbeddedServer) -> Iterator[str]:
    """The address of a database that was never migrated."""
    name = f"test_{new_id().replace('-', '')}"
    execute(server.url, f"CREATE DATABASE {name} TEMPLATE template0")
    yield make_conninfo(server.url, dbname=name)
    execute(server.url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def role(server: EmbeddedServer, database_url: str) -> Iterator[str]:
    """A role without rights."""
    name = f"test_{new_id().replace('-', '')}"
    execute(server.url, f"CREATE ROLE {name} LOGIN")
    yield name
    execute(database_url, f"DROP OWNED BY {name}")
    execute(server.url, f"DROP ROLE {name}")


def test_a_database_in_use_is_well(database_url: str) -> None:
    found = examine(database_url)
    assert list(found) == [
        "reachable", "version", "writable", "direct", "encoding", "durable", "migrations", "rights", "connections",
        "clock", "dead letters",
    ]  # fmt: skip
    assert [each for each in found.values() if each.verdict is not Verdict.OK and each.check != "connections"] == []
    assert found["migrations"].found == f"all {len(migrations())} applied"


def test_a_new_database_is_left_as_it_is(empty_url: str) -> None:
    found = examine(empty_url)
    assert {each.verdict for each in found.values() if each.check != "connections"} == {Verdict.OK}
    assert found["migrations"].found.endswith("to be applied by the next start")
    with connect(empty_url, application_name="tests") as connection:
        row = connection.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'shmcache'").fetchone()
    assert row == (0,)
    with connect(empty_url, application_name="tests") as connection:
        migrate(connection)
    assert examine(empty_url)["migrations"].found.startswith("all")


def test_a_schema_of_a_newer_version_is_a_failure(database_url: str) -> None:
    execute(database_url, "INSERT INTO migrations (name) VALUES ('9999_later.sql')")
    found = examine(database_url)["migrations"]
    assert found.verdict is Verdict.FAILURE
    assert "9999_later.sql" in found.found
    assert "upgrade" in found.advice


def test_a_role_that_may_not_make_the_schema_is_told_what_to_be_granted(empty_url: str, role: str) -> None:
    found = examine(make_conninfo(empty_url, user=role))["rights"]
    assert found.verdict is Verdict.FAILURE
    assert "GRANT CREATE ON DATABASE" in found.advice
    assert role in found.advice


def test_a_role_that_may_not_use_schema_or_tables_is_told_which(database_url: str, role: str) -> None:
    url = make_conninfo(database_url, user=role)
    found = examine(url)
    assert "USAGE, CREATE on the schema" in found["rights"].found
    assert found["migrations"].verdict is Verdict.FAILURE, "what may not be read is told, and the rest is looked at"
    execute(
        database_url,
        f"GRANT ALL ON SCHEMA shmcache TO {role}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA shmcache TO {role}",
        f"REVOKE DELETE ON dead_letters FROM {role}",
    )
    assert examine(url)["rights"].found.endswith("may not read and write dead_letters")
    execute(database_url, f"GRANT ALL ON dead_letters TO {role}")
    assert examine(url)["rights"].verdict is Verdict.OK


@pytest.mark.parametrize(
    ("setting", "check", "verdict"),
    [
        ("synchronous_commit = off", "durable", Verdict.WARNING),
        ("default_transaction_read_only = on", "writable", Verdict.FAILURE),
    ],
)
def test_settings_of_the_server_that_break_a_promise_are_found(
    database_url: str, name: str, setting: str, check: str, verdict: Verdict
) -> None:
    execute(database_url, f"ALTER DATABASE {name} SET {setting}")
    found = examine(database_url)[check]
    assert found.verdict is verdict


def test_a_database_that_cannot_hold_every_text_is_a_failure(server: EmbeddedServer) -> None:
    name = f"test_{new_id().replace('-', '')}"
    execute(server.url, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        found = examine(make_conninfo(server.url, dbname=name))["encoding"]
    finally:
        execute(server.url, f"DROP DATABASE {name} WITH (FORCE)")
    assert (found.verdict, found.found) == (Verdict.FAILURE, "SQL_ASCII")


def test_dead_letters_are_a_warning(database_url: str) -> None:
    with connect(database_url, application_name="tests") as connection:
        add_dead_letter(connection, new_id(), "write", 1, 1, b"x", ValueError("no"), True)
    found = examine(database_url)["dead letters"]
    assert (found.verdict, found.found) == (Verdict.WARNING, "1")
    assert "shmcache dead-letters list" in found.advice


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [(0.0, Verdict.OK), (-5.0, Verdict.WARNING), (5.0, Verdict.WARNING), (600.0, Verdict.FAILURE)],
)
def test_clocks_that_differ_are_told_by_how_much(
    database_url: str, monkeypatch: pytest.MonkeyPatch, seconds: float, verdict: Verdict
) -> None:
    ours = time.time
    monkeypatch.setattr(time, "time", lambda: ours() - seconds)  # so the server's clock is ahead of it
    found = examine(database_url)["clock"]
    assert found.verdict is verdict
    if seconds:
        assert abs(int(found.found.split(" ms", 1)[0]) - seconds * 1000) < 400
        assert "NTP" in found.advice


def test_a_database_that_is_not_there_is_told_apart_from_a_server_that_is_not(database_url: str) -> None:
    found = examine(make_conninfo(database_url, dbname="there_is_none"))
    assert list(found) == ["reachable"]
    assert found["reachable"].verdict is Verdict.FAILURE
    assert "createdb" in found["reachable"].advice
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # taken, and not listened on
        refused = examine(f"postgresql://me:geheim@127.0.0.1:{listener.getsockname()[1]}/db")["reachable"]
    assert "is the server running" in refused.advice
    assert "geheim" not in refused.found
    assert "name service" in examine("postgresql://me@host.invalid/db")["reachable"].advice


def test_the_command_ends_with_1_where_something_failed_and_tells_it_as_json(tmp_path: Path, database_url: str) -> None:
    def run(url: str) -> tuple[dict[str, str], int]:
        done = subprocess.run(
            [sys.executable, "-m", "tools.cli", "doctor", "--json", "--arena-size", "4 MiB"],
            cwd=ROOT, env={**os.environ, "SHMCACHE_DATABASE_URL": url, "SHMCACHE_STATE_DIR": str(tmp_path)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        findings = json.loads(done.stdout)["findings"]
        return {each["check"]: each["verdict"] for each in findings if each["area"] == "PostgreSQL"}, done.returncode

    found, _ = run(database_url)
    assert found["rights"] == "ok"
    assert run("postgresql://me@127.0.0.1:1/db") == ({"reachable": "failure"}, 1)


def test_the_embedded_server_is_asked_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_database(load_settings(state_dir=tmp_path))
    assert [(each.check, each.verdict) for each in found] == [("reachable", Verdict.SKIPPED)]
    assert list(tmp_path.iterdir()) == []
    with EmbeddedServer.start(tmp_path):
        found = check_database(load_settings(state_dir=tmp_path))
    assert {each.check: each.verdict for each in found}["writable"] is Verdict.OK
    monkeypatch.setattr("tools.doctor.database.find_spec", lambda _name: None)
    (failed,) = check_database(load_settings(state_dir=tmp_path))
    assert failed.verdict is Verdict.FAILURE
    assert "shmcache[embedded]" in failed.advice


def test_a_pooler_that_refuses_our_options_is_named(database_url: str) -> None:
    with Pooler(database_url, "extra_float_digits") as pooler:
        found = examine(pooler.url)["reachable"]
    assert found.verdict is Verdict.FAILURE
    assert "this is a pooler" in found.advice


def test_a_pooler_that_drops_our_options_is_a_failure(database_url: str) -> None:
    with Pooler(database_url) as pooler:
        found = examine(pooler.url)["reachable"]
    assert found.verdict is Verdict.FAILURE
    assert "search_path" in found.found
    assert "SET search_path = shmcache" in found.found


def test_a_pooler_needs_an_address_to_listen_at(server: EmbeddedServer, database_url: str) -> None:
    give_settings(database_url)
    with Pooler(database_url) as pooler:
        found = examine(pooler.url)
        assert found["direct"].verdict is Verdict.WARNING
        assert "SHMCACHE_LISTEN_URL" in found["direct"].advice
        assert {each.verdict for name, each in found.items() if name not in {"direct", "connections"}} == {Verdict.OK}

        def listening_at(url: str) -> Finding:
            checked = check_database(load_settings(database_url=pooler.url, listen_url=url))
            return next(each for each in checked if each.check == "direct")

        assert listening_at(database_url).verdict is Verdict.OK
        assert "too" in listening_at(pooler.url).found
        assert "another database" in listening_at(server.url).found
        assert listening_at("postgresql://me:geheim@127.0.0.1:1/db").verdict is Verdict.FAILURE
        assert "geheim" not in listening_at("postgresql://me:geheim@127.0.0.1:1/db").found
