"""Credit leases: the part of an account's balance that a host may hold charges against without asking anybody.

    balance - debt = what nobody has + leases of hosts + estimates that are held elsewhere

is kept by every transaction here and in `settlement`; they change an account's leases under the lock of its row, but
for a giving back, which only makes room. (Another program that lowers a balance does not know of leases: what is not
covered then is given back by who has it, and becomes debt where it is spent.) An estimate that is held by a host is
part of its lease.

A lease is one row an account and host (an arena), and lasts as long as the host's one row in `credit_hosts` says. When
that is over nobody takes it away until it is needed: only who finds too little for a charge takes what lapsed hosts
have of that account, and notes it in their rows, so that who comes back knows that it has to read its leases again
before it goes on. So a host that comes back late has, nearly always, lost nothing.

Each change of a row gives it a version larger than all before. The arena keeps the version with the amount, and takes
over what is newer only; what it gives back it takes from its own counters first, and then from the row, if that has
still the version which the arena had: else something newer may be on its way to the arena, which would undo it.

Times are the database's; how long its lease lasts a host reckons from before it asked, by its own clock.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from shmcache.database.arrays import plain_array
from shmcache.database.statements import statement
from shmcache.identifiers import id_text

Connection = psycopg.Connection[Any]

ASKING_SECONDS = 2.0
"""How long other hosts are waited for that were asked to give some back."""
_LOCK_WAIT = "10s"
_STANDSTILL = "5s"
"""Who is stopped with an account's row locked is waited for no longer by those that need it."""
_CHARGES_AHEAD = 16
"""How many charges a host leases for at least, of an account that others spend too."""
TURN_SECONDS = 0.2
"""How long is waited at most before looking again: what is told can be missed."""


class Standing(NamedTuple):
    """An account as a host finds it.

    `spendable` is its balance less debt and less what is held elsewhere, whoever has leased it; `leased` what this host
    has, as of `version`; `reserved` all that is leased or held; `elsewhere` what other hosts have leased. `wanted` is
    what another host has lacked lately, the one named first `wanted_by`; `own_wanted` what this one has."""

    user_id: str
    spendable: int
    is_payable: bool
    balance: int
    debt: int
    reserved: int
    leased: int
    version: int
    own_held: int
    elsewhere: int
    wanted: int
    wanted_by: str | None
    own_wanted: int

    @property
    def free(self) -> int:
        """What nobody has; negative where others have lowered the balance."""
        return self.balance - self.debt - self.reserved

    @property
    def bearable(self) -> int:
        """How much of a host's charges the balance bears: all that nobody else has."""
        return self.balance - self.reserved + max(self.leased, self.own_held)


class Want(NamedTuple):
    """What a host wants of an account: `least` more than it has, or there is no use; and to have `aim`, what it spends
    in a while. `unspent` is what it has."""

    least: int
    unspent: int = 0
    aim: int = 0


def read_standings(connection: Connection, user_ids: Collection[str], arena_id: str | None) -> dict[str, Standing]:
    """Return accounts as an arena finds them; unknown ones are left out. In the caller's transaction, if there is one;
    what has to stand is locked before."""
    given = {"users": plain_array(user_ids), "arena_id": arena_id and UUID(arena_id)}
    rows = connection.execute(statement(connection, "read_accounts"), given, prepare=True)
    return {str(user): Standing(str(user), *rest) for user, *rest in rows}


def take_credits(connection: Connection, arena_id: str, wants: Mapping[str, Want]) -> dict[str, Standing]:
    """Lease more of some accounts, in a transaction of its own; return how they stand then.

    Whoever wants more than there is gets what there is; other hosts that have some are told that it is wanted. Unknown
    accounts are left out. Raises psycopg.OperationalError where an account stays locked."""
    # However a user was spelled, the same account is locked and found.
    wants = {id_text(UUID(user).bytes): want for user, want in wants.items()}
    users = sorted(wants)
    with connection.transaction():
        be_brief(connection)
        connection.execute(statement(connection, "lock_accounts"), {"users": plain_array(users)}, prepare=True)
        # step: locked
        standings = read_standings(connection, users, arena_id)
        lacking = [user for user, each in standings.items() if each.free < wants[user].least and each.elsewhere]
        if lacking and rob_lapsed(connection, arena_id, lacking):
            standings |= read_standings(connection, lacking, arena_id)
        grants: dict[str, tuple[int, int]] = {}
        for user, each in standings.items():
            grant = _grant(wants[user], each)
            grants[user] = grant, max(0, wants[user].least - grant)
        columns = [plain_array(column) for column in zip(*((user, *grants[user]) for user in grants), strict=True)]
        if not columns:
            return {}
        given = dict(zip(("users", "amounts", "wanted"), columns, strict=True))
        rows = connection.execute(
            statement(connection, "put_leases"), {**given, "arena_id": arena_id}, prepare=True
        ).fetchall()
        # step: leased
        asked = [user for user, (_, lacks) in grants.items() if lacks and standings[user].elsewhere]
        if asked:
            _ask(connection, arena_id, asked)
    # step: taken
    for user, amount, version in rows:
        before = standings[user]
        grant, lacks = grants[user]
        standings[user] = before._replace(
            leased=amount, version=version, reserved=before.reserved + grant, own_wanted=lacks
        )
    return standings


def be_brief(connection: Connection) -> None:
    """Have the transaction at hand not wait for a locked row for long, nor be waited for."""
    connection.execute(
        "SELECT set_config('lock_timeout', %s, true), set_config('idle_in_transaction_session_timeout', %s, true)",
        (_LOCK_WAIT, _STANDSTILL),
    )


