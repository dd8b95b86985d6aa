"""Forked processes, kept alive: started by role, reaped, started again when they die.

Children are forked while this process has no threads and no open connection. They end with os._exit, so that nothing
of the parent's is torn down in them, and get SIGTERM from the kernel when the parent dies."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from setproctitle import setproctitle

from shmcache.arena import Arena
from shmcache.errors import ShmcacheError

logger = logging.getLogger(__name__)

ShouldStop = Callable[[], bool]

_PR_SET_PDEATHSIG = 1
_QUICK_SECONDS = 1.0
_MOST_QUICK_FAILURES = 5


class CannotStart(ShmcacheError):
    """Processes of a role fail again and again as soon as they are started."""


class Role(NamedTuple):
    """What a process is: its name, what it runs, and whether it is started again when it returns by itself."""

    name: str
    body: Callable[[ShouldStop], None]
    restart_on_return: bool = True


class _Child(NamedTuple):
    role: Role
    started: float


class Processes:
    """The children of a supervisor."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._children: dict[int, _Child] = {}
        self._stopping: set[str] = set()
        self._quick_failures: dict[str, int] = {}
        self.restarts: dict[str, int] = {}

    def start(self, role: Role) -> int:
        """Fork a process for a role; return its pid."""
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            _live(role, self._arena, parent)
        self._children[pid] = _Child(role, time.monotonic())
        return pid

    def count(self, role_name: str | None = None) -> int:
        """Return how many children live, of one role or in all."""
        return sum(role_name in (None, child.role.name) for child in self._children.values())

    def stop(self, *role_names: str) -> None:
        """Ask the processes of some roles to end; they are not started again."""
        self._stopping.update(role_names)
        self.signal(signal.SIGTERM, *role_names)

    def signal(self, number: int, *role_names: str) -> None:
        """Send a signal to the processes of some roles, or to all."""
        for pid, child in self._children.items():
            if not role_names or child.role.name in role_names:
                os.kill(pid, number)

    def reap(self) -> None:
        """Take note of the children that ended; free what the dead held; start them again. Raises CannotStart."""
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            child = self._children.pop(pid, None)
            if child is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            self._arena.release_dead()
            name = child.role.name
            if name in self._stopping or (code == 0 and not child.role.restart_on_return):
                continue
            logger.warning("%s %d %s: starting another", name, pid, f"died of signal {-code}" if code < 0 else "ended")
            quick = code > 0 and time.monotonic() - child.started < _QUICK_SECONDS
            self._quick_failures[name] = self._quick_failures.get(name, 0) + 1 if quick else 0
            if self._quick_failures[name] >= _MOST_QUICK_FAILURES:
                raise CannotStart(
                    f"a {name} fails as soon as it is started, {_MOST_QUICK_FAILURES} times now: see the log"
                )
            self.restarts[name] = self.restarts.get(name, 0) + 1
            self.start(child.role)

    def kill(self) -> None:
        """End all children at once, with SIGKILL, and wait for them."""
        self._stopping.update(child.role.name for child in self._children.values())
        self.signal(signal.SIGKILL)
        for pid in list(self._children):
            os.waitpid(pid, 0)
        self._children.clear()
        self._arena.release_dead()


def _live(role: Role, arena: Arena, parent: int) -> None:
    """Be a child: never returns."""
    status = 1
    stop = False

    def ask_to_stop(_number: int, _frame: object) -> None:
        nonlocal stop
        stop = True

    try:
        signal.signal(signal.SIGTERM, ask_to_stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        setproctitle(f"shmcache: {role.name} ({arena.name})")
        arena.enter(role.name)
        role.body(lambda: stop or os.getppid() != parent)
        status = 0
    except ShmcacheError as error:
        logger.error("%s", error)
    except BaseException as error:
        logger.error("%s failed: %s: %s", role.name, type(error).__name__, error)
        logger.debug("where it failed", exc_info=True)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
