"""`shmcache config`: which settings hold, and where each of them came from."""

from __future__ import annotations

import json
import sys

import click

_WIDTH = 400
"""Columns of what goes to a pipe or a file, where nothing is to be folded."""


@click.command("config")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def config(as_json: bool) -> None:
    """Print the settings that hold, and where each came from: environment, file, command line, or default.

    Exit status 2 if one of them is unknown or cannot be used. Passwords are never printed."""
    from shmcache.config import Settings, is_secret, load_with_origins, show
    from shmcache.setting_layers import config_file

    settings, origins = load_with_origins()
    path = config_file()
    if as_json:
        facts = {
            name: {
                "value": (show(name, value) or None) if is_secret(name) else value,
                "source": origins[name].source,
                "name": origins[name].name,
                "file": origins[name].place or None,
                "description": Settings.model_fields[name].description,
            }
            for name, value in settings.model_dump(mode="json").items()
        }
        sys.stdout.write(json.dumps({"file": path and str(path), "settings": facts}) + "\n")
        return

    from rich.console import Console
    from rich.table import Table

    table = Table("setting", "value", "from", title="shmcache config", expand=False)
    for name in Settings.model_fields:
        origin = origins[name]
        where = origin.place or (origin.name if origin.source == "environment" else "")
        table.add_row(name, show(name, getattr(settings, name)), f"{origin.source} {where}".strip())
    Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False, markup=False).print(table)
    sys.stdout.write(f"file: {path or 'none'}\n")
