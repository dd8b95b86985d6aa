"""A model checker: every interleaving of a few processes over shared words, with a death of any at every step.

A process is a generator that yields one access to shared memory at a time and is given the answer:

    count = yield Load("count")
    yield Store("count", count + 1)

So a protocol reads in a model as it reads in the code. `explore` goes through all states that can be reached, breadth
first: in each, every process takes its next step, or is killed, or gets an exception, while there are deaths and
exceptions left. A process that is stopped for a minute is one that takes no step for long: that is among them too.
What it finds is the shortest way to the first state that is wrong, as the lines of the model in their order.

Memory is sequentially consistent, which is as x86-64 shows it to who publishes with plain stores and reads with plain
loads in order (stores are seen in their order, loads are done in theirs).
"""

from __future__ import annotations

import gc
from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from tests.model.processes import ENDED, INTERRUPT, Interrupted, Process, Steps

__all__ = [
    "Acquire", "Atomically", "Choose", "Explored", "Holds", "Interrupted", "Load", "Memory", "Note", "Release", "Rest",
    "Steps", "Store", "System", "Wrong", "explore", "run_alone",
]  # fmt: skip

Memory: TypeAlias = dict[Any, Any]


class Load(NamedTuple):
    """Answers what a word holds."""

    word: Hashable


class Store(NamedTuple):
    """Changes a word."""

    word: Hashable
    value: Hashable


class Acquire(NamedTuple):
    """Takes a robust lock, waiting for it; answers whether its last holder died.

    With `again`, also whether it is held by this very process, which an exception kept from releasing it."""

    lock: Hashable
    again: bool = False


class Release(NamedTuple):
    """Gives a lock back."""

    lock: Hashable


class Holds(NamedTuple):
    """Answers whether the process holds a lock."""

    lock: Hashable


class Atomically(NamedTuple):
    """Does something in one step, as a transaction of a database does, and answers with what it returns.

    With `when`, waits until that holds."""

    change: Callable[[Memory], Any]
    when: Callable[[Memory], bool] | None = None


class Rest(NamedTuple):
    """Waits until something holds; where nobody can do anything else any more, that is the end, and not a deadlock."""

    until: Callable[[Memory], bool]


class Choose(NamedTuple):
    """Answers each of some values, in as many futures."""

    options: tuple[Hashable, ...]


class Note(NamedTuple):
    """What the observer notes in the same step as what was done just before: takes no step of its own."""

    change: Callable[[Memory], Any]


class System(NamedTuple):
    """A memory, processes over it, and what has to hold: at every step, and when all have ended or died.

    `locks` are free at first. `always` and `finally_` return what is wrong, or None; `finally_` is given what became of
    each process: it ended, it rests, or it died. `on_change` is what the observer notes in the same step in which
    the watched word changes, whoever stores it. With `may_end_with_locks` a process may end with a lock, and leaves it
    as one that dies does."""

    memory: Mapping[Any, Any]
    processes: Mapping[str, Callable[[], Steps]]
    locks: Sequence[Hashable] = ()
    deaths: int = 0
    interrupts: int = 0
    always: Callable[[Memory], str | None] = lambda _: None
    finally_: Callable[[Memory, Mapping[str, str]], str | None] = lambda _memory, _fates: None
    watched: Hashable = None
    on_change: Callable[[Memory], None] = lambda _: None
    may_end_with_locks: bool = False


class Wrong(AssertionError):
    """A protocol does something wrong; says what, and the shortest way to it."""


class Explored(NamedTuple):
    """How many states there are, and how many steps lead from one to another."""

    states: int
    steps: int


HELD = "held"
"""The answer to who takes a lock again that it has."""
_FREE, _ABANDONED = "free", "abandoned"
_DEAD = -2


def explore(system: System, limit: int = 3_000_000) -> Explored:
    """Go through all states of a system. Raises Wrong for the first that is wrong, or from which nobody can go on."""
    collects = gc.isenabled()
    gc.disable()  # millions of tuples, and no cycle among them: twice as fast
    try:
        return _Exploration(system, limit).run()
    finally:
        if collects:
            gc.enable()


def run_alone(steps: Steps, memory: Memory) -> None:
    """Have one process go its way over a memory that nobody else changes."""
    answer = None
    while True:
        try:
            access = steps.send(answer)
        except StopIteration:
            return
        match access:
            case Load(word):
                answer = memory[word]
            case Store(word, value):
                answer = memory.update({word: value})
            case Acquire(lock, _):
                assert memory[lock] == _FREE
                memory[lock] = "held"
                answer = False
            case Release(lock):
                answer = memory.update({lock: _FREE})
            case Atomically(change, _) | Note(change):
                answer = change(memory)
            case _:
                raise TypeError(access)


