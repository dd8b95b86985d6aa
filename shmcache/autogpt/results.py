"""What the platform's calls return: the fields that its executors read. Times are datetimes in UTC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from shmcache.frozen import FrozenDict
from shmcache.records import ExecutionStatus, GraphExecution, Link, NodeDefinition, NodeExecution

_EMPTY: Mapping[str, Any] = FrozenDict()


class NodeLink(NamedTuple):
    """A link between two nodes, from either end."""

    source_id: str
    source_name: str
    sink_id: str
    sink_name: str
    is_static: bool


class Node(NamedTuple):
    """A node of a version of a graph."""

    id: str
    block_id: str
    input_default: Mapping[str, Any]
    metadata: Mapping[str, Any]
    input_links: Sequence[NodeLink]
    output_links: Sequence[NodeLink]
    graph_id: str
    graph_version: int
    webhook_id: str | None


class NodeExecutionResult(NamedTuple):
    """A node execution. `output_data` has a list for each name, in the order yielded."""

    user_id: str
    graph_id: str
    graph_version: int
    graph_exec_id: str
    node_exec_id: str
    node_id: str
    block_id: str
    status: ExecutionStatus
    input_data: Mapping[str, Any]
    output_data: Mapping[str, Sequence[Any]]
    stats: Mapping[str, Any]
    add_time: datetime
    queue_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None


class GraphExecutionResult(NamedTuple):
    """A graph execution. `node_executions` are those that it was created with, and empty elsewhere."""

    id: str
    user_id: str
    graph_id: str
    graph_version: int
    preset_id: str | None
    status: ExecutionStatus
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    stats: Mapping[str, Any]
    node_executions: Sequence[NodeExecutionResult] = ()


def node_result(node: NodeDefinition) -> Node:
    """Return a node's definition as the platform has it."""
    return Node(
        node.id, node.block_id, {**node.input_default, **node.constants}, node.metadata,
        tuple(map(_link, node.input_links)), tuple(map(_link, node.output_links)),
        node.graph_id, node.graph_version, node.webhook_id,
    )  # fmt: skip


def node_execution_result(
    execution: NodeExecution, graph_exec: GraphExecution, *, with_data: bool = True
) -> NodeExecutionResult:
    """Return a node execution as the platform has it; without its inputs and outputs unless `with_data`."""
    return NodeExecutionResult(
        execution.user_id, graph_exec.graph_id, graph_exec.graph_version, execution.graph_exec_id, execution.id,
        execution.node_id, execution.block_id, execution.status,
        execution.inputs if with_data else _EMPTY, execution.outputs if with_data else _EMPTY, execution.stats,
        _moment(execution.created_at), _time(execution.queued_at), _time(execution.started_at),
        _time(execution.ended_at),
    )  # fmt: skip


def graph_execution_result(
    execution: GraphExecution, node_executions: Sequence[NodeExecutionResult] = ()
) -> GraphExecutionResult:
    """Return a graph execution as the platform has it."""
    return GraphExecutionResult(
        execution.id, execution.user_id, execution.graph_id, execution.graph_version, execution.preset_id,
        execution.status, _moment(execution.created_at), _time(execution.started_at), _time(execution.ended_at),
        execution.stats, node_executions,
    )  # fmt: skip


def _link(link: Link) -> NodeLink:
    return NodeLink(link.source_node_id, link.source_name, link.sink_node_id, link.sink_name, link.is_static)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else _moment(seconds)
