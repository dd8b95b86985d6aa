"""LostHosts: charges what hosts that were lost have not, and forgets them, while a host's syncer leads."""

from __future__ import annotations

import logging
from typing import Any

import psycopg

from shmcache.database.leases import forget_leases
from shmcache.database.lost_hosts import make_good, void_lost_holds
from shmcache.database.ownership import forget_hosts
from syncer.housekeeping import Housekeeper

logger = logging.getLogger(__name__)

_FIRST_SECONDS = 60.0
_INTERVAL_SECONDS = 3600.0


class LostHosts(Housekeeper):
    """Makes lost hosts good whenever it is asked to, and looks now and then what is over for a day; see
    `database.lost_hosts`."""

    name = "lost hosts"

    def __init__(self, database_url: str, low_balance: int) -> None:
        self._low_balance = low_balance
        super().__init__(database_url, _FIRST_SECONDS, _INTERVAL_SECONDS)

    def _work(self, connection: psycopg.Connection[Any]) -> None:
        make_good(connection, self._low_balance)
        forget_hosts(connection)
        voided = void_lost_holds(connection)
        if voided:
            logger.warning("%d estimates are void: their hosts are lost for more than a day", voided)
        forget_leases(connection)
