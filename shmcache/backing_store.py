"""The database behind the arena, for misses: one connection, opened at the first of them, in the process that needs
it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg

from shmcache.database.connection import address, connect
from shmcache.errors import DatabaseUnavailable
from shmcache.patience import Abandoned, before_waiting, patience

T = TypeVar("T")
P = ParamSpec("P")

_TURN_SECONDS = 0.1


class BackingStore:
    """Loads from PostgreSQL. `on_wait` is called each time the connection makes this process wait."""

    def __init__(self, database_url: str, on_wait: Callable[[], None]) -> None:
        self._database_url = database_url
        self._on_wait = on_wait
        self._connection: psycopg.Connection[Any] | None = None
        self._owner_pid = 0
        self._turn = threading.Lock()
        _stores.add(self)

    def load(
        self, query: Callable[Concatenate[psycopg.Connection[Any], P], T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Run one of `shmcache.database.queries`' reads. A connection found dead is replaced once.

        Raises DatabaseUnavailable, and what `before_waiting` raises."""
        before_waiting()
        with self._turn if patience.of_this_thread is None else _Turns(self._turn):
            for last_try in (False, True):
                connection = self._open()
                try:
                    return query(connection, *arguments, **options)
                except Abandoned:
                    self._drop()  # a statement is under way on it
                    raise
                except psycopg.OperationalError as error:
                    self._drop()
                    if last_try:
                        raise DatabaseUnavailable(address(self._database_url), str(error).strip()) from None
            raise AssertionError("unreachable")

    def close(self) -> None:
        """Close the connection; the next load opens a new one."""
        with self._turn:
            self._drop()

    def _open(self) -> psycopg.Connection[Any]:
        if self._connection is not None and self._owner_pid != os.getpid():
            # Inherited by fork: the socket is the parent's. Closing it here would end the parent's session, so keep it.
            _inherited.append(self._connection)
            self._connection = None
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._database_url, application_name="shmcache worker", on_wait=self._on_wait)
            self._owner_pid = os.getpid()
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None and self._owner_pid == os.getpid():
            self._connection.close()
            self._connection = None


class _Turns:
    """A lock, waited for in turns: for who may be called off while it waits."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        while not self._lock.acquire(timeout=_TURN_SECONDS):
            before_waiting()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


_inherited: list[psycopg.Connection[Any]] = []
_stores: weakref.WeakSet[BackingStore] = weakref.WeakSet()


def _after_fork() -> None:
    for store in _stores:
        store._turn = threading.Lock()  # another thread of the parent's may have had it


os.register_at_fork(after_in_child=_after_fork)
