"""The benchmark's own arithmetic: rounds, ratios, verdicts, histograms, the model, what is said of a missing peer."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from tools.bench import method
from tools.bench.bench import Bench
from tools.bench.model import throughput
from tools.bench.peers.stores import CannotMeasure, required
from tools.bench.results import Figure, Ratio, Results, middle_half
from tools.bench.suites import SUITES
from tools.bench.targets import TARGETS, Target, Verdict, short_of
from tools.bench.terminal import print_results
from tools.bench.workload import by_zipf, in_turn, node_definitions, output_value, outputs


def test_every_round_measures_every_subject_and_the_next_goes_the_other_way_round() -> None:
    order: list[str] = []

    def subject(name: str, value: float) -> float:
        order.append(name)
        return value

    found = method.interleave({"a": lambda: subject("a", 1.0), "b": lambda: subject("b", 2.0)}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert found == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert method.pairs(found["a"], found["b"]) == (0.5, 0.5, 0.5)


def test_an_operation_that_is_late_makes_the_next_ones_late_too() -> None:
    waited = [0.05, 0.0, 0.0, 0.0]
    spent = method.latencies(time.sleep, waited, per_second=1_000)
    # The second was due 1 ms after the first and had to wait for its 50 ms: what counts is when it was due.
    assert all(each >= 40_000_000 for each in spent)


def test_percentiles_are_those_of_the_histogram() -> None:
    found = method.percentiles(range(1_000, 101_000, 100))
    assert found["50.0"] == pytest.approx(51_000, rel=0.01)
    assert found["99.9"] == pytest.approx(100_900, rel=0.01)


def test_processes_that_measure_together_all_report() -> None:
    windows = method.together(lambda number: lambda: number + 1, 2, 0.02)
    assert len(windows) == 2
    assert all(window.operations > 0 and window.seconds > 0 for window in windows)
    assert method.rate(windows) > 0


def test_a_measuring_process_that_fails_is_an_error_and_not_a_wait() -> None:
    def fail(_: int) -> Callable[[], int]:
        os._exit(3)

    with pytest.raises(RuntimeError, match="ended before it had measured"):
        method.together(fail, 2, 0.02)


def test_a_target_is_met_missed_or_uncertain_by_the_middle_half_of_its_rounds() -> None:
    most = Target("x", "reads", "x", 2.0)
    least = most._replace(at_least=True)
    assert most.verdict(Ratio("x", (1.0, 1.1, 1.2))) is Verdict.MET
    assert least.verdict(Ratio("x", (1.0, 1.1, 1.2))) is Verdict.MISSED
    assert most.verdict(Ratio("x", (1.0, 1.5, 3.0))) is Verdict.UNCERTAIN
    assert most.verdict(None) is Verdict.NOT_MEASURED
    assert most._replace(limit=0).verdict(Ratio("x", (0.0,))) is Verdict.MET


def test_what_falls_short_is_named_and_what_is_only_shown_is_not() -> None:
    met = [Ratio(each.name, (each.limit,)) for each in TARGETS]
    assert short_of(met, SUITES) == []
    missed = [Ratio(each.name, (each.limit / 2 if each.at_least else each.limit * 2 + 1,)) for each in TARGETS]
    assert len(short_of(missed, SUITES)) == sum(each.judged for each in TARGETS)
    assert len(short_of([], ["reads"])) == sum(each.suite == "reads" for each in TARGETS)


def test_names_of_targets_are_their_own_and_their_suites_exist() -> None:
    assert len({each.name for each in TARGETS}) == len(TARGETS)
    assert {each.suite for each in TARGETS} <= set(SUITES)


def test_results_become_json_and_a_table() -> None:
    figure = Figure("reads", "a get", "shmcache", "ns", (70.0, 72.0, 90.0), {"50.0": 71.0})
    results = Results([figure], [Ratio("get-dict", (2.0, 2.5))])
    assert json.loads(json.dumps(results.as_json()))["figures"][0]["median"] == 72.0
    text = io.StringIO()
    print_results(results, ["reads"], Console(file=text, width=200))
    assert "72 ns" in text.getvalue()
    assert "met" in text.getvalue()


def test_the_middle_half_of_few_rounds_is_all_of_them() -> None:
    assert middle_half((3.0, 1.0, 2.0)) == (1.0, 3.0)
    assert middle_half((1.0, 2.0, 3.0, 4.0, 100.0)) == (2.0, 4.0)


def test_a_peer_that_is_missing_is_reported_with_the_command_that_installs_it() -> None:
    bench = Bench("reads", True, [Path("none")], lambda _: None)

    def missing() -> object:
        return required("a_module_that_nobody_has", "a-package")

    def broken() -> object:
        raise OSError("it is broken")

    with ExitStack() as stack:
        assert bench.opened(stack, {"peer": missing, "broken": broken, "good": object}).keys() == {"good"}
    first, second = bench.results.not_measured
    assert (first.subject, first.install) == ("peer", "pip install a-package")
    assert "it is broken" in second.reason
    with pytest.raises(CannotMeasure):
        missing()


def test_the_model_is_one_over_the_time_alone_and_is_bounded_by_the_lock() -> None:
    assert throughput(1, 1e-3, 1e-4) == pytest.approx(1_000)
    assert throughput(8, 1e-3, 0.0) == pytest.approx(8_000)
    rates = [throughput(cores, 1e-3, 1e-4) for cores in (1, 2, 8, 32, 96)]
    assert rates == sorted(rates)
    assert rates[-1] < 1 / 1e-4
    with pytest.raises(ValueError, match="at least as long"):
        throughput(2, 1e-4, 1e-3)


def test_records_have_the_shapes_that_are_claimed_and_are_the_same_every_time() -> None:
    from shmcache.codec import decode, encode

    definitions = node_definitions(20)
    assert definitions == node_definitions(20)
    sizes = [len(encode(each.record)) for each in definitions]
    assert all(600 <= size <= 800 for size in sizes)
    assert all(decode(encode(each.record)) == each.record for each in (*definitions, *outputs(20)))
    assert 300 <= len(json.dumps(output_value(1))) <= 400


def test_keys_are_asked_for_in_turn_or_by_popularity() -> None:
    items = node_definitions(50)
    assert in_turn(items, 100)[:51] == [*(each.key for each in items), items[0].key]
    drawn = by_zipf(items, 5_000)
    assert drawn.count(items[0].key) > 5 * drawn.count(items[25].key)
