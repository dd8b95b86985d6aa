"""Of many processes that miss one record at once, one loads it from the database; whatever becomes of that one."""

from __future__ import annotations

import logging
import os
import select
import signal
import struct
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from shmcache.arena import Arena
from shmcache.arena.transaction import Put
from shmcache.cached_client import CachedClient
from shmcache.codec import encode
from shmcache.config import load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.frozen import freeze
from shmcache.identifiers import id_bytes, new_id
from shmcache.records import ExecutionStatus
from tests.integration.draining import drain
from tests.integration.test_clients import small_graph
from tests.unit.arena_state import commit

GRAPH, NODES = small_graph()
_PID = struct.Struct("<i")
LIMIT_SECONDS = 60


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"flight-{os.getpid()}", 16 << 20)
    made.loads.wait_seconds = 10 * LIMIT_SECONDS
    yield made
    made.release_dead()
    assert made.check() == []
    made.unlink()
    made.close()


@pytest.fixture
def make_client(arena: Arena, database_url: str) -> Callable[[], CachedClient]:
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, GRAPH, NODES)
    return lambda: CachedClient(arena, database_url, load_settings())


class Loads:
    """Notes, in a pipe, the process that begins a load; the load itself goes on to PostgreSQL."""

    def __init__(self) -> None:
        self._here, self._there = os.pipe()

    def noted(self, query: Callable[..., Any]) -> Callable[..., Any]:
        def load(*arguments: Any) -> Any:
            os.write(self._there, _PID.pack(os.getpid()))
            return query(*arguments)

        return load

    def next_pid(self) -> int:
        assert select.select([self._here], [], [], LIMIT_SECONDS)[0], "nobody loads"
        pid: int = _PID.unpack(os.read(self._here, _PID.size))[0]
        return pid

    def left(self) -> int:
        return len(os.read(self._here, 1 << 16)) // _PID.size if select.select([self._here], [], [], 0)[0] else 0


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    noted = Loads()
    for name in ("load_graph_of_node", "load_graph_execution"):
        monkeypatch.setattr(queries, name, noted.noted(getattr(queries, name)))
    return noted


@pytest.fixture
def table_lock(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection whose open transaction keeps all others from reading the tables, so that a load takes its time."""
    with connect(database_url, application_name="test lock") as connection:
        connection.execute("BEGIN")
        connection.execute("LOCK TABLE nodes, graphs, graph_executions IN ACCESS EXCLUSIVE MODE")
        yield connection


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def _ends(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _getter(make_client: Callable[[], CachedClient], started: int) -> Callable[[], None]:
    def get() -> None:
        client = make_client()
        os.write(started, b".")
        assert client.get_node(NODES[1].id).name == NODES[1].name
        client.close()

    return get


def test_a_herd_of_eight_on_one_missing_definition_makes_one_load(
    make_client: Callable[[], CachedClient], loads: Loads, table_lock: psycopg.Connection[Any]
) -> None:
    started, start = os.pipe()
    pids = [_fork(_getter(make_client, start)) for _ in range(8)]
    for _ in pids:
        os.read(started, 1)
    loader = loads.next_pid()
    table_lock.rollback()
    assert _ends(pids) == [0] * 8
    assert loader in pids
    assert loads.left() == 0


def test_when_the_loader_is_killed_another_takes_over(
    make_client: Callable[[], CachedClient], loads: Loads, table_lock: psycopg.Connection[Any]
) -> None:
    _, start = os.pipe()
    pids = [_fork(_getter(make_client, start)) for _ in range(4)]
    loader = loads.next_pid()
    os.kill(loader, signal.SIGKILL)
    successor = loads.next_pid()
    assert successor != loader
    table_lock.rollback()
    assert sorted(_ends(pids)) == [-signal.SIGKILL, 0, 0, 0]
    assert loads.left() == 0


def test_when_the_loader_is_stopped_the_others_load_by_themselves_and_name_it(
    arena: Arena, make_client: Callable[[], CachedClient], loads: Loads, table_lock: psycopg.Connection[Any]
) -> None:
    _, start = os.pipe()
    said, say = os.pipe()
    get = _getter(make_client, start)

    def get_and_tell() -> None:
        logger = logging.getLogger("shmcache.arena.load_locks")
        logger.addHandler(logging.FileHandler(f"/dev/fd/{say}"))
        get()

    stopped = _fork(get)
    assert loads.next_pid() == stopped
    os.kill(stopped, signal.SIGSTOP)
    os.waitpid(stopped, os.WUNTRACED)
    arena.loads.wait_seconds = 0.2
    others = [_fork(get_and_tell) for _ in range(2)]
    assert {loads.next_pid(), loads.next_pid()} == set(others)
    table_lock.rollback()
    assert _ends(others) == [0, 0]
    assert os.read(said, 4096).decode().count(f"process {stopped} has been loading a record for 0.2 s") == 2
    os.kill(stopped, signal.SIGCONT)
    assert _ends([stopped]) == [0]
    assert loads.left() == 0


def test_what_was_written_during_a_load_is_not_overwritten_by_it(
    arena: Arena, make_client: Callable[[], CachedClient], database_url: str, request: pytest.FixtureRequest
) -> None:
    client = make_client()
    with connect(database_url, application_name="test") as connection:
        user = new_id()
        queries.create_account(connection, user, 100)
    run = client.create_graph_execution(GRAPH.id, user)
    drain(arena, database_url)
    assert arena.drop_family(id_bytes(run.id))
    loads: Loads = request.getfixturevalue("loads")
    table_lock: psycopg.Connection[Any] = request.getfixturevalue("table_lock")

    def get() -> None:
        assert make_client().get_graph_execution(run.id).stats == {"written": "meanwhile"}

    pid = _fork(get)
    assert loads.next_pid() == pid
    newer = run._replace(status=ExecutionStatus.RUNNING, stats=freeze({"written": "meanwhile"}))
    commit(arena, Put(id_bytes(run.id), encode(newer)))
    table_lock.rollback()
    assert _ends([pid]) == [0]
    assert client.get_graph_execution(run.id).status is ExecutionStatus.RUNNING
    client.close()
