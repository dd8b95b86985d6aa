"""How long is waited before trying again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from syncer.backoff import Backoff


@given(st.floats(0.001, 1), st.floats(1, 60), st.integers(0, 200))
def test_a_wait_is_never_longer_than_its_limit_and_the_limit_never_longer_than_the_most(
    first: float, most: float, tries: int
) -> None:
    backoff = Backoff(first, most)
    for _ in range(tries):
        limit = backoff.limit_seconds
        assert limit <= most
        assert 0 <= backoff.next_seconds() <= limit
    assert backoff.tries == tries


def test_limits_double_until_the_most_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(0.1, 1.0)
    limits = []
    for _ in range(6):
        limits.append(round(backoff.limit_seconds, 3))
        backoff.next_seconds()
    assert limits == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.reset()
    assert (backoff.tries, backoff.limit_seconds) == (0, 0.1)


def test_waits_are_spread_so_that_many_do_not_come_back_at_once() -> None:
    assert len({Backoff(1, 1).next_seconds() for _ in range(50)}) > 40
