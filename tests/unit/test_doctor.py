"""The doctor on this machine, as it is and as it may be: with a small /dev/shm, tight limits, and what others left."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from shmcache.arena import Arena, list_arenas
from shmcache.arena.segment import unlink_segment
from shmcache.config import load_settings
from tools.doctor import leftovers, platform, python
from tools.doctor.examination import check_settings, examine
from tools.doctor.finding import Finding, Verdict
from tools.doctor.host import Host

ROOT = Path(__file__).parents[2]


def doctor(cwd: Path, *arguments: str, before: str = "", **environment: str) -> tuple[dict[str, dict[str, Any]], int]:
    """Run the doctor after a command of the shell; return what it found by check, and its status."""
    command = " ".join(
        shlex.quote(each) for each in (sys.executable, "-m", "tools.cli", "doctor", "--json", *arguments)
    )
    done = subprocess.run(
        ["sh", "-c", f"{before}\nexec {command}"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SHMCACHE_STATE_DIR": str(cwd), **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    told = json.loads(done.stdout)
    verdicts = [each["verdict"] for each in told["findings"]]
    assert (told["failures"], told["warnings"]) == (verdicts.count("failure"), verdicts.count("warning"))
    assert done.returncode == (1 if told["failures"] else 0)
    for each in told["findings"]:
        assert bool(each["advice"]) == (each["verdict"] in ("warning", "failure")), each
    return {each["check"]: each for each in told["findings"]}, done.returncode


def test_it_checks_every_area_and_leaves_nothing(tmp_path: Path) -> None:
    found, _ = doctor(tmp_path, "--arena-size", "4 MiB")
    areas = {each["area"] for each in found.values()}
    assert areas == {
        "settings", "platform", "shared memory", "limits", "multiprocessing", "left over", "PostgreSQL",
    }  # fmt: skip
    for check in ("system", "C library", "robust mutexes", "futexes", "pidfd_open", "arena fits", "spawned processes"):
        assert found[check]["verdict"] == "ok", found[check]
    assert found["reachable"]["verdict"] == "skipped", "no server is made for it"
    assert list(tmp_path.iterdir()) == []
    assert not [name for name in list_arenas() if name.startswith("doctor-")]


def test_the_text_names_what_to_do_under_what_is_wrong(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.cli", "doctor", "--arena-size", "60 TiB"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "SHMCACHE_STATE_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("  failure arena fits: "))
    assert lines[at + 1].strip().startswith("to do: ")
    assert "SHMCACHE_ARENA_SIZE" in lines[at + 1]
    assert lines[-1].endswith(" warnings")
    assert done.returncode == 1


def own_memory(size: str) -> str:
    """Return the shell's command that gives a process a /dev/shm of its own, of a size; skip where it cannot."""
    mount = f"mount --make-rprivate / && mount -t tmpfs -o size={size} doctor /dev/shm"
    tried = subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"no mount namespace of one's own here: {tried.stderr.decode().strip()}")
    return mount


