"""SimpleExecutorCache: records over the arena, with those read lately kept decoded in this process.

A warm get compares one word of the arena (the version of the record's entry) with the version at which the record was
decoded, and returns that record. Any process's write, delete or eviction changes the word, so the next get of
every process sees it. Records cannot be changed by who holds them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from shmcache.arena import Arena
from shmcache.codec import Record, decode
from shmcache.errors import InvalidValue
from shmcache.identifiers import id_bytes

logger = logging.getLogger(__name__)


class SimpleExecutorCache:
    """Records by their identifiers (UUIDs as text). `limit` bounds the records kept decoded in this process."""

    __slots__ = ("_arena", "_decoded", "_limit", "_words", "hits", "misses")

    def __init__(self, arena: Arena, limit: int = 50_000) -> None:
        self._arena = arena
        self._words = arena.version_words()
        self._decoded: dict[str, tuple[int, int, Any]] = {}
        self._limit = limit
        self.hits = 0
        self.misses = 0

    def get(self, identifier: str) -> tuple[int, Record] | None:
        """Return (version, record), or None if the arena does not have it. Never blocks on the database.

        Raises InvalidValue for what is no UUID."""
        kept = self._decoded.get(identifier)
        if kept is not None and self._words[kept[0]] == kept[1]:
            self.hits += 1
            return kept[1], kept[2]
        return self._get_encoded(identifier)

    def _get_encoded(self, identifier: str) -> tuple[int, Record] | None:
        found = self._arena.read(id_bytes(identifier))
        self.misses += 1
        if found is None:
            self._decoded.pop(identifier, None)
            return None
        try:
            record = decode(found.record)
        except InvalidValue:
            # Bytes that pass their CRC and are no record of ours: another program wrote them. Not ours to interpret.
            logger.warning("arena %s: %s holds no record", self._arena.name, identifier)
            return None
        self.remember(identifier, found.entry, found.version, record)
        return found.version, record

    def remember(self, identifier: str, entry: int, version: int, record: Record) -> None:
        """Keep a record decoded, as this version of this entry."""
        if len(self._decoded) >= self._limit:
            for stale in list(self._decoded)[: max(1, self._limit // 8)]:
                del self._decoded[stale]
        self._decoded[identifier] = (entry, version, record)

    def clear(self, report: Callable[[str], None] = logger.info) -> None:
        """Forget what this process has decoded; the arena keeps everything."""
        self._decoded.clear()
        report("Cache cleared")
