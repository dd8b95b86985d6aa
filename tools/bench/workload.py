"""The records that every subject stores, in two shapes, and the keys that are asked for.

A node definition takes some 700 bytes in msgpack, an output some 350. Keys are UUIDs as text, as graphs have them;
every use of a key is a string of its own, as when it came out of a queue or a record."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from shmcache.codec import ExecutionPart
from shmcache.frozen import FrozenDict, freeze, thaw
from shmcache.records import Link, NodeDefinition

_WORDS = ("shared", "memory", "arena", "graph", "execution", "output", "status", "ring", "commit", "epoch", "credit")
_ZIPF = 1.1
"""The exponent of the law by which popular keys are asked for."""


class Item(NamedTuple):
    """A record by its key: as shmcache holds it, and as the plain value that others are given."""

    key: str
    record: Any
    plain: dict[str, Any]


def node_definitions(count: int, seed: int = 1) -> list[Item]:
    """Return so many node definitions, of about 700 bytes each in msgpack."""
    source = random.Random(seed)  # noqa: S311 - records of a benchmark: the same ones every time
    graph_id = _identifier(source)
    items = []
    for number in range(count):
        key, left, right = _identifier(source), _identifier(source), _identifier(source)
        record = NodeDefinition(
            id=key,
            graph_id=graph_id,
            name=f"node {number}",
            block_id="shmcache.text_template",
            input_default=freeze({"template": _text(source, 330), "retries": 3, "temperature": 0.2}),
            constants=freeze({"model": "large", "options": {"stop": ["\n\n"], "limit": 512}}),
            input_links=(Link(left, "value", key, "text"),),
            output_links=(Link(key, "result", right, "value"),),
        )
        items.append(Item(key, record, _plain(record)))
    return items


def output_value(number: int, seed: int = 2) -> dict[str, Any]:
    """Return the value of an output, of about 350 bytes in msgpack."""
    source = random.Random(seed * 1_000_003 + number)  # noqa: S311
    return {"text": _text(source, 270), "tokens": source.randrange(1000), "model": "large", "finish": "stop",
            "score": source.random()}  # fmt: skip


def outputs(count: int) -> list[Item]:
    """Return so many outputs of node executions, by a key each."""
    source = random.Random(3)  # noqa: S311
    items = []
    for number in range(count):
        made = {"result": [output_value(number)]}
        record = ExecutionPart(freeze({}), FrozenDict(), freeze(made))
        items.append(Item(_identifier(source), record, {"outputs": made}))
    return items


def in_turn(items: Sequence[Item], count: int) -> list[str]:
    """Return keys, each as a string of its own, one item after the other."""
    return [_copy(items[number % len(items)].key) for number in range(count)]


def by_zipf(items: Sequence[Item], count: int) -> list[str]:
    """Return keys by a Zipf law: the nth most popular is asked for in proportion to n ** -1.1."""
    weights = np.arange(1, len(items) + 1, dtype=float) ** -_ZIPF
    drawn = np.random.default_rng(4).choice(len(items), size=count, p=weights / weights.sum())
    return [_copy(items[int(number)].key) for number in drawn]


def _copy(key: str) -> str:
    return "".join((key[:1], key[1:]))


def _plain(record: NodeDefinition) -> dict[str, Any]:
    plain: dict[str, Any] = thaw(record._asdict())
    plain["input_links"] = [list(link) for link in record.input_links]
    plain["output_links"] = [list(link) for link in record.output_links]
    return plain


def _identifier(source: random.Random) -> str:
    return str(uuid.UUID(int=source.getrandbits(128), version=4))


def _text(source: random.Random, length: int) -> str:
    words: list[str] = []
    while sum(map(len, words)) + len(words) < length:
        words.append(source.choice(_WORDS))
    return " ".join(words)[:length]
