"""Settings: where they come from, what weighs more, what is refused, what is never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shmcache import setting_layers
from shmcache.config import Settings, load_settings, load_with_origins, show
from shmcache.errors import SettingsError
from shmcache.setting_layers import Origin, hand_on
from shmcache.setting_texts import shown_bytes, shown_seconds, without_passwords
from tools.supervisor import arena_size


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that settings are read from."""
    path = tmp_path / "settings.toml"
    path.write_text("")
    monkeypatch.setenv("SHMCACHE_CONFIG", str(path))
    return path


def refusal(**given: object) -> str:
    """Return what a call for the settings is refused with."""
    with pytest.raises(SettingsError) as refused:
        load_settings(**given)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_environment_yields_to_the_file_and_the_file_to_what_is_given(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORKERS", "MAX_ATTEMPTS", "CHARGE_WORKERS"):
        monkeypatch.setenv(f"SHMCACHE_{name}", "7")
    file.write_text("workers = 5\nmax_attempts = 5\n")
    settings, origins = load_with_origins(workers=3, max_attempts=None)
    assert (settings.workers, settings.max_attempts, settings.charge_workers) == (3, 5, 7)
    assert origins["workers"] == Origin("command line", "SHMCACHE_WORKERS", "")
    assert origins["max_attempts"] == Origin("file", "max_attempts", str(file))
    assert origins["charge_workers"] == Origin("environment", "SHMCACHE_CHARGE_WORKERS", "")
    assert origins["ring_wait"] == Origin("default", "", "")


def test_what_is_handed_on_weighs_more_than_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ARENA", "HANDED_ON"):
        monkeypatch.setenv(f"SHMCACHE_{name}", "")
    file.write_text('arena = "written"\nmode = "direct"\n')
    hand_on(arena="handed-on")
    settings, origins = load_with_origins()
    assert (settings.arena, settings.mode) == ("handed-on", "direct")
    assert origins["arena"].source == "command line"
    assert load_settings(arena="given").arena == "given"


def test_a_variable_that_is_empty_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMCACHE_WORKERS", "")
    assert load_settings().workers == Settings.model_fields["workers"].default


def test_the_file_is_the_one_named_else_the_users_else_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHMCACHE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(setting_layers, "SITE_FILE", tmp_path / "etc.toml")
    assert load_settings().workers == 2
    (tmp_path / "etc.toml").write_text("workers = 11\n")
    assert load_settings().workers == 11
    (tmp_path / "config" / "shmcache").mkdir(parents=True)
    (tmp_path / "config" / "shmcache" / "config.toml").write_text("workers = 12\n")
    assert load_settings().workers == 12
    (tmp_path / "named.toml").write_text("workers = 13\n")
    monkeypatch.setenv("SHMCACHE_CONFIG", str(tmp_path / "named.toml"))
    assert load_settings().workers == 13


@pytest.mark.parametrize(
    ("content", "said"), [(b"workers = ", "no TOML"), (b"\xff = 1", "UTF-8"), (b"[workers]\nx = 1", "workers")]
)
def test_a_file_that_cannot_be_used_is_named(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)
    text = refusal()
    assert str(file) in text
    assert said in text


def test_a_named_file_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "nowhere.toml", tmp_path):
        monkeypatch.setenv("SHMCACHE_CONFIG", str(path))
        assert f"{path}: no such file" in refusal()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5.0), ("5 s", 5.0), ("100 ms", 0.1), ("2 min", 120.0), ("1h", 3600.0), ("0.5s", 0.5), (".5", 0.5)],
)
def test_durations_may_have_units(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    monkeypatch.setenv("SHMCACHE_SYNC_INTERVAL", text)
    assert load_settings().sync_interval == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "size"), [("256 MiB", 256 << 20), ("1GiB", 1 << 30), ("8000000", 8_000_000)])
