"""The log: one format for all processes, on standard error."""

from __future__ import annotations

import logging
import multiprocessing
import sys

_FORMAT = "%(asctime)s %(levelname)s %(processName)s %(process)d: %(message)s"
_ERASE_LINE = "\r\x1b[2K"
"""Takes away the progress bar, which is drawn again below the line logged."""


def start_logging(level: str) -> None:
    """Log from `level` on, with the role and the pid of the process, also in processes forked later."""
    multiprocessing.current_process().name = "supervisor"
    erase = _ERASE_LINE if sys.stderr.isatty() else ""
    logging.basicConfig(stream=sys.stderr, level=level, format=erase + _FORMAT)
    logging.getLogger("filelock").setLevel(logging.WARNING)  # it logs each try of each candidate
