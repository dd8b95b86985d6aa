"""OpenTelemetry spans of a real run, as a collector gets them; and nothing at all where they are not asked for."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.unit.test_command_line import ROOT, assert_one_line, shmcache


class Collector:
    """Takes spans over HTTP, as OTLP collectors do. `spans` has each with its process's attributes."""

    def __init__(self) -> None:
        self.spans: list[tuple[dict[str, Any], Any]] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for process in ExportTraceServiceRequest.FromString(body).resource_spans:
                    facts = _values(process.resource.attributes)
                    for scope in process.scope_spans:
                        collector.spans += [(facts, span) for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_each_graph_execution_is_one_trace_of_its_nodes_whichever_process_ran_them(
    collector: Collector, database_url: str, tmp_path: Path
) -> None:
    done = shmcache(
        tmp_path, "run", str(ROOT / "tests/graphs/countdown.json"), str(ROOT / "tests/graphs/one_fails.json"),
        "--workers", "2", "--json", "--arena", f"traced-{os.getpid()}",
        SHMCACHE_DATABASE_URL=database_url, SHMCACHE_TRACING="true",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server.server_port}",
    )  # fmt: skip
    summary = json.loads(done.stdout)
    kinds = Counter(span.name.split()[0] for _, span in collector.spans)
    assert kinds["graph"] == summary["graph_executions"] == 2
    assert kinds["node"] == summary["node_executions"]
    assert kinds["write"] >= 1
    assert kinds["charge"] >= 1
    graphs = {span.trace_id: span for _, span in collector.spans if span.name == "graph"}
    for facts, span in collector.spans:
        said = _values(span.attributes)
        assert facts["service.name"] == "shmcache"
        if span.name.startswith("node "):
            graph = graphs[span.trace_id]
            assert span.parent_span_id == graph.span_id
            assert said["shmcache.graph_execution"] == _values(graph.attributes)["shmcache.graph_execution"]
            assert facts["shmcache.role"] == "worker"
            assert graph.start_time_unix_nano <= span.end_time_unix_nano
            assert (span.status.code == 2) == (said["shmcache.status"] != "COMPLETED")
        elif span.name == "graph":
            assert not span.parent_span_id
            assert span.start_time_unix_nano < span.end_time_unix_nano
        else:
            assert said["shmcache.entries"] > 0
            assert said["shmcache.epoch"] > 0
    assert sorted(span.status.code for span in graphs.values()) == [0, 2]


def test_a_run_goes_on_when_nobody_takes_its_spans(database_url: str, tmp_path: Path) -> None:
    done = shmcache(
        tmp_path, "run", str(ROOT / "tests/graphs/countdown.json"), "--json", "--arena", f"untaken-{os.getpid()}",
        SHMCACHE_DATABASE_URL=database_url, SHMCACHE_TRACING="1", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["graph_executions_by_status"] == {"COMPLETED": 1}


def test_unless_asked_for_nothing_of_opentelemetry_is_loaded_and_the_loop_is_the_plain_one() -> None:
    script = """
import sys
from shmcache import tracing
from shmcache.manager import Manager
import tools.supervisor, syncer.sync_manager, syncer.charge_pool
tracing.want(False)
with tracing.in_process("worker", "arena"):
    do = Manager(None, lambda: True, 1).do
    assert tracing.of_runs(None, do) == do
    assert tracing.span("write batch") is tracing.span("charge batch", entries=1)
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_the_extra_it_is_one_line_that_says_how_to_get_it(tmp_path: Path) -> None:
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "import importlib.util, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'opentelemetry' else found(name, *rest)\n"
    )
    done = shmcache(tmp_path, "run", SHMCACHE_TRACING="yes", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert_one_line(done, "SHMCACHE_TRACING", "pip install 'shmcache[otel]'")
