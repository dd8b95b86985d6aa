"""Writes `shmcache/asynchronous/execution_data_client.py`: the interface of `ExecutionDataClient`, as coroutines.

    python -m tools.async_interface

The two have the same names, parameters, defaults and docstrings, because the one is made from the other's text. A test
fails when the interface was changed and this was not run.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "shmcache" / "execution_data_client.py"
TARGET = SOURCE.parent / "asynchronous" / SOURCE.name

_HEAD = '''"""AsyncExecutionDataClient: the calls of `ExecutionDataClient` as coroutines, for an event loop.

    async with get_db_async_client() as client:
        node = await client.get_node(node_id)                                  # a hit: the loop goes on at once
        await client.upsert_execution_output(node_exec_id, "result", 42)

The same names, parameters, defaults, results and errors. "Blocks" in a docstring means here: the task waits, the loop
never does. One client serves all event loops of a process, in whatever threads they run.

- What the arena answers is answered on the loop, in one step. Where the synchronous client would wait, a thread
  waits: for the database, for a lock, for room. One thread sleeps for all tasks that wait for work, one for all that
  wait until something is durable.
- A call that was cancelled was made as a whole or not at all, and nothing of it happens later. A write that was to be
  durable and is cancelled while it waits for that is made, and carried to the database as every other.
- `atomically` takes an ordinary function, whose calls are those of `client.inside`; see `shmcache.asynchronous.calls`.

This module is written by `python -m tools.async_interface` from `execution_data_client.py`: change that one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, cast, overload

from shmcache.asynchronous.calls import AsyncCalls
from shmcache.execution_data_client import Work, WorkKind
from shmcache.records import (
    ExecutionStatus,
    Graph,
    GraphExecution,
    InputSource,
    NodeDefinition,
    NodeExecution,
)

T = TypeVar("T")


class AsyncExecutionDataClient(AsyncCalls):
    """The interface of all asynchronous clients. "Blocks" in a docstring means: the task waits, the loop never does."""
'''
_OWN_WAY = {"take_work", "wait_durable", "flush", "close"}
"""What is waited for without a thread for each who waits."""


def generate(source: str) -> str:
    """Return the module's text, formatted, from that of the synchronous interface."""
    lines = source.splitlines()
    tree = ast.parse(source)
    interface = next(
        each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == "ExecutionDataClient"
    )
    overloaded = {each.name for each in _methods(interface) if _is(each, "overload")}
    parts = [_HEAD]
    for method in _methods(interface):
        returns = ast.unparse(method.returns) if method.returns else "None"
        if _is(method, "property"):
            head = f"    @property\n    def {method.name}(self) -> {returns}:"
            body = f"return self._client.{method.name}"
        else:
            mark = "    @overload\n" if _is(method, "overload") else ""
            head = f"{mark}    def {method.name}({ast.unparse(method.args)}) -> Coroutine[Any, Any, {returns}]:"
            body = _body(method, method.name in overloaded)
        if _is(method, "overload"):
            parts.append(f"{head} ...")
            continue
        doc = method.body[0]
        text = "\n".join(lines[doc.lineno - 1 : doc.end_lineno])
        check = "" if _is(method, "property") else "        if self._transactions:\n            self._outside()\n"
        parts.append(f"{head}\n{text}\n{check}        {body}")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(TARGET), "-"],
        cwd=SOURCE.parents[1],
        input="\n\n".join(parts) + "\n",
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def _methods(interface: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    return (each for each in interface.body if isinstance(each, ast.FunctionDef) and not each.name.startswith("__"))


def _is(method: ast.FunctionDef, decorator: str) -> bool:
    return any(isinstance(each, ast.Name) and each.id == decorator for each in method.decorator_list)


def _body(method: ast.FunctionDef, is_overloaded: bool) -> str:
    positional = [each.arg for each in method.args.args[1:]]
    named = [each.arg for each in method.args.kwonlyargs]
    if method.name in _OWN_WAY:
        return f"return self._{method.name}({', '.join(positional)})"
    call = f"self._client.{method.name}"
    if is_overloaded:
        call = f'cast("Callable[..., NodeExecution]", {call})'
    if method.name == "atomically":
        positional[0] = f"self._in_one_piece({positional[0]})"
    carries = "durable" in named or "async_mode" in positional
    given = [call, *positional, *(f"{each}={each}" for each in named)]
    return f"return self.{'_run_and_carry' if carries else '_run'}({', '.join(given)})"


def main() -> None:
    """Write the module."""
    TARGET.write_text(generate(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
