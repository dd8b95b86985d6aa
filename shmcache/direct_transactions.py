"""DirectTransactions: the connection of a client that asks PostgreSQL each time, and what becomes of its errors.

One connection a process, one round trip an operation: several statements travel in one pipeline, which is also their
transaction, unless `atomically` has one open. What returned is committed.
"""

from __future__ import annotations

import os
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.pq import TransactionStatus

from shmcache.database.accounts import DROPPED
from shmcache.database.connection import address, connect, is_pooled
from shmcache.database.statements import statement
from shmcache.errors import DatabaseUnavailable, InsufficientBalanceError, InvalidValue, NotFound
from shmcache.execution_data_client import ExecutionDataClient
from shmcache.identifiers import id_bytes, id_text
from shmcache.writes import Refusal

T = TypeVar("T")

Row = Sequence[Any]
Step = tuple[str, Mapping[str, Any]]

_RERUN = (errors.DeadlockDetected, errors.SerializationFailure)
_INVALID_CLASSES = ("22", "54")
"""SQLSTATE classes of values that cannot be stored: data exceptions, limits (a name too long for its index)."""


_PLATFORM_NAMES = {
    "AgentGraph": "graph",
    "AgentNode": "node",
    "AgentGraphExecution": "graph execution",
    "AgentNodeExecution": "node execution",
}


_IDENTIFIERS = ("id", "graph_id", "user_id", "node_id", "graph_exec_id", "node_exec_id", "source_id")


