"""Pins that name a place inside a value, as the AutoGPT Platform writes them.

    name_$_0     the first item of the list `name`
    name_#_key   the value of `key` in the object `name`
    name_@_key   the same, for what is an object with attributes there: as JSON it is an object too

Such a link from an output takes the value at that place; such links to an input are put together to the one value that
the block gets. Several such steps may follow one another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_STEP = re.compile(r"_([$#@])_")
_MOST_ITEMS = 100_000


def split_pin(name: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the pin that a name begins with, and the steps (a delimiter and a key each) from its value inwards."""
    base, *rest = _STEP.split(name)
    steps = list(zip(rest[::2], rest[1::2], strict=True))
    if not base or any(kind == "$" and not _is_place(key) for kind, key in steps):
        return name, []
    return base, steps


def is_nested(name: str) -> bool:
    """Say whether a name is that of a place inside a value."""
    return ("_$_" in name or "_#_" in name or "_@_" in name) and bool(split_pin(name)[1])


def take(value: Any, steps: list[tuple[str, str]]) -> Iterator[Any]:
    """Yield what lies at a place inside a value: once, or not at all if the value has no such place."""
    for kind, key in steps:
        if kind == "$":
            if not isinstance(value, (list, tuple)) or int(key) >= len(value):
                return
            value = value[int(key)]
        else:
            if not isinstance(value, Mapping) or key not in value:
                return
            value = value[key]
    yield value


def put_together(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by pin, where those for places inside a value are put into it. What is given is not changed.

    A list that is too short is filled up with null; what cannot have such a place (a number, say) is replaced. Pins are
    put in by the order of their names: which came first is not the same to all who read them."""
    together = dict(values)
    for name in sorted(name for name in together if is_nested(name)):
        base, steps = split_pin(name)
        together[base] = _put(together.get(base), steps, together.pop(name))
    return together


def _put(into: Any, steps: list[tuple[str, str]], value: Any) -> Any:
    if not steps:
        return value
    (kind, key), inner = steps[0], steps[1:]
    if kind == "$":
        items = list(into) if isinstance(into, (list, tuple)) else []
        place = int(key)
        items.extend([None] * (place + 1 - len(items)))
        items[place] = _put(items[place], inner, value)
        return items
    entries = dict(into) if isinstance(into, Mapping) else {}
    entries[key] = _put(entries.get(key), inner, value)
    return entries


def _is_place(key: str) -> bool:
    return key.isascii() and key.isdigit() and int(key) < _MOST_ITEMS
