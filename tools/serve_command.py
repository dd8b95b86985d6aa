"""`shmcache serve`: an arena for processes that others start: a web server's, Celery's, a script's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from tools.command_settings import command_settings

# Commands import what they need themselves, so that help and errors are quick.
if TYPE_CHECKING:
    from tools.processes import Processes
    from tools.supervisor import Supervisor


class _UntilAsked:
    """The job of `serve`: never done."""

    def begin(self, database_url: str) -> None:
        """Nothing to prepare."""

    def submit(self) -> None:
        """Others bring the work."""

    def is_done(self, processes: Processes) -> bool:
        """Say no."""
        del processes
        return False

    def show(self) -> None:
        """Nothing to show."""

    def hide(self) -> None:
        """Nothing to hide."""

    def report(self, supervisor: Supervisor) -> None:
        """Nothing to report."""


@click.command()
@click.option("--arena", metavar="NAME", help="Name of the arena (SHMCACHE_ARENA).")
@click.option("--arena-size", metavar="SIZE", help='Size of the arena, such as "256 MiB" (SHMCACHE_ARENA_SIZE).')
@click.option("--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), help="Least level logged.")
@click.option("--check", is_flag=True, help="Only say by the exit status whether the arena is served: 0, or 2 if not.")
@click.option("--wait", "wait_seconds", type=click.FloatRange(0), default=0.0, metavar="SECONDS",
              help="With --check: wait so long for it.")  # fmt: skip
def serve(arena: str | None, arena_size: str | None, log_level: str | None, check: bool, wait_seconds: float) -> int:
    """Keep an arena, with its syncers and its charger, for processes that others start, until SIGTERM or Ctrl-C.

    They get their client from shmcache.get_db_client(): under the same user, with the same SHMCACHE_ARENA and
    SHMCACHE_DATABASE_URL. Started again beneath them, it goes on with the arena that they are in.

    Exit status 0 if all that was written until the end is in the database."""
    settings = command_settings(arena=arena, arena_size=arena_size, log_level=log_level)
    if check:
        _check(settings.arena, wait_seconds)
        return 0
    from setproctitle import setproctitle

    from tools.supervisor import Supervisor

    setproctitle(f"shmcache: supervisor ({settings.arena})")
    return 0 if Supervisor(settings, settings.arena, None, reloads=True).run(_UntilAsked()) else 1


def _check(name: str, wait_seconds: float) -> None:
    """Return once the arena is served. Raises ArenaMissing, ArenaUnusable."""
    from shmcache.arena import survey
    from shmcache.arena.view import View
    from shmcache.errors import ArenaError, ArenaUnusable

    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            with View(name) as view:
                if any(each.alive and each.role == "supervisor" for each in survey.lanes(view.memory)):
                    return
            raise ArenaUnusable(name, "nobody serves it now: start shmcache serve, or your supervisor")
        except ArenaError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(min(0.1, max(0.0, deadline - time.monotonic())))
