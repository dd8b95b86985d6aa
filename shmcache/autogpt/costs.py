"""What a run costs by the platform's rules, without charging it: by its block, and for every so many executions.

`ExecutionDataClient.charge_usage` charges by the same prices: a block's `costs` with their filters, then its `cost`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from shmcache.blocks import Block
from shmcache.config import Settings, load_settings
from shmcache.nested_pins import put_together

_settings = cache(load_settings)


def block_usage_cost(
    block: Block, input_data: Mapping[str, Any], data_size: float = 0, run_time: float = 0
) -> tuple[int, Mapping[str, Any]]:
    """Return the credits of a run, and the filter on its inputs by which they were chosen.

    Per run: the amount. Per second: the amount times `run_time` (seconds); per byte: times `data_size` (bytes); what is
    no whole credit is left out."""
    cost = block.cost_of(put_together(input_data))
    times = {"run": 1, "second": run_time, "byte": data_size}[cost.per]
    return int(cost.amount * times), cost.filter or {}


def execution_usage_cost(execution_count: int, chosen: Settings | None = None) -> tuple[int, int]:
    """Return the fee for a user's `execution_count`-th execution, 0 for most of them, and that count.

    SHMCACHE_EXECUTION_FEE on every SHMCACHE_EXECUTION_FEE_EVERY-th, unless other settings are given."""
    wanted = chosen or _settings()
    is_due = execution_count > 0 and execution_count % wanted.execution_fee_every == 0
    return (wanted.execution_fee if is_due else 0), execution_count
