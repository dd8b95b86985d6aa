"""Suites, one after the other, each in a process of its own; and what they say on the way."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from shmcache.errors import ShmcacheError
from tools.bench.bench import Bench
from tools.bench.method import CORES
from tools.bench.results import NotMeasured, Results
from tools.trace_file import write_traceback

_PACKAGES = (
    "shmcache", "numpy", "msgpack", "psycopg", "lmdb", "diskcache", "redis", "hiredis", "pymemcache", "ultradict",
    "ultradict2", "easyglobals", "faster-fifo",
)  # fmt: skip
_END_SECONDS = 30.0

Say = Callable[[str, str], None]
"""Told the suite and what it does now."""


def run_suites(suites: Sequence[str], quick: bool, files: Sequence[Path], say: Say) -> Results:
    """Run suites and return all that they found. A suite that fails is noted as not measured."""
    results = Results(machine=machine())
    results.machine["quick"] = quick
    for suite in suites:
        results.add(_run_apart(suite, quick, files, say))
    return results


def machine() -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, kernel, versions, load."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": len(CORES),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "versions": versions,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _run_apart(suite: str, quick: bool, files: Sequence[Path], say: Say) -> Results:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_live, args=(suite, quick, list(files), theirs))
    process.start()
    theirs.close()
    results: Results | None = None
    try:
        while results is None:
            message = ours.recv()
            if isinstance(message, Results):
                results = message
            else:
                say(suite, message)
    except EOFError:
        reason = "its process ended before it was done"
        results = Results(not_measured=[NotMeasured(suite, f"the suite {suite}", reason)])
    finally:
        if results is None:  # asked to stop: its process was, too, and cleans up
            process.join(_END_SECONDS)
            process.kill()
        process.join()
        ours.close()
    return results


def _live(suite: str, quick: bool, files: Sequence[Path], pipe: Connection) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warnings.filterwarnings("ignore", message="EasyGlobals does not support the 'fork'")  # no child uses it
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    bench = Bench(suite, quick, files, pipe.send)
    try:
        import_module(f"tools.bench.suites.{suite}").run(bench)
    except ShmcacheError as error:
        bench.not_measured(f"the rest of {suite}", str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        bench.not_measured(f"the rest of {suite}", f"it failed: {text} (details in {write_traceback()})")
    pipe.send(bench.results)
    pipe.close()
