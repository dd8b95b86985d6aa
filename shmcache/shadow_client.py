"""ShadowClient: the old way and the arena side by side, to see whether they ever differ.

Every call is done on PostgreSQL by a DirectClient, and what that answers is the answer. Then the same call is done on
the arena, which carries nothing to the database here, and its answer is compared. A difference is counted (`shmcache
inspect`, `SHADOW_DIFFERENCES`), logged with both answers, and the arena forgets that graph execution, so that one
difference is counted once. What the two do at different moments they do with the same identifiers and times: those that
the database has. So everything is compared, but for what an execution has cost before it has ended, which only the
direct client notes by then.

    1  lock      graph execution, then account: byte-range locks, which the kernel takes back from the dead
    2  account   the arena's credits are set to what the database says, since others change it too
    3  direct    the call, or all calls of an `atomically`, committed
    4  arena     the same calls, in one transaction of the arena; compared
    5  queue     entries of the work queue, which must not be taken up before 4

It takes the direct client's time and a little more, and one account at a time. A client is for one thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from shmcache.arena import Arena, Counter
from shmcache.config import Settings
from shmcache.direct_client import DirectClient
from shmcache.echo_client import EchoClient
from shmcache.errors import InsufficientBalanceError, NotFound, ShmcacheError
from shmcache.execution_data_client import ExecutionDataClient, Work, WorkKind
from shmcache.identifiers import id_bytes
from shmcache.key_locks import KeyLocks
from shmcache.records import (
    FINAL_STATUSES,
    ExecutionStatus,
    Graph,
    GraphExecution,
    InputSource,
    NodeDefinition,
    NodeExecution,
)
from shmcache.work_queue import SharedWorkQueue

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_KNOWN = 100_000
_SHOWN = 400


class _Call(NamedTuple):
    """A call that the direct client has answered, and what the arena's client needs to give the same answer."""

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    graph_exec_id: str | None
    answer: Any
    error: Exception | None
    identifier: str | None
    time: float | None


