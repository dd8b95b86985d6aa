"""The design we started from, written as well as it can be: what shmcache is to be better than.

Each process has dicts of its own for what it has read; outputs and statuses go to a queue in the process, which a
thread writes to the database every 5 s, one row at a time; two threads settle charges. All else (creating executions,
giving inputs, counting, the balance) goes to the database at once. Its known faults are repaired here: nothing is
dropped or written twice while the process lives, falsy outputs are kept, a balance counts what is not settled yet, and
a status is written as it is at the end of the 5 s. What it cannot do stays so: with the process, what it had not
written is gone; and only one process can work on a graph execution, since no other sees its dicts."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar, cast

from shmcache.blocks import charge_for, get_block
from shmcache.codec import json_text
from shmcache.config import Settings
from shmcache.database.batches import write_batch
from shmcache.database.connection import connect
from shmcache.direct_client import DirectClient
from shmcache.errors import InsufficientBalanceError
from shmcache.execution_data_client import ExecutionDataClient, Work, WorkKind
from shmcache.frozen import FrozenDict, FrozenList, freeze
from shmcache.records import (
    FINAL_STATUSES,
    ExecutionStatus,
    Graph,
    GraphExecution,
    InputSource,
    NodeDefinition,
    NodeExecution,
    may_move,
)
from shmcache.work_queue import WorkQueue
from shmcache.writes import NodeExecutionWrite, OutputWrite, Write

T = TypeVar("T")

_FLUSH_SECONDS = 5.0
_CHARGING_THREADS = 2
_EMPTY: Mapping[str, Any] = FrozenDict()


class FirstDesignClient(ExecutionDataClient):
    """The client of one process. Make it after the fork: it starts threads."""

    def __init__(
        self, database_url: str, *, work_queue: WorkQueue, settings: Settings, on_wait: Callable[[], None]
    ) -> None:
        self._url = database_url
        self._settings = settings
        self._work_queue = work_queue
        self._direct = DirectClient(database_url, work_queue=work_queue, settings=settings, on_wait=on_wait)
        self._graphs: dict[str, Graph] = {}
        self._nodes: dict[str, NodeDefinition] = {}
        self._graph_executions: dict[str, GraphExecution] = {}
        self._executions: dict[str, NodeExecution] = {}
        self._turn = threading.Lock()
        self._outputs: list[OutputWrite] = []
        self._statuses: dict[str, NodeExecution] = {}
        self._unsettled: dict[str, int] = {}
        self._charges: queue.Queue[tuple[str, int, str] | None] = queue.Queue()
        self._wake = threading.Event()
        self._flushing = threading.Lock()
        self._closed = False
        self._connection = connect(database_url, application_name="first design")
        self._threads = [threading.Thread(target=self._flush_for_ever)]
        self._threads += [threading.Thread(target=self._charge_for_ever) for _ in range(_CHARGING_THREADS)]
        for thread in self._threads:
            thread.start()

    # Definitions

    def save_graph(self, graph: Graph, nodes: Sequence[NodeDefinition]) -> None:
        """See ExecutionDataClient."""
        self._direct.save_graph(graph, nodes)

    def get_graph(self, graph_id: str, version: int = 1) -> Graph:
        """See ExecutionDataClient. Cached."""
        del version
        if graph_id not in self._graphs:
            self._graphs[graph_id] = self._direct.get_graph(graph_id)
        return self._graphs[graph_id]

    def get_node(self, node_id: str) -> NodeDefinition:
        """See ExecutionDataClient. Cached."""
        node = self._nodes.get(node_id)
        if node is None:
            node = self._nodes[node_id] = self._direct.get_node(node_id)
        return node

    # Executions, read

    def get_graph_execution(self, graph_exec_id: str) -> GraphExecution:
        """See ExecutionDataClient. Cached."""
        if graph_exec_id not in self._graph_executions:
            self._graph_executions[graph_exec_id] = self._direct.get_graph_execution(graph_exec_id)
        return self._graph_executions[graph_exec_id]

    def get_node_execution(self, node_exec_id: str) -> NodeExecution:
        """See ExecutionDataClient. Cached."""
        execution = self._executions.get(node_exec_id)
        if execution is None:
            execution = self._executions[node_exec_id] = self._direct.get_node_execution(node_exec_id)
        return execution

    def get_node_executions(
        self,
        graph_exec_id: str,
        node_id: str | None = None,
        block_ids: Collection[str] | None = None,
        statuses: Collection[ExecutionStatus] | None = None,
        limit: int | None = None,
    ) -> list[NodeExecution]:
        """See ExecutionDataClient. The database knows which there are, this process how they are."""
        known = [
            self._executions.get(each.id, each)
            for each in self._direct.get_node_executions(graph_exec_id, node_id, block_ids)
        ]
        return [each for each in known if statuses is None or each.status in statuses][:limit]

    def get_latest_node_execution(self, node_id: str, graph_exec_id: str) -> NodeExecution | None:
        """See ExecutionDataClient."""
        latest = self._direct.get_latest_node_execution(node_id, graph_exec_id)
        return latest and self._executions.get(latest.id, latest)

    # Executions, written

    def create_graph_execution(
        self,
        graph_id: str,
        user_id: str,
        inputs: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        graph_version: int = 1,
        preset_id: str | None = None,
        durable: bool = False,
        urgent: bool = False,
    ) -> GraphExecution:
        """See ExecutionDataClient."""
        del graph_version, preset_id, durable, urgent
        made = self._direct.create_graph_execution(graph_id, user_id, inputs)
        self._graph_executions[made.id] = made
        return made

    def upsert_execution_input(
        self,
        node_id: str,
        graph_exec_id: str,
        input_name: str | None,
        input_data: Any = None,
        node_exec_id: str | None = None,
        source: InputSource | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> tuple[str, Mapping[str, Any]]:
        """See ExecutionDataClient. Blocks: the database says which execution it is for."""
        del durable, urgent
        identifier, inputs = self._direct.upsert_execution_input(
            node_id, graph_exec_id, input_name, input_data, node_exec_id, source
        )
        known = self._executions.get(identifier)
        sources = {input_name: source} if input_name is not None and source is not None else {}
        if known is not None:
            merged = FrozenDict({**known.sources, **sources})
            self._executions[identifier] = known._replace(inputs=inputs, sources=merged)
        elif len(inputs) <= 1:  # it was made just now, and this is all there is to know of it
            block_id, user_id = self.get_node(node_id).block_id, self.get_graph_execution(graph_exec_id).user_id
            self._executions[identifier] = NodeExecution(
                identifier, graph_exec_id, node_id, block_id, user_id, ExecutionStatus.INCOMPLETE, inputs,
                cast("Mapping[str, InputSource]", FrozenDict(sources)), _EMPTY, 0, time.time(), None, None, None, _EMPTY
            )  # fmt: skip
        return identifier, inputs

    def upsert_execution_output(
        self,
        node_exec_id: str,
        output_name: str | Mapping[str, Any],
        output_data: Any = None,
        *,
        ordinal: int | None = None,
        durable: bool = False,
        urgent: bool = False,
    ) -> NodeExecution:
        """See ExecutionDataClient. Queued."""
        del durable, urgent  # it has neither: what it queues is written when its thread comes to it
        given = [(output_name, output_data)] if isinstance(output_name, str) else list(output_name.items())
        execution = self.get_node_execution(node_exec_id)
        already = 0 if ordinal is None else max(0, execution.output_count - ordinal)
        outputs = dict(execution.outputs)
        count = execution.output_count
        rows = []
        for name, value in given[already:]:
            outputs[name] = FrozenList([*outputs.get(name, ()), freeze(value)])
            rows.append(OutputWrite(node_exec_id, count, name, json_text(value), time.time()))
            count += 1
        with self._turn:
            self._outputs += rows
            execution = execution._replace(outputs=FrozenDict(outputs), output_count=count)
            self._executions[node_exec_id] = execution
        return execution

    def update_node_execution_status(
        self,
        node_exec_id: str,
        status: ExecutionStatus,
        execution_data: Mapping[str, Any] | None = None,
        stats: Mapping[str, Any] | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> NodeExecution:
        """See ExecutionDataClient. Queued."""
        del durable, urgent
        execution = self.get_node_execution(node_exec_id)
        if not may_move(execution.status, status):
            return execution
        for name, value in (execution_data or {}).items():
            self.upsert_execution_input(execution.node_id, execution.graph_exec_id, name, value, node_exec_id)
            execution = self.get_node_execution(node_exec_id)
        now = time.time()
        execution = execution._replace(
            status=status,
            queued_at=now if status is ExecutionStatus.QUEUED else execution.queued_at,
            started_at=execution.started_at or now if status is ExecutionStatus.RUNNING else execution.started_at,
            ended_at=now if status in FINAL_STATUSES else None,
            stats=FrozenDict({**execution.stats, **(stats or {})}),
            moves=execution.moves + 1,
        )
        self._keep(execution)
        return execution

    def _keep(self, execution: NodeExecution) -> None:
        with self._turn:
            self._executions[execution.id] = execution
            self._statuses[execution.id] = execution

    def update_graph_execution_stats(
        self,
        graph_exec_id: str,
        status: ExecutionStatus | None = None,
        stats: Mapping[str, Any] | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> GraphExecution:
        """See ExecutionDataClient. Blocks."""
        del durable, urgent
        updated = self._direct.update_graph_execution_stats(graph_exec_id, status, stats)
        self._graph_executions[graph_exec_id] = updated
        return updated

    # Credits

    def get_credits(self, user_id: str) -> int:
        """See ExecutionDataClient. Blocks."""
        with self._turn:
            unsettled = self._unsettled.get(user_id, 0)
        return self._direct.get_credits(user_id) - unsettled

    def increment_execution_count(self, user_id: str, node_exec_id: str | None = None) -> int:
        """See ExecutionDataClient. Blocks."""
        return self._direct.increment_execution_count(user_id, node_exec_id)

    def spend_credits(
        self,
        user_id: str,
        cost: int,
        metadata: Mapping[str, Any] | None = None,
        transaction_key: str | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> int:
        """See ExecutionDataClient."""
        del durable, urgent
        return self._direct.spend_credits(user_id, cost, metadata, transaction_key)

    def charge_usage(self, node_exec: NodeExecution, execution_count: int, async_mode: bool = True) -> tuple[int, int]:
        """See ExecutionDataClient. The balance is read, the charging threads do the rest."""
        del async_mode
        user_id = node_exec.user_id
        block = get_block(node_exec.block_id)
        node = self.get_node(node_exec.node_id)
        cost = charge_for(block, {**node.input_default, **node_exec.inputs, **node.constants})
        settings = self._settings
        fee = settings.execution_fee if execution_count % settings.execution_fee_every == 0 else 0
        balance = self.get_credits(user_id)
        if balance < cost + fee:
            raise InsufficientBalanceError(user_id, balance, cost + fee)
        self._keep(node_exec._replace(stats=FrozenDict({**node_exec.stats, "cost": cost})))
        for amount, reason in ((cost, "block"), (fee, "fee")):
            if amount:
                with self._turn:
                    self._unsettled[user_id] = self._unsettled.get(user_id, 0) + amount
                self._charges.put((user_id, amount, f"{node_exec.id}:{reason}"))
        return cost + fee, balance - cost - fee

    # Several writes at once, work, durability

    def atomically(self, work: Callable[[], T], *, durable: bool = False, urgent: bool = False) -> T:
        """See ExecutionDataClient; it has no such thing: each write is for itself."""
        del durable, urgent
        return work()

    def put_work(self, kind: WorkKind, identifier: str, graph_exec_id: str) -> None:
        """See ExecutionDataClient."""
        self._work_queue.put(kind, identifier, graph_exec_id)

    def take_work(self, timeout_seconds: float) -> Work | None:
        """See ExecutionDataClient."""
        return self._work_queue.take(timeout_seconds)

    def end_work(self, work: Work, graph_exec_id: str) -> None:
        """See ExecutionDataClient."""
        self._work_queue.end(work, graph_exec_id)

    @property
    def last_sequence(self) -> int:
        """See ExecutionDataClient. It gives no receipts."""
        return 0

    def wait_durable(self, sequence: int, timeout_seconds: float | None = None) -> None:
        """See ExecutionDataClient. Without receipts, it waits for everything."""
        del sequence
        self.flush(timeout_seconds)

    def flush(self, timeout_seconds: float | None = None) -> None:
        """See ExecutionDataClient. Waits as long as it takes."""
        del timeout_seconds
        self._charges.join()
        self._flush_once()

    def close(self) -> None:
        """See ExecutionDataClient. Flushes."""
        self.flush()
        self._closed = True
        self._wake.set()
        for _ in range(_CHARGING_THREADS):
            self._charges.put(None)
        for thread in self._threads:
            thread.join()
        self._connection.close()
        self._direct.close()

    # The threads

    def _flush_for_ever(self) -> None:
        while not self._closed:
            self._wake.wait(_FLUSH_SECONDS)
            self._flush_once()

    def _flush_once(self) -> None:
        with self._flushing:
            with self._turn:
                rows: list[Write] = [*self._outputs, *(_row(each) for each in self._statuses.values())]
                self._outputs, self._statuses = [], {}
            for row in rows:
                write_batch(self._connection, [row])

    def _charge_for_ever(self) -> None:
        client = DirectClient(
            self._url, work_queue=self._work_queue, settings=self._settings, on_wait=lambda: None
        )  # fmt: skip
        while (charge := self._charges.get()) is not None:
            user_id, amount, key = charge
            client.spend_credits(user_id, amount, None, key)
            with self._turn:
                self._unsettled[user_id] -= amount
            self._charges.task_done()
        client.close()


def _row(execution: NodeExecution) -> NodeExecutionWrite:
    return NodeExecutionWrite(
        execution.id, execution.graph_exec_id, execution.node_id, execution.status, execution.created_at,
        execution.queued_at, execution.started_at, execution.ended_at, json_text(execution.stats), execution.moves,
    )  # fmt: skip
