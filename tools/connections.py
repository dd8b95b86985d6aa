"""How many connections a host opens to its database at most."""

from __future__ import annotations

from shmcache.config import Settings

# batches, definitions, the host's lease, what that looks up, and for moments the partitions and lost hosts
_SYNCER = 6
# batches, accounts, callbacks, and what open estimates are looked up by; one to spare while its pool comes up
_CHARGER = 5
# what it starts and ends with, and its client's
_SUPERVISOR = 2


def most_connections(settings: Settings) -> int:
    """Return how many connections the processes of a supervisor have at most at any time, with those that listen.

    A process has one, however many threads it has; who waits for the lead has none."""
    if settings.mode == "cached":
        return settings.workers + settings.charge_workers + _SYNCER + _CHARGER + _SUPERVISOR
    return settings.workers + 1 + _SUPERVISOR
