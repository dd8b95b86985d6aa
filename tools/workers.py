"""The workers of a supervisor: how many there are to be, one by one replaced by new ones, ended when they hang.

reload   for each worker that runs:   start a new one and wait until it is up
                                      the new one ended before: the old ones stay, the reload is over
                                      ask the old one to end; wait for that, a while; next
hang     no sign of life for SHMCACHE_WORKER_TIMEOUT: SIGABRT (it says where it was), a second later SIGKILL
"""

from __future__ import annotations

import logging
import os
import signal
import time

from shmcache.arena import Arena
from shmcache.config import Settings
from tools.processes import Child, Processes, Role

logger = logging.getLogger(__name__)

NAME = "worker"
_MOST = 64
_LEAVING_SECONDS = 30.0
"""How long a reload waits for a worker that was asked to end before it goes on; the worker is left to finish."""
_LOOK_SECONDS = 1.0


class _Watch:
    """What was last seen of a worker: its sign of life, and for how long there was none since."""

    def __init__(self) -> None:
        self.beat: tuple[int, int] | None = None
        self.silent_seconds = 0.0
        self.aborted = False


class Workers:
    """The workers of one role among a supervisor's processes. `look_after` is to be called again and again."""

    def __init__(self, processes: Processes, role: Role, arena: Arena, settings: Settings) -> None:
        self._processes = processes
        self._role = role._replace(name=NAME, most_runs=settings.max_requests, runs_jitter=settings.max_requests_jitter)
        self._arena = arena
        self._timeout_seconds = settings.worker_timeout
        self._old: list[int] = []
        self._new: int | None = None
        self._leaving: int | None = None
        self._reload_again = False
        self._reloading = False
        self._watched: dict[int, _Watch] = {}
        self._looked_at = time.monotonic()
        self.reloads = 0

    def start(self, count: int) -> None:
        """Start so many."""
        for _ in range(count):
            self._processes.start(self._role)

    @property
    def are_up(self) -> bool:
        """Whether all workers that there are to be are up."""
        there = [child for _, child in self._processes.children(NAME)]
        return len(there) == self._processes.count(NAME) and all(child.up is not None for child in there)

    @property
    def are_reloading(self) -> bool:
        """Whether some are still to be replaced."""
        return self._reloading or self._reload_again

    def add(self) -> None:
        """Start one more."""
        if self._processes.count(NAME) >= _MOST:
            logger.warning("there are %d workers, no more can be added", _MOST)
            return
        self._processes.start(self._role)
        logger.info("a worker was added: %d now", self._wanted())

    def remove(self) -> None:
        """Ask the oldest one to end, unless it is the only one."""
        if self._wanted() <= 1:
            logger.warning("the last worker stays: SIGTERM to the supervisor ends it")
            return
        if not self._processes.drop_delayed(NAME):
            self._processes.retire(min(self._staying(), key=lambda each: each[1].started)[0])
        logger.info("a worker was taken away: %d now", self._wanted())

    def reload(self) -> None:
        """Begin to replace all workers by new ones; one that does not come up now is given up for that."""
        self._reload_again = True
        if self._new is not None and (new := self._processes.child(self._new)) and new.up is None:
            self._processes.retire(self._new)

    def end_reload(self) -> None:
        """Replace no more of them: all are about to end."""
        self._reload_again = self._reloading = False

    def look_after(self) -> None:
        """Go on with a reload; end those that hang."""
        if self._reload_again and not self._reloading:
            self._reload_again, self._reloading = False, True
            self._old = [pid for pid, _ in self._staying()]
            self._new = self._leaving = None
            self.reloads += 1
            logger.info("reloading %d workers, one by one", len(self._old))
        if self._reloading:
            self._go_on_reloading()
        now = time.monotonic()
        if self._timeout_seconds and now >= self._looked_at + _LOOK_SECONDS:
            # Where this process did not run either (the machine was paused), nobody's silence counts.
            self._end_those_that_hang(min(now - self._looked_at, 2 * _LOOK_SECONDS))
            self._looked_at = now

    def _staying(self) -> list[tuple[int, Child]]:
        """Return the workers that were not asked to end, the one on trial not among them."""
        return [
            (pid, child)
            for pid, child in self._processes.children(NAME)
            if child.asked_to_stop is None and pid != self._new
        ]

    def _wanted(self) -> int:
        leaving = sum(child.asked_to_stop is not None for _, child in self._processes.children(NAME))
        on_trial = self._new is not None and self._processes.child(self._new) is not None
        return self._processes.count(NAME) - leaving - on_trial

    def _go_on_reloading(self) -> None:
        processes = self._processes
        self._old = [pid for pid in self._old if (old := processes.child(pid)) and old.asked_to_stop is None]
        if self._new is not None:
            new = processes.child(self._new)
            if new is None:
                self._finish_reload(failed=True)
            elif new.up is not None and new.asked_to_stop is None:
                # Without an old one left (it ended meanwhile, or was taken away) there is one too many.
                self._leaving = self._old.pop(0) if self._old else self._new
                self._new = None
                processes.retire(self._leaving)
            return
        leaving = None if self._leaving is None else processes.child(self._leaving)
        if leaving is not None and time.monotonic() < (leaving.asked_to_stop or 0.0) + _LEAVING_SECONDS:
            return
        if leaving is not None:
            logger.warning("worker %d has not ended yet: the reload goes on without waiting for it", self._leaving)
        self._leaving = None
        if self._old:
            self._new = processes.start(self._role, on_trial=True)
        else:
            self._finish_reload(failed=False)

    def _finish_reload(self, *, failed: bool) -> None:
        self._reloading = False
        self._new = None
        if failed:
            logger.error("a new worker ended before it was up: %d old ones stay as they are", len(self._old))
        else:
            logger.info("reloaded: %d workers are new", len(self._staying()))
        self._old = []

    def _end_those_that_hang(self, seconds: float) -> None:
        beats = self._arena.beats()
        there = dict(self._processes.children(NAME))
        self._watched = {pid: self._watched.get(pid) or _Watch() for pid in there}
        for pid, watch in self._watched.items():
            beat = beats.get(pid)
            if beat != watch.beat:
                watch.beat, watch.silent_seconds = beat, 0.0
                continue
            watch.silent_seconds += seconds
            if watch.aborted:
                os.kill(pid, signal.SIGKILL)
            elif watch.silent_seconds > self._timeout_seconds:
                logger.error(
                    "worker %d has shown no sign of life for %.0f s (SHMCACHE_WORKER_TIMEOUT): ended",
                    pid, watch.silent_seconds,
                )  # fmt: skip
                watch.aborted = True
                os.kill(pid, signal.SIGABRT)
