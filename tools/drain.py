"""`shmcache drain NAME`: what a dead supervisor's arena holds, carried to the database by hand."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shmcache.arena import Arena, Counter
from shmcache.config import Settings
from shmcache.database.connection import connect
from shmcache.database.migrate import identity
from shmcache.errors import ArenaError, ArenaUnusable
from syncer.election import Candidate
from tools.database import database_url
from tools.leftovers import drain, give_leases_back, living, remove, unsynced
from tools.signals import SignalQueue


class ArenaInUse(ArenaError):
    """An arena has a supervisor or processes that live; it is drained by them."""

    def __init__(self, name: str, pids: list[int]) -> None:
        users = f"processes {', '.join(map(str, pids))} use it" if pids else "a supervisor has it, or another drain"
        super().__init__(f"arena {name!r} is in use ({users}): its own syncer drains it")
        self.name = name
        self.pids = pids


def drain_by_hand(name: str, settings: Settings, as_json: bool) -> bool:
    """Drain an arena whose processes are dead, with a progress bar on standard error, and remove it.

    Returns whether all of it is in the database; what is not stays, in the arena. Ctrl-C ends it after the batch at
    hand. Raises ArenaMissing, ArenaUnusable, ArenaInUse, DatabaseUnavailable."""
    with SignalQueue() as signals:
        lock = Candidate(settings.state_dir, name, "supervisor")
        if not lock.try_now():
            raise ArenaInUse(name, [])
        try:
            with Arena.attach(name, lock_wait=settings.lock_wait, ring_wait=settings.ring_wait) as arena:
                pids = living(arena)
                if pids:
                    raise ArenaInUse(name, pids)
                with database_url(settings) as url:
                    return _drain(arena, url, settings, signals, as_json)
        finally:
            lock.leave()


def _drain(arena: Arena, url: str, settings: Settings, signals: SignalQueue, as_json: bool) -> bool:
    with connect(url, application_name="shmcache drain") as connection:
        if arena.identity != identity(connection):
            raise ArenaUnusable(arena.name, "it belongs to another database: set SHMCACHE_DATABASE_URL to that one")
    before = arena.counter_totals()
    first = _committed(arena)
    bar = Progress(
        TextColumn("draining {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    with bar:
        task = bar.add_task(arena.name, total=unsynced(arena))

        def show() -> None:
            done = _committed(arena) - first
            bar.update(task, completed=done, total=done + unsynced(arena))

        drained = drain(arena, url, settings, lambda: not signals.is_empty, show)
    removed = drained and remove(arena, settings)
    if removed:
        give_leases_back(arena, url)
    result = {
        "arena": arena.name,
        "drained": _committed(arena) - first,
        "dead_letters": arena.counter_totals()["dead_letters"] - before[Counter.DEAD_LETTERS.name.lower()],
        "left": unsynced(arena),
        "removed": removed,
    }
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        sys.stdout.write(
            f"arena {arena.name}: {result['drained']:,} entries drained, {result['dead_letters']:,} of them dead"
            f" letters, {result['left']:,} left; the arena is {'removed' if result['removed'] else 'kept'}\n"
        )
    return drained


def _committed(arena: Arena) -> int:
    return sum(ring.committed_sequence for ring in (arena.write_ring, arena.charge_ring))
