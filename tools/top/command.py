"""`shmcache top`: the command."""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("name", required=False)
@click.option("--interval", metavar="SECONDS", type=click.FloatRange(0.1, 60), default=1.0, show_default=True,
              help="Look again after so long.")  # fmt: skip
def top(name: str | None, interval: float) -> None:
    """Show the arenas of this user, or one of them, live: what is in it, on its way, done, and by whom.

    Looks without a lock and without leaving a trace, also at an arena that is stuck or whose processes are dead. Keys
    drain it, flush it, elect another syncer, open the dead letters."""
    from shmcache.arena.view import View
    from shmcache.config import load_settings

    settings = load_settings()
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise click.UsageError("top needs a terminal; `shmcache inspect` prints what there is once")
    if name is not None:
        View(name).close()
    from tools.top.app import Top

    Top(settings, name, interval).run()
