"""The ledger by month: a key is in one place for ever, old months are carried forward, and nothing is charged twice."""

from __future__ import annotations

import datetime
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgpack
import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import make_conninfo

from shmcache.arena import Arena
from shmcache.config import load_settings
from shmcache.database import ledger_months, partitions, queries
from shmcache.database import migrate as migrating
from shmcache.database.accounts import top_up
from shmcache.database.audit import find_differences, load_ledger
from shmcache.database.bookkeeping import add_dead_letter
from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.ledger_months import LEDGER, tidy_ledger
from shmcache.database.migrate import migrate
from shmcache.database.partitions import months, tidy
from shmcache.database.settlement import settle
from shmcache.database.statements import statement
from shmcache.direct_client import DirectClient
from shmcache.errors import InvalidValue, SettingsError
from shmcache.identifiers import new_id
from shmcache.work_queue import WorkQueue
from shmcache.writes import Charge, ChargeKind, charge_key
from syncer import settlement_worker
from syncer.partition_keeper import PartitionKeeper
from tests import kill_points
from tests.integration.charging import open_account, standing, wait_for
from tests.integration.test_clients import small_graph
from tests.integration.test_partitions import LONG_AGO, add_run, bound, die_in_upgrade, id_of, month_before, parts_of
from tests.unit.arena_state import die, run_in_child
from tools.cli import cli

Connection = psycopg.Connection[Any]
V4 = "f81d4fae-7dec-41d0-a765-00a0c91e6bf6"
OPENING = 1_000


@pytest.fixture
def table_set() -> str:
    return "shmcache"


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with connect(database_url, application_name="test") as opened:
        queries.save_graph(opened, *small_graph())
        yield opened


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"ledger-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def user(database_url: str) -> str:
    return open_account(database_url, OPENING)


def charge_of(user: str, key: str, amount: int = 3, time: float = 1.0) -> Charge:
    return Charge(key, user, amount, "block", None, None, time, "{}")


def key_of(moment: datetime.datetime) -> str:
    """Return the key of a charge as one of another time has it."""
    return charge_key(id_of(moment), "block")


def pay(connection: Connection, *charges: Charge) -> None:
    with connection.transaction():
        settle(connection, [(ChargeKind.CHARGE, each) for each in charges])


def rows_of(connection: Connection) -> list[Any]:
    return sorted(map(str, connection.execute("SELECT l::text FROM ledger l").fetchall()))


def assert_sound(connection: Connection) -> None:
    assert find_differences(connection)[1] == []


def old_month(connection: Connection) -> tuple[str, datetime.datetime]:
    """Make a month of the past a partition of the ledger, whose executions were dropped; return its name and start."""
    return month_before(connection, 5, LEDGER)


def test_a_charge_finds_its_month_and_settled_twice_changes_nothing(connection: Connection, user: str) -> None:
    now = datetime.datetime.now(datetime.UTC)
    later = (now.replace(day=1) + datetime.timedelta(days=70)).replace(day=5)
    far = now + datetime.timedelta(days=4000)
    own = ["card 1", "0001", V4, "", "ü", f"{new_id().upper()}:block"]
    charges = [charge_of(user, key) for key in (*map(key_of, (LONG_AGO, now, later, far)), *own)]
    pay(connection, *charges)
    once = rows_of(connection)
    assert len(once) == len(charges)
    for some in (charges, reversed(charges)):
        pay(connection, *some)
    for each in charges:
        pay(connection, each)
    assert rows_of(connection) == once
    assert_sound(connection)
    names = {part.removeprefix("ledger_") for part in parts_of(connection, "ledger")}
    assert names == {"below", "before", f"{later:%Y_%m}", "rest", "above"}


def test_a_key_is_looked_for_where_it_is_and_nowhere_else(connection: Connection, user: str) -> None:
    key = key_of(LONG_AGO)
    pay(connection, charge_of(user, key))

    def read(node: dict[str, Any]) -> Iterator[str]:
        if "Relation Name" in node and node["Actual Loops"]:
            yield node["Relation Name"]
        for each in node.get("Plans", ()):
            yield from read(each)

    for name, parameters, value in (
        ("settled_keys", ("keys", "first", "last"), f"'{{{key}}}', '{key}', '{key}'"),
        ("load_transaction", ("key",), f"'{key}'"),
    ):
        sql = statement(connection, name).decode()
        for place, parameter in enumerate(parameters, 1):
            sql = sql.replace(f"%({parameter})s", f"${place}")
        connection.execute(f"PREPARE {name} AS {sql}".encode())
        for mode in ("force_custom_plan", "force_generic_plan"):
            connection.execute(f"SET plan_cache_mode = {mode}".encode())
            row = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE {name} ({value})".encode()).fetchone()
            assert row is not None
            assert set(read(row[0][0]["Plan"])) == {"ledger_before"}, (name, mode)


