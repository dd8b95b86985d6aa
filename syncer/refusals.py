"""Which errors of the database pass, and which rows it will never take; and how the bad rows are found among good
ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg

T = TypeVar("T")

_PASSING_CLASSES = ("08", "25", "28", "40", "53", "55", "57", "58", "72")
"""SQLSTATE classes that say nothing of the row: connection, transaction state (a read-only standby), authorization,
rollback (deadlock, serialization), resources (full disk, too many connections), object in use, shutdown and timeouts,
system errors, an old snapshot."""

_PASSING_STATES = frozenset({"3D000", "3F000", "42501", "42703", "42883", "42P01"})
"""The database is not as we need it (schema, table, column, function or a grant is missing): for a person to mend, and
no reason to put every row aside."""

_MADE_BY_THE_ROW = (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.NotSupportedError)
"""What psycopg raises by itself, without asking the server: a NUL in a text, a value of a type it cannot send."""


def is_refusal(error: Exception) -> bool:
    """Say whether the row at fault is in what the database was given, so that trying again is in vain."""
    if not isinstance(error, psycopg.Error):
        return isinstance(error, (TypeError, ValueError, AttributeError, OverflowError))
    state = error.sqlstate
    if state is None:
        return isinstance(error, _MADE_BY_THE_ROW)
    return not state.startswith(_PASSING_CLASSES) and state not in _PASSING_STATES


def write_around_refusals(
    items: Sequence[T], write: Callable[[Sequence[T]], None], refuse: Callable[[T, Exception], None]
) -> None:
    """Write all items but those that the database refuses; those go to `refuse`, one by one, with their error.

    `write` is called with runs of the items, in order, each of which must be a savepoint of its own. One bad item among
    n costs about log2(n) + 2 calls (16 among 10,000). Where more are found, what is left is halved from there on, which
    writes no row more than log2(n) times however many are bad. Errors that are no refusals are raised."""
    if not items or _accepts(items, write):
        return
    # items[:low] is written; items[low:high] was refused, or is what is left of it.
    low, high = 0, len(items)
    while high - low > 1:
        middle = (low + high) // 2
        if _accepts(items[low:middle], write):
            low = middle
        else:
            high = middle
    _write_one(items[low], write, refuse)
    _halve(items[low + 1 :], write, refuse, refused_before=False)


def _halve(
    items: Sequence[T],
    write: Callable[[Sequence[T]], None],
    refuse: Callable[[T, Exception], None],
    refused_before: bool,
) -> bool:
    """Write items around those refused; return whether all were accepted at once."""
    if not items or (not refused_before and len(items) > 1 and _accepts(items, write)):
        return True
    if len(items) == 1:
        return _write_one(items[0], write, refuse)
    middle = len(items) // 2
    left_was_good = _halve(items[:middle], write, refuse, refused_before=False)
    # What was refused as a whole, and not for its left half, is refused for its right half.
    _halve(items[middle:], write, refuse, refused_before=left_was_good)
    return False


def _accepts(items: Sequence[T], write: Callable[[Sequence[T]], None]) -> bool:
    try:
        write(items)
    except Exception as error:
        if is_refusal(error):
            return False
        raise
    return True


def _write_one(item: T, write: Callable[[Sequence[T]], None], refuse: Callable[[T, Exception], None]) -> bool:
    try:
        write([item])
    except Exception as error:
        if not is_refusal(error):
            raise
        refuse(item, error)
        return False
    return True
