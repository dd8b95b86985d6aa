"""ChargeManager: what a node execution costs, and charging it, once.

The cost is the block's price (`shmcache.blocks.charge_for`), plus a fee on every so many executions of a user. They
are two charges with two idempotency keys. A price per run is final at once. A price per second or byte is an estimate:
it is held, and when the execution ends it is settled to what it came to, or voided if it never ran. How credits are
taken is the client's: the cached client holds them in the arena in the commit that puts the charges on the charge ring,
the direct client moves the balance in PostgreSQL.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shmcache.blocks import charge_for, get_block
from shmcache.blocks.price import final_charge
from shmcache.config import Settings
from shmcache.database.accounts import check_amount, check_key
from shmcache.errors import BlockError, InvalidValue, NotFound, UnknownBlock
from shmcache.identifiers import new_id
from shmcache.nested_pins import put_together
from shmcache.records import NodeDefinition, NodeExecution
from shmcache.writes import BLOCK, Charge, ChargeKind, charge_key

logger = logging.getLogger(__name__)

FEE = "fee"
SPEND = "spend"

Priced = tuple[ChargeKind, Charge]
"""A charge and what it is: final (CHARGE) or an estimate (HOLD)."""


class ChargeManager:
    """Charges node executions through two functions of a client.

    `spend(charges, node_exec)` takes all the charges or raises InsufficientBalanceError, and returns the balance left;
    it does nothing for an execution that was charged before, or without one, for a key that was used before.
    `wait_settled()` returns when all is in the ledger, `now()` the time."""

    def __init__(
        self,
        *,
        spend: Callable[[Sequence[Priced], NodeExecution | None], int],
        wait_settled: Callable[[], None],
        get_node: Callable[[str], NodeDefinition],
        now: Callable[[], float],
        settings: Settings,
    ) -> None:
        self._spend = spend
        self._wait_settled = wait_settled
        self._get_node = get_node
        self._now = now
        self._settings = settings

    def _charge_usage(self, node_exec: NodeExecution, execution_count: int, async_mode: bool = True) -> tuple[int, int]:
        """Charge an execution, before it runs; return (cost, balance left after it).

        `execution_count` is what `increment_execution_count` gave: it decides about the fee. `async_mode=False` returns
        only when the charge is in the ledger. Raises InsufficientBalanceError, and then nothing is charged."""
        charges = self.charges_for(node_exec, execution_count)
        balance = self._spend(charges, node_exec)
        if not async_mode:
            self._wait_settled()
        return sum(charge.amount for _, charge in charges), balance

    def spend(self, user_id: str, amount: int, metadata_json: str, transaction_key: str | None) -> int:
        """Charge a user for anything else; return the balance left. Without a key, a new one is made.

        Raises InsufficientBalanceError, InvalidValue for an amount that is negative, too large or no whole number, for
        a key that the ledger cannot hold, and for metadata with a NUL."""
        check_amount(amount, "a charge")
        if "\\u0000" in metadata_json:
            raise InvalidValue(
                "the metadata of a charge hold the character NUL, which PostgreSQL does not store: leave it out"
            )
        owner = 0 if transaction_key is None else os.getpid()
        key = new_id() if transaction_key is None else check_key(transaction_key)
        charge = Charge(key, user_id, amount, SPEND, None, None, self._now(), metadata_json, 0, owner)
        return self._spend([(ChargeKind.CHARGE, charge)], None)

    def charges_for(self, node_exec: NodeExecution, execution_count: int) -> list[Priced]:
        """Return the charges for an execution: the block's price, which may be 0, and the fee where it is due."""
        block = get_block(node_exec.block_id)
        inputs = self._inputs(node_exec) if block.costs or block.cost.per != "run" else {}
        if block.cost_of(inputs).per == "run":
            price = self._charge(node_exec, BLOCK, charge_for(block, inputs), execution_count)
            charges = [(ChargeKind.CHARGE, price)]
        else:
            estimate = charge_for(block, inputs)
            held = self._charge(node_exec, BLOCK, estimate, execution_count)._replace(owner_pid=os.getpid())
            charges = [(ChargeKind.HOLD, held)]
        if self._settings.execution_fee and execution_count % self._settings.execution_fee_every == 0:
            fee = self._charge(node_exec, FEE, self._settings.execution_fee, execution_count)
            charges.append((ChargeKind.CHARGE, fee))
        return charges

    def settlement(self, node_exec: NodeExecution, held: int, *, most: int | None = None) -> Priced:
        """Return what an estimate comes to, for an execution that has ended: SETTLE, or VOID if it never ran.

        Where that cannot be found out (a block that is not installed here, a node that is gone), it is the estimate.
        `most` bounds it."""
        if node_exec.started_at is None:
            return ChargeKind.VOID, self._charge(node_exec, BLOCK, 0, 0)
        try:
            block = get_block(node_exec.block_id)
            inputs = self._inputs(node_exec)
            amount = held if block.cost_of(inputs).per == "run" else final_charge(block, inputs, node_exec)
        except (UnknownBlock, BlockError, NotFound):
            amount = held
        return ChargeKind.SETTLE, self._charge(node_exec, BLOCK, amount if most is None else min(most, amount), 0)

    def _inputs(self, node_exec: NodeExecution) -> Mapping[str, Any]:
        node = self._get_node(node_exec.node_id)
        return put_together({**node.input_default, **node_exec.inputs, **node.constants})

    def _charge(self, node_exec: NodeExecution, reason: str, amount: int, execution_count: int) -> Charge:
        return Charge(
            charge_key(node_exec.id, reason),
            node_exec.user_id,
            amount,
            reason,
            node_exec.id,
            node_exec.graph_exec_id,
            self._now(),
            "{}",
            execution_count,
        )
