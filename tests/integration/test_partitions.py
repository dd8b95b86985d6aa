"""Executions by month: every write finds its place once, old months go whole, and nothing goes that has not ended."""

from __future__ import annotations

import datetime
import json
import signal
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from shmcache.database import migrate as migrating
from shmcache.database import ownership, partitions, queries
from shmcache.database.batches import write_batch
from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import migrate
from shmcache.database.partitions import TABLES, months, tidy
from shmcache.errors import SettingsError
from shmcache.identifiers import new_id
from shmcache.writes import GraphExecutionWrite, InputWrite, NodeExecutionWrite, OutputWrite, Write
from syncer.partition_keeper import PartitionKeeper
from tests import kill_points
from tests.integration.charging import open_account, wait_for
from tests.integration.test_clients import SINK, small_graph
from tests.unit.arena_state import die, run_in_child
from tools.cli import cli

Connection = psycopg.Connection[Any]
GRAPH = small_graph()[0].id
LONG_AGO = datetime.datetime(2021, 3, 7, tzinfo=datetime.UTC)


@pytest.fixture
def table_set() -> str:
    return "shmcache"


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with connect(database_url, application_name="test") as opened:
        queries.save_graph(opened, *small_graph())
        yield opened


def id_of(moment: datetime.datetime) -> str:
    """Return a new identifier as one of another time has it."""
    milliseconds = f"{int(moment.timestamp() * 1000):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}{new_id()[13:]}"


def rows_of(run: str, step: str, status: str = "COMPLETED") -> list[Write]:
    """Return the rows of a run of one node."""
    return [
        GraphExecutionWrite(run, GRAPH, new_id(), status, "{}", 1.0, 1.0, 2.0, "{}", 3, 1, None),
        NodeExecutionWrite(step, run, SINK, "COMPLETED", 1.0, 1.0, 1.0, 2.0, "{}", 3),
        InputWrite(step, "in", "1", 1.0, None, None, False),
        *(OutputWrite(step, ordinal, "out", "1", 1.5) for ordinal in range(2)),
    ]


def add_run(connection: Connection, moment: datetime.datetime | None, status: str = "COMPLETED") -> tuple[str, str]:
    """Write a run that was made at a time; return the ids of graph and node execution."""
    run, step = (new_id(), new_id()) if moment is None else (id_of(moment), id_of(moment))
    with connection.transaction():
        write_batch(connection, rows_of(run, step, status))
        ownership.own(connection, new_id(), [run])
    return run, step


def parts_of(connection: Connection, table: str = "node_executions") -> set[str]:
    """Return the partitions of a table in which there are rows."""
    return {row[0] for row in connection.execute(f"SELECT DISTINCT tableoid::regclass::text FROM {table}".encode())}


def counts(connection: Connection) -> list[int]:
    found = []
    for table in (*TABLES, "owners"):
        row = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        assert row is not None
        found.append(row[0])
    return found


