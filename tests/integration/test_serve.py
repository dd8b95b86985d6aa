"""`shmcache serve`: an arena for processes that others start; begun, ended, killed and started again beneath them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmcache.arena import Arena, list_arenas, survey
from shmcache.arena.view import View
from tests.integration.serving import Host, Program

CLIENT = """
import sys, time
from pathlib import Path
from work import one
from shmcache import get_db_client
number = 0
while not Path("enough").exists():
    one(number)
    number += 1
    Path("count").write_text(str(number))
    time.sleep(0.002)
print("wrote", number, flush=True)
"""
"""Writes numbers, from 0 on, until it is told that they are enough."""


@pytest.fixture
def host(database_url: str, tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path, database_url)
    yield made
    made.close()


def count(host: Host) -> int:
    """Return how many numbers the client says that it has written."""
    path = host.directory / "count"
    return int(path.read_text() or 0) if path.exists() else 0


def finish(host: Host, client: Program, serve: Program) -> int:
    """Let the client leave and the supervisor drain; return how many numbers were written."""
    (host.directory / "enough").touch()
    assert client.process.wait(60) == 0, client.log()
    assert serve.end() == 0, serve.log()
    return int(client.log().split("wrote ")[1])


def test_a_process_that_it_did_not_start_uses_its_arena(host: Host) -> None:
    serve = host.serve()
    assert sorted(child.name()[:15] for child in serve.children() if child.name().startswith("shmcache: ")) >= [
        "shmcache: charg", "shmcache: synce", "shmcache: synce",
    ]  # fmt: skip
    client = host.python("from work import one\nfor number in range(50): one(number)\n")
    assert client.process.wait(60) == 0, client.log()
    assert serve.end() == 0, serve.log()
    assert host.numbers() == list(range(50))
    assert host.arena not in list_arenas(), "nobody is in it any more"


def test_restarted_beneath_a_client_it_loses_nothing_of_what_that_writes_meanwhile(host: Host) -> None:
    first = host.serve()
    client = host.python(CLIENT)
    client.until(lambda: count(host) > 20)
    with View(host.arena) as view:
        arena_id = survey.header(view.memory).arena_id
    assert first.end() == 0, first.log()
    assert f"processes {client.process.pid} use arena" in first.log()
    assert host.arena in list_arenas(), "it stays for the client"
    between = count(host)
    client.until(lambda: count(host) > between + 20)
    second = host.serve()
    assert "attached to it" in second.log()
    with View(host.arena) as view:
        assert survey.header(view.memory).arena_id == arena_id
    written = finish(host, client, second)
    assert host.numbers() == list(range(written))
    assert {row[0] for row in host.rows("SELECT status FROM node_executions")} == {"COMPLETED"}


def test_killed_beneath_a_client_it_loses_nothing_either(host: Host) -> None:
    first = host.serve()
    client = host.python(CLIENT)
    client.until(lambda: count(host) > 20)
    first.kill()
    between = count(host)
    client.until(lambda: count(host) > between + 20)
    second = host.serve()
    written = finish(host, client, second)
    assert host.numbers() == list(range(written))


def test_a_client_that_comes_while_nobody_serves_goes_on_and_says_so(host: Host) -> None:
    first = host.serve()
    client = host.python(CLIENT)
    client.until(lambda: count(host) > 5)
    assert first.end() == 0, first.log()
    late = host.python("import logging; logging.basicConfig()\nfrom work import one\none(-1)\n")
    assert late.process.wait(60) == 0, late.log()
    assert f"arena {host.arena} has no supervisor now" in late.log()
    second = host.serve()
    written = finish(host, client, second)
    assert host.numbers() == [-1, *range(written)]


def test_a_clients_unfinished_work_outlives_the_end_of_the_supervisor(host: Host) -> None:
    """It is the client's own, and the client lives: nothing of it may be terminated."""
    first = host.serve()
    client = host.python(
        "from pathlib import Path; import time\n"
        "from work import *\n"
        "from shmcache.execution_data_client import WorkKind\n"
        "client = get_db_client()\n"
        "client.save_graph(graph, nodes)\n"
        "run = client.create_graph_execution(graph.id, new_id())\n"
        "client.put_work(WorkKind.START, run.id, run.id)\n"
        "work = client.take_work(10)\n"
        "Path('taken').touch()\n"
        "while not Path('enough').exists(): time.sleep(0.02)\n"
        "client.update_graph_execution_stats(run.id, ExecutionStatus.RUNNING)\n"
        "client.end_work(work, run.id)\n"
        "client.update_graph_execution_stats(run.id, ExecutionStatus.COMPLETED)\n"
        "client.end_work(client.take_work(10), run.id)\n"
        "client.flush(60)\n"
    )
    client.until((host.directory / "taken").exists)
    assert first.end() == 0, first.log()
    second = host.serve()
    (host.directory / "enough").touch()
    assert client.process.wait(60) == 0, client.log()
    assert second.end() == 0, second.log()
    assert host.rows("SELECT status FROM graph_executions") == [("COMPLETED",)]


