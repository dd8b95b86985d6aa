"""SyncManager: carries the write ring to PostgreSQL, exactly once, in order.

Rows, checkpoint and the check of the epoch are one transaction: a death before its commit leaves nothing of it, a death
after it leaves a checkpoint behind which the next leader begins. A leader whose epoch is over writes nothing, and
stands for election again.

    decode   entries to rows, rows to one statement a kind      while the server works on the batch before
    send     checkpoint and statements, in one pipeline
    commit   if the epoch is still ours

What the database refuses ends that transaction; the batch is written again in another one, in parts, until the refused
row is found (see `refusals`). It is kept in `dead_letters`, whole, with its error, in the same transaction as the rest
of its batch; so is an entry that cannot be read, and a row of a graph execution that another host has taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

import psycopg
from psycopg import Rollback

from shmcache.arena import Arena, Counter, Entry
from shmcache.config import Settings
from shmcache.database.batches import PreparedStatement, prepare_batch, send_batch, write_batch
from shmcache.database.bookkeeping import CheckpointMove
from shmcache.database.connection import sync_pipeline
from shmcache.database.ownership import lost as lost_rows
from shmcache.database.ownership import own
from shmcache.writes import GraphExecutionWrite, Write, WriteKind
from syncer.announcer import Announcer
from syncer.consumer import RingConsumer, one_line
from syncer.definition_changes import DefinitionChanges
from syncer.entries import read_write
from syncer.host_lease import HostLease
from syncer.listening import listen_url
from syncer.partition_keeper import PartitionKeeper
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
        self._definitions: DefinitionChanges | None = None
        self._announcer = Announcer(arena.arena_id)
        self._lease: HostLease | None = None
        self._partitions: PartitionKeeper | None = None
        self._was_robbed = False

    def _begin(self) -> None:
        logger.info("Sync manager started")
        self._arena.count(Counter.LEADERS)
        self._announcer = Announcer(self._arena.arena_id)
        if self._is_staying:
            self._definitions = DefinitionChanges(
                self._arena, listen_url(self._database_url, self._settings), self._settings.definition_interval
            )
            self._lease = HostLease(self._arena, self._database_url, self._settings)
            self._partitions = PartitionKeeper(
                self._database_url, self._settings.retention_days, self._settings.ledger_retention_days
            )

    def _end(self) -> None:
        self._tell(now=True)
        logger.info("Sync manager stopped")

    def _let_go(self) -> None:
        for each in (self._definitions, self._lease, self._partitions):
            if each is not None:
                each.stop()
        self._definitions = self._lease = self._partitions = None
        super()._let_go()

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
            written = (
                not self._was_robbed and batch.prepared is not None and self._write_whole(batch, batch.prepared, epoch)
            )
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
        self._announcer.note(batch[-1].sequence, _graph_executions(batch.rows))
        self._tell()

    def _look_around(self) -> bool:
        self._tell()
        return False

    def _next_look_seconds(self) -> float:
        due = self._announcer.due_in()
        return self._interval_seconds if due is None else min(due, self._interval_seconds)

    def _tell(self, now: bool = False) -> None:
        """Tell readers on other machines what was written, if there is something and it is time."""
        due = self._announcer.due_in()
        if due is None or (due and not now) or self._connection is None or self._connection.closed:
            return
        try:
            self._announcer.tell(self._connection)
        except psycopg.Error as error:
            logger.debug("readers are told later: %s", one_line(error))
            self._disconnect()

    def _write_whole(self, batch: _Batch, prepared: Sequence[PreparedStatement], epoch: int) -> bool:
        """Write a batch in one transaction; return False, with nothing done, if some of it is written already, or some
        may be of graph executions that others have taken.

        Raises Fenced, psycopg.Error."""
        connection = self._connected()
        with connection.transaction() as transaction:
            with connection.pipeline() as pipeline:
                # The checkpoint first: its row's lock keeps a successor's epoch out until this commit is decided.
                move = CheckpointMove(connection, self._arena.arena_id, self._ring.name, epoch, batch[-1].sequence)
                send_batch(connection, prepared)
                own(connection, self._arena.arena_id, _graph_executions(batch.rows))
                sync_pipeline(connection, pipeline, lambda: self._read_ahead(batch))
            self._was_robbed = move.taken()
            if self._was_robbed or move.before() > batch.after:
                raise Rollback(transaction)
            for entry, reason in batch.broken:
                self._add_dead_letter(entry, reason)
            return True
        return False

    def _own_rows(self, rows: Sequence[_Row], refuse: Callable[[_Row, Exception], None]) -> list[_Row]:
        """Return the rows that are this host's to write; refuse the others. Inside the transaction that has moved the
        checkpoint."""
        lost = lost_rows(self._connected(), self._arena.arena_id, [(entry.sequence, row) for entry, row in rows])
        own_rows = []
        for row in rows:
            reason = lost.get(row[0].sequence)
            if reason is None:
                own_rows.append(row)
            else:
                refuse(row, reason)
        if lost and self._lease is not None:
            self._lease.note_lost({reason.graph_exec_id for reason in lost.values()})
        return own_rows

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
            rows = [row for row in batch.rows if row[0].sequence > before]
            if move.taken():
                rows = self._own_rows(rows, refuse)
            write_around_refusals(rows, write, refuse)
            own(connection, self._arena.arena_id, _graph_executions(rows))
            for entry, reason in batch.broken:
                if entry.sequence > before:
                    self._add_dead_letter(entry, reason)
        return refused


def _graph_executions(rows: Sequence[_Row]) -> set[str]:
    return {row.id for _, row in rows if isinstance(row, GraphExecutionWrite)}
