"""`shmcache supervise` as an operator handles it: the signals of gunicorn's arbiter, systemd, limits on workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shmcache.arena import Arena, list_arenas
from shmcache.database.connection import connect

ROOT = Path(__file__).parents[2]

WORKER = """
import os, signal
from pathlib import Path
from shmcache import get_db_client

VERSION = "one"
Path(f"imported-{VERSION}-{os.getpid()}").touch()

def work():
    get_db_client()
    try:
        Path(f"ready-{VERSION}-{os.getpid()}").touch()
        while True:
            signal.pause()
    finally:
        Path(f"left-{VERSION}-{os.getpid()}").touch()

def run_nodes():
    from shmcache.execution_data_client import WorkKind
    from shmcache.graphs import example_path, load_graph_file
    from shmcache.identifiers import new_id
    client = get_db_client()
    graph, nodes = load_graph_file(example_path())
    client.save_graph(graph, nodes)
    run = client.create_graph_execution(graph.id, user_id=new_id())
    while True:
        identifier, _ = client.upsert_execution_input(nodes[0].id, run.id, None)
        client.put_work(WorkKind.RUN, identifier, run.id)
        taken = client.take_work(10)
        with open(f"runs-{os.getpid()}", "a") as runs:
            runs.write("begun\\n")
            client.end_work(taken, run.id)
            runs.write("ended\\n")

def hang():
    get_db_client()
    Path(f"ready-{VERSION}-{os.getpid()}").touch()
    while not Path("healed").exists():
        signal.sigtimedwait([], 0.2)
    signal.pause()
"""


class Supervised:
    """A `shmcache supervise` in a process of its own."""

    def __init__(self, directory: Path, url: str, arena: str, function: str, *options: str, **environment: str) -> None:
        self.directory = directory
        self._log = directory / f"log-{time.monotonic_ns()}.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.cli", "supervise", f"my_work:{function}", "--arena", arena,
             "--arena-size", "16 MiB", *options],
            cwd=directory,
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory), "SHMCACHE_DATABASE_URL": url,
                "SHMCACHE_STATE_DIR": str(directory), **environment,
            },
            stderr=self._log.open("w"),
        )  # fmt: skip

    def until(self, done: Callable[[], Any]) -> None:
        """Wait for a condition while it runs."""
        deadline = time.monotonic() + 90
        while not done():
            assert time.monotonic() < deadline, self.log()
            assert self.process.poll() is None, self.log()
            time.sleep(0.02)

    def log(self) -> str:
        """Return what it has written to standard error so far."""
        return self._log.read_text()

    def marks(self, kind: str) -> set[int]:
        """Return the pids of the workers that left a mark."""
        return {int(path.name.rpartition("-")[2]) for path in self.directory.glob(f"{kind}-*")}

    def workers(self) -> set[int]:
        """Return the pids of the workers that live."""
        found = set()
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.name().startswith("shmcache: worke") and child.status() != psutil.STATUS_ZOMBIE:
                    found.add(child.pid)
        return found

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Ask it to end in order; return its status and its log."""
        self.send(signal.SIGTERM)
        return self.process.wait(120), self.log()


