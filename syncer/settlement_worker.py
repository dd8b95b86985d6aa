"""What a process of the charge pool runs: batches of one partition of the users, one transaction each.

The pool's processes are spawned, so this module and what it imports is all that they load."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Sequence
from typing import Any

import psycopg
from setproctitle import setproctitle

from shmcache.database.bookkeeping import add_dead_letter
from shmcache.database.connection import connect
from shmcache.database.settlement import settle
from shmcache.errors import DatabaseUnavailable
from shmcache.writes import Charge
from syncer.refusals import write_around_refusals

_PR_SET_PDEATHSIG = 1

Item = tuple[int, int, bytes, Charge]
"""An entry of the charge ring: its sequence, kind and payload, and the charge that it holds."""

_connection: psycopg.Connection[Any] | None = None
_database_url = ""


def start(database_url: str, charger_pid: int) -> None:
    """Prepare a process of the pool: it dies with the charger, and leaves signals of the terminal to the supervisor."""
    global _database_url  # noqa: PLW0603 - one a process: what the pool's initializer is for
    _database_url = database_url
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setproctitle("shmcache: pool")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != charger_pid:
        os._exit(1)


def settle_partition(arena_id: str, ring: str, items: Sequence[Item]) -> int:
    """Settle some charges in one transaction; return how many became dead letters. Raises psycopg.Error."""
    global _connection  # noqa: PLW0603
    refused = 0
    if _connection is None or _connection.closed:
        try:
            _connection = connect(_database_url, application_name="shmcache charge pool")
        except DatabaseUnavailable as error:
            # An error with fields of its own does not survive the way to the charger.
            raise psycopg.OperationalError(str(error)) from None
    connection = _connection

    def write(some: Sequence[Item]) -> None:
        with connection.transaction():
            settle(connection, [charge for _, _, _, charge in some])

    def refuse(item: Item, error: Exception) -> None:
        nonlocal refused
        refused += 1
        sequence, kind, payload, _ = item
        add_dead_letter(connection, arena_id, ring, sequence, kind, payload, error)

    try:
        with connection.transaction():
            write_around_refusals(items, write, refuse)
    except psycopg.Error as error:
        connection.close()
        _connection = None
        raise psycopg.OperationalError(str(error)) from None
    return refused
