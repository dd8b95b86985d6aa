"""Settings: where they come from, what they refuse."""

from __future__ import annotations

import pytest

from shmcache.config import Settings, load_settings
from shmcache.errors import SettingsError
from tools.supervisor import arena_size


def test_settings_come_from_the_environment_and_yield_to_what_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMCACHE_WORKERS", "7")
    monkeypatch.setenv("SHMCACHE_MAX_ATTEMPTS", "5")
    settings = load_settings(workers=3, max_attempts=None)
    assert (settings.workers, settings.max_attempts) == (3, 5)


@pytest.mark.parametrize(
    ("text", "seconds"), [("5", 5.0), ("5 s", 5.0), ("100 ms", 0.1), ("2 min", 120.0), ("1h", 3600.0), ("0.5s", 0.5)]
)
def test_durations_may_have_units(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    monkeypatch.setenv("SHMCACHE_SYNC_INTERVAL", text)
    assert load_settings().sync_interval == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "size"), [("256 MiB", 256 << 20), ("1GiB", 1 << 30), ("1000000", 1_000_000)])
def test_sizes_may_have_units(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("SHMCACHE_ARENA_SIZE", text)
    assert arena_size(load_settings()) == size


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SYNC_INTERVAL", "soon"), ("SYNC_INTERVAL", "-1"), ("SYNC_INTERVAL", "5 weeks"), ("ARENA_SIZE", "big"),
        ("WORKERS", "0"), ("WORKERS", "many"), ("MODE", "sideways"), ("ARENA", "a/b"), ("OPENING_BALANCE", "-5"),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_line_that_names_the_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SHMCACHE_{name}", value)
    with pytest.raises(SettingsError, match=f"SHMCACHE_{name}") as refused:
        load_settings()
    assert "\n" not in str(refused.value)


def test_the_size_auto_lies_between_32_and_256_mebibytes() -> None:
    assert 32 << 20 <= arena_size(Settings()) <= 256 << 20
