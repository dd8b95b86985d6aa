"""What can befall the syncer's connection and its transactions, each made for real: afterwards every row is there, and
was written once."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from shmcache.arena import Arena
from shmcache.config import Settings, load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import migrate
from shmcache.writes import GraphExecutionWrite, NodeExecutionWrite, Write
from syncer.sync_manager import SyncManager
from tests.integration.faults import await_blocked, await_true
from tests.integration.test_clients import SINK
from tests.integration.test_syncer_outage import append, begin_execution, outputs, values_of
from tools.chaos.proxy import Proxy

StartSyncer = Callable[[str], psutil.Process]

COUNT_APPLICATIONS = b"""
    CREATE TABLE applied (node_execution_id uuid, ordinal integer);
    CREATE FUNCTION note_application() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO applied VALUES (NEW.node_execution_id, NEW.ordinal); RETURN NEW; END $$;
    -- Before the row meets the table: what ON CONFLICT passes over is noted too, if its transaction commits.
    CREATE TRIGGER application BEFORE INSERT ON node_execution_outputs FOR EACH ROW EXECUTE FUNCTION note_application();
"""


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"faults-{os.getpid()}", 32 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, sync_interval=0.1)


@pytest.fixture
def identifier(arena: Arena, database_url: str) -> str:
    """A node execution whose rows lie on the ring; each output's application is noted."""
    with connect(database_url, application_name="test") as connection:
        connection.execute(COUNT_APPLICATIONS)
    return begin_execution(arena, database_url)


def applied_more_than_once(database_url: str) -> list[tuple[object, ...]]:
    with connect(database_url, application_name="test") as connection:
        return connection.execute("SELECT * FROM applied GROUP BY 1, 2 HAVING count(*) > 1").fetchall()


def write_and_wait(arena: Arena, identifier: str, first: int, count: int) -> None:
    append(arena, *outputs(identifier, first, count))
    arena.write_ring.request_drain()
    assert arena.write_ring.wait_committed(arena.write_ring.last_sequence, 60)


def retries(arena: Arena) -> int:
    return arena.counter_totals()["retries"]


# The connection


def test_connections_that_are_cut_lose_and_double_nothing(
    arena: Arena, identifier: str, database_url: str, start_syncer: StartSyncer
) -> None:
    with Proxy(database_url) as proxy:
        start_syncer(proxy.url)
        for turn in range(5):
            write_and_wait(arena, identifier, turn * 400, 200)
            append(arena, *outputs(identifier, turn * 400 + 200, 200))
            arena.write_ring.request_drain()
            proxy.cut()
        assert arena.write_ring.wait_committed(arena.write_ring.last_sequence, 60)
        assert proxy.accepted > 1
    assert values_of(database_url, identifier) == list(range(2_000))
    assert applied_more_than_once(database_url) == []


def test_a_connection_that_only_listens_any_more_is_replaced(
    arena: Arena, identifier: str, database_url: str, start_syncer: StartSyncer
) -> None:
    with Proxy(database_url) as proxy:
        start_syncer(proxy.url)
        for turn in range(3):
            write_and_wait(arena, identifier, turn * 200, 200)
            proxy.half_close()
        write_and_wait(arena, identifier, 600, 200)
        assert proxy.accepted > 3
    assert values_of(database_url, identifier) == list(range(800))
    assert applied_more_than_once(database_url) == []


def test_a_slow_connection_only_takes_longer(
    arena: Arena, identifier: str, database_url: str, start_syncer: StartSyncer
) -> None:
    with Proxy(database_url) as proxy:
        proxy.delay_seconds = 0.02
        start_syncer(proxy.url)
        write_and_wait(arena, identifier, 0, 2_000)
    assert retries(arena) == 0
    assert values_of(database_url, identifier) == list(range(2_000))


def test_a_commit_whose_answer_is_lost_is_not_made_again(
    arena: Arena, identifier: str, database_url: str, start_syncer: StartSyncer
) -> None:
    with Proxy(database_url) as proxy:
        start_syncer(proxy.url)
        write_and_wait(arena, identifier, 0, 100)
        for turn in range(1, 6):
            proxy.lose_commit_answers = 1
            write_and_wait(arena, identifier, turn * 100, 100)
        assert proxy.lost_answers == 5
    assert values_of(database_url, identifier) == list(range(600))
    assert applied_more_than_once(database_url) == []


