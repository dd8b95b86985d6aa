"""A process of a model: a generator, and the places to which it can come.

A generator cannot be copied. What stands for its state is where it is and what its variables hold, and it is brought
there again by giving a new one the answers that the first one got. So everything that decides how it goes on has to be
in variables: a model is refused if it yields inside an expression or a context, or in a loop over anything but a range
or an enumeration, whose state is seen nowhere.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable, Generator, Hashable
from types import CodeType, GeneratorType
from typing import Any, TypeAlias

Steps: TypeAlias = Generator[Any, Any, Any]

ENDED = -1
"""The place of a process that has come to its end."""
INTERRUPT = object()
"""The answer that is an exception."""


class Interrupted(Exception):
    """An exception at any instruction, a signal handler's say."""


class Place:
    """Where a process is: its next access, and the answers that bring a new generator here."""

    __slots__ = ("access", "after", "answers", "line")

    def __init__(self, access: Any, line: str, answers: tuple[Any, ...]) -> None:
        self.access = access
        self.line = line
        self.answers = answers
        self.after: dict[Any, int] = {}


class Process:
    """The places that a process was found to come to, by what its generator's frames hold there."""

    def __init__(self, name: str, number: int, start: Callable[[], Steps]) -> None:
        self.name = name
        self.number = number
        self._start = start
        self.places: list[Place] = []
        self._known: dict[Hashable, int] = {}
        self._checked: set[CodeType] = set()
        self.first = self._bring((None,))

    def after(self, place: int, answer: Any) -> int:
        """Return the place that an answer leads to from a place."""
        here = self.places[place]
        following = here.after.get(answer)
        if following is None:
            following = here.after[answer] = self._bring((*here.answers, answer))
        return following

    def _bring(self, answers: tuple[Any, ...]) -> int:
        generator = self._start()
        try:
            for answer in answers:
                access = generator.throw(Interrupted()) if answer is INTERRUPT else generator.send(answer)
        except (StopIteration, Interrupted):
            return ENDED
        key, line = self._state(generator)
        if key not in self._known:
            self._known[key] = len(self.places)
            self.places.append(Place(access, line, answers))
        return self._known[key]

    def _state(self, generator: Any) -> tuple[Hashable, str]:
        state: list[Hashable] = []
        line = ""
        while isinstance(generator, GeneratorType):
            frame = generator.gi_frame
            assert frame is not None
            if frame.f_code not in self._checked:
                check_source(frame.f_code)
                self._checked.add(frame.f_code)
            state += [frame.f_code, frame.f_lasti, _frozen(frame.f_locals)]
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            generator = generator.gi_yieldfrom
        return tuple(state), line


def _frozen(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple((name, _frozen(each)) for name, each in value.items())
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    hash(value)
    return value  # type: ignore[no-any-return]


def check_source(code: CodeType) -> None:
    """Raise ValueError if a generator function keeps what decides how it goes on where it is not seen."""
    source = textwrap.dedent(inspect.getsource(code))
    tree = ast.parse(source)
    seen: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr | ast.Assign | ast.Return) and isinstance(node.value, ast.Yield | ast.YieldFrom):
            seen.add(node.value)
        elif isinstance(node, ast.For) and any(isinstance(each, ast.Yield | ast.YieldFrom) for each in ast.walk(node)):
            over = node.iter.func if isinstance(node.iter, ast.Call) else None
            if not (isinstance(over, ast.Name) and over.id in ("range", "enumerate")):
                raise ValueError(f"{code.co_qualname} yields in a loop over what may come twice")
        elif isinstance(node, ast.With) and any(isinstance(each, ast.Yield | ast.YieldFrom) for each in ast.walk(node)):
            raise ValueError(f"{code.co_qualname} yields inside of a context")
    if any(isinstance(node, ast.Yield | ast.YieldFrom) and node not in seen for node in ast.walk(tree)):
        raise ValueError(f"{code.co_qualname} yields inside an expression")
