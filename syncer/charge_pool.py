"""ChargePool: carries the charge ring to the ledger, through a pool of processes.

    1  read      entries behind the head, when the rows of what they are for      death: nothing had happened
                 are in the database: should the machine be lost, nobody was
                 charged for an execution that nobody knows of
    2  settle    the pool's processes, each for its part of the users (so that    death of one: the pool is replaced and
                 one user's charges stay in order and nobody waits for a row),    the batch tried again; what was
                 one transaction each; until they are up, the charger itself      settled is known by its key
    3  confirm   checkpoint and epoch, in the charger's own connection; there     death: as above
                 too what the accounts can spend now
    4  tell      graph executions whose charges could not be paid                 death: told again, the same
    5  release   one commit in the arena: the head moves, what was held for the   death: all of it or nothing
                 batch is held no longer, credits are what the database says; if
                 the head is still where the batch was read, because else another
                 has released it

Several processes commit, so rows and checkpoint are not one transaction here: a death between 2 and 5 settles a batch
again. The unique key of each charge makes the repetition harmless, and it is all that makes it so. The checkpoint
fences a charger that was superseded; where to go on says the ring's head, since what lies behind it is still held.

In the arena an account has two counters: what can be spent now, and the base that is reckoned from, which is what the
database says: balance, less debt, less what other hosts hold. The difference is what this arena's processes hold: the
charges on the ring, and the estimates of runs that have not ended. Only a charger moves the base, when it releases a
batch, and when it hears that an account was changed by somebody else; each account is also read again now and then.

Two more counters say the same of the part of the account that this host has leased: what can be held against it now,
and the lease. What is settled leaves the lease in the transaction that settles it; see `syncer.credit_leases`.

The pool's processes are spawned, not forked: a child forked from the leader would inherit the descriptor that holds the
lock file, and the threads that a pool needs would make forking unsafe. The kernel kills them when the charger dies.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import psycopg

from shmcache.account_keys import ACCOUNTS, spend_mark
from shmcache.arena import Arena, Conflict, Counter, Entry, Transaction
from shmcache.arena.transaction import Advance, Clear, Exchange
from shmcache.cached_client import CachedClient
from shmcache.config import Settings
from shmcache.database.accounts import add_refusal, look_at_accounts
from shmcache.database.bookkeeping import Checkpoint, move_checkpoint
from shmcache.database.leases import Standing
from shmcache.database.settlement import OpenHold, Shortfall, load_open_holds
from shmcache.errors import ArenaFull, Fenced, InvalidValue, NotFound, Unavailable
from shmcache.identifiers import id_bytes, id_text
from shmcache.leased_credits import account_rebase, lease_rebase
from syncer import settlement_worker
from syncer.account_changes import AccountChanges
from syncer.callbacks import Callbacks
from syncer.charge_batch import Batch
from syncer.consumer import RingConsumer, ShouldStop, one_line
from syncer.credit_leases import CreditLeases
from syncer.holds import close_left_holds
from syncer.listening import listen_url
from syncer.refusals import is_refusal
from syncer.settlement_pool import PoolBroken, SettlementPool
from syncer.settlement_worker import Partition, Settled

logger = logging.getLogger(__name__)

_BATCH_ENTRIES = 3_000
"""As many users may be charged in a batch: what is released for them is one commit, which has its limit."""
_BATCH_BYTES = 8 << 20
_HANG_SECONDS = 60.0
_INTERVAL_SECONDS = 2.0
"""Charges are settled as often at least, which carries the rows of what they are for: readers elsewhere see them."""
_LOOK_SECONDS = 1.0
_LEAST_SECONDS = 0.2
"""The least time between two readings of accounts that others have changed."""
_SETTLED_SECONDS = 2.0
"""The least time between two readings of those of which other hosts have settled charges."""
_ROWS_SECONDS = 0.5
_ACCOUNTS_AT_ONCE = 1_000
_MARKS_AT_ONCE = 256
_SETTLED_MARK = b"\xc0"
"""What is kept under the key of a spend that is settled, until its room is needed."""


class ChargePool(RingConsumer):
    """Drains an arena's charge ring into a pool of processes, while it leads.

    A batch that is not settled after `hang_seconds` is tried again by a new pool. With `rows_first` no charge is
    settled before all rows that were written before it: for where a syncer carries them."""

    role = "charger"
    passing = (*RingConsumer.passing, Unavailable, PoolBroken, TimeoutError)

    def __init__(
        self,
        arena: Arena,
        database_url: str,
        settings: Settings,
        *,
        hang_seconds: float = _HANG_SECONDS,
        rows_first: bool = False,
    ) -> None:
        super().__init__(
            arena, arena.charge_ring, database_url, settings,
            interval_seconds=min(_INTERVAL_SECONDS, settings.sync_interval),
            batch_entries=_BATCH_ENTRIES, batch_bytes=_BATCH_BYTES,
        )  # fmt: skip
        self._hang_seconds = hang_seconds
        self._rows_first = rows_first
        self._pool: SettlementPool | None = None
        self._changes: AccountChanges | None = None
        self._callbacks: Callbacks | None = None
        self._client: CachedClient | None = None
        self._leases = CreditLeases(arena, settings.credit_lease)
        self._holds: dict[str, OpenHold] | None = None
        self._stale: set[str] = set()
        self._behind = 0
        self._awaits_rows = False
        self._read_all_at = 0.0
        self._read_again_at = 0.0
        self._read_settled_at = 0.0
        self._looked_at = 0.0

    def _begin(self) -> None:
        logger.info("Charge manager started")
        self._pool = self._make_pool()  # its processes come up before the first charge waits for them
        self._client = CachedClient(self._arena, self._database_url, self._settings)
        address = listen_url(self._database_url, self._settings)
        self._changes = AccountChanges(address, self._arena.arena_id, self.ask_to_look)
        self._callbacks = Callbacks.start(self._database_url)
        self._holds = None
        self._stale = set()

    def _resume(self, begun: Checkpoint) -> int:
        del begun  # what is confirmed and not released yet is settled again, which changes nothing, and released
        return self._ring.committed_sequence

    def _end(self) -> None:
        left = self._ring.last_sequence - self._ring.committed_sequence
        if left:
            logger.warning("Charge manager stopped: %d charges stay on the ring for the next one", left)
        else:
            logger.info("Charge manager shutdown")

    def _let_go(self) -> None:
        for each in (self._changes, self._callbacks):
            if each is not None:
                each.stop()
        self._changes = self._callbacks = None
        if self._client is not None:
            self._client.close()
            self._client = None
        self._end_pool()
        settlement_worker.leave()
        super()._let_go()

    # A batch

    def _take(self, after: int) -> Sequence[Entry]:
        self._behind = after
        self._awaits_rows = False
        entries = super()._take(after)
        if entries and self._rows_first and self._is_staying:
            rows = self._arena.write_ring
            wanted = rows.last_sequence  # only now: what the entries are for was written before them
            if rows.committed_sequence < wanted:
                rows.request_drain()
                if not rows.wait_committed(wanted, _ROWS_SECONDS):
                    self._awaits_rows = True
                    return ()
        return entries

    def _carry(self, entries: Sequence[Entry], epoch: int) -> None:
        batch = Batch(entries, self._settings.charge_workers)
        # step: read
        settled = self._settle(batch)
        # step: settled
        last = entries[-1].sequence
        connection = self._connected()
        with connection.transaction():
            is_new = move_checkpoint(connection, self._arena.arena_id, self._ring.name, epoch, last)
            for entry, reason in batch.broken:
                self._add_dead_letter(entry, reason)
            # In one order on every host: a notice that another is just writing is waited for.
            for entry, refusal in sorted(batch.refusals, key=lambda each: (each[1].user_id, each[1].graph_id or "")):
                try:
                    with connection.transaction():
                        add_refusal(connection, refusal)
                except psycopg.Error as error:
                    if not is_refusal(error):
                        raise
                    self._add_dead_letter(entry, error)
            standings = look_at_accounts(connection, batch.users, self._arena.arena_id, self._settings.low_balance)
        # step: confirmed
        self._tell(settled.shortfalls)
        self._retire_marks(batch.marks)
        # step: told
        counters = self._rebase(standings, batch.released, self._behind, last)
        # step: released
        self._leases.note_spent(batch.released)
        self._leases.consider(standings, counters)
        held_since = batch.held_since
        if self._holds is not None:
            for opened in batch.opened:
                self._holds[opened.transaction_key] = opened
            ended = [self._holds.pop(key, None) for key in batch.closed]
            held_since = held_since + [hold.held_at for hold in ended if hold is not None]
        if batch.refusals and self._callbacks is not None:
            self._callbacks.look()
        if is_new:
            self._arena.count(Counter.CHARGES_SETTLED, batch.charges - settled.refused)
            self._arena.count(Counter.DEAD_LETTERS, settled.refused + len(batch.broken))
            self._arena.count(Counter.CHARGES_IN_DEBT, len(settled.shortfalls))
            self._arena.count(Counter.DEBT_CREDITS, sum(each.owed for each in settled.shortfalls))
            self._measures.holds_ended(held_since)

    def _settle(self, batch: Batch) -> Settled:
        """Have the pool settle each partition. Raises PoolBroken, TimeoutError, psycopg.Error."""
        pool = self._pool = self._pool or self._make_pool()
        partitions = [
            Partition(self._arena.arena_id, self._ring.name, self._settings.low_balance, items)
            for items in batch.partitions.values()
        ]
        if pool.is_ready():
            settlement_worker.leave()
            pool.send(partitions, self._hang_seconds)
            # step: dispatched
            parts = pool.receive()
        else:  # room on the ring does not wait for that
            settlement_worker.use(self._database_url)
            parts = [settlement_worker.settle_partition(each) for each in partitions]
        return Settled(sum(part.refused for part in parts), [each for part in parts for each in part.shortfalls])

    def _tell(self, shortfalls: Sequence[Shortfall]) -> None:
        """Say in the graph executions that were not paid for that they were not: they start no other node."""
        assert self._client is not None
        for each in shortfalls:
            logger.warning(
                "charge %s: %d credits of user %s were spent elsewhere and are owed now",
                each.transaction_key,
                each.owed,
                each.user_id,
            )
            if each.graph_exec_id is not None:
                try:
                    stats = {"error": f"insufficient balance: {each.owed} credits of a charge are owed"}
                    self._client.update_graph_execution_stats(each.graph_exec_id, None, stats)
                except (NotFound, InvalidValue) as error:
                    logger.warning("charge %s: nobody to tell: %s", each.transaction_key, error)

    def _retire_marks(self, marks: Sequence[tuple[str, str]]) -> None:
        """Let the arena forget, when it needs the room, the keys of spends that are in the ledger now."""
        for begin in range(0, len(marks), _MARKS_AT_ONCE):
            wanted = Transaction()
            wanted.operations.extend(
                Exchange(spend_mark(user_id, key), _SETTLED_MARK)
                for user_id, key in marks[begin : begin + _MARKS_AT_ONCE]
            )
            try:
                self._arena.commit(wanted)
            except ArenaFull:  # then they are forgotten at once
                wanted.operations = [Clear(each.key, None) for each in wanted.operations if isinstance(each, Exchange)]
                self._arena.commit(wanted)

    def _rebase(
        self, standings: dict[str, Standing], released: dict[str, int], before: int, last: int
    ) -> dict[bytes, int]:
        """Move the head from `before` to `last`, and the accounts' credits to what the database says, in one commit.

        Returns the counters that were moved."""
        wanted = Transaction()
        wanted.operations.append(Advance(self._ring.name, before, last))
        for user_id, standing in standings.items():
            amount = released.get(user_id, 0)
            wanted.operations += [account_rebase(standing, amount), lease_rebase(standing, amount)]
        try:
            return self._arena.commit(wanted).counters
        except Conflict:
            raise Fenced("charger", 0).of(self._arena.name) from None

    # Between batches

    def _next_look_seconds(self) -> float:
        seconds = min(_LOOK_SECONDS, self._interval_seconds, self._leases.interval_seconds)
        return min(seconds, max(0.0, self._read_again_at - time.monotonic())) if self._stale else seconds

    def _look_around(self) -> bool:
        self._mend_pool()
        if self._ring.committed_sequence < self._ring.last_sequence and self._backoff.tries:
            return False  # the database is away, and this process is asked to end
        try:
            self._refresh()
            given = self._leases.work(self._connected())
            if given:  # it pays debt
                self._stale |= given
                self._refresh(at_once=True)
            return self._close_holds() or self._awaits_rows
        except self.passing as error:
            logger.debug("accounts and holds are looked after later: %s", one_line(error))
            self._read_all_at = 0.0
            self._disconnect()
            return False

    def _refresh(self, *, at_once: bool = False) -> None:
        """Read the accounts that others changed, not too often, and now and then all of them."""
        assert self._changes is not None
        now = time.monotonic()
        settled = now >= self._read_settled_at
        if settled:
            self._read_settled_at = now + _SETTLED_SECONDS
        told, everything = self._changes.take(settled=settled)
        is_time = now >= self._read_all_at
        if everything or is_time:
            self._read_all_at = now + self._settings.account_interval
            told |= {id_text(key) for key in self._arena.members(ACCOUNTS) or ()}
        self._stale |= {user for user in told if self._arena.counter(id_bytes(user)) is not None}
        if now < self._read_again_at and not is_time and not at_once:
            return
        self._read_again_at = now + _LEAST_SECONDS
        while self._stale:
            some = sorted(self._stale)[:_ACCOUNTS_AT_ONCE]
            # Before the amounts: what is released later is not counted in them, and they would undo it.
            sequence = self._ring.committed_sequence
            connection = self._connected()
            with connection.transaction():
                standings = look_at_accounts(connection, some, self._arena.arena_id, self._settings.low_balance)
            # step: reread
            counters = self._rebase(standings, {}, sequence, sequence)
            self._leases.consider(standings, counters, idle=is_time)
            self._stale.difference_update(some)

    def _close_holds(self) -> bool:
        """Settle or void the estimates of graphs that ended, and of processes that died; return whether any was."""
        assert self._client is not None
        now = time.monotonic()
        if self._holds is None:
            self._holds = {
                each.transaction_key: each for each in load_open_holds(self._connected(), self._arena.arena_id)
            }
        elif now < self._looked_at + _LOOK_SECONDS:
            return False
        self._looked_at = now
        return bool(self._holds and close_left_holds(self._arena, self._client, self._holds.values()))

    # The pool

    def _wait_after(self, error: Exception, should_stop: ShouldStop) -> bool:
        if isinstance(error, (PoolBroken, TimeoutError)):
            logger.warning("a process of the charge pool died or hangs: a new pool tries the batch again")
            self._arena.count(Counter.POOL_REPLACED)
            self._end_pool(kill=True)
        return super()._wait_after(error, should_stop)

    def _mend_pool(self) -> None:
        """Replace a pool of which a process died between two batches: the next charge need not wait for a new one."""
        if self._pool is not None and not self._pool.is_whole():
            logger.warning("a process of the charge pool died: it is replaced")
            self._arena.count(Counter.POOL_REPLACED)
            self._end_pool(kill=True)
            self._pool = self._make_pool()

    def _make_pool(self) -> SettlementPool:
        return SettlementPool(self._settings.charge_workers, self._database_url)

    def _end_pool(self, kill: bool = False) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            if kill:
                pool.kill()
            else:
                pool.close()
