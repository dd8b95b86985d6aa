"""Where a supervisor's metrics server listens, and the process that it is.

Checked before anything starts; what serves is loaded by its own process alone, after the fork.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from typing import NamedTuple

from shmcache.arena import Arena
from shmcache.config import Settings, split_address
from shmcache.errors import SettingsError
from tools.processes import Role, ShouldStop

_BIND_PATIENCE_SECONDS = 3.0


class Endpoint(NamedTuple):
    """Where to listen and what to ask for."""

    host: str
    port: int
    token: str | None

    @property
    def family(self) -> int:
        """The address family of the host. Raises OSError for what is no address."""
        return socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0][0]

    @property
    def url(self) -> str:
        """The address as people type it."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/"


def endpoint(settings: Settings) -> Endpoint | None:
    """Return where the settings want the server, None for nowhere.

    Raises SettingsError for an address that cannot be listened on, or that others could reach without a token."""
    if settings.metrics_address is None:
        return None
    host, port = split_address(settings.metrics_address)
    token = settings.metrics_token
    wanted = Endpoint(host, port, token)
    try:
        family = wanted.family
    except OSError as error:
        raise SettingsError(f"SHMCACHE_METRICS_ADDRESS: {host!r} is no address: {error}") from None
    if token is None and not _is_loopback(host):
        raise SettingsError(
            f"SHMCACHE_METRICS_ADDRESS: {settings.metrics_address} can be reached from other machines: set "
            "SHMCACHE_METRICS_TOKEN too, or listen on 127.0.0.1"
        )
    deadline = time.monotonic() + _BIND_PATIENCE_SECONDS
    while True:
        try:
            with socket.create_server((host, port), family=family):
                return wanted
        except OSError as error:
            if time.monotonic() > deadline:  # the server of a supervisor that was killed ends at once, if not sooner
                raise SettingsError(
                    f"SHMCACHE_METRICS_ADDRESS: cannot listen on {settings.metrics_address}: {error.strerror}"
                ) from None
            threading.Event().wait(0.05)


def metrics_role(arena: Arena, settings: Settings, where: Endpoint) -> Role:
    """Return the process that serves."""

    def body(should_stop: ShouldStop) -> None:
        from tools.monitoring.server import serve

        serve(arena.as_view(), where, should_stop, is_cached=settings.mode == "cached")

    return Role("metrics", body, stop_raises=True, has_lane=False)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
