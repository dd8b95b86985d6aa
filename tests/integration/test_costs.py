"""What each call costs, counted exactly: waits for the database, locks, copies. Numbers that may fall, and must not
rise unseen; none of them is a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.codec import encode
from shmcache.config import load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.execution_data_client import WorkKind
from shmcache.identifiers import derived_id, id_bytes, new_id
from shmcache.records import ExecutionStatus, Graph, NodeDefinition
from shmcache.simple_cache import SimpleExecutorCache
from tests.integration.counting import Costs, costs

S = ExecutionStatus
_GRAPH = derived_id("graph", "costs")
_NODE = derived_id(_GRAPH, "node")
LIFE = {
    "first input": Costs(commit_locks=1, encoded=2, entries=2),  # the execution and its node's group; row and input
    "another input": Costs(commit_locks=1, encoded=1, entries=1),
    "QUEUED": Costs(commit_locks=1, encoded=2, entries=1),
    "put_work": Costs(commit_locks=1),
    "take_work": Costs(commit_locks=1),
    "get_node_execution": Costs(),
    "get_graph_execution": Costs(),
    "get_node": Costs(),
    "increment_execution_count": Costs(commit_locks=1),
    "RUNNING": Costs(commit_locks=1, encoded=1, entries=1),
    "charge_usage": Costs(commit_locks=1, entries=1),
    "output": Costs(commit_locks=1, encoded=1, entries=1),
    "get_latest_node_execution": Costs(),
    "get_node_executions": Costs(),
    "COMPLETED": Costs(commit_locks=1, encoded=1, entries=1),
    "end_work": Costs(commit_locks=1),
}
_DEFINITION = NodeDefinition(_NODE, _GRAPH, "node", "shmcache.merge", {}, {}, (), ())


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"costs-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def client(arena: Arena, database_url: str) -> Iterator[CachedClient]:
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, Graph(_GRAPH, "costs", (_NODE,), {_NODE: {}}), [_DEFINITION])
    made = CachedClient(arena, database_url, load_settings())
    yield made
    made.close()


@pytest.fixture
def user(database_url: str) -> str:
    identifier = new_id()
    with connect(database_url, application_name="test") as connection:
        queries.create_account(connection, identifier, 1_000)
    return identifier


def _life_of_a_node(client: CachedClient, arena: Arena, run: str, user: str) -> dict[str, Costs]:
    """Take a node execution from its first input to its end; return what each call took."""
    found: dict[str, Costs] = {}
    made: list[Any] = []

    def step(name: str, call: Callable[[], Any]) -> Any:
        found[name] = costs(arena, lambda: made.append(call()))
        return made[-1]

    node_exec_id, _ = step("first input", lambda: client.upsert_execution_input(_NODE, run, "left", 1))
    step("another input", lambda: client.upsert_execution_input(_NODE, run, "right", 2))
    step("QUEUED", lambda: client.update_node_execution_status(node_exec_id, S.QUEUED))
    step("put_work", lambda: client.put_work(WorkKind.RUN, node_exec_id, run))
    work = step("take_work", lambda: client.take_work(60))
    step("get_node_execution", lambda: client.get_node_execution(node_exec_id))
    step("get_graph_execution", lambda: client.get_graph_execution(run))
    step("get_node", lambda: client.get_node(_NODE))
    step("increment_execution_count", lambda: client.increment_execution_count(user, node_exec_id))
    step("RUNNING", lambda: client.update_node_execution_status(node_exec_id, S.RUNNING))
    step("charge_usage", lambda: client.charge_usage(client.get_node_execution(node_exec_id), 1))
    step("output", lambda: client.upsert_execution_output(node_exec_id, "result", "x" * 350))
    step("get_latest_node_execution", lambda: client.get_latest_node_execution(_NODE, run))
    step("get_node_executions", lambda: client.get_node_executions(run))
    step("COMPLETED", lambda: client.update_node_execution_status(node_exec_id, S.COMPLETED))
    step("end_work", lambda: client.end_work(work, run))
    return found


def test_no_call_in_the_life_of_a_node_waits_for_the_database_and_each_write_is_one_commit(
    client: CachedClient, arena: Arena, user: str
) -> None:
    run = client.create_graph_execution(_GRAPH, user).id
    client.get_credits(user)
    _life_of_a_node(client, arena, run, user)  # what is done once: account, first slabs
    assert _life_of_a_node(client, arena, run, user) == LIFE


def test_no_call_in_the_life_of_a_node_logs_a_line(
    client: CachedClient, arena: Arena, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    run = client.create_graph_execution(_GRAPH, user).id
    client.get_credits(user)
    for _ in range(2):
        _life_of_a_node(client, arena, run, user)
    assert [record for record in caplog.records if record.name.startswith(("shmcache", "syncer"))] == []


def test_a_warm_get_takes_no_lock_and_copies_nothing(client: CachedClient, arena: Arena) -> None:
    for _ in range(2):  # the first one loads it, the second one decodes it
        client.get_node(_NODE)
    assert costs(arena, lambda: client.get_node(_NODE)) == Costs()


def test_the_first_get_of_a_process_copies_and_decodes_once_and_takes_no_lock(
    client: CachedClient, arena: Arena
) -> None:
    client.get_node(_NODE)
    other = SimpleExecutorCache(arena)
    other.get(_GRAPH)  # its first read enters it with the arena
    assert costs(arena, lambda: other.get(_NODE)) == Costs(copied_out=1, decoded=1)
    assert costs(arena, lambda: other.get(_NODE)) == Costs()


def test_another_process_s_write_costs_the_next_get_one_copy(arena: Arena) -> None:
    cache = SimpleExecutorCache(arena)
    arena.put(id_bytes(_NODE), encode(_DEFINITION))
    cache.get(_NODE)
    arena.put(id_bytes(_NODE), encode(_DEFINITION._replace(name="changed")))
    assert costs(arena, lambda: cache.get(_NODE)) == Costs(copied_out=1, decoded=1)
    assert costs(arena, lambda: cache.get(_NODE)) == Costs()


def test_overwriting_a_plain_record_takes_the_lock_of_its_stripe_alone(arena: Arena) -> None:
    key, record = id_bytes(_NODE), encode(_DEFINITION)
    for _ in range(2):  # the key's entry, and a slab for its stripe
        arena.put(key, record)
    assert costs(arena, lambda: arena.put(key, record)) == Costs(stripe_locks=1)


def test_a_miss_loads_a_graph_with_one_query_and_its_other_nodes_with_none(client: CachedClient, arena: Arena) -> None:
    assert costs(arena, lambda: client.get_node(_NODE)).waits == 3  # one opens the connection, one looks what it is
    assert costs(arena, lambda: client.get_graph(_GRAPH)).waits == 0
