"""msgpack to records and back, and values to the JSON texts that the database keeps.

A record is the msgpack array of its fields behind a number that names its type. What comes back is frozen.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import msgpack

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


Record = Graph | NodeDefinition | GraphExecution | NodeExecution | Account | NodeGroup

_NUMBERS: dict[type[Any], int] = {
    Graph: 1,
    NodeDefinition: 2,
    GraphExecution: 3,
    NodeExecution: 4,
    Account: 5,
    NodeGroup: 6,
}
_STATUSES = {status.value: status for status in ExecutionStatus}

_pack = msgpack.Packer(autoreset=True).pack
_json_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=True).encode


def encode(record: Record) -> bytes:
    """Return a record's bytes. Raises InvalidValue for a value that msgpack cannot hold."""
    return pack((_NUMBERS[type(record)], *record))


def pack(fields: tuple[Any, ...]) -> bytes:
    """Return the msgpack array of some fields. Raises InvalidValue."""
    try:
        packed: bytes = _pack(fields)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidValue(f"a value cannot be stored: {error}") from None
    return packed


def decode(data: bytes) -> Record:
    """Return the record of some bytes, frozen. Raises InvalidValue where they are no record."""
    try:
        fields = msgpack.unpackb(data, list_hook=FrozenList, object_pairs_hook=FrozenDict, strict_map_key=False)
        number = fields[0]
        if number == 4:
            (_, identifier, graph_exec_id, node_id, block_id, user_id, status, inputs, sources, *rest) = fields
            if sources:
                sources = FrozenDict({name: InputSource(*source) for name, source in sources.items()})
            return NodeExecution(
                identifier, graph_exec_id, node_id, block_id, user_id, _STATUSES[status], inputs, sources, *rest
            )
        if number == 2:
            definition = NodeDefinition(*fields[1:])
            return definition._replace(
                input_links=tuple(Link(*link) for link in definition.input_links),
                output_links=tuple(Link(*link) for link in definition.output_links),
            )
        if number == 3:
            identifier, graph_id, user_id, status, *rest = fields[1:]
            return GraphExecution(identifier, graph_id, user_id, _STATUSES[status], *rest)
        if number == 6:
            return NodeGroup(*fields[1:])
        if number == 1:
            return Graph(*fields[1:])
        if number == 5:
            return Account(*fields[1:])
    except (ValueError, TypeError, KeyError, IndexError, msgpack.UnpackException) as error:
        raise InvalidValue(f"not a record: {error}") from None
    raise InvalidValue(f"not a record: type {number!r}")


def json_text(value: Any) -> str:
    """Return a value as JSON text. Raises InvalidValue for what is no JSON: NaN, bytes, dates, objects of classes."""
    try:
        return _json_encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValue(f"a value is no JSON: {error}") from None