def _grant(want: Want, standing: Standing) -> int:
    """Return how much more of an account a host leases.

    Alone, half of what nobody holds. Where others spend it too, only as much as it spends: what a host that is lost has
    is out of use for long. Before that is known, for some charges, and each time as much again as it has."""
    free = max(0, standing.free)
    part = max(want.aim, -(-(want.unspent + free) // 2))
    if standing.elsewhere:
        ahead = max(_CHARGES_AHEAD * want.least, standing.leased) if want.least else 0
        part = max(want.aim, want.unspent + ahead)
    return min(free, max(want.least, part - want.unspent, 0))


def find_free(connection: Connection, user_id: str, amount: int, seconds: float) -> bool:
    """Say whether an amount is free of an account that nobody has leased; for who spends without a lease.

    Where hosts have leased it, it is taken from those that are lapsed, and the others are asked and waited for, up to
    some time. In autocommit."""
    until = time.monotonic() + seconds
    asker = str(UUID(int=0))
    with listening(connection):
        while True:
            with connection.transaction():
                connection.execute(statement(connection, "lock_accounts"), {"users": plain_array([user_id])})
                standing = read_standings(connection, [user_id], None).get(user_id)
                if standing is not None and standing.free < amount and rob_lapsed(connection, None, [user_id]):
                    standing = read_standings(connection, [user_id], None)[user_id]
                if standing is not None and standing.free >= amount:
                    return True
                if standing is None or standing.free + standing.elsewhere < amount:
                    return False
                lacks = plain_array([amount - standing.free])
                given = {"users": plain_array([user_id]), "amounts": plain_array([0]), "wanted": lacks}
                connection.execute(statement(connection, "put_leases"), {**given, "arena_id": asker})
                _ask(connection, asker, [user_id])
            if time.monotonic() >= until:
                return False
            hear_of(connection, user_id, min(TURN_SECONDS, until - time.monotonic()))


@contextmanager
def listening(connection: Connection) -> Iterator[None]:
    """Listen inside to what is told of accounts."""
    connection.execute("LISTEN shmcache_accounts")
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("UNLISTEN shmcache_accounts")


def hear_of(connection: Connection, user_id: str, seconds: float) -> None:
    """Wait until something is told of an account, or the time is over."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        told = list(connection.notifies(timeout=left, stop_after=1))
        if any(user_id in each.payload for each in told):
            return


def _ask(connection: Connection, arena_id: str, user_ids: Sequence[str]) -> None:
    connection.execute(
        "SELECT pg_notify('shmcache_accounts', %s || ' ' || users || ' wanted')"
        " FROM unnest(%s::text[]) AS given (users)",
        (arena_id, list(user_ids)),
    )


def rob_lapsed(connection: Connection, arena_id: str | None, user_ids: Collection[str]) -> bool:
    """Take what lapsed hosts have of some accounts away; return whether there was any. In the caller's transaction,
    with the accounts locked."""
    given = {"users": plain_array(user_ids), "arena_id": arena_id and UUID(arena_id)}
    return connection.execute(statement(connection, "rob_lapsed"), given).rowcount > 0


def give_credits(connection: Connection, arena_id: str, back: Mapping[str, tuple[int, int]]) -> None:
    """Give credits back, of each account an amount, if the lease has still the version that goes with it.

    The arena has them no more by now. Whoever waits for some is told."""
    columns = [plain_array(column) for column in zip(*((user, *back[user]) for user in sorted(back)), strict=True)]
    given = dict(zip(("users", "amounts", "versions"), columns, strict=True))
    connection.execute(statement(connection, "give_credits"), {**given, "arena_id": UUID(arena_id)})


def renew_credits(connection: Connection, arena_id: str, seconds: float) -> int | None:
    """Make a host's leases last from now on; return None if they were never lapsed and taken since it knew what it has.

    Else return what `know_leases` is to be told, once the arena knows what all its leases are now."""
    row = connection.execute(
        statement(connection, "renew_credits"), {"arena_id": UUID(arena_id), "seconds": seconds}
    ).fetchone()
    assert row is not None
    robbed, seen = row
    return None if robbed == seen else int(robbed)


def reopen_leases(connection: Connection, arena_id: str, user_ids: Collection[str]) -> None:
    """Give each of some accounts a row again, so that the arena sees the newer version of a lease that was taken."""
    given = {"arena_id": arena_id, **dict.fromkeys(("amounts", "wanted"), plain_array([0] * len(user_ids)))}
    connection.execute(statement(connection, "put_leases"), {**given, "users": plain_array(sorted(user_ids))})


def know_leases(connection: Connection, arena_id: str, robbed: int) -> None:
    """Note that a host knows what it has lost, `robbed` times."""
    connection.execute(
        "UPDATE credit_hosts SET seen = greatest(seen, %s) WHERE arena_id = %s", (robbed, UUID(arena_id))
    )


def release_leases(connection: Connection, arena_id: str) -> tuple[int, int]:
    """Give back all that an arena has, which is gone; return how many leases that were, and of how much.

    Nobody must be able to hold against them any more; who is asked to spend some of them in vain now is told."""
    rows = connection.execute(statement(connection, "release_leases"), {"arena_id": UUID(arena_id)}).fetchall()
    return len(rows), sum(row[0] for row in rows)


def forget_leases(connection: Connection) -> None:
    """Take away all leases of hosts that are lapsed for more than a day."""
    connection.execute(statement(connection, "forget_leases"))
