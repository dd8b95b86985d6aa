"""The function that workers run, named on the command line as MODULE:CALLABLE.

It is imported in each worker and not in the supervisor, so that workers started after a change have the new code. That
it can be imported is tried first, in a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any, NoReturn

from shmcache.blocks import forget_imported
from shmcache.errors import SettingsError, ShmcacheError
from tools.trace_file import write_traceback


class CannotImport(ShmcacheError):
    """A module failed while it was imported."""


class Target:
    """A function of somebody's module, found in the current directory or where Python looks for modules."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._function: Callable[[], Any] | None = None
        if (directory := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, directory)

    def load(self) -> None:
        """Import it. Raises SettingsError, or what the module raises while it is imported."""
        invalidate_caches()
        forget_imported()  # a supervisor may have drained an arena with runs of them
        module_name, _, name = self._name.partition(":")
        try:
            function = getattr(import_module(module_name), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise SettingsError(f"{self._name!r} cannot be imported as MODULE:CALLABLE: {error}") from None
        if not callable(function):
            raise SettingsError(f"{self._name!r} is not callable")
        self._function = function

    def call(self) -> None:
        """Call it, once it is loaded."""
        assert self._function is not None
        self._function()

    def try_import(self) -> None:
        """Import it in a process of its own, so that nothing of it stays here. Raises SettingsError, CannotImport."""
        reads, writes = os.pipe()
        child = os.fork()
        if not child:
            self._try_here(writes)
        os.close(writes)
        with os.fdopen(reads, "rb") as told:
            problem = told.read().decode()
        _, status = os.waitpid(child, 0)
        if problem:
            kind, _, text = problem.partition(" ")
            raise SettingsError(text) if kind == "settings" else CannotImport(text)
        if status:
            raise CannotImport(f"the process that imported {self._name!r} died (wait status {status})")

    def _try_here(self, tell: int) -> NoReturn:
        problem = ""
        try:
            self.load()
        except SettingsError as error:
            problem = f"settings {error}"
        except BaseException as error:
            text = f"unexpected {type(error).__name__}: {error} while {self._name!r} was imported"
            problem = f"import {text} (details in {write_traceback()})"
        finally:
            os.write(tell, problem.encode())
            os._exit(0)
