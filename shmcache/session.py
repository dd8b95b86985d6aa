"""How a worker comes by its client: `get_db_client()`, after a fork or in a process of its own.

A supervisor calls `prepare` before it forks: its children inherit the mapping. It also leaves the arena's name and the
database's address in the environment, where a process that is started anew (spawn, forkserver, another program) finds
them.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from shmcache.arena import Arena, Counter
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.errors import SettingsError
from shmcache.execution_data_client import ExecutionDataClient
from shmcache.work_queue import WorkQueue

if TYPE_CHECKING:
    from shmcache.async_execution_data_client import AsyncExecutionDataClient
    from shmcache.direct_client import DirectClient


class _Prepared(NamedTuple):
    arena: Arena
    database_url: str
    settings: Settings


_prepared: _Prepared | None = None
_clients: dict[int, ExecutionDataClient] = {}
_async_clients: dict[int, AsyncExecutionDataClient] = {}
_turn = threading.Lock()


def prepare(arena: Arena, database_url: str, settings: Settings) -> None:
    """Say which arena, database and settings the clients of this process and of those it forks shall use."""
    global _prepared  # noqa: PLW0603 - one a process, by intent: forked workers find it here
    _prepared = _Prepared(arena, database_url, settings)
    _clients.clear()
    _async_clients.clear()
    os.environ["SHMCACHE_ARENA"] = arena.name
    os.environ["SHMCACHE_DATABASE_URL"] = database_url
    os.environ["SHMCACHE_MODE"] = settings.mode


def prepared_arena() -> Arena:
    """Return the arena that `prepare` named, or that the first client attached to. Raises SettingsError."""
    if _prepared is None:
        raise SettingsError("this process has no arena yet: call get_db_client() first")
    return _prepared.arena


def forget() -> None:
    """Undo `prepare` in this process: close its client, keep nothing of the arena."""
    global _prepared  # noqa: PLW0603
    asynchronous = _async_clients.pop(os.getpid(), None)
    if asynchronous is not None:
        asynchronous.stop()
    client = _clients.pop(os.getpid(), None)
    if client is not None:
        client.close()
    _prepared = None


def get_db_client() -> ExecutionDataClient:
    """Return this process's client: cached or direct, as its settings say. The first call makes it.

    In a worker that a supervisor forked no set-up is needed; elsewhere SHMCACHE_ARENA and SHMCACHE_DATABASE_URL name
    what to attach to. Raises ArenaMissing, ArenaUnusable, SettingsError."""
    client = _clients.get(os.getpid())
    if client is None:
        with _turn:
            client = _clients.get(os.getpid())
            if client is None:
                client = _clients[os.getpid()] = _make_client()
    return client


def get_db_async_client() -> AsyncExecutionDataClient:
    """Return this process's client for event loops, whose calls are coroutines; all its loops may use the one.

    The first call makes it, as `get_db_client` does, with which it shares everything. Raises as that."""
    client = _async_clients.get(os.getpid())
    if client is None:
        shared = get_db_client()
        with _turn:
            client = _async_clients.get(os.getpid())
            if client is None:
                client = _async_clients[os.getpid()] = _make_async_client(shared)
    return client


def _make_async_client(shared: ExecutionDataClient) -> AsyncExecutionDataClient:
    from shmcache.async_clients import CachedAsyncClient, DirectAsyncClient

    if isinstance(shared, CachedClient):
        return CachedAsyncClient(shared)
    return DirectAsyncClient(_make_direct_client, prepared_arena())


def _make_client() -> ExecutionDataClient:
    global _prepared  # noqa: PLW0603
    if _prepared is None:
        settings = load_settings()
        if settings.database_url is None:
            raise SettingsError("SHMCACHE_DATABASE_URL: not set, and no supervisor started this process")
        arena = Arena.attach(settings.arena, lock_wait=settings.lock_wait, ring_wait=settings.ring_wait)
        _prepared = _Prepared(arena, settings.database_url, settings)
    arena, database_url, settings = _prepared
    if settings.mode == "direct":
        return _make_direct_client()
    return CachedClient(arena, database_url, settings)


def _make_direct_client() -> DirectClient:
    from shmcache.direct_client import DirectClient

    assert _prepared is not None, "a client before its arena"
    arena, database_url, settings = _prepared
    return DirectClient(
        database_url,
        work_queue=WorkQueue(arena),
        settings=settings,
        on_wait=lambda: arena.count(Counter.BLOCKING_DB_OPERATIONS),
    )


def _after_fork() -> None:
    global _turn  # noqa: PLW0603
    _turn = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
