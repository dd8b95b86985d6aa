"""A lost host's graph executions gone on with by another: what was done stays so, what ran is tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database import ownership, queries, submissions
from shmcache.database.connection import connect
from shmcache.errors import NotFound
from shmcache.execution_data_client import WorkKind
from shmcache.identifiers import new_id
from shmcache.manager import Manager
from shmcache.records import ExecutionStatus
from syncer.charge_pool import ChargePool
from syncer.replay import replay
from syncer.sync_manager import SyncManager
from tests.integration.charging import PER_RUN, PER_SECOND, begin, open_account, priced_graph, queued, settle_now
from tests.integration.faults import await_blocked
from tests.integration.test_clients import SINK, SOURCE, small_graph
from tests.integration.test_ownership import GRAPH, Host, make_host

S = ExecutionStatus
Connection = psycopg.Connection[Any]
InChild = Callable[[Callable[[Callable[[], bool]], None]], int]


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with connect(database_url, application_name="test") as opened:
        queries.save_graph(opened, *small_graph())
        yield opened


def work_off(host: Host, max_attempts: int = 3) -> list[tuple[WorkKind, int]]:
    """Do all work of a host; return what it was, and which attempt each was on that host."""
    manager = Manager(host.client, lambda: False, max_attempts)
    done: list[tuple[WorkKind, int]] = []
    while (work := host.client.take_work(0.0)) is not None:
        done.append((work.kind, work.attempt))
        manager.do(work)
    carry(host)
    return done


def carry(host: Host) -> None:
    """Have what is on a host's write ring carried."""
    if host.leader:
        host.client.wait_durable(host.arena.write_ring.last_sequence)
    else:
        host.sync()


def start(host: Host, user: str) -> str:
    """Create a graph execution and start it: its first node is QUEUED."""
    run = host.client.create_graph_execution(GRAPH, user).id
    host.client.put_work(WorkKind.START, run, run)
    take(host, WorkKind.START)
    return run


def take(host: Host, kind: WorkKind) -> None:
    """Do one entry of the work queue."""
    work = host.client.take_work(0.0)
    assert work is not None
    assert work.kind is kind
    Manager(host.client, lambda: False, 3).do(work)


def node(host: Host, run: str, node_id: str) -> Any:
    execution = host.client.get_latest_node_execution(node_id, run)
    assert execution is not None
    return execution


def ledger(connection: Connection, user: str) -> list[tuple[str, int]]:
    rows = connection.execute(
        "SELECT transaction_key, -amount FROM ledger WHERE user_id = %s ORDER BY transaction_key", (user,)
    )
    return [(str(key), amount) for key, amount in rows]


def test_what_was_done_is_not_done_again_and_what_ran_is(
    make_host: Callable[..., Host],
    connection: Connection,
) -> None:
    one, two = make_host("one"), make_host("two", lease=30.0)
    user = new_id()
    queries.create_account(connection, user, 1_000)
    run = start(one, user)
    take(one, WorkKind.RUN)  # the source; the sink is queued by it
    sink = node(one, run, SINK)
    one.client.update_node_execution_status(sink.id, S.RUNNING)
    one.sync()
    assert two.client.resume_graph_execution(run).stats == {"lost_hosts": 1}
    assert work_off(two) == [(WorkKind.START, 1), (WorkKind.RUN, 1), (WorkKind.FINISH, 1)]
    assert node(two, run, SINK).id == sink.id
    assert node(two, run, SINK).stats["lost_attempts"] == 1
    ended = queries.load_graph_execution(connection, run)
    assert ended is not None
    assert (ended.status, ended.stats["node_executions"], ended.stats["completed"]) == (S.COMPLETED, 2, 2)


def test_what_hosts_are_lost_with_again_and_again_is_tried_so_often_and_then_fails(
    make_host: Callable[..., Host],
    connection: Connection,
) -> None:
    hosts = [make_host(name) for name in ("one", "two", "three")]
    user = new_id()
    queries.create_account(connection, user, 1_000)
    run = start(hosts[0], user)
    source = node(hosts[0], run, SOURCE)
    for number, host in enumerate(hosts[:2]):
        if number:
            host.client.resume_graph_execution(run)
        host.client.update_node_execution_status(source.id, S.RUNNING)
        host.sync()
    hosts[2].client.resume_graph_execution(run)
    work_off(hosts[2], max_attempts=2)
    failed = node(hosts[2], run, SOURCE)
    assert (failed.status, failed.stats["lost_attempts"]) == (S.FAILED, 2)
    assert list(failed.outputs["error"]) == ["RuntimeError: its worker died 2 times"]
    ended = queries.load_graph_execution(connection, run)
    assert ended is not None
    assert (ended.status, ended.stats["lost_hosts"]) == (S.FAILED, 2)


