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
from shmcache.writes import Charge
from syncer.refusals import write_around_refusals

_PR_SET_PDEATHSIG = 1

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


def settle_partition(arena_id: str, ring: str, entries: Sequence[tuple[int, int, bytes, Charge]]) -> int:
    """Settle some charges in one transaction; return how many became dead letters. Raises psycopg.Error."""
    global _connection  # noqa: PLW0603
    refused = 0
    if _connection is None or _connection.closed:
        _connection = connect(_database_url, application_name="shmcache charge pool")
    connection = _connection

    def write(items: Sequence[tuple[int, int, bytes, Charge]]) -> None:
        with connection.transaction():
            settle(connection, [charge for _, _, _, charge in items])

    def refuse(item: tuple[int, int, bytes, Charge], error: psycopg.Error) -> None:
        nonlocal refused
        refused += 1
        sequence, kind, payload, _ = item
        add_dead_letter(connection, arena_id, ring, sequence, kind, payload, error)

    try:
        with connection.transaction():
            write_around_refusals(entries, write, refuse)
    except psycopg.Error:
        connection.close()
        _connection = None
        raise
    return refused
