"""Forked servers that are not ours, as they are: Celery, gunicorn, Dramatiq, uWSGI; their workers share the arena that
`shmcache serve` keeps."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from shmcache.arena import survey
from shmcache.arena.view import View
from tests.integration.serving import Host, Program

_BIN = Path(sys.executable).parent


@pytest.fixture
def host(database_url: str, tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path, database_url)
    yield made
    made.close()


@pytest.fixture
def redis_socket(host: Host) -> str:
    """A real Redis, at a unix socket."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not here: apt-get install redis-server")
    socket = host.directory / "redis.sock"
    program = host.run(server, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(host.directory))
    with redis.Redis(unix_socket_path=str(socket)) as client:

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

        program.until(answers)
    return str(socket)


def attached(host: Host) -> set[int]:
    """Return the processes that are in the arena and are not the supervisor's."""
    with View(host.arena) as view:
        return {lane.pid for lane in survey.lanes(view.memory) if lane.alive and lane.role == "other"}


def replaced(host: Host, program: Program, worker: int) -> bool:
    """Say whether a killed worker's place in the arena was given to another."""
    return worker not in attached(host) and program.process.poll() is None


# Celery

CELERY = """
import celery
import shmcache.contrib.celery
from shmcache.contrib.celery import DurableTask
import work

app = celery.Celery("app", broker=BROKER)
app.conf.update(broker_transport_options=OPTIONS, broker_connection_retry_on_startup=True, task_ignore_result=True)

@app.task(name="one")
def one(number):
    work.one(number)

@app.task(name="durably", base=DurableTask)
def durably(number):
    work.one(number)
"""


def celery_app(host: Host, broker: str, options: dict[str, str]) -> None:
    """Write the app's module."""
    (host.directory / "app.py").write_text(CELERY.replace("BROKER", repr(broker)).replace("OPTIONS", repr(options)))


def celery_worker(host: Host) -> Program:
    """Start a worker with a prefork pool of two processes."""
    return host.run(
        str(_BIN / "celery"), "-A", "app", "worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "INFO",
        "--without-gossip", "--without-mingle", "--without-heartbeat", "--prefetch-multiplier", "1",
        C_FORCE_ROOT="1",
    )  # fmt: skip


def celery_send(host: Host, name: str, numbers: range) -> None:
    """Send tasks."""
    sent = host.python(f"from app import {name}\nfor number in {numbers!r}: {name}.delay(number)\n")
    assert sent.process.wait(60) == 0, sent.log()


@pytest.fixture
def celery(request: pytest.FixtureRequest, host: Host) -> Host:
    """An app over a broker that is here: Redis, or else a directory."""
    if shutil.which("redis-server"):
        celery_app(host, f"redis+socket://{request.getfixturevalue('redis_socket')}", {})
    else:
        queue = host.directory / "queue"
        queue.mkdir()
        folders = {name: str(queue) for name in ("data_folder_in", "data_folder_out")}
        celery_app(host, "filesystem://", {**folders, "control_folder": str(host.directory / "control")})
    return host


def test_the_processes_of_celerys_prefork_pool_share_the_arena_also_a_replaced_one(celery: Host) -> None:
    serve = celery.serve()
    worker = celery_worker(celery)
    worker.until(lambda: len(attached(celery)) == 2)
    celery_send(celery, "durably", range(30))
    worker.until(lambda: len(celery.numbers()) == 30)
    worker.until(lambda: worker.log().count("succeeded in") == 30)
    killed = min(attached(celery))
    os.kill(killed, signal.SIGKILL)
    worker.until(lambda: replaced(celery, worker, killed) and len(attached(celery)) == 2)
    celery_send(celery, "one", range(30, 60))
    worker.until(lambda: worker.log().count("succeeded in") == 60)
    assert worker.end() == 0, worker.log()
    assert serve.end() == 0, serve.log()
    assert celery.numbers() == list(range(60))


def test_a_celery_worker_without_an_arena_ends_with_one_clear_line(host: Host) -> None:
    celery_app(host, "memory://", {})
    worker = celery_worker(host)
    assert worker.process.wait(60) == 1
    assert f"shmcache: no arena named '{host.arena}'" in worker.log()
    assert "Traceback" not in worker.log()


# gunicorn and uWSGI

WSGI = """
import os
from urllib.parse import parse_qs
import shmcache
import work
EARLY

def app(environ, start_response):
    pid = work.one(int(parse_qs(environ["QUERY_STRING"])["number"][0]))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(pid).encode()]
"""


def ask(host: Host, numbers: range) -> set[int]:
    """Send requests; return the processes that answered."""
    transport = httpx.HTTPTransport(uds=str(host.directory / "web.sock"))
    with httpx.Client(transport=transport, base_url="http://web", headers={"Connection": "close"}) as client:
        return {int(client.get("/", params={"number": number}).raise_for_status().text) for number in numbers}


