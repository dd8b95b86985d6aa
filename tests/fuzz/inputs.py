"""What readers are given: valid input with something changed in it, and things of the right form with any content."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
from hypothesis import strategies as st

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["", "0", "nodes", "\0", "\ud800", "a" * 300, 2**64, -(2**63) - 1, 10**310, -0.0]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip

MSGPACK_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20)
    | st.binary(max_size=20) | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8))
    | st.just(msgpack.Timestamp(1, 2)) | st.uuids().map(str) | st.sampled_from([0, 1, "", "{}", "COMPLETED", 2**63]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=8) | st.integers(0, 9) | st.binary(max_size=4), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip


def packed(value: Any) -> bytes:
    """Return a value's msgpack bytes."""
    made: bytes = msgpack.packb(value, unicode_errors="surrogatepass")
    return made


@st.composite
def damaged(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """Give one of some valid inputs with bytes changed, taken out, put in, said twice, or cut off."""
    data = bytearray(draw(st.sampled_from(list(originals))))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(len(data), place + draw(st.integers(1, 16)))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat", "truncate", "set"])):
            case "flip" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "set" if data:
                data[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xC1, 0xDC, 0xDF, 0xFF]))
            case "cut":
                del data[place:end]
            case "insert":
                data[place:place] = draw(st.binary(max_size=16))
            case "repeat":
                data[place:place] = data[place:end] * draw(st.integers(1, 3))
            case "truncate":
                del data[place:]
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, documents: Sequence[Any], values: st.SearchStrategy[Any]) -> Any:
    """Give one of some documents with values in it replaced, taken out, or said twice."""
    document = json.loads(json.dumps(draw(st.sampled_from(list(documents)))))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_paths(document)))
        if not path:
            return draw(values)
        holder = document
        for step in path[:-1]:
            holder = holder[step]
        match draw(st.sampled_from(["replace", "replace", "remove", "copy", "rename"])):
            case "replace":
                holder[path[-1]] = draw(values)
            case "remove":
                del holder[path[-1]]
            case "copy" if isinstance(holder, list):
                holder.append(holder[path[-1]])
            case "rename" if isinstance(holder, dict):
                holder[draw(st.text(max_size=8))] = holder.pop(path[-1])
            case _:
                holder[path[-1]] = draw(st.sampled_from([None, [], {}, ""]))
    return document


def _paths(document: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = [()]
    pending: list[tuple[tuple[Any, ...], Any]] = [((), document)]
    while pending:
        path, value = pending.pop()
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            found.append((*path, key))
            pending.append(((*path, key), value[key]))
    return found


def json_bytes(documents: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """Give JSON files: of any content, altered documents, and those with bytes changed."""
    as_bytes: Callable[[Any], bytes] = lambda value: json.dumps(value).encode()  # noqa: E731
    return (
        altered(documents, JSON_VALUES).map(as_bytes)
        | damaged([as_bytes(each) for each in documents])
        | JSON_VALUES.map(as_bytes)
        | st.binary(max_size=200)
    )


def msgpack_bytes(documents: Sequence[Any], *prefixes: Any) -> st.SearchStrategy[bytes]:
    """Give msgpack: altered arrays, arrays that begin with one of some values, any value, and bytes changed."""
    kinds = (
        altered(documents, MSGPACK_VALUES).map(packed)
        | damaged([packed(each) for each in documents])
        | MSGPACK_VALUES.map(packed)
        | st.binary(max_size=60)
        | st.integers(1, 3000).map(lambda depth: b"\x91" * depth + b"\xc0")
    )
    if prefixes:
        kinds |= st.tuples(st.sampled_from(prefixes), st.lists(MSGPACK_VALUES, max_size=14)).map(
            lambda made: packed([made[0], *made[1]])
        )
    return kinds
