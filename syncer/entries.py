"""What the entries of both rings mean: rows to write, charges to settle."""

from __future__ import annotations

import msgpack

from shmcache.writes import CHARGE_TYPES, WRITE_TYPES, Charge, Refresh, Refusal, Write

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


def read_charge(kind: int, payload: bytes) -> tuple[int, Charge]:
    """Return the kind of an entry of the charge ring and what is to be settled. Raises ValueError where that is
    nothing."""
    found = read_entry(CHARGE_RING, kind, payload)
    if not isinstance(found, Charge):
        raise ValueError(f"a {type(found).__name__} is nothing to settle: discard it")
    return kind, found


def read_entry(ring: str, kind: int, payload: bytes) -> Write | Charge | Refresh | Refusal:
    """Return what an entry of a ring holds. Raises ValueError for what is nothing that belongs there."""
    if ring != CHARGE_RING:
        return read_write(kind, payload)
    row_type = CHARGE_TYPES.get(kind)
    if row_type is None:
        raise ValueError(f"no kind of entry is numbered {kind}")
    try:
        return row_type(*msgpack.unpackb(payload))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"the bytes are no {row_type.__name__}: {error}") from None
