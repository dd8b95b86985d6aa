"""The schema, brought up to date by numbered migrations that only go forward."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

import psycopg

from shmcache.database.statements import statement

_LOCK = 0x73686D63  # "shmc": whoever migrates holds this advisory lock


def migrate(connection: psycopg.Connection[Any]) -> None:
    """Apply what is missing of `migrations/*.sql`, in order, all in one transaction. Two at once wait for each
    other."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute("CREATE SCHEMA IF NOT EXISTS shmcache")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations"
            " (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        applied = {row[0] for row in connection.execute("SELECT name FROM migrations")}
        for name in migrations():
            if name not in applied:
                script = files("shmcache.database").joinpath("migrations", name)
                connection.execute(script.read_text(encoding="utf-8").encode())
                connection.execute("INSERT INTO migrations (name) VALUES (%s)", (name,))


def migrations() -> list[str]:
    """Return the names of all migrations that this version has, in order."""
    directory = files("shmcache.database").joinpath("migrations")
    return sorted(each.name for each in directory.iterdir() if each.name.endswith(".sql"))


def applied_migrations(connection: psycopg.Connection[Any]) -> list[str]:
    """Return the names of those that a database has, in order; none where the schema is not there. Changes nothing."""
    row = connection.execute("SELECT to_regclass('shmcache.migrations') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return []
    return [str(row[0]) for row in connection.execute("SELECT name FROM shmcache.migrations ORDER BY name")]


def identity(connection: psycopg.Connection[Any]) -> bytes:
    """Return 16 bytes that name this database: what its first migration drew, its cluster and its number there.

    A copy of a database, made from a template or a dump, is another database and has another identity; a replica that
    takes over is the same one."""
    row = connection.execute(statement("identity")).fetchone()
    assert row is not None
    return hashlib.blake2b(repr([str(part) for part in row]).encode(), digest_size=16).digest()