@pytest.fixture
def supervise(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    (tmp_path / "my_work.py").write_text(WORKER)
    started: list[Supervised] = []
    arena = f"operated-{os.getpid()}-{time.monotonic_ns()}"

    def start(function: str, *options: str, **environment: str) -> Supervised:
        started.append(Supervised(tmp_path, database_url, arena, function, *options, **environment))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            children = psutil.Process(each.process.pid).children(recursive=True)
            each.process.kill()
            each.process.wait()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.name().startswith("shmcache:"):
                        child.kill()
            psutil.wait_procs(children, 10)
    left = arena in list_arenas()
    if left:
        with Arena.attach(arena) as segment:
            segment.unlink()
    assert not left


def test_sighup_brings_new_code_worker_by_worker(supervise: Callable[..., Supervised], tmp_path: Path) -> None:
    run = supervise("work", "--workers", "2")
    run.until(lambda: len(run.marks("ready-one")) == 2)
    old = run.workers()
    assert old == run.marks("ready-one")
    (tmp_path / "my_work.py").write_text(WORKER.replace('"one"', '"second"'))
    run.send(signal.SIGHUP)
    run.until(lambda: "reloaded: 2 workers are new" in run.log())
    run.until(lambda: run.workers() == run.marks("ready-second"))
    assert run.marks("left-one") == old, "they left in order"
    assert run.end()[0] == 0


def test_new_code_that_cannot_be_imported_replaces_nobody(supervise: Callable[..., Supervised], tmp_path: Path) -> None:
    run = supervise("work", "--workers", "2")
    run.until(lambda: len(run.marks("ready-one")) == 2)
    old = run.workers()
    (tmp_path / "my_work.py").write_text("import no_such_module_anywhere\n")
    run.send(signal.SIGHUP)
    run.until(lambda: "ended before it was up" in run.log())
    assert "No module named 'no_such_module_anywhere'" in run.log()
    assert run.workers() == old
    assert run.end()[0] == 0


def test_with_preload_the_module_is_imported_once_by_the_supervisor(supervise: Callable[..., Supervised]) -> None:
    run = supervise("work", "--workers", "2", "--preload")
    run.until(lambda: len(run.marks("ready-one")) == 2)
    assert run.marks("imported-one") == {run.process.pid}
    assert run.end()[0] == 0


def test_sigttin_and_sigttou_add_and_take_away_a_worker(supervise: Callable[..., Supervised]) -> None:
    run = supervise("work", "--workers", "1")
    run.until(lambda: len(run.marks("ready-one")) == 1)
    first = run.workers()
    run.send(signal.SIGTTIN)
    run.until(lambda: len(run.marks("ready-one")) == 2)
    run.send(signal.SIGTTOU)
    run.until(lambda: run.marks("left-one") == first)
    run.until(lambda: len(run.workers()) == 1)
    run.send(signal.SIGTTOU)
    run.until(lambda: "the last worker stays" in run.log())
    assert len(run.workers()) == 1
    assert run.end()[0] == 0


def test_sigusr1_writes_the_state_as_one_line_of_json(supervise: Callable[..., Supervised]) -> None:
    run = supervise("work", "--workers", "2")
    run.until(lambda: len(run.marks("ready-one")) == 2)
    stopped = min(run.workers())
    os.kill(stopped, signal.SIGSTOP)
    run.until(lambda: psutil.Process(stopped).status() == psutil.STATUS_STOPPED)
    run.send(signal.SIGUSR1)
    run.until(lambda: '"event": "state"' in run.log())
    run.until(lambda: run.log().endswith("\n"))
    os.kill(stopped, signal.SIGCONT)
    state = json.loads(next(line for line in run.log().splitlines() if line.startswith("{")))
    assert state["pid"] == run.process.pid
    assert state["workers"] == 2
    assert {child["pid"] for child in state["children"] if child["role"] == "worker"} == run.workers()
    assert sorted(child["role"] for child in state["children"]) == ["charger", "syncer", "syncer", "worker", "worker"]
    assert {ring["name"] for ring in state["rings"]} == {"write", "charge"}
    assert {lane["pid"] for lane in state["processes"]} >= run.workers()
    assert state["occupancy"]["slab_bytes"] > 0
    assert isinstance(state["lock_holders"], list)
    assert run.end()[0] == 0


def test_sigquit_leaves_at_once_and_asks_nobody(
    supervise: Callable[..., Supervised],
) -> None:
    run = supervise("work", "--workers", "1")
    run.until(lambda: len(run.marks("ready-one")) == 1)
    run.send(signal.SIGQUIT)
    assert run.process.wait(60) == 1
    assert "left at once" in run.log()
    assert run.marks("left-one") == set(), "nobody was asked to leave in order"


def test_a_workers_signals_that_are_meant_for_the_supervisor_do_it_no_harm(
    supervise: Callable[..., Supervised],
) -> None:
    run = supervise("work", "--workers", "1")
    run.until(lambda: len(run.marks("ready-one")) == 1)
    (worker,) = run.workers()
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT, signal.SIGINT):
        os.kill(worker, number)
    run.send(signal.SIGUSR1)
    run.until(lambda: '"event": "state"' in run.log())
    assert run.workers() == {worker}
    assert run.end()[0] == 0


