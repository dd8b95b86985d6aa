"""Files of the machine that say what it allows: mounts, control groups, the settings of systemd-logind.

All of them are read below a root, so that those of another machine can be laid out in a directory.
"""

from __future__ import annotations

import configparser
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_UNLIMITED = 1 << 60
"""Control groups of version 1 write "no limit" as a number near 2**63."""
_NO = frozenset({"no", "n", "false", "f", "off", "0"})


class Mount(NamedTuple):
    """A mounted file system."""

    directory: Path
    kind: str
    options: frozenset[str]


class MemoryLimit(NamedTuple):
    """A limit on memory, in bytes, and what of it is in use, not counting what can be dropped."""

    what: str
    limit: int
    used: int


class Host:
    """The machine, as its files describe it."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def mount_of(self, path: Path) -> Mount | None:
        """Return the file system that a path is on; the last one mounted counts."""
        found = None
        for line in self._lines("proc/self/mounts"):
            _, directory, kind, options, *_ = line.split(" ")
            place = Path(directory.replace("\\040", " "))
            if path.is_relative_to(place) and (found is None or len(place.parts) >= len(found.directory.parts)):
                found = Mount(place, kind, frozenset(options.split(",")))
        return found

    def memory_limits(self) -> list[MemoryLimit]:
        """Return the limits of this process's control groups, from its own upwards, and what the machine has free."""
        limits = [limit for directory in self._control_groups("memory") if (limit := _memory_limit(directory))]
        facts = {line.split(":")[0]: line.split()[1] for line in self._lines("proc/meminfo") if ":" in line}
        if "MemTotal" in facts and "MemAvailable" in facts:
            total, available = int(facts["MemTotal"]) << 10, int(facts["MemAvailable"]) << 10
            limits.append(MemoryLimit("the machine", total, total - available))
        return limits

    def process_limit(self) -> int | None:
        """Return how many processes and threads this process's control groups allow besides those that run."""
        rooms = []
        for directory in self._control_groups("pids"):
            most, now = _number(directory / "pids.max"), _number(directory / "pids.current")
            if most is not None and now is not None:
                rooms.append(most - now)
        return min(rooms, default=None)

    def removes_ipc(self) -> str | None:
        """Return what says that systemd-logind removes the shared memory of a user who logs out; None if nothing does.

        It does unless a file of its settings says otherwise; the last one that says anything stands."""
        if not (self.root / "run/systemd/seats").is_dir():
            return None  # no systemd-logind here
        said = "its default"
        removes = True
        for path in self._logind_files():
            parser = configparser.ConfigParser(interpolation=None, strict=False)
            with contextlib.suppress(OSError, UnicodeDecodeError, configparser.Error):
                parser.read_string(path.read_text(encoding="utf-8"))
            value = parser.get("Login", "RemoveIPC", fallback="").strip().lower()
            if value:
                said, removes = "/" + str(path.relative_to(self.root)), value not in _NO
        return said if removes else None

    def _logind_files(self) -> list[Path]:
        """Return the files of logind's settings, what is read last, and so weighs most, at the end (logind.conf(5))."""
        directories = [self.root / each for each in ("usr/lib", "usr/local/lib", "run", "etc")]
        mains = [path for each in directories if (path := each / "systemd/logind.conf").is_file()]
        drop_ins = {path.name: path for each in directories for path in (each / "systemd/logind.conf.d").glob("*.conf")}
        return mains[-1:] + [drop_ins[name] for name in sorted(drop_ins)]

    def _control_groups(self, controller: str) -> Iterator[Path]:
        """Give the directories of this process's groups that may limit something, from its own upwards."""
        for line in self._lines("proc/self/cgroup"):
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:
                base = self.root / "sys/fs/cgroup"
            elif controller in controllers.split(","):
                base = self.root / "sys/fs/cgroup" / controller
            else:
                continue
            own = base / path.strip("/")
            # In a container the group's path is that of the host; its files are mounted at the base.
            directory = own if own.is_dir() else base
            while True:
                yield directory
                if directory == base:
                    break
                directory = directory.parent

    def _lines(self, name: str) -> list[str]:
        try:
            return (self.root / name).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []


def _memory_limit(directory: Path) -> MemoryLimit | None:
    for limit_file, used_file, droppable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit, used = _number(directory / limit_file), _number(directory / used_file)
        if limit is not None and used is not None and limit < _UNLIMITED:
            statistics: dict[str, int] = {}
            with contextlib.suppress(OSError, ValueError):
                pairs = (line.split() for line in (directory / "memory.stat").read_text().splitlines())
                statistics = {name: int(value) for name, value in pairs}
            return MemoryLimit(f"control group {directory}", limit, max(0, used - statistics.get(droppable, 0)))
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
