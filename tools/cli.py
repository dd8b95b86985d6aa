"""The command line: `shmcache run`, `supervise`, `serve`, `inspect`, `top`, `config`, `doctor`, `accounts`, ..."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shmcache.errors import ShmcacheError
from shmcache.setting_texts import without_passwords
from tools.accounts_commands import accounts
from tools.celery_commands import cancel, status, submit
from tools.command_settings import add_settings_options, command_settings
from tools.config_command import config
from tools.doctor_command import doctor
from tools.monitoring.commands import monitoring
from tools.partitions_commands import partitions
from tools.serve_command import serve
from tools.top.command import top
from tools.trace_file import write_traceback

# Commands import what they need themselves, so that help and errors are quick.
if TYPE_CHECKING:
    from tools.processes import Processes
    from tools.supervisor import Supervisor

_REPLAY_STEPS = 1_000
"""A graph's nodes that run at most, where blocks are stood in for: such a block leaves no cycle."""

F = TypeVar("F", bound=Callable[..., Any])


def _common(command: F) -> F:
    for option in (
        click.option("--workers", type=click.IntRange(1, 64), help="Executor processes (SHMCACHE_WORKERS)."),
        click.option("--arena", metavar="NAME", help="Name of the arena, shared by nobody else at the time."),
        click.option(
            "--arena-size", metavar="SIZE", help='Size of the arena, such as "256 MiB" (SHMCACHE_ARENA_SIZE).'
        ),
        click.option(
            "--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), help="Least level logged."
        ),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shmcache", prog_name="shmcache")
def cli() -> None:
    """Take the database off the hot path of graph executors."""


@cli.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@_common
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="Run each graph so many times.")
@click.option("--direct", is_flag=True, help="Every operation on PostgreSQL: the 'before' of a comparison.")
@click.option("--time-scale", type=click.FloatRange(0), default=0.0, show_default=True,
              help="Sleep so much of a recorded task's runtime.")  # fmt: skip
