"""How things are timed.

- In a round every subject is timed once; the next round goes through them the other way round (A B C, C B A), so that a
  machine that grows slower or faster meets all of them alike. A ratio is taken within each round, and the median of
  these is the figure.
- What is too quick for a clock is timed as a loop over many keys, after a warm-up; the cost of the empty loop over the
  same keys, timed beside it, is taken off. The collector of cycles is off meanwhile, for every subject.
- Percentiles are those of single operations, each timed from when it was *due*, at a steady rate: one that makes the
  next ones late is charged for their waiting too (no coordinated omission). They come from an HDR histogram.
- Several processes start together at one moment and are counted over one window, each on a core of its own while there
  are cores.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tools.bench.results import PERCENTILES

RunAll = Callable[[Sequence[Any]], object]
"""Does its operation once for each argument of a list."""

CORES = tuple(sorted(os.sched_getaffinity(0)))
_LEAD_SECONDS = 0.05
_UNDISTURBED = 0.95
_HIGHEST_NS = 60_000_000_000


def interleave(
    subjects: Mapping[str, Callable[[], float]], rounds: int, tick: Callable[[str], None] = lambda _: None
) -> dict[str, list[float]]:
    """Call every subject once a round, in alternating order; return what each returned, round by round."""
    found: dict[str, list[float]] = {name: [] for name in subjects}
    names = list(subjects)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(subjects[name]())
            tick(name)
    return found


def pairs(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """Return the ratio of each round."""
    return tuple(mine / other for mine, other in zip(ours, theirs, strict=True))


@contextmanager
def pinned(position: int) -> Iterator[None]:
    """Keep this process on one core for a while: the `position`th of those that it may use, counted round."""
    os.sched_setaffinity(0, {CORES[position % len(CORES)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, set(CORES))


@contextmanager
def without_collector() -> Iterator[None]:
    """Collect once, then keep the collector of cycles off."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def run_nothing(arguments: Sequence[Any]) -> None:
    """Go through a list and do nothing: what the loop itself costs."""
    for _ in arguments:
        pass


def timed_once(run_all: RunAll, arguments: Sequence[Any]) -> float:
    """Do an operation once for each argument; return nanoseconds for each."""
    with without_collector():
        began = time.perf_counter()
        run_all(arguments)
        return (time.perf_counter() - began) * 1e9 / len(arguments)


class Loop:
    """Times an operation over a list of arguments, many times over, for about `seconds` a sample.

    `again` is called before each pass over the arguments, outside of the timing."""

    def __init__(
        self, run_all: RunAll, arguments: Sequence[Any], seconds: float, again: Callable[[], None] | None = None
    ) -> None:
        self._run_all = run_all
        self._again = again or (lambda: None)
        count = min(8, len(arguments))
        self._arguments = arguments[:count]
        self._passes(1)  # what only the first ones wait for says nothing of how long the others take
        while True:
            self._arguments = arguments[:count]
            took = self._passes(1)
            if took >= seconds / 4 or count >= len(arguments):
                break
            count = min(len(arguments), max(count * 2, int(count * seconds / 4 / max(took, 1e-7))))
        self._repeats = max(1, round(seconds / max(took, 1e-7)))

    def sample(self) -> float:
        """Return nanoseconds for one operation, the loop's own cost taken off."""
        with without_collector():
            took = self._passes(self._repeats)
            began = time.perf_counter()
            for _ in range(self._repeats):
                run_nothing(self._arguments)
            took -= time.perf_counter() - began
        return max(took, 0.0) * 1e9 / (self._repeats * len(self._arguments))

    def _passes(self, repeats: int) -> float:
        took = 0.0
        for _ in range(repeats):
            self._again()
            began = time.perf_counter()
            self._run_all(self._arguments)
            took += time.perf_counter() - began
        return took


def closed_rate(operation: Callable[[Any], object], arguments: Sequence[Any], seconds: float) -> float:
    """Return how many times a second an operation is done, one after the other, with the clock read as `latencies`
    does."""
    clock = time.perf_counter
    done = 0
    ended = began = clock()
    while ended - began < seconds:
        operation(arguments[done % len(arguments)])
        done += 1
        ended = clock()
    return done / (ended - began)


