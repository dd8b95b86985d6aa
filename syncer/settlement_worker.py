"""What a process of the charge pool runs: batches of one partition of the users, one transaction each.

The pool's processes are spawned, so this module and what it imports is all that they load.

    1  connect   if there is no connection                  death, loss: the charger tries the batch again
    2  settle    rows, holds and balances of the partition  death, loss: the server rolls all of it back
                 (what a lost graph execution would charge for executions that only this host knew is refused)
    3  commit    all of it at once                          death, loss after it: known by the keys when tried again
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import msgpack
import psycopg
from setproctitle import setproctitle

from shmcache.database.bookkeeping import add_dead_letter
from shmcache.database.connection import connect
from shmcache.database.ownership import lost_charges
from shmcache.database.settlement import Shortfall, settle
from shmcache.errors import DatabaseUnavailable
from shmcache.writes import Charge
from syncer.refusals import write_around_refusals

_PR_SET_PDEATHSIG = 1

Item = tuple[int, int, bytes]
"""An entry of the charge ring that carries a Charge: its sequence, kind and payload."""

_connection: psycopg.Connection[Any] | None = None
_database_url = ""


class Partition(NamedTuple):
    """Some users' entries, in order, and whose they are."""

    arena_id: str
    ring: str
    low_balance: int
    items: Sequence[Item]


class Settled(NamedTuple):
    """What came of a partition: how many entries became dead letters, and what could not be paid."""

    refused: int
    shortfalls: list[Shortfall]


def serve(pipe: Connection, database_url: str, charger_pid: int) -> None:
    """Be a process of the pool: say that it is there, settle what comes through a pipe, answer, until it ends.

    It dies with the charger, and leaves signals of the terminal to the supervisor."""
    _start(database_url, charger_pid)
    try:
        pipe.send(None)
    except OSError:
        return  # the charger has left already: it had nothing to settle
    setproctitle("shmcache: pool")
    while True:
        try:
            partition = pipe.recv()
        except (EOFError, OSError):
            return
        answer: Settled | Exception
        try:
            answer = settle_partition(partition)
        except Exception as error:  # whatever it is, it is the charger's to decide about
            answer = error
        try:
            pipe.send(answer)
        except OSError:
            return
        except Exception as error:  # one that cannot be pickled
            pipe.send(RuntimeError(f"{type(answer).__name__}: {answer} ({error})"))


def _start(database_url: str, charger_pid: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != charger_pid:
        os._exit(1)
    use(database_url)


def use(database_url: str) -> None:
    """Say where this process settles."""
    global _database_url  # noqa: PLW0603
    _database_url = database_url


def leave() -> None:
    """Close the connection that this process settles by, if it has one."""
    global _connection  # noqa: PLW0603
    if _connection is not None:
        _connection.close()
    _connection = None


def settle_partition(partition: Partition) -> Settled:
    """Settle a partition in one transaction. Raises psycopg.OperationalError where it is to be tried again."""
    global _connection  # noqa: PLW0603
    arena_id, ring, low_balance, items = partition
    charges = {sequence: (kind, Charge(*msgpack.unpackb(payload))) for sequence, kind, payload in items}
    shortfalls: list[Shortfall] = []
    refused = 0

    try:
        if _connection is None or _connection.closed:
            _connection = connect(_database_url, application_name="shmcache charge pool")
        connection = _connection

        def write(some: Sequence[Item]) -> None:
            with connection.transaction():
                found = settle(
                    connection, [charges[item[0]] for item in some], arena_id=arena_id, low_balance=low_balance
                )
            shortfalls.extend(found)

        def refuse(item: Item, error: Exception) -> None:
            nonlocal refused
            refused += 1
            add_dead_letter(connection, arena_id, ring, *item, error)

        with connection.transaction():
            # Who hears of the changes knows by this that they are its own. For this transaction: the session may be
            # another's afterwards.
            connection.execute("SELECT set_config('shmcache.origin', %s, true)", (arena_id,), prepare=True)
            lost = lost_charges(connection, arena_id, [(sequence, charges[sequence][1]) for sequence, *_ in items])
            for item in items:
                if item[0] in lost:
                    refuse(item, lost[item[0]])
            write_around_refusals([item for item in items if item[0] not in lost], write, refuse)
    except (psycopg.Error, DatabaseUnavailable) as error:
        if _connection is not None:
            _connection.close()
            _connection = None
        # An error with fields of its own does not survive the way to the charger.
        raise psycopg.OperationalError(str(error)) from None
    return Settled(refused, shortfalls)