def in_own_memory(cwd: Path, size: str, *arguments: str) -> dict[str, dict[str, Any]]:
    """Run the doctor with a /dev/shm of its own."""
    mount = own_memory(size)
    command = " ".join(
        shlex.quote(each) for each in (sys.executable, "-m", "tools.cli", "doctor", "--json", *arguments)
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{mount} && exec {command}"],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT), "SHMCACHE_STATE_DIR": str(cwd)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return {each["check"]: each for each in json.loads(done.stdout)["findings"]}


def test_docker_s_default_is_named_and_an_arena_that_does_not_fit_is_a_failure(tmp_path: Path) -> None:
    found = in_own_memory(tmp_path, "64m", "--arena-size", "65 MiB")
    assert found["/dev/shm"]["verdict"] == "warning"
    assert "64 MiB" in found["/dev/shm"]["found"]
    assert "Docker's default" in found["/dev/shm"]["found"]
    assert found["arena fits"]["verdict"] == "failure"
    assert "--shm-size" in found["arena fits"]["advice"]
    assert found["spawned processes"]["verdict"] == "ok"


def test_a_full_dev_shm_is_a_failure_of_all_that_needs_it(tmp_path: Path) -> None:
    found = in_own_memory(tmp_path, "1m")
    for check in ("arena fits", "spawned processes"):
        assert found[check]["verdict"] == "failure", found[check]
    assert "/dev/shm" in found["spawned processes"]["found"]


def test_limits_that_are_too_tight_are_failures(tmp_path: Path) -> None:
    found, status = doctor(tmp_path, "--arena-size", "64 MiB", before="ulimit -n 50\nulimit -f 2000")
    assert status == 1
    assert found["open files"]["verdict"] == "failure"
    assert "50 a process" in found["open files"]["found"]
    assert found["file size, address space"]["verdict"] == "failure"
    assert "ulimit -f" in found["file size, address space"]["found"]


def test_the_file_of_settings_must_not_show_a_password_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    monkeypatch.setenv("SHMCACHE_CONFIG", str(file))
    file.write_text("workers = 3\n")
    file.chmod(0o644)
    assert check_settings().verdict is Verdict.OK
    file.write_text('database_url = "postgresql://me:geheim@host/db"\n')
    found = check_settings()
    assert found.verdict is Verdict.WARNING
    assert f"chmod 600 {file}" in found.advice
    file.chmod(0o600)
    assert check_settings().verdict is Verdict.OK


@pytest.fixture
def left_over() -> Iterator[str]:
    """An arena whose only process was killed."""
    name = f"left-over-{os.getpid()}"
    pid = os.fork()
    if not pid:
        Arena.create(name, 4 << 20)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    yield name
    unlink_segment(name)


def findings_of(name: str) -> list[Finding]:
    """Return what is found of one arena; those of tests that run beside this one are left out."""
    return [each for each in leftovers.check_segments() if name in each.found]


def test_an_arena_whose_processes_are_dead_is_told_with_how_to_drain_it(left_over: str) -> None:
    (found,) = findings_of(left_over)
    assert found.verdict is Verdict.WARNING
    assert f"shmcache drain {left_over}" in found.advice


def test_an_arena_in_use_is_well(left_over: str) -> None:
    with Arena.attach(left_over) as arena:
        arena.enter("test")
        assert all(each.verdict is Verdict.OK for each in findings_of(left_over))


def test_a_segment_that_cannot_be_used_is_told_with_the_reason() -> None:
    name = f"spoilt-{os.getpid()}"
    path = Path(f"/dev/shm/shmcache.{os.getuid()}.{name}")
    path.write_bytes(b"something else" * 1000)
    path.chmod(0o600)
    try:
        (found,) = findings_of(name)
    finally:
        path.unlink()
    assert found.verdict is Verdict.WARNING
    assert "no shmcache arena" in found.found


def test_lock_files_of_arenas_that_are_gone_are_told_apart(tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path)
    assert leftovers.check_lock_files(settings).found == "none"
    (tmp_path / "locks").mkdir()
    held = FileLock(tmp_path / "locks" / "gone-1.syncer.lock")
    held.acquire()
    FileLock(tmp_path / "locks" / "gone-2.supervisor.lock").acquire()
    (tmp_path / "locks" / "gone-3.charger.lock").touch()
    found = leftovers.check_lock_files(settings)
    held.release()
    assert found.verdict is Verdict.OK
    assert found.found.startswith("3, ")


def test_locks_are_tried_where_they_are_kept(tmp_path: Path) -> None:
    found = leftovers.check_locking(load_settings(state_dir=tmp_path / "not" / "there"), Host())
    assert found.verdict is Verdict.OK
    assert str(tmp_path) in found.found
    assert list(tmp_path.iterdir()) == []


def test_locks_on_a_network_file_system_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mounts").write_text(f"nas / nfs4 rw 0 0\nother {tmp_path}/other ext4 rw 0 0\n")
    found = leftovers.check_locking(load_settings(state_dir=tmp_path), Host(tmp_path))
    assert found.verdict is Verdict.WARNING
    assert "nfs4" in found.found


@pytest.mark.parametrize(
    "check",
    [
        platform.check_system, platform.check_python, platform.check_libc, platform.check_robust_mutex,
        platform.check_futex, platform.check_processes, python.check_start_method, python.check_semaphores,
    ],
)  # fmt: skip
def test_where_the_tests_run_the_platform_is_well(check: Any) -> None:
    assert check().verdict is Verdict.OK


def test_another_processor_or_python_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert platform.check_system().verdict is Verdict.FAILURE
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert platform.check_python().verdict is Verdict.FAILURE


@pytest.mark.parametrize(("answer", "said"), [("glibc 2.28", "glibc 2.28"), (None, "not glibc")])
def test_another_or_an_older_c_library_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, answer: str | None, said: str
) -> None:
    monkeypatch.setattr(os, "confstr", lambda _name: answer)
    found = platform.check_libc()
    assert (found.verdict, found.found) == (Verdict.FAILURE, said)


def test_a_spawned_process_that_cannot_start_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.spawn._python_exe", b"/nowhere/python")
    found = python.check_spawn()
    assert found.verdict is Verdict.FAILURE
    assert "/nowhere/python can be run" in found.advice


def test_a_check_that_fails_unexpectedly_is_a_finding_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Finding:
        raise ValueError("postgresql://me:geheim@host/db is odd")

    monkeypatch.setattr(platform, "check_libc", fail)
    areas = examine(load_settings(state_dir=tmp_path, arena_size="4 MiB"), Host())
    found = [each for area in areas for each in area.findings if "ValueError" in each.found]
    assert [each.verdict for each in found] == [Verdict.FAILURE]
    assert "geheim" not in found[0].found
    assert len(areas) == 7