def gunicorn(host: Host, *options: str) -> Program:
    """Start gunicorn with two workers."""
    (host.directory / "gunicorn.conf.py").write_text("from shmcache.contrib.gunicorn import post_fork\n")
    return host.run(
        str(_BIN / "gunicorn"), "app:app", "--workers", "2", "--bind", f"unix:{host.directory / 'web.sock'}",
        "--worker-tmp-dir", str(host.directory), *options,
    )  # fmt: skip


def test_gunicorns_workers_share_the_arena_and_do_not_notice_that_serve_is_started_again(host: Host) -> None:
    (host.directory / "app.py").write_text(WSGI.replace("EARLY", ""))
    first = host.serve()
    server = gunicorn(host)
    server.until(lambda: len(attached(host)) == 2)
    ask(host, range(20))
    assert first.end() == 0, first.log()
    ask(host, range(20, 40))
    second = host.serve()
    ask(host, range(40, 60))
    assert server.end() == 0
    assert second.end() == 0
    assert host.numbers() == list(range(60))


def test_gunicorn_may_preload_what_uses_the_arena_before_it_forks(host: Host) -> None:
    """The master has a client and a connection then."""
    early = "shmcache.get_db_client().save_graph(work.graph, work.nodes)"
    (host.directory / "app.py").write_text(WSGI.replace("EARLY", early))
    serve = host.serve()
    server = gunicorn(host, "--preload")
    server.until(lambda: len(attached(host)) == 3)
    workers = {child.pid for child in server.children()}
    assert ask(host, range(40)) <= workers
    killed = min(workers)
    os.kill(killed, signal.SIGKILL)
    server.until(lambda: replaced(host, server, killed) and len(attached(host)) == 3)
    ask(host, range(40, 60))
    assert server.end() == 0, server.log()
    assert serve.end() == 0, serve.log()
    assert host.numbers() == list(range(60))


def test_gunicorn_without_an_arena_says_so_and_fails_to_boot(host: Host) -> None:
    (host.directory / "app.py").write_text(WSGI.replace("EARLY", ""))
    server = gunicorn(host)
    assert server.process.wait(60) == 3
    assert f"shmcache: no arena named '{host.arena}'" in server.log()


def test_uwsgis_workers_share_the_arena(host: Host) -> None:
    program = shutil.which("uwsgi", path=f"{_BIN}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("uwsgi is not here: pip install uwsgi (it needs a C compiler)")
    (host.directory / "app.py").write_text(WSGI.replace("EARLY", "import shmcache.contrib.uwsgi"))
    serve = host.serve()
    server = host.run(
        program, "--master", "--processes", "2", "--http-socket", str(host.directory / "web.sock"),
        "--wsgi-file", str(host.directory / "app.py"), "--callable", "app", "--die-on-term", "--need-app",
        "--home", sys.prefix, "--chmod-socket=600",
    )  # fmt: skip
    server.until(lambda: len(attached(host)) == 2)
    ask(host, range(40))
    killed = min(attached(host))
    os.kill(killed, signal.SIGKILL)
    server.until(lambda: replaced(host, server, killed) and len(attached(host)) == 2)
    ask(host, range(40, 60))
    server.end()
    assert serve.end() == 0, serve.log()
    assert host.numbers() == list(range(60))


# Dramatiq

DRAMATIQ = """
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from shmcache.contrib.dramatiq import SharedCache
import work

broker = RedisBroker(url="unix://SOCKET")
broker.add_middleware(SharedCache(durable=True))
dramatiq.set_broker(broker)

@dramatiq.actor(max_retries=0)
def one(number):
    work.one(number)
"""


def dramatiq(host: Host, socket: str) -> Program:
    """Start two worker processes with two threads each."""
    (host.directory / "app.py").write_text(DRAMATIQ.replace("SOCKET", socket))
    return host.run(str(_BIN / "dramatiq"), "app", "--processes", "2", "--threads", "2", "--skip-logging")


def test_dramatiqs_worker_processes_share_the_arena(host: Host, redis_socket: str) -> None:
    serve = host.serve()
    workers = dramatiq(host, redis_socket)
    workers.until(lambda: len(attached(host)) == 2)
    sent = host.python("from app import one\nfor number in range(60): one.send(number)\n")
    assert sent.process.wait(60) == 0, sent.log()
    workers.until(lambda: len(host.numbers()) == 60)
    assert workers.end() == 0, workers.log()
    assert serve.end() == 0, serve.log()
    assert host.numbers() == list(range(60))


def test_dramatiq_without_an_arena_ends_with_the_reason(host: Host, redis_socket: str) -> None:
    workers = dramatiq(host, redis_socket)
    assert workers.process.wait(90) != 0
    assert f"shmcache: no arena named '{host.arena}'" in workers.log()


def test_none_of_them_is_loaded_by_who_does_not_ask_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, shmcache.session, tools.supervisor\nprint(*sys.modules)"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert not {"celery", "gunicorn", "dramatiq", "uwsgidecorators", "shmcache.contrib"} & {*done.stdout.split()}
