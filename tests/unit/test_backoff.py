"""The waits between tries."""

from __future__ import annotations

from syncer.backoff import Backoff


def test_waits_stay_under_a_limit_that_doubles_until_the_most() -> None:
    backoff = Backoff(first_seconds=1.0, most_seconds=10.0)
    for limit in (1, 2, 4, 8, 10, 10, 10):
        assert 0 <= backoff.next_seconds() <= limit
    assert backoff.tries == 7


def test_waits_are_spread_over_their_whole_range() -> None:
    waits = [Backoff(first_seconds=1.0).next_seconds() for _ in range(400)]
    assert min(waits) < 0.1
    assert max(waits) > 0.9


def test_a_success_begins_anew() -> None:
    backoff = Backoff(first_seconds=1.0, most_seconds=1000.0)
    for _ in range(10):
        backoff.next_seconds()
    backoff.reset()
    assert backoff.tries == 0
    assert backoff.next_seconds() <= 1.0


def test_a_thousand_tries_do_not_overflow() -> None:
    backoff = Backoff(first_seconds=0.05, most_seconds=5.0)
    assert all(backoff.next_seconds() <= 5.0 for _ in range(5_000))
