"""Values of any kind as JSON: what JSON cannot say is said as text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_DEEPEST = 200
"""Python's own recursion, and that of who reads the JSON, ends not far beyond; the arena takes values of 511 levels."""


def plain(value: Any, levels: int = _DEEPEST) -> Any:
    """Return a value as JSON can hold it: bytes as hexadecimal digits, named tuples as objects, other keys as text.

    What is nested deeper than so many levels is only said to be there."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict(), levels)
    if isinstance(value, Mapping | list | tuple) and not levels:
        return f"(nested more than {_DEEPEST} deep)"
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else repr(key): plain(item, levels - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, levels - 1) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON text that can be written as UTF-8, whatever is in it."""
    text = json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair: as JSON escapes it, too
