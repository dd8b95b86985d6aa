"""AsyncPlatformClient: the platform's calls as coroutines, for an event loop.

Each call is one step on the client for event loops: what the arena answers is answered on the loop, what has to wait
waits in a thread, and a call that is cancelled is made as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from shmcache import session
from shmcache.asynchronous.execution_data_client import AsyncExecutionDataClient
from shmcache.autogpt.client import PlatformClient, plain_mapping
from shmcache.autogpt.results import GraphExecutionResult, Node, NodeExecutionResult
from shmcache.records import ExecutionStatus

T = TypeVar("T")


def get_db_async_client() -> AsyncPlatformClient:
    """Return this process's client for event loops, with the platform's calls: see `shmcache.get_db_async_client`."""
    return AsyncPlatformClient(session.get_db_async_client())


class AsyncPlatformClient:
    """The platform's calls as coroutines. `client` is what they are made through: its other methods are there to be
    used."""

    def __init__(self, client: AsyncExecutionDataClient) -> None:
        self.client = client

    async def _step(self, call: Callable[[PlatformClient], T]) -> T:
        return await self.client.atomically(lambda: call(PlatformClient(self.client.inside)))

    async def get_node(self, node_id: str) -> Node:
        """Return a node's definition. Raises NotFound."""
        return await self._step(lambda on: on.get_node(node_id))

    async def get_node_execution(self, node_exec_id: str) -> NodeExecutionResult | None:
        """Return a node execution, or None."""
        return await self._step(lambda on: on.get_node_execution(node_exec_id))

    async def get_node_executions(
        self,
        graph_exec_id: str,
        node_id: str | None = None,
        block_ids: Collection[str] | None = None,
        statuses: Collection[ExecutionStatus] | None = None,
        limit: int | None = None,
        created_time_gte: datetime | None = None,
        created_time_lte: datetime | None = None,
        include_exec_data: bool = True,
    ) -> list[NodeExecutionResult]:
        """Return the executions of a graph execution that match all filters, oldest first, at most `limit`.

        An empty filter is none. `include_exec_data=False` leaves out what went in and came out."""
        return await self._step(
            lambda on: on.get_node_executions(
                graph_exec_id,
                node_id,
                block_ids,
                statuses,
                limit,
                created_time_gte,
                created_time_lte,
                include_exec_data,
            )
        )

    async def get_latest_node_execution(self, node_id: str, graph_exec_id: str) -> NodeExecutionResult | None:
        """Return the youngest execution of a node that is past INCOMPLETE, or None."""
        return await self._step(lambda on: on.get_latest_node_execution(node_id, graph_exec_id))

    async def create_graph_execution(
        self,
        graph_id: str,
        graph_version: int,
        starting_nodes_input: Sequence[tuple[str, Mapping[str, Any]]],
        user_id: str,
        preset_id: str | None = None,
    ) -> GraphExecutionResult:
        """Create a QUEUED run of a version of a graph, and a QUEUED execution of each node that it starts with.

        Raises NotFound for a graph or a version that is not there, InvalidValue."""
        return await self._step(
            lambda on: on.create_graph_execution(graph_id, graph_version, starting_nodes_input, user_id, preset_id)
        )

    async def upsert_execution_input(
        self, node_id: str, graph_exec_id: str, input_name: str, input_data: Any, node_exec_id: str | None = None
    ) -> tuple[str, Mapping[str, Any]]:
        """Give an input to an execution of a node; return (its id, all its inputs so far).

        Without `node_exec_id`: the oldest INCOMPLETE one that lacks it, or a new one."""
        return await self._step(
            lambda on: on.upsert_execution_input(node_id, graph_exec_id, input_name, input_data, node_exec_id)
        )

    async def upsert_execution_output(
        self, node_exec_id: str, output_name: str, output_data: Any
    ) -> NodeExecutionResult:
        """Append an output; return the execution after it. Raises NotFound."""
        return await self._step(lambda on: on.upsert_execution_output(node_exec_id, output_name, output_data))

    async def update_node_execution_status(
        self,
        node_exec_id: str,
        status: ExecutionStatus,
        execution_data: Mapping[str, Any] | None = None,
        stats: Any = None,
    ) -> NodeExecutionResult:
        """Move an execution's status; return it after that, or as it is where the move is not allowed.

        `execution_data` stands in place of what its inputs were. Raises NotFound."""
        return await self._step(lambda on: on.update_node_execution_status(node_exec_id, status, execution_data, stats))

    async def update_node_execution_status_batch(
        self, node_exec_ids: Sequence[str], status: ExecutionStatus, stats: Any = None
    ) -> int:
        """Move several executions' status; return how many of them moved."""
        count = 0
        for each in node_exec_ids:  # each by itself, as in the other client
            count += await self._step(
                partial(
                    PlatformClient.update_node_execution_status_batch, node_exec_ids=[each], status=status, stats=stats
                )
            )
        return count

    async def update_graph_execution_start_time(self, graph_exec_id: str) -> GraphExecutionResult | None:
        """Move a graph execution to RUNNING, which sets its start; None if there is none."""
        return await self._step(lambda on: on.update_graph_execution_start_time(graph_exec_id))

    async def update_graph_execution_stats(
        self, graph_exec_id: str, status: ExecutionStatus | None = None, stats: Any = None
    ) -> GraphExecutionResult | None:
        """Move a graph execution's status and merge statistics; None if there is none.

        A move that is not allowed leaves all of it as it is."""
        return await self._step(lambda on: on.update_graph_execution_stats(graph_exec_id, status, stats))

    async def spend_credits(
        self, user_id: str, cost: int, metadata: Any = None, transaction_key: str | None = None
    ) -> int:
        """Charge a user; return the balance left. Raises InsufficientBalanceError, and then nothing is charged.

        Asking again with the same `transaction_key` charges nothing more."""
        return await self.client.spend_credits(user_id, cost, plain_mapping(metadata), transaction_key)

    async def get_credits(self, user_id: str) -> int:
        """Return what a user has left. Raises NotFound."""
        return await self.client.get_credits(user_id)

    async def increment_execution_count(self, user_id: str) -> int:
        """Count one more execution for a user; return the count after it. Raises NotFound."""
        return await self.client.increment_execution_count(user_id)

    async def flush(self, timeout_seconds: float | None = None) -> None:
        """Return when all that this process wrote is committed in PostgreSQL: before a message is acknowledged.

        Raises FlushTimeout."""
        await self.client.flush(timeout_seconds)