def test_what_a_killed_client_had_claimed_goes_back_to_the_queue(host: Host) -> None:
    serve = host.serve()
    take = (
        "import os, signal\n"
        "from work import *\n"
        "from shmcache.execution_data_client import WorkKind\n"
        "client = get_db_client()\n"
    )
    killed = host.python(
        f"{take}client.save_graph(graph, nodes)\n"
        "run = client.create_graph_execution(graph.id, new_id())\n"
        "client.put_work(WorkKind.START, run.id, run.id)\n"
        "work = client.take_work(10)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert killed.process.wait(60) == -signal.SIGKILL, killed.log()
    other = host.python(f"{take}work = client.take_work(60)\nprint('attempt', work.attempt)\n")
    assert other.process.wait(90) == 0, other.log()
    assert "attempt 2" in other.log()
    assert serve.end() == 0
    assert host.rows("SELECT status FROM graph_executions") == [("TERMINATED",)], "at the end nobody had it any more"


def test_without_it_a_client_gets_one_clear_error(host: Host) -> None:
    client = host.python("from work import one\none(1)\n")
    assert client.process.wait(60) == 1
    last = client.log().splitlines()[-1]
    assert last.startswith(f"shmcache.errors.ArenaMissing: no arena named '{host.arena}' on this machine")
    assert "shmcache serve" in last


def check(host: Host, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `shmcache serve --check`."""
    return subprocess.run(
        [sys.executable, "-m", "tools.cli", "serve", "--check", *options],
        cwd=host.directory, env=host.environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_check_says_by_its_status_whether_an_arena_is_served(host: Host) -> None:
    absent = check(host)
    assert absent.returncode == 2
    assert absent.stderr.startswith("shmcache: no arena named")
    waiting = host.run(sys.executable, "-m", "tools.cli", "serve", "--check", "--wait", "60")
    serve = host.serve()
    assert waiting.process.wait(60) == 0, waiting.log()
    serve.kill()
    with Arena.attach(host.arena) as left:
        abandoned = check(host)
        assert abandoned.returncode == 2
        assert "nobody serves it now" in abandoned.stderr
        assert left.outstanding() == 0
    assert host.serve().end() == 0


def test_signals_for_workers_have_nothing_to_do_and_a_second_one_is_refused(host: Host) -> None:
    serve = host.serve()
    for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1):
        serve.process.send_signal(number)
    serve.until(lambda: '"event": "state"' in serve.log() and serve.log().count("nothing to do") == 3)
    second = host.run(sys.executable, "-m", "tools.cli", "serve")
    assert second.process.wait(60) == 2
    assert "exists already" in second.log()
    assert serve.end() == 0


def test_with_its_embedded_server_the_clients_need_no_settings_but_where_that_is(host: Host) -> None:
    state_dir = os.environ["TESTS_STATE_DIR"]
    host.environment["SHMCACHE_STATE_DIR"] = state_dir
    del host.environment["SHMCACHE_DATABASE_URL"]
    serve = host.serve()
    client = host.python("from work import one, get_db_client\none(7)\nget_db_client().flush(60)\n")
    assert client.process.wait(60) == 0, client.log()
    assert serve.end() == 0, serve.log()
    assert list((Path(state_dir) / "addresses").glob(f"{host.arena}*")) == []


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_and_pools_of_multiprocessing_need_nothing(host: Host, method: str) -> None:
    serve = host.serve()
    program = host.python(
        "import multiprocessing, sys\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "import work\n"
        "if __name__ == '__main__':\n"
        f"    context = multiprocessing.get_context({method!r})\n"
        "    work.one(0)\n"  # the parent is in the arena too, and has a connection
        "    process = context.Process(target=work.one, args=(1,))\n"
        "    process.start()\n"
        "    process.join()\n"
        "    assert process.exitcode == 0\n"
        "    work.one(2)\n"
        "    with ProcessPoolExecutor(2, mp_context=context) as pool:\n"
        "        list(pool.map(work.one, range(3, 40)))\n"
        "    with context.Pool(1, maxtasksperchild=10) as pool:\n"
        "        print(len(set(pool.map(work.one, range(40, 60), chunksize=1))), 'processes')\n"
    )
    assert program.process.wait(280) == 0, program.log()
    assert serve.end() == 0, serve.log()
    assert host.numbers() == list(range(60))
    assert program.log().splitlines()[-1] == "2 processes", "replaced after 10 each"
