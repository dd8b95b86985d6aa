"""Prices that depend on a run's inputs, and the platform's rules for what a run costs."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from shmcache.autogpt import block_usage_cost, execution_usage_cost
from shmcache.blocks import Block, charge_for
from shmcache.blocks.block import Cost, Inputs, Outputs
from shmcache.config import load_settings


class Model(Block):
    """A block whose price depends on the model it is told to ask."""

    id = "tests.model"
    inputs: ClassVar[tuple[str, ...]] = ("*",)
    cost = Cost(2, "run")
    costs = (
        Cost(50, "run", {"model": "large", "credentials": {"own": False}}),
        Cost(3, "second", {"model": "stream"}),
        Cost(1, "byte", {"model": "embed"}),
        Cost(0, "run", {"model": "large"}),
    )

    def run(self, inputs: Inputs) -> Outputs:
        """Do nothing."""
        return ()

    def seconds(self, inputs: Inputs) -> float:
        """Return what it is expected to take."""
        return 2.5


@pytest.mark.parametrize(
    ("inputs", "amount"),
    [
        ({"model": "large"}, 0),
        ({"model": "large", "credentials": {}}, 50),
        ({"model": "large", "credentials": {"own": True}}, 0),
        ({"model": "large", "credentials_#_own": ""}, 50),
        ({"model": "small"}, 2),
        ({}, 2),
    ],
)
def test_the_first_price_whose_filter_the_inputs_meet_is_taken_then_the_block_s_own(
    inputs: dict[str, Any], amount: int
) -> None:
    assert block_usage_cost(Model(), inputs)[0] == amount


def test_prices_per_second_and_byte_are_by_what_was_taken_in_whole_credits() -> None:
    assert block_usage_cost(Model(), {"model": "stream"}, run_time=1.9) == (5, {"model": "stream"})
    assert block_usage_cost(Model(), {"model": "embed"}, data_size=7) == (7, {"model": "embed"})
    assert block_usage_cost(Model(), {"model": "embed"}) == (0, {"model": "embed"})
    assert charge_for(Model(), {"model": "stream"}) == 8, "held: 3 credits for each of 2.5 seconds, rounded up"
    assert charge_for(Model(), {"model": "large", "credentials": None}) == 0


def test_every_hundredth_execution_has_a_fee_and_no_other() -> None:
    fees = [execution_usage_cost(count, load_settings())[0] for count in range(301)]
    assert [count for count, fee in enumerate(fees) if fee] == [100, 200, 300]
    assert execution_usage_cost(100, load_settings(execution_fee=9)) == (9, 100)
