"""What both clients promise, tried on both: the same calls, the same answers, the same rows."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import TableSet, connect
from shmcache.direct_client import DirectClient
from shmcache.errors import InsufficientBalanceError, InvalidValue, NotFound
from shmcache.execution_data_client import ExecutionDataClient, Work, WorkKind
from shmcache.identifiers import derived_id, new_id
from shmcache.records import ALLOWED_FROM, ExecutionStatus, Graph, InputSource, Link, NodeDefinition
from shmcache.work_queue import WorkQueue
from tests.integration.draining import drain

S = ExecutionStatus
FALSY = [0, "", False, None, [], {}, 0.0]


def small_graph() -> tuple[Graph, list[NodeDefinition]]:
    """A constant that feeds both pins of a merge: one ordinary link, one static."""
    graph_id = derived_id("graph", "small")
    source, sink = derived_id(graph_id, "source"), derived_id(graph_id, "sink")
    links = (Link(source, "value", sink, "left"), Link(source, "value", sink, "right", True))
    nodes = [
        NodeDefinition(source, graph_id, "source", "shmcache.constant", {}, {"value": 7}, (), links),
        NodeDefinition(sink, graph_id, "sink", "shmcache.merge", {"left": None}, {}, links, ()),
    ]
    return Graph(graph_id, "small", (source, sink), {source: {}}), nodes


@pytest.fixture(params=["cached", "direct"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["shmcache", "autogpt"])
def table_set(request: pytest.FixtureRequest) -> TableSet:
    chosen: TableSet = request.param
    return chosen


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"clients-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings() -> Settings:
    return load_settings(execution_fee_every=3, execution_fee=5)


@pytest.fixture
def make_client(mode: str, arena: Arena, database_url: str, settings: Settings) -> Callable[[], ExecutionDataClient]:
    def make() -> ExecutionDataClient:
        if mode == "direct":
            return DirectClient(database_url, work_queue=WorkQueue(arena), settings=settings, on_wait=lambda: None)
        return CachedClient(arena, database_url, settings)

    return make


@pytest.fixture
def client(make_client: Callable[[], ExecutionDataClient], database_url: str) -> Iterator[ExecutionDataClient]:
    graph, nodes = small_graph()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
    made = make_client()
    yield made
    made.close()


@pytest.fixture
def user(database_url: str) -> str:
    identifier = new_id()
    with connect(database_url, application_name="test") as connection:
        queries.create_account(connection, identifier, 100)
    return identifier


@pytest.fixture
def run(client: ExecutionDataClient, user: str) -> str:
    return client.create_graph_execution(small_graph()[0].id, user).id


SINK = small_graph()[1][1].id
SOURCE = small_graph()[1][0].id


def test_definitions_come_back_as_they_were_saved(client: ExecutionDataClient) -> None:
    graph, nodes = small_graph()
    assert [client.get_node(node.id)._asdict() for node in nodes] == [
        {**node._asdict(), "input_links": tuple(node.input_links), "output_links": tuple(node.output_links)}
        for node in nodes
    ]
    found = client.get_graph(graph.id)
    assert (found.id, found.name, sorted(found.node_ids), found.starts) == (
        graph.id, graph.name, sorted(graph.node_ids), graph.starts,
    )  # fmt: skip


@pytest.mark.parametrize("call", ["get_node", "get_graph", "get_node_execution", "get_graph_execution", "get_credits"])
def test_an_unknown_identifier_is_not_found_and_no_identifier_is_invalid(
    client: ExecutionDataClient, call: str
) -> None:
    with pytest.raises(NotFound):
        getattr(client, call)(new_id())
    with pytest.raises(InvalidValue):
        getattr(client, call)("no-uuid")


def test_an_input_goes_to_the_oldest_incomplete_execution_that_lacks_it(client: ExecutionDataClient, run: str) -> None:
    first, inputs = client.upsert_execution_input(SINK, run, "left", 1)
    assert inputs == {"left": 1}
    second, _ = client.upsert_execution_input(SINK, run, "left", 2)
    assert second != first
    third, inputs = client.upsert_execution_input(SINK, run, "right", 3)
    assert (third, inputs) == (first, {"left": 1, "right": 3})
    client.update_node_execution_status(second, S.QUEUED)
    fourth, _ = client.upsert_execution_input(SINK, run, "right", 4)
    assert fourth not in (first, second)
    assert [each.id for each in client.get_node_executions(run, SINK)] == [first, second, fourth]
    latest = client.get_latest_node_execution(SINK, run)
    assert latest is not None
    assert latest.id == fourth


def test_an_input_for_a_named_execution_goes_there_and_does_not_replace(client: ExecutionDataClient, run: str) -> None:
    first, _ = client.upsert_execution_input(SINK, run, None)
    second, _ = client.upsert_execution_input(SINK, run, None)
    assert client.upsert_execution_input(SINK, run, "left", 5, second) == (second, {"left": 5})
    assert client.upsert_execution_input(SINK, run, "left", 6, second) == (second, {"left": 5})
    assert client.get_node_execution(first).inputs == {}


def test_an_input_remembers_its_source(client: ExecutionDataClient, run: str) -> None:
    maker, _ = client.upsert_execution_input(SOURCE, run, None)
    taker, _ = client.upsert_execution_input(SINK, run, "left", 1, source=InputSource(maker, 4))
    assert client.get_node_execution(taker).sources == {"left": InputSource(maker, 4)}


def test_falsy_values_are_values_and_what_is_yielded_twice_is_kept_twice(
    client: ExecutionDataClient, run: str, database_url: str, arena: Arena
) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, "left", None)
    for value in FALSY:
        client.upsert_execution_output(identifier, "out", value)
    record = client.upsert_execution_output(identifier, {"out": 1, "other": 2})
    assert record.outputs == {"out": [*FALSY, 1], "other": [2]}
    assert record.output_count == len(FALSY) + 2
    assert client.get_node_execution(identifier) == record
    drain(arena, database_url)
    with connect(database_url, application_name="test") as connection:
        loaded = queries.load_node_execution(connection, identifier)
    assert loaded is not None
    assert loaded.outputs == record.outputs
    assert loaded.inputs == {"left": None}


def test_an_output_with_its_ordinal_is_recorded_once(client: ExecutionDataClient, run: str) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    for ordinal in (0, 0, 1, 0, 1):
        record = client.upsert_execution_output(identifier, "out", ordinal, ordinal=ordinal)
    assert record.outputs == {"out": [0, 1]}


@pytest.mark.parametrize("value", [float("nan"), b"bytes", object(), {"deep": [1, float("inf")]}])
def test_what_is_no_json_is_refused_and_changes_nothing(client: ExecutionDataClient, run: str, value: Any) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    with pytest.raises(InvalidValue):
        client.upsert_execution_output(identifier, "out", value)
    with pytest.raises(InvalidValue):
        client.upsert_execution_input(SINK, run, "left", value)
    assert client.get_node_execution(identifier).outputs == {}


PATHS: dict[ExecutionStatus, list[ExecutionStatus]] = {
    S.INCOMPLETE: [],
    S.QUEUED: [S.QUEUED],
    S.RUNNING: [S.QUEUED, S.RUNNING],
    S.COMPLETED: [S.RUNNING, S.COMPLETED],
    S.FAILED: [S.FAILED],
    S.TERMINATED: [S.TERMINATED],
    S.REVIEW: [S.RUNNING, S.REVIEW],
}


def test_a_status_moves_along_the_table_and_a_refused_move_returns_the_record_as_it_is(
    client: ExecutionDataClient, run: str
) -> None:
    for current, target in itertools.product(S, S):
        identifier, _ = client.upsert_execution_input(SINK, run, None)
        for step in PATHS[current]:
            client.update_node_execution_status(identifier, step)
        before = client.get_node_execution(identifier)
        assert before.status is current
        after = client.update_node_execution_status(identifier, target, {"left": 1}, {"note": 1})
        if current in ALLOWED_FROM[target]:
            assert after.status is target
            assert after.inputs == {"left": 1}
            assert after.stats == {"note": 1}
        else:
            assert after == before
        assert client.get_node_execution(identifier) == after


def test_statuses_stamp_the_times_of_their_events(client: ExecutionDataClient, run: str) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    for status in (S.QUEUED, S.RUNNING, S.COMPLETED):
        record = client.update_node_execution_status(identifier, status)
    assert record.queued_at is not None
    assert record.started_at is not None
    assert record.ended_at is not None
    assert record.created_at <= record.queued_at <= record.started_at <= record.ended_at


def test_a_batch_moves_each_by_itself(client: ExecutionDataClient, run: str) -> None:
    one, _ = client.upsert_execution_input(SINK, run, None)
    two, _ = client.upsert_execution_input(SINK, run, None)
    client.update_node_execution_status(one, S.FAILED)
    records = client.update_node_execution_status_batch([one, two], S.QUEUED)
    assert [record.status for record in records] == [S.FAILED, S.QUEUED]


def test_executions_are_found_by_every_filter(client: ExecutionDataClient, run: str) -> None:
    sinks = [client.upsert_execution_input(SINK, run, None)[0] for _ in range(3)]
    source, _ = client.upsert_execution_input(SOURCE, run, None)
    client.update_node_execution_status(sinks[1], S.QUEUED)

    def found(**filters: Any) -> list[str]:
        return [each.id for each in client.get_node_executions(run, **filters)]

    assert found() == [*sinks, source]
    assert found(node_id=SINK) == sinks
    assert found(block_ids=["shmcache.constant"]) == [source]
    assert found(statuses=[S.QUEUED]) == [sinks[1]]
    assert found(statuses=[S.INCOMPLETE], node_id=SINK, limit=1) == [sinks[0]]
    assert found(limit=2) == sinks[:2]
    assert found(statuses=[]) == []


def test_a_record_cannot_be_changed_by_its_holder(client: ExecutionDataClient, run: str) -> None:
    value = {"list": [1, 2]}
    identifier, _ = client.upsert_execution_input(SINK, run, "left", value)
    value["list"].append(3)
    record = client.get_node_execution(identifier)
    assert record.inputs == {"left": {"list": [1, 2]}}
    with pytest.raises(TypeError):
        record.inputs["left"]["list"].append(4)
    with pytest.raises(TypeError):
        record.inputs["new"] = 1  # type: ignore[index]
    with pytest.raises(AttributeError):
        record.status = S.FAILED  # type: ignore[misc]
    assert client.get_node_execution(identifier).inputs == {"left": {"list": [1, 2]}}


def test_a_graph_execution_merges_statistics_and_ends_once(client: ExecutionDataClient, run: str) -> None:
    assert client.get_graph_execution(run).status is S.QUEUED
    client.update_graph_execution_stats(run, S.RUNNING, {"a": 1})
    record = client.update_graph_execution_stats(run, None, {"b": 2})
    assert (record.status, record.stats) == (S.RUNNING, {"a": 1, "b": 2})
    ended = client.update_graph_execution_stats(run, S.COMPLETED)
    assert ended.ended_at is not None
    assert client.update_graph_execution_stats(run, S.FAILED, {"c": 3}) == ended


def test_credits_are_spent_down_to_zero_and_no_further(client: ExecutionDataClient, user: str) -> None:
    assert client.get_credits(user) == 100
    assert client.spend_credits(user, 60, {"for": "tea"}) == 40
    with pytest.raises(InsufficientBalanceError) as refused:
        client.spend_credits(user, 41)
    assert (refused.value.user_id, refused.value.balance, refused.value.amount) == (user, 40, 41)
    assert client.spend_credits(user, 40) == 0
    assert client.get_credits(user) == 0
    with pytest.raises(InvalidValue):
        client.spend_credits(user, -1)


def test_an_execution_is_counted_and_charged_once_however_often_it_is_asked(
    client: ExecutionDataClient, run: str, user: str, database_url: str, arena: Arena
) -> None:
    balances = []
    for _ in range(3):
        identifier, _ = client.upsert_execution_input(SINK, run, None)
        execution = client.get_node_execution(identifier)
        count = client.increment_execution_count(user, identifier)
        first = client.charge_usage(execution, count)
        again = client.charge_usage(client.get_node_execution(identifier), count)
        assert again[1] == first[1]
        balances.append(100 - first[1])
    price = balances[0]
    assert balances == [price, 2 * price, 3 * price + 5], "every third execution bears the fee"
    drain(arena, database_url)
    with connect(database_url, application_name="test") as connection:
        account = queries.load_account(connection, user)
        rows = connection.execute("SELECT sum(amount), count(*) FROM ledger WHERE user_id = %s", (user,)).fetchone()
    assert account is not None
    assert account.balance == 100 - balances[-1]
    assert account.execution_count == 3
    assert rows is not None
    assert -int(rows[0]) == balances[-1]


def test_nothing_of_a_step_that_raises_is_kept(client: ExecutionDataClient, run: str) -> None:
    identifier, _ = client.upsert_execution_input(SINK, run, None)

    def step() -> None:
        client.upsert_execution_output(identifier, "out", 1)
        client.update_node_execution_status(identifier, S.RUNNING)
        assert client.get_node_execution(identifier).outputs == {"out": [1]}, "its own writes are read"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        client.atomically(step)
    record = client.get_node_execution(identifier)
    assert (record.outputs, record.status) == ({}, S.INCOMPLETE)


def test_the_last_work_of_a_graph_execution_is_followed_by_its_finish(client: ExecutionDataClient, run: str) -> None:
    client.put_work(WorkKind.START, run, run)
    start = client.take_work(1)
    assert start == Work(WorkKind.START, run, 1)
    identifier, _ = client.upsert_execution_input(SINK, run, None)
    client.put_work(WorkKind.RUN, identifier, run)
    client.put_work(WorkKind.RUN, identifier, run)
    client.end_work(start, run)
    work = client.take_work(1)
    assert work == Work(WorkKind.RUN, identifier, 1)
    assert client.take_work(0.01) is None
    client.end_work(work, run)
    finish = client.take_work(1)
    assert finish == Work(WorkKind.FINISH, run, 1)
    client.end_work(finish, run)
    assert client.take_work(0.01) is None


def _give(make_client: Callable[[], ExecutionDataClient], run: str, pin: str, count: int) -> None:
    client = make_client()
    for number in range(count):
        client.upsert_execution_input(SINK, run, pin, number)
    client.close()
    os._exit(0)


def test_each_input_is_taken_once_when_many_processes_give_them(
    make_client: Callable[[], ExecutionDataClient], client: ExecutionDataClient, run: str
) -> None:
    client.close()
    context = multiprocessing.get_context("fork")
    givers = [context.Process(target=_give, args=(make_client, run, pin, 25)) for pin in ("left", "right") * 2]
    for giver in givers:
        giver.start()
    for giver in givers:
        giver.join()
        assert giver.exitcode == 0
    executions = client.get_node_executions(run, SINK)
    assert len(executions) == 50
    for pin in ("left", "right"):
        assert sorted(each.inputs[pin] for each in executions) == sorted([*range(25), *range(25)])
