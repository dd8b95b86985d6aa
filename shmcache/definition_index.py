"""DefinitionIndex: which graphs the arena has, at which versions, so that their changes in the database reach it.

A host learns of a change late, or not at all if its connection was just away. So what the arena has of definitions can
be asked of it, and compared with the database; and what is loaded while a change comes in is not kept.

| key          | its record                                                                                           |
|--------------|------------------------------------------------------------------------------------------------------|
| `LEASE`      | how far the index is complete; it has another version whenever what is being loaded may be old by     |
|              | then: who loads relies on it                                                                         |
| `_part_key`  | a part of the index: each graph's version, zeros while it is not settled, and its nodes               |

The order of writes, and what a death in between leaves:

    note     the index says which graph and nodes come, of no version yet          death: read again at the next check
    store    graph and nodes, a part at a time                                     death: as above
    settle   the index says of which version they are; nodes that are gone go      nothing is left to do

A graph that fits one commit is noted, stored and settled in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgpack

from shmcache.arena import FLAG_PINNED, Arena, Conflict, Transaction
from shmcache.arena.transaction import Delete, Put
from shmcache.codec import decode, encode
from shmcache.database.queries import Definition
from shmcache.errors import ArenaFull, InvalidValue, TransactionTooLarge
from shmcache.identifiers import derived_id, id_bytes
from shmcache.records import Graph, NodeDefinition

LEASE = id_bytes(derived_id("definitions lease"))
_PARTS = 256
_AT_ONCE = 128
"""Records in one commit."""
_MOST_TRIES = 3
NOT_KEPT = (ArenaFull, InvalidValue, TransactionTooLarge)
"""The arena has no room for a graph, now or ever."""
_COMPLETE, _COMPLETING, _INCOMPLETE = b"complete", b"completing", b"incomplete"
_NO_VERSION = bytes(16)


class Known(NamedTuple):
    """What the arena has of a graph: its version (16 bytes, zeros for none), and the keys of its nodes."""

    version: bytes
    nodes: list[bytes]


class _Part(NamedTuple):
    key: bytes
    arena_version: int
    graphs: dict[bytes, Known]
    is_damaged: bool = False


class DefinitionIndex:
    """The index over an arena."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def load(self, load: Callable[[], Definition | None]) -> Definition | None:
        """Return a graph as `load` reads it from the database, and keep it, unless it might be an older one by then."""
        for _ in range(_MOST_TRIES):
            lease = self._arena.version(LEASE)
            loaded = load()
            try:
                if loaded is None or self.keep(lease, loaded):
                    break
            except NOT_KEPT:
                break
        return loaded

    def knows(self, graph: bytes) -> bool:
        """Say whether the arena has something of a graph."""
        return graph in self._part(graph[-1]).graphs

    def renew_lease(self) -> int:
        """Have nothing kept that is being loaded now; return the lease from here on."""
        while True:
            version, state = self._state()
            renewed = self._move_state(version, state)
            if renewed:
                return renewed

    def keep(self, lease: int, definition: Definition) -> bool:
        """Put a graph and its nodes into the arena; return False if the lease is over. Raises one of NOT_KEPT.

        Where it fails, some of it may have been done: the graph is looked at again at the next check."""
        key = id_bytes(definition.graph.id)
        records = [(id_bytes(each.id), encode(each)) for each in definition.records()]
        known = Known(id_bytes(definition.version), [node for node, _ in records[1:]])
        try:
            if len(records) < _AT_ONCE:
                return self._note(lease, key, known, [Put(each, record) for each, record in records])
            if not self._note(lease, key, known._replace(version=_NO_VERSION), []):
                return False
            for begin in range(0, len(records), _AT_ONCE):
                store = Transaction()
                store.rely_on(LEASE, lease)
                store.operations += [Put(each, record) for each, record in records[begin : begin + _AT_ONCE]]
                # step: noted
                self._arena.commit(store)
            # step: stored
            return self._note(lease, key, known, [])
        except Conflict:
            return False

    def clear(self, lease: int, graph: bytes) -> bool:
        """Have the arena forget the records of a graph and its nodes, which needs no room; they are looked at again at
        the next check. Return False if the lease is over."""
        known = self._part(graph[-1]).graphs.get(graph)
        keys = [graph, *known.nodes] if known else []
        try:
            for begin in range(0, len(keys), _AT_ONCE):
                self._forget(lease, keys[begin : begin + _AT_ONCE])
        except Conflict:
            return False
        return True

    def drop(self, lease: int, graph_id: bytes) -> bool:
        """Forget a graph and its nodes; return False if the lease is over."""
        try:
            return self._note(lease, graph_id, None, [])
        except Conflict:
            return False

    def known(self) -> dict[bytes, Known]:
        """Return what the arena has of graphs, by their keys."""
        known: dict[bytes, Known] = {}
        for number in range(_PARTS):
            known.update(self._part(number).graphs)
        return known

    def tidy(self) -> None:
        """Take graphs out of the index of which the arena has nothing any more; where the index is not complete, have
        the arena forget what is not in it."""
        if self._state()[1] != _COMPLETE:
            self._complete()
        parts = [part for number in range(_PARTS) if (part := self._part(number)).graphs]
        kept = set(self._arena.keys())
        for part in parts:
            left = {
                graph: known
                for graph, known in part.graphs.items()
                if graph in kept or not kept.isdisjoint(known.nodes)
            }
            if len(left) < len(part.graphs):
                self._rewrite(part, left)

    def _note(self, lease: int, graph: bytes, known: Known | None, puts: Iterable[Put]) -> bool:
        """Say in the index what the arena has of a graph, None: nothing, with some Puts in the same commit; forget
        nodes that are not part of it any more. Return False if the lease is over. Raises ArenaFull, Conflict."""
        while True:
            part = self._part(graph[-1])
            before = part.graphs.get(graph)
            settled = known is None or known.version != _NO_VERSION
            stay = set(known.nodes) if known else set()
            gone = [node for node in before.nodes if node not in stay] if before else []
            if known is None:
                if before is None:
                    return True
                gone.append(graph)
                part.graphs.pop(graph)
            else:
                # Until it is settled, nodes that go are still to be found by who finds this half done.
                part.graphs[graph] = known if settled else known._replace(nodes=[*known.nodes, *gone])
            for begin in range(_AT_ONCE, len(gone), _AT_ONCE):  # more than one commit takes go before, by themselves
                if settled:
                    self._forget(lease, gone[begin : begin + _AT_ONCE])
            wanted = Transaction()
            wanted.rely_on(LEASE, lease)
            wanted.rely_on(part.key, part.arena_version)
            wanted.operations += [_put_part(part, part.graphs), *puts]
            if settled:
                wanted.operations += map(Delete, gone[:_AT_ONCE])
            try:
                self._arena.commit(wanted)
            except Conflict:
                if self._arena.version(LEASE) != lease:
                    return False
            else:
                return True

    def _forget(self, lease: int, keys: list[bytes]) -> None:
        forgotten = Transaction()
        forgotten.rely_on(LEASE, lease)
        forgotten.operations += map(Delete, keys)
        self._arena.commit(forgotten)

    def _part(self, number: int) -> _Part:
        key = _part_key(number)
        found = self._arena.peek(key)
        if found is not None:
            try:
                graphs = {graph: Known(*known) for graph, known in msgpack.unpackb(found.record).items()}
                return _Part(key, found.version, graphs)
            except (ValueError, TypeError, AttributeError):
                pass
        if found is not None or self._arena.has_entry(key):
            self._note_damage()
            return _Part(key, self._arena.version(key), {}, is_damaged=True)
        return _Part(key, self._arena.version(key), {})

    def _rewrite(self, part: _Part, graphs: Mapping[bytes, Known]) -> None:
        """Write a part, unless who loads something has written it meanwhile."""
        rewritten = Transaction()
        rewritten.rely_on(part.key, part.arena_version)
        rewritten.operations.append(_put_part(part, graphs))
        with contextlib.suppress(Conflict, ArenaFull):
            self._arena.commit(rewritten)

    # Whether all that the arena has of definitions is in the index

    def _state(self) -> tuple[int, bytes]:
        """Return the lease, and how far the index is complete."""
        found = self._arena.peek(LEASE)
        return (found.version, found.record) if found is not None else (self._arena.version(LEASE), _INCOMPLETE)

    def _move_state(self, version: int, state: bytes) -> int:
        """Set the state, unless another has set it since `version`; return the new lease, 0 if another has."""
        moved = Transaction()
        moved.rely_on(LEASE, version)
        moved.operations.append(Put(LEASE, state, None, FLAG_PINNED))
        try:
            return self._arena.commit(moved).written[0][1]
        except Conflict:
            return 0

    def _note_damage(self) -> None:
        version, state = self._state()
        if state != _INCOMPLETE:
            self._move_state(version, _INCOMPLETE)

    def _complete(self) -> None:
        """Forget every definition that is not in the index."""
        for number in range(_PARTS):
            part = self._part(number)
            if part.is_damaged:
                self._rewrite(part, {})
        lease = self._move_state(self._state()[0], _COMPLETING)
        for key in list(self._arena.keys()) if lease else ():
            found = self._arena.peek(key)
            graph = _graph_of(key, found.record) if found is not None else None
            if found is None or graph is None:
                continue
            known = self._part(graph[-1]).graphs.get(graph)
            if known is None or (key != graph and key not in known.nodes):
                forgotten = Transaction()
                forgotten.rely_on(key, found.version)
                forgotten.operations.append(Delete(key))
                with contextlib.suppress(Conflict):
                    self._arena.commit(forgotten)
        if lease:
            self._move_state(lease, _COMPLETE)


def _graph_of(key: bytes, record: bytes) -> bytes | None:
    """Return the key of the graph that a record belongs to, None for what is no definition."""
    try:
        decoded = decode(record)
        if isinstance(decoded, Graph):
            return key
        return id_bytes(decoded.graph_id) if isinstance(decoded, NodeDefinition) else None
    except InvalidValue:
        return None


def _part_key(number: int) -> bytes:
    return id_bytes(derived_id("definitions", str(number)))


def _put_part(part: _Part, graphs: Mapping[bytes, Known]) -> Put:
    return Put(part.key, msgpack.packb(graphs), None, FLAG_PINNED)
