"""Reader: executions as the database has them, for programs on machines without an arena: a web interface, a report.

What an executor writes is in the database `SHMCACHE_SYNC_INTERVAL` later at most. A reader that must not see less than
somebody else has seen waits for that one's watermark (`client.watermark`, a text that may travel anywhere); one that
waits for the end of a run is woken when it is there.

    with Reader(database_url) as reader:
        reader.wait_for(watermark, timeout_seconds=10.0)
        run = reader.wait_until(graph_exec_id, timeout_seconds=60.0)

A reader has one connection, which listens. Where the database is reached by a pooler that hands connections from one
transaction to the next, give the database's own address here: there is nothing to hear through such a pooler, and waits
then take up to `look_seconds`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import psycopg

from shmcache.database import queries
from shmcache.database.announcements import CHANNEL, Announcement, read_announcement
from shmcache.database.connection import TableSet, address, connect, is_pooled, with_table_set
from shmcache.database.statements import statement
from shmcache.errors import DatabaseUnavailable, FlushTimeout, InvalidValue, NotFound
from shmcache.identifiers import id_bytes
from shmcache.records import FINAL_STATUSES, ExecutionStatus, GraphExecution, NodeExecution

T = TypeVar("T")

_RINGS = ("write", "charge")


class Reader:
    """Reads and waits on a connection of its own; for one thread at a time.

    `look_seconds` is how long it waits for being told before it looks by itself. `table_set`: whose tables
    (SHMCACHE_SCHEMA)."""

    def __init__(self, database_url: str, look_seconds: float = 1.0, table_set: TableSet = "shmcache") -> None:
        self._database_url = with_table_set(database_url, table_set)
        self._look_seconds = look_seconds
        self._connection: psycopg.Connection[Any] | None = None

    def graph_execution(self, graph_exec_id: str) -> GraphExecution:
        """Return a graph execution. Raises NotFound (also for one that is not in the database yet),
        DatabaseUnavailable."""
        id_bytes(graph_exec_id)
        found = self._ask(lambda connection: queries.load_graph_execution(connection, graph_exec_id))
        if found is None:
            raise NotFound("graph execution", graph_exec_id)
        return found

    def node_executions(self, graph_exec_id: str) -> list[NodeExecution]:
        """Return the node executions of a graph execution, oldest first. Raises DatabaseUnavailable."""
        id_bytes(graph_exec_id)
        return self._ask(lambda connection: queries.load_node_executions(connection, graph_exec_id))

    def wait_for(self, watermark: str, timeout_seconds: float | None = None) -> None:
        """Return when all that a client had written when it gave out a watermark is in the database; at once for "".

        Raises FlushTimeout, InvalidValue for what is no watermark, DatabaseUnavailable."""
        if not watermark:
            return
        arena_id, *wanted = _read_watermark(watermark)
        started = time.monotonic()

        def load(connection: psycopg.Connection[Any]) -> list[Any]:
            return connection.execute(statement(connection, "load_checkpoints"), {"arena_id": arena_id}).fetchall()

        for _ in self._looks(timeout_seconds, lambda told: told.arena_id == arena_id):
            rows = self._ask(load)
            reached: dict[str, int] = dict(rows)
            missing = [
                (ring, number) for ring, number in zip(_RINGS, wanted, strict=True) if reached.get(ring, 0) < number
            ]
            if not missing:
                return
        ring, number = missing[0]
        raise FlushTimeout(ring, reached.get(ring, 0), number, time.monotonic() - started)

    def wait_until(
        self,
        graph_exec_id: str,
        statuses: Collection[ExecutionStatus] = FINAL_STATUSES,
        timeout_seconds: float | None = None,
    ) -> GraphExecution:
        """Return a graph execution when it has one of some statuses, or as it is when the time is over.

        Raises NotFound if it is not there by then, DatabaseUnavailable."""
        id_bytes(graph_exec_id)
        found: GraphExecution | None = None
        for _ in self._looks(timeout_seconds, lambda told: told.concerns(graph_exec_id)):
            found = self._ask(lambda connection: queries.load_graph_execution(connection, graph_exec_id))
            if found is not None and found.status in statuses:
                return found
        if found is None:
            raise NotFound("graph execution", graph_exec_id)
        return found

    def changes(self, timeout_seconds: float | None = None) -> Iterator[Announcement]:
        """Give what is told of any graph execution, as it comes, until the timeout. Raises DatabaseUnavailable.

        What is told while the connection is away is not given: read again what matters, now and then."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while deadline is None or time.monotonic() < deadline:
            left = self._look_seconds if deadline is None else min(self._look_seconds, deadline - time.monotonic())
            yield from self._hear(max(0.0, left))

    def close(self) -> None:
        """Close the connection; what is asked next opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _looks(self, timeout_seconds: float | None, matters: Callable[[Announcement], bool]) -> Iterator[None]:
        """Come back for each look: first at once, then when something that matters was told, or `look_seconds` later,
        and once more when the time is over."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._ask(lambda connection: connection.closed)  # it listens before the first look
        while True:
            is_last = deadline is not None and time.monotonic() >= deadline
            yield
            if is_last:
                return
            until = time.monotonic() + self._look_seconds
            until = until if deadline is None else min(until, deadline)
            while (left := until - time.monotonic()) > 0:
                if any(map(matters, self._hear(left))):
                    break

    def _hear(self, timeout_seconds: float) -> list[Announcement]:
        """Return what is told; nothing after the timeout."""

        def hear(connection: psycopg.Connection[Any]) -> list[str]:
            return [told.payload for told in connection.notifies(timeout=timeout_seconds, stop_after=1)]

        read = [read_announcement(payload) for payload in self._ask(hear)]
        return [each for each in read if each is not None]

    def _ask(self, query: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Ask the database; a connection found dead is replaced once. Raises DatabaseUnavailable."""
        for last_try in (False, True):
            if self._connection is None or self._connection.closed:
                self._connection = connect(self._database_url, application_name="shmcache reader")
                if not is_pooled(self._connection):
                    self._connection.execute(f"LISTEN {CHANNEL}")
            try:
                return query(self._connection)
            except psycopg.OperationalError as error:
                self.close()
                if last_try:
                    raise DatabaseUnavailable(address(self._database_url), str(error).strip()) from None
        raise AssertionError("unreachable")


def _read_watermark(watermark: str) -> tuple[str, int, int]:
    try:
        arena_id, write, charge = watermark.split(":")
        id_bytes(arena_id)
        return arena_id, int(write), int(charge)
    except (ValueError, AttributeError, InvalidValue):
        raise InvalidValue(f"{watermark!r} is no watermark of a client") from None
