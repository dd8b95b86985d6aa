"""Tells systemd, or whoever else started us, how the service is: sd_notify(3), without its library.

A datagram of lines NAME=VALUE to the socket in $NOTIFY_SOCKET; nothing where there is none. The variable is taken out
of the environment, so that no child speaks for the supervisor.
"""

from __future__ import annotations

import logging
import os
import socket
import time

logger = logging.getLogger(__name__)


_WAIT_SECONDS = 5.0


class ServiceManager:
    """What is said to who started this process. Its methods never raise: a service runs without its manager too."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        watched = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._pat_seconds = int(microseconds) / 2e6 if watched and microseconds.isdecimal() else None
        self._patted_at = 0.0

    def ready(self, status: str) -> None:
        """Say that the start, or a reload, is over."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a reload has begun; `ready` ends it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=replacing workers")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._tell("STOPPING=1", "STATUS=draining")

    def pat(self) -> None:
        """Pat the watchdog, as often as it wants to be patted. Call it at least each second."""
        now = time.monotonic()
        if self._pat_seconds is not None and now >= self._patted_at + self._pat_seconds:
            self._patted_at = now
            self._tell("WATCHDOG=1", wait_seconds=0)

    def _tell(self, *lines: str, wait_seconds: float = _WAIT_SECONDS) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as speaker:
                speaker.settimeout(wait_seconds)  # a manager that does not listen must not stop what it manages
                speaker.connect(self._address)
                speaker.sendall("\n".join(lines).encode())
        except OSError as error:
            logger.warning("cannot tell the service manager (%s): %s", lines[0], error)
