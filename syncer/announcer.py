"""Announcer: tells readers on other machines what a leader has written, at most so often."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import psycopg

from shmcache.database.announcements import ANY, announce

_LEAST_SECONDS = 0.05
"""Between two messages: what changes meanwhile is told together."""


class Announcer:
    """What is to be told of an arena. Whoever begins to lead tells that anything may have changed: the last leader may
    have died with something untold."""

    def __init__(self, arena_id: str) -> None:
        self._arena_id = arena_id
        self._sequence = 0
        self._changed: set[str] = {ANY}
        self._is_news = True
        self._told_at = 0.0

    def note(self, sequence: int, graph_exec_ids: Iterable[str]) -> None:
        """Note that a ring is written up to `sequence`, some graph executions among it."""
        self._sequence = sequence
        self._changed.update(graph_exec_ids)
        self._is_news = True

    def due_in(self) -> float | None:
        """Return after how many seconds there is something to tell; None: there is nothing."""
        return max(0.0, self._told_at + _LEAST_SECONDS - time.monotonic()) if self._is_news else None

    def tell(self, connection: psycopg.Connection[Any]) -> None:
        """Tell what there is. Raises psycopg.Error: then it is still to be told."""
        announce(connection, self._arena_id, self._sequence, {ANY} if ANY in self._changed else self._changed)
        self._changed = set()
        self._is_news = False
        self._told_at = time.monotonic()