def test_after_a_host_was_lost_each_start_is_in_the_database_before_the_block_runs(
    make_host: Callable[..., Host],
    connection: Connection,
    in_child: InChild,
) -> None:
    """What kills each host before its next drain would be tried for ever otherwise."""
    one, two = make_host("one"), make_host("two", lease=30.0)
    user = new_id()
    queries.create_account(connection, user, 1_000)
    run = start(one, user)
    one.sync()
    two.client.resume_graph_execution(run)
    seen: list[tuple[str, ...]] = []
    manager = Manager(two.client, lambda: False, 3)

    def look(*_: object, **__: object) -> None:
        seen.extend(connection.execute("SELECT status FROM node_executions WHERE node_id = %s", (SOURCE,)))

    manager._give = look  # type: ignore[method-assign]
    for _ in range(2):
        work = two.client.take_work(0.0)
        assert work is not None
        manager.do(work)
    assert seen == [("RUNNING",)]


def test_asking_again_to_resume_changes_nothing_for_what_runs_or_has_ended(
    make_host: Callable[..., Host],
    connection: Connection,
) -> None:
    host = make_host("one", lease=30.0)
    user = new_id()
    queries.create_account(connection, user, 1_000)
    run = submissions.submit(connection, GRAPH, user, queue="any")
    for _ in range(3):
        host.client.resume_graph_execution(run)
    take(host, WorkKind.START)
    claimed = host.client.take_work(0.0)
    assert claimed is not None
    assert claimed.kind is WorkKind.RUN
    host.client.resume_graph_execution(run)
    take(host, WorkKind.START)
    assert host.client.take_work(0.0) is None
    Manager(host.client, lambda: False, 1).do(claimed)
    work_off(host)
    host.client.resume_graph_execution(run)
    assert work_off(host) == []
    ended = queries.load_graph_execution(connection, run)
    assert ended is not None
    assert (ended.status, ended.stats["node_executions"]) == (S.COMPLETED, 2)
    assert len(host.client.get_node_executions(run)) == 2


def test_a_wish_to_cancel_is_found_by_who_takes_it_later(
    make_host: Callable[..., Host],
    connection: Connection,
) -> None:
    one, two = make_host("one"), make_host("two", lease=30.0)
    user = new_id()
    queries.create_account(connection, user, 1_000)
    run = start(one, user)
    one.sync()
    assert submissions.cancel(connection, run) is S.RUNNING  # the owner is gone, and does not hear it
    assert two.client.resume_graph_execution(run).stats["error"] == "cancelled"
    work_off(two)
    ended = queries.load_graph_execution(connection, run)
    assert ended is not None
    assert (ended.status, ended.stats["completed"]) == (S.TERMINATED, 0)
    submissions.forget_ended(connection)
    assert connection.execute("SELECT FROM cancellations").fetchall() == []
    with pytest.raises(NotFound):
        submissions.cancel(connection, new_id())


def test_a_wish_to_cancel_that_comes_while_somebody_takes_it_is_told_to_who_has_taken_it(
    make_host: Callable[..., Host], connection: Connection, database_url: str
) -> None:
    host = make_host("one")
    user = new_id()
    queries.create_account(connection, user, 1_000)
    run = submissions.submit(connection, GRAPH, user, queue="any")
    connection.execute("LISTEN shmcache_owners")
    with (
        connect(database_url, application_name="taking") as taking,
        connect(database_url, application_name="cancelling") as cancelling,
        ThreadPoolExecutor(1) as pool,
    ):
        with taking.transaction():
            taken = ownership.take(taking, run, host.arena.arena_id, 0)
            assert not taken.is_cancelled
            asked = pool.submit(submissions.cancel, cancelling, run)
            await_blocked(database_url)
            assert submissions.is_cancelled(connection, run)
        assert asked.result() is S.QUEUED
    told = next(connection.notifies(timeout=60, stop_after=1))
    assert told.payload == f"{host.arena.arena_id} {run} cancelled"
    ended = queries.load_graph_execution(connection, run)
    assert ended is not None
    assert ended.status is S.QUEUED, "its owner ends it"


# Charges


