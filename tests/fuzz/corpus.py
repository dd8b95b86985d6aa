"""Inputs that once made a reader crash, hang, or say nothing clear: (the reader, the input)."""

from __future__ import annotations

from typing import Any

from shmcache.arena import Entry
from shmcache.arena.layout import MAGIC_WORD
from shmcache.identifiers import derived_id
from shmcache.writes import ChargeKind
from tests.fuzz.inputs import packed

_ID = derived_id("fuzz")
_CHARGE = ["key", _ID, 3, "usage", _ID, _ID, 1.5, "{}", 0, 1]


def _charge(kind: int, **changes: Any) -> list[Entry]:
    fields = list(_CHARGE)
    for place, value in changes.items():
        fields[int(place[1:])] = value
    return [Entry(1, kind, packed(fields), True)]


FOUND: list[tuple[str, Any]] = [
    # An error of two lines, for a path with a line's end in it.
    ("path of a graph file", "\r"),
    ("path of a graph file", "no\nsuch\u2028file"),
    # An AttributeError, for sources that are no map.
    ("record", b"\x99\x04\x00\x00\x00\x00\x00\xa6QUEUED\x00\x01"),
    ("record", packed([4, "", "", "", "", "", "QUEUED", {}, 1])),
    ("record", packed([8, {}, ["x"], {}])),
    # A RecursionError, for lists in lists in lists.
    ("record", b"\x91" * 990 + b"\xc0"),
    # In the batch and among what cannot be read, both, for an amount that is none.
    ("batch of the charge ring", _charge(ChargeKind.CHARGE, _2="3")),
    ("batch of the charge ring", _charge(ChargeKind.SETTLE, _0=None)),
    ("batch of the charge ring", [Entry(1, ChargeKind.CHARGE, packed([None, *_CHARGE[1:]]), True)]),
    # An estimate for an execution that is none: the charger asked for it ever after.
    ("batch of the charge ring", _charge(ChargeKind.HOLD, _4="no execution")),
    ("batch of the charge ring", _charge(ChargeKind.HOLD, _9="no process")),
    # Waits for ever, and sizes that no file can have.
    ("settings", {"sync_interval": "INF"}),
    ("settings", {"lock_wait": "9" * 400}),
    ("settings", {"ring_wait": "1e300"}),
    ("settings", {"arena_size": "1" * 30 + " TB"}),
    # A RuntimeError, for the home of nobody; a path that no file can have.
    ("settings", {"state_dir": "~nobody-of-this-name/x"}),
    ("settings", {"state_dir": "\0"}),
    # Attached to although it does not begin with what says that it is an arena.
    ("header of a segment", {MAGIC_WORD: 0}),
    # A TypeError and no JSON, for keys that are bytes, numbers that are none, and half a surrogate pair.
    ("dead letter", ("write", 4, True, packed([_ID, 0, "out", {b"key": float("nan")}, 1.5]))),
    ("dead letter", ("charge", 5, True, packed(["\ud800"]))),
    # A RecursionError, as for the record.
    ("dead letter", ("charge", 5, True, b"\x91" * 993 + b"\xc0")),
]
