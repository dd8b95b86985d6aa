"""How a worker comes by its client: `get_db_client()`, after a fork or in a process of its own.

A supervisor calls `prepare` before it forks: its children inherit the mapping. It also hands the arena's name and the
database's address on in the environment, where a process that is started anew (spawn, forkserver, another program)
finds them, whatever its file of settings says.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from shmcache.arena import Arena, Counter, list_arenas
from shmcache.cached_client import CachedClient
from shmcache.config import Settings, load_settings
from shmcache.database.connection import with_table_set
from shmcache.errors import ArenaEnded, ArenaMissing, SettingsError
from shmcache.execution_data_client import ExecutionDataClient
from shmcache.progress import beat_with
from shmcache.setting_layers import hand_on
from shmcache.work_queue import WorkQueue

if TYPE_CHECKING:
    from shmcache.asynchronous.execution_data_client import AsyncExecutionDataClient
    from shmcache.direct_client import DirectClient

logger = logging.getLogger(__name__)


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
    beat_with(arena.beat)
    _clients.clear()
    _async_clients.clear()
    hand_on(arena=arena.name, database_url=database_url, mode=settings.mode)


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
    beat_with(None)
    _prepared = None


def get_db_client() -> ExecutionDataClient:
    """Return this process's client: cached, direct or shadow, as its settings say. The first call makes it.

    In a worker that a supervisor forked no set-up is needed; elsewhere (a web server, Celery) `shmcache serve` runs
    beside, and SHMCACHE_ARENA and SHMCACHE_DATABASE_URL, or what both are without them, name what to attach to. Raises
    ArenaMissing, ArenaUnusable, SettingsError."""
    client = _clients.get(os.getpid())
    if client is None:
        with _turn:
            client = _clients.get(os.getpid())
            if client is None:
                client = _clients[os.getpid()] = _make_client()
    return client


def leave_address(state_dir: Path, arena_name: str, database_url: str) -> None:
    """Leave the address of an embedded server where the clients of an arena find it."""
    path = _address_path(state_dir, arena_name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(database_url, encoding="utf-8")
    partial.replace(path)


def remove_address(state_dir: Path, arena_name: str) -> None:
    """Remove what `leave_address` left, if it did."""
    _address_path(state_dir, arena_name).unlink(missing_ok=True)


def _address_path(state_dir: Path, arena_name: str) -> Path:
    return state_dir.expanduser() / "addresses" / f"{arena_name}.url"


def served_database_url(settings: Settings) -> str:
    """Return the address of the database that the arena of the settings is served with.

    Raises ArenaMissing, SettingsError."""
    database_url = settings.database_url
    if database_url is None:
        with contextlib.suppress(OSError):
            database_url = _address_path(settings.state_dir, settings.arena).read_text(encoding="utf-8")
    if database_url is None:
        if settings.arena not in list_arenas():
            raise ArenaMissing(settings.arena)
        raise SettingsError(
            f"SHMCACHE_DATABASE_URL: not set, and the supervisor of arena {settings.arena!r} has no server of its own: "
            "set it to what the supervisor has"
        )
    return with_table_set(database_url, settings.schema)


def _attach() -> _Prepared:
    """Attach to the arena that the settings name. Raises ArenaMissing, ArenaUnusable, SettingsError."""
    settings = load_settings()
    database_url = served_database_url(settings)
    arena = Arena.attach(settings.arena, lock_wait=settings.lock_wait, ring_wait=settings.ring_wait)
    return _Prepared(arena, database_url, settings)


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
    from shmcache.asynchronous.clients import CachedAsyncClient, DirectAsyncClient

    if isinstance(shared, CachedClient):
        return CachedAsyncClient(shared)
    return DirectAsyncClient(_make_direct_client, prepared_arena())


def _join() -> _Prepared:
    """Be one of the processes of the arena, so that it is not removed while this one lives; return it."""
    global _prepared  # noqa: PLW0603
    for _ in range(2):
        if _prepared is None:
            _prepared = _attach()
            beat_with(_prepared.arena.beat)
            if not is_served(_prepared.arena):
                logger.warning(
                    "arena %s has no supervisor now: what is written stays in it until one runs (shmcache serve)",
                    _prepared.arena.name,
                )
        with contextlib.suppress(ArenaEnded):
            _prepared.arena.join()
            return _prepared
        _prepared = None  # inherited from a parent that is gone, or removed between attaching and joining
    raise ArenaMissing(load_settings().arena)


def _make_client() -> ExecutionDataClient:
    arena, database_url, settings = _join()
    if settings.mode == "direct":
        return _make_direct_client()
    if settings.mode == "shadow":
        from shmcache.shadow_client import ShadowClient

        return ShadowClient(arena, database_url, settings)
    return CachedClient(arena, database_url, settings)


def is_served(arena: Arena) -> bool:
    """Say whether a supervisor of an arena lives."""
    return any(process.alive and process.role == "supervisor" for process in arena.processes())


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
