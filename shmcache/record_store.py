"""RecordStore: records as a client needs them: from what it is just writing, from the arena, else from the database.

A graph execution, the groups of its nodes' executions and the executions form a family in the arena (members of
members), which is how all executions of a graph execution, or of one of its nodes, are found without a scan. An
execution with many inputs or outputs has its earlier ones in parts, members of its own, so that one more of them does
not copy all the others.

Every read inside a transaction is noted in it: the commit fails, and the transaction runs again, if another process
has changed one of those records meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

from shmcache.arena import FLAG_INDEXED, Arena, Conflict, Counter, Transaction
from shmcache.arena.transaction import Put, Touch
from shmcache.backing_store import BackingStore
from shmcache.codec import ExecutionPart, NodeGroup, PartialExecution, Record, encode
from shmcache.database import queries
from shmcache.definition_index import DefinitionIndex
from shmcache.errors import ArenaFull, NotFound
from shmcache.frozen import FrozenDict, FrozenList
from shmcache.identifiers import derived_id, id_bytes, id_text
from shmcache.pending import Pending
from shmcache.records import ExecutionStatus, GraphExecution, InputSource, NodeExecution
from shmcache.simple_cache import SimpleExecutorCache

R = TypeVar("R", bound=Record)

EMPTY: Mapping[str, Any] = FrozenDict()
_NO_GROUP = NodeGroup([], None)
_PART_ITEMS = 32
"""Inputs and outputs that an execution's record holds before they move to a part."""


@lru_cache(maxsize=65_536)
def group_id(graph_exec_id: str, node_id: str) -> str:
    """Return the identifier of the group of a node's executions in a graph execution."""
    return derived_id("node group", graph_exec_id, node_id)


def _part_id(node_exec_id: str, number: int) -> str:
    return derived_id("execution part", node_exec_id, str(number))


class _AtHand(threading.local):
    pending: Pending | None = None


