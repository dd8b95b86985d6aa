"""Faults made for real: what the server is waiting for is awaited, with the proxy of the chaos run before it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from shmcache.database.connection import connect

_TURN_SECONDS = 0.02
_LIMIT_SECONDS = 60.0


def await_blocked(database_url: str) -> None:
    """Wait until a session of this database waits for another one's lock."""
    query = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with connect(database_url, application_name="test") as looking:
        await_true(lambda: looking.execute(query).fetchone() is not None)


def await_true(there: Callable[[], bool]) -> None:
    """Wait until a condition holds, within a generous limit."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not there():
        assert time.monotonic() < deadline, "it never came"
        threading.Event().wait(_TURN_SECONDS)