def test_an_account_that_the_ledger_names_is_not_deleted(connection: Connection, database_url: str, user: str) -> None:
    idle = open_account(database_url, OPENING)
    pay(connection, charge_of(user, key_of(LONG_AGO)))
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match="still has rows in the ledger"):
        connection.execute("DELETE FROM accounts")
    connection.execute("DELETE FROM accounts WHERE user_id = %s", (idle,))
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match=f"no account {idle}"):
        pay(connection, charge_of(idle, key_of(LONG_AGO)))


def test_months_are_made_ahead_with_those_of_the_executions(connection: Connection, user: str) -> None:
    ahead = [each.name for each in months(connection, LEDGER)]
    assert ahead[0] == "before"
    assert ahead[1:] == [each.name for each in months(connection)][1:]
    last = ahead[-1]
    connection.execute(f"DROP TABLE ledger_{last}".encode())
    late = datetime.datetime.strptime(last, "%Y_%m").replace(day=9, tzinfo=datetime.UTC)
    charges = [charge_of(user, key_of(late + datetime.timedelta(days=days))) for days in (0, 1000)]
    pay(connection, *charges)
    before = rows_of(connection)
    assert parts_of(connection, "ledger") == {"ledger_rest"}
    assert tidy(connection, 0).made == 1
    assert parts_of(connection, "ledger") == {"ledger_rest", f"ledger_{last}"}, "what came in between has moved"
    pay(connection, *charges)
    assert rows_of(connection) == before


def test_an_old_month_is_carried_forward_and_no_account_changes(
    connection: Connection, database_url: str, user: str
) -> None:
    name, begins = old_month(connection)
    poor, idle = open_account(database_url, 10), open_account(database_url, 5)
    inside = [begins + datetime.timedelta(days=day) for day in range(3)]
    before = begins - datetime.timedelta(days=3)
    after = begins + datetime.timedelta(days=40)
    stays = [charge_of(user, key_of(after), 7, after.timestamp()), charge_of(user, key_of(begins)[:-12].upper(), 2)]
    goes = [charge_of(each, key_of(at), 6, at.timestamp()) for at in (before, *inside) for each in (user, poor)]
    pay(connection, *goes, *stays)
    top_up(connection, poor, 9, "card 1")  # pays 9 of the debt
    accounts = [standing(database_url, each) for each in (user, poor, idle)]
    assert accounts == [(OPENING - 33, 0, 0), (0, 5, 0), (5, 0, 0)]
    assert tidy_ledger(connection, 0).dropped == [], "0 is for ever"
    assert tidy_ledger(connection, 3_650).dropped == []
    done = tidy_ledger(connection, 60)
    assert (done.dropped, done.kept) == (["before", name], [])
    assert [standing(database_url, each) for each in (user, poor, idle)] == accounts
    assert_sound(connection)
    rows = {row.transaction_key: row for row in load_ledger(connection, user, 99)}
    assert set(rows) == {f"carried:{user}", *(each.transaction_key for each in stays)}
    carried = rows[f"carried:{user}"]
    assert carried[:5] == (inside[-1].timestamp(), -24, OPENING - 24, 0, "carried forward")
    carried = next(row for row in load_ledger(connection, poor, 99) if row.transaction_key.startswith("carried:"))
    assert carried[:5] == (inside[-1].timestamp(), -10, 0, 14, "carried forward")
    assert [row.transaction_key for row in load_ledger(connection, idle, 99)] == []
    assert months(connection, LEDGER)[0].name > name
    pay(connection, *stays)
    assert [standing(database_url, each) for each in (user, poor, idle)] == accounts


