"""What a client has written inside `atomically` and not committed yet: read by its own reads, then made one
transaction.

The order on the ring is that of the writes: an execution's row, as it is at the end, stands where it was last
changed; its inputs and outputs follow in the order given.
"""

from __future__ import annotations

from collections.abc import Iterator

from shmcache.arena import FLAG_FINISHED, FLAG_INDEXED, FLAG_PINNED, Transaction
from shmcache.arena.transaction import Append, Operation, Put, Touch
from shmcache.codec import ExecutionPart, NodeGroup, PartialExecution, Record, encode, pack, record_json_text
from shmcache.identifiers import id_bytes
from shmcache.records import FINAL_STATUSES, GraphExecution, NodeExecution
from shmcache.writes import (
    GraphExecutionWrite,
    InputWrite,
    NodeExecutionWrite,
    OutputWrite,
    WriteKind,
)

# A named tuple's own constructor takes twice as long.
_new = tuple.__new__


class Pending:
    """The changes of one transaction, by identifier, and what they rely on."""

    __slots__ = (
        "charged",
        "charged_for",
        "conflicts",
        "durable",
        "executions",
        "graph_executions",
        "graph_executions_before",
        "group_parents",
        "groups",
        "marks",
        "others",
        "parts",
        "rows",
        "transaction",
        "urgent",
        "written",
    )

    def __init__(self, durable: bool = False, urgent: bool = False, conflicts: int = 0) -> None:
        self.conflicts = conflicts
        """How often it was tried before, and refused because another process was faster."""
        self.durable = durable
        self.urgent = urgent
        self.transaction = Transaction()
        self.executions: dict[str, tuple[PartialExecution, str, bool]] = {}
        self.parts: dict[str, tuple[ExecutionPart, str]] = {}
        self.graph_executions: dict[str, GraphExecution] = {}
        self.graph_executions_before: dict[str, GraphExecution] = {}
        self.groups: dict[str, NodeGroup] = {}
        self.group_parents: dict[str, str] = {}
        self.rows: list[tuple[WriteKind, InputWrite | OutputWrite]] = []
        self.others: list[Operation] = []
        self.charged: dict[str, int] = {}
        self.written: list[tuple[str, Record]] = []
        self.charged_for: dict[str, str] = {}
        self.marks: dict[bytes, int] = {}

    def put_execution(self, partial: PartialExecution, group_id: str, row: bool) -> None:
        """Change or create a node execution, a member of its group; `row`: its own row changes, not only what it has
        of inputs and outputs, which have rows of their own."""
        identifier = partial.execution.id
        before = self.executions.pop(identifier, None)
        self.executions[identifier] = (partial, group_id, row or (before is not None and before[2]))

    def put_part(self, part_id: str, part: ExecutionPart, node_exec_id: str) -> None:
        """Add a part to a node execution, a member of it."""
        self.parts[part_id] = (part, node_exec_id)

    def put_graph_execution(self, execution: GraphExecution) -> None:
        """Change or create a graph execution."""
        before = self.graph_executions.pop(execution.id, execution)
        self.graph_executions_before.setdefault(execution.id, before)
        self.graph_executions[execution.id] = execution

    def put_group(self, group_id: str, group: NodeGroup, graph_exec_id: str) -> None:
        """Change or create the group of a node's executions, a member of its graph execution."""
        self.groups[group_id] = group
        self.group_parents[group_id] = graph_exec_id

    def is_empty(self) -> bool:
        """Say whether nothing was changed."""
        return not (self.executions or self.graph_executions or self.groups or self.rows or self.others)

    def build(self) -> Transaction:
        """Return the transaction with all the operations; `written` is what its first Puts put. Raises InvalidValue."""
        self.transaction.operations = operations = self._rows()
        if self.graph_executions:
            operations += self._graph_execution_records()
        written = self.written
        for group_id, group in self.groups.items():
            written.append((group_id, group))
            parent = id_bytes(self.group_parents[group_id])
            operations.append(_new(Put, (id_bytes(group_id), encode(group), parent, FLAG_INDEXED)))
        for identifier, (partial, group_id, _) in self.executions.items():
            record = partial if partial.parts else partial.execution
            written.append((identifier, record))
            operations.append(_new(Put, (id_bytes(identifier), encode(record), id_bytes(group_id), 0)))
        for part_id, (part, node_exec_id) in self.parts.items():
            written.append((part_id, part))
            operations.append(Put(id_bytes(part_id), encode(part), id_bytes(node_exec_id), FLAG_PINNED))
        operations += self.others
        return self.transaction

    def _rows(self) -> list[Operation]:
        """Return what goes on the write ring."""
        rows: list[Operation] = []
        # A graph execution's row goes before its nodes' rows (foreign key), its final status after them: one that
        # begins and ends here has a row in both places.
        ended = []
        for identifier, graph_execution in self.graph_executions.items():
            first = graph_execution
            if graph_execution.status in FINAL_STATUSES:
                ended.append(graph_execution)
                first = self.graph_executions_before[identifier]
            if first.status not in FINAL_STATUSES:
                rows.append(_graph_execution_row(first))
        for partial, _, row in self.executions.values():
            if row:
                rows.append(_node_execution_row(partial.execution))
        for kind, item in self.rows:
            rows.append(_new(Append, ("write", kind, pack(item))))
        rows.extend(map(_graph_execution_row, ended))
        return rows

    def _graph_execution_records(self) -> Iterator[Operation]:
        for graph_execution in self.graph_executions.values():
            key = id_bytes(graph_execution.id)
            self.written.append((graph_execution.id, graph_execution))
            yield Put(key, encode(graph_execution))
            final = graph_execution.status in FINAL_STATUSES
            yield Touch(key, FLAG_FINISHED if final else 0, 0 if final else FLAG_FINISHED)


def _graph_execution_row(execution: GraphExecution) -> Append:
    row = GraphExecutionWrite(
        execution.id,
        execution.graph_id,
        execution.user_id,
        execution.status,
        record_json_text(execution.inputs),
        execution.created_at,
        execution.started_at,
        execution.ended_at,
        record_json_text(execution.stats),
        execution.moves,
    )
    return Append("write", WriteKind.GRAPH_EXECUTION, pack(row))


def _node_execution_row(execution: NodeExecution) -> Append:
    row = NodeExecutionWrite(
        execution.id,
        execution.graph_exec_id,
        execution.node_id,
        execution.status,
        execution.created_at,
        execution.queued_at,
        execution.started_at,
        execution.ended_at,
        record_json_text(execution.stats) if execution.stats else "{}",
        execution.moves,
    )
    return Append("write", WriteKind.NODE_EXECUTION, pack(row))
