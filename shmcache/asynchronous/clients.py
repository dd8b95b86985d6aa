"""The two asynchronous clients: over the cached client, and over the direct one.

    CachedAsyncClient     1 the call is made on the loop, where it must not wait: hits, and nearly all writes, end here
                          2 if it would have to, nothing has happened: a thread makes it again, from the beginning
                          3 what was to be durable is waited for afterwards, by a task that holds nothing

    DirectAsyncClient     every call in a thread, each of which has a connection of its own

Both take work on the loop: a claim is never on its way between a thread and a task that may be gone.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar, TypeVarTuple, cast

from shmcache.arena import Arena, Ring, Transaction
from shmcache.arena.transaction import Outcome
from shmcache.asynchronous.errands import Errands
from shmcache.asynchronous.execution_data_client import AsyncExecutionDataClient
from shmcache.asynchronous.watch import Watch
from shmcache.cached_client import CachedClient
from shmcache.direct_client import DirectClient
from shmcache.errors import FlushTimeout, InvalidValue
from shmcache.execution_data_client import ExecutionDataClient, Work, WorkKind
from shmcache.identifiers import id_text
from shmcache.patience import HURRIED, Errand, WouldWait, patience

T = TypeVar("T")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")

_CACHED_THREADS = 32
_DIRECT_THREADS = 4


class _Owed(NamedTuple):
    """What a call leaves to be carried to the database: how far on each ring, and whether to wait until it is there."""

    write_sequence: int
    charge_sequence: int
    durable: bool


class _OfThisThread(threading.local):
    owed: _Owed | None = None
    write_sequence = 0
    charge_sequence = 0


class _Unwaiting(CachedClient):
    """The cached client of this process, but what it would wait for after a commit, it notes as owed.

    It shares all that the other has: what is decoded, the connection, transactions, receipts."""

    def __init__(self, shared: CachedClient, noted: _OfThisThread) -> None:
        super().__init__(shared._arena, "", shared._settings)
        charges = self._charges  # it waits as we do
        self.__dict__.update(shared.__dict__)
        self._charges = charges
        self._shared = shared
        self._noted = noted

    def _note_receipt(self, outcome: Outcome) -> None:
        super()._note_receipt(outcome)
        noted = self._noted
        noted.write_sequence = outcome.write_sequence or noted.write_sequence
        noted.charge_sequence = outcome.charge_sequence or noted.charge_sequence

    def _carry_now(self, outcome: Outcome | None, durable: bool) -> None:
        self._noted.owed = _Owed(
            outcome.write_sequence if outcome else self._arena.write_ring.last_sequence,
            outcome.charge_sequence if outcome else self._arena.charge_ring.last_sequence,
            durable,
        )

    def _wait_settled(self) -> None:
        self._noted.owed = _Owed(0, max(list(self._charge_sequences.values()), default=0), durable=True)

    def _now(self) -> float:
        return self._shared._now()  # so that no two writes of this process have one time


class _Guarded:
    """The arena as an errand has it: who has given the errand up is sure that it commits nothing any more."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def __getattr__(self, name: str) -> Any:
        return getattr(self._arena, name)

    def commit(self, wanted: Transaction) -> Outcome:
        errand = patience.of_this_thread
        if wanted.evictions is not None or not isinstance(errand, Errand):
            return self._arena.commit(wanted)  # a fill: nobody asked for it, it may come late
        errand.begin()
        try:
            return self._arena.commit(wanted)
        except BaseException:
            errand.relent()
            raise


class _OverArena(AsyncExecutionDataClient):
    """What both have of the arena: its work queue, its commit lock, threads."""

    def __init__(self, client: ExecutionDataClient, arena: Arena, threads: int) -> None:
        super().__init__(client)
        self._arena = arena
        self._errands = Errands(threads)
        self._work_watch = Watch("shmcache work watch", arena.work_signal, arena.wait_for_signal, arena.nudge)

    def stop(self) -> None:
        """End all threads, and wait for their end: nothing of this client uses the arena any more."""
        self._work_watch.stop()
        self._errands.stop()

    async def _close(self) -> None:
        await asyncio.to_thread(self.stop)

    async def _hurry(self, work: Callable[[], T]) -> T:
        """Do what takes the commit lock and waits for nothing else; while another has it, a thread waits."""
        while True:
            patience.of_this_thread = HURRIED
            try:
                return work()
            except WouldWait:
                pass
            finally:
                patience.of_this_thread = None
            await self._errands.run(self._arena.wait_for_lock)

    async def _take_work(self, timeout_seconds: float) -> Work | None:
        arena = self._arena
        deadline = time.monotonic() + timeout_seconds
        while True:
            # Claimed on the loop and returned without another await: no claim is lost with a task.
            claim = await self._hurry(lambda: arena.take_work(0.0))
            if claim is not None:
                return Work(WorkKind(claim.kind), id_text(claim.key), claim.attempt)
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            await self._work_watch.until(arena.has_work, left)


