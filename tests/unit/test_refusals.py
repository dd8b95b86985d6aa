"""How the rows that a database refuses are found among those that it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import errors

from syncer.refusals import is_refusal, write_around_refusals


class Table:
    """Takes runs of numbers, all or nothing; refuses those that hold a bad one."""

    def __init__(self, bad: set[int]) -> None:
        self._bad = bad
        self.rows: list[int] = []
        self.letters: list[int] = []
        self.calls = 0
        self.offered = 0

    def write(self, items: Sequence[int]) -> None:
        self.calls += 1
        self.offered += len(items)
        if self._bad.intersection(items):
            raise errors.UntranslatableCharacter
        self.rows.extend(items)

    def refuse(self, item: int, error: Exception) -> None:
        assert isinstance(error, errors.UntranslatableCharacter)
        self.letters.append(item)


@given(st.integers(0, 300), st.sets(st.integers(0, 299)))
def test_every_good_row_is_written_once_in_order_and_every_bad_one_put_aside_once(size: int, bad: set[int]) -> None:
    table = Table(bad)
    write_around_refusals(range(size), table.write, table.refuse)
    assert table.rows == [number for number in range(size) if number not in bad]
    assert table.letters == sorted(number for number in bad if number < size)


@pytest.mark.parametrize("place", [0, 1, 2_499, 5_000, 7_777, 9_998, 9_999])
def test_one_bad_row_in_ten_thousand_costs_at_most_sixteen_more_calls(place: int) -> None:
    table = Table({place})
    write_around_refusals(range(10_000), table.write, table.refuse)
    assert table.letters == [place]
    assert table.calls - 1 <= math.ceil(math.log2(10_000)) + 2


@pytest.mark.parametrize("bad", [range(10_000), range(0, 10_000, 10), range(4_000, 6_000)])
def test_many_bad_rows_do_not_make_the_work_grow_with_the_square(bad: range) -> None:
    table = Table(set(bad))
    write_around_refusals(range(10_000), table.write, table.refuse)
    assert table.letters == list(bad)
    assert table.offered <= 10_000 * (math.log2(10_000) + 4)


def test_an_error_that_passes_stops_the_search_and_nothing_is_put_aside() -> None:
    def write(items: Sequence[int]) -> None:
        if len(items) == 10:
            raise errors.NotNullViolation
        raise errors.AdminShutdown

    with pytest.raises(errors.AdminShutdown):
        write_around_refusals(range(10), write, lambda _item, _error: pytest.fail("nothing was refused"))


@pytest.mark.parametrize(
    "error",
    [
        errors.UntranslatableCharacter(),
        errors.InvalidTextRepresentation(),
        errors.ForeignKeyViolation(),
        errors.CheckViolation(),
        errors.ProgramLimitExceeded(),
        errors.DatatypeMismatch(),
        errors.RaiseException(),
        errors.InternalError_(),
        psycopg.DataError("a NUL in a text"),
        TypeError("not a text"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_row_is_to_blame_for_is_a_refusal(error: Exception) -> None:
    assert is_refusal(error)


@pytest.mark.parametrize(
    "error",
    [
        errors.AdminShutdown(),
        errors.DeadlockDetected(),
        errors.SerializationFailure(),
        errors.TooManyConnections(),
        errors.DiskFull(),
        errors.OutOfMemory(),
        errors.QueryCanceled(),
        errors.IdleInTransactionSessionTimeout(),
        errors.ReadOnlySqlTransaction(),
        errors.LockNotAvailable(),
        errors.UndefinedTable(),
        errors.InsufficientPrivilege(),
        psycopg.OperationalError("the connection is lost"),
        psycopg.InterfaceError("the connection is closed"),
        OSError("not about a row"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_passes_or_a_person_must_mend_is_no_refusal(error: Exception) -> None:
    assert not is_refusal(error)