def test_the_next_batch_leaves_out_what_a_lost_commit_has_written(
    arena: Arena, identifier: str, database_url: str, settings: Settings
) -> None:
    with Proxy(database_url) as proxy:
        append(arena, *outputs(identifier, 0, 100))
        proxy.lose_commit_answers = 1
        proxy.spare_commits = 1  # that of the epoch
        interrupted = SyncManager(arena, proxy.url, settings)
        # Nothing is written by a second try of the same leader: it is asked to stop as soon as the answer is lost.
        interrupted.run_once(lambda: proxy.lost_answers > 0)
        assert proxy.lost_answers == 1
    assert arena.write_ring.committed_sequence == 0
    assert values_of(database_url, identifier) == list(range(100))
    append(arena, *outputs(identifier, 100, 100))
    SyncManager(arena, database_url, settings).run_once()
    assert values_of(database_url, identifier) == list(range(200))
    assert applied_more_than_once(database_url) == []


# The transaction


def test_a_statement_timeout_is_waited_out(
    arena: Arena, identifier: str, database_url: str, start_syncer: StartSyncer
) -> None:
    start_syncer(make_conninfo(database_url, options="-c statement_timeout=200ms"))
    write_and_wait(arena, identifier, 0, 100)
    with connect(database_url, application_name="test", autocommit=False) as blocker:
        blocker.execute("LOCK TABLE node_execution_outputs IN EXCLUSIVE MODE")
        append(arena, *outputs(identifier, 100, 100))
        arena.write_ring.request_drain()
        await_true(lambda: retries(arena) >= 2)
        blocker.rollback()
    assert arena.write_ring.wait_committed(arena.write_ring.last_sequence, 60)
    assert values_of(database_url, identifier) == list(range(200))
    assert applied_more_than_once(database_url) == []


def test_the_victim_of_a_deadlock_tries_again(
    arena: Arena, identifier: str, database_url: str, start_syncer: StartSyncer
) -> None:
    start_syncer(make_conninfo(database_url, options="-c deadlock_timeout=100ms"))
    write_and_wait(arena, identifier, 0, 10)
    with connect(database_url, application_name="test", autocommit=False) as other:
        other.execute("SET deadlock_timeout = '60s'")
        other.execute("UPDATE node_executions SET queued_at = queued_at WHERE id = %s", (identifier,))
        append(arena, *_touching_both(database_url, identifier))
        arena.write_ring.request_drain()
        await_blocked(database_url)
        other.execute("UPDATE graph_executions SET created_at = created_at")
        other.commit()
    assert arena.write_ring.wait_committed(arena.write_ring.last_sequence, 60)
    assert retries(arena) >= 1
    assert values_of(database_url, identifier) == list(range(10))


def _touching_both(database_url: str, identifier: str) -> list[Write]:
    """Return rows that update a graph execution first, a node execution then."""
    with connect(database_url, application_name="test") as connection:
        node = queries.load_node_execution(connection, identifier)
        assert node is not None
        graph = queries.load_graph_execution(connection, node.graph_exec_id)
    assert graph is not None
    return [
        GraphExecutionWrite(graph.id, graph.graph_id, graph.user_id, "RUNNING", "{}", 1.0, 1.0, None, '{"x": 1}'),
        NodeExecutionWrite(identifier, graph.id, SINK, "RUNNING", 1.0, 1.0, 1.0, None, '{"x": 1}'),
    ]


def test_a_serialization_failure_is_tried_again(
    arena: Arena,
    identifier: str,
    database_url: str,
    settings: Settings,
    in_child: Callable[[Callable[[Callable[[], bool]], None]], int],
) -> None:
    class Serializable(SyncManager):
        """A leader whose transactions are stricter than what any setting lets them be."""

        def _connected(self) -> psycopg.Connection[Any]:
            connection = super()._connected()
            connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            return connection

    in_child(Serializable(arena, database_url, settings).run)
    write_and_wait(arena, identifier, 0, 10)
    with connect(database_url, application_name="test", autocommit=False) as other:
        other.execute("UPDATE node_executions SET queued_at = queued_at WHERE id = %s", (identifier,))
        append(arena, *_touching_both(database_url, identifier))
        arena.write_ring.request_drain()
        await_blocked(database_url)
        other.commit()
    assert arena.write_ring.wait_committed(arena.write_ring.last_sequence, 60)
    assert retries(arena) >= 1
    with connect(database_url, application_name="test") as connection:
        assert connection.execute("SELECT stats FROM node_executions").fetchone() == ({"x": 1},)


# The server


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def begin_on(server: EmbeddedServer, arena: Arena) -> str:
    with connect(server.url, application_name="test") as connection:
        migrate(connection)
        connection.execute(COUNT_APPLICATIONS)
    return begin_execution(arena, server.url)


