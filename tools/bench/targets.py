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
    Target("enqueue-fifo", "sync", "enqueue of an output from a worker, beside faster-fifo put, msgpack", 2),
    Target("ring-fifo", "sync", "ring put alone, beside faster-fifo put", 0.6),
    Target("enqueue-redis", "sync", "enqueue of an output from a worker, beside Redis XADD", 1 / 20),
    Target(
        "drain-copy", "sync", "sustained drain, rows a second, beside bare COPY of the same values", 0.7, at_least=True
    ),
    Target(
        "takeover",
        "sync",
        "leader killed: until the next one's first commit, beyond one commit",
        150,
        unit="ms",
        judged=False,
    ),
    Target("enqueue-down", "sync", "p99 of enqueue while the database is down, beside up", 2),
    Target("exactly-once", "sync", "outputs lost or doubled over kills of leaders", 0, unit="rows"),
    Target("hold-insert", "charges", "hold of a charge by a worker, beside one INSERT and its commit", 1 / 50),
    Target(
        "settle-many",
        "charges",
        "charges settled a second, many users, beside a transaction a charge",
        20,
        at_least=True,
    ),
    Target(
        "settle-one", "charges", "charges settled a second, one user, beside a transaction a charge", 10, at_least=True
    ),
    Target("exactly-n", "charges", "holds granted too many or too few by 8 processes", 0, unit="holds"),
    Target("ledger-kills", "charges", "accounts that do not add up after kills under load", 0, unit="accounts"),
    Target("graph-blocking", "graphs", "blocking database operations a node, warm, beside direct", 1 / 100),
    Target("graph-direct", "graphs", "node executions a second, one worker, beside direct", 15, at_least=True),
    Target(
        "graph-first-design",
        "graphs",
        "node executions a second, one worker, beside the first design",
        4,
        at_least=True,
    ),
    Target("graph-two", "graphs", "two workers beside one", 1.7, at_least=True),
    Target("node-p50", "graphs", "time a node spends in shmcache, p50, beside direct's median", 0.006),
    Target("node-p99", "graphs", "time a node spends in shmcache, p99, beside direct's median", 0.03),
    Target("loop-node", "loops", "hit of a node definition on an event loop, beside the same call without", 4.5),
    Target("loop-execution", "loops", "hit of a node execution, likewise", 2),
    Target("loop-write", "loops", "a write, likewise", 1.3),
    Target("loop-thread", "loops", "hit on an event loop, beside a hop to a thread and back", 1 / 15),
    Target("memory", "graphs", "memory of 4 workers with 100,000 definitions, beside dicts", 0.35),
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