def test_what_is_charged_for_a_time_that_is_dropped_is_refused(
    connection: Connection, database_url: str, user: str, arena: Arena
) -> None:
    _, begins = old_month(connection)
    known, new, own = key_of(begins), key_of(begins), "01 of mine"
    pay(connection, charge_of(user, known), charge_of(user, own))
    before = standing(database_url, user)
    assert len(tidy_ledger(connection, 60).dropped) == 2
    today = key_of(datetime.datetime.now(datetime.UTC))
    arena_id = new_id()
    settlement_worker.use(database_url)
    items = [
        (place, int(ChargeKind.CHARGE), msgpack.packb(charge_of(user, key)))
        for place, key in enumerate((known, own, new, today), 1)
    ]
    try:
        settled = settlement_worker.settle_partition(settlement_worker.Partition(arena_id, "charge", 0, items))
    finally:
        settlement_worker.leave()
    assert settled.refused == 2
    assert standing(database_url, user) == (before[0] - 3, 0, 0), "today's"
    letters = connection.execute("SELECT sequence, sqlstate, error FROM dead_letters ORDER BY 1").fetchall()
    assert [row[:2] for row in letters] == [(1, "23514"), (3, "23514")]
    assert f"the ledger of the time of {known} is dropped" in letters[0][2]
    direct = DirectClient(database_url, work_queue=WorkQueue(arena), settings=load_settings(), on_wait=lambda: None)
    with direct, pytest.raises(InvalidValue, match="is dropped: nobody knows"):
        direct.spend_credits(user, 5, {}, new)
    with pytest.raises(InvalidValue, match="is dropped: nobody knows"):
        top_up(connection, user, 5, new)
    assert standing(database_url, user) == (before[0] - 3, 0, 0)
    assert_sound(connection)


def test_what_may_still_be_charged_keeps_its_month_and_those_after_it(
    connection: Connection, database_url: str, user: str
) -> None:
    name, begins = old_month(connection)
    month_before(connection, 5)
    at = begins - datetime.timedelta(days=3)
    run, step = add_run(connection, at, "TERMINATED")
    pay(connection, charge_of(user, charge_key(step, "block")))

    def kept() -> list[tuple[str, str]]:
        done = tidy_ledger(connection, 60)
        assert done.dropped == []
        return [(each.name, each.reason) for each in done.kept]

    assert kept() == [("before", "executions of its time, or from before, are there")]
    tidy(connection, 60)
    connection.execute(
        "INSERT INTO holds"
        " (transaction_key, user_id, amount, node_execution_id, graph_execution_id, owner_pid, created_at)"
        " VALUES (%s, %s, 0, %s, %s, 1, now())",
        (key_of(at), user, step, run),
    )
    assert kept() == [("before", "1 estimates of its time are held")]
    connection.execute("DELETE FROM holds")
    letters = [
        msgpack.packb(charge_of(user, key_of(at))), msgpack.packb(charge_of(user, "card")), b"no msgpack", b"",
        msgpack.packb(charge_of(user, key_of(datetime.datetime.now(datetime.UTC)))), msgpack.packb(7),
        msgpack.packb(["\0"]),
    ]  # fmt: skip
    for place, letter in enumerate(letters):
        add_dead_letter(connection, new_id(), "charge", place, ChargeKind.CHARGE, letter, ValueError("refused"))
    assert kept() == [("before", "1 charges of its time are dead letters")]
    connection.execute("DELETE FROM dead_letters WHERE sequence = 0")
    assert tidy_ledger(connection, 60).dropped == ["before", name]
    assert_sound(connection)


def test_executions_whose_identifiers_carry_no_time_keep_nothing(connection: Connection, user: str) -> None:
    _, begins = old_month(connection)
    early = "00" + V4[2:]
    month_before(connection, 5)
    for identifier in (early, V4):
        connection.execute(
            "INSERT INTO graph_executions (id, graph_id, user_id, status, inputs, created_at, stats)"
            " SELECT %s, id, %s, 'QUEUED', '{}', now(), '{}' FROM graphs LIMIT 1",
            (identifier, user),
        )
    pay(connection, charge_of(user, charge_key(early, "block")), charge_of(user, key_of(begins)))
    assert len(tidy_ledger(connection, 60).dropped) == 2
    before = rows_of(connection)
    pay(connection, charge_of(user, charge_key(early, "block")))
    assert rows_of(connection) == before


