"""OpenTelemetry spans, for who asks for them (`SHMCACHE_TRACING`, with the extra `otel`): batches of the syncer and of
the charger, graph executions, node executions. Where they go to is told to OpenTelemetry itself, by OTEL_* variables.

Off, nothing of OpenTelemetry is imported, and the loop that runs nodes is the one without spans.

A graph execution is one trace, whichever processes run its nodes: trace and span are named by its id, so that each
worker knows them, and its span is told of by who ends it. Exporters have threads, so each process starts its own, after
it was forked.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from shmcache.errors import SettingsError
from shmcache.execution_data_client import ExecutionDataClient, Work, WorkKind
from shmcache.records import ExecutionStatus, GraphExecution, NodeExecution

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_wanted = False
_provider: TracerProvider | None = None
_NO_SPAN: AbstractContextManager[None] = contextlib.nullcontext()
_chosen_ids: ContextVar[tuple[int, int] | None] = ContextVar("_chosen_ids", default=None)
_NANOSECONDS = 1_000_000_000


def want(wanted: bool) -> None:
    """Say whether processes forked from now on make spans. Raises SettingsError where OpenTelemetry is missing."""
    global _wanted  # noqa: PLW0603 - told to the children that are forked
    if wanted and importlib.util.find_spec("opentelemetry") is None:
        raise SettingsError("SHMCACHE_TRACING: OpenTelemetry is not installed: pip install 'shmcache[otel]'")
    _wanted = wanted


def is_on() -> bool:
    """Say whether this process makes spans."""
    return _provider is not None


@contextlib.contextmanager
def in_process(role: str, arena: str) -> Iterator[None]:
    """Make spans, if they are wanted, in this process while the block runs; what is not sent by then is sent at its
    end."""
    global _provider  # noqa: PLW0603 - one a process
    if not _wanted:
        yield
        return
    _provider = _start(role, arena)
    try:
        yield
    finally:
        provider, _provider = _provider, None
        provider.shutdown()


def span(name: str, **attributes: Any) -> AbstractContextManager[Any]:
    """Return a span around a block, a trace of its own; nothing where none are wanted. What is raised is noted."""
    if _provider is None:
        return _NO_SPAN
    found: AbstractContextManager[Any] = _provider.get_tracer("shmcache").start_as_current_span(
        name, attributes=_named(attributes)
    )
    return found


def of_runs(client: ExecutionDataClient, do: Callable[[Work], None]) -> Callable[[Work], None]:
    """Return what does an entry of the work queue as `do` does, with a span around a node execution, and one for a
    graph execution that ends; `do` itself where none are wanted."""
    provider = _provider
    if provider is None:
        return do

    def do_traced(work: Work) -> None:
        if work.kind is WorkKind.RUN:
            with _node_span(provider, client.get_node_execution(work.id), work.attempt) as current:
                do(work)
                _conclude(current, client.get_node_execution(work.id))
        else:
            do(work)
            if work.kind is WorkKind.FINISH:
                _tell_of_graph(provider, client.get_graph_execution(work.id))

    return do_traced


def _start(role: str, arena: str) -> TracerProvider:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        """The ids that were chosen for the span at hand, else random ones."""

        def generate_trace_id(self) -> int:
            chosen = _chosen_ids.get()
            return chosen[0] if chosen else super().generate_trace_id()

        def generate_span_id(self) -> int:
            chosen = _chosen_ids.get()
            return chosen[1] if chosen else super().generate_span_id()

    resource: dict[str, str | int] = {
        "service.instance.id": f"{arena}-{role}-{os.getpid()}",
        "process.pid": os.getpid(),
        "shmcache.role": role,
        "shmcache.arena": arena,
    }
    if "OTEL_SERVICE_NAME" not in os.environ:
        resource["service.name"] = "shmcache"
    provider = TracerProvider(resource=Resource.create({**resource}), id_generator=Ids(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(provider)  # so that what blocks are instrumented with goes the same way
    return provider


def _ids_of(graph_exec_id: str) -> tuple[int, int]:
    """Return the trace and the span of a graph execution. Digests: samplers want ids that are random all over."""
    digest = hashlib.blake2b(graph_exec_id.encode(), digest_size=24).digest()
    return int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:]) or 1


def _node_span(provider: TracerProvider, execution: NodeExecution, attempt: int) -> AbstractContextManager[Span]:
    from opentelemetry import trace
    from opentelemetry.sdk.trace.sampling import Decision

    trace_id, span_id = _ids_of(execution.graph_exec_id)
    sampled = provider.sampler.should_sample(None, trace_id, "graph").decision is Decision.RECORD_AND_SAMPLE
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if sampled else trace.TraceFlags.DEFAULT)
    parent = trace.NonRecordingSpan(trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags))
    return provider.get_tracer("shmcache").start_as_current_span(
        f"node {execution.block_id}",
        context=trace.set_span_in_context(parent),
        attributes=_named({
            "node_execution": execution.id, "graph_execution": execution.graph_exec_id, "node": execution.node_id,
            "attempt": attempt,
        }),
    )  # fmt: skip


def _tell_of_graph(provider: TracerProvider, execution: GraphExecution) -> None:
    chosen = _chosen_ids.set(_ids_of(execution.id))
    try:
        from opentelemetry.context import Context

        made = provider.get_tracer("shmcache").start_span(
            "graph",
            context=Context(),
            start_time=int((execution.started_at or execution.created_at) * _NANOSECONDS),
            attributes=_named({"graph_execution": execution.id, "graph": execution.graph_id}),
        )
    finally:
        _chosen_ids.reset(chosen)
    _conclude(made, execution)
    made.end(end_time=int((execution.ended_at or execution.created_at) * _NANOSECONDS))


def _conclude(made: Span, execution: NodeExecution | GraphExecution) -> None:
    from opentelemetry.trace import Status, StatusCode

    made.set_attributes(_named({"status": execution.status.value, "cost": execution.stats.get("cost", 0)}))
    if execution.status in (ExecutionStatus.FAILED, ExecutionStatus.TERMINATED):
        made.set_status(Status(StatusCode.ERROR, execution.status.value))


def _named(attributes: dict[str, Any]) -> dict[str, Any]:
    return {f"shmcache.{name}": value for name, value in attributes.items()}
