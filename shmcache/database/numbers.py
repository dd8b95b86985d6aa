"""JSON numbers that stay what they are in PostgreSQL's jsonb.

jsonb keeps numbers as decimals and forgets how they were written: 1e+300 comes back as an integer of 301 digits.
Written out with its ".0", which jsonb keeps, it comes back as the same float."""

from __future__ import annotations

import re
from decimal import Decimal

_STRING_OR_LARGE_FLOAT = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9.]+e\+[0-9]+')


def exact_floats(text: str) -> str:
    """Return a JSON text with its large floats (those that Python writes with "e+") written out."""
    return _STRING_OR_LARGE_FLOAT.sub(_written_out, text) if "e+" in text else text


def _written_out(found: re.Match[str]) -> str:
    token = found[0]
    # No float has a larger exponent than 308: what has one is refused by the database, and is not written out here.
    if token.startswith('"') or len(token.rpartition("e+")[2]) > 3:
        return token
    return f"{Decimal(token):f}.0"
