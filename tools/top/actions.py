"""What the keys of `shmcache top` do to an arena; each says in one sentence what came of it.

Looking attaches for reading only. These attach for a moment, take no lane, and let go again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from shmcache.arena import Arena
from shmcache.arena.view import View
from shmcache.config import Settings
from shmcache.database.dead_letters import DeadLetter, list_dead_letters
from shmcache.errors import ShmcacheError
from tools.database import open_database
from tools.monitoring.reader import Reader, Snapshot

_MOST_LETTERS = 500


def drain(name: str) -> str:
    """Have what waits on an arena's rings carried to the database: by its own syncers, or, if all its processes are
    dead, as `shmcache drain` does. Raises ShmcacheError."""
    if not _snapshot(name).is_alive:
        done = subprocess.run(
            [sys.executable, "-m", "tools.cli", "drain", name, "--json"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not done.stdout:
            raise ShmcacheError(done.stderr.strip().removeprefix("shmcache: ") or f"drain ended with {done.returncode}")
        said = json.loads(done.stdout)
        return f"{said['drained']:,} entries drained, {said['left']:,} left; " + (
            "the arena is removed" if said["removed"] else "the arena is kept"
        )
    with Arena.attach(name) as arena:
        waiting = sum(ring.last_sequence - ring.committed_sequence for ring in (arena.write_ring, arena.charge_ring))
        for ring in (arena.write_ring, arena.charge_ring):
            ring.request_drain()
    return f"asked to drain now: {waiting:,} entries wait"


def flush(name: str, timeout_seconds: float) -> str:
    """Have what is on an arena's rings by now carried to the database, and wait until it is there. Raises
    ShmcacheError."""
    started = time.monotonic()
    with Arena.attach(name) as arena:
        rings = (arena.write_ring, arena.charge_ring)
        wanted = [ring.last_sequence for ring in rings]
        for ring in rings:
            ring.request_drain()
        for ring, sequence in zip(rings, wanted, strict=True):
            left = timeout_seconds - (time.monotonic() - started)
            if not ring.wait_committed(sequence, max(0.0, left)):
                missing = sequence - ring.committed_sequence
                return (
                    f"not all is in PostgreSQL after {timeout_seconds:g} s: {missing:,} entries of the {ring.name} ring"
                )
    return f"all that was written is in PostgreSQL, after {time.monotonic() - started:.2f} s"


def elect(name: str) -> str:
    """Ask the syncer that leads to end after its batch: another one leads then. Raises ShmcacheError."""
    ring = _snapshot(name).ring("write")
    if not ring.leader_pid:
        return "nobody leads the write ring"
    try:
        os.kill(ring.leader_pid, signal.SIGTERM)
    except OSError as error:
        raise ShmcacheError(f"syncer {ring.leader_pid} cannot be asked to end: {error.strerror}") from None
    return f"syncer {ring.leader_pid} is asked to end, its epoch {ring.epoch} with it"


def dead_letters(settings: Settings) -> list[DeadLetter]:
    """Return what the database refused, oldest first. Raises DatabaseUnavailable."""
    with open_database(settings) as connection:
        return list_dead_letters(connection, limit=_MOST_LETTERS)


def _snapshot(name: str) -> Snapshot:
    with View(name) as view:
        return Reader(view).read()
