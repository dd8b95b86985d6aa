"""HostLease: says in the database that this host lives, and hears what other hosts have taken from it.

Who leads over the write ring does this too, in a thread: a host whose rows nobody carries has no use of what it owns.
Where the thread is stopped, or the network is cut, for longer than the lease, others may take the host's graph
executions. Their rows are refused then (see `database.ownership`); that this host stops working on them, as soon as it
knows, saves the work only. With each renewal it hears of hosts that were lost (`LostHosts`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import psycopg

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import Settings
from shmcache.database.ownership import owner_of, renew_lease
from shmcache.database.submissions import cancelled_of_arena
from shmcache.errors import InvalidValue, NotFound
from shmcache.identifiers import id_bytes
from shmcache.records import FINAL_STATUSES
from syncer.listening import Listener, listen_url
from syncer.lost_hosts import LostHosts

logger = logging.getLogger(__name__)

_RENEWALS_A_LEASE = 3
_TAKEN = "taken by another host"
_CANCELLED = "cancelled"


class HostLease(Listener):
    """Keeps an arena's lease, until `stop`."""

    channel = "shmcache_owners"

    def __init__(self, arena: Arena, database_url: str, settings: Settings) -> None:
        self._arena = arena
        self._lease_seconds = settings.host_lease
        self._lost_hosts = LostHosts(database_url, settings.low_balance)
        self._client = CachedClient(arena, database_url, settings)
        self._left: dict[str, str] = {}
        self._turn = threading.Lock()
        super().__init__(listen_url(database_url, settings), "host lease", settings.host_lease / _RENEWALS_A_LEASE)

    def note_lost(self, graph_exec_ids: Iterable[str]) -> None:
        """Have work on graph executions stopped that are another host's now. From any thread."""
        self._note(graph_exec_ids, _TAKEN)

    def stop(self) -> None:
        """End as a Listener does."""
        super().stop()
        self._lost_hosts.stop()
        self._client.close()

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        if renew_lease(connection, self._arena.arena_id, self._lease_seconds):
            self._lost_hosts.ask()
        self._note(cancelled_of_arena(connection, self._arena.arena_id), _CANCELLED)
        self._abandon(connection)

    def _hear(self, connection: psycopg.Connection[Any], payloads: Sequence[str]) -> None:
        for payload in payloads:
            arena_id, graph_exec_id, *why = payload.split(" ")
            if arena_id == self._arena.arena_id:
                self._note([graph_exec_id], _CANCELLED if why else _TAKEN)
        self._abandon(connection)

    def _note(self, graph_exec_ids: Iterable[str], why: str) -> None:
        with self._turn:
            self._left.update(dict.fromkeys(graph_exec_ids, why))

    def _abandon(self, connection: psycopg.Connection[Any]) -> None:
        """Have workers start no further node of what is lost or cancelled. Of what is lost that is written to the arena
        only: its row is refused."""
        with self._turn:
            left, self._left = self._left, {}
        for graph_exec_id, why in sorted(left.items()):
            try:
                if why == _CANCELLED or self._arena.has_entry(id_bytes(graph_exec_id)):
                    self._client.atomically(partial(self._abandon_one, connection, graph_exec_id, why))
            except (InvalidValue, NotFound):
                continue

    def _abandon_one(self, connection: psycopg.Connection[Any], graph_exec_id: str, why: str) -> None:
        known = self._client.get_graph_execution(graph_exec_id)
        if known.status in FINAL_STATUSES or "error" in known.stats:
            return
        # After it was read: should it be taken back meanwhile, that is a conflict, and this is done again.
        owner = owner_of(connection, graph_exec_id)
        if why == _TAKEN and owner is not None and owner[0] == self._arena.arena_id:
            return
        logger.warning("graph execution %s was %s: no further node of it starts here", graph_exec_id, why)
        self._client.update_graph_execution_stats(graph_exec_id, None, {"error": why})
