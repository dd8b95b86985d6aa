"""What a chaos run stands on: a small disk, a small /dev/shm, a clock of its own, or why there is none.

Nothing of it reaches beyond the run: the mounts are in a mount namespace of this process, and the clock that steps is
that of the program under fire alone, which reads it through a few lines of C in its way (LD_PRELOAD).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux
_DISK_BYTES = 64 << 30
"""The room on the disk while it is not full: no bound; what is not used takes nothing."""
_MEMORY_BYTES = 320 << 20
_SPARE_BYTES = 64 << 10
"""What a full one has left."""
_MOST_TRIES = 10
_CLONE_NEWNS = 0x00020000
_CLOCK_SOURCE = Path(__file__).with_name("clock.c")
_CLOCK_VARIABLE = "CHAOS_CLOCK"


class Cannot(Exception):
    """A fault that this machine does not allow; the text says why."""


class Ground:
    """What a run stands on, some of it made for the faults that need it. Undone by `leave`.

    `skipped` says which faults cannot be made on this machine, and why."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk: Path | None = None
        self.environment: dict[str, str] = {}
        """For the program under fire."""
        self.skipped: dict[str, str] = {}
        self._clock: Path | None = None
        self._has_own_mounts = False
        self.has_own_memory = False
        """Whether /dev/shm is this run's alone."""

    def prepare(self, faults: list[str]) -> None:
        """Make what these faults need, and a /dev/shm of its own in any case: what is left there is the run's."""
        needs: dict[str, Callable[[], None]] = {
            "memory-full": self._make_small_memory,
            "disk-full": self._make_small_disk,
            "clock-step": self._make_clock,
        }
        for fault, make in needs.items():
            if fault in (*faults, "memory-full"):
                try:
                    make()
                except Cannot as error:
                    if fault in faults:
                        self.skipped[fault] = str(error)

    def step_clock(self, seconds: float) -> None:
        """Have the clock of the program under fire go wrong by so much from now on."""
        assert self._clock is not None
        with self._clock.open("r+b") as file:
            file.write(struct.pack("q", int(seconds)))

    def fill_disk(self) -> Callable[[], None] | None:
        """Leave next to no room on the disk; return what undoes that."""
        assert self.disk is not None
        return _fill(self.disk, _DISK_BYTES)

    def fill_memory(self) -> Callable[[], None] | None:
        """Leave next to no room in /dev/shm; return what undoes that."""
        return _fill(SHARED_MEMORY, _MEMORY_BYTES)

    def leave(self) -> None:
        """Unmount what was mounted."""
        if self.disk is not None:
            subprocess.run(["umount", "--lazy", self.disk], check=False)
        if self.has_own_memory:
            subprocess.run(["umount", "--lazy", SHARED_MEMORY], check=False)

    def _make_small_disk(self) -> None:
        """Mount a file system for the outputs of nodes whose size can be set."""
        self._make_own_mounts()
        place = self.directory / "disk"
        place.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "shmcache-chaos", str(place))
        place.chmod(0o755)
        self.disk = place

    def _make_small_memory(self) -> None:
        """Give this process and its children a /dev/shm of their own, a small one."""
        self._make_own_mounts()
        _mount("-t", "tmpfs", "-o", f"size={_MEMORY_BYTES}", "shmcache-chaos", str(SHARED_MEMORY))
        self.has_own_memory = True

    def _make_own_mounts(self) -> None:
        if not self._has_own_mounts:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
                raise Cannot(f"a mount namespace of its own: {os.strerror(ctypes.get_errno())} (only root may)")
            _mount("--make-rprivate", "/")
            self._has_own_mounts = True

    def _make_clock(self) -> None:
        """Put a clock that can be set before the system's, for who has this environment."""
        compiler = shutil.which("cc")
        if compiler is None:
            raise Cannot("a clock of its own is compiled, and there is no C compiler (cc)")
        library, clock = self.directory / "clock.so", self.directory / "clock"
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(_CLOCK_SOURCE), "-ldl"]
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
        if compiled.returncode:
            raise Cannot(f"a clock of its own does not compile: {compiled.stderr.strip().splitlines()[0]}")
        clock.write_bytes(bytes(8))
        self._clock = clock
        before = os.environ.get("LD_PRELOAD")
        self.environment = {
            "LD_PRELOAD": f"{library}:{before}" if before else str(library),
            _CLOCK_VARIABLE: str(clock),
        }


def _fill(place: Path, bytes_before: int) -> Callable[[], None] | None:
    """Make a tmpfs as large as what is in it, which takes no memory; return what makes it as large as before.

    None: it grows too quickly."""

    def resize(size: int) -> None:
        _mount("-o", f"remount,size={size}", str(place))

    for _ in range(_MOST_TRIES):
        try:
            resize(shutil.disk_usage(place).used + _SPARE_BYTES)
        except Cannot:
            continue  # more than that has been written since: it cannot be made smaller than what is in it
        return lambda: resize(bytes_before)
    return None


def _mount(*arguments: str) -> None:
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        raise Cannot(f"mount: {reason}") from None
