"""Pins that name a place inside a value: taken apart and put together."""

from __future__ import annotations

from typing import Any

import pytest

from shmcache.nested_pins import is_nested, put_together, split_pin, take


@pytest.mark.parametrize(
    ("name", "base", "steps"),
    [
        ("row", "row", []),
        ("row_$_0", "row", [("$", "0")]),
        ("row_#_a key", "row", [("#", "a key")]),
        ("row_@_field", "row", [("@", "field")]),
        ("row_#_orders_$_12_@_id", "row", [("#", "orders"), ("$", "12"), ("@", "id")]),
        ("row_$_x", "row_$_x", []),
        ("row_$_-1", "row_$_-1", []),
        ("row_$_99999999", "row_$_99999999", []),
        ("_$_0", "_$_0", []),
        ("row$0", "row$0", []),
    ],
)
def test_a_name_is_split_at_its_delimiters_or_is_no_place(name: str, base: str, steps: list[tuple[str, str]]) -> None:
    assert split_pin(name) == (base, steps)
    assert is_nested(name) == bool(steps)


@pytest.mark.parametrize(
    ("value", "name", "found"),
    [
        ({"a": [1, None]}, "x_#_a_$_1", [None]),
        ({"a": [1]}, "x_#_a_$_1", []),
        ({"a": 1}, "x_@_b", []),
        ([0, False], "x_$_1", [False]),
        ("text", "x_$_0", []),
        (None, "x_#_a", []),
    ],
)
def test_what_lies_at_a_place_is_found_falsy_or_not_and_where_there_is_none_nothing(
    value: Any, name: str, found: list[Any]
) -> None:
    assert list(take(value, split_pin(name)[1])) == found


def test_values_for_places_are_put_into_the_value_and_what_was_given_stays_as_it_was() -> None:
    given = {"row": {"kept": 1}, "row_#_a": None, "row_#_b_$_1": 2, "items_$_2": 0, "items_$_0": "", "plain": 7}
    before = repr(given)
    assert put_together(given) == {
        "row": {"kept": 1, "a": None, "b": [None, 2]}, "items": ["", None, 0], "plain": 7
    }  # fmt: skip
    assert repr(given) == before
    assert put_together({"n": 5, "n_#_a": 1}) == {"n": {"a": 1}}, "a number has no places"


def test_pins_that_cannot_both_have_their_place_come_to_the_same_whichever_came_first() -> None:
    together = [put_together(dict(pins)) for pins in ([("z_#_k", 1), ("z_$_1", 2)], [("z_$_1", 2), ("z_#_k", 1)])]
    assert together == [{"z": [None, 2]}, {"z": [None, 2]}]
