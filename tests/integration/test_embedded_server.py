"""The embedded server: shared by its users, stopped by the last, found again after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shmcache.database.connection import connect
from shmcache.database.embedded import EmbeddedServer
from shmcache.errors import DatabaseUnavailable

_HOLD = """
import sys
from pathlib import Path
from shmcache.database.embedded import EmbeddedServer
server = EmbeddedServer.start(Path(sys.argv[1]))
print(server.url, flush=True)
sys.stdin.read()
server.stop()
"""


def hold(state_dir: Path) -> subprocess.Popen[str]:
    """Start the server from another process, which holds it until its standard input is closed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(state_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline().strip()
    return holder


def servers(state_dir: Path) -> list[psutil.Process]:
    """Return the postmasters over a state directory."""
    data = str(state_dir.resolve() / "postgresql")
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if data in command and "-D" in command:
            found.append(process)
    return found


def test_the_last_user_to_leave_stops_the_server(tmp_path: Path) -> None:
    other = hold(tmp_path)
    server = EmbeddedServer.start(tmp_path)
    server.stop()
    assert len(servers(tmp_path)) == 1
    other.communicate("")
    assert servers(tmp_path) == []


def test_a_server_whose_starter_was_killed_is_joined_and_stopped(tmp_path: Path) -> None:
    killed = hold(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with (
        EmbeddedServer.start(tmp_path) as server,
        connect(server.url, application_name="test") as connection,
    ):
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert servers(tmp_path) == []


def test_a_server_that_was_killed_is_started_again_over_its_data(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    with EmbeddedServer.start(tmp_path) as server, connect(server.url, application_name="test") as connection:
        connection.execute("CREATE TABLE public.kept (number int)")
    postmaster = servers(tmp_path)[0]
    family = [postmaster, *postmaster.children(recursive=True)]
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=10)
    code = _HOLD.replace("sys.stdin.read()", "")
    again = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 0, again.stderr
    with EmbeddedServer.start(tmp_path) as server, connect(server.url, application_name="test") as connection:
        assert connection.execute("SELECT count(*) FROM public.kept").fetchone() == (0,)


def test_a_forked_child_does_not_stop_its_parents_server(tmp_path: Path) -> None:
    with EmbeddedServer.start(tmp_path) as server:
        child = os.fork()
        if not child:
            server.stop()
            os._exit(0)
        os.waitpid(child, 0)
        assert len(servers(tmp_path)) == 1


def test_a_state_directory_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseUnavailable, match="cannot start"):
        EmbeddedServer.start(tmp_path / "file")
