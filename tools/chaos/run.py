"""The chaos run: a server and a supervisor of its own, faults by the schedule, then everything compared."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psutil
import psycopg

from shmcache.arena import list_arenas, segment_path, unlink_segment
from shmcache.database.connection import connect, with_table_set
from shmcache.database.embedded import EmbeddedServer
from shmcache.database.migrate import migrate
from shmcache.errors import DatabaseUnavailable, GraphFileError, ShmcacheError
from shmcache.identifiers import new_id
from tools.chaos.faults import Faults
from tools.chaos.ground import SHARED_MEMORY, Ground
from tools.chaos.proxy import Proxy
from tools.chaos.sampling import Growth, Samples
from tools.chaos.schedule import Event, schedule
from tools.chaos.supervised import Plan
from tools.chaos.verify import Found, Journals, Stall, verify

_TURN_SECONDS = 0.02
_LOOK_SECONDS = 0.5
_MOST_BEHIND_SECONDS = 1.0
"""A schedule that is behind (a server took its time to start) does not make up for it all at once."""
_END_SECONDS = 120.0
"""How long nothing may come of what was begun, at the end."""
_BEFORE_STALL_SECONDS = 2.0
_MOST_FAILURES = 30
_SERVERS = "PostgreSQL."
_RICH, _POOR = 2 * 10**9, 2_000
"""What accounts begin with; the platform's columns hold 32 bits."""
_RICH_USERS = 3


class ChaosError(ShmcacheError):
    """The run could not be made, or did not come to its end."""


