"""What a platform hangs on accounts: functions of installed packages, called by the charger in a thread of its own.

A package declares them as entry points of group `shmcache.callbacks`, under these names:

    low_balance(user_id, balance, threshold, notice_id)
        once each time a balance goes below SHMCACHE_LOW_BALANCE
    insufficient_funds(user_id, graph_id, graph_exec_id, balance, amount, notice_id)
        once for each user and graph whose charge was refused, until the account is topped up
    top_up(user_id, balance, transaction_key) -> int | None
        after either of these, one at a time for each user; what it returns is added to the account under this key.
        It is called with the same key again if the charger died before that was written: pay under that key.

One that raises is called again, after waits that double, some ten times. One that hangs holds up the others, and
nothing else. A `notice_id` is the same when the same thing is told again.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Self

import psycopg

from shmcache.database.accounts import top_up
from shmcache.database.connection import connect
from shmcache.database.notices import Notice, ask_for_top_up, mark_delivered, mark_failed, take_notice
from shmcache.errors import DatabaseUnavailable
from syncer.backoff import Backoff

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "shmcache.callbacks"
NAMES = ("low_balance", "insufficient_funds", "top_up")

_LOOK_SECONDS = 1.0
_MOST_TRIES = 10
_STOPPING_SECONDS = 5.0


def load_callbacks() -> dict[str, Callable[..., Any]]:
    """Return the functions that installed packages declare, by name. One that cannot be loaded is left out, and
    logged."""
    found: dict[str, Callable[..., Any]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name not in NAMES or point.name in found:
            logger.warning("callback %s = %s: not used: %s", point.name, point.value, _why_not(point.name))
            continue
        try:
            found[point.name] = point.load()
        except (Exception, SystemExit) as error:  # someone else's module
            logger.error("callback %s = %s cannot be loaded: %s", point.name, point.value, error)
    return found


def _why_not(name: str) -> str:
    return "there is another one" if name in NAMES else f"the names are {', '.join(NAMES)}"


class Callbacks:
    """Delivers notices to some functions, in a thread, until `stop`."""

    def __init__(self, database_url: str, functions: dict[str, Callable[..., Any]]) -> None:
        self._database_url = database_url
        self._functions = functions
        self._wanted = threading.Event()
        self._stopping = False
        self._backoff = Backoff()
        self._thread = threading.Thread(target=self._run, name="callbacks", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, database_url: str) -> Self | None:
        """Begin, if any package declares a callback."""
        functions = load_callbacks()
        return cls(database_url, functions) if functions else None

    def look(self) -> None:
        """Say that there may be a notice."""
        self._wanted.set()

    def stop(self) -> None:
        """Deliver what is due and end; a function that takes longer than some seconds is left behind."""
        self._stopping = True
        self._wanted.set()
        self._thread.join(_STOPPING_SECONDS)

    def _run(self) -> None:
        while True:
            stopping = self._stopping
            wait = _LOOK_SECONDS
            try:
                with connect(self._database_url, application_name="shmcache callbacks") as connection:
                    self._backoff.reset()
                    while True:
                        stopping = self._stopping
                        while self._deliver_one(connection):
                            pass
                        if stopping:
                            return
                        self._wanted.wait(_LOOK_SECONDS)
                        self._wanted.clear()
            except (psycopg.Error, DatabaseUnavailable) as error:
                logger.debug("notices are delivered later: %s", error)
                wait = self._backoff.next_seconds()
            if stopping:
                return
            self._wanted.wait(wait)
            self._wanted.clear()

    def _deliver_one(self, connection: psycopg.Connection[Any]) -> bool:
        """Deliver the oldest notice that is due; return whether there was one."""
        with connection.transaction():
            notice = take_notice(connection)
            if notice is None:
                return False
            try:
                paid = self._call(notice)
                with connection.transaction():
                    mark_delivered(connection, notice)
                    if notice.kind != "top_up":
                        if "top_up" in self._functions:
                            ask_for_top_up(connection, notice)
                    elif paid:
                        top_up(connection, notice.user_id, paid, notice.id, "automatic top-up")
            except (psycopg.Error, DatabaseUnavailable):
                raise
            except Exception as error:
                logger.exception("callback %s failed for user %s", notice.kind, notice.user_id)
                mark_failed(connection, notice, f"{type(error).__name__}: {error}", _MOST_TRIES)
            return True

    def _call(self, notice: Notice) -> Any:
        """Call what is declared for a notice. Raises whatever that raises."""
        call = self._functions.get(notice.kind)
        _, _, user_id, graph_id, graph_exec_id, balance, amount = notice
        try:
            if call is None:
                return None
            if notice.kind == "low_balance":
                return call(user_id, balance, amount, notice.id)
            if notice.kind == "insufficient_funds":
                return call(user_id, graph_id, graph_exec_id, balance, amount, notice.id)
            return call(user_id, balance, notice.id)
        except (psycopg.Error, DatabaseUnavailable, SystemExit) as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error  # its own, not ours


def deliver_notices(database_url: str, should_stop: Callable[[], bool]) -> None:
    """Deliver notices until `should_stop`: what a process does that is there for it alone, on a host without a charger.

    Returns at once where no package declares a callback."""
    callbacks = Callbacks.start(database_url)
    if callbacks is not None:
        while not should_stop():
            signal.sigtimedwait([], _LOOK_SECONDS)  # there is nothing to do here but to see that it is time to end
        callbacks.stop()
