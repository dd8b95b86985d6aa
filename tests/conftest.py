"""A real PostgreSQL for the tests: one server for all processes of a test run, a database of its own for each test."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import migrate
from shmcache.identifiers import new_id

_STATE = "SHMCACHE_TEST_STATE_DIR"
_TEMPLATE = "template_of_tests"


def pytest_configure(config: pytest.Config) -> None:
    """Make the server's directory in the controlling process; workers of pytest-xdist inherit its name."""
    if not hasattr(config, "workerinput"):
        os.environ[_STATE] = tempfile.mkdtemp(prefix="shmcache-tests-")
        for name in [each for each in os.environ if each.startswith("SHMCACHE_") and each != _STATE]:
            del os.environ[name]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the directory once every worker has left the server."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(_STATE), ignore_errors=True)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """The embedded server, with a migrated database to copy from."""
    state_dir = Path(os.environ[_STATE])
    with EmbeddedServer.start(state_dir) as started:
        with open(state_dir / "template.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with connect(started.url, application_name="tests") as connection:
                row = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (_TEMPLATE,)).fetchone()
                if row is None:
                    connection.execute(f"CREATE DATABASE {_TEMPLATE}")
                    with connect(make_conninfo(started.url, dbname=_TEMPLATE), application_name="tests") as template:
                        migrate(template)
        yield started


@pytest.fixture
def new_database_url(server: EmbeddedServer) -> Iterator[Callable[[], str]]:
    """Return a function that makes a migrated database and returns its address; all are dropped after the test."""
    names: list[str] = []

    def make() -> str:
        names.append(f"test_{new_id().replace('-', '')}")
        with connect(server.url, application_name="tests") as connection:
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(names[-1]), sql.Identifier(_TEMPLATE))
            )
        return make_conninfo(server.url, dbname=names[-1])

    yield make
    with connect(server.url, application_name="tests") as connection:
        for name in names:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def database_url(new_database_url: Callable[[], str]) -> str:
    """The address of a migrated database of the test's own."""
    return new_database_url()
