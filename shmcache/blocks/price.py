"""What a run of a block costs, in credits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import msgpack

from shmcache.blocks.block import Block
from shmcache.errors import BlockError

MAXIMUM_CHARGE = 2**62
"""The most that one run may cost: above it, sums of charges would leave 64 bits."""


def charge_for(block: Block, inputs: Mapping[str, Any]) -> int:
    """Return the credits that a run of `block` with `inputs` costs; the same block and inputs, the same charge.

    Per run: the amount. Per second: the amount times `block.seconds(inputs)`, rounded up. Per byte: the amount times
    the size of the inputs in msgpack. Raises BlockError for a charge that is negative or above 2**62, for inputs that
    the block refuses when it is asked for its seconds, and for inputs that are not JSON values."""
    amount, per = block.cost
    if per == "run":
        charge = amount
    elif per == "second":
        seconds = block.seconds(inputs)
        if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
            raise BlockError(f"{block.id}: cannot be charged: it expects to take {seconds} seconds")
        # By the digits that people see: 100 credits for 1.1 seconds is 110, where the float product is above it.
        charge = math.ceil(amount * Fraction(repr(float(seconds))))
    elif per == "byte":
        charge = amount * _packed_size(block, inputs)
    else:
        raise BlockError(f"{block.id}: cannot be charged: a cost is per run, second or byte, not per {per!r}")
    if not 0 <= charge <= MAXIMUM_CHARGE:
        raise BlockError(f"{block.id}: cannot be charged: the charge {charge} is not between 0 and 2**62")
    return charge


def _packed_size(block: Block, inputs: Mapping[str, Any]) -> int:
    try:
        return len(msgpack.packb(dict(inputs)))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BlockError(f"{block.id}: cannot be charged: its inputs are not JSON values ({error})") from None
