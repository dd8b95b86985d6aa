"""What a platform hangs on accounts, through the entry points of a package that is really there."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database.accounts import top_up
from shmcache.database.connection import connect
from shmcache.direct_client import DirectClient
from shmcache.errors import InsufficientBalanceError
from shmcache.identifiers import new_id
from shmcache.work_queue import WorkQueue
from syncer.callbacks import deliver_notices, load_callbacks
from tests.integration.charging import (
    PER_RUN,
    begin,
    charge_until_asked,
    differences,
    open_account,
    priced_graph,
    queued,
    standing,
    wait_for,
)

_FORK = multiprocessing.get_context("fork")
OPENING = 1_000

PLATFORM = """
import json, os, signal, time

HERE = os.path.dirname(__file__)

def tell(*what):
    with open(os.path.join(HERE, "told"), "a") as told:
        told.write(json.dumps(what) + "\\n")

def low_balance(user_id, balance, threshold, notice_id):
    tell("low", user_id, balance, threshold, notice_id)
    if os.path.exists(os.path.join(HERE, "fails")):
        os.remove(os.path.join(HERE, "fails"))
        raise RuntimeError("no mail today")

def insufficient_funds(user_id, graph_id, graph_exec_id, balance, amount, notice_id):
    tell("insufficient", user_id, graph_id, graph_exec_id, balance, amount)

def top_up(user_id, balance, transaction_key):
    tell("top_up", user_id, balance, transaction_key)
    if os.path.exists(os.path.join(HERE, "dies")):
        os.remove(os.path.join(HERE, "dies"))
        os.kill(os.getpid(), signal.SIGKILL)
    amount = os.path.join(HERE, "amount")
    return int(open(amount).read()) if os.path.exists(amount) else None
"""


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with callbacks, as if it was installed; returns its directory."""
    name = f"platform_{new_id().replace('-', '')}"
    (tmp_path / f"{name}.py").write_text(PLATFORM)
    about = tmp_path / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    points = "".join(f"{each} = {name}:{each}\n" for each in ("low_balance", "insufficient_funds", "top_up"))
    (about / "entry_points.txt").write_text(f"[shmcache.callbacks]\n{points}surprise = {name}:tell\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop(name, None)


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"callbacks-{os.getpid()}", 16 << 20)
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path, sync_interval=0.2, low_balance=200)


@pytest.fixture
def user(database_url: str) -> str:
    return open_account(database_url, OPENING)


@pytest.fixture
def client(arena: Arena, database_url: str, settings: Settings) -> Iterator[CachedClient]:
    made = CachedClient(arena, database_url, settings)
    yield made
    made.close()


class Chargers:
    """Chargers in processes of their own, one after another."""

    def __init__(self, *arguments: Any) -> None:
        self._arguments = arguments
        self._process: Any = None

    def start(self) -> None:
        """Start one."""
        self._process = _FORK.Process(target=charge_until_asked, args=self._arguments)
        self._process.start()

    def wait(self) -> int | None:
        """Wait for its end; return its exit code."""
        self._process.join(60)
        code: int | None = self._process.exitcode
        return code

    def stop(self) -> None:
        """Ask it to end."""
        if self._process is not None and self._process.is_alive():
            self._process.terminate()
            if self.wait() is None:
                self._process.kill()
                self._process.join()


@pytest.fixture
def chargers(platform: Path, arena: Arena, database_url: str, settings: Settings) -> Iterator[Chargers]:
    made = Chargers(arena, database_url, settings)
    yield made
    made.stop()


def told(platform: Path, kind: str | None = None) -> list[list[Any]]:
    path = platform / "told"
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return [each for each in found if kind is None or each[0] == kind]


def undelivered(database_url: str) -> int:
    with connect(database_url, application_name="test") as connection:
        row = connection.execute("SELECT count(*) FROM notices WHERE delivered_at IS NULL").fetchone()
    assert row is not None
    return int(row[0])


