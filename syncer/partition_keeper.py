"""PartitionKeeper: makes the months ahead and drops old ones, now and then, while a host's syncer leads.

It has a thread and, for moments, a connection of its own: the ring is drained meanwhile."""

from __future__ import annotations

import contextlib
import logging
import threading

import psycopg

from shmcache.database.connection import connect
from shmcache.database.partitions import are_partitioned, tidy
from shmcache.errors import ShmcacheError
from syncer.consumer import one_line

logger = logging.getLogger(__name__)

_FIRST_SECONDS = 60.0
_INTERVAL_SECONDS = 3600.0
_STOPPING_SECONDS = 2.0


class PartitionKeeper:
    """Keeps a database's partitions from its making until `stop`; a host that ends soon leaves it to others."""

    def __init__(self, database_url: str, retention_days: int, first_seconds: float = _FIRST_SECONDS) -> None:
        self._database_url = database_url
        self._retention_days = retention_days
        self._first_seconds = first_seconds
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="partitions", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; one that waits for a database that does not answer is left behind."""
        self._ending.set()
        self._thread.join(_STOPPING_SECONDS)

    def _run(self) -> None:
        wait = self._first_seconds
        while not self._ending.wait(wait):
            wait = _INTERVAL_SECONDS
            try:
                with contextlib.closing(connect(self._database_url, application_name="shmcache partitions")) as opened:
                    if not are_partitioned(opened):
                        return
                    self._tidy(opened)
            except (psycopg.OperationalError, ShmcacheError) as error:
                logger.debug("partitions are looked after later: %s", error)
                wait = self._first_seconds
            except psycopg.Error as error:
                logger.warning("partitions cannot be looked after: %s", one_line(error))

    def _tidy(self, connection: psycopg.Connection[object]) -> None:
        done = tidy(connection, self._retention_days)
        if done.made:
            logger.info("%d partitions were made ahead", done.made)
        for name in done.dropped:
            logger.info("the executions of %s were dropped: older than %d days", name, self._retention_days)
        for month in done.kept:
            logger.info("the executions of %s stay: %s", month.name, month.reason)