def _canonical(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return parameters of a statement with identifiers in the one spelling that tables have. Raises InvalidValue."""
    named = {name: id_text(id_bytes(given[name])) for name in _IDENTIFIERS if given.get(name) is not None}
    return {**given, **named}


class _Transaction:
    """What `atomically` has open: it begins with its first statement, so a step without any costs nothing."""

    __slots__ = ("connection", "failure", "following", "refusal", "scope")

    def __init__(self) -> None:
        self.scope = ExitStack()
        self.connection: psycopg.Connection[Any] | None = None
        self.failure: Exception | None = None
        self.following: list[Callable[[], None]] = []
        self.refusal: Refusal | None = None


class DirectTransactions(ExecutionDataClient):
    """The part of the direct client that has the connection. One for each process and thread."""

    def __init__(self, database_url: str, on_wait: Callable[[], None]) -> None:
        self._database_url = database_url
        self._on_wait = on_wait
        self._connection: psycopg.Connection[Any] | None = None
        self._owner_pid = 0
        self._transaction: _Transaction | None = None
        self._last_time = 0.0

    @abstractmethod
    def _find_credits(self, error: InsufficientBalanceError) -> bool:
        """Find credits for a charge that was refused; return whether to try again."""

    @abstractmethod
    def _tell(self, refusal: Refusal) -> None:
        """Leave a notice that a charge was refused."""

    def atomically(self, work: Callable[[], T], *, durable: bool = True, urgent: bool = True) -> T:
        """See ExecutionDataClient. Blocks once more, for the commit, if there is anything to commit."""
        if self._transaction is not None:
            return work()
        has_asked = False
        while True:
            transaction = self._transaction = _Transaction()
            try:
                with transaction.scope:
                    result = work()
                    if transaction.failure is not None:
                        # The server has undone it all: a step that passed over its error must not seem to succeed.
                        raise transaction.failure
                    if transaction.connection is not None:
                        self._open().execute("COMMIT", prepare=False)
            except _RERUN:
                self._undo(transaction)
                continue
            except InsufficientBalanceError as error:
                self._undo(transaction)
                self._transaction = None
                if not has_asked and self._find_credits(error):
                    has_asked = True
                    continue
                if transaction.refusal is not None:
                    self._tell(transaction.refusal)
                raise
            except psycopg.Error as error:
                self._undo(transaction)
                raise self._failure(error) from None
            except BaseException:
                self._undo(transaction)
                self._transaction = None
                if transaction.refusal is not None:
                    self._tell(transaction.refusal)
                raise
            finally:
                self._transaction = None
            for step in transaction.following:
                step()
            return result

    def _undo(self, transaction: _Transaction) -> None:
        """Roll back what is open. A connection that cannot even do that is given up, and the server rolls back."""
        connection = transaction.connection
        try:
            if connection is not None and connection.info.transaction_status != TransactionStatus.IDLE:
                connection.execute("ROLLBACK", prepare=False)
        except psycopg.Error as error:
            self._lost(error)

    @property
    def last_sequence(self) -> int:
        """See ExecutionDataClient. Nothing is ever left to wait for."""
        return 0

    def wait_durable(self, sequence: int, timeout_seconds: float | None = None) -> None:
        """See ExecutionDataClient. Everything is committed already."""

    def flush(self, timeout_seconds: float | None = None) -> None:
        """See ExecutionDataClient. Everything is committed already."""

    def close(self) -> None:
        """See ExecutionDataClient."""
        if self._connection is not None and self._owner_pid == os.getpid():
            self._connection.close()
        self._connection = None

    def _when_committed(self, step: Callable[[], None]) -> None:
        if self._transaction is None:
            step()
        else:
            self._transaction.following.append(step)

    def _run(self, *steps: Step, following: Sequence[Step] = ()) -> list[Row]:
        """Run statements in one round trip, as one transaction; return the rows of the last that is not `following`."""
        all_steps = [(name, _canonical(given)) for name, given in (*steps, *following)]

        def ask(connection: psycopg.Connection[Any]) -> list[Row]:
            if self._transaction is None and len(all_steps) > 1:
                with connection.pipeline():
                    cursors = [connection.execute(statement(connection, name), given) for name, given in all_steps]
            else:
                cursors = [connection.execute(statement(connection, name), given) for name, given in all_steps]
            return cursors[len(steps) - 1].fetchall()

        return self._answer(ask)

    def _load(self, query: Callable[..., T], identifier: str, *arguments: Any) -> T:
        canonical = id_text(id_bytes(identifier))
        return self._answer(lambda connection: query(connection, canonical, *arguments))

    def _answer(self, ask: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Ask the database. Raises what the interface promises; a deadlock outside of a transaction is tried again."""
        while True:
            connection = self._open()
            try:
                return ask(connection)
            except UnicodeEncodeError as error:
                raise InvalidValue(f"a text cannot be stored: {error}; encode it as UTF-8 first") from None
            except psycopg.Error as error:
                if self._transaction is None and isinstance(error, _RERUN):
                    continue
                failure = self._failure(error)
                if self._transaction is not None:
                    self._transaction.failure = failure
                raise failure from None

    def _failure(self, error: psycopg.Error) -> Exception:
        """Return what to raise for an error of the database."""
        text = " ".join(str(error).split())
        if isinstance(error, _RERUN):
            return error
        if isinstance(error, errors.ForeignKeyViolation):
            missing = re.search(r'=\((.*)\) is not present in table "(\w+?)s?"', error.diag.message_detail or "")
            if missing:
                return NotFound(_PLATFORM_NAMES.get(missing[2], missing[2].replace("_", " ")), missing[1])
        if error.diag.constraint_name == DROPPED:
            return InvalidValue(error.diag.message_primary or text)
        if isinstance(error, psycopg.DataError) or (error.sqlstate or "").startswith(_INVALID_CLASSES):
            return InvalidValue(f"the database refuses a value: {text}")
        if isinstance(error, psycopg.OperationalError):
            return self._lost(error)
        return error

    def _open(self) -> psycopg.Connection[Any]:
        """Return the connection, opened if need be; within `atomically` the first call begins the transaction."""
        transaction = self._transaction
        if transaction is not None and transaction.connection is not None:
            if transaction.connection.closed:
                raise self._lost("the connection was lost within a step of several writes: nothing of it was written")
            return transaction.connection
        if self._connection is None or self._connection.closed or self._owner_pid != os.getpid():
            self._connection = connect(self._database_url, application_name="shmcache direct", on_wait=self._on_wait)
            if not is_pooled(self._connection):
                self._connection.prepare_threshold = 0
            self._owner_pid = os.getpid()
        if transaction is not None:
            transaction.connection = self._connection
            # In pipeline mode BEGIN travels with the first statement, and each later one still has its answer at once.
            transaction.scope.enter_context(self._connection.pipeline())
            self._connection.execute("BEGIN", prepare=False)
        return self._connection

    def _lost(self, reason: psycopg.Error | str) -> DatabaseUnavailable:
        """Give up a connection that failed; the next call opens another. Return what to raise."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        return DatabaseUnavailable(address(self._database_url), " ".join(str(reason).split()))

    def _now(self) -> float:
        """Return the time, later than any this client gave before, so that sorting by time keeps the order."""
        # PostgreSQL keeps microseconds: two times that round to the same one would not sort.
        self._last_time = now = round(max(time.time(), self._last_time + 1e-6), 6)
        return now
