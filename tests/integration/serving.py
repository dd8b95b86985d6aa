"""`shmcache serve`, and programs that use its arena, in processes of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from shmcache.arena import list_arenas
from shmcache.database.connection import connect

ROOT = Path(__file__).parents[2]

WORK = """
import os
from shmcache import ExecutionStatus, get_db_client
from shmcache.graphs import example_path, load_graph_file
from shmcache.identifiers import new_id

graph, nodes = load_graph_file(example_path())

def one(number):
    \"\"\"Run a node that yields a number; return this process's id.\"\"\"
    client = get_db_client()
    client.save_graph(graph, nodes)
    run = client.create_graph_execution(graph.id, new_id())
    identifier, _ = client.upsert_execution_input(nodes[0].id, run.id, None)
    client.update_node_execution_status(identifier, ExecutionStatus.RUNNING)
    client.upsert_execution_output(identifier, "result", number)
    client.update_node_execution_status(identifier, ExecutionStatus.COMPLETED)
    return os.getpid()
"""
"""What programs of the tests do with the arena: a module named `work`."""


class Program:
    """A program that runs beside the test, with a log."""

    def __init__(self, command: list[str], directory: Path, environment: dict[str, str]) -> None:
        self.log_path = directory / f"{Path(command[0]).name}-{time.monotonic_ns()}.txt"
        self.process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=self.log_path.open("w"), stderr=subprocess.STDOUT
        )

    def log(self) -> str:
        """Return what it has written so far."""
        return self.log_path.read_text(errors="replace")

    def until(self, done: Callable[[], Any]) -> None:
        """Wait for a condition while it runs."""
        until(done, lambda: self.process.poll() is None, self.log)

    def children(self) -> list[psutil.Process]:
        """Return its children that live."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            return [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        return []

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; return its status."""
        self.process.send_signal(number)
        return self.process.wait(90)

    def kill(self) -> None:
        """End it and its children at once."""
        children = self.children()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                if "resource_tracker" not in " ".join(child.cmdline()):
                    child.kill()
        deadline = time.monotonic() + 10
        while any(map(_lives, children)) and time.monotonic() < deadline:
            time.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    """Say whether a process that is nobody's child here has not ended; who reaps it may take a while."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(done: Callable[[], Any], lives: Callable[[], bool], said: Callable[[], str]) -> None:
    """Wait for a condition while something lives."""
    deadline = time.monotonic() + 90
    while not done():
        assert time.monotonic() < deadline, said()
        assert lives(), said()
        time.sleep(0.02)


class Host:
    """An arena's name, a database and a directory: where `serve` and its clients meet."""

    def __init__(self, directory: Path, database_url: str) -> None:
        self.directory = directory
        self.database_url = database_url
        self.arena = f"serve-{os.getpid()}-{time.monotonic_ns()}"
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{directory}",
            "TMPDIR": str(directory),
            "SHMCACHE_DATABASE_URL": database_url,
            "SHMCACHE_STATE_DIR": str(directory),
            "SHMCACHE_ARENA": self.arena,
            "SHMCACHE_ARENA_SIZE": "16 MiB",
            "SHMCACHE_CHARGE_WORKERS": "1",
        }
        self._programs: list[Program] = []
        (directory / "work.py").write_text(WORK)

    def run(self, *command: str, **environment: str) -> Program:
        """Start a program."""
        self._programs.append(Program(list(command), self.directory, {**self.environment, **environment}))
        return self._programs[-1]

    def python(self, code: str, **environment: str) -> Program:
        """Start a script."""
        path = self.directory / f"script-{time.monotonic_ns()}.py"
        path.write_text(code)
        return self.run(sys.executable, str(path), **environment)

    def serve(self, *options: str, **environment: str) -> Program:
        """Start `shmcache serve` and wait until it is ready."""
        program = self.run(sys.executable, "-m", "tools.cli", "serve", *options, **environment)
        program.until(lambda: " ready: arena" in program.log())
        return program

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the database."""
        with connect(self.database_url, application_name="test") as connection:
            return connection.execute(query.encode()).fetchall()

    def numbers(self) -> list[int]:
        """Return the numbers that `work.one` was called with, as they are in the database."""
        return sorted(row[0] for row in self.rows("SELECT value FROM node_execution_outputs WHERE name = 'result'"))

    def close(self, *, may_leave: bool = False) -> None:
        """End what still runs; fail if the arena is left, unless it may be: then it is only removed."""
        for program in reversed(self._programs):
            program.kill()
        if self.arena in list_arenas():
            from shmcache.arena import Arena

            with Arena.attach(self.arena) as left:
                left.unlink()
            if not may_leave:
                raise AssertionError(f"arena {self.arena} was left")
