"""Which errors of the database pass, and which rows it will never take; how the bad rows are found among the good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg

T = TypeVar("T")

_REFUSED_CLASSES = ("22", "23", "42", "54")
"""SQLSTATE classes that repeating cannot mend: data, integrity, statement, limits (a row too long for an index)."""


def is_refusal(error: psycopg.Error) -> bool:
    """Say whether the database refuses what it was given, so that trying again is in vain."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError))
    return state.startswith(_REFUSED_CLASSES)


def write_around_refusals(
    items: Sequence[T], write: Callable[[Sequence[T]], None], refuse: Callable[[T, psycopg.Error], None]
) -> None:
    """Write all items but those that the database refuses; those go to `refuse`, one by one, with their error.

    `write` is called with runs of the items, in order, and must leave nothing of a run that it raises for (a
    savepoint). The first bad item is found by bisection, then all behind it is tried at once: one bad item among n
    costs log2(n) + 3 calls. Errors that are no refusals are raised."""
    start = 0
    while start < len(items):
        if _refused(items[start:], write) is None:
            return
        low, high = start, len(items)
        while high - low > 1:
            middle = (low + high) // 2
            if _refused(items[low:middle], write) is None:
                low = middle
            else:
                high = middle
        error = _refused(items[low:high], write)
        if error is not None:
            refuse(items[low], error)
        start = high


def _refused(items: Sequence[T], write: Callable[[Sequence[T]], None]) -> psycopg.Error | None:
    try:
        write(items)
    except psycopg.Error as error:
        if not is_refusal(error):
            raise
        return error
    return None
