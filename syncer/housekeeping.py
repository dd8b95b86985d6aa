"""Housekeeper: what is done now and then while a host's syncer leads, in a thread and, for moments, by a connection of
its own: the ring is drained meanwhile, and the host's lease renewed."""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import psycopg

from shmcache.database.connection import connect
from shmcache.errors import ShmcacheError
from syncer.consumer import one_line

logger = logging.getLogger(__name__)

_STOPPING_SECONDS = 2.0
_AGAIN_SECONDS = 60.0


class Housekeeper(ABC):
    """Does some work from its making until `stop`: first after `first_seconds`, then `interval_seconds` apart, None:
    when it is asked to only."""

    name: ClassVar[str]

    def __init__(self, database_url: str, first_seconds: float | None, interval_seconds: float | None) -> None:
        self._database_url = database_url
        self._interval_seconds = interval_seconds
        self._is_stopping = False
        self._asked = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(first_seconds,), name=self.name, daemon=True)
        self._thread.start()

    @abstractmethod
    def _work(self, connection: psycopg.Connection[Any]) -> None:
        """Do it. What psycopg raises is tried again later."""

    def ask(self) -> None:
        """Have it done now. From any thread; asked while it is at it, it does it again."""
        self._asked.set()

    def stop(self) -> None:
        """End the thread; one that waits for a database that does not answer is left behind."""
        self._is_stopping = True
        self._asked.set()
        self._thread.join(_STOPPING_SECONDS)

    def _run(self, wait: float | None) -> None:
        while True:
            self._asked.wait(wait)
            self._asked.clear()
            if self._is_stopping:
                return
            wait = self._interval_seconds
            try:
                with contextlib.closing(
                    connect(self._database_url, application_name=f"shmcache {self.name}")
                ) as connection:
                    self._work(connection)
            except (psycopg.OperationalError, ShmcacheError) as error:
                logger.debug("%s are looked after later: %s", self.name, one_line(error))
                wait = _AGAIN_SECONDS
            except psycopg.Error as error:
                logger.warning("%s cannot be looked after: %s", self.name, one_line(error))
