"""How values of settings are shown to people: with units, and never with what is secret."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

HIDDEN = "***"


class Kind(Enum):
    """What a setting's value is, where its type does not say it."""

    PLAIN = "plain"
    SECONDS = "seconds"
    BYTES = "bytes"
    SECRET = "secret"  # noqa: S105 - the name of a kind
    DATABASE_URL = "database url"


_BINARY_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_PASSWORDS = (
    re.compile(r"(?<=://)([^\s/@:?#]*):([^\s/@]+)@"),  # postgresql://user:PASSWORD@host
    re.compile(r"(?i)\b((?:ssl)?password|passwd|oauth_client_secret)(\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&;,'\"]+)"),
)


def shown(value: Any, kind: Kind) -> str:
    """Return a value as people read and write it."""
    if value is None:
        return ""
    if kind is Kind.SECRET:
        return HIDDEN
    if kind is Kind.DATABASE_URL:
        return shown_address(str(value))
    if kind is Kind.SECONDS:
        return shown_seconds(float(value))
    if kind is Kind.BYTES and isinstance(value, int):
        return shown_bytes(value)
    return str(value)


def shown_seconds(seconds: float) -> str:
    """Return a duration with a unit: "5 s", "100 ms", "2 min"."""
    if seconds < 1:
        return f"{seconds * 1000:g} ms"
    for length, unit in ((3600, "h"), (60, "min")):
        if seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


def shown_bytes(size: int) -> str:
    """Return a size with a unit: "256 MiB"; in bytes where it is no whole number of a larger one."""
    for length, unit in _BINARY_UNITS:
        if size and size % length == 0:
            return f"{size // length} {unit}"
    return f"{size} B"


def shown_address(url: str) -> str:
    """Return the address of a database with everything that libpq calls a password left out."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    if not url:
        return ""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        return "(an address that cannot be read)"
    secret = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.dispchar == b"*"}
    shown_parts: dict[str, Any] = {name: HIDDEN if name in secret else value for name, value in parts.items()}
    return make_conninfo(**shown_parts)


def without_passwords(text: str) -> str:
    """Return a text with the passwords of addresses in it left out: for messages that others wrote."""
    if "://" not in text and "passw" not in text.lower() and "secret" not in text.lower():
        return text
    text = _PASSWORDS[0].sub(rf"\1:{HIDDEN}@", text)
    return _PASSWORDS[1].sub(rf"\1\2{HIDDEN}", text)
