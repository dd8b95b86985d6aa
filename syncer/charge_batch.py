"""A batch of the charge ring, read: what goes to which process of the pool, and what it does to accounts."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from uuid import UUID

import msgpack

from shmcache.arena import Entry
from shmcache.database.settlement import OpenHold
from shmcache.errors import InvalidValue
from shmcache.identifiers import id_bytes
from shmcache.writes import CHARGE_TYPES, Charge, ChargeKind, Refusal
from syncer.settlement_worker import Item


class Batch:
    """Entries of the charge ring, in order.

    `partitions` has those that carry charges by the part that their user belongs to; `refusals` and `broken` those that
    do not, and those that cannot be read, with the reason. `users` are the accounts that are to be read afterwards, and
    `released` says how much of what was held for each is not held any more then. `opened` and `closed` are estimates,
    `marks` the users and keys of spends whose keys the arena remembers. `held_since` has the times of prices that were
    final at once. `charges` counts what is settled."""

    __slots__ = (
        "broken",
        "charges",
        "closed",
        "held_since",
        "marks",
        "opened",
        "partitions",
        "refusals",
        "released",
        "users",
    )

    def __init__(self, entries: Sequence[Entry], parts: int) -> None:
        self.partitions: dict[int, list[Item]] = {}
        self.refusals: list[tuple[Entry, Refusal]] = []
        self.broken: list[tuple[Entry, Exception]] = []
        self.users: set[str] = set()
        self.released: dict[str, int] = {}
        self.opened: list[OpenHold] = []
        self.closed: list[str] = []
        self.marks: list[tuple[str, str]] = []
        self.held_since: list[float] = []
        self.charges = 0
        parted: dict[str, tuple[str, int]] = {}
        for entry in entries:
            try:
                if not entry.intact:
                    raise ValueError("the entry's checksum does not match its bytes")
                if entry.kind not in CHARGE_TYPES:
                    raise ValueError(f"no kind of entry is numbered {entry.kind}")
                fields = CHARGE_TYPES[entry.kind](*msgpack.unpackb(entry.payload))
                place = parted.get(fields.user_id)
                if place is None:
                    user_id = str(UUID(fields.user_id))
                    place = parted[fields.user_id] = user_id, zlib.crc32(user_id.encode()) % parts
                if isinstance(fields, Charge):
                    self._add(entry, fields, *place)
                elif isinstance(fields, Refusal):
                    self.refusals.append((entry, fields))
            except (ValueError, TypeError, AttributeError, InvalidValue, msgpack.UnpackException) as error:
                self.broken.append((entry, error))
        self.users.update(user_id for user_id, _ in parted.values())

    def _add(self, entry: Entry, charge: Charge, user_id: str, part: int) -> None:
        kind = entry.kind
        if not (isinstance(charge.transaction_key, str) and type(charge.amount) is int):
            raise ValueError("a charge without a key or an amount")  # before any of it is noted
        held_since = float(charge.time)
        if kind == ChargeKind.HOLD:
            key, _, amount, _, node_exec_id, graph_exec_id, *_, owner_pid = charge
            if node_exec_id is None or graph_exec_id is None or type(owner_pid) is not int:
                raise ValueError("an estimate without an execution, or without a process")
            id_bytes(node_exec_id)
            id_bytes(graph_exec_id)
            self.opened.append(OpenHold(key, user_id, amount, node_exec_id, graph_exec_id, owner_pid, held_since))
        self.partitions.setdefault(part, []).append((entry.sequence, kind, entry.payload))
        if kind == ChargeKind.HOLD:
            return
        if kind == ChargeKind.CHARGE:
            self.held_since.append(held_since)
        else:
            self.closed.append(charge.transaction_key)
        if kind != ChargeKind.VOID:
            self.charges += 1
            self.released[user_id] = self.released.get(user_id, 0) + charge.amount
            if charge.owner_pid and kind == ChargeKind.CHARGE:
                self.marks.append((user_id, charge.transaction_key))
