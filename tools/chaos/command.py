"""The command `shmcache chaos`."""

from __future__ import annotations

import signal
import sys
from itertools import islice
from pathlib import Path

import click

from shmcache.errors import SettingsError
from tools.chaos.schedule import ALL, schedule

_DEFAULT_KILLS = 50


@click.command()
@click.option("--kills", type=click.IntRange(1), help=f"So many SIGKILLs; {_DEFAULT_KILLS} if nothing is said.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Faults for so long.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same schedule.")
@click.option("--faults", metavar="LIST", help=f"Only these, with commas: {', '.join(ALL)}.")
@click.option("--files", multiple=True, type=click.Path(path_type=Path), help="Graph files to run.")
@click.argument("more_files", metavar="[FILE]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--workers", type=click.IntRange(1, 64), default=4, show_default=True, help="Executor processes.")
@click.option("--arena-size", default="128 MiB", show_default=True, help="The smaller, the more often it is full.")
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as one JSON object.")
@click.option("--keep", is_flag=True, help="Keep journals, segment and log, even if nothing is wrong.")
@click.option("--schedule", "only_schedule", is_flag=True, help="Print the first --kills events only.")
def chaos(
    kills: int | None,
    minutes: float | None,
    seed: int,
    faults: str | None,
    files: tuple[Path, ...],
    more_files: tuple[Path, ...],
    workers: int,
    arena_size: str,
    as_json: bool,
    keep: bool,
    only_schedule: bool,
) -> int:
    """Run graphs at full load on a server of its own, kill and break everything, then count what was lost.

    Exit status 0 if nothing was lost, doubled, out of order, overdrawn, unbalanced, unfinished or left behind; 1 if
    something was, and then the journals, the segment and the log are kept."""
    from shmcache.graphs import example_path
    from tools.chaos.report import print_outcome
    from tools.chaos.run import Limits, run_chaos

    chosen = list(dict.fromkeys(each.strip() for each in faults.split(","))) if faults else list(ALL)
    unknown = [each for each in chosen if each not in ALL]
    if unknown:
        raise SettingsError(f"--faults: {', '.join(unknown)}: not known; there are {', '.join(ALL)}")
    if kills is None and minutes is None:
        kills = _DEFAULT_KILLS
    if only_schedule:
        for event in islice(schedule(seed, chosen), kills):
            click.echo(f"{event.delay_seconds:.3f} {event.fault} {event.part:.3f}")
        return 0

    def say(text: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\x1b[2K{text}", err=True, nl=False)

    graphs = (*files, *more_files) or (example_path(),)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way, nothing is left running
    outcome = run_chaos(seed, chosen, Limits(kills, minutes), graphs, workers, arena_size, say, keep=keep)
    say("")
    print_outcome(outcome, seed, as_json)
    return 0 if outcome.passed else 1
