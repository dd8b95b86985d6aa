"""What a chaos run stands on: the clock, the disk and the shared memory that it has for itself, and the proxy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tools.chaos.ground import SHARED_MEMORY, Ground
from tools.chaos.proxy import Proxy
from tools.chaos.run import ChaosError, Limits, run_chaos

READ_CLOCKS = "import time; print(time.time(), time.monotonic())"
FILL = """
import os, sys
from pathlib import Path
from tools.chaos.ground import SHARED_MEMORY, Ground

ground = Ground(Path(sys.argv[1]))
ground.prepare(["disk-full", "memory-full"])
if ground.skipped:
    sys.exit(f"SKIPPED {ground.skipped}")
for place, fill in ((ground.disk, ground.fill_disk), (SHARED_MEMORY, ground.fill_memory)):
    for _ in range(3):
        empty = fill()
        try:
            (place / "large").write_bytes(bytes(1 << 20))
        except OSError as error:
            print(error.strerror)
        empty()
        (place / "large").write_bytes(bytes(1 << 20))
        (place / "large").unlink()
ground.leave()
"""


def clocks(environment: dict[str, str]) -> tuple[float, float]:
    """Return wall clock and running clock as a program with this environment reads them."""
    ran = subprocess.run(
        [sys.executable, "-c", READ_CLOCKS], env={**os.environ, **environment}, check=True, capture_output=True
    )
    wall, running = map(float, ran.stdout.split())
    return wall, running


def in_a_process_of_its_own(body: Callable[[], None]) -> None:
    """Run what takes a /dev/shm for its process alone, which the other tests of this one must not be left with."""
    pid = os.fork()
    if not pid:
        try:
            body()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_clock_is_set_for_one_program_alone(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("a clock of its own is compiled, and there is no C compiler (cc)")

    def step() -> None:
        ground = Ground(tmp_path)
        ground.prepare(["clock-step"])
        assert not ground.skipped
        for step in (0, -3600, 3600):
            ground.step_clock(step)
            wall, running = clocks(ground.environment)
            wall_here, running_here = clocks({})
            assert abs(wall_here - wall + step) < 60
            assert 0 <= running_here - running < 60

    in_a_process_of_its_own(step)


def test_where_nothing_can_be_compiled_the_clock_is_said_to_be_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    ground = Ground(tmp_path)
    ground.prepare(["clock-step", "cut"])
    assert list(ground.skipped) == ["clock-step"]
    assert "no C compiler" in ground.skipped["clock-step"]


def test_a_full_disk_and_a_full_shared_memory_take_nothing_and_then_do_again_and_are_nobody_elses(
    tmp_path: Path,
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)], cwd=Path(__file__).parents[2], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if "SKIPPED" in ran.stderr:
        pytest.skip(ran.stderr.strip())
    assert ran.stdout.splitlines() == ["No space left on device"] * 6, ran.stderr
    assert not (SHARED_MEMORY / "large").exists()
    assert not os.path.ismount(tmp_path / "disk")


def test_a_run_that_breaks_off_keeps_what_it_has_and_says_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def break_off(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tools.chaos.run._Run.through", break_off)

    def run() -> None:
        with pytest.raises(ChaosError, match="interrupted") as raised:
            run_chaos(1, ["cut"], Limits(1, None), [], 1, "8 MiB", lambda _: None)
        [kept] = tmp_path.iterdir()
        assert str(kept) in str(raised.value)
        assert (kept / "journals").is_dir()

    in_a_process_of_its_own(run)


# The proxy


def test_much_comes_through_whole_both_ways(database_url: str) -> None:
    text = "".join(map(str, range(1_000_000)))
    with Proxy(database_url) as proxy, psycopg.connect(proxy.url) as connection:
        for delay in (0.0, 0.001):
            proxy.delay_seconds = delay
            assert connection.execute("SELECT %s || ''", [text]).fetchone() == (text,)


def test_a_client_that_does_not_listen_holds_nobody_up(database_url: str) -> None:
    with Proxy(database_url) as proxy, psycopg.connect(proxy.url) as deaf, psycopg.connect(proxy.url) as other:
        deaf.pgconn.send_query(b"SELECT repeat('x', 1000) FROM generate_series(1, 50000)")
        deaf.pgconn.flush()
        assert other.execute("SELECT 1").fetchone() == (1,)
        deaf.pgconn.finish()


def test_a_cut_connection_and_a_half_closed_one_are_lost_and_new_ones_are_not(database_url: str) -> None:
    with Proxy(database_url) as proxy:
        for harm in (proxy.cut, proxy.half_close):
            with psycopg.connect(proxy.url, autocommit=True) as connection:
                connection.execute("SELECT 1")
                harm()
                with pytest.raises(psycopg.OperationalError):
                    connection.execute("SELECT 1")
            with psycopg.connect(proxy.url) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
