"""CachedClient: an executor's reads and writes on the shared arena; the syncer carries the writes to PostgreSQL.

Every write is a small transaction on the arena (`Pending`, then `Arena.commit`): it changes records and appends the
rows to the write ring, both or neither. What it read is checked in the commit; if another process was faster, it runs
again. So no lock is held while anything is thought about, and a process that dies anywhere leaves nothing half done.

`RecordStore` finds and shapes the records; the methods here say what each call of the interface does with them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar, cast

from shmcache.account_keys import ACCOUNTS, base_key, count_key, hold_mark, marked, spend_mark
from shmcache.arena import FLAG_INDEXED, FLAG_PINNED, Arena, Conflict, Counter, CounterTooLow, Ring, Transaction
from shmcache.arena.transaction import (
    Add,
    AlreadySet,
    Append,
    Clear,
    Enqueue,
    Number,
    Operation,
    Outcome,
    Put,
    Release,
    SetCounter,
    SetOnce,
    Touch,
)
from shmcache.backing_store import BackingStore
from shmcache.charge_manager import ChargeManager, Priced
from shmcache.codec import NodeGroup, PartialExecution, encode, json_text, pack, unpack
from shmcache.config import Settings
from shmcache.database import queries
from shmcache.database.settlement import OpenHold
from shmcache.errors import FlushTimeout, InsufficientBalanceError, InvalidValue, NotFound, ShmcacheError
from shmcache.execution_data_client import ExecutionDataClient, Work, WorkKind
from shmcache.frozen import FrozenDict, FrozenList, freeze
from shmcache.identifiers import id_bytes, id_text, new_id
from shmcache.pending import Pending
from shmcache.record_store import EMPTY, RecordStore, group_id
from shmcache.records import (
    FINAL_STATUSES,
    Account,
    ExecutionStatus,
    Graph,
    GraphExecution,
    InputSource,
    NodeDefinition,
    NodeExecution,
    may_move,
)
from shmcache.simple_cache import SimpleExecutorCache
from shmcache.writes import Charge, ChargeKind, InputWrite, OutputWrite, Refresh, Refusal, WriteKind

logger = logging.getLogger(__name__)

T = TypeVar("T")


class CachedClient(ExecutionDataClient):
    """The client over an arena. One for each process; its methods may be called from several threads."""

    def __init__(self, arena: Arena, database_url: str, settings: Settings) -> None:
        self._arena = arena
        self._settings = settings
        self._cache = SimpleExecutorCache(arena, settings.decoded_records)
        self._backing = BackingStore(database_url, lambda: arena.count(Counter.BLOCKING_DB_OPERATIONS))
        self._records = RecordStore(arena, self._cache, self._backing)
        self._charges = ChargeManager(
            spend=self._spend, wait_settled=self._wait_settled, get_node=self.get_node, settings=settings
        )
        self._last_time = 0.0
        # The last sequence of each thread, by its number, on each ring.
        self._write_sequences: dict[int, int] = {}
        self._charge_sequences: dict[int, int] = {}

    # Definitions

    def save_graph(self, graph: Graph, nodes: Sequence[NodeDefinition]) -> None:
        """See ExecutionDataClient."""
        self._backing.load(queries.save_graph, graph, nodes)

    def get_graph(self, graph_id: str) -> Graph:
        """See ExecutionDataClient."""
        return self._records.definition(graph_id, Graph, queries.load_graph, "graph")

    def get_node(self, node_id: str) -> NodeDefinition:
        """See ExecutionDataClient."""
        return self._records.definition(node_id, NodeDefinition, queries.load_graph_of_node, "node")

    # Executions, read

    def get_graph_execution(self, graph_exec_id: str) -> GraphExecution:
        """See ExecutionDataClient."""
        pending = self._records.pending
        if pending is not None and graph_exec_id in pending.graph_executions:
            return pending.graph_executions[graph_exec_id]
        found: GraphExecution = self._records.record(
            graph_exec_id, GraphExecution, queries.load_graph_execution, "graph execution"
        )
        return found

    def get_node_execution(self, node_exec_id: str) -> NodeExecution:
        """See ExecutionDataClient."""
        return self._records.execution(node_exec_id)

    def get_node_executions(
        self,
        graph_exec_id: str,
        node_id: str | None = None,
        block_ids: Collection[str] | None = None,
        statuses: Collection[ExecutionStatus] | None = None,
        limit: int | None = None,
    ) -> list[NodeExecution]:
        """See ExecutionDataClient."""
        executions = [self._records.execution(each) for each in self._records.execution_ids(graph_exec_id, node_id)]
        executions.sort(key=lambda each: (each.created_at, each.id))
        return [
            each
            for each in executions
            if (block_ids is None or each.block_id in block_ids) and (statuses is None or each.status in statuses)
        ][:limit]

    def get_latest_node_execution(self, node_id: str, graph_exec_id: str) -> NodeExecution | None:
        """See ExecutionDataClient."""
        latest = self._records.group(graph_exec_id, node_id).latest
        return None if latest is None else self.get_node_execution(latest)

    # Executions, written

    def create_graph_execution(
        self,
        graph_id: str,
        user_id: str,
        inputs: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> GraphExecution:
        """See ExecutionDataClient."""
        graph = self.get_graph(graph_id)
        id_bytes(user_id)
        starts = graph.starts if inputs is None else freeze(inputs)
        execution = GraphExecution(
            new_id(), graph_id, user_id, ExecutionStatus.QUEUED, starts, self._now(), None, None, EMPTY
        )

        def create() -> GraphExecution:
            pending = self._records.writing()
            pending.put_graph_execution(execution)
            pending.others.insert(0, Touch(id_bytes(execution.id), FLAG_INDEXED))
            return execution

        return self.atomically(create, durable=durable, urgent=urgent)

    def upsert_execution_input(
        self,
        node_id: str,
        graph_exec_id: str,
        input_name: str | None,
        input_data: Any = None,
        node_exec_id: str | None = None,
        source: InputSource | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> tuple[str, Mapping[str, Any]]:
        """See ExecutionDataClient."""
        value = freeze(input_data)
        text = json_text(value)

        def upsert() -> tuple[str, Mapping[str, Any]]:
            records = self._records
            target = self._execution_for_input(node_id, graph_exec_id, input_name, node_exec_id)
            if input_name is not None and not records.has_input(target, input_name):
                execution = target.execution
                changed = execution._replace(inputs=FrozenDict({**execution.inputs, input_name: value}))
                if source is not None:
                    changed = changed._replace(sources=FrozenDict({**execution.sources, input_name: source}))
                target = target._replace(execution=changed)
                row = InputWrite(
                    changed.id, input_name, text, self._now(), source and source.node_exec_id, source and source.ordinal
                )
                records.put(target)
                records.writing().rows.append((WriteKind.INPUT, row))
            return target.execution.id, records.whole(target).inputs

        return self.atomically(upsert, durable=durable, urgent=urgent)

    def _execution_for_input(
        self, node_id: str, graph_exec_id: str, input_name: str | None, node_exec_id: str | None
    ) -> PartialExecution:
        records = self._records
        if node_exec_id is not None:
            return records.partial(node_exec_id)
        group = records.group(graph_exec_id, node_id)
        if input_name is not None:
            for identifier in group.incomplete:
                candidate = records.partial(identifier)
                if not records.has_input(candidate, input_name):
                    return candidate
        execution = NodeExecution(
            id=new_id(),
            graph_exec_id=graph_exec_id,
            node_id=node_id,
            block_id=self.get_node(node_id).block_id,
            user_id=self.get_graph_execution(graph_exec_id).user_id,
            status=ExecutionStatus.INCOMPLETE,
            inputs=EMPTY,
            sources=cast("Mapping[str, InputSource]", EMPTY),
            outputs=EMPTY,
            output_count=0,
            created_at=self._now(),
            queued_at=None,
            started_at=None,
            ended_at=None,
            stats=EMPTY,
        )
        partial = PartialExecution(execution, 0)
        records.put(partial)
        grown = NodeGroup([*group.incomplete, execution.id], execution.id)
        records.writing().put_group(group_id(graph_exec_id, node_id), grown, graph_exec_id)
        return partial

    def upsert_execution_output(
        self,
        node_exec_id: str,
        output_name: str | Mapping[str, Any],
        output_data: Any = None,
        *,
        ordinal: int | None = None,
        durable: bool = False,
        urgent: bool = False,
    ) -> NodeExecution:
        """See ExecutionDataClient."""
        given = [(output_name, output_data)] if isinstance(output_name, str) else list(output_name.items())
        values = [(name, freeze(value)) for name, value in given]
        texts = [json_text(value) for _, value in values]

        def upsert() -> NodeExecution:
            partial = self._records.partial(node_exec_id)
            execution = partial.execution
            already = 0 if ordinal is None else max(0, execution.output_count - ordinal)
            if already < len(values):
                outputs = dict(execution.outputs)
                rows = self._records.writing().rows
                count = execution.output_count
                for (name, value), text in list(zip(values, texts, strict=True))[already:]:
                    outputs[name] = FrozenList([*outputs.get(name, ()), value])
                    rows.append((WriteKind.OUTPUT, OutputWrite(node_exec_id, count, name, text, self._now())))
                    count += 1
                partial = partial._replace(
                    execution=execution._replace(outputs=FrozenDict(outputs), output_count=count)
                )
                self._records.put(partial)
            return self._records.whole(partial)

        return self.atomically(upsert, durable=durable, urgent=urgent)

    def update_node_execution_status(
        self,
        node_exec_id: str,
        status: ExecutionStatus,
        execution_data: Mapping[str, Any] | None = None,
        stats: Mapping[str, Any] | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> NodeExecution:
        """See ExecutionDataClient."""
        data = freeze(execution_data or {})
        texts = {name: json_text(value) for name, value in data.items()}
        merged = freeze(stats or {})
        json_text(merged)

        def update() -> NodeExecution:
            records = self._records
            partial = records.partial(node_exec_id)
            execution = partial.execution
            if not may_move(execution.status, status):
                return records.whole(partial)
            now = self._now()
            changed = _moved(execution, status, now)
            if data:
                inputs = records.whole(partial).inputs
                changed = changed._replace(inputs=FrozenDict({**execution.inputs, **data}))
                for name, text in texts.items():
                    if name not in inputs or inputs[name] != data[name]:
                        records.writing().rows.append((
                            WriteKind.INPUT, InputWrite(node_exec_id, name, text, now, None, None)
                        ))  # fmt: skip
            if merged:
                changed = changed._replace(stats=FrozenDict({**execution.stats, **merged}))
            partial = partial._replace(execution=changed)
            if status in FINAL_STATUSES:
                partial = self._end_charge(partial)
            records.put(partial)
            if execution.status is ExecutionStatus.INCOMPLETE:
                group = records.group(execution.graph_exec_id, execution.node_id)
                left = [each for each in group.incomplete if each != node_exec_id]
                identifier = group_id(execution.graph_exec_id, execution.node_id)
                records.writing().put_group(identifier, NodeGroup(left, group.latest), execution.graph_exec_id)
            return records.whole(partial)

        return self.atomically(update, durable=durable, urgent=urgent)

    def update_graph_execution_stats(
        self,
        graph_exec_id: str,
        status: ExecutionStatus | None = None,
        stats: Mapping[str, Any] | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> GraphExecution:
        """See ExecutionDataClient."""
        merged = freeze(stats or {})
        json_text(merged)

        def update() -> GraphExecution:
            execution = self.get_graph_execution(graph_exec_id)
            if status is not None and not may_move(execution.status, status):
                return execution
            changed = execution
            if status is not None:
                changed = _moved(changed, status, self._now())
            if merged:
                changed = changed._replace(stats=FrozenDict({**execution.stats, **merged}))
            self._records.writing().put_graph_execution(changed)
            return changed

        return self.atomically(update, durable=durable, urgent=urgent)

    # Credits

    def get_credits(self, user_id: str) -> int:
        """See ExecutionDataClient."""
        self._account(user_id)
        available = self._arena.counter(id_bytes(user_id))
        if available is None:
            raise NotFound("account", user_id)
        pending = self._records.pending
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
        text = json_text(dict(metadata or {}))

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
        if self._records.pending is not None:
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
                wanted.rely_on(id_bytes(node_exec.id), hit[0])
            try:
                outcome = self._arena.commit(wanted)
            except AlreadySet:
                return self.get_credits(user_id)
            except Conflict:
                continue
            except CounterTooLow as error:
                raise self._refused(user_id, first.graph_exec_id, error.value, total) from None
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
                return self.get_credits(user_id)
            if partial.execution.status in FINAL_STATUSES:
                return self._spend_late(partial, operations, user_id, total)
        if mark is not None:
            if mark in pending.marks or self._is_marked(mark):
                return self.get_credits(user_id)
            pending.marks[mark] = next(each.value for each in operations if isinstance(each, SetOnce))
        pending.others += operations
        pending.charged[user_id] = pending.charged.get(user_id, 0) + total
        if node_exec is not None:
            pending.charged_for[user_id] = node_exec.graph_exec_id
        return self.get_credits(user_id)

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
        return self.get_credits(user_id)

    def _is_marked(self, mark: bytes) -> bool:
        return bool(self._arena.counter(mark)) or self._arena.version(mark) != 0

    def _end_charge(self, partial: PartialExecution, *, abandoned: bool = False) -> PartialExecution:
        """Note what an execution that ends has cost; settle or void what is held for it. Part of a transaction.

        One whose owner is gone is charged for no more than was held."""
        execution = partial.execution
        pending = self._records.writing()
        mark = hold_mark(execution.id)
        value = pending.marks.get(mark, 0) or self._arena.counter(mark) or 0
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
                    hold.transaction_key, hold.user_id, 0, "block", hold.node_exec_id, hold.graph_exec_id, time.time(),
                    "{}",
                )  # fmt: skip
                pending.others += [
                    Clear(mark, marked(hold.amount, is_estimate=True)),
                    Append("charge", ChargeKind.VOID, pack(void)),
                    Add(id_bytes(hold.user_id), hold.amount),
                ]
            else:
                self._records.put(self._end_charge(partial, abandoned=True))
            return True

        return self.atomically(close)

    def _refused(self, user_id: str, graph_exec_id: str | None, balance: int, amount: int) -> InsufficientBalanceError:
        """Leave a notice that a charge was refused; return what to raise."""
        graph_id = None
        try:
            if graph_exec_id is not None:
                graph_id = self.get_graph_execution(graph_exec_id).graph_id
            notice = Transaction()
            refusal = Refusal(user_id, graph_id, graph_exec_id, balance, amount, time.time())
            notice.operations.append(Append("charge", ChargeKind.REFUSAL, pack(refusal)))
            self._arena.commit(notice)
        except ShmcacheError as error:
            logger.warning("user %s lacks %d credits, and nobody is told of it: %s", user_id, amount - balance, error)
        return InsufficientBalanceError(user_id, balance, amount)

    def _account(self, user_id: str) -> Account:
        """Bring an account into the arena: its credits and its execution count become counters there."""
        hit = self._cache.get(user_id)
        if hit is None:
            with self._arena.loads.loading(id_bytes(user_id)):
                hit = self._load_account(user_id)
        if not isinstance(hit[1], Account):
            raise NotFound("account", user_id)
        return hit[1]

    def _load_account(self, user_id: str) -> tuple[int, Any]:
        while (hit := self._cache.get(user_id)) is None:
            key = id_bytes(user_id)
            fill = Transaction()
            fill.evictions = self._arena.evictions()
            fill.rely_on(key, self._arena.version(key))
            account = self._backing.load(queries.load_account, user_id)
            if account is None:
                raise NotFound("account", user_id)
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
                ]
            with contextlib.suppress(Conflict):
                self._arena.commit(fill)
        return hit

    # Several writes at once, work, durability

    def atomically(self, work: Callable[[], T], *, durable: bool = False, urgent: bool = False) -> T:
        """See ExecutionDataClient."""
        pending = self._records.pending
        if pending is not None:
            pending.durable |= durable
            pending.urgent |= urgent
            return work()
        while True:
            pending = self._records.pending = Pending(durable, urgent)
            outcome = None
            try:
                result = work()
                if not pending.is_empty():
                    outcome = self._arena.commit(pending.build())
                    self._note_receipt(outcome)
                    for (identifier, record), (entry, version) in zip(pending.written, outcome.written, strict=False):
                        self._cache.keep(identifier, entry, version, record)
                break
            except Conflict:
                continue
            except CounterTooLow as error:
                refused = error
            finally:
                self._records.pending = None
            user_id = id_text(refused.key)
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
        self._arena.count(Counter.NODE_RUNS, work.kind is WorkKind.RUN)
        self._cache.report_often()
        release = Release(id_bytes(work.id), id_bytes(graph_exec_id), follow)
        self.atomically(lambda: self._records.writing().others.append(release))

    def flush(self, timeout_seconds: float | None = None) -> None:
        """See ExecutionDataClient."""
        started = time.monotonic()
        for ring, sequences in (
            (self._arena.write_ring, self._write_sequences),
            (self._arena.charge_ring, self._charge_sequences),
        ):
            left = None if timeout_seconds is None else max(0.0, started + timeout_seconds - time.monotonic())
            _await(ring, max(list(sequences.values()), default=0), left, started)

    @property
    def last_sequence(self) -> int:
        """See ExecutionDataClient."""
        return self._write_sequences.get(threading.get_ident(), 0)

    def wait_durable(self, sequence: int, timeout_seconds: float | None = None) -> None:
        """See ExecutionDataClient."""
        newest = self._arena.write_ring.last_sequence
        if sequence > newest:
            raise InvalidValue(f"no write has the sequence {sequence} yet: the newest is {newest}")
        _await(self._arena.write_ring, sequence, timeout_seconds, time.monotonic())

    def _wait_settled(self) -> None:
        _await(self._arena.charge_ring, self._charge_sequences.get(threading.get_ident(), 0), None, time.monotonic())

    def close(self) -> None:
        """See ExecutionDataClient. The arena stays attached: it belongs to the process."""
        self._backing.close()

    # Small things

    def _now(self) -> float:
        """Return the time in whole microseconds, as PostgreSQL keeps it, later than any this process gave before."""
        self._last_time = now = max(round(time.time(), 6), round(self._last_time + 1e-6, 6))
        return now


def _await(ring: Ring, wanted: int, timeout_seconds: float | None, started: float) -> None:
    """Have a ring drained and wait until it is, up to a sequence. Raises FlushTimeout."""
    if ring.committed_sequence >= wanted:
        return
    ring.request_drain()
    if not ring.wait_committed(wanted, timeout_seconds):
        raise FlushTimeout(ring.name, ring.committed_sequence, wanted, time.monotonic() - started)


E = TypeVar("E", NodeExecution, GraphExecution)


def _moved(execution: E, status: ExecutionStatus, now: float) -> E:
    """Return an execution with another status, and with the times that the move sets."""
    moves = execution.moves + 1
    if status is ExecutionStatus.QUEUED and isinstance(execution, NodeExecution):
        return execution._replace(status=status, queued_at=now, ended_at=None, moves=moves)
    if status is ExecutionStatus.RUNNING:
        return execution._replace(status=status, started_at=execution.started_at or now, ended_at=None, moves=moves)
    return execution._replace(status=status, ended_at=now if status in FINAL_STATUSES else None, moves=moves)
