"""msgpack to records and back, and values to the JSON texts that the database keeps.

A record is the msgpack array of its fields behind a number that names its type. What comes back is frozen.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack
import orjson

from shmcache.errors import InvalidValue
from shmcache.frozen import FrozenDict, FrozenList
from shmcache.records import (
    Account,
    ExecutionStatus,
    Graph,
    GraphExecution,
    InputSource,
    Link,
    NodeDefinition,
    NodeExecution,
)


class NodeGroup(NamedTuple):
    """What the arena knows of all executions of one node in one graph execution: which are INCOMPLETE (oldest first),
    and which is the youngest."""

    incomplete: list[str]
    latest: str | None


class PartialExecution(NamedTuple):
    """A node execution with many inputs or outputs, as the arena keeps it.

    `execution` has those that came last, `parts` counts the ExecutionParts that have the earlier ones. So one more of
    them does not copy all the others."""

    execution: NodeExecution
    parts: int


class ExecutionPart(NamedTuple):
    """Some inputs, with their sources, and outputs of a node execution; it never changes once it is written."""

    inputs: Mapping[str, Any]
    sources: Mapping[str, InputSource]
    outputs: Mapping[str, Sequence[Any]]


Record = (
    Graph | NodeDefinition | GraphExecution | NodeExecution | Account | NodeGroup | PartialExecution | ExecutionPart
)

_NUMBERS: dict[type[Any], int] = {
    Graph: 1,
    NodeDefinition: 2,
    GraphExecution: 3,
    NodeExecution: 4,
    Account: 5,
    NodeGroup: 6,
    PartialExecution: 7,
    ExecutionPart: 8,
}
_STATUSES = {status.value: status for status in ExecutionStatus}

_NO_RECORD = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, msgpack.UnpackException
)  # fmt: skip
"""What decoding raises for bytes that are none of a record."""


class _Packers(threading.local):
    """A packer for each thread: one is no whole answer's if the garbage collector lets another thread in meanwhile."""

    def __init__(self) -> None:
        self.pack: Callable[[Any], bytes] = msgpack.Packer(autoreset=True).pack


_packers = _Packers()
# A named tuple's own constructor takes three times as long; that the fields are all there is seen by unpacking them.
_new = tuple.__new__
_json_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=True).encode
_orjson_encode = orjson.dumps
_ORJSON_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def encode(record: Record) -> bytes:
    """Return a record's bytes. Raises InvalidValue for a value that msgpack cannot hold."""
    return pack((_NUMBERS[type(record)], *record))


def pack(fields: tuple[Any, ...]) -> bytes:
    """Return the msgpack array of some fields. Raises InvalidValue."""
    try:
        packed = _packers.pack(fields)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidValue(f"a value cannot be stored: {error}") from None
    return packed


def unpack(packed: bytes) -> list[Any]:
    """Return the fields that `pack` was given."""
    fields: list[Any] = msgpack.unpackb(packed)
    return fields


def decode(data: bytes) -> Record:
    """Return the record of some bytes, frozen. Raises InvalidValue where they are no record."""
    try:
        fields = msgpack.unpackb(data, list_hook=FrozenList, object_hook=FrozenDict, strict_map_key=False)
        number = fields[0]
        if number == 4:
            return _node_execution(fields[1:])
        if number == 7:
            return PartialExecution(_node_execution(fields[1]), fields[2])
        if number == 8:
            return ExecutionPart(fields[1], _sources(fields[2]), fields[3])
        if number == 2:
            _, identifier, graph_id, name, block_id, defaults, constants, *links = fields
            inputs, outputs = map(_links, links)
            return _new(NodeDefinition, (identifier, graph_id, name, block_id, defaults, constants, inputs, outputs))
        if number == 3:
            identifier, graph_id, user_id, status, *rest = fields[1:]
            return GraphExecution(identifier, graph_id, user_id, _STATUSES[status], *rest)
        if number == 6:
            return NodeGroup(*fields[1:])
        if number == 1:
            return Graph(*fields[1:])
        if number == 5:
            return Account(*fields[1:])
    except _NO_RECORD as error:
        raise InvalidValue(f"not a record: {error}") from None
    raise InvalidValue(f"not a record: it begins with a {type(number).__name__}, or with a number that none has")


def _links(links: Sequence[Any]) -> tuple[Link, ...]:
    return tuple([_new(Link, (source, name, sink, to, static)) for source, name, sink, to, static in links])


def _node_execution(fields: Sequence[Any]) -> NodeExecution:
    identifier, graph_exec_id, node_id, block_id, user_id, status, inputs, sources, *rest = fields
    sources = _sources(sources)
    status = _STATUSES[status]
    return NodeExecution(identifier, graph_exec_id, node_id, block_id, user_id, status, inputs, sources, *rest)


def _sources(sources: Mapping[str, Any]) -> Mapping[str, InputSource]:
    return FrozenDict({name: InputSource(*source) for name, source in sources.items()}) if sources else sources


def json_text(value: Any) -> str:
    """Return a value as JSON text. Raises InvalidValue for what is no JSON: NaN, bytes, dates, objects of classes."""
    try:
        return _json_encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValue(f"a value is no JSON: {error}") from None


def record_json_text(value: Any) -> str:
    """Return, as `json_text`, the text of a value that is also packed into a record.

    Packing refuses the UUIDs and enumerations that orjson writes as texts, so it may be asked here: 0.2 us, not 4.9."""
    try:
        text = _orjson_encode(value, None, _ORJSON_OPTIONS)
    except (TypeError, ValueError, RecursionError):
        return json_text(value)  # it says what is wrong, or takes what orjson does not (keys that are numbers)
    # It writes NaN as null.
    return json_text(value) if b"null" in text else text.decode()