@click.option("--blocks", type=click.Choice(["installed", "replay"]), default="installed", show_default=True,
              help="replay: stand in for blocks of the AutoGPT Platform that are not installed.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True, help="Where the values of replayed blocks come from.")
@click.option("--max-steps", type=click.IntRange(1),
              help="End a graph's run after so many nodes; 1000 with --blocks replay.")  # fmt: skip
@click.option("--user", metavar="UUID", help="Whose account is charged; a new one for each run if not given.")
@click.option("--credits", "opening_balance", type=click.IntRange(0), help="Credits of an account that the run opens.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def run(
    files: tuple[Path, ...],
    workers: int | None,
    arena: str | None,
    arena_size: str | None,
    log_level: str | None,
    repeat: int,
    direct: bool,
    time_scale: float,
    blocks: str,
    seed: int,
    max_steps: int | None,
    user: str | None,
    opening_balance: int | None,
    as_json: bool,
) -> int:
    """Run graph files to their end; without one, the example that comes with shmcache.

    Exit status 0 if every graph completed, 1 if not, 2 if it could not begin."""
    from setproctitle import setproctitle

    from shmcache.graphs import example_path, load_graph_files
    from shmcache.identifiers import id_bytes
    from tools.run import print_summary, run_graphs

    settings = command_settings(
        workers=workers, arena=arena, arena_size=arena_size, log_level=log_level, opening_balance=opening_balance,
        mode="direct" if direct else None,
    )  # fmt: skip
    if user is not None:
        id_bytes(user)
    replay_seed = seed if blocks == "replay" else None
    graphs = [
        graph
        for path in files or (example_path(),)
        for graph in load_graph_files(path, time_scale=time_scale, replay_seed=replay_seed)
    ]
    if max_steps is None and blocks == "replay":
        max_steps = _REPLAY_STEPS
    setproctitle("shmcache: supervisor")
    summary, completed = run_graphs(graphs, repeat, user, settings, arena, max_steps)
    if summary:
        print_summary(summary, as_json)
    return 0 if completed else 1


class _UntilReturned:
    """The job of `supervise`: done when every worker has returned."""

    def begin(self, database_url: str) -> None:
        """Nothing to prepare."""

    def submit(self) -> None:
        """The workers bring their own work."""

    def is_done(self, processes: Processes) -> bool:
        """Say whether no worker is left."""
        return not processes.count("worker")

    def show(self) -> None:
        """Nothing to show."""

    def hide(self) -> None:
        """Nothing to hide."""

    def report(self, supervisor: Supervisor) -> None:
        """Nothing to report."""


@cli.command()
@click.argument("target", metavar="MODULE:CALLABLE")
@_common
@click.option("--preload", is_flag=True, help="Import MODULE once, before the workers are forked: less memory, and "
              "SIGHUP brings no new code.")  # fmt: skip
def supervise(
    target: str, workers: int | None, arena: str | None, arena_size: str | None, log_level: str | None, preload: bool
) -> int:
    """Run a function of yours in worker processes over one arena, until all have returned.

    It is called without arguments in each worker, and gets its client from shmcache.get_db_client(). A worker that
    dies or raises is started again. SIGTERM raises SystemExit in it (install a handler of your own for another end).

    Signals: TERM or INT end in order, again or QUIT at once; HUP replaces the workers one by one, with MODULE imported
    anew; TTIN adds a worker, TTOU takes one away; USR1 writes the state to standard error.

    Exit status 0 if all is in the database, also after SIGTERM or Ctrl-C; 3 if workers fail as soon as they start."""
    from setproctitle import setproctitle

    from tools.processes import Role
    from tools.supervisor import Supervisor
    from tools.target import Target

    settings = command_settings(workers=workers, arena_size=arena_size, log_level=log_level, arena=arena)
    function = Target(target)
    if preload:
        function.load()
    else:
        function.try_import()
    setproctitle(f"shmcache: supervisor ({settings.arena})")
    worker = Role(
        "worker", lambda _should_stop: function.call(), restart_on_return=False, stop_raises=True,
        prepare=None if preload else function.load,
    )  # fmt: skip
    return 0 if Supervisor(settings, settings.arena, worker, reloads=True).run(_UntilReturned()) else 1


@cli.command()
@click.argument("name", required=False)
@click.option("--key", metavar="KEY", help="Print the record of this key: a UUID, or a key of a SharedMapping.")
@click.option(
    "--top", type=click.IntRange(0), default=10, show_default=True, help="How many records to show of a kind."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
def inspect(name: str | None, key: str | None, top: int, as_json: bool) -> None:
    """Show what is in an arena, who uses it and who holds its locks; without NAME, list the arenas.

    Only looks: takes no lock and writes nothing, so it works on an arena that is stuck, or whose processes are dead."""
    from tools.inspect_arena import print_arena, print_arenas, print_record

    if name is None:
        if key is not None:
            raise click.UsageError("--key needs the NAME of an arena")
        print_arenas(as_json)
    elif key is not None:
        print_record(name, key, as_json)
    else:
        print_arena(name, top, as_json)


cli.add_command(accounts)
cli.add_command(partitions)
cli.add_command(monitoring)
cli.add_command(top)
cli.add_command(config)
cli.add_command(doctor)
cli.add_command(serve)
cli.add_command(submit)
cli.add_command(status)
cli.add_command(cancel)


@cli.command(name="bench", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> Any:
    """Measure shmcache beside what one would take instead."""
    from tools.bench.command import bench as command

    return command.main(list(arguments), prog_name="shmcache bench", standalone_mode=False)


@cli.command(name="chaos", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def chaos(arguments: tuple[str, ...]) -> Any:
    """Kill and break everything under full load, then count what was lost."""
    from tools.chaos.command import chaos as command

    return command.main(list(arguments), prog_name="shmcache chaos", standalone_mode=False)


@cli.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as one JSON object.")
def drain(name: str, as_json: bool) -> int:
    """Carry what a dead supervisor's arena holds to the database, then remove the arena.

    The next start does the same by itself, for all arenas that it finds.

    Exit status 0 if all is in the database, 1 if some is left, in the arena."""
    from tools.drain import drain_by_hand

    return 0 if drain_by_hand(name, command_settings(arena=name), as_json) else 1


@cli.group("dead-letters")
def dead_letters() -> None:
    """Look at what the database refused; try it again; throw it away."""


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_letter_ids = click.argument("ids", nargs=-1, type=click.IntRange(1), metavar="[ID]...")
_all_option = click.option("--all", "all_letters", is_flag=True, help="All that there are.")


@dead_letters.command("list")
@click.option("--ring", type=click.Choice(["write", "charge"]), help="Only those of this ring.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="So many, the oldest first.")
@_json_option
def list_letters(ring: str | None, limit: int, as_json: bool) -> int:
    """List dead letters, oldest first."""
    from tools.dead_letters import print_list

    print_list(command_settings(), ring, limit, as_json)
    return 0


@dead_letters.command("show")
@click.argument("letter_id", metavar="ID", type=click.IntRange(1))
@_json_option
def show_letter(letter_id: int, as_json: bool) -> int:
    """Show one with its entry, decoded or, where it cannot be, as bytes."""
    from tools.dead_letters import print_one

    print_one(command_settings(), letter_id, as_json)
    return 0


@dead_letters.command("replay")
@_letter_ids
@_all_option
@_json_option
def replay_letters(ids: tuple[int, ...], all_letters: bool, as_json: bool) -> int:
    """Try dead letters again; those that are written now are dead letters no more.

    Exit status 0 if all of them were written, 1 if some were refused again or are not there."""
    from tools.dead_letters import replay_letters

    _check_choice(ids, all_letters)
    return 0 if replay_letters(command_settings(), ids, as_json) else 1


@dead_letters.command("discard")
@_letter_ids
@_all_option
@click.option("--yes", is_flag=True, help="Do not ask before all are thrown away.")
@_json_option
def discard_letters(ids: tuple[int, ...], all_letters: bool, yes: bool, as_json: bool) -> int:
    """Throw dead letters away: what they hold is lost.

    Exit status 0, or 1 if some are not there."""
    from tools.dead_letters import discard_letters

    _check_choice(ids, all_letters)
    if all_letters and not yes:
        click.confirm("Throw all dead letters away?", abort=True, err=True)
    return 0 if discard_letters(command_settings(), ids, as_json) else 1


def _check_choice(ids: tuple[int, ...], all_letters: bool) -> None:
    if bool(ids) == all_letters:
        raise click.UsageError("name dead letters by their ids, or give --all")


add_settings_options(cli)


def main() -> None:
    """Run the command line. An error is one line on standard error, and exit status 2, or the error's own."""
    # numpy's BLAS starts a thread for each core when it is loaded; a process that forks must have none but its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        sys.exit(cli(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        sys.exit(1)
    except ShmcacheError as error:
        sys.stderr.write(f"shmcache: {without_passwords(' '.join(str(error).split()))}\n")
        sys.exit(getattr(error, "exit_status", 2))
    except Exception as error:
        text = without_passwords(" ".join(f"{type(error).__name__}: {error}".split()))
        sys.stderr.write(f"shmcache: unexpected {text} (details in {write_traceback()})\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
