"""Metrics and status page of a supervisor that runs graphs: scraped, checked and charted by the real programs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shmcache.arena import list_arenas
from tests.integration.chromium import CHROMIUM, Chromium, chromium
from tests.unit.test_command_line import assert_one_line, shmcache

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "tools" / "monitoring"
PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
WORKER = """
import os, threading, time
from shmcache import ExecutionStatus, get_db_client
from shmcache.graphs import example_path, load_graph_file
from shmcache.identifiers import new_id

def work():
    client = get_db_client()
    graph, nodes = load_graph_file(example_path())
    client.save_graph(graph, nodes)
    user = new_id()
    while True:
        run = client.create_graph_execution(graph.id, user)
        identifier, _ = client.upsert_execution_input(nodes[0].id, run.id, "value", "<img src=x onerror=alert(1)>")
        client.update_node_execution_status(identifier, ExecutionStatus.RUNNING)
        client.upsert_execution_output(identifier, "result", 1)
        client.update_node_execution_status(identifier, ExecutionStatus.COMPLETED)
        threading.Event().wait(0.01)
"""


class Served(NamedTuple):
    """A supervisor with a status page."""

    process: subprocess.Popen[bytes]
    arena: str
    url: str
    log: Path

    def children(self, role: str) -> list[psutil.Process]:
        """Return its processes of a role."""
        return [
            each for each in psutil.Process(self.process.pid).children() if f"shmcache: {role} " in each.cmdline()[0]
        ]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def until(there: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Return what a condition is once it is true; errors of the way there count as not yet."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.HTTPError, psutil.NoSuchProcess, IndexError, json.JSONDecodeError):
            found = there()
            if found:
                return found
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def served(database_url: str, tmp_path: Path) -> Iterator[Served]:
    made = serve(database_url, tmp_path)
    try:
        until(lambda: made.process.poll() is None and httpx.get(f"{made.url}/readyz").status_code == 200)
        yield made
    finally:
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(60) == 0, made.log.read_text()
        assert made.arena not in list_arenas()


def serve(database_url: str, tmp_path: Path) -> Served:
    """Start a supervisor with a status page, and a worker that is busy."""
    (tmp_path / "busy_worker.py").write_text(WORKER)
    arena, port = f"monitored-{os.getpid()}", free_port()
    log = tmp_path / "log.txt"
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.cli", "supervise", "busy_worker:work", "--workers", "1", "--arena", arena,
         "--arena-size", "32 MiB"],
        cwd=tmp_path,
        env={
            **os.environ, "PYTHONPATH": str(ROOT), "SHMCACHE_DATABASE_URL": database_url,
            "SHMCACHE_STATE_DIR": str(tmp_path), "SHMCACHE_METRICS_ADDRESS": str(port),
            "SHMCACHE_SYNC_INTERVAL": "300 ms", "TMPDIR": str(tmp_path),
        },
        stderr=log.open("w"),
    )  # fmt: skip
    return Served(process, arena, f"http://127.0.0.1:{port}", log)


def metrics(url: str) -> dict[str, float]:
    """Return all samples of a scrape by name and labels, without the arena's."""
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()) if key != "arena")
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_what_happens_is_in_the_metrics_and_no_worker_is_asked_for_it(served: Served) -> None:
    until(lambda: metrics(served.url)["shmcache_sync_lag_seconds_count{ring=write}"] > 20)
    (worker,) = served.children("worker")
    worker.suspend()
    try:
        until(lambda: metrics(served.url).get("shmcache_processes{role=worker,state=stopped}"))
        found = metrics(served.url)
        assert httpx.get(f"{served.url}/readyz").json()["reasons"] == [
            f"worker {worker.pid} is stopped (SIGSTOP, a debugger)"
        ]
    finally:
        worker.resume()
    assert found["shmcache_leader{ring=write}"] == found["shmcache_leader{ring=charge}"] == 1
    assert found["shmcache_processes{role=syncer,state=leading}"] == 1
    assert found["shmcache_processes{role=syncer,state=waiting}"] == 1
    lags = found["shmcache_sync_lag_seconds_count{ring=write}"]
    assert lags == found["shmcache_ring_committed_entries_total{ring=write}"] or lags > 20
    assert found["shmcache_sync_lag_seconds_bucket{le=3600.0,ring=write}"] == lags
    assert found["shmcache_batch_entries_sum{ring=write}"] >= lags
    assert found["shmcache_batch_commit_seconds_sum{ring=write}"] > 0
    assert found["shmcache_commits_total"] > 20
    assert found["shmcache_gets_total{layer=decoded,result=hit}"] >= 0
    assert found["shmcache_ring_oldest_entry_age_seconds{ring=write}"] < 60
    assert found["shmcache_ready"] in (0, 1)
    assert served.arena in httpx.get(f"{served.url}/metrics").text


