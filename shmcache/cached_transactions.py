"""What a client over the arena does with what it writes: one transaction at a time, its receipt, and work.

Every write is a small transaction on the arena (`Pending`, then `Arena.commit`): it changes records and appends the
rows to the write ring, both or neither. What it read is checked in the commit; if another process was faster, it runs
again. So no lock is held while anything is thought about, and a process that dies anywhere leaves nothing half done.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

from shmcache.account_keys import part_key
from shmcache.arena import Arena, Conflict, Counter, CounterTooLow, Ring
from shmcache.arena.transaction import (
    Enqueue,
    Outcome,
    Release,
)
from shmcache.backing_store import BackingStore
from shmcache.config import Settings
from shmcache.errors import FlushTimeout, InsufficientBalanceError, InvalidValue
from shmcache.execution_data_client import ExecutionDataClient, Work, WorkKind
from shmcache.identifiers import id_bytes, id_text
from shmcache.pending import Pending
from shmcache.record_store import RecordStore
from shmcache.simple_cache import SimpleExecutorCache

T = TypeVar("T")


class CachedTransactions(ExecutionDataClient):
    """The part of the cached client that commits, waits and takes work."""

    def __init__(self, arena: Arena, database_url: str, settings: Settings) -> None:
        self._arena = arena
        self._settings = settings
        self._cache = SimpleExecutorCache(arena, settings.decoded_records)
        self._backing = BackingStore(database_url, lambda: arena.count(Counter.BLOCKING_DB_OPERATIONS))
        self._records = RecordStore(arena, self._cache, self._backing)
        self._last_time = 0
        # The last sequence of each thread, by its number, on each ring.
        self._write_sequences: dict[int, int] = {}
        self._charge_sequences: dict[int, int] = {}

    @abstractmethod
    def _refused(self, user_id: str, graph_exec_id: str | None, balance: int, amount: int) -> InsufficientBalanceError:
        """Leave a notice that a charge was refused; return what to raise."""

    @abstractmethod
    def _lease_more(self, user_id: str, amount: int) -> bool:
        """Lease so much of an account that an amount can be held; return whether it can be."""

    def atomically(self, work: Callable[[], T], *, durable: bool = False, urgent: bool = False) -> T:
        """See ExecutionDataClient."""
        pending = self._records.at_hand.pending
        if pending is not None:
            pending.durable |= durable
            pending.urgent |= urgent
            return work()
        conflicts = 0
        while True:
            pending = self._records.at_hand.pending = Pending(durable, urgent, conflicts)
            outcome = None
            try:
                result = work()
                if not pending.is_empty():
                    wanted = pending.build()
                    wanted.time = self._last_time
                    outcome = self._arena.commit(wanted)
                    self._note_receipt(outcome)
                    for (identifier, record), (entry, version) in zip(pending.written, outcome.written, strict=False):
                        self._cache.keep(identifier, entry, version, record)
                break
            except Conflict:
                conflicts += 1
                continue
            except CounterTooLow as error:
                refused = error
            finally:
                self._records.at_hand.pending = None
            user_id = next((user for user in pending.charged if part_key(user) == refused.key), "")
            if user_id and self._lease_more(user_id, pending.charged[user_id]):
                conflicts += 1
                continue
            user_id = user_id or id_text(refused.key)
            raise self._refused(
                user_id, pending.charged_for.get(user_id), refused.value, pending.charged.get(user_id, 0)
            )
        if pending.durable or pending.urgent:
            self._carry_now(outcome, pending.durable)
        return result

    def _note_receipt(self, outcome: Outcome) -> None:
        """Remember how far this thread's writes reach on the rings: one place a thread, so that no lock is needed."""
        if outcome.write_sequence:
            self._write_sequences[threading.get_ident()] = outcome.write_sequence
        if outcome.charge_sequence:
            self._charge_sequences[threading.get_ident()] = outcome.charge_sequence

    def _carry_now(self, outcome: Outcome | None, durable: bool) -> None:
        """Have what was committed just now carried to the database; `durable`: wait until it is there.

        Where nothing was to be written, that is what is on the rings by now, whoever wrote it."""
        write_ring, charge_ring = self._arena.write_ring, self._arena.charge_ring
        for ring, wanted in (
            (write_ring, outcome.write_sequence if outcome else write_ring.last_sequence),
            (charge_ring, outcome.charge_sequence if outcome else charge_ring.last_sequence),
        ):
            if ring.committed_sequence < wanted:
                ring.request_drain()
                if durable:
                    ring.wait_committed(wanted, None)

    def put_work(self, kind: WorkKind, identifier: str, graph_exec_id: str) -> None:
        """See ExecutionDataClient."""
        enqueue = Enqueue(id_bytes(identifier), kind, id_bytes(graph_exec_id))
        self.atomically(lambda: self._records.writing().others.append(enqueue))

    def take_work(self, timeout_seconds: float) -> Work | None:
        """See ExecutionDataClient."""
        claim = self._arena.take_work(timeout_seconds)
        return claim and Work(WorkKind(claim.kind), id_text(claim.key), claim.attempt)

    def end_work(self, work: Work, graph_exec_id: str) -> None:
        """See ExecutionDataClient."""
        follow = 0 if work.kind is WorkKind.FINISH else WorkKind.FINISH
        release = Release(id_bytes(work.id), id_bytes(graph_exec_id), follow)
        self.atomically(lambda: self._records.writing().others.append(release))
        self._arena.count(Counter.NODE_RUNS, work.kind is WorkKind.RUN)
        self._cache.report_often()

    def flush(self, timeout_seconds: float | None = None) -> None:
        """See ExecutionDataClient."""
        started = time.monotonic()
        for ring, sequences in (
            (self._arena.write_ring, self._write_sequences),
            (self._arena.charge_ring, self._charge_sequences),
        ):
            left = None if timeout_seconds is None else max(0.0, started + timeout_seconds - time.monotonic())
            _await(self._arena, ring, max(list(sequences.values()), default=0), left, started)

    @property
    def last_sequence(self) -> int:
        """See ExecutionDataClient."""
        return self._write_sequences.get(threading.get_ident(), 0)

    @property
    def watermark(self) -> str:
        """See ExecutionDataClient."""
        thread = threading.get_ident()
        write, charge = self._write_sequences.get(thread, 0), self._charge_sequences.get(thread, 0)
        return f"{self._arena.arena_id}:{write}:{charge}" if write or charge else ""

    def wait_durable(self, sequence: int, timeout_seconds: float | None = None) -> None:
        """See ExecutionDataClient."""
        newest = self._arena.write_ring.last_sequence
        if sequence > newest:
            raise InvalidValue(
                f"no write has the sequence {sequence} yet: the newest is {newest}; pass what last_sequence was"
            ).of(self._arena.name)
        _await(self._arena, self._arena.write_ring, sequence, timeout_seconds, time.monotonic())

    def _wait_settled(self) -> None:
        sequence = self._charge_sequences.get(threading.get_ident(), 0)
        _await(self._arena, self._arena.charge_ring, sequence, None, time.monotonic())

    def close(self) -> None:
        """See ExecutionDataClient. The arena stays attached: it belongs to the process."""
        self._backing.close()

    def _now(self) -> float:
        """Return the time in whole microseconds, as PostgreSQL keeps it, later than any in what was written before."""
        self._last_time = now = self._arena.time_after(self._last_time)
        return now / 1e6


def _await(arena: Arena, ring: Ring, wanted: int, timeout_seconds: float | None, started: float) -> None:
    """Have a ring drained and wait until it is, up to a sequence. Raises FlushTimeout."""
    if ring.committed_sequence >= wanted:
        return
    ring.request_drain()
    if not ring.wait_committed(wanted, timeout_seconds):
        late = FlushTimeout(ring.name, ring.committed_sequence, wanted, time.monotonic() - started)
        raise late.of(arena.name)