def month_before(
    connection: Connection, months_ago: int, tables: Sequence[str] = TABLES
) -> tuple[str, datetime.datetime]:
    """Make a month of the past a partition of its own, as if it had been made ahead then; return its name and start."""
    first = datetime.datetime.now(datetime.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    begins = first
    for _ in range(months_ago):
        begins = (begins - datetime.timedelta(days=1)).replace(day=1)
    ends = (begins + datetime.timedelta(days=32)).replace(day=1)
    name = f"{begins:%Y_%m}"
    for table in tables:
        # What was before is cut off at the beginning of that month; what comes after it is found a place in `_rest`.
        connection.execute(f"ALTER TABLE {table} DETACH PARTITION {table}_before".encode())
        connection.execute(f"DROP TABLE {table}_before".encode())
        least = "'01'" if table == "ledger" else "MINVALUE"
        for part, start in (("before", least), (name, f"'{bound(begins)}'")):
            end = bound(begins if part == "before" else ends)
            connection.execute(
                f"CREATE TABLE {table}_{part} PARTITION OF {table} FOR VALUES FROM ({start}) TO ('{end}')".encode()
            )
    tidy(connection, 0)  # the months since then
    return name, begins


def bound(moment: datetime.datetime) -> str:
    return str(UUID(f"{int(moment.timestamp() * 1000):012x}{'0' * 20}"))


def test_a_write_finds_its_month_once_whatever_is_repeated(connection: Connection) -> None:
    now = datetime.datetime.now(datetime.UTC)
    later = (now.replace(day=1) + datetime.timedelta(days=70)).replace(day=5)
    far, v4 = now + datetime.timedelta(days=4000), "f81d4fae-7dec-41d0-a765-00a0c91e6bf6"
    for moment in (LONG_AGO, now, later, far):
        run, step = id_of(moment), id_of(moment)
        for _ in range(2):
            write_batch(connection, rows_of(run, step))
    write_batch(connection, rows_of(v4, v4))
    for table in TABLES:
        names = {part.removeprefix(f"{table}_") for part in parts_of(connection, table)}
        assert names == {"before", f"{later:%Y_%m}", "rest"}
    assert counts(connection)[:4] == [10, 5, 5, 5]


def test_months_are_made_ahead_and_once(connection: Connection) -> None:
    before = [each.name for each in months(connection)]
    assert before[0] == "before"
    assert len(before) >= 3
    assert tidy(connection, 0).made == 0
    last = before[-1]
    for table in TABLES:
        connection.execute(f"DROP TABLE {table}_{last}".encode())
    late = datetime.datetime.strptime(last, "%Y_%m").replace(day=9, tzinfo=datetime.UTC)
    run, step = add_run(connection, late)
    add_run(connection, late + datetime.timedelta(days=1000))
    assert parts_of(connection) == {"node_executions_rest"}
    assert tidy(connection, 0).made == 4
    assert [each.name for each in months(connection)] == before
    assert queries.load_graph_execution(connection, run) is not None
    assert queries.load_node_execution(connection, step) is not None
    assert parts_of(connection) == {"node_executions_rest", f"node_executions_{last}"}, "what came in between has moved"


def test_an_old_month_goes_whole_and_nothing_else(connection: Connection) -> None:
    name, begins = month_before(connection, 5)
    gone = [add_run(connection, begins + datetime.timedelta(days=day)) for day in range(3)]
    stays = [add_run(connection, None), add_run(connection, begins + datetime.timedelta(days=40))]
    assert tidy(connection, 0).dropped == [], "0 is for ever"
    assert tidy(connection, 3_650).dropped == []
    done = tidy(connection, 60)
    assert done.dropped == ["before", name]
    assert done.kept == []
    assert counts(connection) == [4, 2, 2, 2, 2]
    for run, step in gone:
        assert queries.load_graph_execution(connection, run) is None
        assert queries.load_node_execution(connection, step) is None
    for run, step in stays:
        assert queries.load_graph_execution(connection, run) is not None
        assert queries.load_node_execution(connection, step) is not None
    # A late write of that time is not refused for want of a partition.
    add_run(connection, begins)
    assert "node_executions_rest" in parts_of(connection)


def test_what_has_not_ended_or_is_not_settled_keeps_its_month_and_those_after_it(
    connection: Connection, database_url: str
) -> None:
    name, begins = month_before(connection, 5)
    run, step = add_run(connection, begins - datetime.timedelta(days=3), "RUNNING")
    add_run(connection, begins)
    done = tidy(connection, 60)
    assert (done.dropped, [tuple(each) for each in done.kept]) == (
        [],
        [("before", "1 graph executions have not ended")],
    )
    connection.execute("UPDATE graph_executions SET status = 'TERMINATED' WHERE id = %s", (run,))
    user = open_account(database_url, 10)
    connection.execute(
        "INSERT INTO holds"
        " (transaction_key, user_id, amount, node_execution_id, graph_execution_id, owner_pid, created_at)"
        " VALUES ('held', %s, 1, %s, %s, 1, now())",
        (user, step, run),
    )
    assert tidy(connection, 60).kept[0].reason == "1 estimates are held for its executions"
    assert counts(connection)[3] == 2
    connection.execute("DELETE FROM holds")
    assert tidy(connection, 60).dropped == ["before", name]


def test_a_month_that_is_busy_is_left_for_another_time_and_nobody_waits_for_it(
    connection: Connection, database_url: str
) -> None:
    _, begins = month_before(connection, 5)
    run, _ = add_run(connection, begins)
    with connect(database_url, application_name="test") as busy:
        with busy.transaction():
            busy.execute("SELECT FROM graph_executions WHERE id = %s", (run,))
            with pytest.raises(psycopg.errors.LockNotAvailable):
                tidy(connection, 60)
            assert queries.load_graph_execution(busy, run) is not None
        assert len(tidy(connection, 60).dropped) == 2


def test_of_hosts_that_do_it_at_once_one_does(connection: Connection, database_url: str) -> None:
    month_before(connection, 5)
    with connect(database_url, application_name="test") as other, other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(%s)", (0x73686D70,))
        done = tidy(connection, 60)
        assert (done.made, done.dropped, done.kept[0].reason) == (0, [], "another host is about it")


@pytest.mark.parametrize("step", kill_points.steps_of(partitions))
def test_who_dies_while_dropping_has_dropped_nothing_and_another_does_it(
    connection: Connection, database_url: str, step: str
) -> None:
    _, begins = month_before(connection, 5)
    add_run(connection, begins)
    before = counts(connection)

    def child() -> None:
        kill_points.arm(partitions, lambda at: die() if at == step else None)
        with connect(database_url, application_name="test") as mine:
            tidy(mine, 60)

    assert run_in_child(child) == -signal.SIGKILL
    assert counts(connection) == before

    def is_tidied() -> bool:  # once the server has seen that the other is gone
        try:
            return len(tidy(connection, 60).dropped) == 2
        except psycopg.errors.LockNotAvailable:
            return False

    wait_for(is_tidied)
    assert counts(connection) == [0] * len(before)


def test_the_leading_syncers_keeper_does_it(connection: Connection, database_url: str) -> None:
    name, begins = month_before(connection, 5)
    add_run(connection, begins)
    keeper = PartitionKeeper(database_url, 60, first_seconds=0.01)
    try:
        wait_for(lambda: name not in [each.name for each in months(connection)])
    finally:
        keeper.stop()


def test_what_has_rows_below_it_is_not_deleted_and_an_owner_goes_with_its_run(
    connection: Connection,
) -> None:
    run, step = add_run(connection, None)
    for table, key in (("graph_executions", run), ("node_executions", step)):
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            connection.execute(f"DELETE FROM {table} WHERE id = %s".encode(), (key,))
    for table in TABLES:
        connection.execute(f"DELETE FROM {table}".encode())
    assert counts(connection) == [0, 0, 0, 0, 0]


def test_the_command_lists_and_drops(
    connection: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, begins = month_before(connection, 5)
    add_run(connection, begins, "RUNNING")
    monkeypatch.setenv("SHMCACHE_DATABASE_URL", database_url)

    def told(*arguments: str) -> Any:
        done = CliRunner().invoke(cli, ["partitions", *arguments, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert [each["name"] for each in told("list")][:2] == ["before", name]
    assert {each["name"] for each in told("list") if each["of"] == "ledger"} >= {"before"}
    ledger: dict[str, Any] = {"dropped": [], "kept": {}}
    assert told("tidy") == {"made": 0, "dropped": [], "kept": {}, "ledger": ledger}
    assert told("tidy", "--older-than", "60") == {
        "made": 0, "dropped": ["before"], "kept": {name: "1 graph executions have not ended"}, "ledger": ledger,
    }  # fmt: skip
    assert name in CliRunner().invoke(cli, ["partitions", "list"]).stdout


def test_the_platforms_tables_are_left_to_it(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMCACHE_DATABASE_URL", make_conninfo(server.url, dbname="template_of_tests_autogpt"))
    monkeypatch.setenv("SHMCACHE_SCHEMA", "autogpt")
    done = CliRunner().invoke(cli, ["partitions", "list"])
    assert isinstance(done.exception, SettingsError)
    assert "not ours to partition" in str(done.exception)


# Upgrades


@pytest.fixture
def old_url(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a database as the version before had it, with rows."""
    name = f"test_{new_id().replace('-', '')}"
    scripts = migrating._scripts("shmcache")
    with connect(server.url, application_name="test") as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        url = make_conninfo(server.url, dbname=name)
        with connect(url, application_name="test") as opened, monkeypatch.context() as patched:
            patched.setattr(migrating, "_scripts", lambda _set: [each for each in scripts if each.name < "0012"])
            migrate(opened)
        yield url
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def plain_rows(connection: Connection) -> list[Any]:
    return [
        sorted(map(str, connection.execute(f"SELECT t::text FROM {table} t".encode()).fetchall()))
        for table in (*TABLES, "owners")
    ]


def test_tables_of_the_version_before_keep_every_row_their_rights_and_their_indexes(old_url: str) -> None:
    role = f"reader_{new_id().replace('-', '')}"
    v4 = "f81d4fae-7dec-41d0-a765-00a0c91e6bf6"
    with connect(old_url, application_name="test") as connection:
        queries.save_graph(connection, *small_graph())
        connection.execute(f"CREATE ROLE {role}".encode())
        try:
            connection.execute(f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA shmcache TO {role}".encode())
            moments = [LONG_AGO + datetime.timedelta(days=day) for day in range(0, 300, 50)]
            runs = [(id_of(each), id_of(each)) for each in moments] + [(new_id(), new_id()), (v4, v4)]
            for run, step in runs:
                for row in rows_of(run, step):  # by statements that the old tables know
                    write_old(connection, row)
                ownership.own(connection, new_id(), [run])
            before = plain_rows(connection)
            migrate(connection)
            assert plain_rows(connection) == before
            assert parts_of(connection) == {"node_executions_before", "node_executions_rest"}
            for run, step in runs:
                write_batch(connection, rows_of(run, step))
            assert plain_rows(connection) == before, "what is written again finds its row"
            query = "SELECT has_table_privilege(%s, 'shmcache.node_executions', 'SELECT, INSERT')"
            assert connection.execute(query, (role,)).fetchone() == (True,)
            assert queries.load_node_execution(connection, v4) is not None
            invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
            assert connection.execute(invalid.encode()).fetchone() == (0,)
        finally:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def write_old(connection: Connection, row: Write) -> None:
    """Write a row as the version before did: without looking for parents."""
    from shmcache.database.batches import prepare_batch, send_batch

    send_batch(connection, [each for each in prepare_batch([row]) if each.name != "check_parents"])


def die_in_upgrade(connection: Connection, url: str, number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upgrade the database of a connection by another one, which ends with the migration of a number applied."""
    with connect(url, application_name="test") as dying:
        applied = migrating._apply

        def die_after(opened: Connection, script: Any) -> None:
            applied(opened, script)
            if script.name.startswith(number):
                connection.execute("SELECT pg_terminate_backend(%s)", (opened.info.backend_pid,))

        with monkeypatch.context() as patched:
            patched.setattr(migrating, "_apply", die_after)
            with pytest.raises(psycopg.OperationalError):
                migrate(dying)


def test_an_upgrade_that_dies_half_way_leaves_the_old_tables_and_is_done_again(
    old_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(old_url, application_name="test") as connection:
        queries.save_graph(connection, *small_graph())
        for row in rows_of(run := new_id(), new_id()):
            write_old(connection, row)
        die_in_upgrade(connection, old_url, "0013", monkeypatch)
        kind = "SELECT relkind::text FROM pg_class WHERE oid = 'graph_executions'::regclass"
        assert connection.execute(kind.encode()).fetchone() == ("r",)
        migrate(connection)
        assert connection.execute(kind.encode()).fetchone() == ("p",)
        assert queries.load_graph_execution(connection, run) is not None


def test_what_others_have_hung_on_the_tables_stops_the_upgrade_with_its_name(old_url: str) -> None:
    with connect(old_url, application_name="test") as connection:
        connection.execute("CREATE VIEW public.of_mine AS SELECT id FROM shmcache.node_executions")
        connection.execute("CREATE TABLE public.also_mine (run uuid REFERENCES shmcache.graph_executions)")
        with pytest.raises(SettingsError, match=r"also_mine_run_fkey of public\.also_mine, the view public\.of_mine"):
            migrate(connection)
        connection.execute("DROP VIEW public.of_mine; DROP TABLE public.also_mine")
        migrate(connection)
