"""Finding the rows that a database refuses."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import errors

from syncer.refusals import is_refusal, write_around_refusals


class Sink:
    """Takes runs of numbers, refuses every run with a bad one in it."""

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad
        self.written: list[int] = []
        self.refused: list[int] = []
        self.calls = 0

    def write(self, items: Sequence[int]) -> None:
        self.calls += 1
        if self.bad & set(items):
            raise errors.CheckViolation
        self.written.extend(items)

    def refuse(self, item: int, error: psycopg.Error) -> None:
        assert isinstance(error, errors.CheckViolation)
        self.refused.append(item)


@given(st.integers(0, 200).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, max(0, n - 1))))))
def test_all_good_rows_are_written_in_order_and_all_bad_ones_refused(case: tuple[int, set[int]]) -> None:
    count, bad = case
    sink = Sink(bad)
    write_around_refusals(list(range(count)), sink.write, sink.refuse)
    assert sink.written == [number for number in range(count) if number not in bad]
    assert sink.refused == [number for number in range(count) if number in bad]


@pytest.mark.parametrize("place", [0, 1, 4_999, 5_000, 9_999])
def test_one_bad_row_among_ten_thousand_costs_at_most_twenty_calls(place: int) -> None:
    sink = Sink({place})
    write_around_refusals(list(range(10_000)), sink.write, sink.refuse)
    assert sink.refused == [place]
    assert sink.calls <= 20


def test_an_error_that_passes_is_raised() -> None:
    def write(_: Sequence[int]) -> None:
        raise errors.AdminShutdown

    with pytest.raises(errors.AdminShutdown):
        write_around_refusals([1, 2], write, lambda *_: None)


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (errors.UntranslatableCharacter(), True),
        (errors.ForeignKeyViolation(), True),
        (errors.CheckViolation(), True),
        (errors.ProgramLimitExceeded(), True),
        (errors.AdminShutdown(), False),
        (errors.DeadlockDetected(), False),
        (errors.SerializationFailure(), False),
        (errors.DiskFull(), False),
        (errors.QueryCanceled(), False),
        (errors.TooManyConnections(), False),
        (psycopg.OperationalError("connection lost"), False),
        (psycopg.DataError("no such number"), True),
    ],
)
def test_refusals_are_told_from_what_passes(error: psycopg.Error, refused: bool) -> None:
    assert is_refusal(error) is refused
