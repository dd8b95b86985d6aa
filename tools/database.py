"""The database of a command: the one that the settings name, else the embedded server, migrated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from shmcache.config import Settings
from shmcache.database.connection import address, connect, with_table_set
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import migrate
from shmcache.errors import DatabaseUnavailable


@contextmanager
def database_url(settings: Settings) -> Iterator[str]:
    """Give the database's address while it is needed; an embedded server is started, and left at the end.

    Raises DatabaseUnavailable, also for what the database answers inside the block."""
    server = None if settings.database_url else EmbeddedServer.start(settings.state_dir)
    url = with_table_set(settings.database_url or (server.url if server else ""), settings.schema)
    try:
        with connect(url, application_name="shmcache command") as connection:
            migrate(connection)
        yield url
    except psycopg.Error as error:
        raise DatabaseUnavailable(address(url), " ".join(str(error).split()) or type(error).__name__) from None
    finally:
        if server is not None:
            server.stop()


@contextmanager
def open_database(settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    """Give an open connection to the database, as `database_url` does its address. Raises DatabaseUnavailable."""
    with database_url(settings) as url, connect(url, application_name="shmcache command") as connection:
        yield connection
