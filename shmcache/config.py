"""Settings: one typed class, filled from the environment, a TOML file and the command line; the later weighs more.

    environment     SHMCACHE_SYNC_INTERVAL="5 s"
    file            sync_interval = "5 s"        where it lies: see `shmcache.setting_layers`
    command line    --set sync_interval=5s       also what the process that started this one was given so

Sizes are bytes and may be written as "256 MiB"; durations are seconds and may be written as "5 s", "100 ms" or "2 min".
A new setting is one field: its type says how it is read and shown (`Seconds`, `Bytes`, `Secret`, ...).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import platformdirs
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shmcache.errors import SettingsError
from shmcache.setting_layers import PREFIX, Origin, did_you_mean, layers, refuse_unknown
from shmcache.setting_texts import HIDDEN, Kind, shown

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ms|s|min|h)?\s*")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([KMGT]i?)?B?\s*", re.IGNORECASE)
_LONGEST_SECONDS = 366 * 86400.0
_LARGEST_BYTES = 1 << 46


def _parse_duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value)
    if match is None:
        raise PydanticCustomError("duration", 'no duration: write seconds, or such as "5 s", "100 ms", "2 min", "1 h"')
    return float(match[1]) * _DURATION_UNITS[match[2] or "s"]


def _check_size(value: Any) -> Any:
    if isinstance(value, str) and not _SIZE.fullmatch(value):
        raise PydanticCustomError("size", 'no size: write bytes, or such as "256 MiB", "1 GiB"')
    return value


def _find_directory(path: Path) -> Path:
    if "\0" in str(path):
        raise PydanticCustomError("directory", "no path: it holds the character NUL")
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise PydanticCustomError("directory", "no path: there is no such user whose home it could be in") from None


Seconds = Annotated[
    float, BeforeValidator(_parse_duration), Field(gt=0, le=_LONGEST_SECONDS, allow_inf_nan=False), Kind.SECONDS
]
"""A duration in seconds, also given as text with a unit."""

SecondsOrNever = Annotated[
    float, BeforeValidator(_parse_duration), Field(ge=0, le=_LONGEST_SECONDS, allow_inf_nan=False), Kind.SECONDS
]
"""The same, where 0 means: never."""

Bytes = Annotated[ByteSize, BeforeValidator(_check_size), Field(gt=0, le=_LARGEST_BYTES), Kind.BYTES]
"""A size in bytes, also given as text with a unit."""

Secret = Annotated[str, Kind.SECRET]
"""A text that is never printed or logged."""

DatabaseUrl = Annotated[str, Kind.DATABASE_URL]
"""An address of PostgreSQL, whose password is never printed or logged."""

Directory = Annotated[Path, AfterValidator(_find_directory)]
"""A directory; `~` is the user's own."""


def split_address(address: str) -> tuple[str, int]:
    """Return the host and the port of "PORT", "HOST:PORT" or "[IPv6]:PORT"; loopback without a host. Raises
    ValueError."""
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 address is written as [{host}]:{port}")
    if address.startswith(":") or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError("no address: write a PORT, or HOST:PORT such as 127.0.0.1:9464")
    return host or "127.0.0.1", int(port)


def _check_address(address: str) -> str:
    try:
        split_address(address)
    except ValueError as error:
        raise PydanticCustomError("address", "{problem}", {"problem": str(error)}) from None
    return address


def _check_ledger_retention(days: int, info: ValidationInfo) -> int:
    executions = info.data.get("retention_days")  # None: that one is refused already
    if days and executions is not None and not 0 < executions <= days:
        raise PydanticCustomError(
            "ledger_retention",
            "charges are kept as long as the executions that they paid, or longer: set SHMCACHE_RETENTION_DAYS "
            "({executions}) to 1 to {days}, or this to 0",
            {"executions": executions, "days": days},
        )
    return days


# It warns that a field has the name of a deprecated method of its own.
warnings.filterwarnings("ignore", message='Field name "schema" in "Settings" shadows', category=UserWarning)


