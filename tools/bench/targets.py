"""The figures that shmcache holds itself to: `shmcache bench --check` compares with these.

Ratios only, as they say the same on every machine; counts where exactly one count is right."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from statistics import median
from typing import NamedTuple

from tools.bench.results import Ratio, middle_half


class Verdict(StrEnum):
    """What a ratio says of its target."""

    MET = "met"
    UNCERTAIN = "uncertain"
    MISSED = "missed"
    NOT_MEASURED = "not measured"


class Target(NamedTuple):
    """A figure to reach: `limit` is the most (the least, with `at_least`) that the ratio may be."""

    name: str
    suite: str
    text: str
    limit: float
    at_least: bool = False
    judged: bool = True
    unit: str = "x"

    def verdict(self, ratio: Ratio | None) -> Verdict:
        """Judge the median; where the limit lies within the middle half of the rounds, nothing is certain."""
        if ratio is None or not ratio.pairs:
            return Verdict.NOT_MEASURED
        low, high = middle_half(ratio.pairs)
        if low != high and low < self.limit < high:
            return Verdict.UNCERTAIN
        value = median(ratio.pairs)
        reached = value >= self.limit if self.at_least else value <= self.limit
        return Verdict.MET if reached else Verdict.MISSED


TARGETS = (
    Target("get-dict", "reads", "warm get of a node definition, beside dict.get", 5),
    Target("get-ultradict", "reads", "warm get, beside UltraDict get", 0.5),
    Target("get-ultradict2", "reads", "warm get, beside UltraDict2 get (a full copy in every process)", 1),
    Target("get-lmdb", "reads", "warm get, beside LMDB get and unpack", 1 / 15),
    Target("get-redis", "reads", "warm get, beside Redis GET over a unix socket and unpack", 1 / 400),
    Target("first-get-lmdb", "reads", "first get in another process, decoded, beside LMDB get and unpack", 1.2),
    Target("put-lmdb", "writes", "put of a 700-byte record, beside LMDB put with its transaction", 0.7),
    Target("two-readers", "reads", "two processes reading warm, beside one: throughput", 1.9, at_least=True),
    Target("two-writers", "writes", "two processes writing different keys, beside one: throughput", 1.6, at_least=True),
    Target("get-million", "reads", "warm get at 1,000,000 records, beside at 1,000", 1.5),
    Target("get-million-encoded", "reads", "get of what is not decoded yet, likewise", 1.5),
)


def short_of(ratios: Sequence[Ratio], suites: Sequence[str]) -> list[str]:
    """Return a line for each target of these suites that is judged and not met."""
    found = {ratio.target: ratio for ratio in ratios}
    lines = []
    for target in TARGETS:
        ratio = found.get(target.name)
        verdict = target.verdict(ratio)
        if target.suite in suites and target.judged and verdict is not Verdict.MET:
            value = f"{median(ratio.pairs):.4g}" if ratio is not None and ratio.pairs else "nothing"
            word = "at least" if target.at_least else "at most"
            lines.append(f"{target.text}: {value}, {word} {target.limit:.4g} ({verdict})")
    return lines
