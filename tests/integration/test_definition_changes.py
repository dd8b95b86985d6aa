"""Definitions that are changed in the database, by any program: each host serves what is there, whatever it missed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from shmcache.arena import Arena, Counter
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.definition_index import LEASE
from shmcache.errors import NotFound
from shmcache.execution_data_client import WorkKind
from shmcache.identifiers import derived_id, id_bytes, new_id
from shmcache.manager import Manager
from shmcache.records import ExecutionStatus, Graph, Link, NodeDefinition
from syncer import definition_changes
from syncer.definition_changes import DefinitionChanges
from syncer.sync_manager import SyncManager
from tests import kill_points
from tests.integration.faults import await_true
from tests.integration.test_clients import SINK, SOURCE, small_graph
from tools.chaos.proxy import Proxy

Connection = psycopg.Connection[Any]
InChild = Callable[[Callable[[Callable[[], bool]], None]], int]

GRAPH = small_graph()[0].id


class Gate(Proxy):
    """A host's way to the database; while it is closed nothing gets through."""

    closed = False

    def _accept(self) -> None:
        if self.closed:
            self._listener.accept()[0].close()
        else:
            super()._accept()

    def close(self) -> None:
        self.closed = True
        self.cut()


class Host(NamedTuple):
    """An arena with its leader, and a client of it."""

    arena: Arena
    client: CachedClient
    gate: Gate


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, sync_interval=0.1, definition_interval=60.0)


@pytest.fixture
def other_program(database_url: str) -> Iterator[Connection]:
    """A connection of a program that knows nothing of us."""
    with connect(database_url, application_name="other program") as connection:
        queries.save_graph(connection, *small_graph())
        yield connection


@pytest.fixture
def make_host(database_url: str, settings: Settings, in_child: InChild) -> Iterator[Callable[..., Host]]:
    """Return a function that makes a host; its leader listens, and has looked at what is there."""
    with contextlib.ExitStack() as left:

        def make(name: str, interval: float = 60.0, leads: bool = True) -> Host:
            arena = Arena.create(f"definitions-{name}-{os.getpid()}", 16 << 20)
            left.callback(arena.unlink)
            left.callback(arena.close)
            gate = Gate(database_url)
            own = settings.model_copy(update={"arena": arena.name, "definition_interval": interval})
            leader = in_child(lambda stop: SyncManager(arena, gate.url, own).run(stop)) if leads else None
            left.enter_context(gate)  # its thread only now: what was forked has none
            client = left.enter_context(CachedClient(arena, gate.url, own))
            if leader is not None:
                left.callback(ask_to_end, leader)  # before its way to the database ends
                await_true(lambda: arena.version(LEASE) != 0)  # it listens, and looks at what is there
            return Host(arena, client, gate)

        yield make


def ask_to_end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.fixture
def hosts(make_host: Callable[..., Host], other_program: Connection) -> list[Host]:
    """Two hosts that have the small graph in their arenas."""
    made = [make_host("one"), make_host("two")]
    for host in made:
        for node in (SOURCE, SINK):
            host.client.get_node(node)
    return made


def constant(host: Host) -> Any:
    return host.client.get_node(SOURCE).constants.get("value")


def waits(host: Host) -> int:
    return host.arena.counter_totals()[Counter.BLOCKING_DB_OPERATIONS.name.lower()]


def change_constant(connection: Connection, value: int) -> None:
    connection.execute(
        "UPDATE nodes SET constants = jsonb_build_object('value', %s::int) WHERE id = %s", (value, SOURCE)
    )


