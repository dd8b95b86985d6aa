"""`shmcache doctor`: the command; what it looks at is in `tools.doctor`."""

from __future__ import annotations

import click

from tools.command_settings import command_settings


@click.command("doctor")
@click.option("--arena", metavar="NAME", help="The arena that is to fit (SHMCACHE_ARENA).")
@click.option("--arena-size", metavar="SIZE", help='Its size, such as "256 MiB" (SHMCACHE_ARENA_SIZE).')
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(arena: str | None, arena_size: str | None, as_json: bool) -> int:
    """Check this machine and its database, and say for each thing that is wrong what to do.

    Nothing is changed: what is tried (locks, a segment, a spawned process) is taken back.

    Exit status 0 if nothing failed (there may be warnings), 1 if something did, 2 if settings cannot be used."""
    settings = command_settings(arena=arena, arena_size=arena_size)
    from tools.doctor.examination import examine
    from tools.doctor.host import Host
    from tools.doctor.report import print_areas

    return 0 if print_areas(examine(settings, Host()), as_json) else 1
