"""CreditLeases: how much a host has leased of the accounts that it spends, adapted to how fast it spends them.

Who leads over the charge ring does this, between two batches:

    renew   what the host has leased lasts longer
    take    where less is left than half of what the host aims at: what it spent in the last half minute, and, as long
            as no other host has leased some, half of what is not held
    give    where another host lacks some: half of what this one has left, more if it needs more (of two that lack the
            same, the one whose id is lower keeps its own); where the host hardly spends what others do, half each time
            that all accounts are read; where another program has lowered a balance, what is not covered any more

Giving back is two steps: out of the arena, then out of the database. A death between them leaves the database with
more than the arena has: nobody can spend that until the next charge of the account is settled here, or the lease ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

import psycopg

from shmcache.account_keys import lease_key, part_key, version_key
from shmcache.arena import Arena, Conflict, CounterTooLow, Transaction
from shmcache.arena.transaction import Add
from shmcache.database.leases import Standing, Want, give_credits, take_credits
from shmcache.leased_credits import lasting_until, now, rebase_leases, renew

_SPENDING_SECONDS = 30.0
_RENEWALS_A_LEASE = 8
_LOW = 0.5
_HARDLY = 0.25
_AT_ONCE = 1_000


class CreditLeases:
    """What a charger knows of its host's leases, and what it has still to do about them."""

    def __init__(self, arena: Arena, lease_seconds: float) -> None:
        self._arena = arena
        self._lease_seconds = lease_seconds
        self._spent: dict[str, tuple[float, float]] = {}
        self._low: dict[str, Want] = {}
        self._asked: dict[str, int] = {}
        self._giving: dict[str, tuple[int, int]] = {}

    @property
    def interval_seconds(self) -> float:
        """The longest time between two calls of `work`."""
        return self._lease_seconds / _RENEWALS_A_LEASE

    def note_spent(self, spent: Mapping[str, int]) -> None:
        """Note what was settled for some users."""
        moment = time.monotonic()
        for user, amount in spent.items():
            self._spent[user] = moment, self._spending(user, moment) + amount

    def consider(self, standings: Mapping[str, Standing], counters: Mapping[bytes, int], *, idle: bool = False) -> None:
        """Decide what is to be done about accounts that were just brought up to date in the arena, whose counters these
        are. `idle`: also about those that nothing happened to."""
        moment = time.monotonic()
        for user, each in standings.items():
            part = counters.get(part_key(user))
            if part is None:
                continue
            spent = self._spending(user, moment)
            free = max(0, each.free)
            lacks_itself = each.own_wanted and self._arena.arena_id < (each.wanted_by or "")
            if each.wanted > free and not lacks_itself:
                self._ask(user, min(part, max(each.wanted - free, -(-part // 2))))
            elif each.free < 0:
                self._ask(user, min(part, -each.free))
            elif free and part < _LOW * max(spent, 0.0 if each.elsewhere else (part + free) / 2):
                self._low[user] = Want(0, part, math.ceil(spent))
            elif idle and each.elsewhere and spent < _HARDLY * part:
                self._ask(user, -(-part // 2))

    def work(self, connection: psycopg.Connection[Any]) -> set[str]:
        """Renew, take and give what there is; return the users whose accounts are to be read again. Raises
        psycopg.Error: what was left is done the next time."""
        if now() >= lasting_until(self._arena) - self._lease_seconds * (0.9 - 1 / _RENEWALS_A_LEASE):
            renew(self._arena, connection, self._lease_seconds)
        while self._low:
            some = dict(islice(self._low.items(), _AT_ONCE))
            rebase_leases(self._arena, take_credits(connection, self._arena.arena_id, some).values())
            for user in some:
                del self._low[user]
        for user, amount in self._asked.items():
            self._withdraw(user, amount)
        self._asked = {}
        given, told = self._giving, set(self._giving)
        while given:
            some_given = dict(islice(given.items(), _AT_ONCE))
            give_credits(connection, self._arena.arena_id, some_given)
            # step: given
            for user in some_given:
                del given[user]
        return told

    def _ask(self, user: str, amount: int) -> None:
        if amount > 0:
            self._asked[user] = amount

    def _withdraw(self, user: str, amount: int) -> None:
        """Take credits out of the arena that are to be given back: nobody here can hold against them from here on."""
        if user in self._giving:
            return
        wanted = Transaction()
        wanted.operations += [Add(part_key(user), -amount, 0), Add(lease_key(user), -amount), Add(version_key(user), 0)]
        try:
            counters = self._arena.commit(wanted).counters
        except (CounterTooLow, Conflict):
            return  # spent meanwhile, or forgotten
        self._giving[user] = amount, counters[version_key(user)]
        # step: withdrawn

    def _spending(self, user: str, moment: float) -> float:
        """Return what was spent in the last half minute, about."""
        since, amount = self._spent.get(user, (moment, 0.0))
        return amount * math.exp((since - moment) / _SPENDING_SECONDS)
