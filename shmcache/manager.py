"""The manager: what a worker process does with the work it takes. It sees nothing but an ExecutionDataClient.

A graph execution is a START entry on the work queue, then a RUN entry for each node execution whose linked inputs
have all come, then, when none is queued or running any more, one FINISH entry. Any worker takes the next entry. A
worker's death returns its entry, so everything here may be done twice and must come out as if it was done once:

- what belongs together is written together (`client.atomically`): an output with what it feeds, a final status with the
  end of its work entry, and both at once where a block returns a list and not an iterator;
- a block that is run again yields again; outputs that are recorded already are not recorded again (they are counted),
  and each
  input says which output it came from, so that it is not given twice;
- a charge is noted with its execution in the step that makes it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from shmcache import tracing
from shmcache.blocks import get_block
from shmcache.errors import InsufficientBalanceError, NotFound, RingFull, Unavailable
from shmcache.execution_data_client import ExecutionDataClient, Work, WorkKind
from shmcache.frozen import freeze, thaw
from shmcache.nested_pins import is_nested, put_together, split_pin, take
from shmcache.progress import heartbeat
from shmcache.records import (
    FINAL_STATUSES,
    ExecutionStatus,
    GraphExecution,
    InputSource,
    Link,
    NodeDefinition,
    NodeExecution,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LINKS_AT_ONCE = 32
"""Links fed in one transaction: bounds its size, whatever a node fans out to."""
_STEP_LOAD = _LINKS_AT_ONCE + 1
"""Outputs and links in one transaction, where several outputs are at hand at once."""
_HAS_RUN = (ExecutionStatus.RUNNING, ExecutionStatus.COMPLETED, ExecutionStatus.FAILED)
_MOST_SHAPES = 50_000
_TAKE_SECONDS = 0.5
_RETRY_SECONDS = 0.5


class Stopped(Exception):
    """The worker was asked to stop while it waited for what was away: the work goes back to the queue with the
    process's end."""


def run_worker(
    client: ExecutionDataClient,
    should_stop: Callable[[], bool],
    max_attempts: int,
    max_steps: int | None = None,
    *,
    durable_ends: bool = False,
) -> None:
    """Take work and do it until `should_stop()`; the entry at hand is finished first.

    A node execution whose workers died `max_attempts` times is FAILED. A graph execution of which `max_steps` node
    executions have run runs no other: they end TERMINATED."""
    manager = Manager(client, should_stop, max_attempts, max_steps, durable_ends=durable_ends)
    do = tracing.of_runs(client, manager.do)
    while not should_stop():
        work = client.take_work(_TAKE_SECONDS)
        if work is not None:
            try:
                do(work)
            except Stopped:
                return


class _Shape(NamedTuple):
    """What the manager asks of a node's links again and again: links by output, and by output those that take a place
    inside its value; linked inputs, static inputs."""

    node: NodeDefinition
    links_from: dict[str, list[Link]]
    nested_from: dict[str, list[Link]]
    linked: frozenset[str]
    statics: tuple[str, ...]


def _shape(node: NodeDefinition) -> _Shape:
    links_from: dict[str, list[Link]] = {}
    nested_from: dict[str, list[Link]] = {}
    # In the order of the sinks, so that two nodes that feed the same ones lock them in one order.
    for link in sorted(node.output_links, key=lambda link: link.sink_node_id):
        links_from.setdefault(link.source_name, []).append(link)
        if is_nested(link.source_name):
            nested_from.setdefault(split_pin(link.source_name)[0], []).append(link)
    statics = tuple(dict.fromkeys(link.sink_name for link in node.input_links if link.is_static))
    return _Shape(node, links_from, nested_from, frozenset(link.sink_name for link in node.input_links), statics)


class _Piece(NamedTuple):
    """An output, the `ordinal`-th of its execution, and some of the links from it; `is_first` records it."""

    ordinal: int
    name: str
    value: Any
    is_first: bool
    links: Sequence[Link]


