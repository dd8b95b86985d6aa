"""gunicorn: `from shmcache.contrib.gunicorn import post_fork` in gunicorn.conf.py.

Each worker attaches before its first request; without an arena gunicorn ends with its own "Worker failed to boot".
Who has a `post_fork` of his own calls `attach` in it.
"""

from __future__ import annotations

from typing import Any

from shmcache.errors import ShmcacheError
from shmcache.session import get_db_client


def attach() -> None:
    """Attach this worker. Raises ShmcacheError."""
    get_db_client()


def post_fork(server: Any, _worker: Any) -> None:
    """Attach a worker that was just forked. Raises ShmcacheError, which ends gunicorn."""
    try:
        attach()
    except ShmcacheError as error:
        server.log.error("shmcache: %s", error)
        raise
