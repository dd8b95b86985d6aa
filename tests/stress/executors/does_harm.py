"""What the judgement must find: collected only where it is named. Each of these passes by itself."""

from __future__ import annotations

import json
import time

from shmcache.database.connection import connect
from shmcache.identifiers import new_id
from shmcache.records import ExecutionStatus
from tests.integration.charging import PER_RUN
from tests.stress.executors.conftest import Executor


def _written(executor: Executor) -> str:
    """Return an execution with an output, both in the database."""
    identifier, _ = executor.client.upsert_execution_input(PER_RUN, executor.run(), None)
    executor.journaling.append_output(identifier, "value")
    executor.client.update_node_execution_status(identifier, ExecutionStatus.TERMINATED)
    executor.client.flush(60)
    return identifier


def _change(executor: Executor, query: bytes, *arguments: object) -> None:
    with connect(executor.ground.database_url, application_name="tests") as connection:
        assert connection.execute(query, arguments).rowcount == 1


def test_a_row_is_deleted(executor: Executor) -> None:
    _change(executor, b"DELETE FROM node_execution_outputs WHERE node_execution_id = %s", _written(executor))


def test_a_row_is_doubled(executor: Executor) -> None:
    _change(
        executor,
        b"INSERT INTO node_execution_outputs SELECT node_execution_id, ordinal + 1, name, value, time "
        b"FROM node_execution_outputs WHERE node_execution_id = %s",
        _written(executor),
    )


def test_rows_are_out_of_order(executor: Executor) -> None:
    identifier = _written(executor)
    executor.journaling.append_output(identifier, "another")
    executor.client.flush(60)
    _change(
        executor,
        b"UPDATE node_execution_outputs SET time = time + interval '1 h' WHERE node_execution_id = %s AND ordinal = 0",
        identifier,
    )


def test_an_account_is_given_credits(executor: Executor) -> None:
    _change(executor, b"UPDATE accounts SET balance = balance + 1 WHERE user_id = %s", executor.ground.rich[0])


def test_a_journal_has_what_was_never_written(executor: Executor) -> None:
    path = executor.ground.journals / f"0-{time.monotonic_ns()}"
    path.write_text(f'{json.dumps(["T", 1, [["K", new_id(), 7]]])}\n["D",1,0.0,0.0]\n')


def test_two_were_told_that_they_wrote_the_same_output(executor: Executor) -> None:
    identifier = _written(executor)
    path = executor.ground.journals / f"0-{time.monotonic_ns()}"
    path.write_text(f'{json.dumps(["T", 1, [["O", identifier, 0, "out", 1]]])}\n["D",1,0.0,0.0]\n')
