"""A real PgBouncer in transaction mode, before a database of the tests' server."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Pooler:
    """PgBouncer with at most `sessions` sessions in the server; `url` is how to reach the database through it.

    It ignores the parameters of a connection that are named. Skips the test where there is no PgBouncer."""

    def __init__(self, url: str, ignore: str = "extra_float_digits,options", sessions: int = 20) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            pytest.skip("there is no pgbouncer: apt-get install pgbouncer")
        self._directory = Path(tempfile.mkdtemp(prefix="pgb-", dir="/tmp"))
        parts = conninfo_to_dict(url)
        self.configuration = (
            f"[databases]\npooled = host={parts['host']} dbname={parts['dbname']} user={parts['user']}\n"
            f"[pgbouncer]\nlisten_addr =\nunix_socket_dir = {self._directory}\nlisten_port = 6432\nauth_type = any\n"
            f"pool_mode = transaction\nadmin_users = {parts['user']}\ndefault_pool_size = {sessions}\n"
            f"ignore_startup_parameters = {ignore}\n"
        )
        (self._directory / "pgbouncer.ini").write_text(self.configuration)
        # It refuses to run as root; the embedded server's socket may be entered by the owner of its data alone.
        owner = pwd.getpwuid(Path(str(parts["host"])).stat().st_uid)
        as_owner: dict[str, int] = {}
        if os.geteuid() == 0:
            os.chown(self._directory, owner.pw_uid, owner.pw_gid)
            as_owner = {"user": owner.pw_uid, "group": owner.pw_gid}
        self._process = subprocess.Popen(
            [program, str(self._directory / "pgbouncer.ini")],
            stderr=subprocess.PIPE,
            cwd="/",
            **as_owner,  # type: ignore[call-overload]
        )
        said = b""
        while b"process up" not in said:
            line = self._process.stderr.readline()
            assert line, said.decode()
            said += line
        # What it says later is not read: it goes to a pipe that holds more than it says.
        self.url = make_conninfo(
            "", host=str(self._directory), port=6432, dbname="pooled", user=str(parts["user"]),
            **({"options": str(parts["options"])} if parts.get("options") else {}),
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        shutil.rmtree(self._directory)


def give_settings(url: str, path: str = "shmcache") -> None:
    """Give our role in a database what a pooler keeps back, as the README says."""
    with psycopg.connect(url, autocommit=True) as connection:
        place = sql.SQL("ALTER ROLE {} IN DATABASE {} SET ").format(
            sql.Identifier(connection.info.user), sql.Identifier(connection.info.dbname)
        )
        connection.execute(place + sql.SQL("search_path = " + path))
        connection.execute(place + sql.SQL("TimeZone = 'UTC'"))
