"""What tests of charging share: blocks with prices, a graph of them, and a charger without a pool."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from shmcache.arena import Arena
from shmcache.blocks import Block, Cost, Inputs, Outputs, register
from shmcache.config import Settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.errors import Unavailable
from shmcache.execution_data_client import ExecutionDataClient
from shmcache.identifiers import derived_id, new_id
from shmcache.records import ExecutionStatus, Graph, NodeDefinition, NodeExecution
from syncer import settlement_worker
from syncer.charge_pool import ChargePool
from syncer.settlement_pool import SettlementPool
from syncer.settlement_worker import Partition, Settled
from tools.accounts import compare_holds


@register
class PerRun(Block):
    """Costs 3 a run."""

    id = "test.per_run"
    inputs = ("*",)
    outputs = ("*",)
    cost = Cost(3, "run")

    def run(self, inputs: Inputs) -> Outputs:
        yield from ()


@register
class PerSecond(PerRun):
    """Costs 10 a second; `seconds` is how long it expects to take."""

    id = "test.per_second"
    cost = Cost(10, "second")

    def seconds(self, inputs: Inputs) -> float:
        return float(inputs.get("seconds", 5))


@register
class PerByte(PerRun):
    """Costs 2 a byte."""

    id = "test.per_byte"
    cost = Cost(2, "byte")


_GRAPH = derived_id("graph", "priced")
PER_RUN, PER_SECOND, PER_BYTE = (derived_id(_GRAPH, each) for each in ("run", "second", "byte"))


def priced_graph() -> tuple[Graph, list[NodeDefinition]]:
    """Return a graph of three nodes, one of each price."""
    blocks = {PER_RUN: PerRun.id, PER_SECOND: PerSecond.id, PER_BYTE: PerByte.id}
    nodes = [NodeDefinition(node, _GRAPH, block, block, {}, {}, (), ()) for node, block in blocks.items()]
    return Graph(_GRAPH, "priced", tuple(blocks), {PER_RUN: {}}), nodes


def open_account(database_url: str, balance: int) -> str:
    """Save the graph and open an account; return the user."""
    user = new_id()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, *priced_graph())
        queries.create_account(connection, user, balance)
    return user


def queued(client: ExecutionDataClient, run: str, node: str, **inputs: Any) -> NodeExecution:
    """Make a node execution with inputs, QUEUED."""
    identifier, _ = client.upsert_execution_input(node, run, None)
    for name, value in inputs.items():
        client.upsert_execution_input(node, run, name, value, identifier)
    return client.update_node_execution_status(identifier, ExecutionStatus.QUEUED)


def begin(client: ExecutionDataClient, execution: NodeExecution, count: int = 1) -> tuple[int, int]:
    """Move an execution to RUNNING and charge it, in one step; return (cost, balance left)."""

    def step() -> tuple[int, int]:
        return client.charge_usage(client.update_node_execution_status(execution.id, ExecutionStatus.RUNNING), count)

    return client.atomically(step)


class _PoolOfNone(SettlementPool):
    def __init__(self) -> None:
        super().__init__(0, "")
        self._partitions: Sequence[Partition] = ()

    def send(self, partitions: Sequence[Partition], timeout_seconds: float) -> None:
        self._partitions = partitions

    def receive(self) -> list[Settled]:
        return [settlement_worker.settle_partition(each) for each in self._partitions]


class Charger(ChargePool):
    """A charger that settles in its own process: what the pool's processes run, without starting them."""

    def _make_pool(self) -> SettlementPool:
        settlement_worker.use(self._database_url)
        return _PoolOfNone()


def settle_now(arena: Arena, database_url: str, settings: Settings) -> None:
    """Settle and release what is on the charge ring."""
    Charger(arena, database_url, settings).run_once()
    assert arena.charge_ring.committed_sequence == arena.charge_ring.last_sequence


def charge_until_asked(arena: Arena, database_url: str, settings: Settings) -> None:
    """Be a charger's process, until SIGTERM; for a fork."""
    stop = False

    def ask(*_: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, ask)
    try:
        Charger(arena, database_url, settings).run(lambda: stop)
    finally:
        os._exit(0)


def differences(arena: Arena, database_url: str) -> list[str]:
    """Return what an audit of the database and the arena finds."""
    from shmcache.database.audit import find_differences

    with connect(database_url, application_name="test") as connection:
        return [*find_differences(connection)[1], *compare_holds(arena, connection)]


def standing(database_url: str, user: str) -> tuple[int, int, int]:
    """Return an account's balance, debt and what is held in the database."""
    with connect(database_url, application_name="test") as connection:
        account = queries.load_account(connection, user)
    assert account is not None
    return account.balance, account.debt, account.held


def ledger(connection: psycopg.Connection[Any], user: str) -> list[tuple[Any, ...]]:
    """Return (amount, owed, reason) of a user's ledger rows, oldest first."""
    return connection.execute(
        "SELECT amount, owed, reason FROM ledger WHERE user_id = %s ORDER BY created_at, transaction_key", (user,)
    ).fetchall()


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition holds; fail after a generous while."""
    import threading
    import time

    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except Unavailable:
            pass
        assert time.monotonic() < deadline, "it never came"
        threading.Event().wait(0.01)