class Settings(BaseSettings):
    """Everything that can be set, with its default. Raises pydantic's ValidationError; use `load_settings`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    database_url: DatabaseUrl | None = Field(
        default=None, description="PostgreSQL to use; without one, an embedded server is started"
    )
    listen_url: DatabaseUrl | None = Field(
        default=None,
        description="PostgreSQL itself, for what it tells (LISTEN), where SHMCACHE_DATABASE_URL is a pooler's address",
    )
    schema: Literal["shmcache", "autogpt"] = Field(  # type: ignore[assignment] # what pydantic calls so is deprecated
        default="shmcache", description="whose tables: shmcache, our own, or autogpt, those of the AutoGPT Platform"
    )
    state_dir: Directory = Field(
        default_factory=lambda: platformdirs.user_state_path("shmcache"),
        description="where the embedded server's data and the lock files live",
    )
    arena: str = Field(default="shmcache", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="name of the arena")
    arena_size: Annotated[Bytes, Field(ge=4 << 20)] | Literal["auto"] = Field(
        default="auto",
        description="size of the whole segment; auto: a quarter of what /dev/shm has free, from 32 MiB to 256 MiB",
    )
    mode: Literal["cached", "direct", "shadow"] = Field(
        default="cached",
        description="cached; direct: every call on PostgreSQL; shadow: direct, and the arena is compared with it",
    )
    decoded_records: int = Field(default=16_384, gt=0, description="records kept decoded in each process")
    sync_interval: Seconds = Field(default=5.0, description="longest time between two drains of the write ring")
    flush_on: Literal["interval", "node"] = Field(
        default="interval",
        description="interval, or node: a node's end is in PostgreSQL before its worker takes the next one",
    )
    ring_wait: Seconds = Field(default=10.0, description="how long a write waits for room before RingFull")
    lock_wait: Seconds = Field(default=30.0, description="how long a lock is waited for before LockTimeout")
    stopped_wait: Seconds = Field(
        default=10.0,
        description="a syncer or charger stopped (SIGSTOP) for so long is killed; with a lock or a half-full ring, 0.3",
    )
    workers: int = Field(default=2, ge=1, le=64, description="executor processes")
    worker_timeout: SecondsOrNever = Field(
        default=0.0,
        description="how long a worker may neither write, wait nor call heartbeat() before it is replaced; 0: for ever",
    )
    max_requests: int = Field(
        default=0, ge=0, description="node executions after which a worker is replaced, between two of them; 0: never"
    )
    max_requests_jitter: int = Field(
        default=0, ge=0, description="most that is added to it, by chance for each worker: not all leave at once"
    )
    charge_workers: int = Field(default=2, ge=1, le=32, description="processes that settle charges")
    max_attempts: int = Field(default=3, ge=1, le=100, description="how often a node is started when its workers die")
    execution_fee: int = Field(
        default=1, ge=0, description="credits charged on every so many node executions of a user"
    )
    execution_fee_every: int = Field(default=100, ge=1, description="how many node executions that is")
    opening_balance: int = Field(
        default=1_000_000, ge=0, le=2**62, description="credits of an account that a run creates"
    )
    low_balance: int = Field(
        default=0, ge=0, le=2**62, description="credits below which a balance is told of as low; 0: never"
    )
    account_interval: Seconds = Field(
        default=30.0, description="longest time between two reads of the accounts that the arena has"
    )
    credit_lease: Annotated[Seconds, Field(ge=1)] = Field(
        default=5400.0,
        description="how long a host that is cut off goes on with what it has leased of accounts, and others leave it",
    )
    definition_interval: Seconds = Field(
        default=60.0, description="longest time between two checks of the graphs that the arena has"
    )
    retention_days: int = Field(
        default=0,
        ge=0,
        le=36_500,
        description="days after which executions are dropped, by whole months that have ended; 0: never",
    )
    ledger_retention_days: Annotated[int, AfterValidator(_check_ledger_retention)] = Field(
        default=0,
        ge=0,
        le=36_500,
        description="the same for charges in the ledger, whose sums are kept; not less than SHMCACHE_RETENTION_DAYS",
    )
    host_lease: Seconds = Field(
        default=15.0,
        description="how long nobody else takes a host's graph executions after it was heard of last",
    )
    metrics_address: Annotated[str, AfterValidator(_check_address)] | None = Field(
        default=None, description="PORT or HOST:PORT of the status page and the metrics; without one there are none"
    )
    metrics_token: Secret | None = Field(
        default=None, min_length=8, description="what they ask for; needed to listen on more than loopback"
    )
    tracing: bool = Field(default=False, description="OpenTelemetry spans of batches, graphs and nodes (extra `otel`)")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="least level logged")
    log_format: Literal["text", "json"] = Field(
        default="text", description="a line of text, or one JSON object, an event"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Say where settings come from, what weighs most first."""
        del env_settings, dotenv_settings, file_secret_settings
        return (init_settings, *(layer.source for layer in layers(settings_cls)))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, show(name, value) if name in _kinds() and is_secret(name) else value


