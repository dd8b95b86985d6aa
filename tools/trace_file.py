"""Tracebacks go to a file: who uses the command line gets one line that says where."""

from __future__ import annotations

import tempfile
import traceback

from shmcache.setting_texts import without_passwords


def write_traceback() -> str:
    """Write the traceback of the exception at hand to a new file; return its path."""
    with tempfile.NamedTemporaryFile("w", prefix="shmcache-", suffix=".log", delete=False) as log:
        log.write(without_passwords(traceback.format_exc()))
    return log.name