def test_all_go_on_settling_and_reading_while_a_month_is_carried_forward(
    connection: Connection, database_url: str, user: str
) -> None:
    _, begins = old_month(connection)
    keys = [key_of(begins), key_of(datetime.datetime.now(datetime.UTC)), "card 1", "0"]
    pay(connection, *(charge_of(user, key) for key in keys))
    seen: list[str] = []

    def meanwhile(step: str) -> None:
        if step in ("checked", "carried"):
            with connect(database_url, application_name="test") as other:
                other.execute("SET lock_timeout = '2s'")
                top_up(other, user, 1, f"card {step} {len(seen)}")
                pay(other, charge_of(user, key_of(datetime.datetime.now(datetime.UTC))))
                pay(other, *(charge_of(user, key) for key in keys))
                assert_sound(other)
        seen.append(step)

    kill_points.arm(ledger_months, meanwhile)
    try:
        assert len(tidy_ledger(connection, 60).dropped) == 2
    finally:
        kill_points.disarm(ledger_months)
    assert seen == kill_points.steps_of(ledger_months) * 2
    assert standing(database_url, user)[0] == OPENING - 4 * 3 + 4 * 1 - 4 * 3
    assert_sound(connection)


def test_a_month_that_is_busy_is_left_for_another_time_and_nobody_waits_for_it(
    connection: Connection, database_url: str, user: str
) -> None:
    _, begins = old_month(connection)
    pay(connection, charge_of(user, key_of(begins)))
    with connect(database_url, application_name="test") as busy:
        with busy.transaction():
            busy.execute("SELECT count(*) FROM ledger")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                tidy_ledger(connection, 60)
            assert len(rows_of(busy)) == 1
        assert len(tidy_ledger(connection, 60).dropped) == 2


def test_of_hosts_that_do_it_at_once_one_does(connection: Connection, database_url: str) -> None:
    old_month(connection)
    with connect(database_url, application_name="test") as other, other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(%s)", (partitions._LOCK,))
        done = tidy_ledger(connection, 60)
        assert (done.dropped, done.kept[0].reason) == ([], "another host is about it")


def test_who_settles_is_in_no_deadlock_with_who_makes_and_drops_months(
    connection: Connection, database_url: str, user: str
) -> None:
    users = sorted([user, *(open_account(database_url, OPENING) for _ in range(3))])
    connection.execute("DROP TABLE ledger_before")
    last = months(connection, LEDGER)[-1].tables()[0]
    failed: list[psycopg.Error] = []
    settled = 0
    is_over = threading.Event()

    def settle_on() -> None:
        nonlocal settled
        with connect(database_url, application_name="test") as mine:
            while not is_over.is_set():
                now = datetime.datetime.now(datetime.UTC)
                try:
                    pay(mine, *(charge_of(each, key_of(now), 1) for each in users))
                    top_up(mine, users[settled % 4], 1, f"card {new_id()}")
                except psycopg.Error as error:
                    failed.append(error)
                settled += 1

    def change(sql: str) -> None:
        with connection.transaction():
            connection.execute("SET LOCAL lock_timeout = '500ms'")
            connection.execute(sql.encode())

    def patiently(work: Callable[[], object]) -> None:
        while True:
            try:
                work()
                return
            except psycopg.errors.LockNotAvailable:
                pass

    settling = [threading.Thread(target=settle_on) for _ in range(2)]
    for thread in settling:
        thread.start()
    try:
        for month in range(1, 9):
            starts = datetime.datetime(2021, month, 1, tzinfo=datetime.UTC)
            ends = datetime.datetime(2021, month + 1, 1, tzinfo=datetime.UTC)
            limits = f"FROM ('{bound(starts)}') TO ('{bound(ends)}')"
            patiently(partial(change, f"CREATE TABLE ledger_2021_{month} PARTITION OF ledger FOR VALUES {limits}"))
            pay(connection, *(charge_of(each, key_of(starts)) for each in users))
            patiently(lambda: tidy_ledger(connection, 60))
            patiently(partial(change, f"DROP TABLE {last}"))
            patiently(lambda: tidy(connection, 0))
    finally:
        is_over.set()
        for thread in settling:
            thread.join()
    assert failed == []
    assert settled > 8
    assert [each.tables()[0] for each in months(connection, LEDGER)][-1] == last
    assert_sound(connection)


