"""The SQL of this package: one statement a file in `sql/`, read once."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def statement(name: str) -> bytes:
    """Return the text of `sql/<name>.sql`."""
    return files("shmcache.database").joinpath("sql", f"{name}.sql").read_bytes()
