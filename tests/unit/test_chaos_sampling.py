"""Whether a long chaos run grows: judged by its first and its last minutes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tools.chaos.sampling import Samples


def samples_of(minutes: int, figure: Callable[[float], float]) -> Samples:
    """Return samples, 30 a minute, of a run whose memory is `figure(seconds)`; its connections are always 5."""
    made = Samples()
    for second in range(0, minutes * 60, 2):
        made.add(float(second), {"MiB": figure(second), "connections": 5.0})
    return made


def test_what_goes_up_and_down_does_not_grow() -> None:
    growth = samples_of(30, lambda second: 50.0 + second % 17).growth()
    assert [each.what for each in growth] == ["MiB", "connections"]
    assert not any(each.is_too_much for each in growth)


def test_what_fills_itself_in_the_first_minutes_and_then_stays_does_not_grow() -> None:
    assert not any(each.is_too_much for each in samples_of(30, lambda second: min(100.0, 60.0 + second)).growth())


@pytest.mark.parametrize("mib_a_minute", [1.0, 5.0])
def test_a_leak_is_found(mib_a_minute: float) -> None:
    growth = samples_of(30, lambda second: 50.0 + mib_a_minute * second / 60).growth()
    assert [each.what for each in growth if each.is_too_much] == ["MiB"]
    assert "MiB: " in str(growth[0])


def test_a_short_run_says_nothing_of_growth() -> None:
    assert samples_of(9, float).growth() == []
    assert Samples().growth() == []


def test_a_few_moments_say_nothing_of_growth() -> None:
    made = Samples()
    for second in (*range(0, 300, 60), *range(1500, 1800, 60)):
        made.add(float(second), {"MiB": float(second)})
    assert made.growth() == []
