"""Connections to PostgreSQL that count how often they make their process wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.waiting import Wait

from shmcache.errors import DatabaseUnavailable

T = TypeVar("T")


class CountingConnection(psycopg.Connection[Any]):
    """A connection that calls `on_wait` each time it makes its process wait for the server's answer."""

    on_wait: Callable[[], None] | None = None

    def wait(self, gen: PQGen[T], interval: float = 0.1) -> T:
        """Wait for the server; every round trip of a synchronous connection passes here.

        Only waiting to read counts: in pipeline mode, statements are sent without waiting for an answer."""
        return super().wait(gen if self.on_wait is None else _counted(gen, self.on_wait), interval)


def _counted(steps: PQGen[T], on_wait: Callable[[], None]) -> PQGen[T]:
    """Pass a generator of psycopg through; call `on_wait` once if it waits to read."""
    waited = False
    ready: Any = None
    try:
        wanted = next(steps)
        while True:
            if wanted == Wait.R and not waited:
                waited = True
                on_wait()
            ready = yield wanted
            wanted = steps.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


def address(url: str) -> str:
    """Return where a database is, for messages: host, port and name, never a password."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        return "(an address that cannot be read)"
    host = parts.get("host") or parts.get("hostaddr") or "the default socket"
    return f"{host}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"


def connect(
    url: str, *, application_name: str, on_wait: Callable[[], None] | None = None, autocommit: bool = True
) -> psycopg.Connection[Any]:
    """Open a connection whose search path is shmcache's schema. Raises DatabaseUnavailable."""
    if on_wait is not None:
        on_wait()
    try:
        connection = CountingConnection.connect(
            url,
            autocommit=autocommit,
            application_name=application_name,
            connect_timeout=10,
            keepalives=1,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            options="-c search_path=shmcache -c TimeZone=UTC",
        )
    except psycopg.Error as error:
        raise DatabaseUnavailable(address(url), " ".join(str(error).split())) from None
    connection.on_wait = on_wait
    return connection
