"""SIGKILL among workers, charger and pool, under load: what was acknowledged is in the ledger, once, and nothing else.

CHARGE_KILLS=500 for the long run, CHARGE_SEED for another schedule."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path

import psutil
import pytest

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database.accounts import top_up
from shmcache.database.connection import connect
from shmcache.errors import InsufficientBalanceError
from shmcache.identifiers import new_id
from shmcache.records import ExecutionStatus
from syncer.charge_pool import ChargePool
from syncer.holds import close_all_holds
from syncer.sync_manager import SyncManager
from tests.integration.charging import (
    PER_RUN,
    PER_SECOND,
    begin,
    differences,
    open_account,
    priced_graph,
    queued,
    settle_now,
    wait_for,
)

_FORK = multiprocessing.get_context("fork")
KILLS = int(os.environ.get("CHARGE_KILLS", "25"))
SEED = int(os.environ.get("CHARGE_SEED", "1"))
WORKERS = 3
S = ExecutionStatus


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"campaign-{os.getpid()}", 64 << 20)
    yield made
    made.close()
    made.unlink()


class Family:
    """Processes that are started again when they are killed."""

    def __init__(self, bodies: dict[str, Callable[[], None]]) -> None:
        self._bodies = bodies
        self._processes: dict[str, ForkProcess] = {}
        self.kills: dict[str, int] = {}

    def start(self, name: str) -> None:
        """Start a process, or start it again."""
        process = self._processes[name] = _FORK.Process(target=self._bodies[name])
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until its own handler is there
        process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def kill(self, name: str) -> None:
        """Kill a process, or a child of it ("pool"), and start it again."""
        self.kills[name] = self.kills.get(name, 0) + 1
        if name == "pool":
            pid = self._processes["charger"].pid
            pool = [each for each in psutil.Process(pid).children(recursive=True) if "pool" in each.name()]
            if pool:
                pool[0].kill()
            return
        process = self._processes[name]
        process.kill()
        process.join()
        self.start(name)

    def stop(self, *names: str) -> None:
        """Ask processes to end, and wait until they have."""
        for name in names:
            self._processes[name].terminate()
        for name in names:
            self._processes[name].join(120)
            assert self._processes[name].exitcode == 0, name

    def end(self) -> None:
        """End what is left."""
        for process in self._processes.values():
            if process.is_alive():
                process.kill()
                process.join()


def _until_asked(run: Callable[[Callable[[], bool]], None]) -> Callable[[], None]:
    """Return the body of a process that works until SIGTERM."""

    def body() -> None:
        stop = False

        def ask(*_: object) -> None:
            nonlocal stop
            stop = True

        signal.signal(signal.SIGTERM, ask)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        try:
            run(lambda: stop)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    return body


class Journal:
    """What a worker means to charge, and what was acknowledged: lines in a file that its death does not take along."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - for as long as the process
        self._file.write("\n")  # the last writer may have been killed within a line

    def note(self, *what: object) -> None:
        """Write a line."""
        self._file.write(json.dumps(what) + "\n")


def _work(
    arena: Arena, database_url: str, settings: Settings, users: list[str], journal: Path, stop: Callable[[], bool]
) -> None:
    client = CachedClient(arena, database_url, settings)
    notes = Journal(journal)
    dice = random.Random(os.getpid())
    runs = {user: client.create_graph_execution(priced_graph()[0].id, user).id for user in users}
    while not stop():
        user = dice.choice(users)
        amount = dice.randrange(1, 30)
        try:
            if dice.random() < 0.5:
                key = new_id()
                notes.note("means", key, user, amount)
                client.spend_credits(user, amount, None, key)
                notes.note("done", key)
                if dice.random() < 0.2:
                    client.spend_credits(user, amount, None, key)
                continue
            node = dice.choice((PER_RUN, PER_SECOND))
            execution = queued(client, runs[user], node, seconds=dice.randrange(1, 4))
            key = f"{execution.id}:block"
            notes.note("means", key, user, None)
            begin(client, execution, client.increment_execution_count(user, execution.id))
            ended = client.update_node_execution_status(execution.id, S.COMPLETED, None, {"seconds": amount / 10})
            notes.note("ended", key, ended.stats["cost"])
        except InsufficientBalanceError:
            notes.note("refused", key)
            time.sleep(0.001)
    client.close()


def test_no_kill_loses_or_doubles_a_charge(arena: Arena, database_url: str, tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path, sync_interval=0.2, execution_fee_every=10, execution_fee=2)
    users = [open_account(database_url, opening) for opening in (100, 5_000, 100_000, 10_000_000)]
    journals = [tmp_path / f"journal-{number}" for number in range(WORKERS)]
    bodies: dict[str, Callable[[], None]] = {
        f"worker-{number}": _until_asked(
            lambda stop, journal=journals[number]: _work(arena, database_url, settings, users, journal, stop)  # type: ignore[misc]
        )
        for number in range(WORKERS)
    }
    bodies["charger"] = _until_asked(lambda stop: ChargePool(arena, database_url, settings).run(stop))
    bodies["syncer"] = _until_asked(lambda stop: SyncManager(arena, database_url, settings).run(stop))
    family = Family(bodies)
    dice = random.Random(SEED)
    workers = [f"worker-{number}" for number in range(WORKERS)]
    try:
        for name in bodies:
            family.start(name)
        wait_for(lambda: arena.charge_ring.committed_sequence > 100)
        for number in range(KILLS):
            time.sleep(dice.uniform(0.01, 0.15))  # when, not whether: nothing is waited for
            family.kill(dice.choice([*workers, *workers, "pool", "charger"]))
            arena.release_dead()
            if not number % 10:
                with connect(database_url, application_name="test") as connection:
                    top_up(connection, users[0], 50, f"card {number}")
                # Once in a while the charger gets to the end of the ring between its deaths.
                wait_for(lambda seen=arena.charge_ring.last_sequence: arena.charge_ring.committed_sequence >= seen)  # type: ignore[misc]
        family.stop(*workers)
        wait_for(lambda: arena.charge_ring.committed_sequence == arena.charge_ring.last_sequence)
        close_all_holds(arena, database_url, settings)
        family.stop("charger", "syncer")
    finally:
        family.end()
    settle_now(arena, database_url, settings)
    assert arena.check() == []
    assert differences(arena, database_url) == []
    _compare(journals, database_url)


def _compare(journals: list[Path], database_url: str) -> None:
    with connect(database_url, application_name="test") as connection:
        charges = "SELECT transaction_key, owed - amount FROM ledger WHERE reason NOT IN ('top-up', 'debt')"
        rows = dict(connection.execute(charges).fetchall())
        letters = connection.execute("SELECT count(*) FROM dead_letters").fetchone()
        accounts = connection.execute("SELECT balance, held FROM accounts").fetchall()
    assert letters == (0,)
    assert all(balance >= 0 and held == 0 for balance, held in accounts)
    means: dict[str, int | None] = {}
    for journal in journals:
        for line in journal.read_text().splitlines():
            try:
                what, key, *rest = json.loads(line)
            except ValueError:
                continue  # empty, or its writer was killed in the middle of it
            if what == "means":
                means[key] = rest[1]
            elif what == "done":
                assert rows.get(key) == means[key], "an acknowledged charge is in the ledger"
            elif what == "ended":
                assert rows.get(key, 0) == rest[0], "what an execution says it cost is in the ledger"
            else:
                assert key not in rows, "what was refused is not charged"
    for key, amount in rows.items():
        if not key.endswith(":fee"):
            assert key in means
            assert means[key] in (None, amount)
    assert len(rows) > 100