def test_a_killed_backend_takes_the_server_through_recovery_and_nothing_is_lost(
    arena: Arena, tmp_path: Path, servers: ExitStack, start_syncer: StartSyncer
) -> None:
    server = servers.enter_context(EmbeddedServer.start(tmp_path / "server"))
    identifier = begin_on(server, arena)
    start_syncer(server.url)
    for turn in range(3):
        write_and_wait(arena, identifier, turn * 1_000, 500)
        with psycopg.connect(server.url) as looking:
            row = looking.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'shmcache syncer'"
            ).fetchone()
        append(arena, *outputs(identifier, turn * 1_000 + 500, 500))
        arena.write_ring.request_drain()
        assert row is not None
        psutil.Process(row[0]).kill()
    assert arena.write_ring.wait_committed(arena.write_ring.last_sequence, 60)
    assert values_of(server.url, identifier) == list(range(3_000))
    assert applied_more_than_once(server.url) == []


def test_a_failover_to_the_address_of_a_standby_loses_and_doubles_nothing(
    arena: Arena, tmp_path: Path, servers: ExitStack, start_syncer: StartSyncer
) -> None:
    primary = servers.enter_context(EmbeddedServer.start(tmp_path / "primary"))
    identifier = begin_on(primary, arena)
    standby_data = tmp_path / "standby" / "postgresql"
    standby_data.mkdir(parents=True, mode=0o700)
    if primary._run_as is not None:
        shutil.chown(standby_data, primary._run_as)
    hosts = [str(conninfo_to_dict(primary.url)["host"])]
    primary._command("pg_basebackup", "-h", hosts[0], "-U", "postgres", "-D", str(standby_data), "-R", "-c", "fast")
    for socket_file in standby_data.glob(".s.PGSQL.*"):
        socket_file.unlink()  # copied along: the sockets of the primary lie in its data
    standby = servers.enter_context(EmbeddedServer.start(tmp_path / "standby"))
    hosts.append(str(conninfo_to_dict(standby.url)["host"]))
    with connect(primary.url, application_name="test") as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        connection.execute("SELECT pg_reload_conf()")
        await_true(
            lambda: (
                connection.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'").fetchone() is not None
            )
        )
    start_syncer(f"host={','.join(hosts)} user=postgres dbname=postgres target_session_attrs=read-write")
    write_and_wait(arena, identifier, 0, 1_000)
    append(arena, *outputs(identifier, 1_000, 1_000))
    arena.write_ring.request_drain()
    primary._control("stop", "-m", "immediate", "-w")
    append(arena, *outputs(identifier, 2_000, 1_000))
    standby._control("promote", "-w")
    assert arena.write_ring.wait_committed(arena.write_ring.last_sequence, 60)
    assert values_of(standby.url, identifier) == list(range(3_000))
    assert applied_more_than_once(standby.url) == []


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):  # noqa: PT012
        while True:
            file.write(bytes(1 << 14))


@pytest.fixture
def small_disk(servers: ExitStack) -> Path:
    """A file system of 24 MiB; its owner may be the server's user."""
    directory = Path(tempfile.mkdtemp(prefix="shmcache-small-"))
    servers.callback(shutil.rmtree, directory, ignore_errors=True)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "shmcache-test", directory], check=True,
                       capture_output=True)  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a full disk cannot be made here: mounting needs the rights of root ({error})")
    servers.callback(lambda: subprocess.run(["umount", "--lazy", directory], check=True))
    directory.chmod(0o755)
    return directory


def test_a_full_disk_is_waited_out(
    arena: Arena, tmp_path: Path, small_disk: Path, servers: ExitStack, start_syncer: StartSyncer
) -> None:
    server = servers.enter_context(EmbeddedServer.start(tmp_path / "server"))
    identifier = begin_on(server, arena)
    space = small_disk / "space"
    space.mkdir()
    if server._run_as is not None:
        shutil.chown(space, server._run_as)
    with connect(server.url, application_name="test") as connection:
        connection.execute(f"CREATE TABLESPACE small LOCATION '{space}'".encode())
        connection.execute("ALTER TABLE node_execution_outputs_before SET TABLESPACE small")
    start_syncer(server.url)
    write_and_wait(arena, identifier, 0, 100)
    filler = small_disk / "filler"
    _fill(filler)
    append(arena, *outputs(identifier, 100, 5_000))
    arena.write_ring.request_drain()
    await_true(lambda: retries(arena) >= 3)
    assert arena.write_ring.committed_sequence < arena.write_ring.last_sequence
    filler.unlink()
    assert arena.write_ring.wait_committed(arena.write_ring.last_sequence, 60)
    assert values_of(server.url, identifier) == list(range(5_100))
    assert applied_more_than_once(server.url) == []
