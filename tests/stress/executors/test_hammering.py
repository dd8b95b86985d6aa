"""What executors do, on the arena that all of them share. What came of it all is judged when they have ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from shmcache.arena import Counter
from shmcache.database.connection import connect
from shmcache.errors import FlushTimeout
from shmcache.execution_data_client import WorkKind
from shmcache.identifiers import new_id
from shmcache.manager import Manager
from shmcache.records import FINAL_STATUSES, ExecutionStatus
from tests.integration.charging import PER_RUN
from tests.stress.executors.conftest import STEPS, Executor

# A hang ends the worker; the alarm of the other method would come in the middle of a commit.
pytestmark = pytest.mark.timeout(240, method="thread")

_MOST_ATTEMPTS = 100
_WAIT_SECONDS = 90.0
_OUTPUTS = 3
S = ExecutionStatus


def test_what_many_append_to_the_same_executions_is_there_in_one_order(executor: Executor) -> None:
    before = {each: executor.client.get_node_execution(each).outputs.get("out", ()) for each in executor.ground.shared}
    for _ in range(STEPS):
        executor.append_to_shared()
    for identifier, outputs in before.items():
        after = executor.client.get_node_execution(identifier)
        assert list(after.outputs.get("out", ()))[: len(outputs)] == list(outputs)
        assert len(set(after.outputs.get("out", ()))) == after.output_count


def test_node_executions_are_made_charged_and_ended(executor: Executor) -> None:
    for _ in range(STEPS // 2):
        executor.run_a_node()


def test_credits_are_spent_and_nobody_gets_more_than_there_are(executor: Executor) -> None:
    for _ in range(STEPS):
        executor.spend()
    assert all(executor.client.get_credits(user) >= 0 for user in executor.ground.poor)


def test_graphs_are_run_by_whoever_takes_their_work(executor: Executor) -> None:
    client, graph = executor.client, executor.ground.graph().graph

    def begin() -> str:
        made = client.create_graph_execution(graph.id, executor.dice.choice(executor.ground.rich))
        client.put_work(WorkKind.START, made.id, made.id)
        return made.id

    runs = [client.atomically(begin) for _ in range(max(1, STEPS // 15))]
    manager = Manager(client, lambda: False, _MOST_ATTEMPTS)
    deadline = time.monotonic() + _WAIT_SECONDS
    while any(client.get_graph_execution(run).status not in FINAL_STATUSES for run in runs):
        work = client.take_work(0.05)
        if work is not None:
            manager.do(work)
        assert time.monotonic() < deadline, "graphs do not end"
    assert {client.get_graph_execution(run).status for run in runs} == {S.COMPLETED}


def test_values_that_were_pushed_out_are_read_back_as_they_were(executor: Executor) -> None:
    client, arena = executor.client, executor.arena
    written: dict[str, list[str]] = {}
    evicted = arena.counter_totals()[Counter.EVICTED.name.lower()]
    deadline = time.monotonic() + _WAIT_SECONDS
    while len(written) < STEPS or arena.counter_totals()[Counter.EVICTED.name.lower()] < evicted + STEPS:
        identifier, _ = client.upsert_execution_input(PER_RUN, executor.run(), None)
        values = [f"{new_id()} {'x' * executor.dice.randrange(40_000)}" for _ in range(_OUTPUTS)]
        for value in values:
            executor.journaling.append_output(identifier, value)
        client.update_node_execution_status(identifier, S.TERMINATED)
        written[identifier] = values
        assert time.monotonic() < deadline, "nothing is ever pushed out"
    for identifier, values in written.items():
        assert list(client.get_node_execution(identifier).outputs["out"]) == values


def test_threads_of_one_process_share_its_client(executor: Executor) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with executor.in_thread(number) as mine:
                for _ in range(STEPS // 4):
                    mine.do_anything()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []


def test_forked_children_work_beside_their_parent_and_one_is_killed(executor: Executor) -> None:
    here, there = os.pipe()

    def work(number: int) -> None:
        with executor.in_child(number) as mine:
            step = 0
            while number == 0 or step < STEPS // 4:  # the one that is killed never ends by itself
                mine.do_anything()
                step += 1
                if number == 0 and step == STEPS // 8:
                    os.write(there, b".")

    children = [_fork(lambda number=number: work(number)) for number in range(3)]  # type: ignore[misc]
    os.close(there)
    try:
        for _ in range(STEPS // 4):
            executor.do_anything()
        assert os.read(here, 1) == b"."
    finally:
        os.close(here)
        os.kill(children[0], signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [-signal.SIGKILL, 0, 0]
    executor.do_anything()


def test_who_comes_back_finds_what_it_has_written(executor: Executor) -> None:
    identifier, _ = executor.client.upsert_execution_input(PER_RUN, executor.run(), None)
    for number in range(STEPS // 8):
        executor.journaling.append_output(identifier, number)
        executor.leave_and_come_back()
        executor.do_anything()
        assert list(executor.client.get_node_execution(identifier).outputs["out"]) == list(range(number + 1))


def test_a_durable_write_is_in_the_database_when_it_returns(executor: Executor) -> None:
    client = executor.client
    identifier, _ = client.upsert_execution_input(PER_RUN, executor.run(), None)
    with connect(executor.ground.database_url, application_name="tests") as connection:
        for number in range(max(2, STEPS // 8)):
            client.atomically(lambda value=number: executor.journaling.append_output(identifier, value), durable=True)  # type: ignore[misc]
            assert _outputs(connection, identifier) == list(range(number + 1))
        executor.journaling.append_output(identifier, "receipt")
        try:
            client.wait_durable(client.last_sequence, _WAIT_SECONDS)
        except FlushTimeout as error:
            pytest.fail(str(error))
        assert _outputs(connection, identifier)[-1] == "receipt"


def _outputs(connection: psycopg.Connection[tuple[object, ...]], identifier: str) -> list[object]:
    query = "SELECT value FROM node_execution_outputs WHERE node_execution_id = %s ORDER BY ordinal"
    return [row[0] for row in connection.execute(query, (identifier,)).fetchall()]


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return pid
