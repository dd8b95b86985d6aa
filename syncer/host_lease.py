"""HostLease: says in the database that this host lives, and hears what other hosts have taken from it.

Who leads over the write ring does this too, in a thread: a host whose rows nobody carries has no use of what it owns.
Where the thread is stopped, or the network is cut, for longer than the lease, others may take the host's graph
executions. Their rows are refused then (see `database.ownership`); that this host stops working on them, as soon as it
knows, saves the work only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import Settings
from shmcache.database.ownership import forget_hosts, renew_lease
from shmcache.errors import InvalidValue, NotFound
from shmcache.identifiers import id_bytes
from shmcache.records import FINAL_STATUSES
from syncer.listening import Listener, listen_url

logger = logging.getLogger(__name__)

_RENEWALS_A_LEASE = 3


class HostLease(Listener):
    """Keeps an arena's lease, until `stop`."""

    channel = "shmcache_owners"

    def __init__(self, arena: Arena, database_url: str, settings: Settings) -> None:
        self._arena = arena
        self._lease_seconds = settings.host_lease
        self._client = CachedClient(arena, database_url, settings)
        self._lost: set[str] = set()
        self._has_looked = False
        self._turn = threading.Lock()
        super().__init__(listen_url(database_url, settings), "host lease", settings.host_lease / _RENEWALS_A_LEASE)

    def note_lost(self, graph_exec_ids: Iterable[str]) -> None:
        """Have work on graph executions stopped that are another host's now. From any thread."""
        with self._turn:
            self._lost.update(graph_exec_ids)

    def stop(self) -> None:
        """End as a Listener does."""
        super().stop()
        self._client.close()

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        renew_lease(connection, self._arena.arena_id, self._lease_seconds)
        if not self._has_looked:
            forget_hosts(connection)
            self._has_looked = True
        self._abandon()

    def _hear(self, connection: psycopg.Connection[Any], payloads: Sequence[str]) -> None:  # noqa: ARG002
        for payload in payloads:
            taken_from, _, graph_exec_id = payload.partition(" ")
            if taken_from == self._arena.arena_id:
                self.note_lost([graph_exec_id])
        self._abandon()

    def _abandon(self) -> None:
        """Have workers start no further node of what is lost. That is written to the arena only: its row is refused."""
        with self._turn:
            lost, self._lost = self._lost, set()
        for graph_exec_id in sorted(lost):
            try:
                if not self._arena.has_entry(id_bytes(graph_exec_id)):
                    continue
                known = self._client.get_graph_execution(graph_exec_id)
                if known.status not in FINAL_STATUSES and "error" not in known.stats:
                    logger.warning("graph execution %s is another host's now: it is left alone here", graph_exec_id)
                    self._client.update_graph_execution_stats(graph_exec_id, None, {"error": "taken by another host"})
            except (InvalidValue, NotFound):
                continue
