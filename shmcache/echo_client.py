"""EchoClient: does on the arena what was done elsewhere before, with the same identifiers and times.

Nothing that it writes goes on a ring: the database has it already. So all that it keeps in the arena may be dropped at
any time, and is loaded again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from shmcache.account_keys import base_key, count_key
from shmcache.arena import Arena, Transaction
from shmcache.arena.transaction import Append, Outcome, SetCounter
from shmcache.cached_client import CachedClient
from shmcache.config import Settings
from shmcache.database import queries
from shmcache.database.accounts import MAXIMUM_BALANCE
from shmcache.errors import InvalidValue, NotFound
from shmcache.identifiers import id_bytes, new_id
from shmcache.records import Account


class _WithoutRings:
    """An arena whose commits append nothing."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def __getattr__(self, name: str) -> Any:
        return getattr(self._arena, name)

    def commit(self, wanted: Transaction) -> Outcome:
        """Commit what is no entry of a ring."""
        wanted.operations = [each for each in wanted.operations if not isinstance(each, Append)]
        return self._arena.commit(wanted)


class EchoClient(CachedClient):
    """The client that repeats."""

    def __init__(self, arena: Arena, database_url: str, settings: Settings) -> None:
        super().__init__(cast("Arena", _WithoutRings(arena)), database_url, settings)
        self._leases.until = math.inf
        self._identifier: str | None = None
        self._time: float | None = None

    def repeat(
        self,
        name: str,
        arguments: Sequence[Any],
        options: Mapping[str, Any],
        identifier: str | None,
        moment: float | None,
    ) -> Any:
        """Do a call; what it makes gets this identifier, and what it dates this time (seconds since the epoch)."""
        self._identifier, self._time = identifier, moment
        try:
            return getattr(self, name)(*arguments, **options)
        finally:
            self._identifier = self._time = None

    def _open_account(self, user_id: str) -> tuple[Account, int, int] | None:
        # What is spent here was spent in the database: there is nothing to lease.
        account = self._backing.load(queries.load_account, user_id)
        return account and (account, MAXIMUM_BALANCE, 0)

    def renew_account(self, user_id: str) -> None:
        """Set an account's credits and count of executions to what the database says; an unknown one is left out."""
        try:
            self._account(user_id)
        except NotFound:
            return
        account = self._backing.load(queries.load_account, user_id)
        if account is not None:
            key, amount = id_bytes(user_id), account.balance - account.debt - account.held
            renewed = Transaction()
            renewed.operations += [
                SetCounter(key, amount),
                SetCounter(base_key(user_id), amount),
                SetCounter(count_key(user_id), account.execution_count),
            ]
            self._arena.commit(renewed)

    def _new_id(self) -> str:
        identifier = self._identifier or new_id()
        if self._cache.get(identifier) is not None:
            raise InvalidValue(f"the arena would make {identifier} anew, which it has")
        return identifier

    def _now(self) -> float:
        return time.time() if self._time is None else self._time