class RecordStore:
    """Records over an arena, with a database behind it and each thread's pending transaction before it."""

    def __init__(self, arena: Arena, cache: SimpleExecutorCache, backing: BackingStore) -> None:
        self._arena = arena
        self._cache = cache
        self._backing = backing
        self._definitions = DefinitionIndex(arena)
        # What this thread is writing: `at_hand.pending`, None outside of a transaction.
        self.at_hand = _AtHand()

    def writing(self) -> Pending:
        """Return what this thread is writing."""
        pending = self.at_hand.pending
        assert pending is not None, "a write outside of a transaction"
        return pending

    # Single records

    def definition(self, identifier: str, kind: type[R], query: Callable[..., Any], name: str) -> R:
        """Return a graph or a node, loading all of its graph on a miss. Raises NotFound, DatabaseUnavailable."""
        hit = self._cache.get(identifier)
        if hit is None:
            with self._arena.loads.loading(id_bytes(identifier)):
                hit = self._cache.get(identifier)  # another may have loaded it just now
                if hit is None:
                    return self._load_definition(identifier, kind, query, name)
        if not isinstance(hit[1], kind):
            raise NotFound(name, identifier)
        return hit[1]

    def _load_definition(self, identifier: str, kind: type[R], query: Callable[..., Any], name: str) -> R:
        loaded = self._definitions.load(lambda: self._backing.load(query, identifier))
        named = {} if loaded is None else dict(zip(loaded.keys(), loaded.records(), strict=True))
        found = named.get(identifier)
        if not isinstance(found, kind):
            raise NotFound(name, identifier)
        return found

    def record(self, identifier: str, kind: type | tuple[type, ...], query: Callable[..., Any], name: str) -> Any:
        """Return a record from the arena, or from the database by way of the arena, and rely on its version."""
        hit = self._cache.get(identifier)
        if hit is None:
            with self._arena.loads.loading(id_bytes(identifier)):
                hit = self._load_record(identifier, query, name)
        version, found, entry = hit
        if not isinstance(found, kind):
            raise NotFound(name, identifier)
        pending = self.at_hand.pending
        if pending is not None:
            pending.transaction.rely_on(id_bytes(identifier), version, entry)
        return found

    def _load_record(self, identifier: str, query: Callable[..., Any], name: str) -> tuple[int, Any, int]:
        """Bring a record into the arena, unless another does it first; return its version, it, and its entry."""
        while (hit := self._cache.get(identifier)) is None:
            # The lease of the fill: it is dropped if the key was written, or anything was forgotten, since this look.
            fill = Transaction()
            fill.evictions = self._arena.evictions()
            key = id_bytes(identifier)
            if self._arena.version(key):
                continue
            fill.rely_on(key, 0)
            record = self._backing.load(query, identifier)
            if record is None:
                raise NotFound(name, identifier)
            fill.operations.append(Put(key, encode(record)))
            try:
                self._arena.commit(fill)
                self._arena.count(Counter.FILLS)
            except Conflict:
                pass
            except ArenaFull:
                return 0, record, 0
        return hit

    # Node executions

    def execution(self, node_exec_id: str) -> NodeExecution:
        """Return a node execution with all its inputs and outputs. Raises NotFound, DatabaseUnavailable."""
        return self.whole(self.partial(node_exec_id))

    def partial(self, node_exec_id: str) -> PartialExecution:
        """Return a node execution without its parts. Raises NotFound, DatabaseUnavailable."""
        pending = self.at_hand.pending
        if pending is not None and node_exec_id in pending.executions:
            return pending.executions[node_exec_id][0]
        if self._cache.get(node_exec_id) is None:
            with self._arena.loads.loading(id_bytes(node_exec_id)):
                if self._cache.get(node_exec_id) is None:
                    # An execution lives in the arena as a member of its family, so the family comes first.
                    loaded = self._backing.load(queries.load_node_execution, node_exec_id)
                    if loaded is None:
                        raise NotFound("node execution", node_exec_id)
                    self.index(loaded.graph_exec_id)
        kinds = (NodeExecution, PartialExecution)
        found: NodeExecution | PartialExecution = self.record(
            node_exec_id, kinds, queries.load_node_execution, "node execution"
        )
        return found if isinstance(found, PartialExecution) else PartialExecution(found, 0)

    def whole(self, partial: PartialExecution) -> NodeExecution:
        """Return the execution with what its parts hold."""
        execution = partial.execution
        if not partial.parts:
            return execution
        inputs: dict[str, Any] = {}
        sources: dict[str, InputSource] = {}
        outputs: dict[str, list[Any]] = {}
        for part in (*self._parts(partial), ExecutionPart(execution.inputs, execution.sources, execution.outputs)):
            inputs.update(part.inputs)
            sources.update(part.sources)
            for name, values in part.outputs.items():
                outputs.setdefault(name, []).extend(values)
        return execution._replace(
            inputs=FrozenDict(inputs),
            sources=FrozenDict(sources),
            outputs=FrozenDict({name: FrozenList(values) for name, values in outputs.items()}),
        )

    def has_input(self, partial: PartialExecution, name: str) -> bool:
        """Say whether an execution has an input."""
        return name in partial.execution.inputs or any(name in part.inputs for part in self._parts(partial))

    def put(self, partial: PartialExecution, *, row: bool = True) -> None:
        """Write an execution in the transaction at hand; what its record has too much of moves to a part.

        `row` is whether its own row in the database changes: with one more input or output it does not."""
        execution = partial.execution
        items = len(execution.inputs) + sum(len(values) for values in execution.outputs.values())
        pending = self.writing()
        if items > _PART_ITEMS:
            part = ExecutionPart(execution.inputs, execution.sources, execution.outputs)
            pending.put_part(_part_id(execution.id, partial.parts), part, execution.id)
            emptied = execution._replace(inputs=EMPTY, sources=cast("Mapping[str, InputSource]", EMPTY), outputs=EMPTY)
            partial = PartialExecution(emptied, partial.parts + 1)
        pending.put_execution(partial, group_id(execution.graph_exec_id, execution.node_id), row)

    def _parts(self, partial: PartialExecution) -> Iterable[ExecutionPart]:
        pending = self.at_hand.pending
        for number in range(partial.parts):
            identifier = _part_id(partial.execution.id, number)
            if pending is not None and identifier in pending.parts:
                yield pending.parts[identifier][0]
                continue
            hit = self._cache.get(identifier)
            if hit is None or not isinstance(hit[1], ExecutionPart):
                raise NotFound("part of node execution", partial.execution.id)
            yield hit[1]

    # Families

    def execution_ids(self, graph_exec_id: str, node_id: str | None) -> list[str]:
        """Return the executions of a graph execution, or of one of its nodes, those just being written included."""
        if node_id is not None:
            groups = [group_id(graph_exec_id, node_id)]
            if self.at_hand.pending is not None:
                self.group(graph_exec_id, node_id)  # so that an execution that another process adds now is a conflict
        else:
            groups = self._members(graph_exec_id, graph_exec_id)
        identifiers = {each: None for group in groups for each in self._members(graph_exec_id, group)}
        for partial, *_ in self.at_hand.pending.executions.values() if self.at_hand.pending is not None else ():
            execution = partial.execution
            if execution.graph_exec_id == graph_exec_id and node_id in (None, execution.node_id):
                identifiers[execution.id] = None
        return list(identifiers)

    def group(self, graph_exec_id: str, node_id: str) -> NodeGroup:
        """Return what the arena knows of a node's executions in a graph execution, and rely on it."""
        identifier = group_id(graph_exec_id, node_id)
        pending = self.at_hand.pending
        if pending is not None and identifier in pending.groups:
            return pending.groups[identifier]
        entry = 0
        group: NodeGroup
        hit = self._cache.get(identifier)
        if hit is None and self.index(graph_exec_id):
            hit = self._cache.get(identifier)
        key = id_bytes(identifier)
        if hit is not None and isinstance(hit[1], NodeGroup):
            version, group, entry = hit[0], hit[1], hit[2]
        elif hit is None and not self._arena.has_entry(key) and self._is_indexed(graph_exec_id):
            version, group = 0, _NO_GROUP  # the node's first execution in this graph execution is still to come
        else:
            version = self._arena.version(key)
            members = [self.partial(each).execution for each in self._members(graph_exec_id, identifier)]
            executions = sorted(members, key=lambda each: (each.created_at, each.id))
            waiting = [each.id for each in executions if each.status is ExecutionStatus.INCOMPLETE]
            group = NodeGroup(waiting, executions[-1].id) if executions else _NO_GROUP
        if pending is not None:
            pending.transaction.rely_on(key, version, entry)
        return group

    def _members(self, graph_exec_id: str, parent_id: str) -> list[str]:
        """Return the members of a graph execution, or of one of its groups; none of a group that is not there."""
        while True:
            self.index(graph_exec_id)
            members = self._arena.members(id_bytes(parent_id))
            if members is not None:
                return [id_text(key) for key in members]
            pending = self.at_hand.pending
            just_made = pending is not None and graph_exec_id in pending.graph_executions
            if just_made or (parent_id != graph_exec_id and self._arena.is_indexed(id_bytes(graph_exec_id))):
                return []
            # The family was dropped from the arena since it was found complete: look again.

    def index(self, graph_exec_id: str) -> bool:
        """Make sure that the arena has the whole family of a graph execution; return whether it had to be loaded."""
        if self._is_indexed(graph_exec_id):
            return False
        key = id_bytes(graph_exec_id)
        with self._arena.loads.loading(key):
            if not self._arena.is_indexed(key):
                self._load_family(graph_exec_id, key)
        return True

    def _is_indexed(self, graph_exec_id: str) -> bool:
        pending = self.at_hand.pending
        if pending is not None and graph_exec_id in pending.graph_executions:
            return True
        return self._arena.is_indexed(id_bytes(graph_exec_id))

    def _load_family(self, graph_exec_id: str, key: bytes) -> None:
        pending = self.at_hand.pending
        # What was dropped from the arena is in the database once the ring has been drained.
        ring = self._arena.write_ring
        ring.request_drain()
        ring.wait_committed(ring.last_sequence, None)
        self.at_hand.pending, outer = None, pending
        try:
            self.record(graph_exec_id, GraphExecution, queries.load_graph_execution, "graph execution")
            executions = self._backing.load(queries.load_node_executions, graph_exec_id)
        finally:
            self.at_hand.pending = outer
        self._fill_groups(graph_exec_id, key, executions)

    def fill_family(self, record: GraphExecution, executions: Iterable[NodeExecution]) -> None:
        """Bring a graph execution into the arena with all its executions, as they were loaded.

        For who holds `Arena.loads` of it, and nobody has it in the arena. If there is no room it is loaded when it is
        needed."""
        key = id_bytes(record.id)
        fill = Transaction()
        fill.rely_on(key, 0)
        fill.operations.append(Put(key, encode(record)))
        try:
            self._arena.commit(fill)
            self._arena.count(Counter.FILLS)
            self._fill_groups(record.id, key, executions)
        except (ArenaFull, Conflict):
            return

    def _fill_groups(self, graph_exec_id: str, key: bytes, executions: Iterable[NodeExecution]) -> None:
        groups: dict[str, list[NodeExecution]] = {}
        for execution in executions:
            groups.setdefault(execution.node_id, []).append(execution)
        for node_id, members in groups.items():
            group_key = id_bytes(group_id(graph_exec_id, node_id))
            waiting = [each.id for each in members if each.status is ExecutionStatus.INCOMPLETE]
            self._fill_family(group_key, encode(NodeGroup(waiting, members[-1].id)), key)
            for execution in members:
                self._fill_family(id_bytes(execution.id), encode(execution), group_key)
            self._touch(group_key)
        self._touch(key)

    def _fill_family(self, key: bytes, record: bytes, parent: bytes) -> None:
        fill = Transaction()
        fill.rely_on(key, 0)
        fill.operations.append(Put(key, record, parent))
        try:
            self._arena.commit(fill)
        except Conflict:
            return  # it is there, and newer

    def _touch(self, key: bytes) -> None:
        indexed = Transaction()
        indexed.operations.append(Touch(key, FLAG_INDEXED))
        self._arena.commit(indexed)
