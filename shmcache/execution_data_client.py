"""ExecutionDataClient: all that an executor asks of shmcache. Start reading here.

There are two implementations of this one interface. `shmcache.cached_client.CachedClient` answers from the shared
arena and lets the syncer carry writes to PostgreSQL; `shmcache.direct_client.DirectClient` does every operation on
PostgreSQL before it returns. `shmcache.get_db_client()` gives a worker the one that its settings ask for. For event
loops there are the same calls as coroutines, in a module that `python -m tools.async_interface` writes from this one.

Both keep the rules that graphs rely on:

- a status moves only along `records.ALLOWED_FROM`; a refused move is no error, the record is returned as it is;
- an input goes to the oldest INCOMPLETE execution of its node that lacks it, else to a new one, and never to two;
- outputs are lists: what a block yields twice under one name is kept twice, in order; falsy values are values;
- times are those of the event.

How durable a write is, its caller says. A write is in PostgreSQL at most SHMCACHE_SYNC_INTERVAL after it returned;
`durable=True` on a write (or on `atomically`) returns when it is there, `urgent=True` has it carried there now without
waiting. `last_sequence` is the receipt of the last write; `wait_durable` waits for what a receipt stands for, `flush`
for everything. Many that wait at once share one commit. (The direct client's writes are there when they return.)

Records that are handed out cannot be changed. Every method raises InvalidValue for an identifier that is no UUID.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import IntEnum
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, overload

from shmcache.records import (
    FINAL_STATUSES,
    ExecutionStatus,
    Graph,
    GraphExecution,
    InputSource,
    NodeDefinition,
    NodeExecution,
)

T = TypeVar("T")


class WorkKind(IntEnum):
    """What a worker is asked to do with an entry of the work queue."""

    START = 1
    """Start a graph execution: create the executions of the nodes it begins with."""
    RUN = 2
    """Run a node execution."""
    FINISH = 3
    """End a graph execution: nothing of it is queued or running any more."""


class Work(NamedTuple):
    """An entry of the work queue, claimed by this process until `end_work`.

    `id` is a node execution's for RUN and a graph execution's otherwise; `attempt` counts from 1 and grows
    each time the entry comes back from a worker that died."""

    kind: WorkKind
    id: str
    attempt: int


class ExecutionDataClient(ABC):
    """The interface of both clients. "Blocks" in a docstring means: waits for PostgreSQL."""

    # Definitions

    @abstractmethod
    def save_graph(self, graph: Graph, nodes: Sequence[NodeDefinition]) -> None:
        """Save a graph with its nodes. Blocks. One that is there already stays as it is: ids name contents."""

    @abstractmethod
    def get_graph(self, graph_id: str, version: int = 1) -> Graph:
        """Return a graph (on a platform's tables: a version of it). Cached: blocks only on a miss. Raises NotFound."""

    @abstractmethod
    def get_node(self, node_id: str) -> NodeDefinition:
        """Return a node's definition. Cached: blocks only on a miss, which loads its whole graph. Raises NotFound."""

    # Executions, read

    @abstractmethod
    def get_graph_execution(self, graph_exec_id: str) -> GraphExecution:
        """Return a graph execution. Cached: blocks only on a miss. Raises NotFound."""

    @abstractmethod
    def get_node_execution(self, node_exec_id: str) -> NodeExecution:
        """Return a node execution. Cached: blocks only on a miss. Raises NotFound."""

    @abstractmethod
    def get_node_executions(
        self,
        graph_exec_id: str,
        node_id: str | None = None,
        block_ids: Collection[str] | None = None,
        statuses: Collection[ExecutionStatus] | None = None,
        limit: int | None = None,
    ) -> list[NodeExecution]:
        """Return the executions of a graph execution that match all filters, oldest first, at most `limit`.

        Cached: blocks only on a miss."""

    @abstractmethod
    def get_latest_node_execution(self, node_id: str, graph_exec_id: str) -> NodeExecution | None:
        """Return the youngest execution of a node in a graph execution, or None. Cached: blocks only on a miss."""

    # Executions, written

    @abstractmethod
    def create_graph_execution(
        self,
        graph_id: str,
        user_id: str,
        inputs: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        graph_version: int = 1,
        preset_id: str | None = None,
        durable: bool = False,
        urgent: bool = False,
    ) -> GraphExecution:
        """Create a QUEUED run of a graph for a user and return it.

        `inputs` maps the nodes to start to their inputs; None takes what the graph's definition starts.
        `graph_version` and `preset_id` are of use on a platform's tables, which have them.
        Cached: blocks only if the graph is a miss. Raises NotFound for an unknown graph, InvalidValue."""

    @abstractmethod
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
        """Give an input to an execution of a node; return (its id, all its inputs so far).

        Without `node_exec_id` it goes to the oldest INCOMPLETE execution of the node that lacks this input, or to a
        new one, atomically between processes. With it, to that execution, unless it has this input already.
        An `input_name` of None creates an INCOMPLETE execution without any input. `source` records which output it
        came from. Cached: blocks only on a miss. Raises InvalidValue, NotFound, RingFull."""

    @overload
    def upsert_execution_output(
        self,
        node_exec_id: str,
        output_name: str,
        output_data: Any = None,
        *,
        ordinal: int | None = None,
        durable: bool = False,
        urgent: bool = False,
    ) -> NodeExecution: ...

    @overload
    def upsert_execution_output(
        self,
        node_exec_id: str,
        output_name: Mapping[str, Any],
        *,
        ordinal: int | None = None,
        durable: bool = False,
        urgent: bool = False,
    ) -> NodeExecution: ...

    @abstractmethod
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
        """Append an output, or one for each item of a mapping; return the record after it.

        With `ordinal` (the number of outputs the caller believes are there) it is idempotent: an output whose
        ordinal is there already is not appended again. Cached: blocks only on a miss.
        Raises InvalidValue, NotFound, RingFull."""

    @abstractmethod
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
        """Move a node execution's status; return the record after it, or as it is where the move is not allowed.

        `execution_data` replaces inputs of the same names and adds the others; `stats` is merged into the record's.
        QUEUED, RUNNING and the final statuses set queued_at, started_at and ended_at. Cached: blocks only on a miss.
        Raises InvalidValue, NotFound, RingFull."""

    def update_node_execution_status_batch(
        self, node_exec_ids: Sequence[str], status: ExecutionStatus, stats: Mapping[str, Any] | None = None
    ) -> list[NodeExecution]:
        """Move several node executions' status; return their records in the order given.

        Each is moved or refused by itself; not all together."""
        return [self.update_node_execution_status(each, status, None, stats) for each in node_exec_ids]

    @abstractmethod
    def update_graph_execution_stats(
        self,
        graph_exec_id: str,
        status: ExecutionStatus | None = None,
        stats: Mapping[str, Any] | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> GraphExecution:
        """Move a graph execution's status, merge `stats` into its own; return the record after it.

        A move that is not allowed leaves the record as it is, statistics included. Cached: blocks only on a miss.
        Raises InvalidValue, NotFound, RingFull."""

    # Credits

    @abstractmethod
    def get_credits(self, user_id: str) -> int:
        """Return what a user has left after all charges and holds so far; below 0 it is owed.

        Cached: blocks only on a miss. Raises NotFound."""

    @abstractmethod
    def increment_execution_count(self, user_id: str, node_exec_id: str | None = None) -> int:
        """Count one more execution for a user; return the count after it.

        With `node_exec_id`, asking again for the same execution counts once and gives the same number (the direct
        client keeps no such memory once the execution is charged). Cached: blocks only on a miss. Raises NotFound."""

    @abstractmethod
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
        """Charge a user; return the balance left. Cached: holds the credits at once, they are settled later.

        `transaction_key` is the idempotency key of the ledger's row: asking again with it charges nothing, and is not
        refused. Without one, a new one is made. Cached: blocks only on a miss. Raises InsufficientBalanceError (nothing
        is charged), InvalidValue for what is no amount from 0 to 2**62 or no key, NotFound, RingFull."""

    @abstractmethod
    def charge_usage(self, node_exec: NodeExecution, execution_count: int, async_mode: bool = True) -> tuple[int, int]:
        """Charge a node execution by its block's cost and the fee; return (cost, balance left).

        Charges once for each execution, however often it is asked. A price per second or byte is an estimate: it is
        held until the execution's status is final, which settles it to what it came to, or voids it if the execution
        never was RUNNING; `stats["cost"]` says what it was then. `stats["seconds"]`, where given, is the time taken.
        `async_mode=False` waits until it is settled in the database. See `ChargeManager._charge_usage`."""

    # Several writes at once, work, durability

    @abstractmethod
    def atomically(self, work: Callable[[], T], *, durable: bool = False, urgent: bool = False) -> T:
        """Run `work`; apply all that it writes through this client together, or nothing of it if it raises.

        `durable`, here or on a write inside, returns when all of it is in PostgreSQL, however long that takes; also if
        nothing was to be written, because it is there: then what is there is in PostgreSQL.

        Inside, reads see the writes made so far. `work` may be run more than once (another process was faster), so
        it must do nothing but read and write through this client. Nested calls join the outer one."""

    @abstractmethod
    def put_work(self, kind: WorkKind, identifier: str, graph_exec_id: str) -> None:
        """Put a node execution (RUN) or a graph execution (START) on the work queue of this host, once.

        Never blocks. Part of the surrounding `atomically`."""

    @abstractmethod
    def take_work(self, timeout_seconds: float) -> Work | None:
        """Claim the next entry of the work queue, waiting for one; None after the timeout. Never blocks on PostgreSQL.

        The claim lasts until `end_work` or until this process dies, when another one takes it up."""

    @abstractmethod
    def end_work(self, work: Work, graph_exec_id: str) -> None:
        """Give up a claim because its work is done. When it was the graph execution's last, a FINISH entry follows.

        Part of the surrounding `atomically`."""

    def take_graph_execution(self, graph_exec_id: str) -> int:
        """Make this host the one that writes to a graph execution, which nobody or a lost host has; return the token.

        What this host created is its own already. Another host's rows for it are refused from here on, and become dead
        letters. Blocks. Raises NotOwner while the owner's lease lasts, StillAtWork, NotFound. (The direct client is no
        host: it takes nothing, and returns 0.)"""
        del graph_exec_id
        return 0

    def resume_graph_execution(self, graph_exec_id: str) -> GraphExecution:
        """Take a graph execution and put it on the work queue of this host, as far as it has come; return it.

        Nothing is put there if it has ended. One that somebody wants to have cancelled is ended by who works on it.
        Asking again changes nothing. Blocks. Raises as `take_graph_execution`."""
        self.take_graph_execution(graph_exec_id)
        execution = self.get_graph_execution(graph_exec_id)
        if execution.status not in FINAL_STATUSES:
            self.put_work(WorkKind.START, graph_exec_id, graph_exec_id)
        return execution

    @property
    @abstractmethod
    def last_sequence(self) -> int:
        """The receipt of what this thread wrote last: its sequence number on the write ring, for `wait_durable`.

        0 if there is nothing to wait for. Any process of the host may wait for it. Charges go another way: `durable`
        and `charge_usage(async_mode=False)` wait for them, and `flush`."""

    @property
    def watermark(self) -> str:
        """What this thread wrote last, on either ring, as a text for `shmcache.reader.Reader.wait_for` on any machine.

        Empty where there is nothing to wait for."""
        return ""

    @abstractmethod
    def wait_durable(self, sequence: int, timeout_seconds: float | None = None) -> None:
        """Return when everything up to `sequence` on the write ring is committed in PostgreSQL. Blocks.

        Raises FlushTimeout with how far it got, InvalidValue for a sequence that was not given out yet."""

    @abstractmethod
    def flush(self, timeout_seconds: float | None = None) -> None:
        """Return when all that this process wrote before the call is committed in PostgreSQL. Blocks.

        Raises FlushTimeout with how far it got."""

    @abstractmethod
    def close(self) -> None:
        """Give back what this client holds (connection, mapping). Unsynced writes stay on the ring."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
