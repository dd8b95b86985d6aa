"""SyncManager: carries the write ring to PostgreSQL, exactly once, in order.

    1  read    entries behind the checkpoint; the ring is not held          death: nothing had happened
    2  write   rows, checkpoint and the check of the epoch, one transaction death: the server rolls it back
    3  commit                                                               death: the next leader starts behind it
    4  advance the ring's head moves                                        death: the next leader moves it

A transient error (connection, deadlock, shutdown, full disk) repeats from 1 with growing waits, for ever. What the
database refuses is cut out by bisection and kept in `dead_letters`, in the same transaction. A leader whose epoch is
over writes nothing, and stands for election again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgpack
import psycopg

from shmcache.arena import Arena, Counter, Entry
from shmcache.config import Settings
from shmcache.database.batches import write_batch
from shmcache.database.bookkeeping import add_dead_letter, begin_epoch, move_checkpoint
from shmcache.database.connection import connect
from shmcache.errors import DatabaseUnavailable, Fenced
from shmcache.writes import WRITE_TYPES, Write, WriteKind
from syncer.backoff import Backoff
from syncer.election import Candidate
from syncer.refusals import write_around_refusals

logger = logging.getLogger(__name__)

_BATCH_ENTRIES = 20_000
_BATCH_BYTES = 8 << 20


class _Decoded(NamedTuple):
    entry: Entry
    write: Write


class SyncManager:
    """Drains an arena's write ring, while it leads; waits for its turn while another one does."""

    def __init__(self, arena: Arena, database_url: str, settings: Settings) -> None:
        self._arena = arena
        self._ring = arena.write_ring
        self._database_url = database_url
        self._settings = settings
        self._connection: psycopg.Connection[Any] | None = None
        self._backoff = Backoff()

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Stand for election, lead, drain every `sync_interval` or when asked to; on `should_stop` drain once more."""
        candidate = Candidate(self._settings.state_dir, self._arena.name, "syncer")
        while candidate.wait(should_stop):
            try:
                self._lead(should_stop)
                return
            except Fenced as error:
                logger.warning("%s", error)
            finally:
                self._disconnect()
                candidate.leave()

    def run_once(self) -> None:
        """Stand for election, drain what is on the ring, leave. Gives up where the database stays away."""
        waiting = True

        def leading_is_enough() -> bool:
            return not waiting

        candidate = Candidate(self._settings.state_dir, self._arena.name, "syncer")
        candidate.wait(leading_is_enough)
        waiting = False
        try:
            self._lead(leading_is_enough)
        finally:
            self._disconnect()
            candidate.leave()

    def _lead(self, should_stop: Callable[[], bool]) -> None:
        logger.info("Sync manager started")
        self._arena.count(Counter.LEADERS)
        checkpoint = None
        while checkpoint is None:
            checkpoint = self._patiently(
                lambda connection: begin_epoch(connection, self._arena.arena_id, self._ring.name), should_stop
            )
            if checkpoint is None and should_stop():
                return
        epoch, sequence = checkpoint
        self._ring.advance(sequence)
        while True:
            stopping = should_stop()
            sequence = self.drain(epoch, sequence, should_stop)
            if stopping:
                break
            self._ring.wait_for_drain(self._settings.sync_interval, should_stop)
        logger.info("Sync manager stopped")

    def drain(self, epoch: int, sequence: int, should_stop: Callable[[], bool]) -> int:
        """Write all that is on the ring behind `sequence`; return the sequence reached. Raises Fenced."""
        while True:
            entries = self._ring.read(sequence, _BATCH_ENTRIES, _BATCH_BYTES)
            if not entries:
                return sequence
            reached = self._patiently(lambda connection: self._write(connection, entries, epoch), should_stop)  # noqa: B023
            if reached is None:
                return sequence
            sequence = reached
            self._ring.advance(sequence)

    def _write(self, connection: psycopg.Connection[Any], entries: Sequence[Entry], epoch: int) -> int:
        decoded, broken = _decode(entries)
        refused = 0

        def refuse(item: _Decoded, error: psycopg.Error) -> None:
            nonlocal refused
            refused += 1
            self._add_dead_letter(connection, item.entry, error)

        def write(items: Sequence[_Decoded]) -> None:
            with connection.transaction():
                write_batch(connection, [item.write for item in items])

        with connection.transaction():
            # The checkpoint first: its row's lock keeps a successor's epoch out until this commit is decided.
            last = entries[-1].sequence
            if not move_checkpoint(connection, self._arena.arena_id, self._ring.name, epoch, last):
                return last  # the commit had gone through when the connection was lost
            if decoded:
                write_around_refusals(decoded, write, refuse)
            for entry, error in broken:
                self._add_dead_letter(connection, entry, error)
        outputs = sum(item.entry.kind == WriteKind.OUTPUT for item in decoded)
        statuses = sum(item.entry.kind == WriteKind.NODE_EXECUTION for item in decoded)
        count = self._arena.count
        count(Counter.BATCHES)
        count(Counter.SYNCED_OUTPUTS, outputs)
        count(Counter.SYNCED_STATUSES, statuses)
        count(Counter.DEAD_LETTERS, refused + len(broken))
        logger.info("Synced %d outputs and %d statuses", outputs, statuses)
        return entries[-1].sequence

    def _add_dead_letter(self, connection: psycopg.Connection[Any], entry: Entry, error: BaseException) -> None:
        logger.error("dead letter: entry %d of the %s ring: %s", entry.sequence, self._ring.name, error)
        add_dead_letter(
            connection, self._arena.arena_id, self._ring.name, entry.sequence, entry.kind, entry.payload, error
        )

    def _patiently(self, action: Callable[[psycopg.Connection[Any]], Any], should_stop: Callable[[], bool]) -> Any:
        """Do something with the database, repeated until it succeeds; None if asked to stop while it is away."""
        while True:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = connect(self._database_url, application_name="shmcache syncer")
                result = action(self._connection)
            except (psycopg.Error, DatabaseUnavailable) as error:
                self._disconnect()
                self._arena.count(Counter.RETRIES)
                if not self._backoff.tries:
                    logger.warning("the database does not take a batch, trying again: %s", " ".join(str(error).split()))
                if should_stop() and self._backoff.tries >= _TRIES_WHEN_STOPPING:
                    return None
                threading.Event().wait(self._backoff.next_seconds())
            else:
                self._backoff.reset()
                return result

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


_TRIES_WHEN_STOPPING = 8


def _decode(entries: Sequence[Entry]) -> tuple[list[_Decoded], list[tuple[Entry, BaseException]]]:
    """Return the entries that can be read, as rows, and those that cannot, with the reason."""
    decoded: list[_Decoded] = []
    broken: list[tuple[Entry, BaseException]] = []
    for entry in entries:
        try:
            if not entry.intact:
                raise ValueError("the entry's checksum does not match its bytes")
            decoded.append(_Decoded(entry, WRITE_TYPES[entry.kind](*msgpack.unpackb(entry.payload))))
        except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
            broken.append((entry, error))
    return decoded, broken
