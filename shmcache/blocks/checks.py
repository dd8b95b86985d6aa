"""What built-in blocks share: reading an input with a clear error, and a limit on processor time."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from shmcache.blocks.block import Block, Inputs
from shmcache.errors import BlockError

_REQUIRED = object()


def kind_of(value: Any) -> str:
    """Return the JSON name of a value's type, for messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
    return type(value).__name__


def refuse(block: Block, name: str, expected: str, value: Any) -> NoReturn:
    """Raise the BlockError of an input that is not what was expected."""
    raise BlockError(f"{block.id}: input {name!r}: expected {expected}, got {kind_of(value)}")


def value_of(block: Block, inputs: Inputs, name: str, expected: str = "a value") -> Any:
    """Return an input of any type. Raises BlockError if it is missing."""
    if name not in inputs:
        raise BlockError(f"{block.id}: input {name!r} is missing: expected {expected}")
    return inputs[name]


def text_of(block: Block, inputs: Inputs, name: str, default: Any = _REQUIRED, *, longest: int = 1_000_000) -> str:
    """Return an input that must be text of at most `longest` characters. Raises BlockError."""
    value = inputs.get(name, default) if default is not _REQUIRED else value_of(block, inputs, name, "text")
    if not isinstance(value, str):
        refuse(block, name, "text", value)
    if len(value) > longest:
        raise BlockError(f"{block.id}: input {name!r}: {len(value):,} characters, at most {longest:,} are allowed")
    return value


def number_of(block: Block, inputs: Inputs, name: str, default: Any = _REQUIRED, *, least: float, most: float) -> float:
    """Return an input that must be a number from `least` to `most`. Raises BlockError."""
    expected = f"a number from {least:,g} to {most:,g}"
    value = inputs.get(name, default) if default is not _REQUIRED else value_of(block, inputs, name, expected)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        refuse(block, name, expected, value)
    if not least <= value <= most:
        raise BlockError(f"{block.id}: input {name!r}: expected {expected}, got {value}")
    return float(value)


def boolean_of(block: Block, inputs: Inputs, name: str, default: bool) -> bool:
    """Return an input that must be true or false. Raises BlockError."""
    value = inputs.get(name, default)
    if not isinstance(value, bool):
        refuse(block, name, "true or false", value)
    return value


def list_of(block: Block, inputs: Inputs, name: str) -> list[Any]:
    """Return an input that must be a list. Raises BlockError."""
    value = value_of(block, inputs, name, "a list")
    if not isinstance(value, list):
        refuse(block, name, "a list", value)
    return value


def object_of(block: Block, inputs: Inputs, name: str, default: Any = _REQUIRED) -> dict[str, Any]:
    """Return an input that must be an object. Raises BlockError."""
    value = inputs.get(name, default) if default is not _REQUIRED else value_of(block, inputs, name, "an object")
    if not isinstance(value, dict):
        refuse(block, name, "an object", value)
    return value


def check_result(block: Block, value: Any) -> Any:
    """Return a value that the graph's data made, if it can be stored; tuples become lists. Raises BlockError.

    Refused: numbers that are not finite or beyond 64 bits, a NUL or half a surrogate pair in text, objects with keys
    that are no text, anything that JSON does not have."""
    match value:
        case None | bool():
            return value
        case int():
            if not -(2**63) <= value < 2**64:
                raise BlockError(f"{block.id}: the result is a whole number beyond 64 bits")
            return value
        case float():
            if not math.isfinite(value):
                raise BlockError(f"{block.id}: the result is not a finite number")
            return value
        case str():
            if "\0" in value or any("\ud800" <= each <= "\udfff" for each in value):
                raise BlockError(f"{block.id}: the result holds a character that cannot be stored")
            return value
        case list() | tuple():
            return [check_result(block, item) for item in value]
        case dict() if all(isinstance(key, str) for key in value):
            return {check_result(block, key): check_result(block, item) for key, item in value.items()}
    raise BlockError(f"{block.id}: the result is no JSON value but {kind_of(value)}")


@contextmanager
def processor_time(block: Block, limit_seconds: float) -> Iterator[None]:
    """Raise BlockError in the body once this process has computed for `limit_seconds` more.

    It works by a timer signal (SIGVTALRM, whose handler and timer are put back afterwards), which Python delivers to
    the main thread alone: in any other thread there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    armed = True

    def stop(_number: int, _frame: FrameType | None) -> None:
        if armed:
            raise BlockError(f"{block.id}: stopped after {limit_seconds:g} seconds of computing")

    handler_before = signal.signal(signal.SIGVTALRM, stop)
    timer_before = signal.setitimer(signal.ITIMER_VIRTUAL, limit_seconds)
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_VIRTUAL, *timer_before)
        signal.signal(signal.SIGVTALRM, handler_before if handler_before is not None else signal.SIG_DFL)
