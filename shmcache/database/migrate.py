"""The schema, brought up to date by numbered migrations that only go forward."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

import psycopg

from shmcache.database.connection import table_set_of
from shmcache.database.statements import statement

_LOCK = 0x73686D63  # "shmc": whoever migrates holds this advisory lock


def migrate(connection: psycopg.Connection[Any]) -> None:
    """Apply what is missing of the migrations for the connection's set of tables, in order, all in one transaction.

    Two at once wait for each other."""
    scripts = _scripts(table_set_of(connection))
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute("CREATE SCHEMA IF NOT EXISTS shmcache")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations"
            " (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        applied = {row[0] for row in connection.execute("SELECT name FROM migrations")}
        for script in scripts:
            if script.name not in applied:
                connection.execute(script.read_text(encoding="utf-8").encode())
                connection.execute("INSERT INTO migrations (name) VALUES (%s)", (script.name,))


def _scripts(table_set: str) -> list[Traversable]:
    scripts = files("shmcache.database").joinpath("migrations", table_set).iterdir()
    return sorted((each for each in scripts if each.name.endswith(".sql")), key=lambda each: each.name)


def identity(connection: psycopg.Connection[Any]) -> bytes:
    """Return 16 bytes that name this database: what its first migration drew, its cluster and its number there.

    A copy of a database, made from a template or a dump, is another database and has another identity; a replica that
    takes over is the same one."""
    row = connection.execute(statement(connection, "identity")).fetchone()
    assert row is not None
    return hashlib.blake2b(repr([str(part) for part in row]).encode(), digest_size=16).digest()
