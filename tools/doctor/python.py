"""Python's multiprocessing: what workers may need of it, and a spawned process, as the charge pool has them."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import spawn
from multiprocessing.connection import Connection
from types import ModuleType

from shmcache.arena import Arena
from shmcache.arena.segment import unlink_segment
from shmcache.errors import ArenaError
from tools.doctor.finding import Finding, failure, ok, warning

_WAIT_SECONDS = 60.0
_PROBE_BYTES = 4 << 20


def check_start_method() -> Finding:
    """Say how this Python starts processes if nobody says how; ours do not depend on it."""
    method = multiprocessing.get_context().get_start_method()
    return ok("start method", f"{method}; workers are forked and the charge pool is spawned, whatever it is")


def check_semaphores() -> Finding:
    """Make a semaphore. Ours need none; a worker's own locks, queues and pools do."""
    try:
        multiprocessing.get_context("spawn").Lock()
    except (OSError, ImportError) as error:
        return warning(
            "semaphores", str(error), "where workers have locks, queues or pools: mount /dev/shm for writing, mode 1777"
        )
    return ok("semaphores", "can be made")


def check_spawn() -> Finding:
    """Spawn a process that makes an arena and ends, and see that its resource tracker leaves the arena alone."""
    check, name = "spawned processes", f"doctor-{os.getpid()}"
    try:
        error = _make_elsewhere(name)
        if error is None:
            Arena.attach(name).close()
            return ok(check, "one made an arena, which outlived it and its resource tracker")
        return failure(check, f"one could not make an arena: {error}", "see what is said of shared memory above")
    except ArenaError as gone:
        return failure(check, f"an arena went with its maker: {gone}", "look for who empties /dev/shm")
    except (EOFError, OSError) as died:
        program = os.fsdecode(spawn.get_executable() or b"")
        return failure(
            check, f"one did not answer ({type(died).__name__})",
            f"see that {program} can be run, and which PYTHON* variables are set",
        )  # fmt: skip
    finally:
        unlink_segment(name)


def _make_elsewhere(name: str) -> Exception | None:
    """Have a spawned process make an arena and end; return what it was refused with. Raises EOFError, OSError."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_make_probe, args=(name, there), daemon=True)
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")  # the spawned process is to load this module alone
    try:
        process.start()
        there.close()
        if not here.poll(_WAIT_SECONDS):
            raise TimeoutError
        answer: Exception | None = here.recv()
        process.join(_WAIT_SECONDS)
        return answer
    finally:
        sys.modules["__main__"] = main
        here.close()
        if process.pid is not None:
            process.kill()
            process.join()


def _make_probe(name: str, pipe: Connection) -> None:
    answer = None
    try:
        Arena.create(name, _PROBE_BYTES).close()
    except Exception as error:
        answer = error
    pipe.send(answer)