def test_a_lost_host_charges_nothing_for_executions_that_only_it_knew(
    make_host: Callable[..., Host],
    connection: Connection,
    database_url: str,
) -> None:
    one, two = make_host("one"), make_host("two", lease=30.0)
    user = open_account(database_url, 1_000)
    run = one.client.create_graph_execution(priced_graph()[0].id, user).id
    known = queued(one.client, run, PER_RUN)
    one.sync()
    begin(one.client, known)
    two.client.take_graph_execution(run)
    # The old owner goes on, and so does the new one: for the same execution, and each for one of its own.
    mine, theirs = queued(one.client, run, PER_RUN), queued(two.client, run, PER_RUN)
    held = queued(one.client, run, PER_SECOND, seconds=2)
    for host, execution in ((one, mine), (one, held), (two, known), (two, theirs)):
        begin(host.client, execution)
    one.client.update_node_execution_status(held.id, S.COMPLETED)
    for host in (one, two):
        carry(host)
        settle_now(host.arena, database_url, host.settings)
    assert ledger(connection, user) == sorted([(f"{known.id}:block", 3), (f"{theirs.id}:block", 3)])
    account = queries.load_account(connection, user)
    assert account is not None
    assert (account.balance, account.held, account.debt) == (1_000 - 6, 0, 0)
    letters = connection.execute("SELECT id, error FROM dead_letters WHERE ring = 'charge' ORDER BY id").fetchall()
    assert len(letters) == 3
    assert {error for _, error in letters} == {letters[0][1]}
    assert letters[0][1].startswith(f"NotOwner: graph execution {run}")
    assert list(replay(connection, [letter for letter, _ in letters]).refused) == [letter for letter, _ in letters]
    assert len(ledger(connection, user)) == 2


def test_who_takes_back_what_it_had_lost_charges_nothing_for_what_it_did_meanwhile(
    make_host: Callable[..., Host], connection: Connection, database_url: str
) -> None:
    one, two = make_host("one"), make_host("two")
    user = open_account(database_url, 1_000)
    run = one.client.create_graph_execution(priced_graph()[0].id, user).id
    one.sync()
    two.client.take_graph_execution(run)
    begin(one.client, queued(one.client, run, PER_RUN))
    one.sync()  # refused
    assert one.client.take_graph_execution(run) == 3
    done_again = queued(one.client, run, PER_RUN)
    begin(one.client, done_again)
    one.sync()
    settle_now(one.arena, database_url, one.settings)
    assert ledger(connection, user) == [(f"{done_again.id}:block", 3)]


def test_no_charge_is_settled_before_the_rows_of_what_it_is_for(
    connection: Connection, database_url: str, tmp_path: Path, in_child: InChild, table_set: str
) -> None:
    if table_set != "shmcache":
        pytest.skip("a platform's ledger is a view here, which has no such triggers")
    connection.execute(
        "CREATE TABLE seen (key text, was_there boolean);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SET search_path = shmcache AS $$ BEGIN"
        " INSERT INTO seen SELECT NEW.transaction_key,"
        " EXISTS (SELECT FROM node_executions WHERE id = NEW.node_execution_id); RETURN NULL; END $$;"
        "CREATE TRIGGER note AFTER INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION note()"
    )
    user = open_account(database_url, 1_000)
    arena = Arena.create(f"rows-first-{new_id()}", 16 << 20)
    settings: Settings = load_settings(state_dir=tmp_path, arena=arena.name, sync_interval=30, charge_workers=1)
    try:
        in_child(SyncManager(arena, database_url, settings).run)
        in_child(ChargePool(arena, database_url, settings, rows_first=True).run)
        with CachedClient(arena, database_url, settings) as client:
            run = client.create_graph_execution(priced_graph()[0].id, user).id
            for _ in range(5):
                begin(client, queued(client, run, PER_RUN))
                arena.charge_ring.request_drain()
                assert arena.charge_ring.wait_committed(arena.charge_ring.last_sequence, 30)
        assert connection.execute("SELECT was_there FROM seen").fetchall() == [(True,)] * 5
    finally:
        arena.unlink()
        arena.close()


def test_what_is_taken_is_in_the_arena_as_it_was(make_host: Callable[..., Host], connection: Connection) -> None:
    one, two = make_host("one"), make_host("two")
    user = new_id()
    queries.create_account(connection, user, 1_000)
    run = start(one, user)
    take(one, WorkKind.RUN)
    one.sync()
    two.client.resume_graph_execution(run)
    waits = two.arena.counter_totals()["blocking_db_operations"]
    seen = two.client.get_node_executions(run)
    assert [each.status for each in seen] == [S.COMPLETED, S.QUEUED]
    assert seen == queries.load_node_executions(connection, run)
    assert two.client.get_graph_execution(run) == queries.load_graph_execution(connection, run)
    assert two.arena.counter_totals()["blocking_db_operations"] == waits


def test_one_that_was_submitted_runs_without_a_word_to_the_database_once_it_is_taken(
    make_host: Callable[..., Host], connection: Connection
) -> None:
    host = make_host("one")
    user = new_id()
    queries.create_account(connection, user, 1_000)
    host.client.get_credits(user)
    for node_id in (SOURCE, SINK):
        host.client.get_node(node_id)
    run = submissions.submit(connection, GRAPH, user, queue="any")
    host.client.resume_graph_execution(run)
    waits = host.arena.counter_totals()["blocking_db_operations"]
    manager = Manager(host.client, lambda: False, 1)
    while (work := host.client.take_work(0.0)) is not None:
        manager.do(work)
    assert host.client.get_graph_execution(run).status is S.COMPLETED
    assert host.arena.counter_totals()["blocking_db_operations"] == waits
