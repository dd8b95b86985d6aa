"""The processes that settle charges for a charger: each has a pipe, and nothing else in common.

`concurrent.futures` would do the same with named semaphores in /dev/shm: a charger that is killed in the moment between
making one and telling the resource tracker of it leaves it there for ever, and where /dev/shm is full there is no pool.

    0  is_ready  each process has said that it is there               death: the pipe ends, PoolBroken
    1  send      each process gets its partition                       death, stop: no more is sent than the pipe takes
    2  receive   each answers with what came of it, or with the error  death: the pipe ends, PoolBroken
                                                                       stop: TimeoutError

After either error the pool is worth nothing: an answer may still come to a question that was given up.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import ModuleType

from syncer import settlement_worker
from syncer.settlement_worker import Partition, Settled

_LEAVE_SECONDS = 5.0


class PoolBroken(Exception):
    """A process of the pool died."""


class SettlementPool:
    """`count` processes that settle one partition each at a time, spawned, not forked."""

    def __init__(self, count: int, database_url: str) -> None:
        context = get_context("spawn")
        self._processes = []
        self._pipes: list[Connection] = []
        self._unheard: list[Connection] = []
        self._asked: list[Connection] = []
        self._deadline = 0.0
        with _nameless_main_module():
            for _ in range(count):
                here, there = context.Pipe()
                process = context.Process(
                    target=settlement_worker.serve, args=(there, database_url, os.getpid()), daemon=True
                )
                process.start()
                there.close()  # so that the pipe ends when the process does
                self._processes.append(process)
                self._pipes.append(here)
        self._unheard.extend(self._pipes)

    def is_ready(self) -> bool:
        """Say whether all processes are up, which takes each the time to import what it needs. Raises PoolBroken."""
        self._deadline = time.monotonic()
        for pipe in [each for each in self._unheard if each.poll(0)]:
            with self._limited(pipe):
                pipe.recv()
            self._unheard.remove(pipe)
        return not self._unheard

    def is_whole(self) -> bool:
        """Say whether all processes live."""
        return all(process.is_alive() for process in self._processes)

    def send(self, partitions: Sequence[Partition], timeout_seconds: float) -> None:
        """Give each partition to a process of its own, to be settled within so long.

        Raises PoolBroken, TimeoutError."""
        self._deadline = time.monotonic() + timeout_seconds
        self._asked = self._pipes[: len(partitions)]
        for pipe, partition in zip(self._asked, partitions, strict=True):
            with self._limited(pipe):
                pipe.send(partition)

    def receive(self) -> list[Settled]:
        """Return what came of the partitions that were sent.

        Raises PoolBroken, TimeoutError, and what a process raised: psycopg.OperationalError where it is to be tried
        again."""
        answers = []
        for pipe in self._asked:
            with self._limited(pipe):
                answers.append(pipe.recv())
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    @contextmanager
    def _limited(self, pipe: Connection) -> Iterator[None]:
        """Have reads and writes of a pipe fail when the time is over."""
        left = max(1e-3, self._deadline - time.monotonic())
        limit = struct.pack("@ll", int(left), int(left % 1 * 1e6))
        with socket.socket(fileno=os.dup(pipe.fileno())) as same:
            for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
                same.setsockopt(socket.SOL_SOCKET, option, limit)
        try:
            yield
        except BlockingIOError:
            raise TimeoutError("a process of the charge pool does not answer") from None
        except (EOFError, OSError) as error:
            raise PoolBroken(f"a process of the charge pool died ({type(error).__name__})") from None

    def close(self) -> None:
        """Let the processes leave, and wait for them; one that does not is killed."""
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + _LEAVE_SECONDS
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End the processes at once: each transaction is whole or not at all, and its charges have keys."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()


@contextmanager
def _nameless_main_module() -> Iterator[None]:
    """Keep spawned processes from importing this program's main module, and all that the command line imports."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
