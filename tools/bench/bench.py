"""What a suite works with: how long it may take, where its findings go, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tools.bench.method import (
    closed_rate,
    core_share,
    interleave,
    latencies,
    pairs,
    percentiles,
    rate,
    together,
    undisturbed,
)
from tools.bench.peers.stores import CannotMeasure
from tools.bench.results import Curve, Figure, NotMeasured, Ratio, Results

P = TypeVar("P")
_BUSY = 0.95


class Bench:
    """One suite's run."""

    def __init__(self, suite: str, quick: bool, files: Sequence[Path], say: Callable[[str], None]) -> None:
        self.suite = suite
        self.quick = quick
        self.files = files
        self.say = say
        self.results = Results()

    @property
    def rounds(self) -> int:
        """How often each subject is measured."""
        return 5 if self.quick else 15

    @property
    def sample_seconds(self) -> float:
        """How long a loop runs for one sample."""
        return 0.02 if self.quick else 0.1

    def pick(self, quick: P, full: P) -> P:
        """Return the one that the run is for."""
        return quick if self.quick else full

    def opened(self, stack: ExitStack, makers: Mapping[str, Callable[[], P]]) -> dict[str, P]:
        """Open what can be opened, until the stack's end; what cannot be is noted as not measured."""
        peers: dict[str, P] = {}
        for name, make in makers.items():
            self.say(f"opening {name}")
            try:
                peer = make()
            except CannotMeasure as error:
                self.not_measured(name, error.reason, error.install)
                continue
            except Exception as error:  # a peer's own, of any kind: the others are measured all the same
                self.not_measured(name, f"it does not start: {type(error).__name__}: {error}")
                continue
            close = getattr(peer, "close", None)
            if close is not None:
                stack.callback(close)
            peers[name] = peer
        return peers

    def measure(
        self,
        test: str,
        unit: str,
        subjects: Mapping[str, Callable[[], float]],
        *,
        rounds: int | None = None,
        notes: Mapping[str, str] | None = None,
        percentiles: Mapping[str, dict[str, float]] | None = None,
    ) -> dict[str, list[float]]:
        """Measure subjects in interleaved rounds and note a figure for each; return all rounds."""
        found = interleave(subjects, rounds or self.rounds, lambda name: self.say(f"{test}: {name}"))
        for name, values in found.items():
            self.figure(test, name, unit, values, (percentiles or {}).get(name, {}), (notes or {}).get(name, ""))
        return found

    def latency(self, test: str, subject: str, operation: Callable[[Any], object], arguments: Sequence[Any]) -> None:
        """Note the percentiles of an operation at a fifth of the rate at which it can be done."""
        self.say(f"{test}: {subject}")
        per_second = closed_rate(operation, arguments, self.sample_seconds) / 5
        count = int(min(self.pick(10_000, 200_000), max(200, per_second * self.pick(0.3, 3.0))))
        spent = latencies(operation, [arguments[number % len(arguments)] for number in range(count)], per_second)
        found = percentiles(spent)
        self.figure(test, subject, "ns", [found["50.0"]], found, f"{per_second:,.0f} a second")

    def scaling(self, target: str, test: str, make: Callable[[int], Callable[[], int]]) -> None:
        """Measure one process and two, each on a core, doing the same; note both and the ratio."""
        shares: list[float] = []

        def throughput(processes: int) -> float:
            windows = undisturbed(lambda: together(make, processes, self.pick(0.2, 1.0)), self.pick(2, 8))
            shares.append(core_share(windows))
            return rate(windows)

        subjects = {"1 process": partial(throughput, 1), "2 processes": partial(throughput, 2)}
        found = self.measure(test, "ops/s", subjects)
        note = f"in the worst round a process had {min(shares):.0%} of its core" if min(shares) < _BUSY else ""
        self.ratio(target, found["2 processes"], found["1 process"], note)

    def figure(
        self,
        test: str,
        subject: str,
        unit: str,
        rounds: Sequence[float],
        percentiles: dict[str, float] | None = None,
        note: str = "",
    ) -> None:
        """Note a figure."""
        self.results.figures.append(
            Figure(self.suite, test, subject, unit, tuple(rounds), percentiles or {}, note)
        )  # fmt: skip

    def ratio(self, target: str, ours: Sequence[float], theirs: Sequence[float] | None, note: str = "") -> None:
        """Note a ratio, pair by pair; none where the other could not be measured."""
        if theirs is not None:
            self.results.ratios.append(Ratio(target, pairs(ours, theirs), note))

    def numbers(self, target: str, values: Sequence[float], note: str = "") -> None:
        """Note what a target that is no ratio came to, round by round."""
        self.results.ratios.append(Ratio(target, tuple(values), note))

    def curve(
        self,
        chart: str,
        subject: str,
        x_title: str,
        y_title: str,
        points: Sequence[tuple[float, float]],
        *,
        log_x: bool = True,
        log_y: bool = True,
        predicted: bool = False,
    ) -> None:
        """Note a curve."""
        self.results.curves.append(
            Curve(self.suite, chart, subject, x_title, y_title, tuple(points), log_x, log_y, predicted)
        )  # fmt: skip

    def not_measured(self, subject: str, reason: str, install: str = "") -> None:
        """Note what could not be measured, and why."""
        self.results.not_measured.append(NotMeasured(self.suite, subject, reason, install))

    def remark(self, text: str) -> None:
        """Note what a reader must know."""
        self.results.remarks.append(f"{self.suite}: {text}")