def test_a_worker_is_replaced_between_two_nodes_after_its_number_of_them(
    supervise: Callable[..., Supervised], tmp_path: Path, database_url: str
) -> None:
    run = supervise("run_nodes", "--workers", "1", SHMCACHE_MAX_REQUESTS="20", SHMCACHE_MAX_REQUESTS_JITTER="5")
    run.until(lambda: len(run.marks("runs")) >= 4)
    last = run.workers()
    status, log = run.end()
    assert status == 0
    for pid in run.marks("runs") - last:
        lines = (tmp_path / f"runs-{pid}").read_text().split()
        assert lines == ["begun", "ended"] * (len(lines) // 2), "none was cut off in a node"
        assert 20 <= len(lines) // 2 <= 26, "node executions, and the end of the graph's first one"
    assert "has done enough node executions: starting another" in log
    assert "starting another" not in re.sub(r"enough node executions: starting another", "", log)


def test_a_worker_that_hangs_is_replaced_when_a_time_is_set(
    supervise: Callable[..., Supervised], tmp_path: Path
) -> None:
    run = supervise("hang", "--workers", "1", SHMCACHE_WORKER_TIMEOUT="1 s")
    run.until(lambda: len(run.marks("ready-one")) == 2)
    assert "no sign of life" in run.log()
    assert "in hang" in run.log(), "the log says where it was"
    assert run.end()[0] == 0


def test_processes_say_what_they_are_in_their_titles(supervise: Callable[..., Supervised]) -> None:
    run = supervise("work", "--workers", "1")
    run.until(lambda: len(run.marks("ready-one")) == 1)
    supervisor = psutil.Process(run.process.pid)
    title = supervisor.cmdline()[0]
    assert title.startswith("shmcache: supervisor (operated-")
    titles = {child.cmdline()[0].partition(" (")[0] for child in supervisor.children()}
    assert titles >= {"shmcache: worker", "shmcache: syncer", "shmcache: charger"}
    assert run.end()[0] == 0


def test_systemd_hears_of_start_reload_watchdog_and_end(supervise: Callable[..., Supervised], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        heard: list[str] = []

        def until_heard(what: str) -> None:
            while True:
                message = manager.recv(4096).decode()
                heard.append(message.split("\n", maxsplit=1)[0])
                if what in message:
                    return

        run = supervise("work", "--workers", "1", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="500000")
        until_heard("READY=1")
        assert len(run.marks("imported-one")) >= 2, "the worker is up, not only forked"
        until_heard("WATCHDOG=1")
        run.send(signal.SIGHUP)
        until_heard("RELOADING=1")
        until_heard("READY=1")
        assert run.log().count("reloaded: 1 workers are new") == 1
        run.send(signal.SIGTERM)
        until_heard("STOPPING=1")
        assert run.process.wait(60) == 0
    assert [each for each in heard if each != "WATCHDOG=1"] == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="making a pid namespace needs root")
def test_as_the_first_process_of_a_container_it_reaps_orphans(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "my_work.py").write_text(
        "import os, time\n"
        "def work():\n"
        "    if not os.fork():\n"  # a child of its own that outlives it
        "        if os.fork():\n"
        "            os._exit(0)\n"
        "        os.execvp('sleep', ['sleep', '0.2'])\n"
        "    os.wait()\n"
        "    deadline = time.monotonic() + 30\n"
        "    def zombies():\n"
        "        states = []\n"
        "        for pid in filter(str.isdecimal, os.listdir('/proc')):\n"
        "            try:\n"
        "                states.append(open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[0])\n"
        "            except OSError:\n"
        "                pass\n"
        "        return states.count('Z'), len(states)\n"
        "    time.sleep(0.5)\n"
        "    while zombies()[0] and time.monotonic() < deadline:\n"
        "        time.sleep(0.05)\n"
        "    print('zombies', zombies()[0], 'first', os.getppid(), flush=True)\n"
    )
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-m", "tools.cli", "supervise",
         "my_work:work", "--workers", "1", "--arena", f"first-{os.getpid()}", "--arena-size", "16 MiB"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SHMCACHE_DATABASE_URL": database_url,
             "SHMCACHE_STATE_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr:
        pytest.skip(f"no pid namespace can be made here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "zombies 0 first 1\n"
    with connect(database_url, application_name="test") as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
