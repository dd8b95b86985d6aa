"""Where the arena keeps what belongs to accounts: the keys of counters that are no record's.

| key             | its counter                                                                                    |
|-----------------|------------------------------------------------------------------------------------------------|
| the user's id   | what can be spent now; the record there is the account's                                       |
| `base_key`      | what that is reckoned from: the difference of the two is held by this arena's processes        |
| `part_key`      | how much of it this host may hold now without asking: the part of its lease that is not held   |
| `lease_key`     | what that is reckoned from: the lease; the difference of the two is held, as above             |
| `version_key`   | the version of the lease's row that `lease_key` is of                                          |
| `CREDIT_END`    | until when the host's leases last, in milliseconds of CLOCK_BOOTTIME                           |
| `count_key`     | the user's node executions                                                                     |
| `hold_mark`     | what is held for a node execution and 1, negative for an estimate; gone when the execution ends |
| `spend_mark`    | what was spent under a caller's key and 1, until it is settled; then a record says that it was |
"""

from __future__ import annotations

from functools import lru_cache

from shmcache.identifiers import derived_id, id_bytes

ACCOUNTS = id_bytes(derived_id("accounts"))
"""The parent of all accounts that the arena has."""
CREDIT_END = id_bytes(derived_id("credit end"))


@lru_cache(maxsize=4096)
def base_key(user_id: str) -> bytes:
    """Return the key of what a user's credits are reckoned from."""
    return id_bytes(derived_id("account base", id_bytes(user_id).hex()))


@lru_cache(maxsize=4096)
def part_key(user_id: str) -> bytes:
    """Return the key of what a host may still hold of a user's credits."""
    return id_bytes(derived_id("credit part", id_bytes(user_id).hex()))


@lru_cache(maxsize=4096)
def lease_key(user_id: str) -> bytes:
    """Return the key of what a host has leased of a user's credits."""
    return id_bytes(derived_id("credit lease", id_bytes(user_id).hex()))


@lru_cache(maxsize=4096)
def version_key(user_id: str) -> bytes:
    """Return the key of the version of a user's lease."""
    return id_bytes(derived_id("credit version", id_bytes(user_id).hex()))


@lru_cache(maxsize=4096)
def count_key(user_id: str) -> bytes:
    """Return the key of a user's execution count."""
    return id_bytes(derived_id("execution count", user_id))


def hold_mark(node_exec_id: str) -> bytes:
    """Return the key that says that a node execution was charged: its own with another version number."""
    key = id_bytes(node_exec_id)
    return b"%b%c%b" % (key[:6], key[6] ^ 0x90, key[7:])


def spend_mark(user_id: str, transaction_key: str) -> bytes:
    """Return the key that says that a user has spent under a transaction key."""
    return id_bytes(derived_id("spend", id_bytes(user_id).hex(), transaction_key))


def marked(amount: int, is_estimate: bool) -> int:
    """Return the counter of a mark."""
    return -amount - 1 if is_estimate else amount + 1
