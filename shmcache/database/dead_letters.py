"""What the database refused, as it is kept: read, taken for another try, removed.

Putting an entry there is part of a batch: `bookkeeping.add_dead_letter`."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from shmcache.database.bookkeeping import error_text
from shmcache.database.statements import statement


class DeadLetter(NamedTuple):
    """An entry of a ring that was put aside.

    `kind` is the entry's on its ring (`writes.WriteKind`, `writes.ChargeKind`), `payload_bytes` its size. `intact` is
    whether its checksum held when it was read. `error` and `sqlstate` are those of the last try, of `tries` so far."""

    id: int
    arena_id: str
    ring: str
    sequence: int
    kind: int
    payload_bytes: int
    intact: bool
    error: str
    sqlstate: str | None
    put_aside_at: datetime
    tries: int
    last_tried_at: datetime


class HeldLetter(NamedTuple):
    """A dead letter that the caller's transaction holds, to try it again."""

    id: int
    ring: str
    sequence: int
    kind: int
    payload: bytes
    intact: bool
    arena_id: str


def list_dead_letters(
    connection: psycopg.Connection[Any], *, ring: str | None = None, after: int = 0, limit: int | None = None
) -> list[DeadLetter]:
    """Return dead letters whose id is larger than `after`, oldest first, of one ring or of all, without payloads."""
    rows = connection.execute(statement("list_dead_letters"), {"ring": ring, "after": after, "limit": limit})
    return [_letter(row) for row in rows]


def load_dead_letter(connection: psycopg.Connection[Any], letter_id: int) -> tuple[DeadLetter, bytes] | None:
    """Return a dead letter and its payload, or None."""
    row = connection.execute(statement("load_dead_letter"), {"id": letter_id}).fetchone()
    return None if row is None else (_letter(row[:-1]), row[-1])


def hold_dead_letters(connection: psycopg.Connection[Any], letter_ids: Collection[int]) -> list[HeldLetter]:
    """Lock dead letters inside the caller's transaction; return those that are there, in the order they were written
    in."""
    rows = connection.execute(statement("lock_dead_letters"), {"ids": list(letter_ids)})
    return [HeldLetter(*row) for row in rows]


def delete_dead_letters(connection: psycopg.Connection[Any], letter_ids: Collection[int]) -> list[int]:
    """Remove dead letters; return the ids of those that were there."""
    return [row[0] for row in connection.execute(statement("delete_dead_letters"), {"ids": list(letter_ids)})]


def refuse_dead_letter(connection: psycopg.Connection[Any], letter_id: int, error: BaseException) -> None:
    """Note that a dead letter was refused once more, and why."""
    sqlstate = getattr(error, "sqlstate", None)
    connection.execute(
        statement("refuse_dead_letter"), {"id": letter_id, "error": error_text(error), "sqlstate": sqlstate}
    )


def _letter(row: Any) -> DeadLetter:
    return DeadLetter(row[0], str(row[1]), *row[2:])
