"""AccountChanges: which accounts others have changed, as the database tells.

What other hosts have settled is paid from what they had leased, and can wait: of an account that many hosts spend, each
hears of every settlement of all others. What anybody else has changed, and what another host lacks, cannot.

Whoever takes the changes is told to read every account again after each connecting, and should do so now and then in
any case."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from syncer.listening import Listener


class AccountChanges(Listener):
    """Listens until `stop`. `wake` is called, in the listening thread, when there is something that cannot wait."""

    channel = "shmcache_accounts"

    def __init__(self, database_url: str, origin: str, wake: Callable[[], None]) -> None:
        self._origin = origin
        self._wake = wake
        self._users: set[str] = set()
        self._settled: set[str] = set()
        self._all = False
        self._turn = threading.Lock()
        super().__init__(database_url, "account changes")

    def take(self, *, settled: bool) -> tuple[set[str], bool]:
        """Return the users whose accounts were changed since the last call, and whether to read all accounts again.

        `settled`: those too of which other hosts have settled charges, since the last call that asked for them."""
        with self._turn:
            users, everything = self._users, self._all
            self._users, self._all = set(), False
            if settled:
                users |= self._settled
                self._settled = set()
        return users, everything

    def _look(self, connection: psycopg.Connection[Any]) -> None:  # noqa: ARG002 - it asks nothing
        with self._turn:
            self._all = True
        self._wake()

    def _hear(self, connection: psycopg.Connection[Any], payloads: Sequence[str]) -> None:  # noqa: ARG002
        told: set[str] = set()
        settled: set[str] = set()
        for payload in payloads:
            origin, users, *wanted = payload.split(" ")
            if origin != self._origin:
                (settled if origin and not wanted else told).update(users.split(","))
        with self._turn:
            self._users |= told
            self._settled |= settled
        if told:
            self._wake()
