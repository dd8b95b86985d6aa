"""Which errors of the database pass, and which rows it will never take; and how the bad rows are found among good
ones."""

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

    `write` is called with ever smaller runs of the items, in order, each in a savepoint of its own: one bad item
    among n costs about 2 log2(n) calls. Errors that are no refusals are raised."""
    try:
        write(items)
    except psycopg.Error as error:
        if not is_refusal(error):
            raise
        if len(items) == 1:
            refuse(items[0], error)
            return
        middle = len(items) // 2
        write_around_refusals(items[:middle], write, refuse)
        write_around_refusals(items[middle:], write, refuse)
