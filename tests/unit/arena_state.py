"""What an arena holds, as plain values that can be compared; and killing a child at a chosen step."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from shmcache.arena import Arena, critical, layout, work
from shmcache.arena.transaction import Operation, Outcome, Transaction
from tests import kill_points


def commit(arena: Arena, *operations: Operation) -> Outcome:
    """Commit operations in one transaction."""
    wanted = Transaction()
    wanted.operations.extend(operations)
    return arena.commit(wanted)


def key(number: int) -> bytes:
    """Return a key."""
    return number.to_bytes(16, "big")


def state(arena: Arena) -> dict[str, Any]:
    """Return all that an arena holds, without versions and places."""
    words = arena.version_words()
    table = arena._table
    entries: dict[bytes, Any] = {}
    rows = table.rows()
    for index in (rows[:, layout.KEY_LOW] | rows[:, layout.KEY_HIGH]).nonzero()[0]:
        row = rows[index].tolist()
        name = table.key_of(table.entry_at(index))
        record = arena.read(name)
        family = row[layout.FAMILY] >> 32
        entries[name] = (
            record and record.record,
            row[layout.CHAIN] & layout.FLAGS & ~layout.FLAG_USED,
            row[layout.COUNTER],
            work.state_of(row[layout.QUEUE]),
            row[layout.DIRTY],
            table.key_of(family) if family else None,
            [table.key_of(member) for member in table.members(table.entry_at(index)) or ()],
        )
    queue = []
    entry = words[layout.QUEUE_HEAD]
    while entry:
        queue.append(table.key_of(entry))
        entry = words[entry + layout.QUEUE] & layout.LOW
    rings = [
        (ring.committed_sequence, ring.last_sequence, ring.read(ring.committed_sequence, 10**6, 1 << 40))
        for ring in (arena.write_ring, arena.charge_ring)
    ]
    return {"entries": entries, "queue": queue, "outstanding": arena.outstanding(), "rings": rings}


class Points:
    """A fault point that acts at the n-th step, and notes whether a commit point had been passed by then."""

    def __init__(self, act_at: int, act: Callable[[], None]) -> None:
        self.seen = 0
        self.committed = False
        self.names: list[str] = []
        self.act_at = act_at
        self._act = act

    def __call__(self, name: str) -> None:
        self.seen += 1
        self.names.append(name)
        self.committed = self.committed or name == "committed"
        if self.seen == self.act_at:
            self._act()


def die() -> None:
    """Die as if by `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


def run_in_child(work_to_do: Callable[[], None]) -> int:
    """Run a function in a forked child; return its exit code, negative for a signal, 99 if it raised."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            work_to_do()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            kill_points.disarm(critical)
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
