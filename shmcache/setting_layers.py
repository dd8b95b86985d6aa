"""Where settings come from, below what a call itself gives; what weighs most first.

    handed on      environment variables that the command line set, here or in the process that started this one:
                   their names are in SHMCACHE_HANDED_ON, which makes them weigh as much as the command line
    file           TOML, one line a setting: the file that --config or SHMCACHE_CONFIG names, else the first that is
                   there of ~/.config/shmcache/config.toml and /etc/shmcache/config.toml
    environment    SHMCACHE_* variables; one that is empty is none

Names that are no setting are refused in both, except the variables that Kubernetes and Docker make for a service that
is called shmcache.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
)

from shmcache.errors import SettingsError

PREFIX = "SHMCACHE_"
CONFIG = f"{PREFIX}CONFIG"
HANDED_ON = f"{PREFIX}HANDED_ON"
SITE_FILE = Path("/etc/shmcache/config.toml")
_NOT_SETTINGS = frozenset({CONFIG, HANDED_ON})
_SERVICE_VARIABLE = re.compile(r"SHMCACHE_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S*")


class Origin(NamedTuple):
    """Where a setting came from, what it is called there, and, if that is a file, which."""

    source: str
    name: str
    place: str


class Layer(NamedTuple):
    """Settings of one source."""

    source: PydanticBaseSettingsSource
    origins: dict[str, Origin]


def layers(settings_class: type[BaseSettings]) -> list[Layer]:
    """Return the layers, what weighs most first. Raises SettingsError for a file that cannot be read."""
    variables = EnvSettingsSource(settings_class)
    values = variables()
    names = {name for name in os.environ.get(HANDED_ON, "").split() if name in values}
    handed_on = InitSettingsSource(settings_class, {name: values[name] for name in names})
    found = [
        Layer(handed_on, {name: Origin("command line", _variable(name), "") for name in names}),
        Layer(variables, {name: Origin("environment", _variable(name), "") for name in values}),
    ]
    path = config_file()
    if path is not None:
        written = _read(path)
        file = InitSettingsSource(settings_class, written)
        found.insert(1, Layer(file, {name: Origin("file", name, str(path)) for name in written}))
    return found


def config_file() -> Path | None:
    """Return the file that settings are read from, or None. Raises SettingsError if the one named is not there."""
    named = os.environ.get(CONFIG)
    if named:
        path = Path(named).expanduser().absolute()
        if not os.path.isfile(path) and path != Path(os.devnull):  # Path.is_file may raise PermissionError
            raise SettingsError(f"{path}: no such file of settings: check --config, or {CONFIG}")
        return path
    for path in (platformdirs.user_config_path("shmcache") / "config.toml", SITE_FILE):
        if os.path.isfile(path):
            return path
    return None


def hand_on(**values: str) -> None:
    """Give settings to this process and to those that it starts, with the weight of the command line."""
    names = {*os.environ.get(HANDED_ON, "").split(), *values}
    os.environ.update({_variable(name): value for name, value in values.items()})
    os.environ[HANDED_ON] = " ".join(sorted(names))


def refuse_unknown(settings_class: type[BaseSettings]) -> None:
    """Raise SettingsError for what looks like a setting, in the environment or the file, and is none."""
    known = settings_class.model_fields
    variables = sorted(
        name
        for name, value in os.environ.items()
        if name.upper().startswith(PREFIX)
        and name[len(PREFIX) :].lower() not in known
        and name not in _NOT_SETTINGS
        and not _is_of_a_service(name, value)
    )
    problems = [
        f"{name} (environment): no such setting{did_you_mean(name.upper(), [_variable(each) for each in known])}"
        for name in variables
    ]
    path = config_file()
    if path is not None:
        problems += [
            f"{name} (in {path}): no such setting{did_you_mean(name, known)}"
            for name in _read(path)
            if name not in known
        ]
    if problems:
        raise SettingsError("; ".join(problems))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the nearest known name as the end of a sentence; nothing where none is near."""
    near = get_close_matches(name.lower(), {each.lower(): each for each in known}, n=1)
    return f", did you mean {next(each for each in known if each.lower() == near[0])}?" if near else ""


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _is_of_a_service(name: str, value: str) -> bool:
    """Say whether Kubernetes or Docker made a variable for a service whose name begins with shmcache."""
    return bool(_SERVICE_VARIABLE.fullmatch(name)) or (name.endswith("_PORT") and bool(_SERVICE_ADDRESS.match(value)))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is no UTF-8 text: settings are written in TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: is no TOML: {error}") from None
