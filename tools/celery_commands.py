"""`shmcache submit`, `status`, `cancel`: the commands; what they do is in `tools.graph_executions`."""

from __future__ import annotations

from pathlib import Path

import click

from tools.command_settings import command_settings


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--broker", envvar="CELERY_BROKER_URL", metavar="URL", required=True,
              help="Celery's broker (CELERY_BROKER_URL), such as redis://host or amqp://user@host.")  # fmt: skip
@click.option("--queue", default="celery", show_default=True, metavar="NAME", help="The workers' queue.")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="Submit each graph so many times.")
@click.option("--time-scale", type=click.FloatRange(0), default=0.0, show_default=True,
              help="Sleep so much of a recorded task's runtime.")  # fmt: skip
@click.option("--user", metavar="UUID", help="Whose account is charged; a new one if not given.")
@click.option("--credits", "opening_balance", type=click.IntRange(0), help="Credits of an account that this opens.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def submit(
    files: tuple[Path, ...],
    broker: str,
    queue: str,
    repeat: int,
    time_scale: float,
    user: str | None,
    opening_balance: int | None,
    as_json: bool,
) -> int:
    """Have graph files run by Celery workers that import shmcache.contrib.celery; print the executions' ids.

    Needs the database (SHMCACHE_DATABASE_URL) and the broker, but no arena."""
    from tools.graph_executions import submit_files

    submit_files(
        command_settings(opening_balance=opening_balance), files, broker, queue, repeat, time_scale, user, as_json
    )
    return 0


@click.command()
@click.argument("graph_exec_id", metavar="ID")
@click.option("--wait", "wait_seconds", type=click.FloatRange(0), metavar="SECONDS",
              help="Wait so long for its end.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(graph_exec_id: str, wait_seconds: float | None, as_json: bool) -> int:
    """Print how far a graph execution is, as the database has it. Needs no arena.

    Exit status 0, or with --wait: 1 if it has not ended by then, or not as COMPLETED."""
    from tools.graph_executions import show_status

    return 0 if show_status(command_settings(), graph_exec_id, wait_seconds, as_json) else 1


@click.command()
@click.argument("graph_exec_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cancel(graph_exec_id: str, as_json: bool) -> int:
    """Have a graph execution end as TERMINATED, wherever it runs: nodes that run end, no other one starts.

    Needs no arena. Exit status 0, or 1 if it had ended before."""
    from tools.graph_executions import cancel_one

    return 0 if cancel_one(command_settings(), graph_exec_id, as_json) else 1
