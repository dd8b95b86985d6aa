"""The log: one line an event, from all processes, on standard error, as text or as JSON.

    2026-01-31 12:00:00,123 INFO syncer 4711 [main]: Sync manager started
    {"time": "2026-01-31T12:00:00.123Z", "level": "INFO", "role": "syncer", "pid": 4711, "arena": "main", ...}

Role, pid and arena are bound to each line; forked processes inherit the arena. JSON has besides the finished `message`
the `event` it was made from, which is the same for all events of a kind, and what was given as `extra`.

Lines that are alike (of one event) beyond ten in ten seconds are left out, and counted in a line of their own when
these are over; at level DEBUG nothing is left out.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
from typing import Any, NamedTuple, TextIO

from shmcache.setting_texts import without_passwords

_FORMAT = "%(asctime)s %(levelname)s %(processName)s %(process)d%(bound)s: %(message)s"
_ERASE_LINE = "\r\x1b[2K"
"""Takes away the progress bar, which is drawn again below the line logged."""
_MOST_ALIKE = 10
_WINDOW_SECONDS = 10.0
_MOST_EVENTS = 10_000
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "bound", "taskName"}

_arena_name = ""


class LeftOut(NamedTuple):
    """How many lines of an event were left out within a window."""

    event: str
    level: int
    lines: int


class _Window:
    __slots__ = ("began", "count")

    def __init__(self, began: float) -> None:
        self.began = began
        self.count = 0


class RepeatLimit:
    """Says which of many events that are alike are logged. Times are a clock's seconds, given by the caller."""

    def __init__(self, most_alike: int = _MOST_ALIKE, window_seconds: float = _WINDOW_SECONDS) -> None:
        self._most_alike = most_alike
        self._window_seconds = window_seconds
        self._windows: dict[tuple[str, int], _Window] = {}

    def admits(self, event: str, level: int, now: float) -> bool:
        """Count an event; return whether it is logged."""
        window = self._windows.get((event, level))
        if window is None:
            if len(self._windows) >= _MOST_EVENTS:
                return True  # texts that are all different: nothing repeats, and memory is bounded
            window = self._windows[event, level] = _Window(now)
        window.count += 1
        return window.count <= self._most_alike

    def ended(self, now: float) -> list[LeftOut]:
        """Forget the windows that are over; return what was left out in them."""
        left_out = []
        while self._windows:
            (event, level), window = next(iter(self._windows.items()))  # the oldest: they are in order of beginning
            if now - window.began < self._window_seconds:
                break
            del self._windows[event, level]
            if window.count > self._most_alike:
                left_out.append(LeftOut(event, level, window.count - self._most_alike))
        return left_out


class TextFormatter(logging.Formatter):
    """One line of text an event, also where it has a traceback: line ends are written as a backslash and an n."""

    def __init__(self, before: str) -> None:
        super().__init__(before + _FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        record.bound = f" [{_arena_name}]" if _arena_name else ""
        return without_passwords(super().format(record).replace("\r\n", "\n").replace("\n", "\\n"))


class JsonFormatter(logging.Formatter):
    """One JSON object an event."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "role": record.processName,
            "pid": record.process,
            "arena": _arena_name or None,
            "logger": record.name,
            "event": _event(record),
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _OWN_FIELDS},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(_clean(line))


class LimitedHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream, and leaves out what repeats too often."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._limit = RepeatLimit()
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless too many like it were written; before it, how many were left out lately."""
        if logging.getLogger().level <= logging.DEBUG:
            super().emit(record)
            return
        self._begin_anew_after_fork()
        now = time.monotonic()
        self._tell(now)
        if self._limit.admits(_event(record), record.levelno, now):
            super().emit(record)

    def tell_rest(self) -> None:
        """Write how many were left out and not told of yet: this process ends."""
        self._begin_anew_after_fork()
        self._tell(float("inf"))
        self.flush()

    def _tell(self, now: float) -> None:
        for event, level, lines in self._limit.ended(now):
            text = 'left out %d more lines like "%s"'
            super().emit(logging.LogRecord(__name__, level, "", 0, text, (lines, event), None))

    def _begin_anew_after_fork(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._limit = RepeatLimit()


def _event(record: logging.LogRecord) -> str:
    """Return what is the same in all records of a kind: the text they are made from, if there is one."""
    text = str(record.msg)
    return record.getMessage() if text == "%s" else text


def _clean(value: Any) -> Any:
    """Return a value as JSON can hold it, with passwords left out of its texts."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {without_passwords(str(key)): _clean(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(each) for each in value]
    return without_passwords(str(value))


def start_logging(level: str, log_format: str = "text", arena_name: str = "") -> None:
    """Log from `level` on, with the role and the pid of the process, also in processes forked later."""
    multiprocessing.current_process().name = "supervisor"
    handler = LimitedHandler(sys.stderr)
    before = _ERASE_LINE if sys.stderr.isatty() else ""
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(before))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("filelock").setLevel(logging.WARNING)  # it logs each try of each candidate
    bind_arena(arena_name)


def bind_arena(name: str) -> None:
    """Name the arena in each line from now on, also in processes forked later."""
    global _arena_name  # noqa: PLW0603 - one a process, by intent: forked processes inherit it
    _arena_name = name


def end_logging() -> None:
    """Say what was left out, before this process ends without the interpreter's own end."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, LimitedHandler):
            handler.tell_rest()