class ShadowClient(ExecutionDataClient):
    """The client that asks both. One for each process and thread."""

    def __init__(self, arena: Arena, database_url: str, settings: Settings) -> None:
        def count_wait() -> None:
            arena.count(Counter.BLOCKING_DB_OPERATIONS)

        self._arena = arena
        self._queue = SharedWorkQueue(arena)
        self._direct = DirectClient(database_url, work_queue=self._queue, settings=settings, on_wait=count_wait)
        self._echo = EchoClient(arena, database_url, settings)
        self._locks = KeyLocks(settings.state_dir / "locks" / f"{arena.name}.shadow.lock")
        self._calls: list[_Call] | None = None
        self._following: list[Callable[[], None]] = []
        self._graph_of: dict[str, str] = {}
        self._user_of: dict[str, str] = {}

    # Definitions

    def save_graph(self, graph: Graph, nodes: Sequence[NodeDefinition]) -> None:
        """See ExecutionDataClient."""
        self._direct.save_graph(graph, nodes)

    def get_graph(self, graph_id: str, version: int = 1) -> Graph:
        """See ExecutionDataClient."""
        return cast("Graph", self._ask("get_graph", None, None, graph_id, version))

    def get_node(self, node_id: str) -> NodeDefinition:
        """See ExecutionDataClient."""
        return cast("NodeDefinition", self._ask("get_node", None, None, node_id))

    # Executions, read

    def get_graph_execution(self, graph_exec_id: str) -> GraphExecution:
        """See ExecutionDataClient."""
        return cast("GraphExecution", self._ask("get_graph_execution", graph_exec_id, None, graph_exec_id))

    def get_node_execution(self, node_exec_id: str) -> NodeExecution:
        """See ExecutionDataClient."""
        graph_exec_id = self._graph_exec_of(node_exec_id)
        return cast("NodeExecution", self._ask("get_node_execution", graph_exec_id, None, node_exec_id))

    def get_node_executions(
        self,
        graph_exec_id: str,
        node_id: str | None = None,
        block_ids: Collection[str] | None = None,
        statuses: Collection[ExecutionStatus] | None = None,
        limit: int | None = None,
    ) -> list[NodeExecution]:
        """See ExecutionDataClient."""
        found = self._ask(
            "get_node_executions", graph_exec_id, None, graph_exec_id, node_id, block_ids, statuses, limit
        )
        return cast("list[NodeExecution]", found)

    def get_latest_node_execution(self, node_id: str, graph_exec_id: str) -> NodeExecution | None:
        """See ExecutionDataClient."""
        found = self._ask("get_latest_node_execution", graph_exec_id, None, node_id, graph_exec_id)
        return cast("NodeExecution | None", found)

    # Executions, written

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
        """See ExecutionDataClient."""
        del durable, urgent
        made = self._ask(
            "create_graph_execution", None, None, graph_id, user_id, inputs,
            graph_version=graph_version, preset_id=preset_id,
        )  # fmt: skip
        return cast("GraphExecution", made)

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
        del durable, urgent
        given = self._ask(
            "upsert_execution_input", graph_exec_id, None,
            node_id, graph_exec_id, input_name, input_data, node_exec_id, source,
        )  # fmt: skip
        return cast("tuple[str, Mapping[str, Any]]", given)

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
        del durable, urgent
        graph_exec_id = self._graph_exec_of(node_exec_id)
        found = self._ask(
            "upsert_execution_output", graph_exec_id, None, node_exec_id, output_name, output_data, ordinal=ordinal
        )
        return cast("NodeExecution", found)

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
        del durable, urgent
        graph_exec_id = self._graph_exec_of(node_exec_id)
        user_id = self._owner_of(graph_exec_id) if status in FINAL_STATUSES else None
        found = self._ask(
            "update_node_execution_status", graph_exec_id, user_id, node_exec_id, status, execution_data, stats
        )
        return cast("NodeExecution", found)

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
        del durable, urgent
        user_id = self._owner_of(graph_exec_id) if status in FINAL_STATUSES else None
        found = self._ask("update_graph_execution_stats", graph_exec_id, user_id, graph_exec_id, status, stats)
        return cast("GraphExecution", found)

    # Credits

    def get_credits(self, user_id: str) -> int:
        """See ExecutionDataClient."""
        return cast("int", self._ask("get_credits", None, user_id, user_id))

    def increment_execution_count(self, user_id: str, node_exec_id: str | None = None) -> int:
        """See ExecutionDataClient."""
        graph_exec_id = None if node_exec_id is None else self._graph_exec_of(node_exec_id)
        return cast("int", self._ask("increment_execution_count", graph_exec_id, user_id, user_id, node_exec_id))

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
        del durable, urgent
        return cast("int", self._ask("spend_credits", None, user_id, user_id, cost, metadata, transaction_key))

    def charge_usage(self, node_exec: NodeExecution, execution_count: int, async_mode: bool = True) -> tuple[int, int]:
        """See ExecutionDataClient."""
        del async_mode
        charged = self._ask("charge_usage", node_exec.graph_exec_id, node_exec.user_id, node_exec, execution_count)
        return cast("tuple[int, int]", charged)

    # Several writes at once, work, durability

    def atomically(self, work: Callable[[], T], *, durable: bool = False, urgent: bool = False) -> T:
        """See ExecutionDataClient."""
        del durable, urgent
        if self._calls is not None:
            return work()

        def record() -> T:
            self._calls = []
            self._following = []
            return work()

        try:
            try:
                result = self._direct.atomically(record)
            except InsufficientBalanceError as error:
                self._repeat(self._calls or [], error)
                raise
            self._repeat(self._calls or [], None)
            following = self._following
        finally:
            self._calls = None
            self._following = []
            self._locks.release()
        for step in following:
            step()
        return result

    def put_work(self, kind: WorkKind, identifier: str, graph_exec_id: str) -> None:
        """See ExecutionDataClient."""
        self._afterwards(lambda: self._queue.put(kind, identifier, graph_exec_id))

    def take_work(self, timeout_seconds: float) -> Work | None:
        """See ExecutionDataClient."""
        return self._queue.take(timeout_seconds)

    def end_work(self, work: Work, graph_exec_id: str) -> None:
        """See ExecutionDataClient."""
        self._afterwards(lambda: self._queue.end(work, graph_exec_id))

    @property
    def last_sequence(self) -> int:
        """See ExecutionDataClient. Nothing is ever left to wait for."""
        return 0

    def wait_durable(self, sequence: int, timeout_seconds: float | None = None) -> None:
        """See ExecutionDataClient. Everything is committed already."""

    def flush(self, timeout_seconds: float | None = None) -> None:
        """See ExecutionDataClient. Everything is committed already."""

    def close(self) -> None:
        """See ExecutionDataClient."""
        self._direct.close()
        self._echo.close()
        self._locks.close()

    # Both

    def _afterwards(self, step: Callable[[], None]) -> None:
        if self._calls is None:
            step()
        else:
            self._following.append(step)

    def _ask(self, name: str, graph_exec_id: str | None, user_id: str | None, *arguments: Any, **options: Any) -> Any:
        """Do a call on the direct client, and note it, or do it on the arena too. Raises what the direct client does.

        `graph_exec_id` and `user_id` are what must not change between the two."""
        alone = self._calls is None
        try:
            for identifier in (graph_exec_id, user_id):
                if identifier is not None and self._locks.hold(id_bytes(identifier)) and identifier is user_id:
                    self._echo.renew_account(identifier)
            error: Exception | None = None
            answer = None
            try:
                answer = getattr(self._direct, name)(*arguments, **options)
            except ShmcacheError as raised:
                error = raised
            call = self._call(name, arguments, options, graph_exec_id, answer, error)
            if alone:
                self._repeat([call], error)
            elif self._calls is not None and (error is None or isinstance(error, InsufficientBalanceError)):
                self._calls.append(call)
        finally:
            if alone:
                self._locks.release()
        if error is not None:
            raise error
        return answer

    def _call(
        self,
        name: str,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        graph_exec_id: str | None,
        answer: Any,
        error: Exception | None,
    ) -> _Call:
        """Note a call, with the identifier and the time that the database has for what it made or moved."""
        identifier: str | None = None
        time: float | None = None
        if error is None and name == "upsert_execution_input":
            identifier = answer[0]
            if identifier not in self._graph_of:
                time = self._direct.get_node_execution(identifier).created_at
                self._note(identifier, graph_exec_id)
        elif error is None and name == "create_graph_execution":
            identifier, time = answer.id, answer.created_at
        elif isinstance(answer, GraphExecution | NodeExecution) and name.startswith("update"):
            status = arguments[1]
            if status is ExecutionStatus.QUEUED and isinstance(answer, NodeExecution):
                time = answer.queued_at
            elif status is ExecutionStatus.RUNNING:
                time = answer.started_at
            elif status in FINAL_STATUSES:
                time = answer.ended_at
        return _Call(name, arguments, options, graph_exec_id, answer, error, identifier, time)

    def _repeat(self, calls: Sequence[_Call], error: Exception | None) -> None:
        """Do calls on the arena, all together, and compare each answer, and what is raised at their end."""
        if not calls:
            return
        differences: list[str] = []

        def repeat() -> None:
            differences.clear()
            for call in calls:
                answer = self._echo.repeat(call.name, call.arguments, call.options, call.identifier, call.time)
                if call.error is None and _comparable(answer) != _comparable(call.answer):
                    differences.append(
                        f"{call.name}{_shown(call.arguments)}: {_shown(call.answer)}, the arena {_shown(answer)}"
                    )

        raised: Exception | None = None
        try:
            if len(calls) == 1 and calls[0].name.startswith(("get_", "increment_")):
                repeat()
            else:
                self._echo.atomically(repeat)
        except Exception as failure:  # whatever it is, the caller has its answer
            raised = failure
        if type(raised) is not type(error):
            differences.append(
                f"{', '.join(call.name for call in calls)}: {_raised(error)}, the arena {_raised(raised)}"
            )
        self._arena.count(Counter.SHADOW_COMPARED, len(calls))
        if differences:
            self._arena.count(Counter.SHADOW_DIFFERENCES, len(differences))
            for difference in differences:
                logger.warning("difference: %s", difference)
            for graph_exec_id in {call.graph_exec_id for call in calls}:
                if graph_exec_id is not None:
                    self._arena.drop_family(id_bytes(graph_exec_id))

    # What belongs to what

    def _graph_exec_of(self, node_exec_id: str) -> str | None:
        """Return the graph execution of a node execution, None if there is none."""
        found = self._graph_of.get(node_exec_id)
        if found is None:
            try:
                found = self._direct.get_node_execution(node_exec_id).graph_exec_id
            except NotFound:
                return None
            self._note(node_exec_id, found)
        return found

    def _note(self, node_exec_id: str, graph_exec_id: str | None) -> None:
        if graph_exec_id is not None:
            if len(self._graph_of) >= _MOST_KNOWN:
                self._graph_of.clear()
            self._graph_of[node_exec_id] = graph_exec_id

    def _owner_of(self, graph_exec_id: str | None) -> str | None:
        """Return whose graph execution it is, None if there is none."""
        if graph_exec_id is None:
            return None
        found = self._user_of.get(graph_exec_id)
        if found is None:
            try:
                found = self._direct.get_graph_execution(graph_exec_id).user_id
            except NotFound:
                return None
            if len(self._user_of) >= _MOST_KNOWN:
                self._user_of.clear()
            self._user_of[graph_exec_id] = found
        return found


def _comparable(answer: Any) -> Any:
    """Return an answer such that the same answer of the other client is equal."""
    if isinstance(answer, NodeExecution) and answer.status not in FINAL_STATUSES:
        answer = answer._replace(stats={name: v for name, v in answer.stats.items() if name not in ("cost", "held")})
    if isinstance(answer, Mapping):
        return {key: _comparable(value) for key, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [_comparable(value) for value in answer]
    return answer


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _raised(error: Exception | None) -> str:
    return "succeeds" if error is None else f"raises {type(error).__name__}: {error}"
