"""Connections to PostgreSQL that count how often they make their process wait, and know whose tables they are to.

Which set of tables is meant is part of the address, as a parameter of our own in its options (`with_table_set`): so
it goes wherever the address goes, to workers, pools and other programs, and `SHOW shmcache.platform_schema` tells it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.waiting import Ready, Wait

from shmcache.database.poolers import look_at_session
from shmcache.errors import DatabaseUnavailable
from shmcache.patience import before_waiting

T = TypeVar("T")

TableSet = Literal["shmcache", "autogpt"]
"""Whose tables executions and accounts are kept in: our own, or those of the AutoGPT Platform."""


class CountingConnection(psycopg.Connection[Any]):
    """A connection that calls `on_wait` each time it makes its process wait for the server's answer."""

    on_wait: Callable[[], None] | None = None
    table_set: TableSet = "shmcache"
    platform_schema: str = ""
    is_pooled: bool = False

    def wait(self, gen: PQGen[T], *arguments: Any, **options: Any) -> T:
        """Wait for the server; every round trip of a synchronous connection passes here.

        Only what brings an answer counts: in pipeline mode, statements are sent without waiting for one."""
        return super().wait(gen if self.on_wait is None else _counted(gen, self.on_wait), *arguments, **options)


class CountingCursor(psycopg.Cursor[Any]):
    """A cursor that counts the preparing of a statement too: outside of a pipeline it is a round trip of its own,
    within the same call of `wait`."""

    def _send_prepare(self, name: bytes, query: Any) -> None:
        connection = self.connection
        if isinstance(connection, CountingConnection) and connection.on_wait and not connection._pipeline:
            connection.on_wait()
        super()._send_prepare(name, query)


def sync_pipeline(
    connection: psycopg.Connection[Any], pipeline: psycopg.Pipeline, meanwhile: Callable[[], None]
) -> None:
    """Have a pipeline's statements run and wait for their answers. Raises the first error among them.

    `meanwhile` is called once, as soon as this process would wait for the server."""
    assert isinstance(connection, CountingConnection)
    todo = [meanwhile]

    def pass_time() -> None:
        if todo:
            todo.pop()()

    connection.wait(_sent(connection, pass_time))
    before, connection.on_wait = connection.on_wait, pass_time
    try:
        pipeline.sync()
    finally:
        connection.on_wait = before


def _sent(connection: psycopg.Connection[Any], pass_time: Callable[[], None]) -> PQGen[None]:
    while connection.pgconn.flush():
        pass_time()
        ready = yield Wait.RW
        if ready & Ready.R:
            connection.pgconn.consume_input()  # a server whose answers nobody takes would stop listening


def _counted(steps: PQGen[T], on_wait: Callable[[], None]) -> PQGen[T]:
    """Pass a generator of psycopg through; call `on_wait` once if it waits for an answer, or is given one while it
    sends: the answer to a pipeline's end may be there before anybody asks for it."""
    waited = False
    try:
        wanted = next(steps)
        while True:
            if wanted == Wait.R and not waited:
                waited = True
                on_wait()
            ready = yield wanted
            if ready & Ready.R and not waited:
                waited = True
                on_wait()
            elif not ready:  # ten times a second, for who looks whether it shall go on
                before_waiting()
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


_DEFAULTS = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",  # ms; what was sent into the void is given up then, where keepalives do not count
}
_OPTIONS = "-c search_path={} -c TimeZone=UTC -c default_transaction_isolation=read\\ committed"
_PLATFORM = "-c shmcache.platform_schema="
_DEFAULT_PLATFORM = "platform"
_PRISMA_ONLY = frozenset({
    "schema", "connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size", "pgbouncer",
})  # fmt: skip
"""Parameters of an address that Prisma knows and libpq refuses."""


def with_table_set(url: str, table_set: TableSet) -> str:
    """Return an address that says whose tables are meant; every connection opened with it knows.

    The platform's addresses are Prisma's: what only Prisma knows of them is left out, `schema` names the schema of its
    tables. Raises DatabaseUnavailable for what is no address."""
    if table_set == "shmcache":
        return url
    schema = _DEFAULT_PLATFORM
    if "://" in url:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True)
        schema = dict(query).get("schema") or schema
        url = urlunsplit(parts._replace(query=urlencode([pair for pair in query if pair[0] not in _PRISMA_ONLY])))
    options = _parsed(url).get("options") or ""
    if _PLATFORM in options:
        return url
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", schema):
        raise DatabaseUnavailable(address(url), f"{schema!r} cannot be the name of the platform's schema")
    return make_conninfo(url, options=f"{options} {_PLATFORM}{schema}".strip())


def table_set_of(connection: psycopg.Connection[Any]) -> TableSet:
    """Return whose tables a connection is to."""
    return connection.table_set if isinstance(connection, CountingConnection) else "shmcache"


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Say whether each transaction of a connection may run in another session of the server (see `poolers`)."""
    return isinstance(connection, CountingConnection) and connection.is_pooled


def _parsed(url: str) -> dict[str, Any]:
    try:
        return dict(conninfo_to_dict(url))
    except psycopg.Error:
        # The error quotes the address, password and all.
        raise DatabaseUnavailable(
            address(url), "it must be like postgresql://user@host:5432/database: check SHMCACHE_DATABASE_URL"
        ) from None


def connect(
    url: str, *, application_name: str, on_wait: Callable[[], None] | None = None, autocommit: bool = True
) -> psycopg.Connection[Any]:
    """Open a connection whose search path is shmcache's schema, then the platform's where its tables are meant.

    What the URL sets itself stands. Times in UTC. Behind a pooler nothing is prepared (see `is_pooled`); one that keeps
    the search path back is refused.

    `on_wait` is called twice for the connecting (a look at what was got is part of it), and from then on each time the
    connection makes this process wait for the server. Raises DatabaseUnavailable."""
    given = _parsed(url)
    options = str(given.get("options") or "")
    platform = re.search(rf"{re.escape(_PLATFORM)}(\w+)", options)
    path = f"shmcache,{platform[1]}" if platform else "shmcache"
    settings: dict[str, Any] = {**_DEFAULTS, **given, "options": f"{options} {_OPTIONS.format(path)}".strip()}
    if on_wait is not None:
        on_wait()
    try:
        connection = CountingConnection.connect(
            make_conninfo(**settings, application_name=application_name),
            autocommit=True,
            cursor_factory=CountingCursor,
        )
    except psycopg.Error as error:
        raise DatabaseUnavailable(address(url), " ".join(str(error).split())) from None
    connection.table_set = "autogpt" if platform else "shmcache"
    connection.platform_schema = platform[1] if platform else ""
    if on_wait is not None:
        on_wait()
    try:
        _look_at_session(connection, url, path)
    except BaseException:
        connection.close()
        raise
    connection.autocommit = autocommit
    connection.on_wait = on_wait
    return connection


def _look_at_session(connection: CountingConnection, url: str, path: str) -> None:
    """See whether a pooler stands between, and whether what we asked for arrived. Raises DatabaseUnavailable."""
    try:
        session = look_at_session(connection, path)
    except psycopg.Error as error:
        raise DatabaseUnavailable(address(url), " ".join(str(error).split())) from None
    connection.is_pooled = session.is_pooled
    if session.is_pooled:
        connection.prepare_threshold = None
    if session.problem is not None:
        raise DatabaseUnavailable(address(url), session.problem)
