"""Listener: what the database tells on a channel (LISTEN), heard in a thread of its own.

Nothing is heard through a pooler that hands sessions from one transaction to the next: give the server's own address
(SHMCACHE_LISTEN_URL). Without it whoever listens looks for itself, as often as it does in any case.

A notification can be missed (while the connection is away, say), so whoever listens is told of each new connection, and
should look for itself now and then in any case.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import psycopg

from shmcache.config import Settings
from shmcache.database.connection import connect, is_pooled, with_table_set
from shmcache.errors import ShmcacheError
from syncer.backoff import Backoff

logger = logging.getLogger(__name__)

_STOPPING_SECONDS = 2.0

_deaf_said = False
"""Whether this process has said that it hears nothing."""


def listen_url(database_url: str, settings: Settings) -> str:
    """Return where to listen for what a database tells."""
    return with_table_set(settings.listen_url, settings.schema) if settings.listen_url else database_url


class Listener(ABC):
    """Listens from its making until `stop`. What a subclass does, it does in the listening thread.

    `interval_seconds` is the longest time between two calls of `_look`; None: it is called for new connections only."""

    channel: ClassVar[str]

    def __init__(self, database_url: str, name: str, interval_seconds: float | None = None) -> None:
        self._database_url = database_url
        self._name = name
        self._interval_seconds = interval_seconds
        self._backoff = Backoff()
        self._stop_reads, self._stop_writes = os.pipe2(os.O_CLOEXEC)
        self.listening = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @abstractmethod
    def _look(self, connection: psycopg.Connection[Any]) -> None:
        """Take note of a new connection, before which notifications may have been missed; or look now and then."""

    @abstractmethod
    def _hear(self, connection: psycopg.Connection[Any], payloads: Sequence[str]) -> None:
        """Take note of what was told."""

    def stop(self) -> None:
        """End the thread and its connection; one that waits for a database that does not answer is left behind."""
        os.close(self._stop_writes)
        self._thread.join(_STOPPING_SECONDS)
        if not self._thread.is_alive():
            os.close(self._stop_reads)

    def _run(self) -> None:
        while True:
            try:
                with contextlib.closing(self._connect()) as connection:
                    if is_pooled(connection):
                        _say_deaf()
                    else:
                        connection.execute(f"LISTEN {self.channel}")
                    self._look(connection)
                    self._backoff.reset()
                    self.listening.set()
                    if self._listen(connection):
                        return
            except (psycopg.Error, ShmcacheError) as error:
                logger.debug("%s are not heard now: %s", self._name, error)
            self.listening.clear()
            if self._wait([], self._backoff.next_seconds()):
                return

    def _connect(self) -> psycopg.Connection[Any]:
        return connect(self._database_url, application_name=f"shmcache {self._name}")

    def _listen(self, connection: psycopg.Connection[Any]) -> bool:
        """Hear what is told until the connection ends; return True if that is because of `stop`."""
        due = self._next_look()
        while True:
            payloads = [told.payload for told in connection.notifies(timeout=0)]
            if payloads:
                self._hear(connection, payloads)
            elif due is not None and time.monotonic() >= due:
                self._look(connection)
                due = self._next_look()
            elif self._wait([connection.fileno()], None if due is None else max(0.0, due - time.monotonic())):
                return True

    def _next_look(self) -> float | None:
        return None if self._interval_seconds is None else time.monotonic() + self._interval_seconds

    def _wait(self, descriptors: list[int], timeout_seconds: float | None) -> bool:
        """Wait for something to read; return whether it is time to stop."""
        ready, _, _ = select.select([self._stop_reads, *descriptors], [], [], timeout_seconds)
        return self._stop_reads in ready


def _say_deaf() -> None:
    global _deaf_said  # noqa: PLW0603
    if not _deaf_said:
        _deaf_said = True
        logger.warning(
            "a pooler stands before the database: what changes there is not heard of, but found at the next check; "
            "SHMCACHE_LISTEN_URL takes the address of PostgreSQL itself"
        )
