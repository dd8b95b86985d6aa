"""What executors read and write: graphs, nodes, executions, accounts; and the moves a status may make.

Records are named tuples: they cannot be changed, compare by value, and travel through msgpack as plain arrays.
The mappings and lists inside them are frozen too (see `shmcache.frozen`). Identifiers are UUIDs in canonical text
form. Times are seconds since the Unix epoch, UTC, or None for what has not happened yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from shmcache.frozen import FrozenDict


class ExecutionStatus(StrEnum):
    """The state of a node execution or of a graph execution."""

    INCOMPLETE = "INCOMPLETE"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    TERMINATED = "TERMINATED"
    REVIEW = "REVIEW"


_INCOMPLETE = ExecutionStatus.INCOMPLETE
_QUEUED = ExecutionStatus.QUEUED
_RUNNING = ExecutionStatus.RUNNING
_TERMINATED = ExecutionStatus.TERMINATED
_REVIEW = ExecutionStatus.REVIEW

ALLOWED_FROM: Mapping[ExecutionStatus, frozenset[ExecutionStatus]] = {
    ExecutionStatus.INCOMPLETE: frozenset(),
    ExecutionStatus.QUEUED: frozenset({_INCOMPLETE, _TERMINATED, _REVIEW}),
    ExecutionStatus.RUNNING: frozenset({_INCOMPLETE, _QUEUED, _TERMINATED, _REVIEW}),
    ExecutionStatus.COMPLETED: frozenset({_RUNNING}),
    ExecutionStatus.FAILED: frozenset({_INCOMPLETE, _QUEUED, _RUNNING, _REVIEW}),
    ExecutionStatus.TERMINATED: frozenset({_INCOMPLETE, _QUEUED, _RUNNING, _REVIEW}),
    ExecutionStatus.REVIEW: frozenset({_RUNNING}),
}
"""For each status, those it may be reached from. COMPLETED and FAILED are final."""

FINAL_STATUSES = frozenset({ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.TERMINATED})
"""Where a run ends (TERMINATED can be taken up again)."""


def may_move(current: ExecutionStatus, target: ExecutionStatus) -> bool:
    """Say whether a status may move from `current` to `target`."""
    return current in ALLOWED_FROM[target]


class Link(NamedTuple):
    """An edge of a graph: an output of one node feeds an input of another.

    A static link's last value is given again to every later execution of the sink node."""

    source_node_id: str
    source_name: str
    sink_node_id: str
    sink_name: str
    is_static: bool = False


class NodeDefinition(NamedTuple):
    """A node of a graph: which block it runs, with what, and what it is linked to.

    `input_default` holds values that a linked input overrides; `constants` values that nothing overrides.
    `graph_version`, `metadata` and `webhook_id` are a platform's that has them; on our own tables they say nothing."""

    id: str
    graph_id: str
    name: str
    block_id: str
    input_default: Mapping[str, Any]
    constants: Mapping[str, Any]
    input_links: Sequence[Link]
    output_links: Sequence[Link]
    graph_version: int = 1
    metadata: Mapping[str, Any] = FrozenDict()
    webhook_id: str | None = None


class Graph(NamedTuple):
    """A graph: its nodes' identifiers, and which nodes a run starts with which inputs.

    Where a platform keeps several versions of a graph under one identifier, this is one of them; on our own tables an
    identifier names a content, and the version is 1."""

    id: str
    name: str
    node_ids: Sequence[str]
    starts: Mapping[str, Mapping[str, Any]]
    version: int = 1


class GraphExecution(NamedTuple):
    """One run of a graph for a user. `inputs` maps the started nodes to what they are started with.

    `moves` counts the moves of its status: of two versions of it, the one with more is the newer. `graph_version` and
    `preset_id` are a platform's that has them."""

    id: str
    graph_id: str
    user_id: str
    status: ExecutionStatus
    inputs: Mapping[str, Mapping[str, Any]]
    created_at: float
    started_at: float | None
    ended_at: float | None
    stats: Mapping[str, Any]
    moves: int = 0
    graph_version: int = 1
    preset_id: str | None = None


class InputSource(NamedTuple):
    """Where an input came from: the execution that made it, and which of its outputs it was (from 0)."""

    node_exec_id: str
    ordinal: int


class NodeExecution(NamedTuple):
    """One run of a node within a graph execution.

    `outputs` has a list for each name, in the order yielded; `output_count` counts them over all names.
    `sources` names, for inputs that another execution made, which one. `moves` counts the moves of its status."""

    id: str
    graph_exec_id: str
    node_id: str
    block_id: str
    user_id: str
    status: ExecutionStatus
    inputs: Mapping[str, Any]
    sources: Mapping[str, InputSource]
    outputs: Mapping[str, Sequence[Any]]
    output_count: int
    created_at: float
    queued_at: float | None
    started_at: float | None
    ended_at: float | None
    stats: Mapping[str, Any]
    moves: int = 0


class Account(NamedTuple):
    """A user's credits as the database knows them. Amounts in the smallest unit.

    `debt` is what charges came to that could not be paid; `held` what of the balance is held for runs that have not
    ended."""

    user_id: str
    opening_balance: int
    balance: int
    execution_count: int
    debt: int = 0
    held: int = 0
