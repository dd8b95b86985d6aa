"""SyncManager: carries the write ring to PostgreSQL, exactly once, in order.

Rows, checkpoint and the check of the epoch are one transaction: a death before its commit leaves nothing of it, a death
after it leaves a checkpoint behind which the next leader begins. What the database refuses is cut out by bisection and
kept in `dead_letters`, whole, with its error, in the same transaction; so is an entry that cannot be read. A leader
whose epoch is over writes nothing, and stands for election again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from shmcache.arena import Arena, Counter, Entry
from shmcache.config import Settings
from shmcache.database.batches import write_batch
from shmcache.database.bookkeeping import move_checkpoint
from shmcache.writes import Write, WriteKind
from syncer.consumer import RingConsumer
from syncer.entries import read_write
from syncer.refusals import write_around_refusals

logger = logging.getLogger(__name__)

_BATCH_ENTRIES = 20_000
_BATCH_BYTES = 8 << 20


class _Decoded(NamedTuple):
    entry: Entry
    write: Write


class SyncManager(RingConsumer):
    """Drains an arena's write ring, while it leads; waits for its turn while another one does."""

    role = "syncer"

    def __init__(self, arena: Arena, database_url: str, settings: Settings) -> None:
        super().__init__(
            arena, arena.write_ring, database_url, settings,
            interval_seconds=settings.sync_interval, batch_entries=_BATCH_ENTRIES, batch_bytes=_BATCH_BYTES,
        )  # fmt: skip

    def _begin(self) -> None:
        logger.info("Sync manager started")
        self._arena.count(Counter.LEADERS)

    def _end(self) -> None:
        logger.info("Sync manager stopped")

    def _carry(self, entries: Sequence[Entry], epoch: int) -> None:
        decoded, broken = _decode(entries)
        connection = self._connected()
        refused: set[int] = set()

        def refuse(item: _Decoded, error: Exception) -> None:
            refused.add(item.entry.sequence)
            self._add_dead_letter(item.entry, error)

        def write(items: Sequence[_Decoded]) -> None:
            with connection.transaction():
                write_batch(connection, [item.write for item in items])

        with connection.transaction():
            # The checkpoint first: its row's lock keeps a successor's epoch out until this commit is decided.
            last = entries[-1].sequence
            if not move_checkpoint(connection, self._arena.arena_id, self._ring.name, epoch, last):
                return  # the commit had gone through when the connection was lost
            write_around_refusals(decoded, write, refuse)
            for entry, reason in broken:
                self._add_dead_letter(entry, reason)
        written = [item.entry.kind for item in decoded if item.entry.sequence not in refused]
        outputs = written.count(WriteKind.OUTPUT)
        statuses = written.count(WriteKind.NODE_EXECUTION)
        self._arena.count(Counter.BATCHES)
        self._arena.count(Counter.SYNCED_OUTPUTS, outputs)
        self._arena.count(Counter.SYNCED_STATUSES, statuses)
        self._arena.count(Counter.DEAD_LETTERS, len(refused) + len(broken))
        logger.info("Synced %d outputs and %d statuses", outputs, statuses)


def _decode(entries: Sequence[Entry]) -> tuple[list[_Decoded], list[tuple[Entry, Exception]]]:
    """Return the entries that can be read, as rows, and those that cannot, with the reason."""
    decoded: list[_Decoded] = []
    broken: list[tuple[Entry, Exception]] = []
    for entry in entries:
        try:
            if not entry.intact:
                raise ValueError("the entry's checksum does not match its bytes")
            decoded.append(_Decoded(entry, read_write(entry.kind, entry.payload)))
        except ValueError as error:
            broken.append((entry, error))
    return decoded, broken
