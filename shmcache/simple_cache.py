"""SimpleExecutorCache: records over the arena, with those read lately kept decoded in this process.

A warm get compares one word of the arena (the version of the record's entry) with the version at which the record was
decoded, and returns that record. Any process's write, delete or eviction changes the word, so the next get of
every process sees it. Records cannot be changed by who holds them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from shmcache.arena import Arena
from shmcache.arena.decoded import DecodedLayer
from shmcache.codec import Record, decode
from shmcache.errors import InvalidValue
from shmcache.identifiers import id_bytes

logger = logging.getLogger(__name__)


Hit = tuple[int, Record, int]


class SimpleExecutorCache(DecodedLayer):
    """Records by their identifiers (UUIDs as text). `limit` bounds the records kept decoded in this process."""

    __slots__ = ()

    def __init__(self, arena: Arena, limit: int = 16_384) -> None:
        super().__init__(arena, limit)

    def get(self, identifier: str) -> Hit | None:
        """Return (version, record, entry), or None if the arena does not have it. Never blocks on the database.

        `entry` is where the arena keeps the version. Raises InvalidValue for what is no UUID."""
        answer: Hit
        try:
            kept = entry, version, answer, hits = self._decoded[identifier]
            if self._words[entry] == version:
                kept[3] = hits + 1.0
                return answer
        except KeyError:
            pass
        return self._get_encoded(identifier)

    def _get_encoded(self, identifier: str) -> Hit | None:
        found = self._arena.peek(id_bytes(identifier))
        self._count_read(found is not None)
        if found is None:
            self._drop(identifier)
            return None
        try:
            record = decode(found.record)
        except InvalidValue:
            # Bytes that pass their CRC and are no record of ours: another program wrote them. Not ours to interpret.
            logger.warning("arena %s: %s holds no record", self._arena.name, identifier)
            return None
        answer = (found.version, record, found.entry)
        self._keep(identifier, found.entry, found.version, answer)
        return answer

    def keep(self, identifier: str, entry: int, version: int, record: Record) -> None:
        """Keep a record that this process has just put, as that version of that entry: it need not be decoded."""
        self._keep(identifier, entry, version, (version, record, entry))

    def clear(self, report: Callable[[str], None] = logger.info) -> None:
        """Forget what this process has decoded; the arena keeps everything."""
        self._forget()
        report("Cache cleared")
