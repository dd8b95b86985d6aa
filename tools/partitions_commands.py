"""`shmcache partitions`: the months of executions and of the ledger; what is done to them is in
`shmcache.database.partitions` and `ledger_months`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from tools.command_settings import command_settings

if TYPE_CHECKING:
    import psycopg

    from shmcache.config import Settings

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def partitions() -> None:
    """Executions and ledger by month: what there is, made ahead, and dropped when old."""


@partitions.command("list")
@_json
def partitions_list(as_json: bool) -> None:
    """Print the months that there are, oldest first."""
    from rich.console import Console
    from rich.table import Table

    from shmcache.database.ledger_months import LEDGER
    from shmcache.database.partitions import months
    from shmcache.setting_texts import shown_bytes
    from tools.database import open_database

    settings = command_settings()
    with open_database(settings) as connection:
        _check_ours(connection, settings)
        found = [("executions", each) for each in months(connection)]
        found += [("ledger", each) for each in months(connection, LEDGER)]
    if as_json:
        told = [
            {"of": of, "name": each.name, "ends": each.ends.isoformat(), "rows": each.rows, "bytes": each.size}
            for of, each in found
        ]
        sys.stdout.write(json.dumps(told) + "\n")
        return
    table = Table()
    for title in ("of", "month", "ends", "rows (estimated)", "size"):
        table.add_column(title, justify="right" if title.startswith(("rows", "size")) else "left")
    for of, each in found:
        table.add_row(of, each.name, each.ends.date().isoformat(), f"{each.rows:,}", shown_bytes(each.size))
    Console().print(table)


@partitions.command("tidy")
@click.option(
    "--older-than", type=click.IntRange(1, 36_500), metavar="DAYS",
    help="Drop months of executions that ended more days ago [default: SHMCACHE_RETENTION_DAYS].",
)  # fmt: skip
@click.option(
    "--ledger-older-than", type=click.IntRange(1, 36_500), metavar="DAYS",
    help="Carry forward months of the ledger that ended more days ago [default: SHMCACHE_LEDGER_RETENTION_DAYS].",
)  # fmt: skip
@_json
def partitions_tidy(older_than: int | None, ledger_older_than: int | None, as_json: bool) -> None:
    """Make the months ahead, and drop the old ones: what a leading syncer does each hour."""
    import psycopg

    from shmcache.database.ledger_months import tidy_ledger
    from shmcache.database.partitions import tidy
    from shmcache.errors import DatabaseUnavailable
    from tools.database import open_database

    settings = command_settings()
    with open_database(settings) as connection:
        _check_ours(connection, settings)
        try:
            done = tidy(connection, older_than or settings.retention_days)
            gone = tidy_ledger(connection, ledger_older_than or settings.ledger_retention_days)
        except psycopg.errors.LockNotAvailable:
            raise DatabaseUnavailable("partitions", "a table is busy just now: try again") from None
    told: dict[str, Any] = {
        "made": done.made, "dropped": done.dropped, "kept": dict(done.kept),
        "ledger": {"dropped": gone.dropped, "kept": dict(gone.kept)},
    }  # fmt: skip
    if as_json:
        sys.stdout.write(json.dumps(told) + "\n")
        return
    sys.stdout.write(f"{done.made} tables made; dropped: {', '.join(done.dropped) or 'none'}")
    sys.stdout.write(f"; of the ledger: {', '.join(gone.dropped) or 'none'}\n")
    for name, reason in told["kept"].items():
        sys.stdout.write(f"{name} stays: {reason}\n")
    for name, reason in told["ledger"]["kept"].items():
        sys.stdout.write(f"the ledger of {name} stays: {reason}\n")


def _check_ours(connection: psycopg.Connection[Any], settings: Settings) -> None:
    from shmcache.database.partitions import are_partitioned
    from shmcache.errors import SettingsError

    if not are_partitioned(connection):
        raise SettingsError(
            f"SHMCACHE_SCHEMA={settings.schema}: its tables are not ours to partition; its own retention applies"
        )
