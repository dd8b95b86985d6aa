"""ChargePool: carries the charge ring to the ledger, through a pool of processes.

    1  read      charges behind the checkpoint                                    death: nothing had happened
    2  settle    the pool's processes, each for its part of the users (so that    death of one: the pool is replaced
    and the
                 one user's charges stay in order and nobody waits for a row),    batch tried again; charges that were
                 one transaction each                                             settled are known by their keys
    3  confirm   checkpoint and epoch, in the charger's own connection            death: as above
    4  advance   the ring's head moves                                            death: the next charger moves it

Several processes commit, so rows and checkpoint are not one transaction here; the unique key of each charge makes the
repetition harmless, and it is all that makes it so. The pool's processes are spawned, not forked: a child forked from
the leader would inherit the descriptor that holds the lock file.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import msgpack
import psycopg

from shmcache.arena import Arena, Counter, Entry
from shmcache.config import Settings
from shmcache.database.bookkeeping import Checkpoint, add_dead_letter, begin_epoch, move_checkpoint
from shmcache.database.connection import connect
from shmcache.errors import DatabaseUnavailable, Fenced
from shmcache.writes import Charge
from syncer import settlement_worker
from syncer.backoff import Backoff
from syncer.election import Candidate

logger = logging.getLogger(__name__)

_BATCH_ENTRIES = 5_000
_BATCH_BYTES = 4 << 20
_HANG_SECONDS = 60.0
_INTERVAL_SECONDS = 1.0


class ChargePool:
    """Drains an arena's charge ring into a pool of processes, while it leads."""

    def __init__(self, arena: Arena, database_url: str, settings: Settings) -> None:
        self._arena = arena
        self._ring = arena.charge_ring
        self._database_url = database_url
        self._settings = settings
        self._backoff = Backoff()
        self._pool: ProcessPoolExecutor | None = None

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Stand for election, lead, settle what comes; on `should_stop` settle what is there and end the pool."""
        candidate = Candidate(self._settings.state_dir, self._arena.name, "charger")
        while candidate.wait(should_stop):
            try:
                self._lead(should_stop)
                logger.info("Charge manager shutdown")
                return
            except Fenced as error:
                logger.warning("%s", error)
            finally:
                self._end_pool()
                candidate.leave()

    def run_once(self) -> None:
        """Stand for election, settle what is on the ring, leave. Gives up where the database stays away."""
        waiting = True

        def leading_is_enough() -> bool:
            return not waiting

        candidate = Candidate(self._settings.state_dir, self._arena.name, "charger")
        candidate.wait(leading_is_enough)
        waiting = False
        try:
            self._lead(leading_is_enough)
        finally:
            self._end_pool()
            candidate.leave()

    def _lead(self, should_stop: Callable[[], bool]) -> None:
        logger.info("Charge manager started")
        self._start_pool()
        begun: Checkpoint | None = self._patiently(self._begin, should_stop)
        if begun is None:
            return
        self._ring.advance(begun.sequence)
        sequence = begun.sequence
        while True:
            stopping = should_stop()
            while entries := self._ring.read(sequence, _BATCH_ENTRIES, _BATCH_BYTES):
                done = self._patiently(lambda: self._settle(entries, begun.epoch), should_stop)
                if done is None:
                    return
                sequence = entries[-1].sequence
                self._ring.advance(sequence)
            if stopping:
                return
            self._ring.wait_for_drain(min(_INTERVAL_SECONDS, self._settings.sync_interval), should_stop)

    def _begin(self) -> Checkpoint:
        with connect(self._database_url, application_name="shmcache charger") as connection:
            return begin_epoch(connection, self._arena.arena_id, self._ring.name)

    def _settle(self, entries: Sequence[Entry], epoch: int) -> bool:
        """Settle a batch and confirm it. Raises Fenced, psycopg.Error, BrokenProcessPool, TimeoutError."""
        partitions: dict[int, list[tuple[int, int, bytes, Charge]]] = {}
        broken: list[tuple[Entry, BaseException]] = []
        for entry in entries:
            try:
                if not entry.intact:
                    raise ValueError("the entry's checksum does not match its bytes")
                charge = Charge(*msgpack.unpackb(entry.payload))
            except (ValueError, TypeError, msgpack.UnpackException) as error:
                broken.append((entry, error))
                continue
            part = zlib.crc32(charge.user_id.encode()) % self._settings.charge_workers
            partitions.setdefault(part, []).append((entry.sequence, entry.kind, entry.payload, charge))
        pool = self._start_pool()
        futures: list[Future[int]] = [
            pool.submit(settlement_worker.settle_partition, self._arena.arena_id, self._ring.name, part)
            for part in partitions.values()
        ]
        _, unfinished = wait(futures, timeout=_HANG_SECONDS)
        if unfinished:
            raise TimeoutError
        refused = sum(future.result() for future in futures)
        with connect(self._database_url, application_name="shmcache charger") as connection, connection.transaction():
            last = entries[-1].sequence
            if move_checkpoint(connection, self._arena.arena_id, self._ring.name, epoch, last):
                for entry, reason in broken:
                    add_dead_letter(
                        connection, self._arena.arena_id, self._ring.name,
                        entry.sequence, entry.kind, entry.payload, reason,
                    )  # fmt: skip
        self._arena.count(Counter.CHARGES_SETTLED, len(entries) - refused - len(broken))
        self._arena.count(Counter.DEAD_LETTERS, refused + len(broken))
        return True

    def _patiently(self, action: Callable[[], Any], should_stop: Callable[[], bool]) -> Any:
        """Do something, repeated until it succeeds; None if asked to stop while the database is away."""
        while True:
            try:
                result = action()
            except (psycopg.Error, DatabaseUnavailable, BrokenProcessPool, TimeoutError) as error:
                if isinstance(error, (BrokenProcessPool, TimeoutError)):
                    logger.warning("a process of the charge pool died or hangs: a new pool tries the batch again")
                    self._arena.count(Counter.POOL_REPLACED)
                    self._end_pool()
                self._arena.count(Counter.RETRIES)
                if self._backoff.tries == 1:
                    logger.warning("charges are not settled yet, trying again: %s", " ".join(str(error).split()))
                if should_stop() and self._backoff.tries >= _TRIES_WHEN_STOPPING:
                    return None
                threading.Event().wait(self._backoff.next_seconds())
            else:
                self._backoff.reset()
                return result

    def _start_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                max_workers=self._settings.charge_workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=settlement_worker.start,
                initargs=(self._database_url, os.getpid()),
            )
            for _ in range(self._settings.charge_workers):
                self._pool.submit(os.getpid)  # brings the processes up before the first charge waits for them
        return self._pool

    def _end_pool(self) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            for process in list((pool._processes or {}).values()):
                process.kill()  # each transaction is whole or not at all, and its charges have keys
            pool.shutdown(wait=True, cancel_futures=True)


_TRIES_WHEN_STOPPING = 8
