"""The schema, brought up to date by numbered migrations that only go forward."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import psycopg

_LOCK = 0x73686D63  # "shmc": whoever migrates holds this advisory lock


def migrate(connection: psycopg.Connection[Any]) -> None:
    """Apply what is missing of `migrations/*.sql`, in order, all in one transaction. Two at once wait for each
    other."""
    scripts = sorted(
        (each for each in files("shmcache.database").joinpath("migrations").iterdir() if each.name.endswith(".sql")),
        key=lambda each: each.name,
    )
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


def identity(connection: psycopg.Connection[Any]) -> bytes:
    """Return the 16 random bytes that name this database, made by the first migration."""
    row = connection.execute("SELECT identity FROM database_identity").fetchone()
    assert row is not None
    value: bytes = row[0].bytes
    return value