class _Exploration:
    def __init__(self, system: System, limit: int) -> None:
        self._system = system
        self._limit = limit
        words = {**system.memory, **dict.fromkeys(system.locks, _FREE)}
        self._index = {word: place for place, word in enumerate(words)}
        self._lock_places = [self._index[lock] for lock in system.locks]
        self._at_first = tuple(words.values())
        self._watched = None if system.watched is None else self._index[system.watched]
        # What led to each state: the state before, and the process with what it did (or what befell it).
        self._before = array("q")
        self._by: list[tuple[str, str]] = []
        self._processes = [
            Process(name, number, start) for number, (name, start) in enumerate(system.processes.items())
        ]

    def run(self) -> Explored:
        system, processes, index = self._system, self._processes, self._index
        memory = self._at_first
        places: list[int] = []
        for process in processes:
            memory, place = self._noted(memory, process, process.first)
            places.append(place)
        first = (memory, tuple(places), system.deaths, system.interrupts)
        known = {first: 0}
        self._before.append(-1)
        self._by.append(("", ""))
        waiting = [first]
        steps = 0
        number = -1
        found: list[tuple[tuple[Any, ...], Process, int, int, int, str]] = []
        for memory, at, deaths, interrupts in waiting:
            number += 1
            if problem := system.always(dict(zip(index, memory, strict=True))):
                raise self._wrong(number, problem)
            found.clear()
            for process in processes:
                place = at[process.number]
                if place < 0:
                    continue
                here = process.places[place]
                try:
                    for after, answer in self._answers(memory, process, here.access):
                        following = process.after(place, answer)
                        found.append((after, process, following, deaths, interrupts, here.line))
                    if interrupts:
                        following = process.after(place, INTERRUPT)
                        found.append((memory, process, following, deaths, interrupts - 1, "(gets an exception)"))
                except Exception as error:
                    raise self._wrong(number, f"{type(error).__name__}: {error}", (process.name, here.line)) from None
            if not found:
                fates = {process.name: self._fate(process, at[process.number]) for process in processes}
                if "waits" in fates.values():
                    raise self._wrong(number, "nobody can go on")
                if problem := system.finally_(dict(zip(index, memory, strict=True)), fates):
                    raise self._wrong(number, problem)
            if deaths:
                found.extend(
                    (memory, process, _DEAD, deaths - 1, interrupts, "(dies)")
                    for process in processes
                    if at[process.number] >= 0
                )
            for stored, process, reached, deaths_left, interrupts_left, what in found:
                steps += 1
                before = number
                try:
                    after, following = self._completed(memory, stored, process, reached)
                except Exception as error:
                    raise self._wrong(before, f"{type(error).__name__}: {error}", (process.name, what)) from None
                state = (
                    after, (*at[: process.number], following, *at[process.number + 1 :]), deaths_left, interrupts_left
                )  # fmt: skip
                if state not in known:
                    known[state] = len(waiting)
                    waiting.append(state)
                    self._before.append(before)
                    self._by.append((process.name, what))
            if len(waiting) > self._limit:
                raise self._wrong(number, f"more than {self._limit:,} states")
        return Explored(len(waiting), steps)

    def _answers(self, memory: tuple[Any, ...], process: Process, access: Any) -> Sequence[tuple[tuple[Any, ...], Any]]:
        """Return what memory becomes by an access, and the answer; nothing if it has to wait."""
        kind = type(access)
        if kind is Load:
            return [(memory, memory[self._index[access.word]])]
        if kind is Store:
            return [(_with(memory, self._index[access.word], access.value), None)]
        if kind is Acquire:
            place = self._index[access.lock]
            holder = memory[place]
            if holder == process.number:
                assert access.again, f"{access.lock} is held already"
                return [(memory, HELD)]
            if holder in (_FREE, _ABANDONED):
                return [(_with(memory, place, process.number), holder == _ABANDONED)]
            return []
        if kind is Release:
            place = self._index[access.lock]
            assert memory[place] == process.number, f"{access.lock} is not held"
            return [(_with(memory, place, _FREE), None)]
        if kind is Holds:
            return [(memory, memory[self._index[access.lock]] == process.number)]
        if kind is Choose:
            return [(memory, option) for option in access.options]
        if kind is Rest:
            return [(memory, None)] if access.until(dict(zip(self._index, memory, strict=True))) else []
        assert kind is Atomically, f"{process.name} yields {access!r}"
        view = dict(zip(self._index, memory, strict=True))
        if access.when is not None and not access.when(view):
            return []
        answer = access.change(view)
        return [(self._packed(view), answer)]

    @staticmethod
    def _fate(process: Process, place: int) -> str:
        if place < 0:
            return "ended" if place == ENDED else "died"
        return "rests" if type(process.places[place].access) is Rest else "waits"

    def _completed(
        self, before: tuple[Any, ...], after: tuple[Any, ...], process: Process, place: int
    ) -> tuple[tuple[Any, ...], int]:
        """Have done what belongs to a step: the observer's notes, and what becomes of the locks of who ended by it."""
        if self._watched is not None and after[self._watched] != before[self._watched]:
            view = dict(zip(self._index, after, strict=True))
            self._system.on_change(view)
            after = self._packed(view)
        after, place = self._noted(after, process, place)
        return self._given_up(after, process, place), place

    def _noted(self, memory: tuple[Any, ...], process: Process, place: int) -> tuple[tuple[Any, ...], int]:
        """Have the observer note what comes next, if it is that."""
        while place >= 0 and type(process.places[place].access) is Note:
            view = dict(zip(self._index, memory, strict=True))
            answer = process.places[place].access.change(view)
            memory = self._packed(view)
            place = process.after(place, answer)
        return memory, place

    def _given_up(self, memory: tuple[Any, ...], process: Process, place: int) -> tuple[Any, ...]:
        """Mark the locks of a process that died, or that ended with them."""
        if place < 0:
            for lock in self._lock_places:
                if memory[lock] == process.number:
                    may = place == _DEAD or self._system.may_end_with_locks
                    assert may, f"{process.name} ended with a lock held"
                    memory = _with(memory, lock, _ABANDONED)
        return memory

    def _packed(self, view: Memory) -> tuple[Any, ...]:
        assert len(view) == len(self._index), f"no such words: {view.keys() - self._index.keys()}"
        return tuple(view.values())

    def _wrong(self, state: int, problem: str, last: tuple[str, str] | None = None) -> Wrong:
        way = [last] if last else []
        while state > 0:
            way.append(self._by[state])
            state = self._before[state]
        return Wrong("\n".join([problem, *(f"    {name:12} {what}" for name, what in reversed(way))]))


def _with(memory: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    return (*memory[:place], value, *memory[place + 1 :])
