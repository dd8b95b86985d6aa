"""LeasedCredits: what a host may hold of accounts without asking, in its arena; see `shmcache.database.leases`.

For each account the arena has the lease and, reckoned from it, the part that is not held yet, changed with each hold;
and for all of them until when the leases last. That is reckoned from before the database was asked, and ends a tenth
early: nobody here holds against a lease that others may take.

Whoever finds too little waits for one round trip, and takes half of what there is, or more if it needs more. Where only
other hosts have as much, it asks them, and waits a little for what they give back.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Any

import psycopg

from shmcache.account_keys import ACCOUNTS, CREDIT_END, base_key, lease_key, part_key, version_key
from shmcache.arena import FLAG_PINNED, Arena, Transaction
from shmcache.arena.transaction import Operation, Rebase, SetCounter, Touch
from shmcache.backing_store import BackingStore
from shmcache.database import queries
from shmcache.database.leases import (
    ASKING_SECONDS,
    TURN_SECONDS,
    Standing,
    Want,
    hear_of,
    know_leases,
    listening,
    read_standings,
    renew_credits,
    reopen_leases,
    take_credits,
)
from shmcache.errors import DatabaseUnavailable
from shmcache.identifiers import id_bytes, id_text
from shmcache.records import Account

_EARLY = 0.1
_RENEWED = 0.5
"""Whoever has the database at hand renews leases of which so much is over."""
_IN_VAIN_SECONDS = 5.0
"""How long nobody is waited for again who did not answer."""
_AT_ONCE = 1_000
_MOST_IN_VAIN = 10_000


def now() -> float:
    """Return seconds of a clock that goes on while the machine sleeps, and is never set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeasedCredits:
    """What a process needs to hold against its host's leases. `until` is when it has to look again, by `now`."""

    def __init__(self, arena: Arena, backing: BackingStore, lease_seconds: float) -> None:
        self._arena = arena
        self._backing = backing
        self._lease_seconds = lease_seconds
        self._in_vain: dict[str, float] = {}
        self.until = 0.0

    def prolong(self) -> None:
        """Find out until when the leases last now; renew them where that is over. Raises DatabaseUnavailable."""
        self.until = lasting_until(self._arena)
        if now() >= self.until:
            self._backing.load(lambda connection: renew(self._arena, connection, self._lease_seconds))
            self.until = lasting_until(self._arena)
            if now() >= self.until:
                raise DatabaseUnavailable(
                    "the database", f"it took longer than SHMCACHE_CREDIT_LEASE ({self._lease_seconds:g} s) to renew it"
                )

    def open(self, user_id: str) -> tuple[Account, Standing] | None:
        """Lease a part of an account that the arena does not have; return both, None for an unknown one."""

        def ask(connection: psycopg.Connection[Any]) -> tuple[Account, Standing] | None:
            account = queries.load_account(connection, user_id)
            if account is None:
                return None
            self._renew_in_time(connection)
            return account, take_credits(connection, self._arena.arena_id, {user_id: Want(0)})[account.user_id]

        return self._backing.load(ask)

    def take(self, user_id: str, amount: int) -> bool:
        """Lease so much more of an account that an amount can be held; return whether it can be.

        Blocks. Raises DatabaseUnavailable."""
        if self._part(user_id) >= amount:
            return True  # somebody else has
        can_hold, has_others = self._backing.load(self._take, user_id, amount)
        if can_hold or has_others:
            return can_hold
        # Nobody else has what the account is said to have: it was taken for what is settled, and is released with that.
        ring = self._arena.charge_ring
        if ring.committed_sequence < ring.last_sequence:
            ring.request_drain()
            ring.wait_committed(ring.last_sequence, ASKING_SECONDS)
        return self._part(user_id) >= amount

    def _take(self, connection: psycopg.Connection[Any], user_id: str, amount: int) -> tuple[bool, bool]:
        """Return whether an amount can be held now, and whether another host has some."""
        self._renew_in_time(connection)
        can_hold, has_others = self._take_once(connection, user_id, amount)
        started = time.monotonic()
        if can_hold or not has_others or self._in_vain.get(user_id, 0.0) > started:
            return can_hold, has_others
        with listening(connection):
            while True:
                can_hold, has_others = self._take_once(connection, user_id, amount)
                left = started + ASKING_SECONDS - time.monotonic()
                if can_hold or not has_others or left <= 0:
                    break
                hear_of(connection, user_id, min(left, TURN_SECONDS))
        if can_hold:
            self._in_vain.pop(user_id, None)
        else:
            if len(self._in_vain) >= _MOST_IN_VAIN:
                self._in_vain.clear()
            self._in_vain[user_id] = time.monotonic() + _IN_VAIN_SECONDS
        return can_hold, has_others

    def _take_once(self, connection: psycopg.Connection[Any], user_id: str, amount: int) -> tuple[bool, bool]:
        """Lease what there is; return as `_take` does."""
        while (part := self._part(user_id)) < amount:
            standings = take_credits(connection, self._arena.arena_id, {user_id: Want(amount - part, part)})
            rebase_leases(self._arena, standings.values())
            if not any(each.free > 0 for each in standings.values()):
                return self._part(user_id) >= amount, any(each.elsewhere for each in standings.values())
            # Where that was too little, what is settled already and not released counted as held: once more.
        return True, True

    def _part(self, user_id: str) -> int:
        return self._arena.counter(part_key(user_id)) or 0

    def _renew_in_time(self, connection: psycopg.Connection[Any]) -> None:
        if now() >= lasting_until(self._arena) - _RENEWED * self._lease_seconds:
            renew(self._arena, connection, self._lease_seconds)


