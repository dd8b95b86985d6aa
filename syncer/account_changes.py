"""AccountChanges: which accounts others have changed, as the database tells.

Whoever takes the changes is told to read every account again after each connecting, and should do so now and then in
any case."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from syncer.listening import Listener


class AccountChanges(Listener):
    """Listens until `stop`. `wake` is called, in the listening thread, when there is something to take."""

    channel = "shmcache_accounts"

    def __init__(self, database_url: str, origin: str, wake: Callable[[], None]) -> None:
        self._origin = origin
        self._wake = wake
        self._users: set[str] = set()
        self._all = False
        self._turn = threading.Lock()
        super().__init__(database_url, "account changes")

    def take(self) -> tuple[set[str], bool]:
        """Return the users whose accounts were changed since the last call, and whether to read all accounts again."""
        with self._turn:
            users, everything = self._users, self._all
            self._users, self._all = set(), False
        return users, everything

    def _look(self, connection: psycopg.Connection[Any]) -> None:  # noqa: ARG002 - it asks nothing
        with self._turn:
            self._all = True
        self._wake()

    def _hear(self, connection: psycopg.Connection[Any], payloads: Sequence[str]) -> None:  # noqa: ARG002
        told: set[str] = set()
        for payload in payloads:
            origin, _, users = payload.partition(" ")
            if origin != self._origin:
                told.update(users.split(","))
        if told:
            with self._turn:
                self._users |= told
            self._wake()