def test_the_server_has_the_arena_for_reading_only_takes_no_lane_and_is_replaced_when_it_dies(served: Served) -> None:
    (server,) = served.children("metrics")
    maps = [line for line in Path(f"/proc/{server.pid}/maps").read_text().splitlines() if "shmcache." in line]
    assert maps == [] or all(" r--s " in line for line in maps)
    smaps = Path(f"/proc/{server.pid}/maps").read_text()
    shared = [line.split()[1] for line in smaps.splitlines() if "/dev/shm" in line and "shared" not in line]
    assert shared
    assert set(shared) == {"r--s"}
    assert all(process["role"] != "metrics" for process in httpx.get(f"{served.url}/figures.json").json()["processes"])
    before = metrics(served.url)
    server.kill()
    after = until(lambda: metrics(served.url))
    assert served.children("metrics")[0].pid != server.pid
    assert after["shmcache_commits_total"] >= before["shmcache_commits_total"]
    assert after["shmcache_process_restarts_total"] == 1


def test_a_supervisor_that_is_killed_takes_the_server_along_and_the_next_one_has_its_port(
    database_url: str, tmp_path: Path
) -> None:
    made = serve(database_url, tmp_path)
    until(lambda: httpx.get(f"{made.url}/healthz").status_code == 200)
    children = psutil.Process(made.process.pid).children(recursive=True)
    made.process.kill()
    made.process.wait()
    psutil.wait_procs(children, timeout=60)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{made.url}/healthz")
    # What it left is drained by a run that serves on the same port.
    done = shmcache(
        tmp_path, "run", "--json", "--arena", made.arena, SHMCACHE_DATABASE_URL=database_url,
        SHMCACHE_METRICS_ADDRESS=made.url.removeprefix("http://"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"status page and metrics on {made.url}/" in done.stderr
    assert made.arena not in list_arenas()


def test_every_metric_in_the_alerts_and_the_dashboard_is_exported(served: Served) -> None:
    alerts, dashboard = (MONITORING / "alerts.yml").read_text(), (MONITORING / "dashboard.json").read_text()
    used = set(re.findall(r"\bshmcache_\w+", alerts + dashboard))
    assert len(used) > 25
    exported = set()
    for family in text_string_to_metric_families(httpx.get(f"{served.url}/metrics").text):
        exported |= {sample.name for sample in family.samples}
    assert used - exported == set()
    assert shmcache(Path.cwd(), "monitoring", "alerts").stdout == alerts
    assert json.loads(shmcache(Path.cwd(), "monitoring", "dashboard").stdout) == json.loads(dashboard)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing_to_complain_of(served: Served, tmp_path: Path) -> None:
    assert PROMTOOL is not None
    checked = subprocess.run([PROMTOOL, "check", "rules", MONITORING / "alerts.yml"], capture_output=True, text=True,
                             check=False)  # fmt: skip
    assert (checked.returncode, "9 rules found" in checked.stdout) == (0, True), checked.stdout + checked.stderr
    scraped = httpx.get(f"{served.url}/metrics").text
    linted = subprocess.run([PROMTOOL, "check", "metrics"], input=scraped, capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout + linted.stderr) == (0, "")


SERIES = """
rule_files: [alerts.yml]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      - {series: 'shmcache_ring_oldest_entry_age_seconds{arena="a", ring="write"}', values: '0 15 30 45 60 75 90 105 120 135 150'}
      - {series: 'shmcache_leader{arena="a", ring="charge"}', values: '1 1 0 0 0 0 0 0 0 0 0'}
      - {series: 'shmcache_ring_used_bytes{arena="a", ring="write"}', values: '10 90 90 90 90 90 90 90 90 90 90'}
      - {series: 'shmcache_ring_size_bytes{arena="a", ring="write"}', values: '100x10'}
      - {series: 'shmcache_dead_letters_total{arena="a"}', values: '0 0 0 1 1 1 1 1 1 1 1'}
      - {series: 'shmcache_accounts_in_debt{arena="a"}', values: '0 0 0 1 1 1 1 1 1 1 1'}
      - {series: 'shmcache_debt_credits_total{arena="a"}', values: '0x10'}
    alert_rule_test:
      - {eval_time: 15s, alertname: ShmcacheNoLeader, exp_alerts: []}
      - eval_time: 60s
        alertname: ShmcacheNoLeader
        exp_alerts:
          - exp_labels: {arena: a, ring: charge, severity: critical}
            exp_annotations: &any {summary: "Nobody drains the charge ring of arena a", description: "Its syncer or charger is gone, stopped, or cannot reach PostgreSQL to begin. The supervisor starts another one when it dies: see its log."}
      - {eval_time: 75s, alertname: ShmcacheOldestEntryTooOld, exp_alerts: []}
      - eval_time: 150s
        alertname: ShmcacheOldestEntryTooOld
        exp_alerts:
          - exp_labels: {arena: a, ring: write, severity: critical}
            exp_annotations: {summary: "An entry of the write ring of arena a waits for 2m 30s", description: "What was written is not in PostgreSQL, and would be lost with the machine. Is PostgreSQL away, or too slow? Writers go on until the ring is full."}
      - eval_time: 60s
        alertname: ShmcacheRingFillingUp
        exp_alerts:
          - exp_labels: {arena: a, ring: write, severity: critical}
            exp_annotations: {summary: "The write ring of arena a is 90% full", description: "When it is full, writes wait for SHMCACHE_RING_WAIT and then raise RingFull."}
      - {eval_time: 30s, alertname: ShmcacheDeadLetters, exp_alerts: []}
      - eval_time: 90s
        alertname: ShmcacheDeadLetters
        exp_alerts:
          - exp_labels: {arena: a, severity: warning}
            exp_annotations: {summary: "PostgreSQL refused entries of arena a", description: 'They are kept whole, with their errors. See "shmcache dead-letters list".'}
      - eval_time: 60s
        alertname: ShmcacheDebt
        exp_alerts:
          - exp_labels: {arena: a, severity: warning}
            exp_annotations: {summary: "Accounts of arena a owe credits", description: 'Charges came to more than their accounts had. They are refused new ones until the debt is paid. See "shmcache accounts show".'}
"""  # noqa: E501 - YAML


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
def test_each_alert_fires_when_its_time_has_come_and_not_before(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    shutil.copy(MONITORING / "alerts.yml", tmp_path)
    (tmp_path / "tests.yml").write_text(SERIES)
    done = subprocess.run([PROMTOOL, "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed (Debian: prometheus)")
def test_a_real_prometheus_scrapes_it_loads_the_rules_and_answers_every_question_of_the_dashboard(
    served: Served, tmp_path: Path
) -> None:
    assert PROMETHEUS is not None
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(json.dumps({
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "alerts.yml")],
        "scrape_configs": [{"job_name": "shmcache", "static_configs": [{"targets": [served.url.split("//")[1]]}]}],
    }))  # fmt: skip
    process = subprocess.Popen(
        [PROMETHEUS, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb",
         f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    api = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30)

    def ask(query: str) -> list[Any]:
        answer = api.get("/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        result: list[Any] = answer["data"]["result"]
        return result

    try:
        until(lambda: ask('count_over_time(up{job="shmcache"}[1m]) > 2 and up == 1'))
        rules = until(
            lambda: [
                rule
                for group in api.get("/rules").json()["data"]["groups"]
                for rule in group["rules"]
                if rule["health"] == "ok"
            ]
        )
        until(lambda: len([r for g in api.get("/rules").json()["data"]["groups"] for r in g["rules"]]) == 9)
        assert all(rule["health"] == "ok" for rule in rules)
        dashboard = json.loads((MONITORING / "dashboard.json").read_text())
        expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
        assert len(expressions) > 30
        for expression in expressions:
            plain = expression.replace("$arena", served.arena)
            plain = plain.replace("$__rate_interval", "1m").replace("$__range", "1h")
            if "state=" in plain:
                ask(plain)  # a state that no worker is in has no series
            else:
                assert until(lambda plain=plain: ask(plain)), plain  # type: ignore[misc]
        assert ask(
            'histogram_quantile(0.5, sum by (le) (rate(shmcache_sync_lag_seconds_bucket{ring="write"}[1m]))) > 0'
        )
    finally:
        api.close()
        process.terminate()
        process.wait(30)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: chromium)")
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)], ids=["phone, dark", "desktop, light"])
def test_a_real_browser_shows_the_page_live_and_nothing_sticks_out(
    served: Served, tmp_path: Path, width: int, dark: bool
) -> None:
    with chromium(tmp_path / "profile") as browser:
        browser.open(served.url, width, 844, dark=dark)
        browser.wait_for(f"document.getElementById('arena').textContent === '{served.arena}'")
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        roles = "[...document.querySelectorAll('#processes tr td:nth-child(2)')].map(cell => cell.textContent)"
        assert sorted(browser.wait_for(roles)) == ["charger", "supervisor", "syncer", "syncer", "worker"]
        assert browser.evaluate("document.querySelectorAll('svg path.line').length") == 10
        first = browser.evaluate("document.getElementById('when').textContent")
        browser.wait_for(f"document.getElementById('when').textContent !== {json.dumps(first)}")
        browser.wait_for("document.querySelector('#plots svg path.line').getAttribute('d').includes('L')")
        luminance = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b)"
        assert (browser.evaluate(luminance) < 300) is dark
        assert browser.errors == []
        _check_that_trouble_is_shown(browser, served)


def _check_that_trouble_is_shown(browser: Chromium, served: Served) -> None:
    (worker,) = served.children("worker")
    worker.suspend()
    try:
        said = browser.wait_for("document.getElementById('problems').textContent")
        assert said == f"worker {worker.pid} is stopped (SIGSTOP, a debugger)"
        assert browser.evaluate("document.getElementById('state').className") == "bad"
    finally:
        worker.resume()
    browser.wait_for("document.getElementById('problems').textContent === ''")
    (server,) = served.children("metrics")
    server.suspend()
    server.kill()  # the page says so, and goes on when another one answers
    browser.wait_for("document.getElementById('state').textContent === 'ready'")


def test_a_port_that_is_taken_or_open_to_all_is_one_line_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = shmcache(tmp_path, "run", SHMCACHE_METRICS_ADDRESS=str(port))
        assert_one_line(done, "SHMCACHE_METRICS_ADDRESS", f"cannot listen on {port}")
    done = shmcache(tmp_path, "run", SHMCACHE_METRICS_ADDRESS="0.0.0.0:0")
    assert_one_line(done, "SHMCACHE_METRICS_TOKEN")
    assert not (tmp_path / "postgresql").exists()
