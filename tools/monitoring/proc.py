"""What the kernel says of a process."""

from __future__ import annotations

from typing import NamedTuple

_KIB = 1024
_PRIVATE = ("RssAnon", "VmSwap")


class ProcessFacts(NamedTuple):
    """Whether a process is stopped (SIGSTOP, a debugger), and its memory without what it shares with others."""

    is_stopped: bool
    private_bytes: int


def process_facts(pid: int) -> ProcessFacts | None:
    """Return what /proc says of a process; None if it is gone."""
    try:
        with open(f"/proc/{pid}/status") as status:
            lines = dict(line.split(":", 1) for line in status if ":" in line)
    except OSError:
        return None
    state = lines.get("State", "").strip()[:1]
    if state in ("Z", "X"):
        return None
    private = sum(int(lines[name].split()[0]) * _KIB for name in _PRIVATE if name in lines)
    return ProcessFacts(state in ("T", "t"), private)
