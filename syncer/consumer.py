"""RingConsumer: how the leader over a ring works, whichever ring it is and wherever its entries go.

    1  stand     wait for the lock file                                        see `election`
    2  begin     raise the epoch, learn the checkpoint; move the head to it    (the last leader may have died before)
    3  read      entries behind the checkpoint; nothing is held on the ring    death: nothing had happened
    4  carry     entries and checkpoint into the database                      death: see the subclass
    5  advance   the ring's head moves                                         death: the next leader does it in step 2
    6  wait      until asked to drain, the ring is at its high-water mark, or the interval is over; then 3 again

What passes (a lost connection, a deadlock, a shutdown, a full disk) repeats from 3 for ever, with growing waits. How
large a batch may be follows from how long the last ones took (see `batch_limit`). Asked to stop, it drains what is on
the ring and ends; if the database is away then, it tries for some seconds more and leaves the rest where the next
leader finds it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from shmcache import tracing
from shmcache.arena import Arena, Counter, Entry, Ring
from shmcache.config import Settings
from shmcache.database.bookkeeping import (
    IDLE_SECONDS,
    TRANSACTION_SECONDS,
    Checkpoint,
    add_dead_letter,
    begin_epoch,
    limit_transactions,
)
from shmcache.database.connection import connect, is_pooled
from shmcache.errors import ArenaError, DatabaseUnavailable, Fenced
from syncer.backoff import Backoff
from syncer.batch_limit import BatchLimit
from syncer.election import Candidate
from syncer.measures import Measures

logger = logging.getLogger(__name__)

ShouldStop = Callable[[], bool]

_TURN_SECONDS = 0.1
_STOPPING_SECONDS = 10.0
_OUTAGE_LOG_SECONDS = 60.0
_COMMIT_SECONDS = 0.25
"""How long a commit may well take: a durable write, a write to a full ring, a new leader and a fenced one wait for
about so much, or twice."""
_IDLE_IN_TRANSACTION = f"-c idle_in_transaction_session_timeout={IDLE_SECONDS}s"


class RingConsumer(ABC):
    """Drains one ring of an arena while it leads; waits for its turn while another one does."""

    role: ClassVar[str]
    passing: ClassVar[tuple[type[Exception], ...]] = (psycopg.Error, DatabaseUnavailable)
    """Errors after which the same is tried again."""

    def __init__(
        self,
        arena: Arena,
        ring: Ring,
        database_url: str,
        settings: Settings,
        *,
        interval_seconds: float,
        batch_entries: int,
        batch_bytes: int,
    ) -> None:
        self._arena = arena
        self._ring = ring
        self._database_url = database_url
        self._settings = settings
        self._interval_seconds = interval_seconds
        self._limit = BatchLimit(batch_entries, batch_bytes, _COMMIT_SECONDS)
        self._measures = Measures(arena, ring.name)
        self._connection: psycopg.Connection[Any] | None = None
        self._backoff = Backoff()
        self._outage_logged_at = 0.0
        self._give_up_at: float | None = None
        self._abandon: ShouldStop = lambda: False
        self._is_staying = True
        self._looks = 0
        self._looks_turn = threading.Lock()
        self.on_batch: Callable[[], None] | None = None
        """Called after each batch that is in the database."""

    def run(self, should_stop: ShouldStop) -> None:
        """Stand for election, lead, drain at every interval or when asked to; on `should_stop` drain once more."""
        gc.freeze()  # batches make many small objects: what is here already need not be looked through each time
        candidate = Candidate(self._settings.state_dir, self._arena.name, self.role)
        while candidate.wait(should_stop):
            try:
                self._lead(should_stop)
                return
            except Fenced as error:
                logger.warning("%s", error)
            finally:
                self._let_go()
                candidate.leave()

    def run_once(self, should_stop: ShouldStop = lambda: False) -> None:
        """Stand for election, drain what is on the ring, leave; on `should_stop` leave after the batch at hand. Raises
        Fenced.

        Where the database stays away, the rest stays on the ring."""
        self._abandon = should_stop
        self._is_staying = False
        candidate = Candidate(self._settings.state_dir, self._arena.name, self.role)
        if candidate.wait(should_stop):
            try:
                self._lead(lambda: True)
            finally:
                self._let_go()
                candidate.leave()

    def _take(self, after: int) -> Sequence[Entry]:
        """Return the next batch: entries behind a sequence, within the limits; none if there are none."""
        return self._ring.read(after, self._limit.entries, self._limit.bytes)

    @abstractmethod
    def _carry(self, entries: Sequence[Entry], epoch: int) -> None:
        """Bring entries and the checkpoint behind them into the database. Raises Fenced, and what is `passing`."""

    @abstractmethod
    def _begin(self) -> None:
        """Do what belongs to the beginning of a leadership."""

    @abstractmethod
    def _end(self) -> None:
        """Do what belongs to the end of a leadership that ended in order."""

    def _resume(self, begun: Checkpoint) -> int:
        """Take over from the last leader; return the sequence behind which to read on."""
        self._ring.advance(begun.sequence)
        return begun.sequence

    def _next_look_seconds(self) -> float:
        """Return how long to wait for being asked to drain before looking around again."""
        return self._interval_seconds

    def _look_around(self) -> bool:
        """Do what else there is to do once a turn; return whether it put something on the ring."""
        return False

    def _let_go(self) -> None:
        """Give up what a leader holds."""
        self._arena.lead(0)
        self._disconnect()

    def _connected(self) -> psycopg.Connection[Any]:
        """Return the open connection of this process; make one if there is none. Raises DatabaseUnavailable."""
        if self._connection is None or self._connection.closed:
            self._connection = connect(_guarded(self._database_url), application_name=f"shmcache {self.role}")
            if not is_pooled(self._connection):  # else each transaction that moves the checkpoint has its limit
                limit_transactions(self._connection, TRANSACTION_SECONDS)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _add_dead_letter(self, entry: Entry, error: Exception) -> None:
        logger.error(
            "dead letter: entry %d of the %s ring: %s", entry.sequence, self._ring.name, one_line(error),
            extra={"sequence": entry.sequence, "ring": self._ring.name},
        )  # fmt: skip
        add_dead_letter(
            self._connected(),
            self._arena.arena_id,
            self._ring.name,
            entry.sequence,
            entry.kind,
            entry.payload,
            error,
            entry.intact,
        )

    def _lead(self, should_stop: ShouldStop) -> None:
        self._begin()
        begun = self._begin_epoch(should_stop)
        if begun is not None:
            # step: begun
            with contextlib.suppress(ArenaError):  # no lane is free: nobody sees who leads
                self._arena.lead(begun.epoch)
            sequence = self._resume(begun)
            # step: resumed
            asked, due = True, 0.0
            while True:
                stopping = should_stop()
                if asked or stopping or time.monotonic() >= due:
                    due = time.monotonic() + self._interval_seconds
                    sequence = self._drain(sequence, begun.epoch, should_stop)
                if self._look_around():
                    sequence = self._drain(sequence, begun.epoch, should_stop)
                if stopping:
                    break
                asked = self._wait_to_be_asked(due, should_stop)
        self._end()

    def ask_to_look(self) -> None:
        """Have the leader look around now. From any thread.

        That drains nothing: what hosts tell each other of their transactions would have each make another one."""
        with self._looks_turn:
            self._looks += 1
        self._ring.request_drain()

    def _wait_to_be_asked(self, due: float, should_stop: ShouldStop) -> bool:
        """Wait until something is to be done; return whether it is to drain, whatever is `due`."""
        asked = self._ring.wait_for_drain(max(0.0, min(self._next_look_seconds(), due - time.monotonic())), should_stop)
        with self._looks_turn:
            looks, self._looks = self._looks, 0
        return asked > looks

    def _begin_epoch(self, should_stop: ShouldStop) -> Checkpoint | None:
        while True:
            try:
                begun = begin_epoch(self._connected(), self._arena.arena_id, self._ring.name)
            except self.passing as error:
                if not self._wait_after(error, should_stop):
                    return None
            else:
                self._succeeded()
                return begun

    def _drain(self, sequence: int, epoch: int, should_stop: ShouldStop) -> int:
        """Carry what is on the ring behind `sequence`; return the sequence reached. Raises Fenced.

        What comes meanwhile waits for the next drain, unless much comes: a consumer that ran after its producers would
        make a transaction of every few entries, and one that is asked to end while they go on would never end."""
        self._measures.looks()
        newest = self._ring.last_sequence
        while not self._abandon() and (sequence < newest or self._ring.is_high) and (entries := self._take(sequence)):
            started = time.monotonic()
            # step: taken
            try:
                with tracing.span(f"{self._ring.name} batch", entries=len(entries), epoch=epoch):
                    self._carry(entries, epoch)
            except self.passing as error:
                self._limit.failed(len(entries))
                if not self._wait_after(error, should_stop):
                    return sequence
            else:
                self._succeeded()
                self._limit.committed(len(entries), time.monotonic() - started)
                sequence = entries[-1].sequence
                # step: carried
                self._ring.advance(sequence)
                # step: advanced
                self._measures.batch(entries, time.monotonic() - started)
                if self.on_batch is not None:
                    self.on_batch()
        if sequence >= newest:
            self._measures.read_all()
        return sequence

    def _wait_after(self, error: Exception, should_stop: ShouldStop) -> bool:
        """Wait until it is time to try again; return False if it is time to give up, being asked to stop."""
        self._disconnect()
        self._arena.count(Counter.RETRIES)
        now = time.monotonic()
        if not self._backoff.tries or now - self._outage_logged_at > _OUTAGE_LOG_SECONDS:
            self._outage_logged_at = now
            left = self._ring.last_sequence - self._ring.committed_sequence
            logger.warning(
                "%d entries of the %s ring wait, trying again: %s", left, self._ring.name, one_line(error),
                extra={"waiting": left, "ring": self._ring.name},
            )  # fmt: skip
        until = now + self._backoff.next_seconds()
        while True:
            now = time.monotonic()
            if self._abandon():
                return False
            if should_stop():
                self._give_up_at = self._give_up_at or now + _STOPPING_SECONDS
                if now >= self._give_up_at:
                    return False
            if now >= until:
                return True
            time.sleep(min(until - now, _TURN_SECONDS))

    def _succeeded(self) -> None:
        if self._backoff.tries:
            logger.info("the %s ring is drained again, after %d tries", self._ring.name, self._backoff.tries)
            self._backoff.reset()


def one_line(error: BaseException) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _guarded(url: str) -> str:
    """Return the address with a limit on how long a transaction may lie idle; what it sets itself stands."""
    try:
        options = conninfo_to_dict(url).get("options") or ""
        return make_conninfo(url, options=f"{_IDLE_IN_TRANSACTION} {options}".strip())
    except psycopg.Error:
        return url  # `connect` says what is wrong with it
