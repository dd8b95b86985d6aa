"""Shadow mode: PostgreSQL answers, the arena answers too, and what differs is counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmcache.arena import Arena
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.accounts import top_up
from shmcache.database.connection import TableSet, connect
from shmcache.echo_client import EchoClient
from shmcache.errors import InsufficientBalanceError, NotFound
from shmcache.execution_data_client import WorkKind
from shmcache.identifiers import id_bytes, new_id
from shmcache.records import ExecutionStatus, InputSource
from shmcache.shadow_client import ShadowClient
from tests.integration.counting import costs
from tests.integration.random_graphs import random_graph
from tests.integration.test_clients import SINK, SOURCE, small_graph
from tools.run import run_graphs

S = ExecutionStatus


@pytest.fixture(params=["shmcache", "autogpt"])
def table_set(request: pytest.FixtureRequest) -> TableSet:
    chosen: TableSet = request.param
    return chosen


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return load_settings(
        state_dir=tmp_path, mode="shadow", database_url=database_url, execution_fee_every=7, execution_fee=5,
        max_attempts=3, log_level="ERROR",
    )  # fmt: skip


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"shadow-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def client(arena: Arena, database_url: str, settings: Settings) -> Iterator[ShadowClient]:
    graph, nodes = small_graph()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
    made = ShadowClient(arena, database_url, settings)
    yield made
    made.close()


@pytest.fixture
def user(database_url: str) -> str:
    identifier = new_id()
    with connect(database_url, application_name="test") as connection:
        queries.create_account(connection, identifier, 100)
    return identifier


def counted(arena: Arena) -> tuple[int, int]:
    totals = arena.counter_totals()
    return totals["shadow_compared"], totals["shadow_differences"]


def test_each_call_is_compared_and_nothing_goes_on_the_rings(client: ShadowClient, arena: Arena, user: str) -> None:
    run = client.create_graph_execution(small_graph()[0].id, user).id
    client.update_graph_execution_stats(run, S.RUNNING)
    made, _ = client.upsert_execution_input(SOURCE, run, None)
    step, _ = client.upsert_execution_input(SINK, run, "left", 0, source=InputSource(made, 0))
    assert client.upsert_execution_input(SINK, run, "right", None) == (step, {"left": 0, "right": None})
    assert client.update_node_execution_status(step, S.COMPLETED).status is S.INCOMPLETE, "refused"
    client.update_node_execution_status(step, S.QUEUED, {"left": ""})
    count = client.increment_execution_count(user, step)

    def begin() -> tuple[int, int]:
        return client.charge_usage(client.update_node_execution_status(step, S.RUNNING), count)

    assert client.atomically(begin) == (1, 99)
    for value in (0, None, 0):
        client.upsert_execution_output(step, "out", value)
    client.update_node_execution_status(step, S.COMPLETED, None, {"n": None})
    assert client.get_latest_node_execution(SINK, run) == client.get_node_execution(step)
    assert [each.id for each in client.get_node_executions(run, SINK, ["shmcache.merge"], [S.COMPLETED], 1)] == [step]
    with pytest.raises(InsufficientBalanceError):
        client.spend_credits(user, 100)
    with pytest.raises(InsufficientBalanceError):
        client.atomically(lambda: client.spend_credits(user, 100))
    with pytest.raises(NotFound):
        client.get_node_execution(new_id())
    assert client.spend_credits(user, 99, None, "key") == client.spend_credits(user, 99, None, "key") == 0
    assert client.get_credits(user) == 0
    client.update_graph_execution_stats(run, S.COMPLETED, {"cost": 1})
    client.get_graph_execution(run)
    assert counted(arena) == (25, 0)
    assert (arena.write_ring.last_sequence, arena.charge_ring.last_sequence) == (0, 0)


def test_a_difference_is_counted_once_and_the_database_s_answer_is_given(
    client: ShadowClient, arena: Arena, user: str, database_url: str, table_set: TableSet
) -> None:
    run = client.create_graph_execution(small_graph()[0].id, user).id
    step, _ = client.upsert_execution_input(SINK, run, "left", 1)
    before = counted(arena)[1]
    table = "node_executions" if table_set == "shmcache" else '"AgentNodeExecution"'
    with connect(database_url, application_name="another program") as connection:
        connection.execute(f"UPDATE {table} SET stats = '{{\"by\": 1}}' WHERE id = %s", (step,))
    assert client.get_node_execution(step).stats == {"by": 1}
    assert counted(arena)[1] == before + 1
    assert client.get_node_execution(step).stats == {"by": 1}
    assert client.get_node_executions(run)[0].stats == {"by": 1}
    assert counted(arena)[1] == before + 1, "the arena has read it again"


def test_top_ups_from_elsewhere_are_no_difference(
    client: ShadowClient, arena: Arena, user: str, database_url: str
) -> None:
    assert client.spend_credits(user, 60) == 40
    with connect(database_url, application_name="another program") as connection:
        top_up(connection, user, 1_000, "card")
    assert client.get_credits(user) == 1_040
    assert client.spend_credits(user, 40) == 1_000
    assert counted(arena)[1] == 0


def test_work_is_taken_up_after_the_arena_knows_of_it_and_its_records_stay(
    client: ShadowClient, arena: Arena, user: str
) -> None:
    def submit() -> str:
        run = client.create_graph_execution(small_graph()[0].id, user)
        client.put_work(WorkKind.START, run.id, run.id)
        return run.id

    run = client.atomically(submit)
    work = client.take_work(10)
    assert work is not None
    client.end_work(work, run)
    finish = client.take_work(10)
    assert finish is not None
    client.end_work(finish, run)
    assert arena.version(id_bytes(run)), "the graph execution's record was not the queue's to forget"
    assert costs(arena, lambda: client.get_graph_execution(run)).waits == 1


@pytest.fixture
def runs(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--shadow-runs"))


def test_random_graphs_run_in_shadow_mode_without_a_difference(settings: Settings, runs: int) -> None:
    graphs = [random_graph(seed) for seed in range(runs)]
    summary, _ = run_graphs(graphs, 1, None, settings, f"shadow-run-{os.getpid()}", max_steps=40)
    assert sum(summary["graph_executions_by_status"].values()) == runs
    assert summary["graph_executions_by_status"].keys() <= {"COMPLETED", "FAILED"}
    assert summary["calls_compared"] > 15 * runs
    assert summary["differences"] == 0


def test_the_comparison_of_runs_sees_what_one_process_does_not_tell_the_arena(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run, with an arena that forgets every third output."""
    plain: Callable[..., Any] = EchoClient.upsert_execution_output
    told = 0

    def forgetful(self: EchoClient, *arguments: Any, **options: Any) -> Any:
        nonlocal told
        told += 1
        return self.get_node_execution(arguments[0]) if told % 3 == 0 else plain(self, *arguments, **options)

    monkeypatch.setattr(EchoClient, "upsert_execution_output", forgetful)
    graphs = [random_graph(seed) for seed in range(6)]
    summary, good = run_graphs(graphs, 1, None, settings, f"shadow-run-{os.getpid()}", max_steps=40)
    assert summary["differences"] > 0
    assert not good
