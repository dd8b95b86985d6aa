"""What the direct client promises beyond what it shares with the cached one (see test_clients)."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shmcache.arena import Arena
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.direct_client import DirectClient
from shmcache.errors import DatabaseUnavailable, InsufficientBalanceError, InvalidValue, NotFound
from shmcache.execution_data_client import WorkKind
from shmcache.identifiers import derived_id, new_id
from shmcache.records import ExecutionStatus, Graph, Link, NodeDefinition
from shmcache.work_queue import WorkQueue
from tests.integration.relay import Relay

S = ExecutionStatus
GRAPH = derived_id("graph", "pair")
SOURCE, SINK = derived_id(GRAPH, "source"), derived_id(GRAPH, "sink")
LINKS = (Link(SOURCE, "value", SINK, "left"), Link(SOURCE, "value", SINK, "right"))
NODES = [
    NodeDefinition(SOURCE, GRAPH, "source", "shmcache.constant", {}, {"value": 7}, (), LINKS),
    NodeDefinition(SINK, GRAPH, "sink", "shmcache.merge", {}, {}, LINKS, ()),
]
_FORK = multiprocessing.get_context("fork")

MakeClient = Callable[..., DirectClient]


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"direct-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings() -> Settings:
    return load_settings(execution_fee_every=2, execution_fee=5)


@pytest.fixture
def make_client(arena: Arena, database_url: str, settings: Settings) -> MakeClient:
    def make(url: str = database_url, on_wait: Callable[[], None] = lambda: None) -> DirectClient:
        return DirectClient(url, work_queue=WorkQueue(arena), settings=settings, on_wait=on_wait)

    return make


@pytest.fixture
def user(database_url: str) -> str:
    identifier = new_id()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, Graph(GRAPH, "pair", (SOURCE, SINK), {SOURCE: {}}), NODES)
        queries.create_account(connection, identifier, 1_000)
    return identifier


@pytest.fixture
def client(make_client: MakeClient, user: str) -> Iterator[DirectClient]:
    with make_client() as made:
        yield made


@pytest.fixture
def run(client: DirectClient, user: str) -> str:
    return client.create_graph_execution(GRAPH, user).id


def together(count: int, work: Callable[[int], None]) -> None:
    """Run `work(number)` in several forked processes that begin at the same time; check that all came to their end."""
    gate = _FORK.Barrier(count)
    processes = [_FORK.Process(target=_at_the_gate, args=(gate, work, number)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count


def _at_the_gate(gate: Barrier, work: Callable[[int], None], number: int) -> None:
    gate.wait(30)
    work(number)
    os._exit(0)


# Between processes


def test_every_input_is_taken_once_and_fills_the_oldest_gap(
    client: DirectClient, make_client: MakeClient, run: str
) -> None:
    def give(number: int) -> None:
        with make_client() as mine:
            for value in range(40):
                mine.upsert_execution_input(SINK, run, "left" if number % 2 else "right", [number, value])

    client.close()
    together(4, give)
    executions = client.get_node_executions(run, SINK)
    assert len(executions) == 80
    for pin, givers in (("left", (1, 3)), ("right", (0, 2))):
        taken = [each.inputs[pin] for each in executions]
        assert sorted(taken) == sorted([giver, value] for giver in givers for value in range(40))
        for giver in givers:
            assert [value for by, value in taken if by == giver] == list(range(40)), "in the order given"


def test_outputs_of_many_processes_are_all_kept(client: DirectClient, make_client: MakeClient, run: str) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)

    def append(number: int) -> None:
        with make_client() as mine:
            for value in range(25):
                mine.upsert_execution_output(identifier, "out", [number, value])

    client.close()
    together(4, append)
    outputs = client.get_node_execution(identifier).outputs["out"]
    assert sorted(outputs) == [[number, value] for number in range(4) for value in range(25)]


def test_one_key_is_charged_once_by_many_processes(
    client: DirectClient, make_client: MakeClient, run: str, user: str
) -> None:
    def spend(number: int) -> None:
        with make_client() as mine:
            for turn in range(20):
                mine.spend_credits(user, 3, None, f"turn {turn}")

    client.close()
    together(4, spend)
    assert client.get_credits(user) == 1_000 - 20 * 3


def test_an_account_never_goes_below_zero_and_the_ledger_adds_up(
    client: DirectClient, make_client: MakeClient, user: str, database_url: str
) -> None:
    def spend(number: int) -> None:
        with make_client() as mine:
            left = 1_000
            while left >= 37:
                try:
                    left = mine.spend_credits(user, 37)
                except InsufficientBalanceError as error:
                    left = error.balance

    client.close()
    together(4, spend)
    assert client.get_credits(user) == 1_000 % 37
    with connect(database_url, application_name="test") as connection:
        running = [
            row[0] for row in connection.execute("SELECT running_balance FROM ledger ORDER BY running_balance DESC")
        ]
    assert running == list(range(1_000 - 37, -1, -37))


def test_steps_that_deadlock_are_run_again(
    client: DirectClient, make_client: MakeClient, run: str, database_url: str
) -> None:
    with connect(database_url, application_name="test") as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET deadlock_timeout = '20ms'")
    pair = [client.upsert_execution_input(SINK, run, None)[0] for _ in range(2)]

    def step(number: int) -> None:
        first, second = pair if number else reversed(pair)
        with make_client() as mine:
            for _ in range(3):

                def both() -> None:
                    mine.upsert_execution_output(first, "out", number)
                    mine.upsert_execution_output(second, "out", number)

                mine.atomically(both)

    client.close()
    together(2, step)
    for identifier in pair:
        assert sorted(client.get_node_execution(identifier).outputs["out"]) == [0] * 3 + [1] * 3


def test_a_client_that_was_used_before_a_fork_works_on_both_sides(client: DirectClient, run: str) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    together(1, lambda _: client.upsert_execution_output(identifier, "out", "child") and None)
    assert client.upsert_execution_output(identifier, "out", "parent").outputs == {"out": ["child", "parent"]}


# Values that a database refuses


@pytest.mark.parametrize("value", ["a\0b", {"a\0b": 1}, ["\ud800"]], ids=["NUL", "NUL in a key", "surrogate"])
def test_a_value_that_the_database_refuses_is_invalid_and_changes_nothing(
    client: DirectClient, run: str, value: Any
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    before = client.get_node_execution(identifier)
    for call in (
        lambda: client.upsert_execution_output(identifier, "out", value),
        lambda: client.upsert_execution_input(SINK, run, "left", value),
        lambda: client.update_node_execution_status(identifier, S.QUEUED, {"left": value}),
        lambda: client.update_node_execution_status(identifier, S.QUEUED, None, {"left": value}),
        lambda: client.update_graph_execution_stats(run, None, {"note": value}),
        lambda: client.atomically(lambda: client.upsert_execution_output(identifier, "out", value)),
    ):
        with pytest.raises(InvalidValue):
            call()
    assert client.get_node_execution(identifier) == before
    assert client.get_node_executions(run) == [before]


def test_a_name_too_long_for_its_index_is_invalid_and_no_reason_to_try_again(client: DirectClient, run: str) -> None:
    name = "".join(chr(0x4E00 + number * 7 % 20_000) for number in range(8_000))
    with pytest.raises(InvalidValue):
        client.upsert_execution_input(SINK, run, name, 1)
    assert client.get_node_executions(run) == []


def test_identifiers_are_checked_wherever_they_stand(client: DirectClient, run: str, user: str) -> None:
    for call in (
        lambda: client.get_latest_node_execution(SINK, "no-uuid"),
        lambda: client.get_node_executions(run, "no-uuid"),
        lambda: client.upsert_execution_input("no-uuid", run, "left", 1),
        lambda: client.increment_execution_count(user, "no-uuid"),
    ):
        with pytest.raises(InvalidValue):
            call()
    for missing in (
        lambda: client.upsert_execution_input(new_id(), run, "left", 1),
        lambda: client.upsert_execution_input(SINK, new_id(), "left", 1),
        lambda: client.upsert_execution_input(SINK, run, "left", 1, new_id()),
        lambda: client.upsert_execution_output(new_id(), "out", 1),
        lambda: client.update_node_execution_status(new_id(), S.QUEUED),
        lambda: client.update_graph_execution_stats(new_id(), S.RUNNING),
        lambda: client.create_graph_execution(new_id(), user),
        lambda: client.spend_credits(new_id(), 1),
        lambda: client.increment_execution_count(new_id()),
    ):
        with pytest.raises(NotFound):
            missing()


def test_one_identifier_in_another_spelling_is_the_same(client: DirectClient, run: str) -> None:
    first, _ = client.upsert_execution_input(SINK.upper(), run.upper(), "left", 1)
    assert client.upsert_execution_input(SINK, run, "right", 2) == (first, {"left": 1, "right": 2})


def test_an_ordinal_beyond_the_outputs_leaves_no_gap(client: DirectClient, run: str) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    client.upsert_execution_output(identifier, "out", "a", ordinal=7)
    client.upsert_execution_output(identifier, "out", "b", ordinal=7)
    assert client.get_node_execution(identifier).outputs == {"out": ["a", "b"]}


def test_an_execution_that_was_charged_bears_nothing_more_whatever_its_count(
    client: DirectClient, run: str, user: str
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    execution = client.get_node_execution(identifier)
    _, left = client.charge_usage(execution, 1)
    assert client.charge_usage(execution, 2)[1] == left
    assert client.get_credits(user) == left


# Together or not at all


def test_work_is_put_on_the_queue_after_the_commit_or_never(client: DirectClient, run: str) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)

    def step(fails: bool) -> None:
        client.update_node_execution_status(identifier, S.QUEUED)
        client.atomically(lambda: client.put_work(WorkKind.RUN, identifier, run))
        assert client.take_work(0.01) is None
        if fails:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        client.atomically(lambda: step(True))
    assert client.take_work(0.01) is None
    client.atomically(lambda: step(False))
    work = client.take_work(1)
    assert work is not None
    assert work.id == identifier
    client.end_work(work, run)


def test_a_step_that_cannot_be_paid_leaves_nothing(client: DirectClient, run: str, user: str) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)

    def step() -> None:
        client.update_node_execution_status(identifier, S.RUNNING)
        client.spend_credits(user, 1_001)

    with pytest.raises(InsufficientBalanceError):
        client.atomically(step)
    assert client.get_node_execution(identifier).status is S.INCOMPLETE
    assert client.get_credits(user) == 1_000


# Connections


def _terminate_others(database_url: str) -> None:
    with connect(database_url, application_name="test") as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10_000) FROM pg_stat_activity WHERE application_name = 'shmcache direct'"
            " AND datname = current_database()"
        )


def test_a_lost_connection_is_one_clear_error_and_the_next_call_has_a_new_one(
    client: DirectClient, run: str, database_url: str
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    _terminate_others(database_url)
    with pytest.raises(DatabaseUnavailable):
        client.upsert_execution_output(identifier, "out", 1)
    assert client.upsert_execution_output(identifier, "out", 2).outputs == {"out": [2]}


@pytest.mark.parametrize("after_first", [False, True])
def test_a_connection_lost_inside_a_step_undoes_the_step(
    client: DirectClient, run: str, database_url: str, after_first: bool
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)

    def step() -> None:
        client.upsert_execution_output(identifier, "out", 1)
        client.put_work(WorkKind.RUN, identifier, run)
        _terminate_others(database_url)
        if after_first:
            client.upsert_execution_output(identifier, "out", 2)

    with pytest.raises(DatabaseUnavailable):
        client.atomically(step)
    assert client.take_work(0.01) is None
    assert client.get_node_execution(identifier).outputs == {}


@pytest.mark.parametrize("failure", ["refused value", "lost connection"])
def test_a_step_that_passes_over_its_error_does_not_seem_to_succeed(
    client: DirectClient, run: str, database_url: str, failure: str
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)

    def step() -> None:
        client.upsert_execution_output(identifier, "out", 1)
        if failure == "lost connection":
            _terminate_others(database_url)
        with contextlib.suppress(InvalidValue, DatabaseUnavailable):
            client.upsert_execution_output(identifier, "out", "\0")
        with contextlib.suppress(InvalidValue, DatabaseUnavailable, psycopg.Error):
            client.upsert_execution_output(identifier, "out", 2)

    with pytest.raises((InvalidValue, DatabaseUnavailable)):
        client.atomically(step)
    assert client.get_node_execution(identifier).outputs == {}


# Round trips


def test_every_operation_is_one_round_trip_and_each_is_counted(
    make_client: MakeClient, run: str, user: str, database_url: str, tmp_path: Path
) -> None:
    waits = 0

    def count() -> None:
        nonlocal waits
        waits += 1

    with Relay(database_url, tmp_path) as relay:
        client = make_client(relay.url, count)
        identifier, _ = client.upsert_execution_input(SINK, run, None)
        execution = client.get_node_execution(identifier)
        operations: dict[str, Callable[[], object]] = {
            "get_graph": lambda: client.get_graph(GRAPH),
            "get_node": lambda: client.get_node(SINK),
            "get_graph_execution": lambda: client.get_graph_execution(run),
            "get_node_execution": lambda: client.get_node_execution(identifier),
            "get_node_executions": lambda: client.get_node_executions(run, SINK, ["shmcache.merge"], [S.INCOMPLETE], 5),
            "get_latest": lambda: client.get_latest_node_execution(SINK, run),
            "create": lambda: client.create_graph_execution(GRAPH, user),
            "input": lambda: client.upsert_execution_input(SINK, run, "left", 1),
            "input to": lambda: client.upsert_execution_input(SINK, run, "right", 1, identifier),
            "output": lambda: client.upsert_execution_output(identifier, {"out": 1, "other": 2}),
            "status": lambda: client.update_node_execution_status(identifier, S.REVIEW, {"left": 2}, {"a": 1}),
            "graph status": lambda: client.update_graph_execution_stats(run, None, {"a": 1}),
            "get_credits": lambda: client.get_credits(user),
            "count": lambda: client.increment_execution_count(user, identifier),
            "spend": lambda: client.spend_credits(user, 1),
            "charge": lambda: client.charge_usage(execution, 2),
        }
        for operation in operations.values():  # now their statements are prepared
            operation()
        assert waits == relay.round_trips
        for name, operation in operations.items():
            counted, travelled = waits, relay.round_trips
            operation()
            assert (waits - counted, relay.round_trips - travelled) == (1, 1), name
        counted, travelled = waits, relay.round_trips

        def step() -> None:
            client.upsert_execution_output(identifier, "out", 3)
            client.upsert_execution_input(SINK, run, "left", 1)
            client.get_node_execution(identifier)

        client.atomically(step)
        assert (waits - counted, relay.round_trips - travelled) == (4, 4), "three operations and the commit"
        counted, travelled = waits, relay.round_trips
        client.atomically(lambda: client.put_work(WorkKind.RUN, identifier, run))
        assert (waits - counted, relay.round_trips - travelled) == (0, 0), "the queue is not PostgreSQL's"
        work = client.take_work(1)
        assert work is not None
        client.end_work(work, run)
        client.close()
        assert waits == relay.round_trips
