"""ChargePool: carries the charge ring to the ledger, through a pool of processes.

    1  read      charges behind the checkpoint                                    death: nothing had happened
    2  settle    the pool's processes, each for its part of the users (so that    death of one: the pool is replaced and
                 one user's charges stay in order and nobody waits for a row),    the batch tried again; charges that
                 one transaction each                                             were settled are known by their keys
    3  confirm   checkpoint and epoch, in the charger's own connection            death: as above
    4  advance   the ring's head moves                                            death: the next charger moves it

Several processes commit, so rows and checkpoint are not one transaction here: a death between 2 and 3 settles charges
again. The unique key of each charge makes the repetition harmless, and it is all that makes it so.

The pool's processes are spawned, not forked: a child forked from the leader would inherit the descriptor that holds the
lock file, and the threads that a pool needs would make forking unsafe. The kernel kills them when the charger dies.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import ModuleType

import msgpack

from shmcache.arena import Arena, Counter, Entry
from shmcache.config import Settings
from shmcache.database.bookkeeping import move_checkpoint
from shmcache.writes import Charge, ChargeKind
from syncer import settlement_worker
from syncer.consumer import RingConsumer, ShouldStop
from syncer.settlement_worker import Item

logger = logging.getLogger(__name__)

_BATCH_ENTRIES = 5_000
_BATCH_BYTES = 4 << 20
_HANG_SECONDS = 60.0
_INTERVAL_SECONDS = 1.0


class ChargePool(RingConsumer):
    """Drains an arena's charge ring into a pool of processes, while it leads.

    A batch that is not settled after `hang_seconds` is tried again by a new pool."""

    role = "charger"
    passing = (*RingConsumer.passing, BrokenProcessPool, TimeoutError)

    def __init__(
        self, arena: Arena, database_url: str, settings: Settings, *, hang_seconds: float = _HANG_SECONDS
    ) -> None:
        super().__init__(
            arena, arena.charge_ring, database_url, settings,
            interval_seconds=min(_INTERVAL_SECONDS, settings.sync_interval),
            batch_entries=_BATCH_ENTRIES, batch_bytes=_BATCH_BYTES,
        )  # fmt: skip
        self._hang_seconds = hang_seconds
        self._pool: ProcessPoolExecutor | None = None

    def _begin(self) -> None:
        logger.info("Charge manager started")
        with _nameless_main_module():
            pool = self._pool = self._make_pool()
            for _ in range(self._settings.charge_workers):
                pool.submit(os.getpid)  # brings the processes up before the first charge waits for them

    def _end(self) -> None:
        logger.info("Charge manager shutdown")

    def _let_go(self) -> None:
        self._end_pool()
        super()._let_go()

    def _carry(self, entries: Sequence[Entry], epoch: int) -> None:
        partitions, broken = _partition(entries, self._settings.charge_workers)
        refused = self._settle(list(partitions.values()))
        connection = self._connected()
        with connection.transaction():
            last = entries[-1].sequence
            if not move_checkpoint(connection, self._arena.arena_id, self._ring.name, epoch, last):
                return
            for entry, reason in broken:
                self._add_dead_letter(entry, reason)
        self._arena.count(Counter.CHARGES_SETTLED, len(entries) - refused - len(broken))
        self._arena.count(Counter.DEAD_LETTERS, refused + len(broken))

    def _settle(self, partitions: Sequence[Sequence[Item]]) -> int:
        """Have the pool settle each partition; return how many charges were refused.

        Raises BrokenProcessPool, TimeoutError, psycopg.Error."""
        with _nameless_main_module():
            pool = self._pool = self._pool or self._make_pool()
            futures: list[Future[int]] = [
                pool.submit(settlement_worker.settle_partition, self._arena.arena_id, self._ring.name, items)
                for items in partitions
            ]
        _, unfinished = wait(futures, timeout=self._hang_seconds)
        if unfinished:
            raise TimeoutError(f"a batch of charges is not settled after {self._hang_seconds:g} s")
        return sum(future.result() for future in futures)

    def _wait_after(self, error: Exception, should_stop: ShouldStop) -> bool:
        if isinstance(error, (BrokenProcessPool, TimeoutError)):
            logger.warning("a process of the charge pool died or hangs: a new pool tries the batch again")
            self._arena.count(Counter.POOL_REPLACED)
            self._end_pool(kill=True)
        return super()._wait_after(error, should_stop)

    def _make_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=self._settings.charge_workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=settlement_worker.start,
            initargs=(self._database_url, os.getpid()),
        )

    def _end_pool(self, kill: bool = False) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            if kill:
                for process in list((pool._processes or {}).values()):
                    process.kill()  # each transaction is whole or not at all, and its charges have keys
            pool.shutdown(wait=True, cancel_futures=True)


def _partition(entries: Sequence[Entry], parts: int) -> tuple[dict[int, list[Item]], list[tuple[Entry, Exception]]]:
    """Return the charges by the part that their user belongs to, and what cannot be read, with the reason."""
    partitions: dict[int, list[Item]] = {}
    broken: list[tuple[Entry, Exception]] = []
    for entry in entries:
        try:
            if not entry.intact:
                raise ValueError("the entry's checksum does not match its bytes")
            if entry.kind != ChargeKind.CHARGE:
                raise ValueError(f"no kind of entry is numbered {entry.kind}")
            charge = Charge(*msgpack.unpackb(entry.payload))
            part = zlib.crc32(charge.user_id.encode()) % parts
        except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
            broken.append((entry, error))
        else:
            partitions.setdefault(part, []).append((entry.sequence, entry.kind, entry.payload, charge))
    return partitions, broken


@contextmanager
def _nameless_main_module() -> Iterator[None]:
    """Keep spawned processes from importing this program's main module, and all that the command line imports."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
