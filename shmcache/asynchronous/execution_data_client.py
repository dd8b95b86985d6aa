"""AsyncExecutionDataClient: the calls of `ExecutionDataClient` as coroutines, for an event loop.

    async with get_db_async_client() as client:
        node = await client.get_node(node_id)                                  # a hit: the loop goes on at once
        await client.upsert_execution_output(node_exec_id, "result", 42)

The same names, parameters, defaults, results and errors. "Blocks" in a docstring means here: the task waits, the loop
never does. One client serves all event loops of a process, in whatever threads they run.

- What the arena answers is answered on the loop, in one step. Where the synchronous client would wait, a thread
  waits: for the database, for a lock, for room. One thread sleeps for all tasks that wait for work, one for all that
  wait until something is durable.
- A call that was cancelled was made as a whole or not at all, and nothing of it happens later. A write that was to be
  durable and is cancelled while it waits for that is made, and carried to the database as every other.
- `atomically` takes an ordinary function, whose calls are those of `client.inside`; see `shmcache.asynchronous.calls`.

This module is written by `python -m tools.async_interface` from `execution_data_client.py`: change that one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast, overload

from shmcache.asynchronous.calls import AsyncCalls
from shmcache.execution_data_client import Work, WorkKind
from shmcache.records import (
    ExecutionStatus,
    Graph,
    GraphExecution,
    InputSource,
    NodeDefinition,
    NodeExecution,
)

T = TypeVar("T")


class AsyncExecutionDataClient(AsyncCalls):
    """The interface of all asynchronous clients. "Blocks" in a docstring means: the task waits, the loop never does."""

    def save_graph(self, graph: Graph, nodes: Sequence[NodeDefinition]) -> Coroutine[Any, Any, None]:
        """Save a graph with its nodes. Blocks. One that is there already stays as it is: ids name contents."""
        if self._transactions:
            self._outside()
        return self._run(self._client.save_graph, graph, nodes)

    def get_graph(self, graph_id: str, version: int = 1) -> Coroutine[Any, Any, Graph]:
        """Return a graph (on a platform's tables: a version of it). Cached: blocks only on a miss. Raises NotFound."""
        if self._transactions:
            self._outside()
        return self._run(self._client.get_graph, graph_id, version)

    def get_node(self, node_id: str) -> Coroutine[Any, Any, NodeDefinition]:
        """Return a node's definition. Cached: blocks only on a miss, which loads its whole graph. Raises NotFound."""
        if self._transactions:
            self._outside()
        return self._run(self._client.get_node, node_id)

    def get_graph_execution(self, graph_exec_id: str) -> Coroutine[Any, Any, GraphExecution]:
        """Return a graph execution. Cached: blocks only on a miss. Raises NotFound."""
        if self._transactions:
            self._outside()
        return self._run(self._client.get_graph_execution, graph_exec_id)

    def get_node_execution(self, node_exec_id: str) -> Coroutine[Any, Any, NodeExecution]:
        """Return a node execution. Cached: blocks only on a miss. Raises NotFound."""
        if self._transactions:
            self._outside()
        return self._run(self._client.get_node_execution, node_exec_id)

    def get_node_executions(
        self,
        graph_exec_id: str,
        node_id: str | None = None,
        block_ids: Collection[str] | None = None,
        statuses: Collection[ExecutionStatus] | None = None,
        limit: int | None = None,
    ) -> Coroutine[Any, Any, list[NodeExecution]]:
        """Return the executions of a graph execution that match all filters, oldest first, at most `limit`.

        Cached: blocks only on a miss."""
        if self._transactions:
            self._outside()
        return self._run(self._client.get_node_executions, graph_exec_id, node_id, block_ids, statuses, limit)

    def get_latest_node_execution(self, node_id: str, graph_exec_id: str) -> Coroutine[Any, Any, NodeExecution | None]:
        """Return the youngest execution of a node in a graph execution, or None. Cached: blocks only on a miss."""
        if self._transactions:
            self._outside()
        return self._run(self._client.get_latest_node_execution, node_id, graph_exec_id)

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
    ) -> Coroutine[Any, Any, GraphExecution]:
        """Create a QUEUED run of a graph for a user and return it.

        `inputs` maps the nodes to start to their inputs; None takes what the graph's definition starts.
        `graph_version` and `preset_id` are of use on a platform's tables, which have them.
        Cached: blocks only if the graph is a miss. Raises NotFound for an unknown graph, InvalidValue."""
        if self._transactions:
            self._outside()
        return self._run_and_carry(
            self._client.create_graph_execution,
            graph_id,
            user_id,
            inputs,
            graph_version=graph_version,
            preset_id=preset_id,
            durable=durable,
            urgent=urgent,
        )

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
    ) -> Coroutine[Any, Any, tuple[str, Mapping[str, Any]]]:
        """Give an input to an execution of a node; return (its id, all its inputs so far).

        Without `node_exec_id` it goes to the oldest INCOMPLETE execution of the node that lacks this input, or to a
        new one, atomically between processes. With it, to that execution, unless it has this input already.
        An `input_name` of None creates an INCOMPLETE execution without any input. `source` records which output it
        came from. Cached: blocks only on a miss. Raises InvalidValue, NotFound, RingFull."""
        if self._transactions:
            self._outside()
        return self._run_and_carry(
            self._client.upsert_execution_input,
            node_id,
            graph_exec_id,
            input_name,
            input_data,
            node_exec_id,
            source,
            durable=durable,
            urgent=urgent,
        )

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
    ) -> Coroutine[Any, Any, NodeExecution]: ...

    @overload
    def upsert_execution_output(
        self,
        node_exec_id: str,
        output_name: Mapping[str, Any],
        *,
        ordinal: int | None = None,
        durable: bool = False,
        urgent: bool = False,
    ) -> Coroutine[Any, Any, NodeExecution]: ...

    def upsert_execution_output(
        self,
        node_exec_id: str,
        output_name: str | Mapping[str, Any],
        output_data: Any = None,
        *,
        ordinal: int | None = None,
        durable: bool = False,
        urgent: bool = False,
    ) -> Coroutine[Any, Any, NodeExecution]:
        """Append an output, or one for each item of a mapping; return the record after it.

        With `ordinal` (the number of outputs the caller believes are there) it is idempotent: an output whose
        ordinal is there already is not appended again. Cached: blocks only on a miss.
        Raises InvalidValue, NotFound, RingFull."""
        if self._transactions:
            self._outside()
        return self._run_and_carry(
            cast("Callable[..., NodeExecution]", self._client.upsert_execution_output),
            node_exec_id,
            output_name,
            output_data,
            ordinal=ordinal,
            durable=durable,
            urgent=urgent,
        )

    def update_node_execution_status(
        self,
        node_exec_id: str,
        status: ExecutionStatus,
        execution_data: Mapping[str, Any] | None = None,
        stats: Mapping[str, Any] | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> Coroutine[Any, Any, NodeExecution]:
        """Move a node execution's status; return the record after it, or as it is where the move is not allowed.

        `execution_data` replaces inputs of the same names and adds the others; `stats` is merged into the record's.
        QUEUED, RUNNING and the final statuses set queued_at, started_at and ended_at. Cached: blocks only on a miss.
        Raises InvalidValue, NotFound, RingFull."""
        if self._transactions:
            self._outside()
        return self._run_and_carry(
            self._client.update_node_execution_status,
            node_exec_id,
            status,
            execution_data,
            stats,
            durable=durable,
            urgent=urgent,
        )

    def update_node_execution_status_batch(
        self, node_exec_ids: Sequence[str], status: ExecutionStatus, stats: Mapping[str, Any] | None = None
    ) -> Coroutine[Any, Any, list[NodeExecution]]:
        """Move several node executions' status; return their records in the order given.

        Each is moved or refused by itself; not all together."""
        if self._transactions:
            self._outside()
        return self._run(self._client.update_node_execution_status_batch, node_exec_ids, status, stats)

    def update_graph_execution_stats(
        self,
        graph_exec_id: str,
        status: ExecutionStatus | None = None,
        stats: Mapping[str, Any] | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> Coroutine[Any, Any, GraphExecution]:
        """Move a graph execution's status, merge `stats` into its own; return the record after it.

        A move that is not allowed leaves the record as it is, statistics included. Cached: blocks only on a miss.
        Raises InvalidValue, NotFound, RingFull."""
        if self._transactions:
            self._outside()
        return self._run_and_carry(
            self._client.update_graph_execution_stats, graph_exec_id, status, stats, durable=durable, urgent=urgent
        )

    def get_credits(self, user_id: str) -> Coroutine[Any, Any, int]:
        """Return what a user has left after all charges and holds so far; below 0 it is owed.

        Cached: blocks only on a miss. Raises NotFound."""
        if self._transactions:
            self._outside()
        return self._run(self._client.get_credits, user_id)

    def increment_execution_count(self, user_id: str, node_exec_id: str | None = None) -> Coroutine[Any, Any, int]:
        """Count one more execution for a user; return the count after it.

        With `node_exec_id`, asking again for the same execution counts once and gives the same number (the direct
        client keeps no such memory once the execution is charged). Cached: blocks only on a miss. Raises NotFound."""
        if self._transactions:
            self._outside()
        return self._run(self._client.increment_execution_count, user_id, node_exec_id)

    def spend_credits(
        self,
        user_id: str,
        cost: int,
        metadata: Mapping[str, Any] | None = None,
        transaction_key: str | None = None,
        *,
        durable: bool = False,
        urgent: bool = False,
    ) -> Coroutine[Any, Any, int]:
        """Charge a user; return the balance left. Cached: holds the credits at once, they are settled later.

        `transaction_key` is the idempotency key of the ledger's row: asking again with it charges nothing, and is not
        refused. Without one, a new one is made. Cached: blocks only on a miss. Raises InsufficientBalanceError (nothing
        is charged), InvalidValue for what is no amount from 0 to 2**62 or no key, NotFound, RingFull."""
        if self._transactions:
            self._outside()
        return self._run_and_carry(
            self._client.spend_credits, user_id, cost, metadata, transaction_key, durable=durable, urgent=urgent
        )

    def charge_usage(
        self, node_exec: NodeExecution, execution_count: int, async_mode: bool = True
    ) -> Coroutine[Any, Any, tuple[int, int]]:
        """Charge a node execution by its block's cost and the fee; return (cost, balance left).

        Charges once for each execution, however often it is asked. A price per second or byte is an estimate: it is
        held until the execution's status is final, which settles it to what it came to, or voids it if the execution
        never was RUNNING; `stats["cost"]` says what it was then. `stats["seconds"]`, where given, is the time taken.
        `async_mode=False` waits until it is settled in the database. See `ChargeManager._charge_usage`."""
        if self._transactions:
            self._outside()
        return self._run_and_carry(self._client.charge_usage, node_exec, execution_count, async_mode)

    def atomically(
        self, work: Callable[[], T], *, durable: bool = False, urgent: bool = False
    ) -> Coroutine[Any, Any, T]:
        """Run `work`; apply all that it writes through this client together, or nothing of it if it raises.

        `durable`, here or on a write inside, returns when all of it is in PostgreSQL, however long that takes; also if
        nothing was to be written, because it is there: then what is there is in PostgreSQL.

        Inside, reads see the writes made so far. `work` may be run more than once (another process was faster), so
        it must do nothing but read and write through this client. Nested calls join the outer one."""
        if self._transactions:
            self._outside()
        return self._run_and_carry(self._client.atomically, self._in_one_piece(work), durable=durable, urgent=urgent)

    def put_work(self, kind: WorkKind, identifier: str, graph_exec_id: str) -> Coroutine[Any, Any, None]:
        """Put a node execution (RUN) or a graph execution (START) on the work queue of this host, once.

        Never blocks. Part of the surrounding `atomically`."""
        if self._transactions:
            self._outside()
        return self._run(self._client.put_work, kind, identifier, graph_exec_id)

    def take_work(self, timeout_seconds: float) -> Coroutine[Any, Any, Work | None]:
        """Claim the next entry of the work queue, waiting for one; None after the timeout. Never blocks on PostgreSQL.

        The claim lasts until `end_work` or until this process dies, when another one takes it up."""
        if self._transactions:
            self._outside()
        return self._take_work(timeout_seconds)

    def end_work(self, work: Work, graph_exec_id: str) -> Coroutine[Any, Any, None]:
        """Give up a claim because its work is done. When it was the graph execution's last, a FINISH entry follows.

        Part of the surrounding `atomically`."""
        if self._transactions:
            self._outside()
        return self._run(self._client.end_work, work, graph_exec_id)

    def take_graph_execution(self, graph_exec_id: str) -> Coroutine[Any, Any, int]:
        """Make this host the one that writes to a graph execution, which nobody or a lost host has; return the token.

        What this host created is its own already. Another host's rows for it are refused from here on, and become dead
        letters. Blocks. Raises NotOwner while the owner's lease lasts, StillAtWork, NotFound. (The direct client is no
        host: it takes nothing, and returns 0.)"""
        if self._transactions:
            self._outside()
        return self._run(self._client.take_graph_execution, graph_exec_id)

    def resume_graph_execution(self, graph_exec_id: str) -> Coroutine[Any, Any, GraphExecution]:
        """Take a graph execution and put it on the work queue of this host, as far as it has come; return it.

        Nothing is put there if it has ended. One that somebody wants to have cancelled is ended by who works on it.
        Asking again changes nothing. Blocks. Raises as `take_graph_execution`."""
        if self._transactions:
            self._outside()
        return self._run(self._client.resume_graph_execution, graph_exec_id)

    @property
    def last_sequence(self) -> int:
        """The receipt of what this thread wrote last: its sequence number on the write ring, for `wait_durable`.

        0 if there is nothing to wait for. Any process of the host may wait for it. Charges go another way: `durable`
        and `charge_usage(async_mode=False)` wait for them, and `flush`."""
        return self._client.last_sequence

    @property
    def watermark(self) -> str:
        """What this thread wrote last, on either ring, as a text for `shmcache.reader.Reader.wait_for` on any machine.

        Empty where there is nothing to wait for."""
        return self._client.watermark

    def wait_durable(self, sequence: int, timeout_seconds: float | None = None) -> Coroutine[Any, Any, None]:
        """Return when everything up to `sequence` on the write ring is committed in PostgreSQL. Blocks.

        Raises FlushTimeout with how far it got, InvalidValue for a sequence that was not given out yet."""
        if self._transactions:
            self._outside()
        return self._wait_durable(sequence, timeout_seconds)

    def flush(self, timeout_seconds: float | None = None) -> Coroutine[Any, Any, None]:
        """Return when all that this process wrote before the call is committed in PostgreSQL. Blocks.

        Raises FlushTimeout with how far it got."""
        if self._transactions:
            self._outside()
        return self._flush(timeout_seconds)

    def close(self) -> Coroutine[Any, Any, None]:
        """Give back what this client holds (connection, mapping). Unsynced writes stay on the ring."""
        if self._transactions:
            self._outside()
        return self._close()