class CachedAsyncClient(_OverArena):
    """The asynchronous client over an arena, beside the synchronous one, with which it shares everything."""

    def __init__(self, shared: CachedClient) -> None:
        self._shared = shared
        self._noted = _OfThisThread()
        self._here = _Unwaiting(shared, self._noted)
        super().__init__(self._here, shared._arena, _CACHED_THREADS)
        self._elsewhere = _Unwaiting(shared, self._noted)
        self._elsewhere._arena = cast("Arena", _Guarded(self._arena))
        self._write_watch = _watch_ring(self._arena.write_ring)
        self._charge_watch = _watch_ring(self._arena.charge_ring)

    def _inside(self) -> ExecutionDataClient:
        return self._here if patience.of_this_thread is HURRIED else self._elsewhere

    async def _run(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        patience.of_this_thread = HURRIED
        try:
            return call(*arguments)
        except WouldWait:
            pass
        finally:
            patience.of_this_thread = None
        return (await self._run_elsewhere(call, arguments, {}))[0]

    async def _run_and_carry(self, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        noted = self._noted
        noted.owed = None
        patience.of_this_thread = HURRIED
        try:
            result = call(*arguments, **options)
        except WouldWait:
            has_ended = False
        else:
            has_ended = True
            owed = noted.owed
        finally:
            patience.of_this_thread = None
        if not has_ended:
            result, owed = await self._run_elsewhere(call, arguments, options)
        if owed is not None:
            await self._carry(owed)
        return result

    async def _run_elsewhere(
        self, call: Callable[..., T], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[T, _Owed | None]:
        """Make a call in a thread, from its beginning; return its result and what it owes."""
        noted = self._noted
        method: Callable[..., T] = getattr(self._elsewhere, call.__name__)

        def work() -> tuple[T, _Owed | None, int, int]:
            noted.owed, noted.write_sequence, noted.charge_sequence = None, 0, 0
            result = method(*arguments, **options)
            return result, noted.owed, noted.write_sequence, noted.charge_sequence

        result, owed, write_sequence, charge_sequence = await self._errands.run(work)
        # What this task wrote, this thread wrote: `last_sequence` is of the thread of the loop.
        thread = threading.get_ident()
        for sequences, sequence in (
            (self._shared._write_sequences, write_sequence),
            (self._shared._charge_sequences, charge_sequence),
        ):
            sequences[thread] = max(sequences.get(thread, 0), sequence)
        return result, owed

    async def _carry(self, owed: _Owed) -> None:
        for ring, watch, wanted in (
            (self._arena.write_ring, self._write_watch, owed.write_sequence),
            (self._arena.charge_ring, self._charge_watch, owed.charge_sequence),
        ):
            if ring.committed_sequence < wanted:
                await self._hurry(ring.request_drain)
                if owed.durable:
                    await watch.until(_is_committed(ring, wanted), None)

    async def _wait_durable(self, sequence: int, timeout_seconds: float | None) -> None:
        ring = self._arena.write_ring
        newest = ring.last_sequence
        if sequence > newest:
            raise InvalidValue(f"no write has the sequence {sequence} yet: the newest is {newest}")
        await self._await(ring, self._write_watch, sequence, timeout_seconds, time.monotonic())

    async def _flush(self, timeout_seconds: float | None) -> None:
        started = time.monotonic()
        for ring, watch, sequences in (
            (self._arena.write_ring, self._write_watch, self._shared._write_sequences),
            (self._arena.charge_ring, self._charge_watch, self._shared._charge_sequences),
        ):
            left = None if timeout_seconds is None else max(0.0, started + timeout_seconds - time.monotonic())
            await self._await(ring, watch, max(list(sequences.values()), default=0), left, started)

    async def _await(
        self, ring: Ring, watch: Watch, wanted: int, timeout_seconds: float | None, started: float
    ) -> None:
        """Have a ring drained and wait until it is, up to a sequence. Raises FlushTimeout."""
        if ring.committed_sequence >= wanted:
            return
        await self._hurry(ring.request_drain)
        if not await watch.until(_is_committed(ring, wanted), timeout_seconds):
            raise FlushTimeout(ring.name, ring.committed_sequence, wanted, time.monotonic() - started)

    def stop(self) -> None:
        """End all threads, close the connection. The arena stays attached: it belongs to the process."""
        self._write_watch.stop()
        self._charge_watch.stop()
        super().stop()
        self._shared.close()


class DirectAsyncClient(_OverArena):
    """The asynchronous client without an arena for its data: every call in a thread, with that thread's connection.

    A call that was cancelled is waited for: it is the database that decides when it ends."""

    def __init__(self, make: Callable[[], DirectClient], arena: Arena) -> None:
        super().__init__(make(), arena, _DIRECT_THREADS)
        self._make = make
        self._clients = threading.local()
        self._made: list[DirectClient] = []

    def _inside(self) -> ExecutionDataClient:
        return self._of_this_thread()

    def _of_this_thread(self) -> DirectClient:
        client: DirectClient | None = getattr(self._clients, "client", None)
        if client is None:
            client = self._clients.client = self._make()
            self._made.append(client)
        return client

    async def _run(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await self._ask(call, arguments, {})

    async def _run_and_carry(self, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        return await self._ask(call, arguments, options)

    async def _ask(self, call: Callable[..., T], arguments: tuple[Any, ...], options: dict[str, Any]) -> T:
        def work() -> T:
            result: T = getattr(self._of_this_thread(), call.__name__)(*arguments, **options)
            return result

        return await self._errands.run(work, at_once=True)

    async def _wait_durable(self, sequence: int, timeout_seconds: float | None) -> None:
        """Everything is committed already."""

    async def _flush(self, timeout_seconds: float | None) -> None:
        """Everything is committed already."""

    def stop(self) -> None:
        """End all threads, close their connections."""
        super().stop()
        made, self._made, self._clients = self._made, [], threading.local()
        for client in made:
            client.close()


def _watch_ring(ring: Ring) -> Watch:
    return Watch(f"shmcache {ring.name} watch", lambda: ring.committed_sequence, ring.wait_for_advance, ring.nudge)


def _is_committed(ring: Ring, wanted: int) -> Callable[[], bool]:
    return lambda: ring.committed_sequence >= wanted
