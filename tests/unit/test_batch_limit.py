"""How large a batch may be, from how long the last ones took."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from syncer.batch_limit import BatchLimit


def test_slow_commits_make_batches_smaller_until_they_are_as_long_as_wanted() -> None:
    limit = BatchLimit(10_000, 1 << 20, 0.5)
    seconds_a_row = 0.0005  # 1,000 rows are as many as half a second takes
    for _ in range(20):
        limit.committed(limit.entries, limit.entries * seconds_a_row)
    assert 500 <= limit.entries <= 1_000


def test_quick_commits_let_them_grow_to_the_most_again() -> None:
    limit = BatchLimit(10_000, 1 << 20, 0.5)
    for _ in range(14):
        limit.failed(limit.entries)
    assert limit.entries == 1
    for _ in range(14):
        limit.committed(limit.entries, 0.01)
    assert (limit.entries, limit.bytes) == (10_000, 1 << 20)


def test_the_first_batch_is_a_small_one_and_the_next_are_soon_large() -> None:
    limit = BatchLimit(10_000, 1 << 20, 0.5)
    assert limit.entries == 1_000
    for _ in range(4):
        limit.committed(limit.entries, 0.1)
    assert limit.entries == 10_000


def test_a_slow_commit_of_few_rows_says_little_of_the_size() -> None:
    limit = BatchLimit(10_000, 1 << 20, 0.5)
    for _ in range(100):
        limit.committed(3, 60.0)
    assert limit.entries >= 256


def test_a_failed_batch_is_halved_whatever_the_limit_was() -> None:
    limit = BatchLimit(10_000, 1 << 20, 0.5)
    limit.failed(100)
    assert limit.entries == 50


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=200))
def test_a_batch_may_always_have_something_and_never_more_than_the_most(steps: list[tuple[bool, float]]) -> None:
    limit = BatchLimit(1_000, 1 << 16, 0.5)
    for committed, seconds in steps:
        if committed:
            limit.committed(limit.entries, seconds)
        else:
            limit.failed(limit.entries)
        assert 1 <= limit.entries <= 1_000
        assert 1 <= limit.bytes <= 1 << 16
