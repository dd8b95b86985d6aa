"""The schema, brought up to date by numbered migrations that only go forward."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, get_args

import psycopg

from shmcache.database.connection import CountingConnection, TableSet, table_set_of
from shmcache.database.statements import statement
from shmcache.errors import SettingsError

_TABLE_SETS = get_args(TableSet)
_LOCK = 0x73686D63  # "shmc": whoever migrates holds this advisory lock


def migrate(connection: psycopg.Connection[Any]) -> None:
    """Apply what is missing of the migrations for the connection's set of tables, in order, all in one transaction.

    Two at once wait for each other."""
    scripts = _scripts(table_set_of(connection))
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        if isinstance(connection, CountingConnection) and connection.platform_schema:
            # The scripts ask for it; a pooler may have kept it back.
            connection.execute("SELECT set_config('shmcache.platform_schema', %s, true)", (connection.platform_schema,))
        connection.execute("CREATE SCHEMA IF NOT EXISTS shmcache")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations"
            " (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        applied = {row[0] for row in connection.execute("SELECT name FROM migrations")}
        _check_place(connection, applied - {script.name for script in scripts})
        for script in scripts:
            if script.name not in applied:
                _apply(connection, script)
                connection.execute("INSERT INTO migrations (name) VALUES (%s)", (script.name,))


def migrations(table_set: TableSet = "shmcache") -> list[str]:
    """Return the names of all migrations that this version has for a set of tables, in order."""
    return [script.name for script in _scripts(table_set)]


def applied_migrations(connection: psycopg.Connection[Any]) -> list[str]:
    """Return the names of those that a database has, in order; none where the schema is not there. Changes nothing."""
    row = connection.execute("SELECT to_regclass('shmcache.migrations') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return []
    return [str(row[0]) for row in connection.execute("SELECT name FROM shmcache.migrations ORDER BY name")]


def _apply(connection: psycopg.Connection[Any], script: Traversable) -> None:
    try:
        connection.execute(script.read_text(encoding="utf-8").encode())
    except psycopg.errors.DependentObjectsStillExist as error:
        raise SettingsError(f"migration {script.name}: {error.diag.message_primary}") from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise SettingsError(
            f"migration {script.name}: {' '.join(str(error).split())}: SHMCACHE_DATABASE_URL must name, for the first "
            "start, a user that may make a schema, and triggers on the tables whose changes are told"
        ) from None


def _check_place(connection: psycopg.Connection[Any], foreign: set[str]) -> None:
    """Refuse a database that was made for another set of tables, or has not the platform's. Raises SettingsError."""
    table_set = table_set_of(connection)
    other = next((name for name in _TABLE_SETS if foreign & {script.name for script in _scripts(name)}), None)
    if other is not None:
        raise SettingsError(
            f"SHMCACHE_SCHEMA={table_set}, but the schema shmcache of this database was made for "
            f"SHMCACHE_SCHEMA={other}: set it to that, or use another database"
        )
    if table_set == "autogpt":
        row = connection.execute(
            "SELECT to_regclass('\"AgentNodeExecution\"'), current_setting('shmcache.platform_schema')"
        ).fetchone()
        assert row is not None
        if row[0] is None:
            raise SettingsError(
                f'SHMCACHE_SCHEMA=autogpt, but the database has no table "AgentNodeExecution" in a schema '
                f"{row[1]!r}: check SHMCACHE_DATABASE_URL (its parameter `schema` names the schema)"
            )


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
