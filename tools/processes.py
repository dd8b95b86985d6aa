"""Forked processes, kept alive: started by role, reaped, started again when they die.

Children are forked while this process has no threads and no open connection. Signals are blocked around the fork: none
reaches a child before its own handlers are there.

One that dies within a second is started again after a wait that doubles, up to some seconds, less what chance takes off
(those of many supervisors that fail together do not come back together); and if it *fails* so (its body raises), or
before it was up, again and again, while none of its role has lived for a second, all is given up: CannotStart.

A child that is stopped (SIGSTOP) leads on, and nothing of its kind goes on without it; or it holds a lock, and nobody
at all goes on. The kernel tells its parent; after a while it is killed, and then another one is started like after any
death. With a lock that is after an instant: its work is done again by another, while all others would wait. So it is
with one that leads while somebody waits for what it should drain, or the ring fills up: before writers wait for room.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from shmcache.arena import Arena, Counter
from shmcache.errors import ShmcacheError
from tools.child import DONE_ENOUGH, FAILED, Role, ShouldStop, live
from tools.signals import OPERATING, QUEUED

__all__ = ["CannotStart", "Child", "Processes", "Role", "ShouldStop"]

logger = logging.getLogger(__name__)

_QUICK_SECONDS = 1.0
_FIRST_WAIT_SECONDS = 0.05
_MOST_WAIT_SECONDS = 5.0
_MOST_QUICK_FAILURES = 5
_REMIND_SECONDS = 1.0
_MOST_STOPPED_IN_THE_WAY_SECONDS = 0.3
_LOOK_SECONDS = 1.0


class CannotStart(ShmcacheError):
    """Processes of a role fail again and again as soon as they are started."""

    exit_status = 3
    """What the command line ends with, so that who started it need not try again (gunicorn: the same)."""


class Child(NamedTuple):
    """A process of a role. Times are monotonic; `up_pipe` tells when it is up, and is closed from then on.

    `on_trial`: it is not started again if it ends before it was up."""

    role: Role
    started: float
    up_pipe: int
    on_trial: bool = False
    up: float | None = None
    asked_to_stop: float | None = None
    stopped: float | None = None


class _Delayed(NamedTuple):
    role: Role
    due: float


class Processes:
    """The children of a supervisor.

    One that leads may be stopped for `stopped_seconds`, one that holds a lock of the arena, or leads while a ring is
    waited for or fills up, for an instant; None: all of them for ever. The supervisor itself waits no longer than that
    for a lock, so as to be there to free it."""

    def __init__(self, arena: Arena, stopped_seconds: float | None = None) -> None:
        self._arena = arena
        self._stopped_seconds = stopped_seconds
        self._lock_wait_seconds = arena.lock_wait_seconds
        if stopped_seconds is not None:
            self._stopped_in_the_way_seconds = min(stopped_seconds, _MOST_STOPPED_IN_THE_WAY_SECONDS)
            arena.lock_wait_seconds = min(arena.lock_wait_seconds, self._stopped_in_the_way_seconds)
        self._dead_hold = False
        self._looked_at = 0.0
        self._children: dict[int, Child] = {}
        self._delayed: list[_Delayed] = []
        self._stopping: set[str] = set()
        self._quick_deaths: dict[str, int] = {}
        self._quick_failures: dict[str, int] = {}
        self._came_up: set[str] = set()
        self.restarts: dict[str, int] = {}

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Wait for a lock as long as any process does: where nothing would try again after a LockTimeout."""
        hasty = self._arena.lock_wait_seconds
        self._arena.lock_wait_seconds = self._lock_wait_seconds
        try:
            yield
        finally:
            self._arena.lock_wait_seconds = hasty

    def start(self, role: Role, *, on_trial: bool = False) -> int:
        """Fork a process for a role; return its pid."""
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        reads, writes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, QUEUED | OPERATING)
        pid = os.fork()
        if not pid:
            self._arena.lock_wait_seconds = self._lock_wait_seconds
            live(role, self._arena, parent, writes)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(writes)
        self._children[pid] = Child(role, time.monotonic(), reads, on_trial)
        return pid

    def count(self, role_name: str | None = None) -> int:
        """Return how many processes there are, or will be after a wait; of one role or in all."""
        roles = [child.role for child in self._children.values()] + [each.role for each in self._delayed]
        return sum(role_name in (None, role.name) for role in roles)

    def children(self, role_name: str | None = None) -> Iterator[tuple[int, Child]]:
        """Return the processes that there are, of one role or all, oldest first."""
        return iter([(pid, each) for pid, each in self._children.items() if role_name in (None, each.role.name)])

    def child(self, pid: int) -> Child | None:
        """Return a child, None if it has ended and was reaped."""
        return self._children.get(pid)

    def drop_delayed(self, role_name: str) -> bool:
        """Start one process less of a role, of those that wait to be started again; return whether one did."""
        for each in self._delayed:
            if each.role.name == role_name:
                self._delayed.remove(each)
                return True
        return False

    def stop(self, *role_names: str) -> None:
        """Ask the processes of some roles to end; they are not started again."""
        self._stopping.update(role_names)
        self._delayed = [each for each in self._delayed if each.role.name not in self._stopping]
        for pid, child in self.children():
            if child.role.name in role_names:
                self._ask_to_stop(pid, child)

    def retire(self, pid: int) -> None:
        """Ask one process to end; it is not started again."""
        self._ask_to_stop(pid, self._children[pid])

    def _ask_to_stop(self, pid: int, child: Child) -> None:
        self._children[pid] = child._replace(asked_to_stop=time.monotonic())
        os.kill(pid, signal.SIGTERM)

    def look_after(self) -> None:
        """Reap those that ended, free what the dead held, and start them again. Raises CannotStart.

        Raises LockTimeout where a process holds the commit lock for long: call it again."""
        now = time.monotonic()
        self._came_up.update(
            child.role.name
            for child in self._children.values()
            if child.up is not None and now - child.up > _QUICK_SECONDS
        )
        for pid in list(self._children):
            self._see_if_up(pid)
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
                self._see_if_up(pid)
                child = self._forget(pid)
                self._dead_hold = True
                self._follow(pid, child, os.waitstatus_to_exitcode(status), now)
        if os.getpid() == 1:
            self._reap_strangers()
        # Processes that are not ours may be attached as well; nobody tells us when they die.
        if self._dead_hold or now >= self._looked_at + _LOOK_SECONDS:
            self._looked_at = now
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
        for pid in list(self._children):
            os.waitpid(pid, 0)
            self._forget(pid)
        self._arena.release_dead()

    def _see_if_up(self, pid: int) -> None:
        child = self._children[pid]
        if child.up is None:
            with contextlib.suppress(BlockingIOError):
                if os.read(child.up_pipe, 1):
                    os.close(child.up_pipe)
                    self._children[pid] = child._replace(up=time.monotonic())

    def _forget(self, pid: int) -> Child:
        child = self._children.pop(pid)
        if child.up is None:
            os.close(child.up_pipe)
        return child

    def _reap_strangers(self) -> None:
        """Reap the orphans that a container's first process inherits."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in self._children:
                return
            os.waitpid(ended.si_pid, 0)

    def _remind(self, pid: int, child: Child, now: float) -> None:
        """Ask a body once more that asks nobody.

        A signal that comes just before a system call waits for that call's end; another one ends the call."""
        if child.role.stop_raises and child.asked_to_stop is not None and now - child.asked_to_stop > _REMIND_SECONDS:
            self._ask_to_stop(pid, child)

    def _is_a_ring_waited_for(self) -> bool:
        rings = self._arena.write_ring, self._arena.charge_ring
        return any(ring.is_waited_for or 2 * ring.used_bytes >= ring.size for ring in rings)

    def _end_if_stopped(self, pid: int, child: Child, now: float) -> None:
        """Kill a child that has been stopped for too long and is in the way of others."""
        if child.stopped is None or self._stopped_seconds is None:
            return
        seconds = now - child.stopped
        if child.role.leads and seconds >= self._stopped_seconds:
            what = ""
        elif seconds < self._stopped_in_the_way_seconds:
            return
        elif pid in self._arena.lock_holders():
            what = " with a lock"
        elif child.role.leads and self._is_a_ring_waited_for():
            what = " while a ring is waited for, or fills up"
        else:
            return
        logger.warning("%s %d has been stopped for %.1f s%s: killed", child.role.name, pid, seconds, what)
        os.kill(pid, signal.SIGKILL)
        self._children[pid] = child._replace(stopped=None)

    def _follow(self, pid: int, child: Child, code: int, now: float) -> None:
        """Decide what comes after a child that ended with `code` (negative: of that signal)."""
        name = child.role.name
        if (
            name in self._stopping
            or child.asked_to_stop is not None
            or (code == 0 and not child.role.restart_on_return)
        ):
            return
        if child.on_trial and child.up is None:
            return
        if code == DONE_ENOUGH:
            logger.info("%s %d has done enough node executions: starting another", name, pid)
            self._delayed.append(_Delayed(child.role, now))
            return
        quick = child.up is None or now - child.up < _QUICK_SECONDS
        self._quick_deaths[name] = self._quick_deaths.get(name, 0) + 1 if quick else 0
        self._quick_failures[name] = self._quick_failures.get(name, 0) + 1 if quick and code == FAILED else 0
        if self._quick_failures[name] >= _MOST_QUICK_FAILURES and name not in self._came_up:
            raise CannotStart(f"a {name} fails as soon as it is started, {_MOST_QUICK_FAILURES} times now: see the log")
        ended = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        logger.warning(
            "%s %d %s: starting another", name, pid, ended, extra={"dead_role": name, "dead_pid": pid, "status": code}
        )
        self.restarts[name] = self.restarts.get(name, 0) + 1
        self._arena.count(Counter.RESTARTS)
        self._delayed.append(_Delayed(child.role, now + _wait_seconds(self._quick_deaths[name])))


def _wait_seconds(quick_deaths: int) -> float:
    """Return how long to wait before another is started, after so many that died at once: half of it is by chance."""
    if not quick_deaths:
        return 0.0
    longest: float = min(_MOST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2.0 ** min(quick_deaths, 20))
    return longest * random.uniform(0.5, 1)  # noqa: S311 - jitter, no secret
