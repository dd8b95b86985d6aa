"""What a suite hands back: figures with all their rounds, ratios pair by pair, curves, and what was not measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class Figure:
    """What one subject came to in one test: a value for each round.

    `percentiles` are of single operations, over all rounds, by name ("50.0"); `note` says what must be known to read
    it."""

    suite: str
    test: str
    subject: str
    unit: str
    rounds: tuple[float, ...]
    percentiles: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Between which the middle half of the rounds lies."""
        return middle_half(self.rounds)

    @property
    def spread(self) -> float:
        """The width of the middle half of the rounds, as a part of the median."""
        low, high = self.quartiles
        return (high - low) / self.median if self.median else 0.0


@dataclass(frozen=True)
class Ratio:
    """One subject beside another: the ratio of each round's pair, for a target of `tools.bench.targets`."""

    target: str
    pairs: tuple[float, ...]
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """How a figure grows: points (x, y) of one subject."""

    suite: str
    chart: str
    subject: str
    x_title: str
    y_title: str
    points: tuple[tuple[float, float], ...]
    log_x: bool = True
    log_y: bool = True
    predicted: bool = False


@dataclass(frozen=True)
class NotMeasured:
    """A subject, or a whole test, that could not be measured; `install` is the command that would change that."""

    suite: str
    subject: str
    reason: str
    install: str = ""


@dataclass
class Results:
    """All that a run found."""

    figures: list[Figure] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    not_measured: list[NotMeasured] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    def add(self, other: Results) -> None:
        """Take over what another has."""
        self.figures += other.figures
        self.ratios += other.ratios
        self.curves += other.curves
        self.not_measured += other.not_measured
        self.remarks += other.remarks

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values, medians and quartiles included."""
        figures = [
            {**asdict(each), "median": each.median, "quartiles": each.quartiles, "spread": each.spread}
            for each in self.figures
        ]
        return {**asdict(self), "figures": figures}


def middle_half(values: tuple[float, ...]) -> tuple[float, float]:
    """Return the quartiles of some values; of fewer than four, the least and the greatest."""
    if len(values) < 4:
        return min(values), max(values)
    first, _, third = quantiles(values, n=4, method="inclusive")
    return first, third
