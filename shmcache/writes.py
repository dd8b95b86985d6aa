"""What travels on the rings: one entry for each row that is to be written, in the order the writes were made.

An entry's payload is the msgpack array of its named tuple. Values that the database keeps as jsonb travel as JSON text:
the worker that writes them proves at once that they are JSON, and the syncer passes them on without decoding.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypeAlias


class WriteKind(IntEnum):
    """The kinds of entries on the write ring."""

    GRAPH_EXECUTION = 1
    NODE_EXECUTION = 2
    INPUT = 3
    OUTPUT = 4


class GraphExecutionWrite(NamedTuple):
    """The whole row of a graph execution as it is now. `inputs_json` and `stats_json` are JSON texts."""

    id: str
    graph_id: str
    user_id: str
    status: str
    inputs_json: str
    created_at: float
    started_at: float | None
    ended_at: float | None
    stats_json: str
    moves: int = 0
    graph_version: int = 1
    preset_id: str | None = None


class NodeExecutionWrite(NamedTuple):
    """The whole row of a node execution as it is now, without its inputs and outputs."""

    id: str
    graph_exec_id: str
    node_id: str
    status: str
    created_at: float
    queued_at: float | None
    started_at: float | None
    ended_at: float | None
    stats_json: str
    moves: int = 0


class InputWrite(NamedTuple):
    """One input of a node execution; `source_id` and `source_ordinal` name the output it came from, if one did.

    `is_data`: it was given with a status, to stand in place of what the input was."""

    node_exec_id: str
    name: str
    value_json: str
    time: float
    source_id: str | None
    source_ordinal: int | None
    is_data: bool = False


class OutputWrite(NamedTuple):
    """One output of a node execution; `ordinal` counts its outputs over all names from 0."""

    node_exec_id: str
    ordinal: int
    name: str
    value_json: str
    time: float


Write: TypeAlias = GraphExecutionWrite | NodeExecutionWrite | InputWrite | OutputWrite

WRITE_TYPES: dict[int, type[GraphExecutionWrite] | type[NodeExecutionWrite] | type[InputWrite] | type[OutputWrite]] = {
    WriteKind.GRAPH_EXECUTION: GraphExecutionWrite,
    WriteKind.NODE_EXECUTION: NodeExecutionWrite,
    WriteKind.INPUT: InputWrite,
    WriteKind.OUTPUT: OutputWrite,
}


class ChargeKind(IntEnum):
    """The kinds of entries on the charge ring. The first four carry a Charge."""

    CHARGE = 1
    """A price that is final: held in the arena, to be settled."""
    HOLD = 2
    """An estimate: held in the arena until SETTLE or VOID with the same key."""
    SETTLE = 3
    """What an estimate came to: to be settled like a CHARGE; its hold ends."""
    VOID = 4
    """The hold of this key ends, and nothing is charged."""
    REFRESH = 5
    """An account was brought into the arena: it is to be read once more, now that its changes are listened to."""
    REFUSAL = 6
    """A charge was refused for want of funds: somebody may want to know."""


BLOCK = "block"
"""Why a node execution is charged its block's price."""


def charge_key(node_exec_id: str, reason: str) -> str:
    """Return the idempotency key of a node execution's charge: the same for whoever makes it."""
    return f"{node_exec_id}:{reason}"


class Charge(NamedTuple):
    """Credits that were held in the arena and are to be settled in the ledger.

    `transaction_key` is the idempotency key: however often a charge is settled, the ledger has one row with it.
    `amount` is in the smallest unit and not negative; the ledger's row has it negated. A charge of 0 makes no row, it
    only carries `execution_count`, up to which the user's executions have been counted (0: it says nothing of that).
    `owner_pid` is the process that holds an estimate."""

    transaction_key: str
    user_id: str
    amount: int
    reason: str
    node_exec_id: str | None
    graph_exec_id: str | None
    time: float
    metadata_json: str
    execution_count: int = 0
    owner_pid: int = 0


class Refresh(NamedTuple):
    """The user whose account is to be read again."""

    user_id: str


class Refusal(NamedTuple):
    """A charge that an account could not bear: what it had left (`balance`), and what was asked for (`amount`)."""

    user_id: str
    graph_id: str | None
    graph_exec_id: str | None
    balance: int
    amount: int
    time: float


ChargeEntry: TypeAlias = Charge | Refresh | Refusal

CHARGE_TYPES: dict[int, type[Charge] | type[Refresh] | type[Refusal]] = {
    ChargeKind.CHARGE: Charge,
    ChargeKind.HOLD: Charge,
    ChargeKind.SETTLE: Charge,
    ChargeKind.VOID: Charge,
    ChargeKind.REFRESH: Refresh,
    ChargeKind.REFUSAL: Refusal,
}


def written_at(entry: Write | ChargeEntry) -> float | None:
    """Return when an entry was made, in seconds since the epoch: the youngest time that it carries; None if it carries
    none.

    A change of statistics alone has no time of its own, and counts as old as the last move of its execution."""
    if isinstance(entry, GraphExecutionWrite):
        return max(entry.created_at, entry.started_at or 0.0, entry.ended_at or 0.0)
    if isinstance(entry, NodeExecutionWrite):
        return max(entry.created_at, entry.queued_at or 0.0, entry.started_at or 0.0, entry.ended_at or 0.0)
    return None if isinstance(entry, Refresh) else entry.time
