"""SyncManager: carries the write ring to PostgreSQL, exactly once, in order.

Rows, checkpoint and the check of the epoch are one transaction: a death before its commit leaves nothing of it, a death
after it leaves a checkpoint behind which the next leader begins. A leader whose epoch is over writes nothing, and
stands for election again.

    decode   entries to rows, rows to one statement a kind      while the server works on the batch before
    send     checkpoint and statements, in one pipeline
    commit   if the epoch is still ours

What the database refuses ends that transaction; the batch is written again in another one, in parts, until the refused
row is found (see `refusals`). It is kept in `dead_letters`, whole, with its error, in the same transaction as the rest
of its batch; so is an entry that cannot be read.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import TypeAlias

from psycopg import Rollback

from shmcache.arena import Arena, Counter, Entry
from shmcache.config import Settings
from shmcache.database.batches import PreparedStatement, prepare_batch, send_batch, write_batch
from shmcache.database.bookkeeping import CheckpointMove
from shmcache.database.connection import sync_pipeline
from shmcache.writes import Write, WriteKind
from syncer.consumer import RingConsumer
from syncer.entries import read_write
from syncer.refusals import is_refusal, write_around_refusals

logger = logging.getLogger(__name__)

_BATCH_ENTRIES = 10_000
_BATCH_BYTES = 8 << 20

_Row: TypeAlias = tuple[Entry, Write]


class _Batch(list[Entry]):
    """Entries behind `after`, and what they hold: rows, and what cannot be read, with the reason.

    `prepared` is None where that could not be done, for a value that the database cannot hold."""

    def __init__(self, entries: Sequence[Entry], after: int) -> None:
        super().__init__(entries)
        self.after = after
        self.rows: list[_Row] = []
        self.broken: list[tuple[Entry, Exception]] = []
        for entry in entries:
            try:
                if not entry.intact:
                    raise ValueError("the entry's checksum does not match its bytes")
                self.rows.append((entry, read_write(entry.kind, entry.payload)))
            except ValueError as error:
                self.broken.append((entry, error))
        self.prepared: list[PreparedStatement] | None = None
        try:
            self.prepared = prepare_batch([row for _, row in self.rows])
        except Exception as error:
            if not is_refusal(error):
                raise


class SyncManager(RingConsumer):
    """Drains an arena's write ring, while it leads; waits for its turn while another one does."""

    role = "syncer"

    def __init__(self, arena: Arena, database_url: str, settings: Settings) -> None:
        super().__init__(
            arena, arena.write_ring, database_url, settings,
            interval_seconds=settings.sync_interval, batch_entries=_BATCH_ENTRIES, batch_bytes=_BATCH_BYTES,
        )  # fmt: skip
        self._ahead: _Batch | None = None

    def _begin(self) -> None:
        logger.info("Sync manager started")
        self._arena.count(Counter.LEADERS)

    def _end(self) -> None:
        logger.info("Sync manager stopped")

    def _take(self, after: int) -> _Batch:
        batch, self._ahead = self._ahead, None
        return batch if batch is not None and batch.after == after else _Batch(super()._take(after), after)

    def _read_ahead(self, batch: _Batch) -> None:
        """Prepare the batch behind one that the server works on, if there is much to do."""
        last = batch[-1].sequence
        if self._ring.last_sequence - last >= self._limit.entries // 2:
            self._ahead = _Batch(super()._take(last), last)

    def _carry(self, entries: Sequence[Entry], epoch: int) -> None:
        batch = entries if isinstance(entries, _Batch) else _Batch(entries, entries[0].sequence - 1)
        refused: Collection[int] = ()
        try:
            written = batch.prepared is not None and self._write_whole(batch, batch.prepared, epoch)
        except Exception as error:
            self._ahead = None
            if not is_refusal(error):
                raise
            written = False
        if not written:
            refused = self._write_in_parts(batch, epoch)
        kinds = [entry.kind for entry, _ in batch.rows if entry.sequence not in refused]
        outputs = kinds.count(WriteKind.OUTPUT)
        statuses = kinds.count(WriteKind.NODE_EXECUTION)
        self._arena.count(Counter.BATCHES)
        self._arena.count(Counter.SYNCED_OUTPUTS, outputs)
        self._arena.count(Counter.SYNCED_STATUSES, statuses)
        self._arena.count(Counter.DEAD_LETTERS, len(refused) + len(batch.broken))
        logger.info(
            "Synced %d outputs and %d statuses", outputs, statuses, extra={"outputs": outputs, "statuses": statuses}
        )

    def _write_whole(self, batch: _Batch, prepared: Sequence[PreparedStatement], epoch: int) -> bool:
        """Write a batch in one transaction; return False, with nothing done, if some of it is written already.

        Raises Fenced, psycopg.Error."""
        connection = self._connected()
        with connection.transaction() as transaction:
            with connection.pipeline() as pipeline:
                # The checkpoint first: its row's lock keeps a successor's epoch out until this commit is decided.
                move = CheckpointMove(connection, self._arena.arena_id, self._ring.name, epoch, batch[-1].sequence)
                send_batch(connection, prepared)
                sync_pipeline(connection, pipeline, lambda: self._read_ahead(batch))
            if move.before() > batch.after:
                raise Rollback(transaction)
            for entry, reason in batch.broken:
                self._add_dead_letter(entry, reason)
            return True
        return False

    def _write_in_parts(self, batch: _Batch, epoch: int) -> Collection[int]:
        """Write a batch in one transaction, around what is refused; return the sequences of that.

        What is written already (the commit had gone through when the connection was lost) is left out. Raises Fenced,
        psycopg.Error."""
        connection = self._connected()
        refused: set[int] = set()

        def refuse(row: _Row, error: Exception) -> None:
            refused.add(row[0].sequence)
            self._add_dead_letter(row[0], error)

        def write(rows: Sequence[_Row]) -> None:
            with connection.transaction():
                write_batch(connection, [row for _, row in rows])

        with connection.transaction():
            move = CheckpointMove(connection, self._arena.arena_id, self._ring.name, epoch, batch[-1].sequence)
            before = move.before()
            write_around_refusals([row for row in batch.rows if row[0].sequence > before], write, refuse)
            for entry, reason in batch.broken:
                if entry.sequence > before:
                    self._add_dead_letter(entry, reason)
        return refused
