"""How workers come by their client: forked, spawned, or started by hand."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from shmcache import get_db_client, session
from shmcache.arena import Arena
from shmcache.config import load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.errors import ArenaMissing, SettingsError
from shmcache.identifiers import new_id
from tests.integration.test_clients import SINK, small_graph


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A graph execution in a prepared arena."""
    for name in ("ARENA", "DATABASE_URL", "MODE", "HANDED_ON"):
        monkeypatch.setenv(f"SHMCACHE_{name}", "")
        monkeypatch.delenv(f"SHMCACHE_{name}")
    graph, nodes = small_graph()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
    arena = Arena.create(f"session-{os.getpid()}", 8 << 20)
    session.prepare(arena, database_url, load_settings())
    yield get_db_client().create_graph_execution(graph.id, new_id()).id
    session.forget()
    arena.close()
    arena.unlink()


def give(run: str, answer: Connection) -> None:
    """In another process: give an input, and say which executions are seen."""
    client = get_db_client()
    client.upsert_execution_input(SINK, run, "left", os.getpid())
    answer.send([execution.inputs["left"] for execution in client.get_node_executions(run)])
    client.close()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_needs_no_set_up_and_sees_what_others_wrote(run: str, method: str) -> None:
    get_db_client().upsert_execution_input(SINK, run, "left", "mine")
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    worker = context.Process(target=give, args=(run, theirs))
    worker.start()
    assert ours.poll(60)
    assert ours.recv() == ["mine", worker.pid]
    worker.join()
    assert worker.exitcode == 0
    assert [each.inputs["left"] for each in get_db_client().get_node_executions(run)] == ["mine", worker.pid]


def test_one_process_has_one_client(run: str) -> None:
    assert get_db_client() is get_db_client()


def test_without_a_supervisor_the_error_names_what_is_missing(
    run: str, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    session.forget()
    monkeypatch.setenv("SHMCACHE_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("SHMCACHE_DATABASE_URL")
    with pytest.raises(SettingsError, match="SHMCACHE_DATABASE_URL"):
        get_db_client()
    monkeypatch.setenv("SHMCACHE_ARENA", "there-is-none")
    with pytest.raises(ArenaMissing, match=r"there-is-none.*shmcache serve"):
        get_db_client()
    monkeypatch.setenv("SHMCACHE_DATABASE_URL", database_url)
    with pytest.raises(ArenaMissing, match=r"there-is-none.*shmcache serve"):
        get_db_client()


def test_an_embedded_servers_address_is_found_beside_the_arena(
    run: str, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    session.forget()
    monkeypatch.setenv("SHMCACHE_STATE_DIR", str(tmp_path))
    monkeypatch.delenv("SHMCACHE_DATABASE_URL")
    session.leave_address(tmp_path, os.environ["SHMCACHE_ARENA"], database_url)
    assert get_db_client().get_graph_execution(run).id == run
    session.remove_address(tmp_path, os.environ["SHMCACHE_ARENA"])
    assert list(tmp_path.rglob("*.url")) == []


def test_who_inherited_an_arena_that_was_removed_since_attaches_to_the_next_one(run: str) -> None:
    """As a child that is forked from a server whose arena is gone, at its first call."""
    inherited = session.prepared_arena()
    name = inherited.name
    session.forget()
    inherited.own_lane.leave()
    with Arena.attach(name) as other:
        assert other.end()
        other.unlink()
    session._prepared = session._Prepared(inherited, os.environ["SHMCACHE_DATABASE_URL"], load_settings())
    with pytest.raises(ArenaMissing):
        get_db_client()
    session._prepared = session._Prepared(inherited, os.environ["SHMCACHE_DATABASE_URL"], load_settings())
    with Arena.create(name, 8 << 20):
        client = get_db_client()
        assert session.prepared_arena() is not inherited
        client.create_graph_execution(client.get_graph(small_graph()[0].id).id, new_id())
        session.prepared_arena().close()
