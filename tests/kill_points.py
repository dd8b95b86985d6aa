"""Kill points: places that the source names in a comment, `# step: intended`, where a test dies, waits or looks.

The product has no hook for it, and does no work for it. A test that arms a module has those of its functions that have
steps replaced by the same source with each such comment made a call: compiled for that test, in its process only.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from shmcache.arena import critical, stripes

_STEP = re.compile(r"^(\s*)# step: (\w+)$", re.MULTILINE)
_CALLED = "_kill_point"

_originals: dict[ModuleType, dict[FunctionType, CodeType]] = {}


def steps_of(module: ModuleType) -> list[str]:
    """Return the names of a module's steps, in the order in which they stand."""
    return [name for _, name in _STEP.findall(inspect.getsource(module))]


def arm(module: ModuleType, point: Callable[[str], None]) -> None:
    """Have a function called with the name of each step of a module that this process comes to."""
    vars(module)[_CALLED] = point
    if module not in _originals:
        source = _STEP.sub(rf'\1{_CALLED}("\2")', inspect.getsource(module))
        armed = {code.co_qualname: code for code in _codes(compile(source, inspect.getfile(module), "exec"))}
        _originals[module] = {
            function: function.__code__ for name, function in _functions(module) if _CALLED in armed[name].co_names
        }
        for function, code in _originals[module].items():
            function.__code__ = armed[code.co_qualname]
        _note_entry(module)


def disarm(module: ModuleType) -> None:
    """Give a module its own functions back."""
    for function, code in _originals.pop(module, {}).items():
        function.__code__ = code
    _note_entry(module)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _functions(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    for holder in (module, *(each for each in vars(module).values() if inspect.isclass(each))):
        for value in vars(holder).values():
            function: Any = inspect.unwrap(value) if callable(value) else value
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                yield function.__qualname__, function


def _note_entry(module: ModuleType) -> None:
    if module is critical:  # it knows its own entry by its code
        critical._ENTER = critical.Critical.__enter__.__code__
    elif module is stripes:
        stripes._OVERWRITE = stripes.Stripes.overwrite.__code__
