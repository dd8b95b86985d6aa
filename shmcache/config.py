"""Settings: one typed class, filled from the environment (`SHMCACHE_*`) and from what the command line gives.

Sizes are bytes and may be written as "256 MiB"; durations are seconds and may be written as "5 s", "100 ms" or "2 min".
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import BeforeValidator, ByteSize, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from shmcache.errors import SettingsError

MOST_SECONDS = 1e9
"""The longest duration that can be set: about thirty years, and what every clock and wait can still count."""
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}


def _parse_duration(value: Any) -> Any:
    match = re.fullmatch(r"\s*([0-9.]+)\s*(ms|s|min|h)?\s*", value) if isinstance(value, str) else None
    return float(match[1]) * _DURATION_UNITS[match[2] or "s"] if match else value


Seconds = Annotated[float, BeforeValidator(_parse_duration), Field(gt=0, le=MOST_SECONDS, allow_inf_nan=False)]
"""A duration in seconds, also given as text with a unit."""

Bytes = Annotated[ByteSize, Field(gt=0, le=1 << 46)]
"""A size in bytes, also given as text with a unit."""


class Settings(BaseSettings):
    """Everything that can be set, with its default. Raises pydantic's ValidationError; use `load_settings`."""

    model_config = SettingsConfigDict(env_prefix="SHMCACHE_", frozen=True, extra="forbid")

    database_url: str | None = Field(
        default=None, description="PostgreSQL to use; without one, an embedded server is started"
    )
    state_dir: Path = Field(
        default_factory=lambda: platformdirs.user_state_path("shmcache"),
        description="where the embedded server's data and the lock files live",
    )
    arena: str = Field(default="shmcache", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="name of the arena")
    arena_size: Bytes | Literal["auto"] = Field(
        default="auto",
        description="size of the whole segment; auto: a quarter of what /dev/shm has free, from 32 MiB to 256 MiB",
    )
    mode: Literal["cached", "direct"] = Field(
        default="cached", description="cached, or direct: every call on PostgreSQL"
    )
    decoded_records: int = Field(default=50_000, gt=0, description="records kept decoded in each process")
    sync_interval: Seconds = Field(default=5.0, description="longest time between two drains of the write ring")
    ring_wait: Seconds = Field(default=10.0, description="how long a write waits for room before RingFull")
    lock_wait: Seconds = Field(default=30.0, description="how long a lock is waited for before LockTimeout")
    stopped_wait: Seconds = Field(
        default=10.0,
        description="how long a syncer or charger, or who holds a lock, may be stopped (SIGSTOP) before it is killed",
    )
    workers: int = Field(default=2, ge=1, le=64, description="executor processes")
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
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="least level logged")


def load_settings(**overrides: Any) -> Settings:
    """Return the settings from the environment, with `overrides` (those that are not None) above it.

    Raises SettingsError, naming each setting that cannot be used and why."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(
            f"SHMCACHE_{'_'.join(str(part) for part in problem['loc'][:1]).upper()}: {problem['msg']}"
            for problem in error.errors()
        )
        raise SettingsError(problems) from None


@cache
def settings() -> Settings:
    """Return this process's settings, read once from the environment."""
    return load_settings()
