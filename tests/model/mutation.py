"""A model with a mistake in it: the same source with one place changed, as a module of its own."""

from __future__ import annotations

import inspect
import itertools
import linecache
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TypeAlias

Changes: TypeAlias = Sequence[tuple[str, str]]
"""What stands in a source, and what is to stand there instead."""

_numbers = itertools.count()


def mutated(model: ModuleType, changes: Changes, used_by: ModuleType | None = None) -> ModuleType:
    """Return a module like a model but for some places in its source, each of which has to be there once.

    With `used_by`, return one like that model, which uses the changed one."""
    source = inspect.getsource(model)
    for old, new in changes:
        assert source.count(old) == 1, f"{source.count(old)} places in {model.__name__} are {old!r}"
        source = source.replace(old, new)
    changed = _module(f"{model.__name__}_mutated_{next(_numbers)}", source)
    if used_by is None:
        return changed
    sys.modules[changed.__name__] = changed
    try:
        source = inspect.getsource(used_by).replace(f"from {model.__name__} import", f"from {changed.__name__} import")
        return _module(f"{used_by.__name__}_mutated_{next(_numbers)}", source)
    finally:
        del sys.modules[changed.__name__]


def _module(name: str, source: str) -> ModuleType:
    file = f"<{name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    module = ModuleType(name)
    module.__file__ = file
    exec(compile(source, file, "exec"), vars(module))
    return module
