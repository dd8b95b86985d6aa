"""PartitionKeeper: makes the months ahead and drops old ones, of executions and of the ledger, now and then, while a
host's syncer leads."""

from __future__ import annotations

import logging
from typing import Any

import psycopg

from shmcache.database.ledger_months import tidy_ledger
from shmcache.database.partitions import are_partitioned, tidy
from syncer.housekeeping import Housekeeper

logger = logging.getLogger(__name__)

_FIRST_SECONDS = 60.0
_INTERVAL_SECONDS = 3600.0


class PartitionKeeper(Housekeeper):
    """Keeps a database's partitions from its making until `stop`; a host that ends soon leaves it to others."""

    name = "partitions"

    def __init__(
        self,
        database_url: str,
        retention_days: int,
        ledger_retention_days: int = 0,
        first_seconds: float = _FIRST_SECONDS,
    ) -> None:
        self._retention_days = retention_days
        self._ledger_retention_days = ledger_retention_days
        super().__init__(database_url, first_seconds, _INTERVAL_SECONDS)

    def _work(self, connection: psycopg.Connection[Any]) -> None:
        if not are_partitioned(connection):
            return
        done = tidy(connection, self._retention_days)
        if done.made:
            logger.info("%d partitions were made ahead", done.made)
        for name in done.dropped:
            logger.info("the executions of %s were dropped: older than %d days", name, self._retention_days)
        for month in done.kept:
            logger.info("the executions of %s stay: %s", month.name, month.reason)
        gone = tidy_ledger(connection, self._ledger_retention_days)
        for name in gone.dropped:
            logger.info("the ledger of %s was carried forward: older than %d days", name, self._ledger_retention_days)
        for month in gone.kept:
            logger.info("the ledger of %s stays: %s", month.name, month.reason)
