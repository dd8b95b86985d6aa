"""What the processes between arena and database keep there: epochs and checkpoints, and dead letters."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg

from shmcache.database.connection import is_pooled
from shmcache.database.statements import statement
from shmcache.errors import Fenced

IDLE_SECONDS = 30
TRANSACTION_SECONDS = 300
"""A leader that is stopped inside its transaction holds the checkpoint's row: the server frees it for the next one. The
second limit, which PostgreSQL has from 17 on, is for one that was stopped while it sent a statement."""


def limit_transactions(connection: psycopg.Connection[Any], seconds: int) -> None:
    """Have the server end a transaction of this connection that takes longer, where it knows such a limit and none is
    set."""
    connection.execute(statement(connection, "limit_transactions"), {"limit": f"{seconds}s"})


def limit_transaction(connection: psycopg.Connection[Any], idle_seconds: int, seconds: int) -> None:
    """Have the server end the transaction at hand if its client is silent for so long, or if it takes longer in all,
    where it knows such limits and none are set."""
    connection.execute(statement(connection, "limit_transaction"), {"idle": f"{idle_seconds}s", "limit": f"{seconds}s"})


class Checkpoint(NamedTuple):
    """A leader's epoch, and the sequence up to which the ring is in the database."""

    epoch: int
    sequence: int


def begin_epoch(connection: psycopg.Connection[Any], arena_id: str, ring: str) -> Checkpoint:
    """Raise the epoch of a ring, in a transaction of its own: every earlier leader is fenced from here on."""
    with connection.transaction():
        row = connection.execute(statement(connection, "begin_epoch"), {"arena_id": arena_id, "ring": ring}).fetchone()
    assert row is not None
    return Checkpoint(*row)


def move_checkpoint(connection: psycopg.Connection[Any], arena_id: str, ring: str, epoch: int, sequence: int) -> bool:
    """Note inside the caller's transaction how far a ring is written; return False if it was written that far already.

    Raises Fenced if another epoch has begun."""
    return CheckpointMove(connection, arena_id, ring, epoch, sequence).before() < sequence


class CheckpointMove:
    """The move of a ring's checkpoint inside the caller's transaction; in a pipeline its answer comes with the rest."""

    def __init__(
        self, connection: psycopg.Connection[Any], arena_id: str, ring: str, epoch: int, sequence: int
    ) -> None:
        self._role = f"leader of the {ring} ring of arena {arena_id}"
        self._epoch = epoch
        self._found: tuple[int, int] | None = None
        if is_pooled(connection):
            limit_transaction(connection, IDLE_SECONDS, TRANSACTION_SECONDS)
        self._answer = connection.execute(
            statement(connection, "move_checkpoint"),
            {"arena_id": arena_id, "ring": ring, "epoch": epoch, "sequence": sequence},
            prepare=True,
        )

    def before(self) -> int:
        """Return up to which sequence the ring was written before. Raises Fenced if another epoch has begun."""
        return self._row()[0]

    def taken(self) -> bool:
        """Say whether another host has ever taken a graph execution from this arena. Raises Fenced."""
        return self._row()[1] > 0

    def _row(self) -> tuple[int, int]:
        if self._found is None:
            self._found = self._answer.fetchone()
        if self._found is None:
            raise Fenced(self._role, self._epoch)
        return self._found


def add_dead_letter(
    connection: psycopg.Connection[Any],
    arena_id: str,
    ring: str,
    sequence: int,
    kind: int,
    payload: bytes,
    error: BaseException,
    intact: bool = True,
) -> None:
    """Keep an entry that the database refused, whole, with its error; `intact`: its checksum held."""
    connection.execute(
        statement(connection, "add_dead_letter"),
        {
            "arena_id": arena_id,
            "ring": ring,
            "sequence": sequence,
            "kind": kind,
            "payload": payload,
            "intact": intact,
            "error": error_text(error),
            "sqlstate": getattr(error, "sqlstate", None),
        },
    )


def error_text(error: BaseException) -> str:
    """Return an error as the database can keep it."""
    return f"{type(error).__name__}: {error}".replace("\0", "\\0")


def count_dead_letters(connection: psycopg.Connection[Any], arena_id: str) -> int:
    """Return how many dead letters an arena has left."""
    row = connection.execute("SELECT count(*) FROM dead_letters WHERE arena_id = %s", (arena_id,)).fetchone()
    assert row is not None
    return int(row[0])