def latencies(operation: Callable[[Any], object], arguments: Sequence[Any], per_second: float) -> list[int]:
    """Do an operation once for each argument at a steady rate; return the nanoseconds from when each was due to its
    end."""
    clock = time.perf_counter_ns
    step = 1e9 / per_second
    ended = [0] * len(arguments)
    with without_collector():
        began = clock() + 1_000_000
        for position, argument in enumerate(arguments):
            due = began + int(position * step)
            while clock() < due:
                pass
            operation(argument)
            ended[position] = clock()
    return [end - began - int(position * step) for position, end in enumerate(ended)]


def percentiles(nanoseconds: Sequence[int]) -> dict[str, float]:
    """Return the percentiles of `results.PERCENTILES`, by their names, from an HDR histogram of 3 digits."""
    from hdrh.histogram import HdrHistogram

    histogram = HdrHistogram(1, _HIGHEST_NS, 3)
    for each in nanoseconds:
        histogram.record_value(min(max(each, 1), _HIGHEST_NS))
    return {str(each): float(histogram.get_value_at_percentile(each)) for each in PERCENTILES}


class Window(NamedTuple):
    """What a process did in the common window."""

    operations: int
    seconds: float
    cpu_seconds: float


def together(make: Callable[[int], Callable[[], int]], processes: int, seconds: float) -> list[Window]:
    """Fork processes that start at one moment and work for `seconds`; return what each did.

    `make(number)` is called in each of them first: it returns what is called again and again, and that returns how many
    operations it did. Raises RuntimeError where one of them fails."""
    context = multiprocessing.get_context("fork")
    children = []
    for number in range(processes):
        ours, theirs = context.Pipe()
        child = context.Process(target=_work_in_window, args=(make, number, theirs))
        child.start()
        theirs.close()
        children.append((child, ours))
    try:
        for _, pipe in children:
            pipe.recv()
        begin = time.monotonic() + _LEAD_SECONDS
        for _, pipe in children:
            pipe.send((begin, begin + seconds))
        windows = [Window(*pipe.recv()) for _, pipe in children]
    except EOFError:
        raise RuntimeError("a measuring process ended before it had measured: see above") from None
    finally:
        for child, pipe in children:
            child.join()
            pipe.close()
    return windows


def undisturbed(measure: Callable[[], list[Window]], tries: int) -> list[Window]:
    """Return windows in which every process had its core for itself; where others take the cores in all `tries`, those
    in which it had most of it."""
    best: list[Window] = []
    for _ in range(tries):
        windows = measure()
        if not best or core_share(windows) > core_share(best):
            best = windows
        if core_share(best) >= _UNDISTURBED:
            break
    return best


def core_share(windows: Sequence[Window]) -> float:
    """Return the least part of a core that one of the processes had."""
    return min(each.cpu_seconds / each.seconds for each in windows)


def rate(windows: Sequence[Window]) -> float:
    """Return operations a second of all processes together."""
    return sum(each.operations / each.seconds for each in windows)


def _work_in_window(make: Callable[[int], Callable[[], int]], number: int, pipe: Connection) -> None:
    os.sched_setaffinity(0, {CORES[number % len(CORES)]})
    work = make(number)
    work()
    with without_collector():
        pipe.send("ready")
        begin, end = pipe.recv()
        while time.monotonic() < begin:
            pass
        operations = 0
        cpu = time.process_time()
        while True:
            operations += work()
            now = time.monotonic()
            if now >= end:
                break
        # From the common beginning, also for one that came late to it.
        pipe.send((operations, now - begin, time.process_time() - cpu))
    pipe.close()


def in_a_child(action: Callable[[], float]) -> float:
    """Fork, call `action` in the child, on the first core, and return the number that it returned."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def live() -> None:
        os.sched_setaffinity(0, {CORES[0]})
        theirs.send(action())

    child = context.Process(target=live)
    child.start()
    theirs.close()
    try:
        return float(ours.recv())
    except EOFError:
        raise RuntimeError("a measuring process ended before it had measured: see above") from None
    finally:
        child.join()
        ours.close()
