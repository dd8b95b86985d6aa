"""The SQL of this package: one statement a file, read once. There is a set of statements for each set of tables.

    sql/common/     statements that are the same for every set of tables
    sql/shmcache/   the others on our own tables
    sql/autogpt/    the others on those of the AutoGPT Platform

A name means the same in each set: the same parameters, the same columns of its answer, the same effect. A connection
says which set is meant (`connection.table_set_of`), so that nobody else asks.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import psycopg

from shmcache.database.connection import table_set_of


def statement(connection: psycopg.Connection[Any], name: str) -> bytes:
    """Return the text of a statement for the tables that a connection is to."""
    return _read(table_set_of(connection), name)


@cache
def _read(table_set: str, name: str) -> bytes:
    sql = files("shmcache.database").joinpath("sql")
    own = sql.joinpath(table_set, f"{name}.sql")
    return (own if own.is_file() else sql.joinpath("common", f"{name}.sql")).read_bytes()