def lasting_until(arena: Arena) -> float:
    """Return until when a host's leases last, by `now`."""
    return (arena.counter(CREDIT_END) or 0) / 1000


def renew(arena: Arena, connection: psycopg.Connection[Any], lease_seconds: float) -> None:
    """Make a host's leases last from now on; if others have taken some meanwhile, find out which."""
    asked_at = now()
    robbed = renew_credits(connection, arena.arena_id, lease_seconds)
    # step: renewed
    if robbed is not None:
        users = sorted(id_text(key) for key in arena.members(ACCOUNTS) or ())
        for begin in range(0, len(users), _AT_ONCE):
            some = users[begin : begin + _AT_ONCE]
            reopen_leases(connection, arena.arena_id, some)
            rebase_leases(arena, read_standings(connection, some, arena.arena_id).values())
        # step: reread
        know_leases(connection, arena.arena_id, robbed)
        # step: known
    until = int((asked_at + lease_seconds * (1 - _EARLY)) * 1000)
    if until > (arena.counter(CREDIT_END) or 0):
        wanted = Transaction()
        wanted.operations += [Touch(CREDIT_END, FLAG_PINNED), SetCounter(CREDIT_END, until)]
        arena.commit(wanted)
    # step: prolonged


def lease_rebase(standing: Standing, released: int = 0) -> Rebase:
    """Return what brings an account's lease in the arena up to date, if it is newer than what is there."""
    user = standing.user_id
    return Rebase(part_key(user), lease_key(user), standing.leased, released, version_key(user), standing.version)


def account_rebase(standing: Standing, released: int = 0) -> Rebase:
    """Return what brings an account's credits in the arena up to date."""
    return Rebase(id_bytes(standing.user_id), base_key(standing.user_id), standing.spendable, released)


def rebase_leases(arena: Arena, standings: Iterable[Standing]) -> dict[bytes, int]:
    """Bring leases in the arena up to date; return the accounts' counters that were changed."""
    wanted = Transaction()
    wanted.operations.extend(map(lease_rebase, standings))
    return arena.commit(wanted).counters


def lease_counters(user_id: str, amount: int, version: int) -> Collection[Operation]:
    """Return what makes the counters of a lease, of which nothing is held."""
    keys = part_key(user_id), lease_key(user_id), version_key(user_id)
    return [
        *(Touch(key, FLAG_PINNED) for key in keys),
        *(SetCounter(key, value) for key, value in zip(keys, (amount, amount, version), strict=True)),
    ]
