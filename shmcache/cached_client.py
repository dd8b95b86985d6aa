"""CachedClient: an executor's reads and writes on the shared arena; the syncer carries the writes to PostgreSQL.

`RecordStore` finds and shapes the records; the methods here say what each call of the interface does with them. How
they are committed and waited for is in `cached_transactions`, what concerns credits in `cached_credits`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar, cast

from shmcache.arena import FLAG_INDEXED
from shmcache.arena.transaction import (
    Touch,
)
from shmcache.cached_ownership import CachedOwnership
from shmcache.codec import NodeGroup, PartialExecution, record_json_text
from shmcache.database import queries
from shmcache.frozen import FrozenDict, FrozenList, freeze
from shmcache.identifiers import id_bytes, new_id
from shmcache.record_store import EMPTY, group_id
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
from shmcache.writes import InputWrite, OutputWrite, WriteKind


class CachedClient(CachedOwnership):
    """The client over an arena. One for each process; its methods may be called from several threads."""

    _written_last: tuple[Any, Any, str] = (None, None, "null")

    # Definitions

    def save_graph(self, graph: Graph, nodes: Sequence[NodeDefinition]) -> None:
        """See ExecutionDataClient."""
        self._backing.load(queries.save_graph, graph, nodes)

    def get_graph(self, graph_id: str) -> Graph:
        """See ExecutionDataClient."""
        return self._records.definition(graph_id, Graph, queries.load_graph, "graph")

    def get_node(self, node_id: str) -> NodeDefinition:
        """See ExecutionDataClient."""
        return self._records.definition(node_id, NodeDefinition, queries.load_graph_of_node, "node")

    # Executions, read

    def get_graph_execution(self, graph_exec_id: str) -> GraphExecution:
        """See ExecutionDataClient."""
        pending = self._records.at_hand.pending
        if pending is not None and graph_exec_id in pending.graph_executions:
            return pending.graph_executions[graph_exec_id]
        found: GraphExecution = self._records.record(
            graph_exec_id, GraphExecution, queries.load_graph_execution, "graph execution"
        )
        return found

    def get_node_execution(self, node_exec_id: str) -> NodeExecution:
        """See ExecutionDataClient."""
        return self._records.execution(node_exec_id)

    def get_node_executions(
        self,
        graph_exec_id: str,
        node_id: str | None = None,
        block_ids: Collection[str] | None = None,
        statuses: Collection[ExecutionStatus] | None = None,
        limit: int | None = None,
    ) -> list[NodeExecution]:
        """See ExecutionDataClient."""
        executions = [self._records.execution(each) for each in self._records.execution_ids(graph_exec_id, node_id)]
        executions.sort(key=lambda each: (each.created_at, each.id))
        return [
            each
            for each in executions
            if (block_ids is None or each.block_id in block_ids) and (statuses is None or each.status in statuses)
        ][:limit]

    def get_latest_node_execution(self, node_id: str, graph_exec_id: str) -> NodeExecution | None:
        """See ExecutionDataClient."""
        latest = self._records.group(graph_exec_id, node_id).latest
        return None if latest is None else self.get_node_execution(latest)

    # Executions, written

    def create_graph_execution(
        self,
        graph_id: str,
        user_id: str,
        inputs: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> GraphExecution:
        """See ExecutionDataClient."""
        graph = self.get_graph(graph_id)
        id_bytes(user_id)
        starts = graph.starts if inputs is None else freeze(inputs)
        execution = GraphExecution(
            new_id(), graph_id, user_id, ExecutionStatus.QUEUED, starts, self._now(), None, None, EMPTY
        )

        def create() -> GraphExecution:
            pending = self._records.writing()
            pending.put_graph_execution(execution)
            pending.others.insert(0, Touch(id_bytes(execution.id), FLAG_INDEXED))
            return execution

        return self.atomically(create, durable=durable, urgent=urgent)

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
        """See ExecutionDataClient."""
        value, text = self._written(input_data)

        def upsert() -> tuple[str, Mapping[str, Any]]:
            records = self._records
            target = self._execution_for_input(node_id, graph_exec_id, input_name, node_exec_id)
            if input_name is not None and not records.has_input(target, input_name):
                execution = target.execution
                inputs = FrozenDict({**execution.inputs, input_name: value})
                sources = execution.sources
                if source is not None:
                    sources = FrozenDict({**sources, input_name: source})
                changed = execution._replace(inputs=inputs, sources=sources)
                target = PartialExecution(changed, target.parts)
                row = InputWrite(
                    changed.id, input_name, text, self._now(), source and source.node_exec_id, source and source.ordinal
                )
                records.put(target, row=False)
                records.writing().rows.append((WriteKind.INPUT, row))
            return target.execution.id, records.whole(target).inputs

        return self.atomically(upsert, durable=durable, urgent=urgent)

    def _execution_for_input(
        self, node_id: str, graph_exec_id: str, input_name: str | None, node_exec_id: str | None
    ) -> PartialExecution:
        records = self._records
        if node_exec_id is not None:
            return records.partial(node_exec_id)
        group = records.group(graph_exec_id, node_id)
        if input_name is not None:
            for identifier in group.incomplete:
                candidate = records.partial(identifier)
                if not records.has_input(candidate, input_name):
                    return candidate
        execution = NodeExecution(
            id=new_id(),
            graph_exec_id=graph_exec_id,
            node_id=node_id,
            block_id=self.get_node(node_id).block_id,
            user_id=self.get_graph_execution(graph_exec_id).user_id,
            status=ExecutionStatus.INCOMPLETE,
            inputs=EMPTY,
            sources=cast("Mapping[str, InputSource]", EMPTY),
            outputs=EMPTY,
            output_count=0,
            created_at=self._now(),
            queued_at=None,
            started_at=None,
            ended_at=None,
            stats=EMPTY,
        )
        partial = PartialExecution(execution, 0)
        records.put(partial)
        grown = NodeGroup([*group.incomplete, execution.id], execution.id)
        records.writing().put_group(group_id(graph_exec_id, node_id), grown, graph_exec_id)
        return partial

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
        """See ExecutionDataClient."""
        given = [(output_name, output_data)] if isinstance(output_name, str) else list(output_name.items())
        values = [(name, *self._written(value)) for name, value in given]

        def upsert() -> NodeExecution:
            partial = self._records.partial(node_exec_id)
            execution = partial.execution
            already = 0 if ordinal is None else max(0, execution.output_count - ordinal)
            if already < len(values):
                outputs = dict(execution.outputs)
                rows = self._records.writing().rows
                count = execution.output_count
                for name, value, text in values[already:]:
                    outputs[name] = FrozenList([*outputs.get(name, ()), value])
                    rows.append((WriteKind.OUTPUT, OutputWrite(node_exec_id, count, name, text, self._now())))
                    count += 1
                changed = execution._replace(outputs=FrozenDict(outputs), output_count=count)
                partial = PartialExecution(changed, partial.parts)
                self._records.put(partial, row=False)
            return self._records.whole(partial)

        return self.atomically(upsert, durable=durable, urgent=urgent)

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
        """See ExecutionDataClient."""
        data = freeze(execution_data) if execution_data else EMPTY
        texts = {name: record_json_text(value) for name, value in data.items()}
        merged = _statistics(stats)

        def update() -> NodeExecution:
            records = self._records
            partial = records.partial(node_exec_id)
            execution = partial.execution
            if not may_move(execution.status, status):
                return records.whole(partial)
            now = self._now()
            changed = _moved(execution, status, now)
            if data:
                inputs = records.whole(partial).inputs
                changed = changed._replace(inputs=FrozenDict({**execution.inputs, **data}))
                for name, text in texts.items():
                    if name not in inputs or inputs[name] != data[name]:
                        records.writing().rows.append((
                            WriteKind.INPUT, InputWrite(node_exec_id, name, text, now, None, None)
                        ))  # fmt: skip
            if merged:
                changed = changed._replace(stats=FrozenDict({**execution.stats, **merged}))
            partial = PartialExecution(changed, partial.parts)
            if status in FINAL_STATUSES:
                partial = self._end_charge(partial)
            records.put(partial)
            if execution.status is ExecutionStatus.INCOMPLETE:
                group = records.group(execution.graph_exec_id, execution.node_id)
                left = [each for each in group.incomplete if each != node_exec_id]
                identifier = group_id(execution.graph_exec_id, execution.node_id)
                records.writing().put_group(identifier, NodeGroup(left, group.latest), execution.graph_exec_id)
            return records.whole(partial)

        return self.atomically(update, durable=durable, urgent=urgent)

    def update_graph_execution_stats(
        self,
        graph_exec_id: str,
        status: ExecutionStatus | None = None,
        stats: Mapping[str, Any] | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> GraphExecution:
        """See ExecutionDataClient."""
        merged = _statistics(stats)

        def update() -> GraphExecution:
            execution = self.get_graph_execution(graph_exec_id)
            if status is not None and not may_move(execution.status, status):
                return execution
            changed = execution
            if status is not None:
                changed = _moved(changed, status, self._now())
            if merged:
                changed = changed._replace(stats=FrozenDict({**execution.stats, **merged}))
            self._records.writing().put_graph_execution(changed)
            return changed

        return self.atomically(update, durable=durable, urgent=urgent)

    def _written(self, value: Any) -> tuple[Any, str]:
        """Return a value, frozen, and as JSON text. Raises InvalidValue.

        An output is written, and then given to each link from it: frozen, that is the same object each time."""
        given, frozen, text = self._written_last
        if given is not value or type(value) not in _FROZEN:
            frozen = freeze(value)
            text = record_json_text(frozen)
            self._written_last = value, frozen, text
        return frozen, text


_FROZEN = (FrozenDict, FrozenList)
E = TypeVar("E", NodeExecution, GraphExecution)


def _statistics(given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return statistics, frozen. Raises InvalidValue for what is no JSON."""
    if not given:
        return EMPTY
    frozen: Mapping[str, Any] = freeze(given)
    record_json_text(frozen)
    return frozen


def _moved(execution: E, status: ExecutionStatus, now: float) -> E:
    """Return an execution with another status, and with the times that the move sets."""
    moves = execution.moves + 1
    if status is ExecutionStatus.QUEUED and isinstance(execution, NodeExecution):
        return execution._replace(status=status, queued_at=now, ended_at=None, moves=moves)
    if status is ExecutionStatus.RUNNING:
        return execution._replace(status=status, started_at=execution.started_at or now, ended_at=None, moves=moves)
    return execution._replace(status=status, ended_at=now if status in FINAL_STATUSES else None, moves=moves)
