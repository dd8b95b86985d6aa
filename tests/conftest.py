"""A real PostgreSQL for the tests: one server for all processes of a test run, a database of its own for each test.

A run of the tests fails if it leaves an arena in /dev/shm or a server behind."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import psutil
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from shmcache.arena import Arena, list_arenas
from shmcache.database.connection import TableSet, connect, with_table_set
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import migrate
from shmcache.errors import ArenaError, ArenaUnusable
from shmcache.identifiers import new_id
from tests.stress.executors.controller import CONTROLLER, Controller

_STATE = "TESTS_STATE_DIR"
_TEMPLATE = "template_of_tests"
_PLATFORM_TABLES = Path(__file__).parent / "platform_tables.sql"


_BESIDE = "TESTS_BESIDE"
"""Set for a run inside of a run: arenas that it has not made come and go."""

_arenas_before = frozenset(list_arenas())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    parser.addoption(
        "--kills", type=int, default=10, help="how many leaders the kill run of the syncer kills (the long run: 200)"
    )
    parser.addoption(
        "--shadow-runs", type=int, default=20, help="how many random graphs run in shadow mode (the long run: 1000)"
    )
    parser.addoption(
        "--tables", choices=get_args(TableSet), default="shmcache", help="whose tables the tests' databases have"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the server's directory in the controlling process; workers of pytest-xdist inherit its name."""
    if not hasattr(config, "workerinput"):
        os.environ[_STATE] = tempfile.mkdtemp(prefix="shmcache-tests-")
        os.environ["TMPDIR"] = os.environ[_STATE]  # for the logs of programs that tests make fail
        for name in [each for each in os.environ if each.startswith("SHMCACHE_")]:
            del os.environ[name]
        os.environ["SHMCACHE_CONFIG"] = os.devnull  # not the settings of who runs them
        config.pluginmanager.register(Controller(Path(os.environ[_STATE])), CONTROLLER)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run for what it left behind: arenas that nobody uses any more, servers over its directory."""
    if hasattr(session.config, "workerinput"):
        return
    arenas = set() if _BESIDE in os.environ else {*list_arenas()} - _arenas_before
    left = [f"arena {name}" for name in sorted(arenas) if not _in_use(name)]
    commands = {process.pid: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}
    directory = os.environ[_STATE]
    left += [f"process {pid}: {command}" for pid, command in commands.items() if directory in " ".join(command)]
    if left:
        sys.stdout.write("\nleft behind by the tests:\n" + "\n".join(left) + "\n")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _in_use(arena_name: str) -> bool:
    try:
        with Arena.attach(arena_name) as arena:
            return any(process.alive for process in arena.processes())
    except ArenaUnusable as error:
        return "another version" in error.reason  # the tests of another checkout, which run at the same time
    except ArenaError:
        return False


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the directory once every worker has left the server."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(_STATE), ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Take back what a test hands on to processes of its own by the environment: the next one has other settings."""
    before = {name: value for name, value in os.environ.items() if name.startswith("SHMCACHE_")}
    yield
    for name in [each for each in os.environ if each.startswith("SHMCACHE_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """The embedded server, with a migrated database to copy from."""
    state_dir = Path(os.environ[_STATE])
    with EmbeddedServer.start(state_dir) as started:
        with open(state_dir / "template.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with connect(started.url, application_name="tests") as connection:
                for table_set in get_args(TableSet):
                    _make_template(connection, started.url, table_set)
        yield started


def _make_template(connection: psycopg.Connection[Any], url: str, table_set: TableSet) -> None:
    name = f"{_TEMPLATE}_{table_set}"
    if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
        connection.execute(f"CREATE DATABASE {name}")
        own_url = with_table_set(make_conninfo(url, dbname=name), table_set)
        with connect(own_url, application_name="tests") as template:
            if table_set == "autogpt":
                template.execute(_PLATFORM_TABLES.read_bytes())
            migrate(template)


@pytest.fixture
def table_set(request: pytest.FixtureRequest) -> TableSet:
    """Whose tables the test's databases have; a module that is tried on all of them overrides it."""
    chosen: TableSet = request.config.getoption("--tables")
    return chosen


@pytest.fixture
def new_database_url(server: EmbeddedServer, table_set: TableSet) -> Iterator[Callable[[], str]]:
    """Return a function that makes a migrated database and returns its address; all are dropped after the test."""
    names: list[str] = []

    def make() -> str:
        names.append(f"test_{new_id().replace('-', '')}")
        with connect(server.url, application_name="tests") as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(names[-1]), sql.Identifier(f"{_TEMPLATE}_{table_set}")
                )
            )
        return with_table_set(make_conninfo(server.url, dbname=names[-1]), table_set)

    yield make
    with connect(server.url, application_name="tests") as connection:
        for name in names:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database_url(new_database_url: Callable[[], str]) -> str:
    """The address of a migrated database of the test's own."""
    return new_database_url()
