"""Python's multiprocessing, as the charge pool uses it: spawned processes, semaphores, the resource tracker."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import spawn
from types import ModuleType

from shmcache.arena import Arena
from shmcache.arena.segment import unlink_segment
from shmcache.errors import ArenaError
from tools.doctor.finding import Finding, failure, ok

_WAIT_SECONDS = 60.0
_PROBE_BYTES = 4 << 20


def check_start_method() -> Finding:
    """Say how this Python starts processes if nobody says how; ours do not depend on it."""
    method = multiprocessing.get_context().get_start_method()
    return ok("start method", f"{method}; workers are forked and the charge pool is spawned, whatever it is")


def check_semaphores() -> Finding:
    """Make a semaphore, which a pool of processes needs."""
    try:
        multiprocessing.get_context("spawn").Lock()
    except (OSError, ImportError) as error:
        return failure("semaphores", str(error), "mount /dev/shm for writing, mode 1777: semaphores are files there")
    return ok("semaphores", "can be made")


def check_spawn() -> Finding:
    """Spawn a process that makes an arena and ends, and see that its resource tracker leaves the arena alone."""
    name = f"doctor-{os.getpid()}"
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")  # the spawned process is to load this module alone
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    try:
        pool.submit(_make_probe, name).result(_WAIT_SECONDS)
        pool.shutdown()
        Arena.attach(name).close()
    except (BrokenProcessPool, TimeoutError, OSError) as error:
        return failure(
            "spawned processes", f"{type(error).__name__}: {error}",
            f"see that {os.fsdecode(spawn.get_executable() or b'')} can be run, and which PYTHON* variables are set",
        )  # fmt: skip
    except ArenaError as error:
        return failure("spawned processes", f"an arena went with its maker: {error}", "look for who empties /dev/shm")
    finally:
        sys.modules["__main__"] = main
        pool.shutdown(wait=False, cancel_futures=True)
        unlink_segment(name)
    return ok("spawned processes", "one made an arena, which outlived it and its resource tracker")


def _make_probe(name: str) -> None:
    Arena.create(name, _PROBE_BYTES).close()