class Outcome(NamedTuple):
    """What came of a run. `kept` is where everything lies that tells why, after a failure."""

    seconds: float
    kills: int
    restarts: int
    faults: dict[str, int]
    missed: int
    skipped: dict[str, str]
    found: Found
    before_stall: list[str]
    left_behind: list[str]
    growth: list[Growth]
    kept: str | None

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, doubled, out of order, overdrawn, unbalanced, unfinished, left behind or grown."""
        return not (any(self.found[:6]) or self.left_behind or any(each.is_too_much for each in self.growth))


class Limits(NamedTuple):
    """When it is enough: so many kills, or so many minutes, whichever comes first; None is no limit."""

    kills: int | None
    minutes: float | None


def run_chaos(
    seed: int,
    faults: Sequence[str],
    limits: Limits,
    files: Sequence[Path],
    workers: int,
    arena_size: str,
    say: Callable[[str], None],
    *,
    keep: bool = False,
    platform_tables: Path | None = None,
) -> Outcome:
    """Make a run. `say` is told what happens; `keep` says to keep everything even if nothing is wrong.

    `platform_tables` is an SQL file that makes the AutoGPT Platform's tables, to run on those.

    Raises ChaosError, DatabaseUnavailable, GraphFileError."""
    directory = Path(tempfile.mkdtemp(prefix="shmcache-chaos-"))
    ground = Ground(directory)
    kept = None
    try:
        run = _Run(directory, ground, faults, files, workers, arena_size, say, platform_tables)
        outcome = run.through(schedule(seed, faults), limits)
        if keep or not outcome.passed:
            kept = str(directory)
        return outcome._replace(kept=kept)
    except GraphFileError:
        raise
    except BaseException as error:
        kept = str(directory)
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        raise ChaosError(f"the run did not come to its end ({what}); journals, segment and log: {kept}") from error
    finally:
        ground.leave()
        if kept is None:
            shutil.rmtree(directory, ignore_errors=True)


class _Run:
    """One run, in a directory of its own."""

    def __init__(
        self,
        directory: Path,
        ground: Ground,
        faults: Sequence[str],
        files: Sequence[Path],
        workers: int,
        arena_size: str,
        say: Callable[[str], None],
        platform_tables: Path | None,
    ) -> None:
        self._platform_tables = platform_tables
        self._outputs = "node_execution_outputs_before"  # the partition of this month
        self._directory = directory
        ground.prepare(list(faults))
        self._ground = ground
        self._say = say
        self._state_dir = directory / "state"
        self._plan_path = directory / "plan.json"
        (directory / "journals").mkdir()
        self._restarts = -1
        self._failures = 0
        self._samples = Samples()
        self._plan = Plan(
            str(directory), str(self._state_dir), "", f"chaos-{os.getpid()}", arena_size, workers,
            [str(file.absolute()) for file in files],
            {**{new_id(): _RICH for _ in range(_RICH_USERS)}, new_id(): _POOR},
            None if ground.disk is None else str(ground.disk),
        )  # fmt: skip

    def through(self, events: Iterator[Event], limits: Limits) -> Outcome:
        """Make faults up to the limits, those that cannot be made here left out; wait for the end, compare.

        Raises ChaosError."""
        skipped = self._ground.skipped
        self._plan.graphs()  # a file that is none is told of before anything begins
        began = time.monotonic()
        with ExitStack() as stack:
            self._say("starting PostgreSQL")
            server = stack.enter_context(EmbeddedServer.start(self._state_dir))
            if self._platform_tables is not None:
                server.url = with_table_set(server.url, "autogpt")
                self._outputs = '"AgentNodeExecutionInputOutput"'
            with connect(server.url, application_name="shmcache chaos") as connection:
                if self._platform_tables is not None:
                    connection.execute(self._platform_tables.read_bytes())
                migrate(connection)
                self._move_outputs(connection)
            proxy = stack.enter_context(Proxy(server.url))
            self._plan._replace(database_url=proxy.url).save(self._plan_path)
            faults = Faults(self._ground, self._plan.arena, server, self._state_dir, proxy)
            stack.callback(self._end, faults)
            self._start(faults)
            kills = self._make_all(faults, (event for event in events if event.fault not in skipped), limits)
            self._await_end(faults)
            if limits.minutes is not None and not self._samples.growth():
                skipped["growth"] = "the run was too short, or its processes were too seldom all there, to say"
            seconds = time.monotonic() - began
            left = self._left_behind(faults)
            self._say("comparing journals and database")
            with connect(server.url, application_name="shmcache chaos") as connection:
                journals = Journals(self._directory / "journals", faults.windows)
                check = json.loads((self._directory / "check.json").read_text())
                found = verify(connection, journals, check)
                outcome = Outcome(
                    round(seconds, 1), kills, self._restarts, dict(sorted(faults.counts.items())), faults.missed,
                    skipped, found, _before(found.stall, faults), left, self._samples.growth(), None,
                )  # fmt: skip
                if not outcome.passed and self._ground.disk is not None:
                    connection.execute(f"ALTER TABLE {self._outputs} SET TABLESPACE pg_default")  # it is kept
            return outcome

    def _move_outputs(self, connection: psycopg.Connection[object]) -> None:
        """Have the outputs of nodes on the small disk, if there is one."""
        if self._ground.disk is not None:
            space = self._ground.disk / "space"
            space.mkdir()
            shutil.chown(space, psutil.Process(_postmaster(self._state_dir)).uids().effective)
            connection.execute(f"CREATE TABLESPACE small LOCATION '{space}'")
            connection.execute(f"ALTER TABLE {self._outputs} SET TABLESPACE small")

    def _start(self, faults: Faults) -> None:
        """Start the program under fire, or start it again."""
        self._restarts += 1
        with (self._directory / "log").open("ab") as log:
            faults.supervised = subprocess.Popen(
                [sys.executable, "-m", "tools.chaos.supervised", str(self._plan_path)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **self._ground.environment},
            )  # fmt: skip

    def _look_after(self, faults: Faults) -> int | None:
        """Start what was killed again; return the status of one that ended by itself. Raises ChaosError."""
        status = faults.supervised.poll()
        if status is None or status == 0:
            return status
        # While the database is away it gives up; but it does not do that for ever.
        self._failures = self._failures + 1 if status > 0 else 0
        if self._failures > _MOST_FAILURES:
            raise ChaosError(f"the supervisor does not start, {_MOST_FAILURES} times in a row")
        self._start(faults)
        return None

    def _make_all(self, faults: Faults, events: Iterator[Event], limits: Limits) -> int:
        """Make one fault after the other until it is enough; return how many processes were killed."""
        kills = 0
        began = due = time.monotonic()
        until = float("inf") if limits.minutes is None else began + limits.minutes * 60
        for number, event in enumerate(events, 1):
            due = max(due + event.delay_seconds, time.monotonic() - _MOST_BEHIND_SECONDS)
            while (left := due - time.monotonic()) > 0:
                self._look_after(faults)
                faults.tend()
                self._samples.take(faults, self._plan.workers)
                time.sleep(min(left, _TURN_SECONDS))
            self._say(f"{number}: {event.fault}; {kills} killed")
            kills += faults.make(event) and event.fault.startswith("kill-")
            self._look_after(faults)
            if time.monotonic() >= until or (limits.kills is not None and kills >= limits.kills):
                break
        return kills

    def _await_end(self, faults: Faults) -> None:
        """Wait until all that was begun has ended. Raises ChaosError."""
        faults.tend(all_of_them=True)
        (self._directory / "enough").touch()
        self._say("waiting for the end of all that was begun")
        written, since = 0, time.monotonic()
        while self._look_after(faults) is None:
            before, written = written, sum(path.stat().st_size for path in (self._directory / "journals").iterdir())
            if written > before:
                since = time.monotonic()
            elif time.monotonic() > since + _END_SECONDS:
                raise ChaosError(f"what was begun does not end: nothing has come of it for {_END_SECONDS:.0f} s")
            time.sleep(_LOOK_SECONDS)

    def _left_behind(self, faults: Faults) -> list[str]:
        deadline = time.monotonic() + 10
        while (faults.everything() or faults.connections()) and time.monotonic() < deadline:
            time.sleep(_TURN_SECONDS)
        left = [f"process {each.pid}" for each in faults.everything()]
        left += [f"connection {number}" for number in range(1, 1 + (faults.connections() or 0))]
        left += [f"segment {name}" for name in list_arenas() if name == self._plan.arena]
        if self._ground.has_own_memory:
            left += [f"{path}" for path in sorted(SHARED_MEMORY.iterdir()) if not path.name.startswith(_SERVERS)]
        return left + [f"file {path.name}" for path in sorted((self._state_dir / "locks").iterdir())]

    def _end(self, faults: Faults) -> None:
        """End what still runs, whatever has happened."""
        with contextlib.suppress(DatabaseUnavailable, OSError, psutil.Error):
            faults.tend(all_of_them=True)
        for each in faults.everything():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        faults.supervised.wait()
        for each in faults.everything():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
                each.wait(10)
        with (self._directory / "faults").open("w") as file:
            file.writelines(f"{each.time:.3f} {each.fault} {each.struck}\n" for each in faults.made)
        if self._plan.arena in list_arenas():
            shutil.copyfile(segment_path(self._plan.arena), self._directory / "segment")
            unlink_segment(self._plan.arena)


def _before(stall: Stall, faults: Faults) -> list[str]:
    """Return what was done shortly before a stall, and in it."""
    begin, end = stall.began - _BEFORE_STALL_SECONDS, stall.began + stall.milliseconds / 1e3
    return [
        f"{each.fault} of {each.struck}, {each.time - stall.began:+.2f} s"
        for each in faults.made
        if begin <= each.time <= end
    ]


def _postmaster(state_dir: Path) -> int:
    return int((state_dir / "postgresql" / "postmaster.pid").read_text().split()[0])
