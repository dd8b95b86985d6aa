"""PlatformClient: the calls that the platform's executors make, by their names and parameters, over any client of ours.

They keep the platform's manners: what is not there is None, statuses may be its own enumeration, statistics and
metadata its own models (anything with `model_dump`), several outputs of one name stay several. What an identifier names
that is no UUID raises InvalidValue.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from shmcache import session
from shmcache.autogpt.results import (
    GraphExecutionResult,
    Node,
    NodeExecutionResult,
    graph_execution_result,
    node_execution_result,
    node_result,
)
from shmcache.errors import InvalidValue, NotFound
from shmcache.execution_data_client import ExecutionDataClient
from shmcache.records import ExecutionStatus, NodeExecution, may_move


def get_db_client() -> PlatformClient:
    """Return this process's client, with the platform's calls: see `shmcache.session.get_db_client`."""
    return PlatformClient(session.get_db_client())


class PlatformClient:
    """The platform's calls. `client` is what they are made through: its other methods (`flush`, `atomically`,
    `charge_usage`, ...) are there to be used."""

    def __init__(self, client: ExecutionDataClient) -> None:
        self.client = client

    # Read

    def get_node(self, node_id: str) -> Node:
        """Return a node's definition. Raises NotFound."""
        return node_result(self.client.get_node(node_id))

    def get_node_execution(self, node_exec_id: str) -> NodeExecutionResult | None:
        """Return a node execution, or None."""
        try:
            return self._result(self.client.get_node_execution(node_exec_id))
        except NotFound:
            return None

    def get_node_executions(
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
        wanted = [_status(each) for each in statuses] if statuses else None
        found = self.client.get_node_executions(graph_exec_id, node_id, block_ids or None, wanted)
        since = float("-inf") if created_time_gte is None else created_time_gte.timestamp()
        until = float("inf") if created_time_lte is None else created_time_lte.timestamp()
        chosen = [each for each in found if since <= each.created_at <= until][:limit]
        return [self._result(each, with_data=include_exec_data) for each in chosen]

    def get_latest_node_execution(self, node_id: str, graph_exec_id: str) -> NodeExecutionResult | None:
        """Return the youngest execution of a node that is past INCOMPLETE, or None."""
        found = self.client.get_node_executions(graph_exec_id, node_id)
        begun = [each for each in found if each.status is not ExecutionStatus.INCOMPLETE]
        return self._result(max(begun, key=_age)) if begun else None

    # Written

    def create_graph_execution(
        self,
        graph_id: str,
        graph_version: int,
        starting_nodes_input: Sequence[tuple[str, Mapping[str, Any]]],
        user_id: str,
        preset_id: str | None = None,
    ) -> GraphExecutionResult:
        """Create a QUEUED run of a version of a graph, and a QUEUED execution of each node that it starts with.

        Raises NotFound for a graph or a version that is not there, InvalidValue."""

        def create() -> GraphExecutionResult:
            made = self.client.create_graph_execution(
                graph_id, user_id, dict(starting_nodes_input), graph_version=graph_version, preset_id=preset_id
            )
            started = []
            for node_id, inputs in starting_nodes_input:
                identifier, _ = self.client.upsert_execution_input(node_id, made.id, None)
                for name, value in inputs.items():
                    self.client.upsert_execution_input(node_id, made.id, name, value, identifier)
                queued = self.client.update_node_execution_status(identifier, ExecutionStatus.QUEUED)
                started.append(node_execution_result(queued, made))
            return graph_execution_result(made, tuple(started))

        return self.client.atomically(create)

    def upsert_execution_input(
        self, node_id: str, graph_exec_id: str, input_name: str, input_data: Any, node_exec_id: str | None = None
    ) -> tuple[str, Mapping[str, Any]]:
        """Give an input to an execution of a node; return (its id, all its inputs so far).

        Without `node_exec_id`: the oldest INCOMPLETE one that lacks it, or a new one."""
        return self.client.upsert_execution_input(node_id, graph_exec_id, input_name, input_data, node_exec_id)

    def upsert_execution_output(self, node_exec_id: str, output_name: str, output_data: Any) -> NodeExecutionResult:
        """Append an output; return the execution after it. Raises NotFound."""
        return self._result(self.client.upsert_execution_output(node_exec_id, output_name, output_data))

    def update_node_execution_status(
        self,
        node_exec_id: str,
        status: ExecutionStatus,
        execution_data: Mapping[str, Any] | None = None,
        stats: Any = None,
    ) -> NodeExecutionResult:
        """Move an execution's status; return it after that, or as it is where the move is not allowed.

        `execution_data` stands in place of what its inputs were. Raises NotFound."""
        moved = self.client.update_node_execution_status(
            node_exec_id, _status(status), execution_data, plain_mapping(stats)
        )
        return self._result(moved)

    def update_node_execution_status_batch(
        self, node_exec_ids: Sequence[str], status: ExecutionStatus, stats: Any = None
    ) -> int:
        """Move several executions' status; return how many of them moved."""
        target = _status(status)
        count = 0
        for each in node_exec_ids:

            def move(node_exec_id: str = each) -> bool:
                before = self.client.get_node_execution(node_exec_id)
                self.client.update_node_execution_status(node_exec_id, target, None, plain_mapping(stats))
                return may_move(before.status, target)

            count += self.client.atomically(move)
        return count

    def update_graph_execution_start_time(self, graph_exec_id: str) -> GraphExecutionResult | None:
        """Move a graph execution to RUNNING, which sets its start; None if there is none."""
        return self.update_graph_execution_stats(graph_exec_id, ExecutionStatus.RUNNING)

    def update_graph_execution_stats(
        self, graph_exec_id: str, status: ExecutionStatus | None = None, stats: Any = None
    ) -> GraphExecutionResult | None:
        """Move a graph execution's status and merge statistics; None if there is none.

        A move that is not allowed leaves all of it as it is."""
        target = None if status is None else _status(status)
        try:
            return graph_execution_result(
                self.client.update_graph_execution_stats(graph_exec_id, target, plain_mapping(stats))
            )
        except NotFound:
            return None

    # Credits

    def spend_credits(self, user_id: str, cost: int, metadata: Any = None, transaction_key: str | None = None) -> int:
        """Charge a user; return the balance left. Raises InsufficientBalanceError, and then nothing is charged.

        Asking again with the same `transaction_key` charges nothing more."""
        return self.client.spend_credits(user_id, cost, plain_mapping(metadata), transaction_key)

    def get_credits(self, user_id: str) -> int:
        """Return what a user has left. Raises NotFound."""
        return self.client.get_credits(user_id)

    def increment_execution_count(self, user_id: str) -> int:
        """Count one more execution for a user; return the count after it. Raises NotFound."""
        return self.client.increment_execution_count(user_id)

    # Durability

    def flush(self, timeout_seconds: float | None = None) -> None:
        """Return when all that this process wrote is committed in PostgreSQL: before a message is acknowledged.

        Raises FlushTimeout."""
        self.client.flush(timeout_seconds)

    def _result(self, execution: NodeExecution, *, with_data: bool = True) -> NodeExecutionResult:
        graph_exec = self.client.get_graph_execution(execution.graph_exec_id)
        return node_execution_result(execution, graph_exec, with_data=with_data)


def _age(execution: NodeExecution) -> tuple[float, float, str]:
    return execution.queued_at or 0.0, execution.created_at, execution.id


def _status(status: Any) -> ExecutionStatus:
    """Return a status of ours for one of the platform's enumeration, a text, or our own. Raises InvalidValue."""
    try:
        return ExecutionStatus(getattr(status, "value", status))
    except ValueError:
        raise InvalidValue(f"{status!r} is no status of an execution") from None


def plain_mapping(model: Any) -> Mapping[str, Any] | None:
    """Return statistics or metadata as a mapping of JSON values. Raises InvalidValue."""
    if model is None or isinstance(model, Mapping):
        return model
    dump = getattr(model, "model_dump", None)
    if dump is None:
        raise InvalidValue(f"statistics and metadata are mappings or models with model_dump(), not {type(model)!r}")
    plain: Mapping[str, Any] = dump(mode="json")
    return plain
