"""AccountChanges: which accounts others have changed, as the database tells: by LISTEN, in a thread of its own.

A notification can be missed (while the connection is away, say), so whoever takes the changes is told to read every
account again after each connecting, and should do so now and then in any case.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable
from typing import Any

import psycopg

from shmcache.database.connection import connect
from shmcache.errors import DatabaseUnavailable
from syncer.backoff import Backoff

logger = logging.getLogger(__name__)

CHANNEL = "shmcache_accounts"

_STOPPING_SECONDS = 2.0


class AccountChanges:
    """Listens until `stop`. `wake` is called, in the listening thread, when there is something to take."""

    def __init__(self, database_url: str, origin: str, wake: Callable[[], None]) -> None:
        self._database_url = database_url
        self._origin = origin
        self._wake = wake
        self._users: set[str] = set()
        self._all = False
        self._turn = threading.Lock()
        self._backoff = Backoff()
        self._stop_reads, self._stop_writes = os.pipe2(os.O_CLOEXEC)
        self.listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name="account changes", daemon=True)
        self._thread.start()

    def take(self) -> tuple[set[str], bool]:
        """Return the users whose accounts were changed since the last call, and whether to read all accounts again."""
        with self._turn:
            users, everything = self._users, self._all
            self._users, self._all = set(), False
        return users, everything

    def stop(self) -> None:
        """End the thread and its connection; one that waits for a database that does not answer is left behind."""
        os.close(self._stop_writes)
        self._thread.join(_STOPPING_SECONDS)
        if not self._thread.is_alive():
            os.close(self._stop_reads)

    def _run(self) -> None:
        while True:
            try:
                with connect(self._database_url, application_name="shmcache account changes") as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    self._backoff.reset()
                    self._note(None)
                    self.listening.set()
                    if self._listen(connection):
                        return
            except (psycopg.Error, DatabaseUnavailable) as error:
                logger.debug("changes of accounts are not heard now: %s", error)
            self.listening.clear()
            if self._wait([], self._backoff.next_seconds()):
                return

    def _listen(self, connection: psycopg.Connection[Any]) -> bool:
        """Note what is told until the connection ends; return True if that is because of `stop`."""
        while not self._wait([connection.fileno()], None):
            for told in connection.notifies(timeout=0):
                origin, _, users = told.payload.partition(" ")
                if origin != self._origin:
                    self._note(users.split(","))
        return True

    def _wait(self, descriptors: list[int], timeout_seconds: float | None) -> bool:
        """Wait for something to read; return whether it is time to stop."""
        ready, _, _ = select.select([self._stop_reads, *descriptors], [], [], timeout_seconds)
        return self._stop_reads in ready

    def _note(self, users: list[str] | None) -> None:
        with self._turn:
            if users is None:
                self._all = True
            else:
                self._users.update(users)
        self._wake()
