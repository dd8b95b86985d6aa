"""DefinitionChanges: graphs and nodes that are changed in the database, by whatever program, are changed in the arena.

Who leads over the write ring does this too, in a thread. For graphs that the arena has:

    1  lease    what is being loaded by anybody from here on is newer; what was before is not kept
    2  read     graph and nodes, as they are in the database now
    3  keep     in the arena, in place of what it had; no executor has to wait for a load
                what is gone from the database is forgotten

A death anywhere leaves the old version in the index: the next leader, which looks at all of them, does it again. One
that was superseded and goes on keeps nothing, because its lease is over.

Looking at all of them costs one statement that names each graph and returns its version. It is done at each connecting,
and every `definition_interval` seconds: that bounds how long a notification that was missed can matter.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg

from shmcache.arena import Arena
from shmcache.database import queries
from shmcache.definition_index import NOT_KEPT, DefinitionIndex
from shmcache.errors import InvalidValue
from shmcache.identifiers import id_bytes, id_text
from syncer.listening import Listener

logger = logging.getLogger(__name__)

_GRAPHS_AT_ONCE = 1_000
_LOOKS_A_TIDYING = 10
_MOST_TRIES = 10
"""Leases that another leader may take away; then it is that one's to do."""


class DefinitionChanges(Listener):
    """Keeps an arena's definitions as the database has them, until `stop`."""

    channel = "shmcache_definitions"

    def __init__(self, arena: Arena, database_url: str, interval_seconds: float) -> None:
        self._index = DefinitionIndex(arena)
        self._looks = 0
        super().__init__(database_url, "definition changes", interval_seconds)

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        if self._looks % _LOOKS_A_TIDYING == 0:
            self._index.tidy()
        self._looks += 1
        lease = self._index.renew_lease()
        known = {id_text(graph): id_text(each.version) for graph, each in self._index.known().items()}
        graphs = sorted(known)
        for begin in range(0, len(graphs), _GRAPHS_AT_ONCE):
            some = graphs[begin : begin + _GRAPHS_AT_ONCE]
            there = queries.graph_versions(connection, some)
            self._renew(connection, [each for each in some if there.get(each) != known[each]], lease)

    def _hear(self, connection: psycopg.Connection[Any], payloads: Sequence[str]) -> None:
        told = {graph for payload in payloads for graph in payload.split(",")}
        lease = self._index.renew_lease()
        self._renew(connection, [each for each in sorted(told) if self._knows(each)], lease)

    def _renew(self, connection: psycopg.Connection[Any], graphs: Iterable[str], lease: int) -> None:
        """Bring graphs in the arena up to date. `lease`: renewed since they were changed."""
        index = self._index
        for graph in graphs:
            key = id_bytes(graph)
            for _ in range(_MOST_TRIES):
                # step: leased
                loaded = queries.load_graph(connection, graph)
                # step: read
                try:
                    kept = index.drop(lease, key) if loaded is None else index.keep(lease, loaded)
                except NOT_KEPT as error:
                    logger.warning("graph %s was changed, its readers turn to the database: %s", graph, error)
                    kept = index.clear(lease, key)
                # step: kept
                if kept:
                    logger.info("graph %s: %s", graph, f"version {loaded.version}" if loaded else "deleted")
                    break
                lease = index.renew_lease()

    def _knows(self, graph: str) -> bool:
        try:
            return self._index.knows(id_bytes(graph))
        except InvalidValue:  # somebody else's notification
            return False
