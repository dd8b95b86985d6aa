"""A supervisor's child: its role, and its life from the fork to its end.

It ends with os._exit, so that nothing of the parent's is torn down in it, and gets SIGTERM from the kernel when the
parent dies. It is up when its role's preparation is over; a byte on a pipe tells the parent.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from setproctitle import setproctitle

from shmcache import tracing
from shmcache.arena import Arena, Counter
from shmcache.errors import ShmcacheError
from tools.logs import end_logging
from tools.signals import OPERATING, QUEUED
from tools.trace_file import write_traceback

logger = logging.getLogger(__name__)

ShouldStop = Callable[[], bool]

FAILED = 70  # sysexits.h: EX_SOFTWARE; here: the body raised, said why, and its process left
DONE_ENOUGH = 75  # sysexits.h: EX_TEMPFAIL; here: it has done as many node executions as it was to do
_PR_SET_PDEATHSIG = 1
_FOR_THE_PARENT = OPERATING - {signal.SIGTTIN, signal.SIGTTOU}


class Role(NamedTuple):
    """What a process is: its name, what it runs, and whether it is started again when it returns by itself.

    `stop_raises`: SIGTERM raises SystemExit in the body, for one that does not ask `should_stop`.
    `leads`: others wait for what it does; one that is stopped is in their way.
    `prepare`: what it does before it counts as up.
    `most_runs`, `runs_jitter`: after so many node executions, and by chance some more, it makes room for another.
    `has_lane`: it uses the arena; one without only looks at it."""

    name: str
    body: Callable[[ShouldStop], None]
    restart_on_return: bool = True
    stop_raises: bool = False
    leads: bool = False
    prepare: Callable[[], None] | None = None
    most_runs: int = 0
    runs_jitter: int = 0
    has_lane: bool = True


def live(role: Role, arena: Arena, parent: int, is_up: int) -> NoReturn:
    """Be a child: never returns. A byte goes to `is_up` once it is prepared."""
    status = FAILED
    stop = False

    def ask_to_stop(number: int, _frame: object) -> None:
        nonlocal stop
        if role.stop_raises and not stop:
            stop = True
            sys.exit(128 + number)
        stop = True

    renewal = _Renewal(role, arena)
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, ask_to_stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_DFL)
        for number in _FOR_THE_PARENT:
            # A terminal or a `pkill` sends them to all. A handler, as what is ignored stays so in programs it starts.
            signal.signal(number, _let_pass)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        multiprocessing.current_process().name = role.name  # for the log
        setproctitle(f"shmcache: {role.name} ({arena.name})")
        faulthandler.enable()  # says where it was, should it be aborted
        signal.pthread_sigmask(signal.SIG_UNBLOCK, QUEUED | OPERATING)
        if role.has_lane:
            arena.enter(role.name)
        if role.prepare is not None:
            role.prepare()
        os.write(is_up, b"+")
        os.close(is_up)
        with tracing.in_process(role.name, arena.name):
            role.body(lambda: stop or os.getppid() != parent)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else FAILED
    except ShmcacheError as error:
        logger.error("%s", error)
    except BaseException as error:
        logger.error("%s failed: %s: %s (details in %s)", role.name, type(error).__name__, error, write_traceback())
    finally:
        end_logging()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(DONE_ENOUGH if renewal.is_due and not status else status)


class _Renewal:
    """Has a process leave, where it looks for work, when it has done enough.

    Each draws its own number, so that not all of them leave at once."""

    def __init__(self, role: Role, arena: Arena) -> None:
        self.is_due = False
        self._arena = arena
        self._limit = role.most_runs + random.randint(0, role.runs_jitter)  # noqa: S311 - jitter, no secret
        arena.before_work = self._leave_if_due if role.most_runs else None

    def _leave_if_due(self) -> None:
        if self._arena.counted(Counter.NODE_RUNS) >= self._limit:
            self.is_due = True
            raise SystemExit(DONE_ENOUGH)


def _let_pass(_number: int, _frame: object) -> None:
    pass