class _Refused(Exception):
    """A block's output cannot be had, or not be recorded: the `ordinal`-th."""

    def __init__(self, ordinal: int, error: Exception) -> None:
        super().__init__(ordinal, error)
        self.ordinal = ordinal
        self.error = error


class Manager:
    """Does the work of graph executions through a client.

    `durable_ends`: the end of a node, or of a graph, is in PostgreSQL before the next entry is taken."""

    def __init__(
        self,
        client: ExecutionDataClient,
        should_stop: Callable[[], bool],
        max_attempts: int,
        max_steps: int | None = None,
        *,
        durable_ends: bool = False,
    ) -> None:
        self._durable_ends = durable_ends
        self._client = client
        self._max_steps = max_steps
        self._should_stop = should_stop
        self._max_attempts = max_attempts
        self._shapes: dict[str, _Shape] = {}
        self._unsure = False
        self._timed_since: float | None = None

    def do(self, work: Work) -> None:
        """Do one entry of the work queue, to its end. Raises Stopped."""
        if work.attempt > 1:
            self._put_back_queued(work)
        if work.kind is WorkKind.START:
            self._start(work)
        elif work.kind is WorkKind.RUN:
            self._run(work)
        else:
            self._finish(work)

    # A graph execution's beginning and end

    def _start(self, work: Work) -> None:
        client = self._client
        before: GraphExecution = self._persist(client.get_graph_execution, work.id)
        is_new = work.attempt == 1 and before.status is ExecutionStatus.QUEUED
        graph_exec = self._persist(lambda: client.update_graph_execution_stats(work.id, ExecutionStatus.RUNNING))
        if not is_new:  # it was begun before, maybe by another host: what is queued or claimed here stays so
            self._persist(self._put_back, work.id, (ExecutionStatus.QUEUED, ExecutionStatus.RUNNING))
        for node_id, inputs in graph_exec.inputs.items():
            if graph_exec.status in FINAL_STATUSES:
                break
            if is_new or self._persist(client.get_latest_node_execution, node_id, work.id) is None:
                self._persist(self._start_node, graph_exec, node_id, inputs)
        self._persist(client.end_work, work, work.id)

    def _start_node(self, graph_exec: GraphExecution, node_id: str, inputs: Any) -> None:
        client = self._client

        def start() -> None:
            if self._unsure and client.get_latest_node_execution(node_id, graph_exec.id) is not None:
                self._put_back(graph_exec.id)
                return
            identifier, _ = client.upsert_execution_input(node_id, graph_exec.id, None)
            for name, value in inputs.items():
                client.upsert_execution_input(node_id, graph_exec.id, name, value, identifier)
            client.update_node_execution_status(identifier, ExecutionStatus.QUEUED)
            client.put_work(WorkKind.RUN, identifier, graph_exec.id)

        client.atomically(start)

    def _finish(self, work: Work) -> None:
        client = self._client
        executions = self._persist(client.get_node_executions, work.id)
        for place, execution in enumerate(executions):
            if execution.status not in FINAL_STATUSES:
                # An input never came: this execution cannot run any more.
                executions[place] = self._persist(
                    client.update_node_execution_status, execution.id, ExecutionStatus.TERMINATED
                )
        counts = {status: sum(each.status is status for each in executions) for status in FINAL_STATUSES}
        failed = counts[ExecutionStatus.FAILED]
        stats = {
            "node_executions": len(executions),
            "completed": counts[ExecutionStatus.COMPLETED],
            "failed": failed,
            "cost": sum(each.stats.get("cost", 0) for each in executions),
        }

        def finish() -> None:
            graph_exec = client.get_graph_execution(work.id)
            if graph_exec.status not in FINAL_STATUSES:
                status = ExecutionStatus.FAILED if failed else ExecutionStatus.COMPLETED
                if "error" in graph_exec.stats:
                    status = ExecutionStatus.TERMINATED
                client.update_graph_execution_stats(work.id, status, stats)
            else:
                client.update_graph_execution_stats(work.id, None, stats)
            client.end_work(work, work.id)

        self._persist(client.atomically, finish)
        self._flush_end()

    def _put_back_queued(self, work: Work) -> None:
        """Put what the dead worker had queued on the queue: it may have come no further than the data with it."""
        graph_exec_id = work.id
        if work.kind is WorkKind.RUN:
            graph_exec_id = self._persist(self._client.get_node_execution, work.id).graph_exec_id
        self._persist(self._put_back, graph_exec_id)

    def _put_back(self, graph_exec_id: str, statuses: Collection[ExecutionStatus] = (ExecutionStatus.QUEUED,)) -> None:
        for execution in self._client.get_node_executions(graph_exec_id, None, None, statuses):
            self._client.put_work(WorkKind.RUN, execution.id, graph_exec_id)

    # A node execution

    def _run(self, work: Work) -> None:
        client = self._client
        self._timed_since = None
        execution = self._persist(client.get_node_execution, work.id)
        graph_exec = self._persist(client.get_graph_execution, execution.graph_exec_id)
        # What was lost with its host was an attempt too: what it has left is there already.
        work = work._replace(attempt=work.attempt + execution.stats.get("lost_attempts", 0))
        if execution.status not in (ExecutionStatus.QUEUED, ExecutionStatus.RUNNING):
            self._persist(client.end_work, work, graph_exec.id)
            return
        if graph_exec.status in FINAL_STATUSES or "error" in graph_exec.stats or self._is_enough(execution):
            self._end(work, execution, ExecutionStatus.TERMINATED)
            return
        try:
            if work.attempt > self._max_attempts:
                raise RuntimeError(f"its worker died {work.attempt - 1} times")
            node = self._persist(client.get_node, execution.node_id)
            block = get_block(node.block_id)
            # What is paid by the second is timed here: neither a clock that is set nor the time since the start of an
            # attempt whose worker died is the user's to pay.
            self._timed_since = time.monotonic() if block.may_cost_per("second") else None
            execution = self._begin(execution, durable="lost_hosts" in graph_exec.stats)
            inputs = thaw(put_together({**node.input_default, **execution.inputs, **node.constants}))
            outputs = block.run(inputs) or ()
            if not isinstance(outputs, list):
                outputs = iter(outputs)
        except InsufficientBalanceError as error:
            self._fail(work, execution, error)
            return
        except (Stopped, Unavailable):
            raise
        except Exception as error:
            self._fail(work, execution, error)
            return
        try:
            if isinstance(outputs, list):
                self._give(execution, list(self._pieces(node, 0, outputs)), work.attempt > 1, work)
            else:
                self._drive(work, execution, node, outputs)
        except _Refused as refused:
            self._fail(work, execution, refused.error, refused.ordinal)

    def _is_enough(self, execution: NodeExecution) -> bool:
        """Say whether so many of the graph execution's nodes have run that this one is not to."""
        if self._max_steps is None or execution.status is ExecutionStatus.RUNNING:
            return False
        found = self._persist(self._client.get_node_executions, execution.graph_exec_id, None, None, _HAS_RUN)
        return len(found) >= self._max_steps

    def _begin(self, execution: NodeExecution, *, durable: bool) -> NodeExecution:
        """Move an execution to RUNNING and charge it, in one step.

        `durable`, for a graph execution whose host was lost: should its next node be what kills hosts, each of its
        starts is counted."""
        client = self._client
        count = self._persist(client.increment_execution_count, execution.user_id, execution.id)

        def begin() -> NodeExecution:
            running = client.update_node_execution_status(execution.id, ExecutionStatus.RUNNING)
            client.charge_usage(running, count)
            return running

        running: NodeExecution = self._persist(client.atomically, begin)
        if durable:
            self._persist(client.wait_durable, client.last_sequence)
        return running

    def _drive(
        self, work: Work, execution: NodeExecution, node: NodeDefinition, outputs: Iterator[tuple[str, Any]]
    ) -> None:
        """Take what a block yields, one by one, and hand it on; then end the execution. Raises _Refused."""
        ordinal = 0
        while True:
            try:
                output = next(outputs)
            except StopIteration:
                break
            except Exception as error:
                raise _Refused(ordinal, error) from error
            self._give(execution, list(self._pieces(node, ordinal, [output])), work.attempt > 1)
            ordinal += 1
        self._end(work, execution, ExecutionStatus.COMPLETED)

    def _fail(self, work: Work, execution: NodeExecution, error: Exception, ordinal: int | None = None) -> None:
        """End an execution as FAILED with the error as its output; without money, its graph execution ends too."""
        client = self._client
        text = f"{type(error).__name__}: {error}"
        logger.warning("node execution %s failed: %s", execution.id, text)
        if ordinal is None:
            execution = self._persist(client.get_node_execution, execution.id)
            # An earlier attempt may have recorded its error as the last output, and died before the status.
            ordinal = execution.output_count - ("error" in execution.outputs)
        if isinstance(error, InsufficientBalanceError):
            stats = {"error": f"insufficient balance: {error.amount} credits needed"}
            self._persist(client.update_graph_execution_stats, execution.graph_exec_id, None, stats)
        try:
            node = self._persist(client.get_node, execution.node_id)
        except NotFound:
            self._persist(client.upsert_execution_output, execution.id, "error", text, ordinal=ordinal)
        else:
            self._give(execution, list(self._pieces(node, ordinal, [("error", text)])), work.attempt > 1)
        self._end(work, execution, ExecutionStatus.FAILED)

    def _end(self, work: Work, execution: NodeExecution, status: ExecutionStatus) -> None:
        self._persist(self._client.atomically, partial(self._end_now, work, execution, status))
        self._flush_end()

    def _flush_end(self) -> None:
        """Wait until what has ended is in the database, its charge too, where the settings ask for that."""
        if self._durable_ends:
            self._persist(self._client.flush)

    def _end_now(self, work: Work, execution: NodeExecution, status: ExecutionStatus) -> None:
        stats = None if self._timed_since is None else {"seconds": round(time.monotonic() - self._timed_since, 3)}
        self._client.update_node_execution_status(execution.id, status, None, stats)
        self._client.end_work(work, execution.graph_exec_id)

    # Outputs and what they feed

    def _pieces(self, node: NodeDefinition, ordinal: int, outputs: Sequence[tuple[str, Any]]) -> Iterator[_Piece]:
        """Divide outputs, the first of which is the `ordinal`-th, into pieces of at most `_LINKS_AT_ONCE` links.

        Raises _Refused for one that is none."""
        shape = self._shape_of(node)
        links_from, nested_from = shape.links_from, shape.nested_from
        for number, output in enumerate(outputs, ordinal):
            try:
                name, value = output
                frozen = freeze(value)
                links = links_from.get(name, ())
            except Exception as error:
                raise _Refused(number, error) from error
            for begin in range(0, len(links) or 1, _LINKS_AT_ONCE):
                yield _Piece(number, name, frozen, not begin, links[begin : begin + _LINKS_AT_ONCE])
            for link in nested_from.get(name, ()) if nested_from else ():
                for inner in take(frozen, split_pin(link.source_name)[1]):
                    yield _Piece(number, name, inner, False, (link,))

    def _give(
        self, execution: NodeExecution, pieces: Sequence[_Piece], again: bool, ending: Work | None = None
    ) -> None:
        """Record outputs and give them to the links from them, in as few steps as their sizes allow.

        `ending` is the work that ends, COMPLETED, in the last of the steps. Raises _Refused."""
        begin = 0
        while begin < len(pieces) or ending:
            end, load = begin, 0
            while end < len(pieces) and (end == begin or load + 1 + len(pieces[end].links) <= _STEP_LOAD):
                load += 1 + len(pieces[end].links)
                end += 1
            step = pieces[begin:end]
            last = ending if end == len(pieces) else None
            try:
                self._persist(self._client.atomically, partial(self._give_now, execution, step, again, last))
            except (Stopped, Unavailable):
                raise
            except Exception as error:
                if len(step) <= 1:
                    raise _Refused(step[0].ordinal if step else begin, error) from error
                # One of them cannot be recorded, or all of them are too much at once: one by one, as far as it goes.
                for piece in step:
                    self._give(execution, [piece], again)
                if last:
                    self._end(last, execution, ExecutionStatus.COMPLETED)
            begin = end
            if last:
                self._flush_end()
                return

    def _give_now(self, execution: NodeExecution, step: Sequence[_Piece], again: bool, ending: Work | None) -> None:
        for ordinal, name, value, is_first, links in step:
            if is_first:
                self._client.upsert_execution_output(execution.id, name, value, ordinal=ordinal)
            self._feed(execution.graph_exec_id, links, value, InputSource(execution.id, ordinal), again)
        if ending:
            self._end_now(ending, execution, ExecutionStatus.COMPLETED)

    def _feed(self, graph_exec_id: str, links: Sequence[Link], value: Any, source: InputSource, again: bool) -> None:
        client = self._client
        for link in links:
            sink = client.get_node(link.sink_node_id)
            if (again or self._unsure) and self._was_fed(graph_exec_id, link, source):
                continue
            statics = self._shape_of(sink).statics
            before = client.get_latest_node_execution(sink.id, graph_exec_id) if statics else None
            identifier, inputs = client.upsert_execution_input(
                sink.id, graph_exec_id, link.sink_name, value, source=source
            )
            for pin in statics:
                if pin not in inputs and before is not None and pin in before.inputs:
                    identifier, inputs = client.upsert_execution_input(
                        sink.id, graph_exec_id, pin, before.inputs[pin], identifier, before.sources.get(pin)
                    )
            self._queue_if_complete(graph_exec_id, sink, identifier, inputs)
            if link.is_static:
                self._feed_waiting(graph_exec_id, link, sink, value, source)

    def _feed_waiting(
        self, graph_exec_id: str, link: Link, sink: NodeDefinition, value: Any, source: InputSource
    ) -> None:
        """Give a static input to every execution that waits for it."""
        client = self._client
        for waiting in client.get_node_executions(graph_exec_id, sink.id, None, [ExecutionStatus.INCOMPLETE]):
            if link.sink_name not in waiting.inputs:
                identifier, inputs = client.upsert_execution_input(
                    sink.id, graph_exec_id, link.sink_name, value, waiting.id, source
                )
                self._queue_if_complete(graph_exec_id, sink, identifier, inputs)

    def _queue_if_complete(self, graph_exec_id: str, sink: NodeDefinition, identifier: str, inputs: Any) -> None:
        linked = self._shape_of(sink).linked
        if len(inputs) >= len(linked) and all(name in inputs for name in linked):
            self._client.update_node_execution_status(identifier, ExecutionStatus.QUEUED)
            self._client.put_work(WorkKind.RUN, identifier, graph_exec_id)

    def _shape_of(self, node: NodeDefinition) -> _Shape:
        shape = self._shapes.get(node.id)
        if shape is None or shape.node is not node:  # a definition that was changed is another object
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes.clear()
            shape = self._shapes[node.id] = _shape(node)
        return shape

    def _was_fed(self, graph_exec_id: str, link: Link, source: InputSource) -> bool:
        """Say whether an earlier attempt gave this output to this link; what it queued by that is on the queue then."""
        for execution in self._client.get_node_executions(graph_exec_id, link.sink_node_id):
            if execution.sources.get(link.sink_name) == source:
                if execution.status is ExecutionStatus.QUEUED:
                    self._client.put_work(WorkKind.RUN, execution.id, graph_exec_id)
                return True
        return False

    # Patience

    def _persist(self, action: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Do something through the client, again and again while something it needs is away or behind. Raises
        Stopped."""
        waited = False
        while True:
            try:
                result = action(*arguments, **options)
                self._unsure = False
                return result
            except Unavailable as error:
                if self._should_stop():
                    raise Stopped from error
                # A connection that was lost under a commit does not say whether the commit went through.
                self._unsure = not isinstance(error, RingFull)
                if not waited:
                    logger.warning("waiting: %s", error)
                    waited = True
                heartbeat()
                threading.Event().wait(_RETRY_SECONDS)
