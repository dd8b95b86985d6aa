"""What the entries of both rings mean: rows to write, charges to settle."""

from __future__ import annotations

import msgpack

from shmcache.writes import WRITE_TYPES, Charge, ChargeKind, Write

CHARGE_RING = "charge"


def read_write(kind: int, payload: bytes) -> Write:
    """Return the row that an entry of the write ring holds. Raises ValueError for what is none."""
    row_type = WRITE_TYPES.get(kind)
    if row_type is None:
        raise ValueError(f"no kind of entry is numbered {kind}")
    try:
        return row_type(*msgpack.unpackb(payload))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"the bytes are no {row_type.__name__}: {error}") from None


def read_charge(kind: int, payload: bytes) -> Charge:
    """Return the charge that an entry of the charge ring holds. Raises ValueError for what is none."""
    if kind != ChargeKind.CHARGE:
        raise ValueError(f"no kind of entry is numbered {kind}")
    try:
        return Charge(*msgpack.unpackb(payload))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"the bytes are no Charge: {error}") from None


def read_entry(ring: str, kind: int, payload: bytes) -> Write | Charge:
    """Return what an entry of a ring holds. Raises ValueError for what is nothing that belongs there."""
    return read_charge(kind, payload) if ring == CHARGE_RING else read_write(kind, payload)