def test_sizes_may_have_units(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("SHMCACHE_ARENA_SIZE", text)
    assert arena_size(load_settings()) == size


@pytest.mark.parametrize("seconds", [0.001, 0.1, 0.25, 1.0, 1.5, 5.0, 60.0, 90.0, 120.0, 3600.0, 5400.0])
def test_a_duration_is_shown_as_it_may_be_written(seconds: float) -> None:
    assert load_settings(sync_interval=shown_seconds(seconds)).sync_interval == pytest.approx(seconds)
    assert show("sync_interval", 5.0) == "5 s"


@pytest.mark.parametrize("size", [4 << 20, (4 << 20) + 1, 256 << 20, 3 << 30, 5_000_000, 5000 << 10])
def test_a_size_is_shown_as_it_may_be_written(size: int) -> None:
    assert load_settings(arena_size=shown_bytes(size)).arena_size == size
    assert show("arena_size", load_settings(arena_size="256 MiB").arena_size) == "256 MiB"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SYNC_INTERVAL", "soon"), ("SYNC_INTERVAL", "-1"), ("SYNC_INTERVAL", "5 weeks"), ("SYNC_INTERVAL", "inf"),
        ("SYNC_INTERVAL", "nan"), ("SYNC_INTERVAL", "1.2.3"), ("SYNC_INTERVAL", "0"), ("SYNC_INTERVAL", "1e300"),
        ("ARENA_SIZE", "big"), ("WORKERS", "0"), ("WORKERS", "many"), ("MODE", "sideways"), ("ARENA", "a/b"),
        ("OPENING_BALANCE", "-5"), ("LOG_FORMAT", "xml"),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_line_that_names_the_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"SHMCACHE_{name}", value)
    text = refusal()
    assert f"SHMCACHE_{name} (environment)" in text
    assert value in text


def test_a_bad_value_of_the_file_is_told_with_its_place_and_the_nearest_choice(file: Path) -> None:
    file.write_text('mode = "cashed"\nsync_interval = inf\n')
    text = refusal()
    assert f"mode (in {file}): 'cashed'" in text
    assert "did you mean cached?" in text
    assert f"sync_interval (in {file}): inf" in text


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("SHMCACHE_WORKRES", "SHMCACHE_WORKERS"), ("shmcache_sync_intervall", "SHMCACHE_SYNC_INTERVAL")],
)
def test_an_unknown_variable_is_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch, name: str, nearest: str
) -> None:
    monkeypatch.setenv(name, "3")
    assert f"{name} (environment): no such setting, did you mean {nearest}?" in refusal()


def test_an_unknown_name_in_the_file_is_refused_with_the_nearest_name(file: Path) -> None:
    file.write_text("sync_intervall = 3\nzzz = 1\n")
    text = refusal()
    assert f"sync_intervall (in {file}): no such setting, did you mean sync_interval?" in text
    assert f"zzz (in {file}): no such setting" in text
    assert "zzz" in text
    assert text.count("did you mean") == 1


def test_an_unknown_name_that_a_call_gives_is_refused() -> None:
    assert "worker: no such setting, did you mean workers?" in refusal(worker=1)


def test_the_variables_of_a_service_named_shmcache_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SHMCACHE_SERVICE_HOST": "10.0.0.11",
        "SHMCACHE_SERVICE_PORT": "9464",
        "SHMCACHE_METRICS_SERVICE_PORT_HTTP": "9464",
        "SHMCACHE_PORT": "tcp://10.0.0.11:9464",
        "SHMCACHE_PORT_9464_TCP": "tcp://10.0.0.11:9464",
        "SHMCACHE_PORT_9464_TCP_ADDR": "10.0.0.11",
    }.items():
        monkeypatch.setenv(name, value)
    load_settings()
    monkeypatch.setenv("SHMCACHE_PORT", "9464")
    assert "SHMCACHE_PORT" in refusal()


def test_a_home_directory_may_be_written_as_a_tilde(file: Path) -> None:
    file.write_text('state_dir = "~/state"\n')
    assert load_settings().state_dir == Path.home() / "state"


ADDRESSES = [
    "postgresql://me:geheim@host:5433/db?sslpassword=geheim",
    "host=host user=me password='geheim' dbname=db",
    "host=host password = geheim",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_password_is_never_shown(address: str) -> None:
    settings = load_settings(database_url=address)
    assert settings.database_url == address
    for text in (show("database_url", address), repr(settings), str(settings), without_passwords(f"no {address} here")):
        assert "geheim" not in text
        assert "host" in text


def test_a_refused_address_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "geheim" not in refusal(database_url=["geheim"])
    assert show("database_url", "postgresql://me:geheim@[host/db") == "(an address that cannot be read)"


@pytest.mark.parametrize("text", ["user me has 3 credits", "https://example.com/a:b", "the password is wrong", "a@b:c"])
def test_what_holds_no_password_is_left_as_it_is(text: str) -> None:
    assert without_passwords(text) == text


def test_the_size_auto_lies_between_32_and_256_mebibytes() -> None:
    assert 32 << 20 <= arena_size(Settings()) <= 256 << 20


def test_the_tests_do_not_read_the_settings_of_who_runs_them() -> None:
    assert os.environ["SHMCACHE_CONFIG"] == os.devnull