@pytest.mark.parametrize("step", kill_points.steps_of(ledger_months))
def test_who_dies_while_dropping_has_changed_nothing_and_another_does_it(
    connection: Connection, database_url: str, user: str, step: str
) -> None:
    _, begins = old_month(connection)
    pay(connection, charge_of(user, key_of(begins)), charge_of(user, "01 of mine"))
    before = rows_of(connection)

    def child() -> None:
        kill_points.arm(ledger_months, lambda at: die() if at == step else None)
        with connect(database_url, application_name="test") as mine:
            tidy_ledger(mine, 60)

    assert run_in_child(child) == -signal.SIGKILL
    assert rows_of(connection) == before

    def is_tidied() -> bool:  # once the server has seen that the other is gone
        try:
            return not tidy_ledger(connection, 60).kept
        except psycopg.errors.LockNotAvailable:
            return False

    wait_for(is_tidied)
    assert [row.transaction_key for row in load_ledger(connection, user, 9)] == ["01 of mine", f"carried:{user}"]
    assert_sound(connection)


def test_the_leading_syncers_keeper_does_it_after_the_executions(
    connection: Connection, database_url: str, user: str
) -> None:
    name, begins = old_month(connection)
    month_before(connection, 5)
    add_run(connection, begins)
    pay(connection, charge_of(user, key_of(begins)))
    keeper = PartitionKeeper(database_url, 60, 60, first_seconds=0.01)
    try:
        wait_for(lambda: name not in [each.name for each in months(connection, LEDGER)])
    finally:
        keeper.stop()
    assert name not in [each.name for each in months(connection)]
    assert_sound(connection)


