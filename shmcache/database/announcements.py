"""What readers on other machines are told: which graph executions have changed, and how far an arena is written.

A message is an arena's id, the sequence that its write ring is written up to, and graph executions whose rows were
written since the last one, or `*` where that is not known. It is a hint: who hears it reads the rows. So it is sent in
a transaction of its own that waits for no disk (a commit that notifies keeps all others that do waiting until it is
done), and is lost with a server that crashes just then: who waits looks now and then in any case.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import psycopg

from shmcache.database.statements import statement

CHANNEL = "shmcache_executions"
ANY = "*"
_AT_ONCE = 200
"""Graph executions in one message: a payload has 8000 bytes."""


class Announcement(NamedTuple):
    """A message, read. `graph_exec_ids` is None where any may have changed."""

    arena_id: str
    sequence: int
    graph_exec_ids: frozenset[str] | None

    def concerns(self, graph_exec_id: str) -> bool:
        """Say whether a graph execution may have changed."""
        return self.graph_exec_ids is None or graph_exec_id in self.graph_exec_ids


def announce(
    connection: psycopg.Connection[Any], arena_id: str, sequence: int, graph_exec_ids: Collection[str]
) -> None:
    """Tell whoever listens; in autocommit, one round trip."""
    changed = sorted(graph_exec_ids)
    messages = [
        f"{arena_id} {sequence} {','.join(changed[begin : begin + _AT_ONCE])}"
        for begin in range(0, len(changed) or 1, _AT_ONCE)
    ]
    connection.execute(statement("announce"), {"messages": messages}, prepare=True)


def read_announcement(payload: str) -> Announcement | None:
    """Return what a message says; None for one that is not ours."""
    try:
        arena_id, sequence, changed = payload.split(" ")
        identifiers = None if changed == ANY else frozenset(changed.split(",") if changed else ())
        return Announcement(arena_id, int(sequence), identifiers)
    except ValueError:
        return None
