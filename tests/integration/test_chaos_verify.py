"""What a chaos run compares at its end: it finds nothing where nothing is wrong, and each thing that is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database.connection import connect
from shmcache.execution_data_client import WorkKind
from shmcache.graphs import load_graph_file
from shmcache.manager import Manager
from syncer.charge_pool import ChargePool
from syncer.sync_manager import SyncManager
from tests.integration.charging import open_account
from tools.chaos.faults import Window
from tools.chaos.journal import POISON, JournalingClient
from tools.chaos.verify import Found, Journals, verify

GRAPH = Path(__file__).parents[1] / "graphs" / "diamond.wfformat.json"


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"chaos-verify-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def journals(tmp_path: Path) -> Path:
    directory = tmp_path / "journals"
    directory.mkdir()
    return directory


@pytest.fixture
def connection(
    arena: Arena, journals: Path, database_url: str, tmp_path: Path
) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Two runs of a graph and a poisoned output, journaled and in the database."""
    settings: Settings = load_settings(state_dir=tmp_path)
    graph, nodes = load_graph_file(GRAPH)
    user = open_account(database_url, 1_000)
    with CachedClient(arena, database_url, settings) as cached:
        client = JournalingClient(cached, journals / "1-1").for_manager()
        client.save_graph(graph, nodes)
        manager = Manager(client, lambda: False, 3)
        for _ in range(2):
            run = client.create_graph_execution(graph.id, user).id
            client.put_work(WorkKind.START, run, run)
        while (work := client.take_work(0)) is not None:
            manager.do(work)
        client.spend_credits(user, 7)
        execution = client.get_node_executions(run)[0]
        client.upsert_execution_output(execution.id, POISON, "\0", ordinal=execution.output_count)
    ChargePool(arena, database_url, settings).run_once()
    SyncManager(arena, database_url, settings).run_once()
    with connect(database_url, application_name="test") as made:
        yield made


def found(connection: psycopg.Connection[tuple[object, ...]], journals: Path) -> Found:
    return verify(connection, Journals(journals, []), [])


def test_nothing_is_found_where_nothing_is_wrong(
    connection: psycopg.Connection[tuple[object, ...]], journals: Path
) -> None:
    result = found(connection, journals)
    assert not any(result[:6]), result.examples
    assert result.acknowledged > 40
    assert (result.undecided, result.dead_letters) == (0, 1)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        ("DELETE FROM node_execution_outputs WHERE ordinal = 0", "lost"),
        ("UPDATE node_execution_outputs SET value = '\"another\"'", "lost"),
        ("DELETE FROM node_execution_inputs", "lost"),
        ("UPDATE node_executions SET status = 'RUNNING', moves = 2", "lost"),
        ("DELETE FROM ledger WHERE reason = 'block'", "lost"),
        ("DELETE FROM ledger WHERE reason = 'spend'", "lost"),
        ("UPDATE ledger SET amount = amount - 1 WHERE reason = 'spend'", "duplicated"),
        ("DELETE FROM dead_letters", "lost"),
        (
            "INSERT INTO node_execution_outputs SELECT node_execution_id, 100 + ordinal, name, value, time "
            "FROM node_execution_outputs",
            "duplicated",
        ),
        (
            "INSERT INTO node_executions SELECT gen_random_uuid(), graph_execution_id, node_id, status, created_at, "
            "queued_at, started_at, ended_at, stats, moves FROM node_executions LIMIT 1",
            "duplicated",
        ),
        ("UPDATE ledger SET amount = amount * 2", "duplicated"),
        ("UPDATE node_executions SET ended_at = ended_at + interval '1 hour'", "reordered"),
        (
            "INSERT INTO node_execution_outputs SELECT node_execution_id, 50 + ordinal, name, value, "
            "time - interval '1 s' FROM node_execution_outputs",
            "reordered",
        ),
        ("UPDATE accounts SET debt = 5", "overdrawn"),
        ("UPDATE accounts SET balance = balance + 1", "unbalanced"),
        ("UPDATE graph_executions SET status = 'RUNNING'", "not_ended"),
    ],
)
def test_each_harm_is_found(
    connection: psycopg.Connection[tuple[object, ...]], journals: Path, harm: str, what: str
) -> None:
    connection.execute(harm.encode())
    result = found(connection, journals)
    assert getattr(result, what) > 0, result


def test_what_the_arena_says_of_itself_counts(
    connection: psycopg.Connection[tuple[object, ...]], journals: Path
) -> None:
    assert verify(connection, Journals(journals, []), ["an entry is on no list"]).unbalanced == 1


def test_a_call_whose_caller_died_may_have_been_done_or_not(
    connection: psycopg.Connection[tuple[object, ...]], journals: Path
) -> None:
    lines = (journals / "1-1").read_text().splitlines()
    last_answer = max(number for number, line in enumerate(lines) if line.startswith('["D"'))
    (journals / "1-1").write_text("\n".join(lines[:last_answer]) + '\n["D", 99')
    result = found(connection, journals)
    assert result.undecided == 1
    assert not any(result[:6]), result.examples
    connection.execute("DELETE FROM dead_letters")
    assert not any(found(connection, journals)[:6]), "the poisoned output was the undecided one"


def test_a_refused_call_must_not_have_been_done(
    connection: psycopg.Connection[tuple[object, ...]], journals: Path
) -> None:
    text = (journals / "1-1").read_text()
    lines = text.splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith('["D"'))
    lines[last] = f'["F",{lines[last].split(",")[1]}]'
    (journals / "1-1").write_text("\n".join(lines))
    assert found(connection, journals).duplicated > 0


def test_a_stall_counts_less_what_the_worker_was_stopped_or_waited_for_a_core_or_the_database_was_away(
    journals: Path,
) -> None:
    (journals / "77-1").write_text('["T",1,[]]\n["D",1,100.0,2.5,30]\n["T",2,[]]\n["D",2,200.0,0.25]\n')

    def stall(*windows: Window) -> float:
        return Journals(journals, windows).stall.milliseconds

    assert Journals(journals, []).stall == (2470, 77, 100.0)
    assert Journals(journals, []).longest_call_ms == 2500
    assert stall(Window(90.0, 99.9, "database"), Window(101.0, 102.0, "78"), Window(101.0, 102.0, "memory")) == 2470
    assert stall(Window(101.0, 102.0, "77")) == 1470
    assert stall(Window(101.0, 102.0, "database")) == 1470
    assert stall(Window(101.0, 102.0, "all")) == 1470
    assert stall(Window(101.0, 102.0, "database"), Window(99.0, 100.5, "77"), Window(101.5, 102.25, "77")) == 720
    assert stall(Window(99.0, 103.0, "database")) == 250, "the other call"
