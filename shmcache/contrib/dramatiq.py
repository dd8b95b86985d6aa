"""Dramatiq: `broker.add_middleware(SharedCache())`.

Each worker process attaches when it has started; without an arena it ends with the error.
"""

from __future__ import annotations

from typing import Any

from dramatiq import Middleware

from shmcache.errors import ShmcacheError
from shmcache.session import get_db_client


class SharedCache(Middleware):
    """Attaches worker processes. With `durable` a message is acknowledged when what it wrote is in PostgreSQL."""

    def __init__(self, *, durable: bool = False) -> None:
        self._durable = durable

    def after_process_boot(self, _broker: Any) -> None:
        """Attach this process. Raises SystemExit."""
        try:
            get_db_client()
        except ShmcacheError as error:
            # Dramatiq logs what a middleware raises, and goes on.
            raise SystemExit(f"shmcache: {error}") from None

    def after_process_message(
        self, _broker: Any, _message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        """Wait for what the message's actor wrote."""
        del result
        if self._durable and exception is None:
            get_db_client().flush()
