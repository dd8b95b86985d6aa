"""ChargeManager: what a node execution costs, and charging it, once.

The cost is the block's price (`shmcache.blocks.charge_for`), plus a fee on every so many executions of a user. They
are two charges with two idempotency keys. How credits are taken is the client's: the cached client holds them in the
arena in the commit that puts the charges on the charge ring, the direct client moves the balance in PostgreSQL.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shmcache.blocks import charge_for, get_block
from shmcache.config import Settings
from shmcache.errors import InvalidValue
from shmcache.identifiers import new_id
from shmcache.records import NodeDefinition, NodeExecution
from shmcache.writes import Charge

logger = logging.getLogger(__name__)

BLOCK = "block"
FEE = "fee"
SPEND = "spend"


class ChargeManager:
    """Charges node executions through two functions of a client.

    `spend(charges, node_exec)` takes all the charges or raises InsufficientBalanceError, and returns the balance left;
    it does nothing for an execution that was charged before. `wait_settled()` returns when all is in the ledger."""

    def __init__(
        self,
        *,
        spend: Callable[[Sequence[Charge], NodeExecution | None], int],
        wait_settled: Callable[[], None],
        get_node: Callable[[str], NodeDefinition],
        settings: Settings,
    ) -> None:
        self._spend = spend
        self._wait_settled = wait_settled
        self._get_node = get_node
        self._settings = settings

    def _charge_usage(self, node_exec: NodeExecution, execution_count: int, async_mode: bool = True) -> tuple[int, int]:
        """Charge an execution, before it runs; return (cost, balance left after it).

        `execution_count` is what `increment_execution_count` gave: it decides about the fee. `async_mode=False` returns
        only when the charge is in the ledger. Raises InsufficientBalanceError, and then nothing is charged."""
        charges = self.charges_for(node_exec, execution_count)
        balance = self._take(charges, node_exec)
        if not async_mode:
            self._wait_settled()
        return sum(charge.amount for charge in charges), balance

    def spend(self, user_id: str, amount: int, metadata_json: str, transaction_key: str | None) -> int:
        """Charge a user for anything else; return the balance left. Without a key, a new one is made.

        Raises InsufficientBalanceError, InvalidValue for an amount that is negative or too large."""
        key = transaction_key or new_id()
        return self._take([Charge(key, user_id, amount, SPEND, None, None, time.time(), metadata_json)], None)

    def _take(self, charges: Sequence[Charge], node_exec: NodeExecution | None) -> int:
        if any(charge.amount < 0 or charge.amount >= 2**62 for charge in charges):
            raise InvalidValue("a charge cannot be negative, nor 2**62 or more")
        return self._spend(charges, node_exec)

    def charges_for(self, node_exec: NodeExecution, execution_count: int) -> list[Charge]:
        """Return the charges for an execution: the block's price, which may be 0, and the fee where it is due."""
        block = get_block(node_exec.block_id)
        inputs: Mapping[str, Any] = {}
        if block.cost.per != "run":
            node = self._get_node(node_exec.node_id)
            inputs = {**node.input_default, **node_exec.inputs, **node.constants}
        charges = [self._charge(node_exec, BLOCK, charge_for(block, inputs), execution_count)]
        if self._settings.execution_fee and execution_count % self._settings.execution_fee_every == 0:
            charges.append(self._charge(node_exec, FEE, self._settings.execution_fee, execution_count))
        return charges

    def _charge(self, node_exec: NodeExecution, reason: str, amount: int, execution_count: int) -> Charge:
        return Charge(
            transaction_key=f"{node_exec.id}:{reason}",
            user_id=node_exec.user_id,
            amount=amount,
            reason=reason,
            node_exec_id=node_exec.id,
            graph_exec_id=node_exec.graph_exec_id,
            time=time.time(),
            metadata_json="{}",
            execution_count=execution_count,
        )
