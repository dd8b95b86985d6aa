"""Settings on the command line: `--config FILE` and `--set NAME=VALUE`, before or after the name of any command."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from shmcache.errors import SettingsError

# Commands import what they need themselves, so that help and errors are quick.
if TYPE_CHECKING:
    from shmcache.config import Settings


def add_settings_options(command: click.Command) -> None:
    """Give a command, and all commands below it, the options; those that pass their arguments on do so with these."""
    if any(isinstance(each, click.Argument) and each.type is click.UNPROCESSED for each in command.params):
        return
    command.params += [
        click.Option(
            ["--config"], metavar="FILE", expose_value=False, is_eager=True, callback=_use_file,
            help="Read settings from this TOML file (SHMCACHE_CONFIG).",
        ),
        click.Option(
            ["--set", "_set"], metavar="NAME=VALUE", multiple=True, expose_value=False, callback=_set,
            help="Set any setting, above file and environment; again for each. No passwords: ps shows them.",
        ),
    ]  # fmt: skip
    if isinstance(command, click.Group):
        for each in command.commands.values():
            add_settings_options(each)


def command_settings(**given: Any) -> Settings:
    """Return the settings of this command, with those `given` by its own options, and log as they say.

    Raises SettingsError."""
    from shmcache.config import load_settings
    from tools.logs import start_logging

    settings = load_settings(**given)
    start_logging(settings.log_level, settings.log_format, settings.arena if given.get("arena") else "")
    return settings


def _use_file(_context: click.Context, _parameter: click.Parameter, path: str | None) -> None:
    if path is not None:
        os.environ["SHMCACHE_CONFIG"] = os.path.abspath(path)


def _set(_context: click.Context, _parameter: click.Parameter, assignments: tuple[str, ...]) -> None:
    if not assignments:
        return
    from shmcache.config import Settings
    from shmcache.setting_layers import did_you_mean, hand_on

    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        name = name.strip().replace("-", "_").lower()
        if not equals or not value:
            raise SettingsError(f"--set {name}: write NAME=VALUE")
        if name not in Settings.model_fields:
            raise SettingsError(f"--set {name}: no such setting{did_you_mean(name, Settings.model_fields)}")
        hand_on(**{name: value})
