"""What the database refused: listed, shown, tried again, thrown away, by the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shmcache.arena import Arena, Transaction
from shmcache.arena.transaction import Append
from shmcache.codec import pack
from shmcache.config import load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.identifiers import new_id
from shmcache.writes import Charge, GraphExecutionWrite, NodeExecutionWrite
from syncer.charge_pool import ChargePool
from syncer.sync_manager import SyncManager
from tests.integration.test_clients import SINK, small_graph
from tests.integration.test_syncer_outage import append, outputs, values_of
from tools.cli import cli

Command = Callable[..., Any]


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"letters-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def invoke(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs `shmcache dead-letters ...`."""
    monkeypatch.setenv("SHMCACHE_DATABASE_URL", database_url)
    monkeypatch.setenv("SHMCACHE_STATE_DIR", str(tmp_path))
    return lambda *arguments, **options: CliRunner().invoke(
        cli, ["dead-letters", *map(str, arguments)], standalone_mode=False, **options
    )


@pytest.fixture
def told(invoke: Callable[..., Result]) -> Command:
    """Return a function that runs `shmcache dead-letters ... --json`; it returns (exit status, what was printed)."""

    def run(*arguments: Any) -> tuple[int, Any]:
        result = invoke(*arguments, "--json")
        assert result.exception is None, result.exception
        return result.return_value, json.loads(result.stdout)

    return run


def sync(arena: Arena, database_url: str, tmp_path: Path) -> None:
    SyncManager(arena, database_url, load_settings(state_dir=tmp_path)).run_once()


def orphans(arena: Arena, database_url: str, tmp_path: Path) -> tuple[str, str]:
    """Leave ten outputs behind whose execution the database refused; return the ids of execution and graph run."""
    graph, nodes = small_graph()
    with connect(database_url, application_name="test") as connection:
        queries.save_graph(connection, graph, nodes)
    run, identifier = new_id(), new_id()
    append(arena, NodeExecutionWrite(identifier, run, SINK, "RUNNING", 1.0, 1.0, 1.0, None, "{}"))
    append(arena, *outputs(identifier, 0, 10))
    sync(arena, database_url, tmp_path)
    return identifier, run


def test_what_lacked_its_parent_is_written_by_a_replay_once_the_parent_is_there(
    arena: Arena, database_url: str, tmp_path: Path, told: Command
) -> None:
    identifier, run = orphans(arena, database_url, tmp_path)
    _, letters = told("list")
    assert [(each["kind"], each["sqlstate"]) for each in letters] == [
        ("NODE_EXECUTION", "23503"), *[("OUTPUT", "23503")] * 10
    ]  # fmt: skip
    status, outcome = told("replay", "--all")
    assert (status, len(outcome["refused"]), outcome["written"]) == (1, 11, [])
    assert {each["tries"] for each in told("list")[1]} == {2}
    append(arena, GraphExecutionWrite(run, small_graph()[0].id, new_id(), "RUNNING", "{}", 1.0, 1.0, None, "{}"))
    sync(arena, database_url, tmp_path)
    ids = [each["id"] for each in letters]
    assert told("replay", *ids) == (0, {"written": ids, "refused": {}, "missing": []})
    assert values_of(database_url, identifier) == list(range(10))
    assert told("list") == (0, [])
    assert told("replay", ids[0]) == (1, {"written": [], "refused": {}, "missing": [ids[0]]})
    assert values_of(database_url, identifier) == list(range(10))


def test_a_replayed_status_does_not_take_an_execution_back(
    arena: Arena, database_url: str, tmp_path: Path, told: Command
) -> None:
    identifier, run = orphans(arena, database_url, tmp_path)
    append(
        arena,
        GraphExecutionWrite(run, small_graph()[0].id, new_id(), "RUNNING", "{}", 1.0, 1.0, None, "{}"),
        NodeExecutionWrite(identifier, run, SINK, "TERMINATED", 1.0, 1.0, 1.0, 2.0, "{}", 1),
        NodeExecutionWrite(identifier, run, SINK, "QUEUED", 1.0, 3.0, 1.0, None, "{}", 2),
    )
    sync(arena, database_url, tmp_path)
    assert told("replay", "--all")[0] == 0
    with connect(database_url, application_name="test") as connection:
        found = queries.load_node_execution(connection, identifier)
    assert found is not None
    assert (found.status, found.queued_at, len(found.outputs["out"])) == ("QUEUED", 3.0, 10)


