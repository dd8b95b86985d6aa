"""Forked processes, kept alive: started by role, reaped, started again when they die.

Children are forked while this process has no threads and no open connection. They end with os._exit, so that nothing
of the parent's is torn down in them, and get SIGTERM from the kernel when the parent dies. Signals are blocked around
the fork: none reaches a child before its own handlers are there.

One that dies within a second is started again after a wait that doubles, up to a second; and if it *fails* so (its body
raises) again and again, while none of its role has lived for a second, all is given up: CannotStart.

A child that is stopped (SIGSTOP) leads on, and nothing of its kind goes on without it; or it holds a lock, and nobody
at all goes on. The kernel tells its parent; after a while it is killed, and then another one is started like after any
death. With a lock that is after an instant: its work is done again by another, while all others would wait.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from setproctitle import setproctitle

from shmcache.arena import Arena
from shmcache.errors import ShmcacheError
from tools.logs import end_logging
from tools.signals import QUEUED
from tools.trace_file import write_traceback

logger = logging.getLogger(__name__)

ShouldStop = Callable[[], bool]

_PR_SET_PDEATHSIG = 1
_QUICK_SECONDS = 1.0
_FIRST_WAIT_SECONDS = 0.05
_MOST_WAIT_SECONDS = 1.0
_MOST_QUICK_FAILURES = 5
_REMIND_SECONDS = 1.0
_MOST_STOPPED_WITH_LOCK_SECONDS = 0.3
_FAILED = 70  # sysexits.h: EX_SOFTWARE; here: the body raised, said why, and its process left


class CannotStart(ShmcacheError):
    """Processes of a role fail again and again as soon as they are started."""


class Role(NamedTuple):
    """What a process is: its name, what it runs, and whether it is started again when it returns by itself.

    `stop_raises`: SIGTERM raises SystemExit in the body, for one that does not ask `should_stop`.
    `leads`: others wait for what it does; one that is stopped is in their way."""

    name: str
    body: Callable[[ShouldStop], None]
    restart_on_return: bool = True
    stop_raises: bool = False
    leads: bool = False


class _Child(NamedTuple):
    role: Role
    started: float
    asked_to_stop: float | None = None
    stopped: float | None = None


class _Delayed(NamedTuple):
    role: Role
    due: float


class Processes:
    """The children of a supervisor.

    One that leads may be stopped for `stopped_seconds`, one that holds a lock of the arena for an instant; None: both
    for ever. The supervisor itself waits no longer than that for a lock, so as to be there to free it."""

    def __init__(self, arena: Arena, stopped_seconds: float | None = None) -> None:
        self._arena = arena
        self._stopped_seconds = stopped_seconds
        self._lock_wait_seconds = arena.lock_wait_seconds
        if stopped_seconds is not None:
            self._stopped_with_lock_seconds = min(stopped_seconds, _MOST_STOPPED_WITH_LOCK_SECONDS)
            arena.lock_wait_seconds = min(arena.lock_wait_seconds, self._stopped_with_lock_seconds)
        self._dead_hold = False
        self._children: dict[int, _Child] = {}
        self._delayed: list[_Delayed] = []
        self._stopping: set[str] = set()
        self._quick_deaths: dict[str, int] = {}
        self._quick_failures: dict[str, int] = {}
        self._came_up: set[str] = set()
        self.restarts: dict[str, int] = {}

    def start(self, role: Role) -> int:
        """Fork a process for a role; return its pid."""
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, QUEUED)
        pid = os.fork()
        if not pid:
            self._arena.lock_wait_seconds = self._lock_wait_seconds
            _live(role, self._arena, parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._children[pid] = _Child(role, time.monotonic())
        return pid

    def count(self, role_name: str | None = None) -> int:
        """Return how many processes there are, or will be after a wait; of one role or in all."""
        roles = [child.role for child in self._children.values()] + [each.role for each in self._delayed]
        return sum(role_name in (None, role.name) for role in roles)

    def stop(self, *role_names: str) -> None:
        """Ask the processes of some roles to end; they are not started again."""
        self._stopping.update(role_names)
        self._delayed = [each for each in self._delayed if each.role.name not in self._stopping]
        for pid, child in list(self._children.items()):
            if child.role.name in role_names:
                self._ask_to_stop(pid, child)

    def _ask_to_stop(self, pid: int, child: _Child) -> None:
        self._children[pid] = child._replace(asked_to_stop=time.monotonic())
        os.kill(pid, signal.SIGTERM)

    def look_after(self) -> None:
        """Reap those that ended, free what the dead held, and start them again. Raises CannotStart.

        Raises LockTimeout where a process holds the commit lock for long: call it again."""
        now = time.monotonic()
        self._came_up.update(child.role.name for child in self._children.values() if now - child.started > 1)
        for pid in list(self._children):
            ended, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            child = self._children[pid]
            if not ended:
                self._remind(pid, child, now)
                self._end_if_stopped(pid, child, now)
            elif os.WIFSTOPPED(status):
                self._children[pid] = child._replace(stopped=now)
            elif os.WIFCONTINUED(status):
                self._children[pid] = child._replace(stopped=None)
            else:
                del self._children[pid]
                self._dead_hold = True
                self._follow(pid, child, os.waitstatus_to_exitcode(status), now)
        if self._dead_hold:
            self._arena.release_dead()
            self._dead_hold = False
        for each in [each for each in self._delayed if each.due <= now]:
            self._delayed.remove(each)
            self.start(each.role)

    def kill(self) -> None:
        """End all children at once, with SIGKILL, and wait for them."""
        self._delayed.clear()
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)
        self._children.clear()
        self._arena.release_dead()

    def _remind(self, pid: int, child: _Child, now: float) -> None:
        """Ask a body once more that asks nobody.

        A signal that comes just before a system call waits for that call's end; another one ends the call."""
        if child.role.stop_raises and child.asked_to_stop is not None and now - child.asked_to_stop > _REMIND_SECONDS:
            self._ask_to_stop(pid, child)

    def _end_if_stopped(self, pid: int, child: _Child, now: float) -> None:
        """Kill a child that has been stopped for too long and is in the way of others."""
        if child.stopped is None or self._stopped_seconds is None:
            return
        seconds = now - child.stopped
        if child.role.leads and seconds >= self._stopped_seconds:
            what = ""
        elif seconds >= self._stopped_with_lock_seconds and pid in self._arena.lock_holders():
            what = " with a lock"
        else:
            return
        logger.warning("%s %d has been stopped for %.1f s%s: killed", child.role.name, pid, seconds, what)
        os.kill(pid, signal.SIGKILL)
        self._children[pid] = child._replace(stopped=None)

    def _follow(self, pid: int, child: _Child, code: int, now: float) -> None:
        """Decide what comes after a child that ended with `code` (negative: of that signal)."""
        name = child.role.name
        if name in self._stopping or (code == 0 and not child.role.restart_on_return):
            return
        quick = now - child.started < _QUICK_SECONDS
        self._quick_deaths[name] = self._quick_deaths.get(name, 0) + 1 if quick else 0
        self._quick_failures[name] = self._quick_failures.get(name, 0) + 1 if quick and code == _FAILED else 0
        if self._quick_failures[name] >= _MOST_QUICK_FAILURES and name not in self._came_up:
            raise CannotStart(f"a {name} fails as soon as it is started, {_MOST_QUICK_FAILURES} times now: see the log")
        wait = min(_MOST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** min(self._quick_deaths[name], 20)) if quick else 0.0
        ended = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        logger.warning(
            "%s %d %s: starting another", name, pid, ended, extra={"dead_role": name, "dead_pid": pid, "status": code}
        )
        self.restarts[name] = self.restarts.get(name, 0) + 1
        self._delayed.append(_Delayed(child.role, now + wait))


def _live(role: Role, arena: Arena, parent: int) -> NoReturn:
    """Be a child: never returns."""
    status = _FAILED
    stop = False

    def ask_to_stop(number: int, _frame: object) -> None:
        nonlocal stop
        if role.stop_raises and not stop:
            stop = True
            sys.exit(128 + number)
        stop = True

    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, ask_to_stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        multiprocessing.current_process().name = role.name  # for the log
        setproctitle(f"shmcache: {role.name} ({arena.name})")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, QUEUED)
        arena.enter(role.name)
        role.body(lambda: stop or os.getppid() != parent)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else _FAILED
    except ShmcacheError as error:
        logger.error("%s", error)
    except BaseException as error:
        logger.error("%s failed: %s: %s (details in %s)", role.name, type(error).__name__, error, write_traceback())
    finally:
        end_logging()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
