"""The platform: Linux, processor, Python, and the calls of kernel and libc that the arena stands on, really made."""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator

from shmcache.arena import futex
from shmcache.arena.layout import plan
from shmcache.arena.memory import Memory
from shmcache.arena.mutex import RobustMutex
from shmcache.arena.segment import pid_namespace
from shmcache.errors import ArenaError
from tools.doctor.finding import Finding, failure, ok, warning

_OLDEST_PYTHON = (3, 11)
_OLDEST_GLIBC = (2, 30)
_MACHINES = ("x86_64", "aarch64")
_WAIT_SECONDS = 10.0
_WORD = 8192
"""Where in the probe's memory the word lies that is waited for; the lock is at 4096."""


def check_system() -> Finding:
    """Look at the operating system and the processor."""
    found = f"{platform.system()} {platform.release()}, {platform.machine()}"
    if platform.system() == "Linux" and platform.machine() in _MACHINES:
        return ok("system", found)
    return failure("system", found, "run on Linux, x86-64 or arm64")


def check_python() -> Finding:
    """Look at the interpreter."""
    found = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info < _OLDEST_PYTHON or sys.implementation.name != "cpython":
        return failure("Python", found, "run CPython 3.11 or newer")
    is_locked: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    if not is_locked():
        return warning("Python", f"{found}, free-threaded", "run the usual build: nobody has tried this one")
    return ok("Python", found)


def check_libc() -> Finding:
    """Look at the C library: its robust mutexes that can be waited for by the monotonic clock came with glibc 2.30."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (OSError, ValueError):
        name = version = ""
    if name != "glibc":
        return failure("C library", "not glibc", "run on glibc 2.30 or newer: not on Alpine, whose musl lacks it")
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < _OLDEST_GLIBC:
        return failure("C library", f"glibc {version}", "run on glibc 2.30 or newer")
    return ok("C library", f"glibc {version}")


def check_robust_mutex() -> Finding:
    """Kill a process that holds a lock in shared memory, and see whether the kernel gives the lock back."""
    with _probe_memory() as memory:
        mutex = RobustMutex("doctor", memory.address + 4096)
        mutex.initialize()

        def hold() -> None:
            mutex.acquire(_WAIT_SECONDS)
            os.kill(os.getpid(), signal.SIGKILL)

        os.waitpid(_fork(hold), 0)
        try:
            _, was_left = mutex.try_acquire()
            if was_left:
                mutex.release()
                return ok("robust mutexes", "a killed process's lock came back")
            found = "a killed process's lock looks as if nobody had held it, or stays held"
        except ArenaError as error:
            found = str(error)
    return failure("robust mutexes", found, "run on a Linux kernel: sandboxes such as gVisor lack robust futexes")


def check_futex() -> Finding:
    """Let a process sleep on a word of shared memory, and wake it from this one."""
    with _probe_memory() as memory:
        word = _WORD // 8

        def sleep() -> None:
            memory.words[word] = 1
            for _ in range(int(_WAIT_SECONDS)):
                if memory.words[word] != 1:
                    os._exit(0)
                futex.wait(memory.address + _WORD, 1, 1.0)
            os._exit(1)

        pid = _fork(sleep)
        while not memory.words[word] and not os.waitpid(pid, os.WNOHANG)[0]:
            os.sched_yield()
        memory.words[word] = 2
        futex.wake(memory.address + _WORD)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            return ok("futexes", "a process was woken by another")
    return failure(
        "futexes",
        "a process was not woken by another",
        "allow the system call futex (seccomp profile of the container)",
    )


def check_processes() -> Finding:
    """See whether processes can be followed: their ends by a pidfd, their namespace by /proc."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return failure(
            "pidfd_open", error.strerror or str(error),
            "run on Linux 5.3 or newer, and allow pidfd_open (Docker's seccomp profile does from 20.10 on)",
        )  # fmt: skip
    if not pid_namespace():
        return failure("/proc", "/proc/self/ns/pid cannot be read", "mount /proc in the container")
    return ok("pidfd_open", "ends of processes can be waited for")


@contextlib.contextmanager
def _probe_memory() -> Iterator[Memory]:
    """Give some shared memory that forked processes share and nobody else sees."""
    placed = plan(4 << 20)
    memory = Memory(mmap.mmap(-1, placed.end), placed)
    try:
        yield memory
    finally:
        memory.release()


def _fork(body: Callable[[], None]) -> int:
    """Fork a process that does something and ends without a trace of this one's; return its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        try:
            body()
        finally:
            os._exit(1)
    return pid