CHANGES: dict[str, tuple[str, Callable[[CachedClient], bool]]] = {
    "constants": (
        f"UPDATE nodes SET constants = '{{\"value\": 8}}' WHERE id = '{SOURCE}'",
        lambda client: client.get_node(SOURCE).constants == {"value": 8},
    ),
    "block": (
        f"UPDATE nodes SET block_id = 'shmcache.identity' WHERE id = '{SINK}'",
        lambda client: client.get_node(SINK).block_id == "shmcache.identity",
    ),
    "name": (
        f"UPDATE graphs SET name = 'renamed' WHERE id = '{GRAPH}'",
        lambda client: client.get_graph(GRAPH).name == "renamed",
    ),
    "link added": (
        f"INSERT INTO links VALUES ('{GRAPH}', 7, '{SINK}', 'out', '{SOURCE}', 'again', false)",
        lambda client: (
            [each.sink_name for each in client.get_node(SOURCE).input_links] == ["again"]
            and len(client.get_node(SINK).output_links) == 1
        ),
    ),
    "link changed": (
        f"UPDATE links SET is_static = true WHERE graph_id = '{GRAPH}'",
        lambda client: all(each.is_static for each in client.get_node(SINK).input_links),
    ),
    "link deleted": (
        f"DELETE FROM links WHERE graph_id = '{GRAPH}' AND sink_name = 'left'",
        lambda client: len(client.get_node(SINK).input_links) == 1,
    ),
    "links truncated": ("TRUNCATE links", lambda client: not client.get_node(SINK).input_links),
    "node added": (
        f"INSERT INTO nodes VALUES ('{new_id()}', '{GRAPH}', 3, 'third', 'shmcache.identity', '{{}}', '{{}}')",
        lambda client: len(client.get_graph(GRAPH).node_ids) == 3,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_any_program_is_served_by_every_host_and_no_executor_waits_for_it(
    hosts: list[Host], other_program: Connection, change: str
) -> None:
    statement, is_served = CHANGES[change]
    before = [waits(host) for host in hosts]
    assert not any(is_served(host.client) for host in hosts)
    other_program.execute(statement)
    for host in hosts:
        await_true(lambda host=host: is_served(host.client))  # type: ignore[misc]
    assert [waits(host) for host in hosts] == before


def test_nodes_and_graphs_that_are_deleted_are_found_no_more(hosts: list[Host], other_program: Connection) -> None:
    def is_gone(host: Host, identifier: str) -> bool:
        return host.arena.peek(id_bytes(identifier)) is None

    other_program.execute("DELETE FROM links")
    other_program.execute("DELETE FROM nodes WHERE id = %s", (SINK,))
    for host in hosts:
        await_true(lambda host=host: is_gone(host, SINK))  # type: ignore[misc]
        with pytest.raises(NotFound):
            host.client.get_node(SINK)
        assert constant(host) == 7
    other_program.execute("DELETE FROM nodes")
    other_program.execute("DELETE FROM graphs")
    for host in hosts:
        await_true(lambda host=host: is_gone(host, GRAPH) and is_gone(host, SOURCE))  # type: ignore[misc]
        with pytest.raises(NotFound):
            host.client.get_node(SOURCE)


def test_many_changes_in_one_transaction_are_told_once_and_a_new_graph_not_at_all(
    hosts: list[Host], other_program: Connection, database_url: str
) -> None:
    with connect(database_url, application_name="test") as listening:
        listening.execute("LISTEN shmcache_definitions")
        with other_program.transaction():
            for value in range(20):
                change_constant(other_program, value)
            other_program.execute("UPDATE graphs SET name = 'both'")
        graph_id = new_id()
        node = NodeDefinition(new_id(), graph_id, "new", "shmcache.identity", {}, {}, (), ())
        queries.save_graph(other_program, Graph(graph_id, "new", (node.id,), {}), [node])
        queries.save_graph(other_program, *small_graph())
        change_constant(other_program, 19)
        other_program.execute("UPDATE graphs SET name = 'last' WHERE id = %s", (graph_id,))
        told = []
        for each in listening.notifies(timeout=30):
            told.append(each.payload)
            if each.payload == graph_id:
                break
        assert told == [GRAPH, graph_id]
    for host in hosts:
        await_true(lambda host=host: constant(host) == 19)  # type: ignore[misc]


def test_a_change_that_is_rolled_back_is_served_by_nobody(hosts: list[Host], other_program: Connection) -> None:
    with other_program.transaction(force_rollback=True):
        change_constant(other_program, 9)
    with other_program.transaction():
        with other_program.transaction(force_rollback=True):
            change_constant(other_program, 10)
        change_constant(other_program, 11)
    for host in hosts:
        await_true(lambda host=host: constant(host) == 11)  # type: ignore[misc]


def test_a_change_while_a_host_is_cut_off_is_served_there_when_it_is_back(
    hosts: list[Host], other_program: Connection
) -> None:
    one, two = hosts
    two.gate.close()
    change_constant(other_program, 8)
    await_true(lambda: constant(one) == 8)
    assert constant(two) == 7  # what it has it serves on
    two.gate.closed = False
    await_true(lambda: constant(two) == 8)
    change_constant(other_program, 9)
    for host in hosts:
        await_true(lambda host=host: constant(host) == 9)  # type: ignore[misc]


def test_a_change_that_nobody_is_told_of_is_found_by_the_version_check(
    make_host: Callable[..., Host], other_program: Connection
) -> None:
    host = make_host("checking", interval=0.1)
    assert constant(host) == 7
    other_program.execute("ALTER TABLE graphs DISABLE TRIGGER graphs_changed")
    change_constant(other_program, 8)
    await_true(lambda: constant(host) == 8)


def test_a_host_that_has_not_a_graph_does_not_load_it_for_a_change(
    make_host: Callable[..., Host], hosts: list[Host], other_program: Connection
) -> None:
    third = make_host("third")
    change_constant(other_program, 8)
    for host in hosts:
        await_true(lambda host=host: constant(host) == 8)  # type: ignore[misc]
    assert third.arena.peek(id_bytes(SOURCE)) is None
    assert constant(third) == 8


@pytest.mark.parametrize("step", kill_points.steps_of(definition_changes))
def test_a_leader_killed_at_any_step_of_a_change_is_followed_by_one_that_makes_it(
    make_host: Callable[..., Host], other_program: Connection, settings: Settings, step: str, database_url: str
) -> None:
    host = make_host("killed", leads=False)
    assert constant(host) == 7
    pid = os.fork()
    if not pid:
        try:
            changes = DefinitionChanges(host.arena, database_url, 60.0)
            assert changes.listening.wait(60)
            kill_points.arm(definition_changes, lambda at: os.kill(os.getpid(), signal.SIGKILL) if at == step else None)
            change_constant(other_program_of(database_url), 8)
            changes._thread.join(60)
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    changes = DefinitionChanges(host.arena, database_url, 60.0)
    try:
        await_true(lambda: constant(host) == 8)
    finally:
        changes.stop()
    assert host.arena.check() == []


def other_program_of(database_url: str) -> Connection:
    return connect(database_url, application_name="other program")


def test_a_run_after_a_change_runs_what_was_changed_links_too(
    hosts: list[Host], other_program: Connection, database_url: str
) -> None:
    host = hosts[0]
    user = new_id()
    queries.create_account(other_program, user, 1_000)
    manager = Manager(host.client, lambda: False, 1)

    def run() -> dict[str, list[Any]]:
        execution = host.client.create_graph_execution(GRAPH, user)
        host.client.put_work(WorkKind.START, execution.id, execution.id)
        while (work := host.client.take_work(0.0)) is not None:
            manager.do(work)
        assert host.client.get_graph_execution(execution.id).status is ExecutionStatus.COMPLETED
        return {each.node_id: sorted(each.inputs) for each in host.client.get_node_executions(execution.id)}

    assert run() == {SOURCE: [], SINK: ["left", "right"]}
    third = derived_id(GRAPH, "third")
    with other_program.transaction():
        other_program.execute(
            "INSERT INTO nodes VALUES (%s, %s, 3, 'third', 'shmcache.merge', '{}', '{}')", (third, GRAPH)
        )
        link = Link(SOURCE, "value", third, "left")
        other_program.execute("INSERT INTO links VALUES (%s, 5, %s, %s, %s, %s, %s)", (GRAPH, *link))
    await_true(lambda: len(host.client.get_graph(GRAPH).node_ids) == 3)
    assert run() == {SOURCE: [], SINK: ["left", "right"], third: ["left"]}
