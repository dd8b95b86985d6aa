"""Graph executions handed out by Celery to hosts: submitted, run, resumed where a host was lost, cancelled."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmcache.identifiers import new_id
from tests.integration.handing_out import Place, redis_server


@pytest.fixture
def place(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, database_url, getattr(request, "param", "redis"))
    yield made
    made.close()


def test_a_submitted_graph_is_run_by_the_children_of_a_worker_and_charged_once(place: Place) -> None:
    serve = place.host.serve()
    worker = place.worker(place.host)
    runs = place.submit(place.chain("a", "Step", "Several", "Step"), "--repeat", "3", "--credits", "500")
    for run in runs:
        found = place.status(run, "--wait", "60")
        assert (found["status"], found["cost"], found["lost_hosts"]) == ("COMPLETED", 7 * 4, 0)
        assert found["node_executions_by_status"] == {"COMPLETED": 4}
    assert len(place.runs("a-0")) == 3
    assert {pid for _, _, pid in place.runs()} <= {child.pid for child in worker.children()}
    assert worker.end() == 0, worker.log()
    assert serve.end() == 0, serve.log()
    assert place.host.rows("SELECT balance FROM accounts") == [(500 - 3 * 28,)]


def node_rows(place: Place, run: str) -> list[tuple[str, ...]]:
    """Return the nodes of a graph execution and the statuses of their executions."""
    return place.host.rows(
        "SELECT n.name, e.status FROM node_executions e JOIN nodes n ON n.id = e.node_id"
        f" WHERE graph_execution_id = '{run}' ORDER BY n.name"
    )


@pytest.mark.parametrize("place", ["redis", "rabbitmq"], indirect=True)
def test_what_a_lost_host_was_running_runs_on_another_one_and_what_was_done_is_not_done_again(place: Place) -> None:
    serve = place.host.serve()
    worker = place.worker(place.host)
    go_on = place.hold("b-1")
    (run,) = place.submit(place.chain("b", "Step", "Several", "Step"), "--credits", "500")
    worker.until(lambda: place.runs("b-1"))
    worker.until(lambda: ("b-1", "RUNNING") in node_rows(place, run))
    other = place.add_host("two")
    other.serve()
    second = place.worker(other)
    place.lose(place.host, serve, worker)
    second.until(lambda: len(place.runs("b-1")) == 2)
    go_on()
    place.await_status(run, "COMPLETED", second)
    found = place.status(run)
    assert (found["lost_hosts"], found["cost"]) == (1, 7 * 4)
    assert [(name, arena == other.arena) for name, arena, _ in place.runs()] == [
        ("b-0", False), ("b-1", False), ("b-1", True), ("b-2", True), ("b-2", True),
    ]  # fmt: skip
    assert other.rows("SELECT count(*) FROM node_execution_outputs WHERE name = 'value'") == [(5,)]
    second.until(lambda: other.rows("SELECT balance FROM accounts") == [(500 - 28,)])
    second.until(lambda: not other.rows("SELECT FROM submissions"))


def test_a_killed_child_and_a_killed_worker_lose_nothing_on_their_host(place: Place) -> None:
    place.host.serve()
    worker = place.worker(place.host)
    go_on = [place.hold("c-0"), place.hold("c-1")]
    (run,) = place.submit(place.chain("c", "Step", "Step"))
    worker.until(lambda: place.runs("c-0"))
    os.kill(place.runs("c-0")[0][2], signal.SIGKILL)
    worker.until(lambda: len(place.runs("c-0")) == 2)
    go_on[0]()
    worker.until(lambda: place.runs("c-1"))
    worker.kill()
    again = place.worker(place.host)
    again.until(lambda: len(place.runs("c-1")) == 2)
    go_on[1]()
    place.await_status(run, "COMPLETED", again)
    assert place.status(run)["lost_hosts"] == 0
    assert len(place.runs()) == 4


def test_a_node_that_kills_whoever_runs_it_fails_after_as_many_attempts_as_are_allowed(place: Place) -> None:
    place.host.environment["SHMCACHE_MAX_ATTEMPTS"] = "2"
    place.host.serve()
    worker = place.worker(place.host)
    (run,) = place.submit(place.chain("d", "Step", "Deadly", "Step"))
    place.await_status(run, "FAILED", worker)
    assert [name for name, *_ in place.runs()] == ["d-0", "d-1", "d-1"]
    ((said,),) = place.host.rows("SELECT value FROM node_execution_outputs WHERE name = 'error'")
    assert said == "RuntimeError: its worker died 2 times"


def test_a_host_that_ends_in_order_hands_on_what_it_has_at_once(place: Place) -> None:
    place.host.environment["SHMCACHE_HOST_LEASE"] = "3600"
    serve = place.host.serve()
    worker = place.worker(place.host)
    go_on = place.hold("e-0")
    (run,) = place.submit(place.chain("e", "Step", "Step"))
    worker.until(lambda: place.runs("e-0"))
    hold = place.hold("e-1")
    other = place.add_host("two")
    other.serve()
    second = place.worker(other)
    worker.process.send_signal(signal.SIGTERM)
    worker.until(lambda: "Warm shutdown" in worker.log())
    go_on()
    assert worker.process.wait(60) == 0, worker.log()
    assert not place.runs("e-1")
    assert serve.end() == 0, serve.log()
    second.until(lambda: place.runs("e-1"))
    hold()
    place.await_status(run, "COMPLETED", second)
    assert [arena == other.arena for _, arena, _ in place.runs()] == [False, True]


def test_what_is_cancelled_ends_also_while_it_waits_for_a_host_or_runs_on_one(place: Place) -> None:
    path = place.chain("f", "Step", "Step")
    (waiting,) = place.submit(path)
    done = place.shmcache("cancel", waiting)
    assert (done.returncode, done.stdout) == (0, f"{waiting} is TERMINATED\n")
    serve = place.host.serve()
    worker = place.worker(place.host)
    go_on = place.hold("f-0")
    (running,) = place.submit(path)
    worker.until(lambda: place.runs("f-0"))
    done = place.shmcache("cancel", running)
    assert (done.returncode, done.stderr) == (0, "")
    worker.until(lambda: "was cancelled" in serve.log())
    go_on()
    place.await_status(running, "TERMINATED", worker)
    assert [name for name, *_ in place.runs()] == ["f-0"]
    assert place.status(running, "--wait", "1")["error"] == "cancelled"
    assert place.shmcache("cancel", running).returncode == 1
    worker.until(lambda: not place.host.rows("SELECT FROM submissions UNION ALL SELECT FROM cancellations"))


def test_a_broker_that_forgot_its_messages_is_given_them_again(place: Place) -> None:
    runs = place.submit(place.chain("g", "Step"), "--repeat", "3")
    place.redis.kill()
    place.redis, _ = redis_server(place.host)
    place.host.serve()
    worker = place.worker(place.host)
    for run in runs:
        place.await_status(run, "COMPLETED", worker)
    assert len(place.runs()) == 3


def test_a_broker_that_cannot_be_reached_is_one_line_and_nothing_was_submitted(place: Place) -> None:
    path = str(place.chain("h", "Step"))
    for broker, said in [
        ("redis://127.0.0.1:1/0", "redis://127.0.0.1:1/0"),
        ("amqp://me:secret@127.0.0.1:1//", "amqp://me:***@127.0.0.1:1"),
        ("nonsense://x", "nonsense"),
    ]:
        done = place.shmcache("submit", path, "--broker", broker)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.stderr
        assert said in done.stderr
        assert "nothing was submitted: check --broker" in done.stderr
        assert "secret" not in done.stderr
    assert place.host.rows("SELECT FROM graph_executions") == []


def test_a_graph_execution_that_nobody_knows_is_one_line(place: Place) -> None:
    unknown = new_id()
    for command in ("status", "cancel"):
        for given, said in [(unknown, f"no graph execution {unknown}"), ("me", "'me' is not a UUID")]:
            done = place.shmcache(command, given)
            assert (done.returncode, done.stdout) == (2, "")
            assert len(done.stderr.splitlines()) == 1
            assert said in done.stderr


def test_without_celery_submitting_says_how_to_install_it(place: Place) -> None:
    (place.host.directory / "celery.py").write_text("raise ImportError('none here')\n")
    done = place.shmcache("submit", str(place.chain("i", "Step")), "--broker", place.broker)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "shmcache: Celery is not installed here: pip install 'shmcache[celery]'\n"
