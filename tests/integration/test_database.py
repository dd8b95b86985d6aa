"""What the database package promises: what goes in comes out, twice is once, nothing moves backward, refusals are
clear."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import select
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql, waiting
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.waiting import Ready, Wait

from shmcache.codec import json_text
from shmcache.database import queries
from shmcache.database.arrays import plain_array, text_array
from shmcache.database.batches import write_batch
from shmcache.database.bookkeeping import add_dead_letter, begin_epoch, count_dead_letters, move_checkpoint
from shmcache.database.connection import address, connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import identity, migrate
from shmcache.database.report import summarize
from shmcache.database.settlement import settle
from shmcache.errors import DatabaseUnavailable, Fenced
from shmcache.identifiers import derived_id, new_id
from shmcache.records import ExecutionStatus, Graph, InputSource, Link, NodeDefinition
from shmcache.writes import Charge, ChargeKind, GraphExecutionWrite, InputWrite, NodeExecutionWrite, OutputWrite, Write

S = ExecutionStatus
Connection = psycopg.Connection[Any]
GRAPH = derived_id("graph", "rows")
SOURCE, SINK = derived_id(GRAPH, "source"), derived_id(GRAPH, "sink")
LINKS = (Link(SOURCE, "value", SINK, "left"), Link(SOURCE, "value", SINK, "right", True))
NODES = [
    NodeDefinition(SOURCE, GRAPH, "so'urce", "shmcache.constant", {"a": None}, {"value": [0, "", {}]}, (), LINKS),
    NodeDefinition(SINK, GRAPH, 'si"nk\\', "shmcache.merge", {"left": False}, {}, LINKS, ()),
]
VALUES = [
    0, "", False, None, [], {}, 0.0, 1.0, 1, -0.5, 0.1, 5e-324, 1e16, -1e22, 1e300, 1.7976931348623157e308,
    ["1e+16", 1e16], '"1e+5', 10**30, -(10**300), True, "ä\u2028😀", 'quote " \\ {},',
    "NULL", {"": [None, {"deep": [[], {}]}]}, [1, 1.0, "1"], "\n\t\r\x1f", "x" * 100_000,
]  # fmt: skip


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with connect(database_url, application_name="test") as opened:
        queries.save_graph(opened, Graph(GRAPH, "rows", (SOURCE, SINK), {SOURCE: {"a": None}}), NODES)
        yield opened


def graph_row(identifier: str, status: S = S.RUNNING, **fields: Any) -> GraphExecutionWrite:
    row = GraphExecutionWrite(identifier, GRAPH, new_id(), status, '{"x": {}}', 1.5, None, None, "{}")
    return row._replace(**fields)


def node_row(identifier: str, run: str, status: S = S.INCOMPLETE, **fields: Any) -> NodeExecutionWrite:
    return NodeExecutionWrite(identifier, run, SINK, status, 2.25, None, None, None, "{}")._replace(**fields)


def tables(connection: Connection) -> dict[str, list[Any]]:
    """Return every row that batches and settlements write."""
    names = (
        "graph_executions", "node_executions", "node_execution_inputs", "node_execution_outputs", "accounts", "ledger",
    )  # fmt: skip
    return {
        name: sorted(connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(name))), key=repr)
        for name in names
    }


# Definitions and records


def test_graphs_and_nodes_come_back_as_they_were_saved_however_often(connection: Connection) -> None:
    graph = Graph(GRAPH, "rows", (SOURCE, SINK), {SOURCE: {"a": None}})
    queries.save_graph(connection, graph, NODES)
    for loaded in (queries.load_graph(connection, GRAPH), queries.load_graph_of_node(connection, SINK)):
        assert loaded is not None
        found, nodes, _ = loaded
        assert found._replace(node_ids=tuple(found.node_ids)) == graph
        assert nodes == NODES
    assert [queries.load_node(connection, node.id) for node in NODES] == NODES
    assert queries.load_graph(connection, new_id()) is None
    assert queries.load_graph_of_node(connection, new_id()) is None


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_a_value_comes_back_exactly_and_frozen(connection: Connection, value: Any) -> None:
    run, step = new_id(), new_id()
    text = json_text({"it": value})
    batch: list[Write] = [
        graph_row(run, inputs_json=text, stats_json=text),
        node_row(step, run, stats_json=text),
        InputWrite(step, "it", json_text(value), 3.0, None, None),
        OutputWrite(step, 0, "it", json_text(value), 4.0),
        OutputWrite(step, 1, "it", json_text(value), 4.0),
    ]
    write_batch(connection, batch)
    execution, graph_execution = (
        queries.load_node_execution(connection, step), queries.load_graph_execution(connection, run),
    )  # fmt: skip
    assert execution is not None
    assert graph_execution is not None
    for found in (
        execution.inputs["it"], *execution.outputs["it"], execution.stats["it"], graph_execution.inputs["it"],
        graph_execution.stats["it"],
    ):  # fmt: skip
        assert json.dumps(found) == json.dumps(value), "also its type: 1 is not 1.0, nor True"
    assert execution.output_count == 2
    with pytest.raises(TypeError):
        execution.inputs["it"] = 1  # type: ignore[index]


def test_a_json_null_is_a_value_and_no_sql_null(connection: Connection) -> None:
    run, step = new_id(), new_id()
    write_batch(connection, [graph_row(run), node_row(step, run), InputWrite(step, "it", "null", 3.0, None, None)])
    row = connection.execute("SELECT value IS NULL, value = 'null' FROM node_execution_inputs").fetchone()
    assert row == (False, True)


def test_times_sources_and_repeated_outputs_come_back(connection: Connection) -> None:
    run, maker, step = new_id(), new_id(), new_id()
    write_batch(connection, [
        graph_row(run, S.COMPLETED, created_at=1790000000.123456, started_at=1790000001.0, ended_at=1790000002.000001),
        node_row(maker, run),
        node_row(step, run, S.COMPLETED, created_at=1790000000.2, queued_at=0.0, started_at=1.000001, ended_at=2.5),
        InputWrite(step, "left", "1", 3.0, maker, 7),
        InputWrite(step, "right", "2", 3.0, None, None),
        *(OutputWrite(step, ordinal, name, str(ordinal), 4.0) for ordinal, name in enumerate("abaab")),
    ])  # fmt: skip
    found, execution = queries.load_graph_execution(connection, run), queries.load_node_execution(connection, step)
    assert found is not None
    assert (found.created_at, found.started_at, found.ended_at) == (1790000000.123456, 1790000001.0, 1790000002.000001)
    assert execution is not None
    assert execution[10:14] == (1790000000.2, 0.0, 1.000001, 2.5)
    assert execution.sources == {"left": InputSource(maker, 7)}
    assert execution.outputs == {"a": [0, 2, 3], "b": [1, 4]}


def test_executions_come_oldest_first_and_ties_in_the_order_of_their_identifiers(connection: Connection) -> None:
    run = new_id()
    steps = [node_row(f"00000000-0000-7000-8000-00000000000{n}", run, created_at=c) for n, c in enumerate([3, 1, 1, 2])]
    write_batch(connection, [graph_row(run), *steps])
    found = [int(each.id[-1]) for each in queries.load_node_executions(connection, run)]
    assert found == [1, 2, 3, 0]
    latest = queries.load_latest_node_execution(connection, SINK, run)
    assert latest is not None
    assert latest.id == steps[0].id


# Batches


def whole_batch() -> list[Write]:
    run, step = new_id(), new_id()
    return [
        graph_row(run),
        node_row(step, run),
        InputWrite(step, "left", "1", 3.0, None, None),
        node_row(step, run, S.RUNNING, queued_at=4.0, started_at=5.0),
        OutputWrite(step, 0, "out", '"a"', 6.0),
        OutputWrite(step, 1, "out", '"b"', 7.0),
        node_row(step, run, S.COMPLETED, queued_at=4.0, started_at=5.0, ended_at=8.0),
        graph_row(run, S.COMPLETED, started_at=4.0, ended_at=9.0),
    ]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_batch_written_twice_and_in_any_pieces_leaves_the_same_rows(connection: Connection, size: int) -> None:
    batch = whole_batch()
    batch[-1] = batch[-1]._replace(user_id=batch[0].user_id)  # type: ignore[union-attr,call-arg]
    for _ in range(2):
        for begin in range(0, len(batch), size):
            write_batch(connection, batch[begin : begin + size])
            write_batch(connection, batch[begin : begin + size])
        rows = tables(connection)
        assert [len(found) for found in rows.values()] == [1, 1, 1, 2, 0, 0]
        assert [row[3] for row in (*rows["graph_executions"], *rows["node_executions"])] == ["COMPLETED"] * 2
        execution = queries.load_node_execution(connection, batch[1].id)  # type: ignore[union-attr]
        assert execution is not None
        assert execution[11:14] == (4.0, 5.0, 8.0)


@pytest.mark.parametrize("final", [S.COMPLETED, S.FAILED])
def test_a_final_status_is_not_overwritten_by_an_older_row(connection: Connection, final: S) -> None:
    run, step = new_id(), new_id()
    write_batch(connection, [graph_row(run, final, ended_at=9.0), node_row(step, run, final, ended_at=9.0)])
    before = tables(connection)
    for older in set(S) - {final}:
        write_batch(connection, [graph_row(run, older), node_row(step, run, older)])
        assert tables(connection) == before


def test_a_terminated_execution_may_run_again(connection: Connection) -> None:
    run, step = new_id(), new_id()
    write_batch(connection, [graph_row(run), node_row(step, run, S.TERMINATED, ended_at=5.0)])
    write_batch(connection, [node_row(step, run, S.QUEUED, queued_at=6.0, moves=1)])
    found = queries.load_node_execution(connection, step)
    assert found is not None
    assert (found.status, found.ended_at) == (S.QUEUED, None)


@pytest.mark.parametrize(
    "path",
    [
        (S.INCOMPLETE, S.QUEUED, S.RUNNING, S.COMPLETED),
        (S.QUEUED, S.RUNNING, S.TERMINATED, S.QUEUED),
        (S.RUNNING, S.REVIEW, S.RUNNING, S.TERMINATED, S.RUNNING),
    ],
    ids=lambda path: path[-1],
)
def test_whatever_order_the_moves_of_a_status_arrive_in_the_last_one_stands(
    connection: Connection, path: tuple[S, ...]
) -> None:
    run, step = new_id(), new_id()
    write_batch(connection, [graph_row(run)])
    for order in itertools.permutations(range(len(path))):
        connection.execute("DELETE FROM node_executions")
        connection.execute("DELETE FROM graph_executions WHERE id <> %s", (run,))
        other = new_id()
        for place in order:
            write_batch(connection, [node_row(step, run, path[place], moves=place)])
            write_batch(connection, [graph_row(other, path[place], moves=place)])
        found = queries.load_node_execution(connection, step), queries.load_graph_execution(connection, other)
        assert [(each.status, each.moves) for each in found if each] == [(path[-1], len(path) - 1)] * 2


def test_a_batch_keeps_the_last_status_with_the_earliest_start_and_the_latest_end(connection: Connection) -> None:
    run, step = new_id(), new_id()
    write_batch(connection, [
        graph_row(run),
        node_row(step, run, S.RUNNING, started_at=3.0),
        node_row(step, run, S.TERMINATED, started_at=3.0, ended_at=5.0, moves=1),
        node_row(step, run, S.RUNNING, started_at=4.0, moves=2),
        node_row(step, run, S.COMPLETED, started_at=4.0, ended_at=4.5, moves=3),
    ])  # fmt: skip
    found = queries.load_node_execution(connection, step)
    assert found is not None
    assert (found.status, found.started_at, found.ended_at) == (S.COMPLETED, 3.0, 5.0)
    step = new_id()
    write_batch(connection, [
        node_row(step, run, S.TERMINATED, ended_at=5.0), node_row(step, run, S.QUEUED, queued_at=6.0, moves=1)
    ])  # fmt: skip
    found = queries.load_node_execution(connection, step)
    assert found is not None
    assert (found.status, found.ended_at) == (S.QUEUED, None), "what runs again has not ended"


def test_an_input_is_replaced_and_an_output_is_not(connection: Connection) -> None:
    run, step = new_id(), new_id()
    write_batch(connection, [graph_row(run), node_row(step, run)])
    for value in ("1", "2"):
        write_batch(connection, [InputWrite(step, "in", value, 3.0, None, None), OutputWrite(step, 0, "o", value, 3.0)])
    found = queries.load_node_execution(connection, step)
    assert found is not None
    assert (found.inputs, found.outputs) == ({"in": 2}, {"o": [1]})


def test_rows_without_their_parents_are_refused(connection: Connection) -> None:
    run = new_id()
    write_batch(connection, [graph_row(run)])
    for orphan in (
        graph_row(new_id(), graph_id=new_id()),
        node_row(new_id(), new_id()),
        node_row(new_id(), run, node_id=new_id()),
        InputWrite(new_id(), "in", "1", 3.0, None, None),
        OutputWrite(new_id(), 0, "out", "1", 3.0),
    ):
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            write_batch(connection, [orphan])


@pytest.mark.parametrize(
    "bad",
    [
        {"value_json": '"\\u0000"'}, {"name": "a\0b"}, {"value_json": "1e200000"}, {"value_json": "{"},
        {"name": "\ud800"}, {"value_json": "NaN"}, {"node_exec_id": "no-uuid"},
    ],
    ids=repr,
)  # fmt: skip
def test_a_bad_row_is_refused_as_data_and_its_batch_with_it(connection: Connection, bad: dict[str, Any]) -> None:
    run, step = new_id(), new_id()
    write_batch(connection, [graph_row(run), node_row(step, run)])
    good = InputWrite(step, "good", "1", 3.0, None, None)
    before = tables(connection)
    with pytest.raises(psycopg.DataError):
        write_batch(connection, [good, good._replace(name="bad")._replace(**bad)])
    assert tables(connection) == before


def test_array_literals_mean_what_was_put_in(connection: Connection) -> None:
    texts = ["", '"', "\\", '\\"', "{}", ",", "NULL", "null", " a ", "ä😀", "'", "\n", "%s", "\\\\\\"]
    for chosen in ([], *([each] for each in texts), texts):
        assert connection.execute("SELECT %s::text[]", (text_array(chosen),)).fetchone() == (chosen,)
    numbers = [None, 0, -1, 2**62]
    assert connection.execute("SELECT %s::int8[]", (plain_array(numbers),)).fetchone() == (numbers,)
    floats = [None, 0.1, 1790000000.123456, -0.0, 1e-9]
    assert connection.execute("SELECT %s::float8[]", (plain_array(floats),)).fetchone() == (floats,)


# Settlement


def charge(user: str, amount: int, key: str | None = None, **fields: Any) -> tuple[int, Charge]:
    row = Charge(key or new_id(), user, amount, "block", None, None, 5.0, '{"why": null}')._replace(**fields)
    return ChargeKind.CHARGE, row


def test_charges_settle_once_in_order_with_running_balances(connection: Connection) -> None:
    one, two = sorted(new_id() for _ in range(2))
    assert queries.create_account(connection, one, 100).balance == 100
    queries.create_account(connection, two, 50)
    charges = [
        charge(two, 5), charge(one, 10, "k1"), charge(one, 0, execution_count=7), charge(one, 20),
        charge(one, 10, "k1"), charge(one.upper(), 1),
    ]  # fmt: skip
    for _ in range(2):
        settle(connection, charges)
        rows = connection.execute("SELECT amount, running_balance FROM ledger ORDER BY user_id, running_balance DESC")
        assert rows.fetchall() == [(-10, 90), (-20, 70), (-1, 69), (-5, 45)]
        assert queries.load_account(connection, one) == (one, 100, 69, 7, 0, 0)
        assert queries.load_account(connection, two) == (two, 50, 45, 0, 0, 0)
    settle(connection, [])
    assert queries.create_account(connection, one, 1_000) == (one, 100, 69, 7, 0, 0), "an account that is there stays"


def test_a_charge_for_nobody_is_refused_whole(connection: Connection) -> None:
    user = new_id()
    queries.create_account(connection, user, 10)
    before = tables(connection)
    with pytest.raises(psycopg.IntegrityError), connection.transaction():
        settle(connection, [charge(user, 1), charge(new_id(), 1)])
    assert tables(connection) == before
    with pytest.raises(psycopg.DataError):
        settle(connection, [charge("nobody", 1)])


def test_the_summary_counts_what_is_there(connection: Connection) -> None:
    batch, user = whole_batch(), new_id()
    run = batch[0].id  # type: ignore[union-attr]
    write_batch(connection, batch)
    queries.create_account(connection, user, 100)
    settle(connection, [charge(user, 3, graph_exec_id=run), charge(user, 4, graph_exec_id=run), charge(user, 50)])
    figures = summarize(connection, [run, new_id()], [user])
    assert figures == (1, {"COMPLETED": 1}, 1, 1, 0, 0, 2, 2, 7, 100, 43)
    assert summarize(connection, [], []) == (0, {}, 0, 0, 0, 0, 0, 0, 0, 0, 0)


# Bookkeeping


def test_a_newer_epoch_fences_the_older_and_a_checkpoint_never_moves_back(connection: Connection) -> None:
    arena = new_id()
    old = begin_epoch(connection, arena, "write")
    assert old.sequence == 0
    assert move_checkpoint(connection, arena, "write", old.epoch, 10)
    assert not move_checkpoint(connection, arena, "write", old.epoch, 10)
    assert not move_checkpoint(connection, arena, "write", old.epoch, 4)
    new = begin_epoch(connection, arena, "write")
    assert (new.epoch > old.epoch, new.sequence) == (True, 10)
    with pytest.raises(Fenced):
        move_checkpoint(connection, arena, "write", old.epoch, 20)
    assert begin_epoch(connection, arena, "charge").sequence == 0
    assert begin_epoch(connection, new_id(), "write").sequence == 0
    assert begin_epoch(connection, arena, "write").sequence == 10


def test_a_dead_letter_is_kept_whole_and_once(connection: Connection) -> None:
    arena, payload = new_id(), bytes(range(256))
    error = psycopg.errors.UntranslatableCharacter("a\0b")
    for _ in range(2):
        add_dead_letter(connection, arena, "write", 3, 4, payload, error)
    assert count_dead_letters(connection, arena) == 1
    assert count_dead_letters(connection, new_id()) == 0
    row = connection.execute("SELECT sequence, kind, payload, error FROM dead_letters").fetchone()
    assert row == (3, 4, payload, "UntranslatableCharacter: a\\0b")


# Migrations and connections


def test_processes_that_migrate_at_once_make_one_schema(server: EmbeddedServer) -> None:
    name = f"empty_{new_id().replace('-', '')}"
    url = make_conninfo(server.url, dbname=name)
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(3)

    def bring_up() -> None:
        with connect(url, application_name="test") as opened:
            gate.wait(30)
            migrate(opened)
            migrate(opened)
        os._exit(0)

    with connect(server.url, application_name="test") as maker:
        maker.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        processes = [context.Process(target=bring_up) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 3
        with connect(url, application_name="test") as opened:
            assert len(identity(opened)) == 16
            assert identity(opened) == identity(opened)
            assert opened.execute("SELECT count(*) - count(DISTINCT name) FROM migrations").fetchone() == (0,)
        maker.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def test_two_databases_have_two_identities(new_database_url: Callable[[], str]) -> None:
    found = set()
    for _ in range(2):
        with connect(new_database_url(), application_name="test") as opened:
            found.add(identity(opened))
    assert len(found) == 2


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@127.0.0.1:1/nowhere",
        "postgresql://me:hunter2@/nowhere?host=/nonexistent",
        "postgresql://me:hunter2@127.0.0.1:port/nowhere",
        "postgresql:me:hunter2",
        "host=127.0.0.1 password=hunter2 colour=blue",
        "postgresql://me:hunter2@[::1/nowhere",
    ],
)
def test_an_address_that_leads_nowhere_is_one_clear_error_without_its_password(url: str) -> None:
    with pytest.raises(DatabaseUnavailable) as failed:
        connect(url, application_name="test")
    assert "hunter2" not in str(failed.value) + address(url)
    assert "\n" not in str(failed.value)
    assert failed.value.__cause__ is None


def test_settings_of_the_address_stand_beside_ours(database_url: str) -> None:
    url = make_conninfo(database_url, options="-c statement_timeout=4321 -c default_transaction_isolation=serializable")
    with connect(url, application_name="name of mine") as opened:
        settings = [
            opened.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone()
            for name in ("statement_timeout", "search_path", "timezone", "transaction_isolation", "application_name")
        ]
    expected = ["4321ms", "shmcache", "UTC", "read committed", "name of mine"]
    assert list(itertools.chain(*filter(None, settings))) == expected


def test_a_pipelines_round_trip_counts_when_its_answer_outruns_the_sending(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = 0

    def count() -> None:
        nonlocal waits
        waits += 1

    def dawdle(steps: PQGen[Any], descriptor: int, *_: Any, **__: Any) -> Any:
        """The loop of a wait of psycopg's, as in a process that others keep from its processor."""
        try:
            wanted = next(steps)
            while True:
                readable = select.select([descriptor], [], [], 0.2 if wanted == Wait.RW else None)[0]
                wanted = steps.send((wanted & Wait.W) | (Ready.R if readable else 0))
        except StopIteration as end:
            return end.value

    with connect(database_url, application_name="test", on_wait=count) as connection:
        monkeypatch.setattr(waiting, "wait", dawdle)
        for _ in range(2):
            before = waits
            with connection.pipeline():
                cursor = connection.execute("SELECT 1")
                connection.execute("SELECT 2")
            assert waits - before == 1
            assert cursor.fetchone() == (1,)