def test_an_entry_that_cannot_be_read_is_shown_as_bytes_and_never_replayed(
    arena: Arena, database_url: str, tmp_path: Path, told: Command, invoke: Callable[..., Result]
) -> None:
    nonsense = Transaction()
    nonsense.operations += [Append("write", 99, b"\xc1nonsense"), Append("write", 4, b"\x91\xc1nonsense")]
    arena.commit(nonsense)
    sync(arena, database_url, tmp_path)
    with connect(database_url, application_name="test") as connection:
        # As an entry is kept whose checksum did not hold, though its bytes happen to be readable.
        connection.execute(
            "INSERT INTO dead_letters (arena_id, ring, sequence, kind, payload, error, intact)"
            " VALUES (%s, 'write', 7, 4, %s, 'damaged', false)",
            (new_id(), b"\x95\xa1a\x00\xa1b\xa1c\xcb" + bytes(8)),
        )
    _, letters = told("list")
    assert [each["kind"] for each in letters] == ["(99)", "OUTPUT", "damaged (4)"]
    for letter in letters:
        _, shown = told("show", letter["id"])
        assert shown["entry"] is None
        assert shown["undecodable"]
        assert shown["payload_hex"] in (
            b"\xc1nonsense".hex(),
            b"\x91\xc1nonsense".hex(),
            "95a16100a162a163cb" + "00" * 8,
        )
    assert "c1 6e 6f 6e 73 65 6e 73 65" in invoke("show", letters[0]["id"]).stdout
    status, outcome = told("replay", "--all")
    assert (status, len(outcome["refused"])) == (1, 3)


def test_a_refused_charge_is_settled_by_a_replay_once(
    arena: Arena, database_url: str, tmp_path: Path, told: Command
) -> None:
    user = new_id()
    charge = Charge("key", user, 20, "spend", None, None, 1.0, "{}")
    wanted = Transaction()
    wanted.operations.append(Append("charge", 1, pack(charge)))
    arena.commit(wanted)
    ChargePool(arena, database_url, load_settings(state_dir=tmp_path)).run_once()
    letter = told("list", "--ring", "charge")[1][0]
    assert told("list", "--ring", "write") == (0, [])
    assert told("show", letter["id"])[1]["entry"]["amount"] == 20
    with connect(database_url, application_name="test") as connection:
        queries.create_account(connection, user, 100)
        assert told("replay", letter["id"])[0] == 0
        assert told("replay", "--all") == (0, {"written": [], "refused": {}, "missing": []})
        account = queries.load_account(connection, user)
    assert account is not None
    assert account.balance == 80


def test_discarded_letters_are_gone_and_all_of_them_only_after_a_yes(
    arena: Arena, database_url: str, tmp_path: Path, told: Command, invoke: Callable[..., Result]
) -> None:
    orphans(arena, database_url, tmp_path)
    first = told("list", "--limit", "1")[1][0]["id"]
    assert told("discard", first, 1 << 60) == (1, {"discarded": [first], "missing": [1 << 60]})
    assert invoke("discard", "--all", input="n\n").exception is not None
    assert len(told("list")[1]) == 10
    assert len(told("discard", "--all", "--yes")[1]["discarded"]) == 10
    assert told("list") == (0, [])


def test_the_tables_say_what_there_is(
    arena: Arena, database_url: str, tmp_path: Path, invoke: Callable[..., Result]
) -> None:
    assert invoke("list").stdout == "no dead letters\n"
    identifier, _ = orphans(arena, database_url, tmp_path)
    listed = invoke("list", "--limit", "5").stdout
    assert listed.count("23503") == 5
    assert "--limit shows more than 5" in listed
    assert identifier in invoke("show", "1").stdout
    assert "1: refused again: there is no graph execution" in invoke("replay", "1").stdout
    assert invoke("discard", "1", "2").stdout == "2 discarded, 0 not there\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", 1), "no dead letter 1"),
        (("replay",), "--all"),
        (("replay", 1, "--all"), "--all"),
        (("discard",), "--all"),
    ],
)
def test_a_command_that_cannot_be_carried_out_is_one_clear_error(
    invoke: Callable[..., Result], arguments: tuple[Any, ...], said: str
) -> None:
    assert said in str(invoke(*arguments).exception)
