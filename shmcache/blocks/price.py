"""What a run of a block costs, in credits: before it, by what is expected, and after it, by what it came to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import msgpack

from shmcache.blocks.block import Block
from shmcache.errors import BlockError
from shmcache.records import NodeExecution

MAXIMUM_CHARGE = 2**62
"""The most that one run may cost: above it, sums of charges would leave 64 bits."""


def charge_for(block: Block, inputs: Mapping[str, Any]) -> int:
    """Return the credits that a run of `block` with `inputs` is expected to cost; the same block and inputs, the same.

    Per run: the amount, which is final. Per second: the amount times `block.seconds(inputs)`, rounded up. Per byte: the
    amount times the size of the inputs in msgpack. Raises BlockError for a charge that is negative or above 2**62, for
    inputs that the block refuses when it is asked for its seconds, and for inputs that are not JSON values."""
    amount, per, _ = block.cost_of(inputs)
    if per == "run":
        return _checked(block, amount)
    if per == "second":
        return _per_second(block, amount, block.seconds(inputs))
    if per == "byte":
        return _checked(block, amount * _packed_size(block, inputs))
    raise BlockError(f"{block.id}: cannot be charged: a cost is per run, second or byte, not per {per!r}")


def final_charge(block: Block, inputs: Mapping[str, Any], execution: NodeExecution) -> int:
    """Return the credits that a run came to, which has ended with these inputs. Raises BlockError.

    Per second: by the time from its start to its end, to the nearest tenth of a second, or by `stats["seconds"]` where
    who ran it has measured that. Per byte: by the inputs and, where there are any, the outputs. Rounded as in
    `charge_for`."""
    amount, per, _ = block.cost_of(inputs)
    if per == "second":
        measured = execution.stats.get("seconds")
        if isinstance(measured, bool) or not isinstance(measured, (int, float)):
            measured = max(0.0, (execution.ended_at or 0.0) - (execution.started_at or 0.0))
        return _per_second(block, amount, round(measured, 1))
    if per == "byte" and execution.outputs:
        return _checked(block, charge_for(block, inputs) + amount * _packed_size(block, execution.outputs))
    return charge_for(block, inputs)


def _per_second(block: Block, amount: int, seconds: float) -> int:
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        raise BlockError(f"{block.id}: cannot be charged: it expects to take {seconds} seconds")
    # By the digits that people see: 100 credits for 1.1 seconds is 110, where the float product is above it.
    return _checked(block, math.ceil(amount * Fraction(repr(float(seconds)))))


def _checked(block: Block, charge: int) -> int:
    if not 0 <= charge <= MAXIMUM_CHARGE:
        raise BlockError(f"{block.id}: cannot be charged: the charge {charge} is not between 0 and 2**62")
    return charge


def _packed_size(block: Block, inputs: Mapping[str, Any]) -> int:
    try:
        return len(msgpack.packb(dict(inputs)))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BlockError(f"{block.id}: cannot be charged: its inputs are not JSON values ({error})") from None
