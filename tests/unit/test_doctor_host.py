"""What the doctor reads of a machine: mounts, control groups of both versions, systemd-logind's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmcache.config import load_settings
from tools.doctor.finding import Verdict
from tools.doctor.host import Host, MemoryLimit
from tools.doctor.limits import check_process_limit
from tools.doctor.memory import check_fit, check_memory_limit, check_removal

MIB = 1 << 20


class Machine:
    """Files of a machine, laid out in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.host = Host(root)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def group(self, path: str, limit: str, used: int, droppable: int = 0) -> None:
        """Write a control group of version 2."""
        self.write(f"sys/fs/cgroup/{path}memory.max", limit + "\n")
        self.write(f"sys/fs/cgroup/{path}memory.current", f"{used}\n")
        self.write(f"sys/fs/cgroup/{path}memory.stat", f"anon 5\ninactive_file {droppable}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_limits_of_all_groups_above_a_process_count(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/system.slice/shmcache.service\n")
    machine.group("system.slice/shmcache.service/", "max", 5 * MIB)
    machine.group("system.slice/", str(512 * MIB), 100 * MIB, droppable=30 * MIB)
    found = machine.host.memory_limits()
    assert found == [
        MemoryLimit(f"control group {machine.root}/sys/fs/cgroup/system.slice", 512 * MIB, 70 * MIB),
    ]


def test_in_a_container_the_group_is_where_it_is_mounted(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/docker/0123abcd\n")
    machine.group("", str(256 * MIB), MIB)
    assert [limit.limit for limit in machine.host.memory_limits()] == [256 * MIB]


def test_groups_of_the_first_version_are_read_too(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "5:pids:/\n4:cpu,memory:/app\n0::/\n")
    machine.write("sys/fs/cgroup/memory/app/memory.limit_in_bytes", f"{128 * MIB}\n")
    machine.write("sys/fs/cgroup/memory/app/memory.usage_in_bytes", f"{28 * MIB}\n")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    machine.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n")
    assert [(limit.limit, limit.used) for limit in machine.host.memory_limits()] == [(128 * MIB, 28 * MIB)]


def test_what_the_machine_has_free_is_a_limit(machine: Machine) -> None:
    machine.write("proc/meminfo", "MemTotal:  1024 kB\nMemFree: 1 kB\nMemAvailable:  256 kB\n")
    assert machine.host.memory_limits() == [MemoryLimit("the machine", MIB, 768 << 10)]


def test_an_arena_is_not_reserved_where_its_control_group_would_kill_for_it(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/\n")
    machine.group("", str(40 * MIB), 20 * MIB)
    settings = load_settings(arena="doctor-none", arena_size="32 MiB")
    found = check_fit(settings, machine.host)
    assert found.verdict is Verdict.FAILURE
    assert "32 MiB" in found.found
    assert "20 MiB of memory left" in found.found
    assert "SHMCACHE_ARENA_SIZE" in found.advice


@pytest.mark.parametrize(
    ("limit", "used", "verdict"),
    [(4096, 100, Verdict.OK), (4096, 4000, Verdict.WARNING), (300, 10, Verdict.FAILURE)],
)
def test_arena_and_processes_must_fit_into_the_memory_limit(
    machine: Machine, limit: int, used: int, verdict: Verdict
) -> None:
    machine.write("proc/self/cgroup", "0::/\n")
    machine.group("", str(limit * MIB), used * MIB)
    found = check_memory_limit(load_settings(arena_size="256 MiB", workers=4), machine.host)
    assert found.verdict is verdict
    assert "10 processes" in found.found
    assert bool(found.advice) == (verdict is not Verdict.OK)


def test_a_machine_that_says_nothing_is_no_failure(machine: Machine) -> None:
    settings = load_settings(arena="doctor-none", arena_size="4 MiB")
    assert check_memory_limit(settings, machine.host).verdict is Verdict.SKIPPED
    assert check_fit(settings, machine.host).verdict is Verdict.OK


def test_a_limit_on_processes_that_is_too_small_is_found(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/app\n")
    machine.write("sys/fs/cgroup/app/pids.max", "max\n")
    machine.write("sys/fs/cgroup/app/pids.current", "3\n")
    settings = load_settings(workers=2)
    assert check_process_limit(settings, machine.host).verdict is Verdict.OK
    machine.write("sys/fs/cgroup/app/pids.max", "20\n")
    found = check_process_limit(settings, machine.host)
    assert found.verdict is Verdict.FAILURE
    assert "pids.max of the control group leaves room for 17" in found.found


def test_the_file_system_of_a_path_is_the_innermost_that_was_mounted_last(machine: Machine) -> None:
    machine.write(
        "proc/self/mounts",
        "overlay / overlay rw 0 0\ntmpfs /dev tmpfs rw 0 0\nshm /dev/shm tmpfs rw,size=65536k 0 0\n"
        "other /dev/shm ext4 ro 0 0\nnas /my\\040disk nfs4 rw 0 0\n",
    )
    mount = machine.host.mount_of(Path("/dev/shm"))
    assert mount is not None
    assert (mount.kind, "ro" in mount.options) == ("ext4", True)
    for path, kind in (("/dev/shmem", "tmpfs"), ("/home", "overlay"), ("/my disk/state", "nfs4")):
        found = machine.host.mount_of(Path(path))
        assert found is not None
        assert found.kind == kind


def test_logind_removes_segments_unless_a_file_says_otherwise(machine: Machine) -> None:
    assert machine.host.removes_ipc() is None, "there is no logind"
    (machine.root / "run/systemd/seats").mkdir(parents=True)
    assert machine.host.removes_ipc() == "its default"
    machine.write("etc/systemd/logind.conf", "[Login]\n#RemoveIPC=yes\n")
    assert machine.host.removes_ipc() == "its default"
    machine.write("etc/systemd/logind.conf", "[Login]\nRemoveIPC=no\n")
    assert machine.host.removes_ipc() is None
    machine.write("usr/lib/systemd/logind.conf.d/50-distribution.conf", "[Login]\nRemoveIPC=yes\n")
    assert machine.host.removes_ipc() == "/usr/lib/systemd/logind.conf.d/50-distribution.conf"
    machine.write("etc/systemd/logind.conf.d/90-shmcache.conf", "[Login]\nRemoveIPC = off\n")
    assert machine.host.removes_ipc() is None
    machine.write("etc/systemd/logind.conf.d/95-broken.conf", "RemoveIPC=yes, says nobody\n")
    assert machine.host.removes_ipc() is None


def test_only_users_who_log_in_and_out_lose_their_segments(machine: Machine) -> None:
    (machine.root / "run/systemd/seats").mkdir(parents=True)
    assert check_removal(machine.host, 0).verdict is Verdict.OK
    assert check_removal(machine.host, 999).verdict is Verdict.OK
    found = check_removal(machine.host, 54321)
    assert found.verdict is Verdict.FAILURE
    assert "loginctl enable-linger 54321" in found.advice
    assert "RemoveIPC=no" in found.advice
    machine.write("var/lib/systemd/linger/54321", "")
    assert check_removal(machine.host, 54321).verdict is Verdict.OK