class Loaded(NamedTuple):
    """Settings, and where each of them came from."""

    settings: Settings
    origins: dict[str, Origin]


def load_settings(**given: Any) -> Settings:
    """Return the settings, with those `given` that are not None above all others.

    Raises SettingsError, naming each setting that is unknown or cannot be used, where it stands, and what is near."""
    return load_with_origins(**given).settings


def load_with_origins(**given: Any) -> Loaded:
    """Do what `load_settings` does, and say where each setting came from. Raises SettingsError."""
    given = {name: value for name, value in given.items() if value is not None}
    refuse_unknown(Settings)
    origins = {name: Origin("default", "", "") for name in Settings.model_fields}
    for layer in reversed(layers(Settings)):
        origins |= layer.origins
    origins |= {name: Origin("command line", PREFIX + name.upper(), "") for name in given}
    for name in given:
        if name not in Settings.model_fields:
            raise SettingsError(f"{name}: no such setting{did_you_mean(name, Settings.model_fields)}")
    try:
        return Loaded(Settings(**given), origins)
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for problem in error.errors():
            name = str(problem["loc"][0])
            said = _said(name, problem)
            if said not in problems.setdefault(name, []):
                problems[name].append(said)
        raise SettingsError(
            "; ".join(f"{_called(name, origins)}: {', or '.join(said)}" for name, said in problems.items())
        ) from None


def show(name: str, value: Any) -> str:
    """Return a setting's value as people read and write it, with what is secret left out."""
    return shown(value, _kinds()[name])


def is_secret(name: str) -> bool:
    """Say whether a setting's value may not be printed as it is."""
    return _kinds()[name] in (Kind.SECRET, Kind.DATABASE_URL)


@cache
def _kinds() -> dict[str, Kind]:
    return {name: _kind_in((field.annotation, *field.metadata)) for name, field in Settings.model_fields.items()}


def _kind_in(parts: tuple[Any, ...]) -> Kind:
    for part in parts:
        found = part if isinstance(part, Kind) else _kind_in(get_args(part))
        if found is not Kind.PLAIN:
            return found
    return Kind.PLAIN


def _called(name: str, origins: dict[str, Origin]) -> str:
    """Return what a setting is called where its value came from."""
    origin = origins[name]
    return f"{origin.name} (in {origin.place})" if origin.place else f"{origin.name} ({origin.source})"


def _said(name: str, problem: ErrorDetails) -> str:
    """Return what is wrong with a value, without the value where that is secret."""
    value = HIDDEN if is_secret(name) else repr(problem["input"])
    text = problem["msg"][:1].lower() + problem["msg"][1:]
    if problem["type"] != "literal_error":
        return f"{value}: {text}"
    choices = re.findall(r"'(.*?)'", str(problem.get("ctx", {}).get("expected", "")))
    return f"{value}: {text}{did_you_mean(str(problem['input']), choices)}"
