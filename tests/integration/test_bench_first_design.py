"""The design we started from, as the benchmark has it, leaves the rows that the direct client leaves: it is a fair
peer only if it does the same work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from shmcache.arena import Arena
from shmcache.blocks import get_block
from shmcache.config import load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.direct_client import DirectClient
from shmcache.errors import InsufficientBalanceError
from shmcache.execution_data_client import ExecutionDataClient, WorkKind
from shmcache.graphs import example_path, load_graph_file
from shmcache.identifiers import new_id
from shmcache.manager import run_worker
from shmcache.work_queue import WorkQueue
from tools.bench.first_design import FirstDesignClient


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"first-design-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


def _rows(connection: Any, run: str) -> dict[str, Any]:
    """Return what a run left behind, without what differs from run to run (identifiers, times)."""
    nodes = connection.execute(
        "SELECT n.name, e.status, e.started_at IS NOT NULL, e.ended_at IS NOT NULL, e.stats FROM node_executions e"
        " JOIN nodes n ON n.id = e.node_id WHERE e.graph_execution_id = %s",
        (run,),
    ).fetchall()
    inputs, outputs = (
        connection.execute(
            f"SELECT n.name, v.name, v.value::text FROM node_execution_{kind} v"
            " JOIN node_executions e ON e.id = v.node_execution_id JOIN nodes n ON n.id = e.node_id"
            " WHERE e.graph_execution_id = %s",
            (run,),
        ).fetchall()
        for kind in ("inputs", "outputs")
    )
    (status,) = connection.execute("SELECT status FROM graph_executions WHERE id = %s", (run,)).fetchone()
    return {"status": status, "nodes": sorted(map(repr, nodes)), "inputs": sorted(inputs), "outputs": sorted(outputs)}


def test_it_leaves_the_rows_and_takes_the_credits_that_the_direct_client_does(arena: Arena, database_url: str) -> None:
    settings = load_settings(execution_fee_every=5)
    loaded = load_graph_file(example_path())
    options: dict[str, Any] = {"work_queue": WorkQueue(arena), "settings": settings}
    waits = {"direct": 0, "first": 0}

    def count(name: str) -> None:
        waits[name] += 1

    clients: dict[str, ExecutionDataClient] = {
        "direct": DirectClient(database_url, on_wait=lambda: count("direct"), **options),
        "first": FirstDesignClient(database_url, on_wait=lambda: count("first"), **options),
    }
    found = {}
    with connect(database_url, application_name="test") as connection:
        for name, client in clients.items():
            user = new_id()
            queries.create_account(connection, user, 10_000)
            client.save_graph(loaded.graph, loaded.nodes)
            run = client.create_graph_execution(loaded.graph.id, user).id
            client.put_work(WorkKind.START, run, run)
            run_worker(client, lambda: not arena.outstanding(), 3)
            client.close()
            balance = queries.load_account(connection, user)
            assert balance is not None
            found[name] = _rows(connection, run), balance.balance
    assert found["first"] == found["direct"]
    assert found["direct"][0]["status"] == "COMPLETED"
    assert waits["first"] < waits["direct"] / 2


def test_it_refuses_what_the_balance_less_unsettled_charges_does_not_cover(arena: Arena, database_url: str) -> None:
    settings = load_settings()
    loaded = load_graph_file(example_path())
    client = FirstDesignClient(
        database_url, work_queue=WorkQueue(arena), settings=settings, on_wait=lambda: None
    )  # fmt: skip
    user = new_id()
    with connect(database_url, application_name="test") as connection:
        queries.create_account(connection, user, 1)
    try:
        client.save_graph(loaded.graph, loaded.nodes)
        run = client.create_graph_execution(loaded.graph.id, user).id
        priced = next(node for node in loaded.nodes if get_block(node.block_id).cost.amount)
        executions = [
            client.get_node_execution(client.upsert_execution_input(priced.id, run, None)[0]) for _ in range(2)
        ]
        assert client.charge_usage(executions[0], 1) == (1, 0)
        with pytest.raises(InsufficientBalanceError):
            client.charge_usage(executions[1], 2)
    finally:
        client.close()
