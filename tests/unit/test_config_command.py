"""`shmcache config`, `--config` and `--set`: what holds is told with where it came from, and without secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from shmcache.config import Settings
from tests.unit.test_command_line import assert_one_line, shmcache
from tools.cli import cli


def facts(cwd: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """Return what the command prints as JSON."""
    done = shmcache(cwd, *arguments, "--json", **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_tells_every_setting_with_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('sync_interval = "2 min"\nring_wait = 3\n')
    found = facts(
        tmp_path, "config", "--config", "mine.toml", "--set", "ring-wait=4 s",
        SHMCACHE_WORKERS="7", SHMCACHE_SYNC_INTERVAL="9",
    )  # fmt: skip
    assert found["file"] == str(file)
    assert list(found["settings"]) == list(Settings.model_fields)
    told = {name: (each["value"], each["source"], each["file"]) for name, each in found["settings"].items()}
    assert told["sync_interval"] == (120.0, "file", str(file))
    assert told["ring_wait"] == (4.0, "command line", None)
    assert told["workers"] == (7, "environment", None)
    assert told["lock_wait"] == (30.0, "default", None)


def test_the_options_may_stand_before_the_command_too(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("workers = 5\nmax_attempts = 6\n")
    found = facts(tmp_path, "--config", "mine.toml", "--set", "workers=9", "config")["settings"]
    assert (found["workers"]["value"], found["max_attempts"]["value"]) == (9, 6)


def _commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        for each in command.commands.values():
            yield from _commands(each)


def test_every_command_that_reads_its_own_arguments_takes_them() -> None:
    for command in _commands(cli):
        options = {name for parameter in command.params for name in parameter.opts}
        if command.name not in ("bench", "chaos"):  # these pass theirs on
            assert {"--config", "--set"} <= options, command.name


def test_the_table_shows_units_and_places(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('arena_size = "64 MiB"\n')
    done = shmcache(tmp_path, "config", SHMCACHE_CONFIG=str(tmp_path / "mine.toml"), SHMCACHE_LOCK_WAIT="90")
    rows = [line for line in done.stdout.splitlines() if "│" in line]
    assert len(rows) == len(Settings.model_fields)
    assert any("64 MiB" in row and "mine.toml" in row for row in rows)
    assert any("90 s" in row and "environment SHMCACHE_LOCK_WAIT" in row for row in rows)


@pytest.mark.parametrize("arguments", [["config"], ["config", "--json"]])
def test_a_password_is_not_printed(tmp_path: Path, arguments: list[str]) -> None:
    done = shmcache(tmp_path, *arguments, SHMCACHE_DATABASE_URL="postgresql://me:geheim@somewhere/db")
    assert done.returncode == 0, done.stderr
    assert "somewhere" in done.stdout
    assert "geheim" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "workres=3"], "--set workres: no such setting, did you mean workers?"),
        (["--set", "workers"], "write NAME=VALUE"),
        (["--set", "workers=many"], "SHMCACHE_WORKERS (command line): 'many'"),
        (["--config", "nowhere.toml"], "nowhere.toml: no such file"),
    ],
)
def test_an_option_that_cannot_be_used_is_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    assert_one_line(shmcache(tmp_path, "config", *arguments), said)
    assert_one_line(shmcache(tmp_path, *arguments, "config"), said)


def test_an_unknown_variable_stops_any_command(tmp_path: Path) -> None:
    assert_one_line(
        shmcache(tmp_path, "drain", "nothing", SHMCACHE_SYNC_INTERVALL="3"), "did you mean SHMCACHE_SYNC_INTERVAL?"
    )
