"""The log: one line an event, with who wrote it; what repeats is counted instead of written; no secrets."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tools import logs
from tools.logs import JsonFormatter, LeftOut, LimitedHandler, RepeatLimit, TextFormatter, bind_arena


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger at INFO, with no other handlers than a test adds."""
    logger = logging.getLogger()
    before, level = logger.handlers[:], logger.level
    logger.handlers[:] = []
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers[:] = before
    logger.setLevel(level)
    bind_arena("")


def write_to(root: logging.Logger, formatter: logging.Formatter) -> tuple[io.StringIO, LimitedHandler]:
    """Log to a text; return it and its handler."""
    stream = io.StringIO()
    handler = LimitedHandler(stream)
    handler.setFormatter(formatter)
    root.addHandler(handler)
    return stream, handler


def test_a_line_of_text_says_which_process_of_which_arena_wrote_it(root: logging.Logger) -> None:
    stream, _ = write_to(root, TextFormatter(""))
    bind_arena("main")
    logging.getLogger("somebody").warning("%s happened", "something")
    assert stream.getvalue().endswith(
        f" WARNING {multiprocessing.current_process().name} {os.getpid()} [main]: something happened\n"
    )


def test_a_line_of_json_has_the_same_and_what_the_event_was_made_from(root: logging.Logger) -> None:
    stream, _ = write_to(root, JsonFormatter())
    bind_arena("main")
    logging.getLogger("somebody").info("Synced %d outputs", 3, extra={"outputs": 3})
    line: dict[str, Any] = json.loads(stream.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "INFO", "role": multiprocessing.current_process().name, "pid": os.getpid(), "arena": "main",
        "logger": "somebody", "event": "Synced %d outputs", "message": "Synced 3 outputs", "outputs": 3,
    }  # fmt: skip


@pytest.mark.parametrize("formatter", [TextFormatter(""), JsonFormatter()])
def test_an_event_with_a_traceback_or_line_ends_is_one_line(root: logging.Logger, formatter: logging.Formatter) -> None:
    stream, _ = write_to(root, formatter)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("somebody").exception("it\nfailed")
    assert len(stream.getvalue().splitlines()) == 1
    assert "ValueError" in stream.getvalue()
    assert __file__ in stream.getvalue()


@pytest.mark.parametrize("formatter", [TextFormatter(""), JsonFormatter()])
def test_a_password_that_somebody_logs_is_left_out(root: logging.Logger, formatter: logging.Formatter) -> None:
    stream, _ = write_to(root, formatter)
    url = "postgresql://me:geheim@host/db"
    try:
        raise ValueError(f"cannot use {url}")
    except ValueError:
        logging.getLogger("somebody").exception("no %s, password=geheim", url, extra={"url": url, "more": [url]})
    assert "geheim" not in stream.getvalue()
    assert "host/db" in stream.getvalue()


def test_what_repeats_is_left_out_and_counted_when_its_time_is_over() -> None:
    limit = RepeatLimit(most_alike=3, window_seconds=10.0)
    assert [limit.admits("away", 30, now) for now in (0.0, 1.0, 2.0, 3.0, 4.0)] == [True, True, True, False, False]
    assert limit.admits("other", 30, 5.0)
    assert limit.admits("away", 40, 5.0)
    assert limit.ended(9.9) == []
    assert limit.ended(10.0) == [LeftOut("away", 30, 2)]
    assert limit.ended(10.0) == []
    assert limit.admits("away", 30, 10.5)
    assert limit.ended(100.0) == []


def test_a_flood_of_texts_that_are_all_different_is_written_and_takes_bounded_memory() -> None:
    limit = RepeatLimit(most_alike=1, window_seconds=10.0)
    assert all(limit.admits(f"text {number}", 30, 0.0) for number in range(30_000))
    assert len(limit._windows) == logs._MOST_EVENTS
    assert limit.ended(10.0) == []
    assert not limit._windows


def test_a_storm_of_one_error_is_ten_lines_and_one_that_counts_the_rest(root: logging.Logger) -> None:
    stream, handler = write_to(root, TextFormatter(""))
    for number in range(1000):
        logging.getLogger("somebody").error("entry %d was refused", number)
    logging.getLogger("somebody").error("something else")
    handler.tell_rest()
    lines = stream.getvalue().splitlines()
    assert [line.rsplit(": ", 1)[1] for line in lines[:10]] == [f"entry {number} was refused" for number in range(10)]
    assert lines[10].endswith("something else")
    assert lines[11].endswith('left out 990 more lines like "entry %d was refused"')
    assert "ERROR" in lines[11]
    assert len(lines) == 12


def test_errors_that_are_logged_by_their_text_alone_are_told_apart(root: logging.Logger) -> None:
    stream, handler = write_to(root, TextFormatter(""))
    for number in range(20):
        logging.getLogger("somebody").error("%s", ValueError(f"number {number}"))
    handler.tell_rest()
    assert len(stream.getvalue().splitlines()) == 20


def test_at_debug_nothing_is_left_out(root: logging.Logger) -> None:
    root.setLevel(logging.DEBUG)
    stream, handler = write_to(root, TextFormatter(""))
    for _ in range(50):
        logging.getLogger("somebody").error("again")
    handler.tell_rest()
    assert len(stream.getvalue().splitlines()) == 50


def test_a_forked_process_does_not_tell_what_its_parent_left_out(root: logging.Logger) -> None:
    reads, writes = os.pipe()
    stream, handler = write_to(root, TextFormatter(""))
    for _ in range(50):
        logging.getLogger("somebody").error("again")
    pid = os.fork()
    if not pid:
        handler.tell_rest()
        os.write(writes, str(len(stream.getvalue().splitlines())).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reads, 100) == b"10"
    os.close(reads)
    os.close(writes)
    logs.end_logging()
    assert len(stream.getvalue().splitlines()) == 11
