"""How a worker comes by its client: `get_db_client()`, after a fork or in a process of its own.

A supervisor calls `prepare` before it forks: its children inherit the mapping. It also hands the arena's name and the
database's address on in the environment, where a process that is started anew (spawn, forkserver, another program)
finds them, whatever its file of settings says.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from shmcache.arena import Arena, Counter
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.errors import SettingsError
from shmcache.execution_data_client import ExecutionDataClient
from shmcache.setting_layers import hand_on
from shmcache.work_queue import WorkQueue


class _Prepared(NamedTuple):
    arena: Arena
    database_url: str
    settings: Settings


_prepared: _Prepared | None = None
_clients: dict[int, ExecutionDataClient] = {}
_turn = threading.Lock()


def prepare(arena: Arena, database_url: str, settings: Settings) -> None:
    """Say which arena, database and settings the clients of this process and of those it forks shall use."""
    global _prepared  # noqa: PLW0603 - one a process, by intent: forked workers find it here
    _prepared = _Prepared(arena, database_url, settings)
    _clients.clear()
    hand_on(arena=arena.name, database_url=database_url, mode=settings.mode)


def prepared_arena() -> Arena:
    """Return the arena that `prepare` named, or that the first client attached to. Raises SettingsError."""
    if _prepared is None:
        raise SettingsError("this process has no arena yet: call get_db_client() first")
    return _prepared.arena


def forget() -> None:
    """Undo `prepare` in this process: close its client, keep nothing of the arena."""
    global _prepared  # noqa: PLW0603
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
        from shmcache.direct_client import DirectClient

        return DirectClient(
            database_url,
            work_queue=WorkQueue(arena),
            settings=settings,
            on_wait=lambda: arena.count(Counter.BLOCKING_DB_OPERATIONS),
        )
    return CachedClient(arena, database_url, settings)


def _after_fork() -> None:
    global _turn  # noqa: PLW0603
    _turn = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