def test_callbacks_are_found_and_what_is_none_is_left_out(platform: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert set(load_callbacks()) == {"low_balance", "insufficient_funds", "top_up"}
    assert "surprise" in caplog.text


def test_a_low_balance_is_told_once_for_each_crossing(
    client: CachedClient, user: str, platform: Path, chargers: Chargers, database_url: str
) -> None:
    chargers.start()
    client.spend_credits(user, 800)
    wait_for(lambda: standing(database_url, user)[0] == 200)
    assert told(platform) == [], "not below it yet"
    client.spend_credits(user, 1)
    wait_for(lambda: told(platform, "low"))
    for _ in range(5):
        client.spend_credits(user, 1)
    wait_for(lambda: standing(database_url, user)[0] == 194)
    chargers.stop()
    chargers.start()  # a charger that begins tells nothing anew
    with connect(database_url, application_name="test") as connection:
        top_up(connection, user, 100, "card")
        wait_for(lambda: client.get_credits(user) == 294)
        connection.execute("UPDATE accounts SET balance = 150 WHERE user_id = %s", (user,))  # another system charges
    wait_for(lambda: len(told(platform, "low")) == 2)
    chargers.stop()
    assert [each[1:4] for each in told(platform, "low")] == [[user, 199, 200], [user, 150, 200]]
    assert undelivered(database_url) == 0


def test_insufficient_funds_are_told_once_a_user_and_graph_until_topped_up(
    client: CachedClient, user: str, platform: Path, chargers: Chargers, database_url: str
) -> None:
    chargers.start()
    graph = priced_graph()[0].id
    client.spend_credits(user, OPENING - 2)
    runs = [client.create_graph_execution(graph, user).id for _ in range(2)]

    def refused(run: str) -> None:
        execution = queued(client, run, PER_RUN)
        with pytest.raises(InsufficientBalanceError):
            begin(client, execution)
        with pytest.raises(InsufficientBalanceError):
            client.charge_usage(execution, 1)

    for run in runs:
        refused(run)
    wait_for(lambda: told(platform, "insufficient"))
    with pytest.raises(InsufficientBalanceError):
        client.spend_credits(user, 50)
    wait_for(lambda: len(told(platform, "insufficient")) == 2)
    with connect(database_url, application_name="test") as connection:
        top_up(connection, user, 1, "card")
    wait_for(lambda: client.get_credits(user) == 3)
    client.spend_credits(user, 3)
    refused(runs[0])
    wait_for(lambda: len(told(platform, "insufficient")) == 3)
    chargers.stop()
    assert told(platform, "insufficient") == [
        ["insufficient", user, graph, runs[0], 2, 3],
        ["insufficient", user, None, None, 2, 50],
        ["insufficient", user, graph, runs[0], 0, 3],
    ]


def test_an_automatic_top_up_is_one_at_a_time_with_its_own_key_also_when_the_charger_dies_in_it(
    client: CachedClient, user: str, platform: Path, chargers: Chargers, arena: Arena, database_url: str
) -> None:
    (platform / "amount").write_text("5000")
    (platform / "dies").touch()
    chargers.start()
    client.spend_credits(user, OPENING - 1)
    with pytest.raises(InsufficientBalanceError):
        client.spend_credits(user, 2)
    assert chargers.wait() == -signal.SIGKILL
    chargers.start()
    wait_for(lambda: client.get_credits(user) == 5_001)
    wait_for(lambda: undelivered(database_url) == 0)
    chargers.stop()
    keys = {each[3] for each in told(platform, "top_up")}
    assert len(told(platform, "top_up")) == 2
    assert len(keys) == 1, "asked again under the same key"
    with connect(database_url, application_name="test") as connection:
        rows = connection.execute(
            "SELECT transaction_key, amount FROM ledger WHERE reason = 'automatic top-up'"
        ).fetchall()
    assert rows == [(keys.pop(), 5_000)]
    assert differences(arena, database_url) == []


def test_a_callback_that_raises_is_called_again_with_the_same_notice(
    client: CachedClient, user: str, platform: Path, chargers: Chargers, database_url: str
) -> None:
    (platform / "fails").touch()
    chargers.start()
    client.spend_credits(user, OPENING - 1)
    wait_for(lambda: len(told(platform, "low")) == 2)
    wait_for(lambda: undelivered(database_url) == 0)
    chargers.stop()
    first, second = told(platform, "low")
    assert first == second


def _deliver_until_asked(database_url: str) -> None:
    stop = False

    def ask(_number: int, _frame: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, ask)
    deliver_notices(database_url, lambda: stop)


def test_what_the_direct_client_charges_and_cannot_charge_is_told_too(
    user: str, platform: Path, arena: Arena, database_url: str, settings: Settings
) -> None:
    direct = DirectClient(database_url, work_queue=WorkQueue(arena), settings=settings, on_wait=lambda: None)
    graph, nodes = priced_graph()
    with direct as client:
        client.save_graph(graph, nodes)
        client.spend_credits(user, OPENING - 2)
        run = client.create_graph_execution(graph.id, user).id
        execution = queued(client, run, PER_RUN)
        for _ in range(2):
            with pytest.raises(InsufficientBalanceError):
                client.atomically(lambda: begin(client, execution))
            with pytest.raises(InsufficientBalanceError):
                client.charge_usage(execution, 1)
        process = _FORK.Process(target=_deliver_until_asked, args=(database_url,))
        process.start()
        wait_for(lambda: len(told(platform)) >= 3)
        wait_for(lambda: undelivered(database_url) == 0)
        process.terminate()
        process.join(60)
    assert process.exitcode == 0
    assert told(platform, "insufficient") == [["insufficient", user, graph.id, run, 2, 3]]
    assert [each[1:4] for each in told(platform, "low")] == [[user, 2, 200]]


def test_one_that_tries_again_and_again_leaves_one_notice_on_the_ring(
    client: CachedClient, user: str, arena: Arena
) -> None:
    client.spend_credits(user, OPENING - 2)
    before = arena.charge_ring.last_sequence
    for _ in range(50):
        with pytest.raises(InsufficientBalanceError):
            client.spend_credits(user, 3)
    assert arena.charge_ring.last_sequence == before + 1
