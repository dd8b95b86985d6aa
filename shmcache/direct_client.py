"""DirectClient: every operation on PostgreSQL before it returns. What shmcache is measured against.

It is written as one would write it with care: one connection a process, prepared statements, one round trip an
operation (several statements travel in one pipeline, which is also their transaction). It keeps nothing between calls.
What returned is committed, so every write is as good as `durable`, whatever its caller asks for.

What is decided on rows that others may change is decided behind a lock, and the lock is a statement of its own: in
PostgreSQL's READ COMMITTED a statement sees what was committed when it began, so one that waits for a lock and then
reads would read what was there before it waited.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import psycopg

from shmcache.charge_manager import ChargeManager, Priced
from shmcache.codec import json_text
from shmcache.config import Settings
from shmcache.database import queries
from shmcache.database.accounts import add_refusal
from shmcache.database.arrays import plain_array
from shmcache.database.leases import ASKING_SECONDS, find_free
from shmcache.database.numbers import exact_floats
from shmcache.direct_transactions import DirectTransactions, Row, Step
from shmcache.errors import InsufficientBalanceError, NotFound, ShmcacheError
from shmcache.execution_data_client import Work, WorkKind
from shmcache.frozen import freeze
from shmcache.identifiers import id_bytes, id_text, new_id
from shmcache.records import (
    ALLOWED_FROM,
    FINAL_STATUSES,
    ExecutionStatus,
    Graph,
    GraphExecution,
    InputSource,
    NodeDefinition,
    NodeExecution,
)
from shmcache.work_queue import WorkQueue
from shmcache.writes import ChargeKind, Refusal

logger = logging.getLogger(__name__)

T = TypeVar("T")


def _json(value: Any) -> str:
    return exact_floats(json_text(value))


class DirectClient(DirectTransactions):
    """The client without an arena for its data; only the work queue is the host's. One for each process and thread."""

    def __init__(
        self, database_url: str, *, work_queue: WorkQueue, settings: Settings, on_wait: Callable[[], None]
    ) -> None:
        super().__init__(database_url, on_wait)
        self._queue = work_queue
        self._low_balance = settings.low_balance
        self._charges = ChargeManager(
            spend=self._spend, wait_settled=lambda: None, get_node=self.get_node, now=self._now, settings=settings
        )

    # Definitions

    def save_graph(self, graph: Graph, nodes: Sequence[NodeDefinition]) -> None:
        """See ExecutionDataClient."""
        try:
            queries.save_graph(self._open(), graph, nodes)
        except psycopg.OperationalError as error:
            raise self._lost(error) from None

    def get_graph(self, graph_id: str, version: int = 1) -> Graph:
        """See ExecutionDataClient. Blocks."""
        found = self._load(queries.load_graph, graph_id, version)
        if found is None:
            raise NotFound("graph", graph_id)
        return found[0]

    def get_node(self, node_id: str) -> NodeDefinition:
        """See ExecutionDataClient. Blocks."""
        found = self._load(queries.load_node, node_id)
        if found is None:
            raise NotFound("node", node_id)
        return found

    # Executions, read

    def get_graph_execution(self, graph_exec_id: str) -> GraphExecution:
        """See ExecutionDataClient. Blocks."""
        found = self._load(queries.load_graph_execution, graph_exec_id)
        if found is None:
            raise NotFound("graph execution", graph_exec_id)
        return found

    def get_node_execution(self, node_exec_id: str) -> NodeExecution:
        """See ExecutionDataClient. Blocks."""
        found = self._load(queries.load_node_execution, node_exec_id)
        if found is None:
            raise NotFound("node execution", node_exec_id)
        return found

    def get_node_executions(
        self,
        graph_exec_id: str,
        node_id: str | None = None,
        block_ids: Collection[str] | None = None,
        statuses: Collection[ExecutionStatus] | None = None,
        limit: int | None = None,
    ) -> list[NodeExecution]:
        """See ExecutionDataClient. Blocks."""
        node = None if node_id is None else id_text(id_bytes(node_id))
        return self._load(queries.load_node_executions, graph_exec_id, node, block_ids, statuses, limit)

    def get_latest_node_execution(self, node_id: str, graph_exec_id: str) -> NodeExecution | None:
        """See ExecutionDataClient. Blocks."""
        return self._load(queries.load_latest_node_execution, node_id, id_text(id_bytes(graph_exec_id)))

    # Executions, written

    def create_graph_execution(
        self,
        graph_id: str,
        user_id: str,
        inputs: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        graph_version: int = 1,
        preset_id: str | None = None,
        durable: bool = True,
        urgent: bool = True,
    ) -> GraphExecution:
        """See ExecutionDataClient. Blocks."""
        identifier = new_id()
        text = None if inputs is None else _json(inputs)
        given = {
            "id": identifier, "graph_id": graph_id, "user_id": user_id, "inputs": text, "time": self._now(),
            "graph_version": graph_version, "preset_id": preset_id,
        }  # fmt: skip
        rows = self._run(("create_graph_execution", given), ("load_graph_execution", {"id": identifier}))
        if not rows:
            raise NotFound("graph", graph_id)
        return queries.graph_execution(rows[0])

    def upsert_execution_input(
        self,
        node_id: str,
        graph_exec_id: str,
        input_name: str | None,
        input_data: Any = None,
        node_exec_id: str | None = None,
        source: InputSource | None = None,
        *,
        durable: bool = True,
        urgent: bool = True,
    ) -> tuple[str, Mapping[str, Any]]:
        """See ExecutionDataClient. Blocks."""
        given = {
            "name": input_name,
            "value": _json(input_data),
            "time": self._now(),
            "source_id": source and source.node_exec_id,
            "source_ordinal": source and source.ordinal,
        }
        if node_exec_id is not None:
            rows = self._run(("give_input_to", {**given, "id": node_exec_id}), ("load_inputs", {"id": node_exec_id}))
            if not rows:
                raise NotFound("node execution", node_exec_id)
        else:
            place = {"node_id": node_id, "graph_exec_id": graph_exec_id}
            rows = self._run(("lock_node_executions", place), ("give_input", {**given, **place, "new_id": new_id()}))
        return str(rows[0][0]), freeze(rows[0][1])

    def upsert_execution_output(
        self,
        node_exec_id: str,
        output_name: str | Mapping[str, Any],
        output_data: Any = None,
        *,
        ordinal: int | None = None,
        durable: bool = True,
        urgent: bool = True,
    ) -> NodeExecution:
        """See ExecutionDataClient. Blocks."""
        values = [(output_name, output_data)] if isinstance(output_name, str) else list(output_name.items())
        given = {
            "id": node_exec_id,
            "ordinal": ordinal,
            "names": [name for name, _ in values],
            "values": [_json(value) for _, value in values],
            "times": [self._now() for _ in values],
        }
        this = {"id": node_exec_id}
        rows = self._run(("lock_node_execution", this), ("append_outputs", given), ("load_node_execution", this))
        return self._node_execution(rows, node_exec_id)

    def update_node_execution_status(
        self,
        node_exec_id: str,
        status: ExecutionStatus,
        execution_data: Mapping[str, Any] | None = None,
        stats: Mapping[str, Any] | None = None,
        *,
        durable: bool = True,
        urgent: bool = True,
    ) -> NodeExecution:
        """See ExecutionDataClient. Blocks."""
        data = execution_data or {}
        given = {
            "id": node_exec_id,
            "status": status.value,
            "allowed": [each.value for each in ALLOWED_FROM[status]],
            "time": self._now(),
            "stats": _json(stats or {}),
            "names": list(data),
            "values": [_json(value) for value in data.values()],
        }
        rows = self._run(("move_node_execution", given), ("load_node_execution", {"id": node_exec_id}))
        execution = self._node_execution(rows, node_exec_id)
        # A death in between leaves the estimate held until the graph execution ends.
        return self._settle_hold(execution) if execution.status in FINAL_STATUSES else execution

    def update_graph_execution_stats(
        self,
        graph_exec_id: str,
        status: ExecutionStatus | None = None,
        stats: Mapping[str, Any] | None = None,
        *,
        durable: bool = True,
        urgent: bool = True,
    ) -> GraphExecution:
        """See ExecutionDataClient. Blocks."""
        now = self._now()
        given = {
            "id": graph_exec_id,
            "status": status and status.value,
            "allowed": [each.value for each in ALLOWED_FROM[status]] if status else [],
            "time": now,
            "stats": _json(stats or {}),
        }
        rows = self._run(("move_graph_execution", given), ("load_graph_execution", {"id": graph_exec_id}))
        if not rows:
            raise NotFound("graph execution", graph_exec_id)
        if status in FINAL_STATUSES:
            for held in self._run(("held_executions", {"id": graph_exec_id})):
                execution = queries.node_execution(held)
                self._settle_hold(execution._replace(ended_at=execution.ended_at or now))
        return queries.graph_execution(rows[0])

    # Credits

    def get_credits(self, user_id: str) -> int:
        """See ExecutionDataClient. Blocks."""
        account = self._load(queries.load_account, user_id)
        if account is None:
            raise NotFound("account", user_id)
        return account.balance - account.held - account.debt

    def increment_execution_count(self, user_id: str, node_exec_id: str | None = None) -> int:
        """See ExecutionDataClient. Blocks. An execution that was charged already is not counted again."""
        rows = self._run(("count_execution", {"user_id": user_id, "node_exec_id": node_exec_id}))
        if not rows:
            raise NotFound("account", user_id)
        return int(rows[0][0])

    def spend_credits(
        self,
        user_id: str,
        cost: int,
        metadata: Mapping[str, Any] | None = None,
        transaction_key: str | None = None,
        *,
        durable: bool = True,
        urgent: bool = True,
    ) -> int:
        """See ExecutionDataClient. Blocks."""
        return self._charges.spend(user_id, cost, _json(dict(metadata or {})), transaction_key)

    def charge_usage(self, node_exec: NodeExecution, execution_count: int, async_mode: bool = True) -> tuple[int, int]:
        """See ExecutionDataClient. Blocks."""
        return self._charges._charge_usage(node_exec, execution_count, async_mode)

    def _spend(self, charges: Sequence[Priced], node_exec: NodeExecution | None) -> int:
        user_id = charges[0][1].user_id
        given = {
            "user_id": user_id,
            "keys": [charge.transaction_key for _, charge in charges],
            "amounts": [charge.amount for _, charge in charges],
            "reasons": [charge.reason for _, charge in charges],
            "metadata": [charge.metadata_json for _, charge in charges],
            "estimates": [kind == ChargeKind.HOLD for kind, _ in charges],
            "node_exec_id": node_exec and node_exec.id,
            "graph_exec_id": node_exec and node_exec.graph_exec_id,
            "cost": sum(charge.amount for _, charge in charges if charge.reason == "block"),
            "time": charges[0][1].time,
            "owner_pid": os.getpid(),
        }
        rows = self._run(("lock_account", {"user_id": user_id}), ("spend", given), following=self._notice_low(user_id))
        if not rows:
            raise NotFound("account", user_id)
        balance, amount, left = rows[0]
        if left is None:
            refusal = Refusal(user_id, None, node_exec and node_exec.graph_exec_id, balance, amount, charges[0][1].time)
            error = InsufficientBalanceError(user_id, balance, amount)
            if self._transaction is not None:
                self._transaction.refusal = refusal
            elif self._find_credits(error):
                return self._spend(charges, node_exec)
            else:
                self._tell(refusal)
            raise error
        return int(left)

    def _find_credits(self, error: InsufficientBalanceError) -> bool:
        """Have hosts that have leased what was lacking give it back; return whether it is there now. Blocks."""
        user_id = id_text(id_bytes(error.user_id))
        return self._answer(lambda connection: find_free(connection, user_id, error.amount, ASKING_SECONDS))

    def _notice_low(self, user_id: str) -> list[Step]:
        """Return the statement that notices when a balance goes below the threshold, if there is one."""
        given = {"users": plain_array([user_id]), "low_balance": self._low_balance}
        return [("notice_low", given)] if self._low_balance else []

    def _tell(self, refusal: Refusal) -> None:
        """Leave a notice that a charge was refused, outside of any transaction."""
        try:
            if refusal.graph_exec_id is not None:
                refusal = refusal._replace(graph_id=self.get_graph_execution(refusal.graph_exec_id).graph_id)
            self._answer(lambda connection: add_refusal(connection, refusal))
        except (ShmcacheError, psycopg.Error) as error:
            lacking = refusal.amount - refusal.balance
            logger.warning("user %s lacks %d credits, and nobody is told of it: %s", refusal.user_id, lacking, error)

    def _settle_hold(self, execution: NodeExecution) -> NodeExecution:
        """Settle or void what is held for an execution that has ended; return it with what it came to."""
        if "held" not in execution.stats:
            return execution
        _, charge = self._charges.settlement(execution, execution.stats["held"])
        given = {"key": charge.transaction_key, "amount": charge.amount, "time": charge.time}
        lock: Step = ("lock_account", {"user_id": charge.user_id})
        rows = self._run(lock, ("settle_hold", given), following=self._notice_low(charge.user_id))
        if rows and rows[0][0]:
            owed = {"error": f"insufficient balance: {rows[0][0]} credits of a charge are owed"}
            self.update_graph_execution_stats(execution.graph_exec_id, None, owed)
        stats = {name: value for name, value in execution.stats.items() if name != "held"}
        return execution._replace(stats=freeze({**stats, "cost": charge.amount}))

    # Work

    def put_work(self, kind: WorkKind, identifier: str, graph_exec_id: str) -> None:
        """See ExecutionDataClient. Never blocks."""
        self._when_committed(lambda: self._queue.put(kind, identifier, graph_exec_id))

    def take_work(self, timeout_seconds: float) -> Work | None:
        """See ExecutionDataClient."""
        return self._queue.take(timeout_seconds)

    def end_work(self, work: Work, graph_exec_id: str) -> None:
        """See ExecutionDataClient."""
        self._when_committed(lambda: self._queue.end(work, graph_exec_id))

    @staticmethod
    def _node_execution(rows: list[Row], identifier: str) -> NodeExecution:
        if not rows:
            raise NotFound("node execution", identifier)
        return queries.node_execution(rows[0])