def test_the_command_lists_and_carries_forward(
    connection: Connection, database_url: str, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, begins = old_month(connection)
    month_before(connection, 5)
    add_run(connection, begins, "RUNNING")
    pay(connection, charge_of(user, key_of(begins)))
    monkeypatch.setenv("SHMCACHE_DATABASE_URL", database_url)

    def told(*arguments: str) -> Any:
        done = CliRunner().invoke(cli, ["partitions", *arguments, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert [each["name"] for each in told("list") if each["of"] == "ledger"][:2] == ["before", name]
    done = told("tidy", "--older-than", "60", "--ledger-older-than", "60")
    assert done["ledger"] == {
        "dropped": ["before"], "kept": {name: "executions of its time, or from before, are there"},
    }  # fmt: skip
    told_plainly = CliRunner().invoke(cli, ["partitions", "tidy", "--ledger-older-than", "60"]).stdout
    assert f"the ledger of {name} stays: executions of its time, or from before, are there" in told_plainly
    monkeypatch.setenv("SHMCACHE_LEDGER_RETENTION_DAYS", "60")
    assert isinstance(CliRunner().invoke(cli, ["partitions", "tidy"]).exception, SettingsError)


@pytest.mark.parametrize(
    ("executions", "ledger", "said"),
    [
        (None, "400", "SHMCACHE_RETENTION_DAYS (0) to 1 to 400, or this to 0"),
        ("400", "399", "SHMCACHE_RETENTION_DAYS (400) to 1 to 399, or this to 0"),
        ("400", "-1", "greater than or equal to 0"),
        ("400", "36501", "less than or equal to 36500"),
        ("400", "ten", "valid integer"),
        ("x", "400", "valid integer"),
    ],
)
def test_charges_are_not_kept_shorter_than_what_they_paid(
    monkeypatch: pytest.MonkeyPatch, executions: str | None, ledger: str, said: str
) -> None:
    if executions is not None:
        monkeypatch.setenv("SHMCACHE_RETENTION_DAYS", executions)
    monkeypatch.setenv("SHMCACHE_LEDGER_RETENTION_DAYS", ledger)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("executions", "ledger"), [("0", "0"), ("400", "0"), ("400", "400"), ("1", "36500")])
def test_charges_are_kept_as_long_or_longer(monkeypatch: pytest.MonkeyPatch, executions: str, ledger: str) -> None:
    monkeypatch.setenv("SHMCACHE_RETENTION_DAYS", executions)
    monkeypatch.setenv("SHMCACHE_LEDGER_RETENTION_DAYS", ledger)
    assert load_settings().ledger_retention_days == int(ledger)


# Upgrades


@pytest.fixture
def old_url(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a database as the version before had it, of a role that is nothing but its owner."""
    name = f"test_{new_id().replace('-', '')}"
    scripts = migrating._scripts("shmcache")
    with connect(server.url, application_name="test") as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN".encode())
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 OWNER {name}".encode())
        url = make_conninfo(server.url, dbname=name, user=name)
        with connect(url, application_name="test") as opened, monkeypatch.context() as patched:
            patched.setattr(migrating, "_scripts", lambda _set: [each for each in scripts if each.name < "0017"])
            migrate(opened)
        yield url
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        admin.execute(f"DROP ROLE {name}".encode())


def old_charges(connection: Connection, url: str) -> list[Charge]:
    """Settle charges of all kinds of keys in the ledger of the version before, for two users, one of them in debt."""
    users = [open_account(url, OPENING), open_account(url, 10)]
    now = datetime.datetime.now(datetime.UTC)
    times = [now - datetime.timedelta(days=days) for days in (400, 200, 90, 0, -400)]
    keys = [*map(key_of, times), "0", "01 of mine", "card", V4, f"{V4}:block"]
    charges = [charge_of(user, f"{key}{suffix}") for key in keys for suffix, user in zip(("", "+"), users, strict=True)]
    pay(connection, *charges)
    top_up(connection, users[1], 4, "card 1")
    return charges


def test_the_ledger_of_the_version_before_keeps_every_row_its_rights_and_its_indexes(old_url: str) -> None:
    with connect(old_url, application_name="test") as connection:
        connection.execute("GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA shmcache TO PUBLIC")
        connection.execute("CREATE INDEX of_theirs ON ledger (graph_execution_id, reason)")
        charges = old_charges(connection, old_url)
        before = rows_of(connection)
        migrate(connection)
        assert rows_of(connection) == before
        assert_sound(connection)
        parts = {"ledger_below", "ledger_before", "ledger_rest", "ledger_above"}
        assert parts_of(connection, "ledger") == parts
        pay(connection, *charges)
        assert rows_of(connection) == before, "what is settled again finds its row"
        granted = "SELECT string_agg(privilege_type, ',' ORDER BY 1) FROM information_schema.role_table_grants" \
            " WHERE grantee = 'PUBLIC' AND table_name = 'ledger'"  # fmt: skip
        assert connection.execute(granted.encode()).fetchone() == ("INSERT,SELECT",)
        assert connection.execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid").fetchone() == (0,)
        last = months(connection, LEDGER)[-1].tables()[0]
        columns = "SELECT count(*) FROM pg_indexes WHERE tablename = %s AND indexdef ~ '(graph_execution_id, reason)'"
        assert connection.execute(columns, (last,)).fetchone() == (1,)
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            connection.execute("DELETE FROM accounts")
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO ledger SELECT * FROM ledger LIMIT 1")
        connection.execute("UPDATE ledger_before SET created_at = now()")
        month_before_is_dropped(connection)
        assert_sound(connection)


def month_before_is_dropped(connection: Connection) -> None:
    """Drop the first partition as if all of it were old."""
    (first, *_) = months(connection, LEDGER)
    assert ledger_months._drop(connection, first) is None


def test_an_upgrade_that_dies_half_way_leaves_the_old_ledger_and_is_done_again(
    old_url: str, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(old_url, application_name="test") as connection:
        old_charges(connection, old_url)
        before = rows_of(connection)
        die_in_upgrade(connection, old_url, "0017", monkeypatch)
        kind = "SELECT relkind::text FROM pg_class WHERE oid = 'ledger'::regclass"
        assert connection.execute(kind.encode()).fetchone() == ("r",)
        migrate(connection)
        assert connection.execute(kind.encode()).fetchone() == ("p",)
        assert rows_of(connection) == before


def test_what_others_have_hung_on_the_ledger_stops_the_upgrade_with_its_name(old_url: str) -> None:
    with connect(old_url, application_name="test") as connection:
        connection.execute("CREATE SCHEMA theirs")
        connection.execute("CREATE VIEW theirs.of_mine AS SELECT transaction_key FROM ledger")
        connection.execute("CREATE TABLE theirs.receipts (key text REFERENCES ledger)")
        connection.execute("CREATE PUBLICATION accounting FOR TABLE ledger")
        connection.execute(
            "CREATE TRIGGER looked_at BEFORE UPDATE ON ledger"
            " FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        )
        with pytest.raises(SettingsError) as caught:
            migrate(connection)
        for name in (
            "receipts_key_fkey of theirs.receipts",
            "view theirs.of_mine",
            "publication accounting",
            "looked_at",
        ):
            assert name in str(caught.value)
        connection.execute("DROP SCHEMA theirs CASCADE; DROP PUBLICATION accounting; DROP TRIGGER looked_at ON ledger")
        migrate(connection)
