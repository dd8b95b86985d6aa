"""Credits over the arena: what an account has left is a counter there, changed in the commit that charges.

A charge goes on the charge ring in the same commit that takes it from the counter, marked by what it is for, so that
asking twice holds once. What is held as an estimate is settled or voided in the commit that ends the node. A second
counter, of the part of the account that this host has leased, bounds what may be held (see `shmcache.leased_credits`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shmcache.account_keys import ACCOUNTS, base_key, count_key, hold_mark, marked, part_key, spend_mark
from shmcache.arena import FLAG_INDEXED, FLAG_PINNED, Arena, Conflict, CounterTooLow, Transaction
from shmcache.arena.transaction import (
    Add,
    AlreadySet,
    Append,
    Clear,
    Number,
    Operation,
    Put,
    SetCounter,
    SetOnce,
    Touch,
)
from shmcache.cached_transactions import CachedTransactions
from shmcache.charge_manager import ChargeManager, Priced
from shmcache.codec import PartialExecution, encode, json_text, pack, unpack
from shmcache.config import Settings
from shmcache.database.settlement import OpenHold
from shmcache.errors import InsufficientBalanceError, NotFound, ShmcacheError
from shmcache.frozen import FrozenDict
from shmcache.identifiers import id_bytes
from shmcache.leased_credits import LeasedCredits, lease_counters, now
from shmcache.records import (
    FINAL_STATUSES,
    Account,
    NodeExecution,
)
from shmcache.simple_cache import Hit
from shmcache.writes import Charge, ChargeKind, Refresh, Refusal

logger = logging.getLogger(__name__)

_TOLD_SECONDS = 60.0
_MOST_TOLD = 10_000


class CachedCredits(CachedTransactions):
    """The part of the cached client that holds, settles and voids."""

    def __init__(self, arena: Arena, database_url: str, settings: Settings) -> None:
        super().__init__(arena, database_url, settings)
        self._charges = ChargeManager(
            spend=self._spend, wait_settled=self._wait_settled, get_node=self.get_node, now=self._now,
            settings=settings,
        )  # fmt: skip
        self._told: dict[tuple[str, str | None], tuple[int | None, float]] = {}
        self._leases = LeasedCredits(arena, self._backing, settings.credit_lease)

    def get_credits(self, user_id: str) -> int:
        """See ExecutionDataClient."""
        return self._credits_left(user_id, self._arena.counter)

    def _credits_left(self, user_id: str, counter: Callable[[bytes], int | None]) -> int:
        self._account(user_id)
        available = counter(id_bytes(user_id))
        if available is None:
            raise NotFound("account", user_id)
        pending = self._records.at_hand.pending
        return available - (pending.charged.get(user_id, 0) if pending is not None else 0)

    def increment_execution_count(self, user_id: str, node_exec_id: str | None = None) -> int:
        """See ExecutionDataClient. Takes effect at once, also inside `atomically`."""
        self._account(user_id)
        counted = count_key(user_id)
        wanted = Transaction()
        if node_exec_id is None:
            wanted.operations.append(Add(counted, 1))
            return self._arena.commit(wanted).counters[counted]
        key = id_bytes(node_exec_id)
        self.get_node_execution(node_exec_id)
        wanted.operations.append(Number(key, counted))
        return self._arena.commit(wanted).counters[key]

    def spend_credits(
        self,
        user_id: str,
        cost: int,
        metadata: Mapping[str, Any] | None = None,
        transaction_key: str | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> int:
        """See ExecutionDataClient."""
        text = json_text(dict(metadata)) if metadata else "{}"

        def spend() -> int:
            return self._charges.spend(user_id, cost, text, transaction_key)

        return self.atomically(spend, durable=durable, urgent=urgent) if durable or urgent else spend()

    def charge_usage(self, node_exec: NodeExecution, execution_count: int, async_mode: bool = True) -> tuple[int, int]:
        """See ExecutionDataClient."""
        return self._charges._charge_usage(node_exec, execution_count, async_mode)

    def _spend(self, charges: Sequence[Priced], node_exec: NodeExecution | None) -> int:
        """Hold charges of one user, put them on the charge ring, and mark what they were for as charged."""
        first_kind, first = charges[0]
        user_id = first.user_id
        self._account(user_id)
        mark: bytes | None = None
        if node_exec is not None:
            mark = hold_mark(node_exec.id)
        elif first.owner_pid:
            mark = spend_mark(user_id, first.transaction_key)
        total = 0
        operations: list[Operation] = []
        for kind, charge in charges:
            total += charge.amount
            if charge.amount or charge.execution_count or kind != ChargeKind.CHARGE:
                operations.append(Append("charge", kind, pack(charge)))
        account = id_bytes(user_id)
        if mark is not None:
            # First: who asks again is not refused because there is too little left by now.
            operations.append(SetOnce(mark, marked(first.amount, first_kind == ChargeKind.HOLD)))
        # Also of nothing: the answer has what is left then. What costs nothing is not refused to who owes.
        operations.append(Add(account, -total, 0 if total else None))
        if total:
            operations.append(Add(part_key(user_id), -total, 0))
            if now() >= self._leases.until:
                self._leases.prolong()
        if self._records.at_hand.pending is not None:
            return self._spend_within(operations, node_exec, mark, user_id, total)
        while True:
            wanted = Transaction()
            wanted.operations = operations
            if node_exec is not None:
                hit = self._cache.get(node_exec.id)
                if hit is None or not isinstance(hit[1], NodeExecution) or hit[1].status in FINAL_STATUSES:
                    return self.atomically(lambda: self._spend_within(operations, node_exec, mark, user_id, total))
                if "cost" in hit[1].stats:
                    return self.get_credits(user_id)
                wanted.rely_on(id_bytes(node_exec.id), hit[0], hit[2])
            try:
                outcome = self._arena.commit(wanted)
            except AlreadySet:
                return self.get_credits(user_id)
            except Conflict:
                continue
            except CounterTooLow as error:
                left = error.value
                if error.key != account:
                    if self._leases.take(user_id, total):
                        continue
                    left = self._arena.counter(error.key) or 0
                raise self._refused(user_id, first.graph_exec_id, left, total) from None
            self._note_receipt(outcome)
            return outcome.counters[account]

    def _spend_within(
        self,
        operations: list[Operation],
        node_exec: NodeExecution | None,
        mark: bytes | None,
        user_id: str,
        total: int,
    ) -> int:
        """Do what `_spend` does as part of the transaction at hand."""
        pending = self._records.writing()
        if node_exec is not None:
            partial = self._records.partial(node_exec.id)
            if "cost" in partial.execution.stats:
                return self._credits_left(user_id, self._arena.seen_counter)
            if partial.execution.status in FINAL_STATUSES:
                return self._spend_late(partial, operations, user_id, total)
        if mark is not None:
            # A mark that is set is found by the commit, which is tried again then: no need to look before.
            if mark in pending.marks or (pending.conflicts and self._is_marked(mark)):
                return self._credits_left(user_id, self._arena.seen_counter)
            pending.marks[mark] = next(each.value for each in operations if isinstance(each, SetOnce))
        pending.others += operations
        pending.charged[user_id] = pending.charged.get(user_id, 0) + total
        if node_exec is not None:
            pending.charged_for[user_id] = node_exec.graph_exec_id
        return self._credits_left(user_id, self._arena.seen_counter)

    def _spend_late(self, partial: PartialExecution, operations: Sequence[Operation], user_id: str, total: int) -> int:
        """Charge an execution that has ended without a charge: there is nothing to wait for, so all of it is final."""
        pending = self._records.writing()
        cost = 0
        for operation in operations:
            if isinstance(operation, Append):
                charge = Charge(*unpack(operation.payload))
                if charge.reason == "block":
                    cost = charge.amount
                pending.others.append(operation._replace(kind=ChargeKind.CHARGE))
            elif isinstance(operation, Add):
                pending.others.append(operation)
        changed = partial.execution._replace(stats=FrozenDict({**partial.execution.stats, "cost": cost}))
        self._records.put(partial._replace(execution=changed))
        pending.charged[user_id] = pending.charged.get(user_id, 0) + total
        return self._credits_left(user_id, self._arena.seen_counter)

    def _is_marked(self, mark: bytes) -> bool:
        return bool(self._arena.counter(mark)) or self._arena.version(mark) != 0

    def _end_charge(self, partial: PartialExecution, *, abandoned: bool = False) -> PartialExecution:
        """Note what an execution that ends has cost; settle or void what is held for it. Part of a transaction.

        One whose owner is gone is charged for no more than was held."""
        execution = partial.execution
        pending = self._records.writing()
        mark = hold_mark(execution.id)
        value = pending.marks.get(mark, 0) or self._arena.seen_counter(mark) or 0
        # A charge that comes in between is a conflict.
        pending.others.append(Clear(mark, value))
        if not value:
            return partial
        cost = value - 1
        if value < 0:
            held = -value - 1
            whole = self._records.whole(partial)
            if whole.ended_at is None:
                whole = whole._replace(ended_at=self._now())
            kind, charge = self._charges.settlement(whole, held, most=held if abandoned else None)
            cost = charge.amount
            pending.others.append(Append("charge", kind, pack(charge)))
            if cost != held:
                pending.others.append(Add(id_bytes(charge.user_id), held - cost))
                pending.others.append(Add(part_key(charge.user_id), held - cost))
                pending.charged[charge.user_id] = pending.charged.get(charge.user_id, 0) + cost - held
        pending.marks.pop(mark, None)
        return partial._replace(execution=execution._replace(stats=FrozenDict({**execution.stats, "cost": cost})))

    def close_hold(self, hold: OpenHold) -> bool:
        """Settle or void an estimate that nobody else will; return whether it was open. For the charger.

        Raises DatabaseUnavailable, RingFull."""
        mark = hold_mark(hold.node_exec_id)

        def close() -> bool:
            if (self._arena.counter(mark) or 0) >= 0:
                return False
            try:
                partial = self._records.partial(hold.node_exec_id)
            except NotFound:
                pending = self._records.writing()
                void = Charge(
                    hold.transaction_key, hold.user_id, 0, "block", hold.node_exec_id, hold.graph_exec_id, self._now(),
                    "{}",
                )  # fmt: skip
                pending.others += [
                    Clear(mark, marked(hold.amount, is_estimate=True)),
                    Append("charge", ChargeKind.VOID, pack(void)),
                    Add(id_bytes(hold.user_id), hold.amount),
                    Add(part_key(hold.user_id), hold.amount),
                ]
            else:
                self._records.put(self._end_charge(partial, abandoned=True))
            return True

        return self.atomically(close)

    def _lease_more(self, user_id: str, amount: int) -> bool:
        return self._leases.take(user_id, amount)

    def _refused(self, user_id: str, graph_exec_id: str | None, balance: int, amount: int) -> InsufficientBalanceError:
        """Leave a notice that a charge was refused; return what to raise."""
        graph_id = None
        try:
            if graph_exec_id is not None:
                graph_id = self.get_graph_execution(graph_exec_id).graph_id
            if self._was_told(user_id, graph_id):
                return InsufficientBalanceError(user_id, balance, amount)
            notice = Transaction()
            refusal = Refusal(user_id, graph_id, graph_exec_id, balance, amount, self._now())
            notice.operations.append(Append("charge", ChargeKind.REFUSAL, pack(refusal)))
            self._arena.commit(notice)
        except ShmcacheError as error:
            logger.warning("user %s lacks %d credits, and nobody is told of it: %s", user_id, amount - balance, error)
        except BaseException:
            self._told.pop((user_id, graph_id), None)
            raise
        return InsufficientBalanceError(user_id, balance, amount)

    def _was_told(self, user_id: str, graph_id: str | None) -> bool:
        """Say whether a notice of this user and graph has been left lately, with nothing heard of the account since.

        Whoever tries again and again would fill the charge ring with what is written once in any case."""
        now = time.monotonic()
        known = self._arena.counter(base_key(user_id))
        key = user_id, graph_id
        if (before := self._told.get(key)) is not None and before[0] == known and now < before[1] + _TOLD_SECONDS:
            return True
        if len(self._told) >= _MOST_TOLD:
            self._told.clear()
        self._told[key] = known, now
        return False

    def _account(self, user_id: str) -> Account:
        """Bring an account into the arena: its credits and its execution count become counters there."""
        hit = self._cache.get(user_id)
        if hit is None:
            with self._arena.loads.loading(id_bytes(user_id)):
                hit = self._load_account(user_id)
        if not isinstance(hit[1], Account):
            raise NotFound("account", user_id)
        return hit[1]

    def _load_account(self, user_id: str) -> Hit:
        while (hit := self._cache.get(user_id)) is None:
            key = id_bytes(user_id)
            fill = Transaction()
            fill.evictions = self._arena.evictions()
            fill.rely_on(key, self._arena.version(key))
            opened = self._open_account(user_id)
            if opened is None:
                raise NotFound("account", user_id)
            account, leased, version = opened
            amount = account.balance - account.debt - account.held
            fill.operations += [
                Touch(ACCOUNTS, FLAG_PINNED | FLAG_INDEXED),
                Put(key, encode(account), ACCOUNTS, FLAG_PINNED),
                # From here on the charger hears of changes: it reads the account once more, for those until now.
                Append("charge", ChargeKind.REFRESH, pack(Refresh(account.user_id))),
            ]
            if self._arena.counter(base_key(user_id)) is None:  # else only the record was damaged and forgotten
                fill.operations += [
                    SetCounter(key, amount),
                    Touch(base_key(user_id), FLAG_PINNED),
                    SetCounter(base_key(user_id), amount),
                    Touch(count_key(user_id), FLAG_PINNED),
                    SetCounter(count_key(user_id), account.execution_count),
                    *lease_counters(user_id, leased, version),
                ]
            with contextlib.suppress(Conflict):
                self._arena.commit(fill)
        return hit

    def _open_account(self, user_id: str) -> tuple[Account, int, int] | None:
        """Return an account, what is leased of it to begin with, and the version of that; None for an unknown one."""
        opened = self._leases.open(user_id)
        return opened and (opened[0], opened[1].leased, opened[1].version)
