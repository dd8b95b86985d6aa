"""shmcache: takes the database off the hot path of graph executors.

    from shmcache import get_db_client

    client = get_db_client()            # in a worker, after fork, with no further set-up
    node = client.get_node(node_id)     # from shared memory
    client.upsert_execution_output(node_exec_id, "result", 42)     # seen by every process at once, in PostgreSQL soon
    client.flush()                      # or now

`get_db_async_client()` has the same calls as coroutines.

`shmcache.execution_data_client` is where to start reading.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shmcache.arena import Arena as Arena
    from shmcache.arena import SharedMapping as SharedMapping
    from shmcache.asynchronous.execution_data_client import AsyncExecutionDataClient as AsyncExecutionDataClient
    from shmcache.charge_manager import ChargeManager as ChargeManager
    from shmcache.errors import InsufficientBalanceError as InsufficientBalanceError
    from shmcache.errors import ShmcacheError as ShmcacheError
    from shmcache.execution_data_client import ExecutionDataClient as ExecutionDataClient
    from shmcache.progress import heartbeat as heartbeat
    from shmcache.records import ExecutionStatus as ExecutionStatus
    from shmcache.session import get_db_async_client as get_db_async_client
    from shmcache.session import get_db_client as get_db_client
    from shmcache.simple_cache import SimpleExecutorCache as SimpleExecutorCache

_HOMES = {
    "Arena": "shmcache.arena",
    "AsyncExecutionDataClient": "shmcache.asynchronous.execution_data_client",
    "ChargeManager": "shmcache.charge_manager",
    "ExecutionDataClient": "shmcache.execution_data_client",
    "ExecutionStatus": "shmcache.records",
    "InsufficientBalanceError": "shmcache.errors",
    "ShmcacheError": "shmcache.errors",
    "SharedMapping": "shmcache.arena",
    "SimpleExecutorCache": "shmcache.simple_cache",
    "get_db_async_client": "shmcache.session",
    "get_db_client": "shmcache.session",
    "heartbeat": "shmcache.progress",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    # Names are imported when first used, so that a light process does not load the database driver or numpy.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
