"""Facts about an arena, gathered from its memory without taking a lock or writing a word.

So they can be gathered of an arena that is only mapped for reading, of a dead one, and while others change it: each
number was true at some time during the look, not all of them at one time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from shmcache.arena.layout import KEY_HIGH, KEY_LOW, LOCATION
from shmcache.arena.memory import Memory
from shmcache.arena.table import Table

_pack_key = struct.Struct(">QQ").pack


def keys(memory: Memory) -> Iterator[bytes]:
    """Return the keys that have a record. One that is there all the while is among them; what is being changed may
    come as a key that is none, and one that is deleted and put again meanwhile twice."""
    rows = Table(memory).rows()
    found = rows[:, LOCATION].nonzero()[0]
    return map(_pack_key, rows[found, KEY_HIGH].tolist(), rows[found, KEY_LOW].tolist())


def record_count(memory: Memory) -> int:
    """Return how many keys have a record."""
    return int(np.count_nonzero(Table(memory).rows()[:, LOCATION]))
