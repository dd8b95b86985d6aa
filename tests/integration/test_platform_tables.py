"""What is particular to the tables of the AutoGPT Platform: what our statements leave in them, and what they cost."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum
from importlib.resources import files
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from shmcache.arena import Arena
from shmcache.asynchronous.clients import CachedAsyncClient
from shmcache.autogpt import AsyncPlatformClient, NodeExecutionResult, PlatformClient
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import ownership, queries
from shmcache.database.batches import write_batch
from shmcache.database.connection import TableSet, connect, with_table_set
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import migrate
from shmcache.direct_client import DirectClient
from shmcache.errors import DatabaseUnavailable, InvalidValue, NotFound, NotOwner, SettingsError
from shmcache.execution_data_client import ExecutionDataClient
from shmcache.identifiers import derived_id, id_bytes, new_id
from shmcache.records import ExecutionStatus, Link
from shmcache.work_queue import WorkQueue
from shmcache.writes import GraphExecutionWrite, NodeExecutionWrite, OutputWrite
from syncer.definition_changes import DefinitionChanges
from tests.integration.counting import costs
from tests.integration.draining import drain
from tests.integration.faults import await_true

S = ExecutionStatus
GRAPH = derived_id("graph", "platform")
SOURCE, SINK = derived_id(GRAPH, "source"), derived_id(GRAPH, "sink")
LINK = Link(SOURCE, "value", SINK, "value")
VALUES: list[Any] = [0, "", None, [], {"a": False}]
PLACEHOLDER = re.compile(rb"%\((\w+)\)s|%s")


@pytest.fixture
def table_set() -> TableSet:
    return "autogpt"


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"platform-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings() -> Settings:
    return load_settings()


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(database_url, application_name="test") as opened:
        for version in (1, 2):
            _save_as_the_platform_does(opened, version)
        yield opened


@pytest.fixture
def user(connection: psycopg.Connection[Any]) -> str:
    """A user of the platform: its own code has opened the account, and granted something."""
    identifier = new_id()
    connection.execute('INSERT INTO "UserBalance" VALUES (%s, 500, now())', (identifier,))
    return identifier


@pytest.fixture
def cached(arena: Arena, database_url: str, settings: Settings) -> Iterator[CachedClient]:
    made = CachedClient(arena, database_url, settings)
    yield made
    made.close()


def _save_as_the_platform_does(connection: psycopg.Connection[Any], version: int) -> None:
    source, sink = (f"{each[:-1]}{version}" for each in (SOURCE, SINK))
    connection.execute(
        'INSERT INTO "AgentGraph" (id, version, "userId") VALUES (%s, %s, %s)', (GRAPH, version, new_id())
    )
    for node_id, block, default in ((source, "shmcache.constant", '{"value": 7}'), (sink, "shmcache.output", "{}")):
        connection.execute(
            'INSERT INTO "AgentNode" (id, "agentBlockId", "agentGraphId", "agentGraphVersion", "constantInput",'
            """ metadata, "webhookId") VALUES (%s, %s, %s, %s, %s, '{"position": {"x": 1}}', 'hook')""",
            (node_id, block, GRAPH, version, default),
        )
    connection.execute(
        'INSERT INTO "AgentNodeLink" VALUES (%s, %s, %s, %s, %s, %s)', (new_id(), source, "value", sink, "value", False)
    )


def _node(which: str, version: int = 1) -> str:
    return f"{which[:-1]}{version}"


# The sets of statements


def _statements(directory: str) -> dict[str, bytes]:
    place = files("shmcache.database").joinpath("sql", directory)
    return {each.name: each.read_bytes() for each in place.iterdir()}


def test_each_set_has_the_same_statements_with_the_same_parameters_in_number_or_fewer() -> None:
    common, ours, theirs = (_statements(each) for each in ("common", "shmcache", "autogpt"))
    assert set(ours) == set(theirs)
    assert not set(ours) & set(common)
    for name, text in ours.items():
        found = [PLACEHOLDER.findall(each) for each in (text, theirs[name])]
        assert found[0].count(b"") == found[1].count(b""), name


def test_a_database_made_for_one_set_of_tables_is_refused_for_the_other(
    server: EmbeddedServer, database_url: str
) -> None:
    plain = re.sub(r"-c shmcache.platform_schema=\w+", "", database_url)
    with (
        connect(plain, application_name="test") as connection,
        pytest.raises(SettingsError, match="made for SHMCACHE_SCHEMA=autogpt"),
    ):
        migrate(connection)
    empty = with_table_set(make_conninfo(server.url, dbname="postgres"), "autogpt")
    with (
        connect(empty, application_name="test") as connection,
        pytest.raises(SettingsError, match="no table \"AgentNodeExecution\" in a schema 'platform'"),
    ):
        migrate(connection)


def test_a_user_that_may_not_make_triggers_on_their_tables_is_told_what_it_needs(
    server: EmbeddedServer, connection: psycopg.Connection[Any], database_url: str
) -> None:
    role = f"weak_{new_id().replace('-', '')}"
    connection.execute("DROP SCHEMA shmcache CASCADE")
    connection.execute(f"CREATE ROLE {role} LOGIN")
    try:
        connection.execute(f"GRANT CREATE ON DATABASE {connection.info.dbname} TO {role}")
        connection.execute(f"GRANT USAGE ON SCHEMA platform TO {role}")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA platform TO {role}")
        with (
            connect(make_conninfo(database_url, user=role), application_name="test") as weak,
            pytest.raises(SettingsError, match="a user that may make a schema, and triggers"),
        ):
            migrate(weak)
    finally:
        connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_an_address_of_prisma_s_is_understood() -> None:
    url = with_table_set("postgresql://u@h:5432/d?schema=other&connection_limit=5&connect_timeout=3", "autogpt")
    assert "platform_schema=other" in url
    assert "connect_timeout=3" in url
    assert "connection_limit" not in url
    assert with_table_set(url, "autogpt") == url
    with pytest.raises(DatabaseUnavailable, match="name of the platform's schema"):
        with_table_set("postgresql://u@h/d?schema=a%20b", "autogpt")


def test_dropping_our_schema_leaves_their_tables_as_they_were(connection: psycopg.Connection[Any], user: str) -> None:
    connection.execute("DROP SCHEMA shmcache CASCADE")
    connection.execute('UPDATE "UserBalance" SET balance = 1 WHERE "userId" = %s', (user,))
    connection.execute('INSERT INTO "UserBalance" VALUES (%s, 500, now())', (new_id(),))
    row = connection.execute("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").fetchone()
    assert row == (0,)


# Rows


def test_a_node_s_life_leaves_the_rows_that_the_platform_reads(
    connection: psycopg.Connection[Any], cached: CachedClient, arena: Arena, user: str, database_url: str
) -> None:
    client = PlatformClient(cached)
    preset = new_id()
    run = client.create_graph_execution(GRAPH, 2, [(_node(SOURCE, 2), {"value": None})], user, preset)
    assert (run.graph_id, run.graph_version, run.preset_id, run.status) == (GRAPH, 2, preset, S.QUEUED)
    step = run.node_executions[0].node_exec_id
    client.update_graph_execution_start_time(run.id)
    client.update_node_execution_status(step, S.RUNNING, {"value": 0, "more": []})
    for value in VALUES:
        client.upsert_execution_output(step, "value", value)
    client.update_node_execution_status(step, S.COMPLETED, None, {"walltime": 0.0, "error": None})
    assert client.spend_credits(user, 40, {"reason": "Ran it", "node_id": _node(SOURCE)}) == 460
    client.update_graph_execution_stats(run.id, S.COMPLETED, {"cost": 0})
    drain(arena, database_url)
    row = connection.execute(
        'SELECT "executionStatus"::text, "agentGraphVersion", "agentPresetId", "userId", stats,'
        ' "startedAt" <= "endedAt" FROM "AgentGraphExecution" WHERE id = %s', (run.id,),
    ).fetchone()  # fmt: skip
    assert row == ("COMPLETED", 2, preset, user, {"cost": 0}, True)
    row = connection.execute(
        'SELECT "executionStatus"::text, "executionData", stats FROM "AgentNodeExecution" WHERE id = %s', (step,)
    ).fetchone()
    assert row == ("COMPLETED", {"value": 0, "more": []}, {"walltime": 0.0, "error": None})
    rows = connection.execute(
        'SELECT name, data, data IS NULL FROM "AgentNodeExecutionInputOutput" WHERE "referencedByOutputExecId" = %s '
        "ORDER BY time", (step,),
    ).fetchall()  # fmt: skip
    assert rows == [("value", value, False) for value in VALUES]
    rows = connection.execute(
        'SELECT amount, type::text, "runningBalance", metadata->>\'reason\', metadata->>\'node_id\' '
        'FROM "CreditTransaction" WHERE "userId" = %s', (user,),
    ).fetchall()  # fmt: skip
    assert rows == [(-40, "USAGE", 460, "Ran it", _node(SOURCE))]
    row = connection.execute('SELECT balance FROM "UserBalance" WHERE "userId" = %s', (user,)).fetchone()
    assert row == (460,)


def test_times_of_outputs_are_distinct_and_in_order_also_within_a_millisecond_and_across_batches(
    connection: psycopg.Connection[Any],
) -> None:
    run, step, now = new_id(), new_id(), 1790000000.0001
    write_batch(connection, [
        GraphExecutionWrite(run, GRAPH, new_id(), S.RUNNING, "{}", now, None, None, "{}"),
        NodeExecutionWrite(step, run, _node(SOURCE), S.RUNNING, now, None, None, None, "{}"),
    ])  # fmt: skip
    outputs = [OutputWrite(step, place, "out", str(place), now + place * 1e-6) for place in range(120)]
    for begin, end in ((0, 50), (50, 51), (40, 90), (91, 110), (110, 120), (90, 91), (0, 120)):
        write_batch(connection, outputs[begin:end])
    rows = connection.execute(
        'SELECT data, time FROM "AgentNodeExecutionInputOutput" WHERE "referencedByOutputExecId" = %s ORDER BY time',
        (step,),
    ).fetchall()
    assert [row[0] for row in rows] == list(range(120)), "the one that came late too"
    assert len({row[1] for row in rows}) == 120


def test_what_the_platform_wrote_itself_is_read(
    connection: psycopg.Connection[Any], cached: CachedClient, user: str
) -> None:
    run, step, client = new_id(), new_id(), PlatformClient(cached)
    connection.execute(
        'INSERT INTO "AgentGraphExecution" (id, "executionStatus", "agentGraphId", "agentGraphVersion", "userId")'
        " VALUES (%s, 'RUNNING', %s, 2, %s)", (run, GRAPH, user),
    )  # fmt: skip
    connection.execute(
        'INSERT INTO "AgentNodeExecution" (id, "agentGraphExecutionId", "agentNodeId", "executionStatus",'
        ' "executionData", "queuedTime") VALUES (%s, %s, %s, %s, %s, now())',
        (step, run, _node(SOURCE, 2), "RUNNING", '{"value": 2}'),
    )
    for end, name, data in (("Input", "value", "1"), ("Output", "out", None), ("Output", "out", "false")):
        connection.execute(
            f'INSERT INTO "AgentNodeExecutionInputOutput" (id, name, data, time, "referencedBy{end}ExecId")'
            " VALUES (%s, %s, %s, clock_timestamp() + random() * interval '0', %s)", (new_id(), name, data, step),
        )  # fmt: skip
        connection.execute("SELECT pg_sleep(0.002)")
    found = client.get_node_execution(step)
    assert found is not None
    assert (found.input_data, found.output_data, found.stats) == ({"value": 2}, {"out": [None, False]}, {})
    assert (found.graph_id, found.graph_version, found.user_id) == (GRAPH, 2, user)
    node = client.get_node(_node(SOURCE, 2))
    assert (node.input_default, node.metadata, node.webhook_id) == ({"value": 7}, {"position": {"x": 1}}, "hook")
    assert node.output_links[0].sink_id == _node(SINK, 2)


def test_versions_of_a_graph_are_graphs_of_their_own(connection: psycopg.Connection[Any], cached: CachedClient) -> None:
    first, second = cached.get_graph(GRAPH), cached.get_graph(GRAPH, 2)
    assert (first.version, second.version) == (1, 2)
    assert not set(first.node_ids) & set(second.node_ids)
    assert list(second.starts) == [_node(SOURCE, 2)], "what nothing is linked to"
    assert cached.get_graph(GRAPH) == first
    with pytest.raises(NotFound):
        cached.get_graph(GRAPH, 3)


@pytest.mark.parametrize("version", [1, 2])
def test_what_the_platform_changes_of_a_graph_is_changed_in_the_arena(
    connection: psycopg.Connection[Any], cached: CachedClient, arena: Arena, database_url: str, version: int
) -> None:
    source, sink = _node(SOURCE, version), _node(SINK, version)
    assert cached.get_node(source).webhook_id == "hook"
    assert cached.get_graph(GRAPH, version).name == ""
    changes = DefinitionChanges(arena, database_url, 600.0)
    try:
        assert changes.listening.wait(60)
        connection.execute('UPDATE "AgentNode" SET "webhookId" = NULL WHERE id = %s', (source,))
        await_true(lambda: cached.get_node(source).webhook_id is None)
        connection.execute('UPDATE "AgentNodeLink" SET "isStatic" = true WHERE "agentNodeSinkId" = %s', (sink,))
        await_true(lambda: cached.get_node(sink).input_links[0].is_static)
        connection.execute('UPDATE "AgentGraph" SET name = %s WHERE (id, version) = (%s, %s)', ("new", GRAPH, version))
        await_true(lambda: cached.get_graph(GRAPH, version).name == "new")
        assert cached.get_graph(GRAPH, 3 - version).name == ""
        connection.execute('DELETE FROM "AgentGraph" WHERE (id, version) = (%s, %s)', (GRAPH, version))
        await_true(lambda: not arena.version(id_bytes(source)))
    finally:
        changes.stop()
    with pytest.raises(NotFound):
        cached.get_graph(GRAPH, version)


def test_a_graph_execution_of_theirs_is_one_host_s(
    connection: psycopg.Connection[Any], cached: CachedClient, arena: Arena, user: str, database_url: str
) -> None:
    run = cached.create_graph_execution(GRAPH, user).id
    step, _ = cached.upsert_execution_input(_node(SOURCE), run, "value", 1)
    drain(arena, database_url)
    other = new_id()
    ownership.own(connection, arena.arena_id, [run])
    ownership.renew_lease(connection, arena.arena_id, 60)
    with pytest.raises(NotOwner):
        ownership.take(connection, run, other, 0)
    ownership.renew_lease(connection, arena.arena_id, -1)
    assert ownership.take(connection, run, other, 0).token == 2
    rows = [(1, OutputWrite(step, 0, "value", "1", 1.0)), (2, OutputWrite(new_id(), 0, "value", "1", 1.0))]
    assert list(ownership.lost(connection, arena.arena_id, rows, lock=True)) == [1]


def test_a_negative_balance_of_the_platform_s_own_making_settles_and_refuses(
    connection: psycopg.Connection[Any], cached: CachedClient, arena: Arena, user: str, database_url: str
) -> None:
    assert cached.get_credits(user) == 500
    cached.spend_credits(user, 100, None, "once")
    connection.execute('UPDATE "UserBalance" SET balance = -20 WHERE "userId" = %s', (user,))
    drain(arena, database_url)
    account = queries.load_account(connection, user)
    assert account is not None
    assert (account.balance, account.debt) == (-20, 100)


# Calls


def test_filters_of_the_platform_s_list_call_all_count(
    connection: psycopg.Connection[Any], cached: CachedClient, user: str
) -> None:
    client = PlatformClient(cached)
    run = client.create_graph_execution(GRAPH, 1, [], user).id
    made = [client.upsert_execution_input(_node(SOURCE), run, "value", number)[0] for number in range(3)]
    client.update_node_execution_status(made[0], S.QUEUED)
    everything = client.get_node_executions(run)
    assert [each.node_exec_id for each in everything] == made

    def listed(**filters: Any) -> list[int]:
        return [made.index(each.node_exec_id) for each in client.get_node_executions(run, **filters)]

    class Theirs(Enum):
        QUEUED = "QUEUED"

    assert listed(statuses=[Theirs.QUEUED]) == [0]
    assert listed(block_ids=["shmcache.output"]) == []
    assert listed(block_ids=[], statuses=[], limit=2) == [0, 1]
    assert listed(created_time_gte=everything[1].add_time, limit=1) == [1]
    assert listed(created_time_lte=everything[1].add_time) == [0, 1]
    assert listed(created_time_gte=datetime.now(UTC) + timedelta(hours=1)) == []
    bare = client.get_node_executions(run, include_exec_data=False)
    assert [(each.input_data, each.node_exec_id) for each in bare] == [({}, each) for each in made]
    assert client.get_latest_node_execution(_node(SOURCE), run) == client.get_node_execution(made[0])
    assert client.get_latest_node_execution(_node(SINK), run) is None
    assert client.get_node_execution(new_id()) is None
    assert client.update_graph_execution_stats(new_id(), S.RUNNING) is None
    assert client.update_node_execution_status_batch(made, S.QUEUED) == 2, "one was QUEUED already"
    with pytest.raises(InvalidValue, match="no status"):
        client.get_node_executions(run, statuses=["DONE"])  # type: ignore[list-item] # what Python lets through
    with pytest.raises(InvalidValue, match="model_dump"):
        client.update_node_execution_status(made[0], S.RUNNING, None, 7)


def _life(client: ExecutionDataClient, run: str, user: str) -> Callable[[], None]:
    """Return what an executor does with a paid node that has one output and a link that completes another."""
    step, _ = client.upsert_execution_input(_node(SOURCE), run, "value", 1)
    client.update_node_execution_status(step, S.QUEUED)

    def live() -> None:
        execution = client.get_node_execution(step)
        node = client.get_node(execution.node_id)
        count = client.increment_execution_count(user, step)
        running = client.update_node_execution_status(step, S.RUNNING)
        client.charge_usage(running, count)
        client.upsert_execution_output(step, "value", 1)
        link = node.output_links[0]
        client.get_node(link.sink_node_id)
        client.get_latest_node_execution(link.sink_node_id, run)
        target, _ = client.upsert_execution_input(link.sink_node_id, run, link.sink_name, 1)
        client.update_node_execution_status(target, S.QUEUED)
        client.update_node_execution_status(step, S.COMPLETED)

    return live


def test_a_paid_node_with_one_output_and_one_completing_link_costs_no_wait_where_direct_has_eleven(
    connection: psycopg.Connection[Any], cached: CachedClient, arena: Arena, user: str, database_url: str,
    settings: Settings,
) -> None:  # fmt: skip
    waits = []
    with DirectClient(
        database_url, work_queue=WorkQueue(arena), settings=settings, on_wait=lambda: waits.append(1)
    ) as direct:
        run = direct.create_graph_execution(GRAPH, user).id
        for _ in range(2):  # the first one connects and has its statements prepared
            life = _life(direct, run, user)
            waits.clear()
            life()
        assert len(waits) == 11
    run = cached.create_graph_execution(GRAPH, user).id
    _life(cached, run, user)()
    assert costs(arena, _life(cached, run, user)).waits == 0


def test_the_calls_of_an_event_loop_are_the_same_ones_and_come_to_the_same(
    connection: psycopg.Connection[Any], cached: CachedClient, user: str
) -> None:
    plain = PlatformClient(cached)

    async def live() -> tuple[str, list[NodeExecutionResult]]:
        client = AsyncPlatformClient(CachedAsyncClient(cached))
        try:
            run = (await client.create_graph_execution(GRAPH, 1, [], user)).id
            step, inputs = await client.upsert_execution_input(_node(SOURCE), run, "value", 1)
            assert inputs == {"value": 1}
            assert (await client.get_node(_node(SOURCE))).id == _node(SOURCE)
            assert await client.update_node_execution_status_batch([step], S.QUEUED) == 1
            assert await client.increment_execution_count(user) == 1
            await client.update_node_execution_status(step, S.RUNNING)
            assert await client.spend_credits(user, 7, {"why": "a test"}) == await client.get_credits(user)
            values: list[Any] = [0, None, []]
            for value in values:
                await client.upsert_execution_output(step, "value", value)
            await client.update_node_execution_status(step, S.COMPLETED, None, {"seconds": 1})
            await client.update_graph_execution_start_time(run)
            assert await client.get_node_execution(new_id()) is None
            assert await client.update_graph_execution_stats(new_id(), S.RUNNING) is None
            assert await client.get_latest_node_execution(_node(SOURCE), run) == await client.get_node_execution(step)
            return run, await client.get_node_executions(run, statuses=[S.COMPLETED])
        finally:
            await client.client.close()

    run, found = asyncio.run(live())
    assert found == plain.get_node_executions(run, statuses=[S.COMPLETED])
    assert found[0].output_data == {"value": [0, None, []]}
    assert plain.get_credits(user) == 493
