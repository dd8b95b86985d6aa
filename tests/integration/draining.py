"""Carries what is on an arena's rings to the database, in the test's own process: what the syncer does, without
waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import psycopg

from shmcache.arena import Arena, Entry
from shmcache.database.batches import write_batch
from shmcache.database.connection import connect
from shmcache.database.settlement import settle
from shmcache.writes import CHARGE_TYPES, WRITE_TYPES, Charge


def drain(arena: Arena, database_url: str) -> None:
    """Write every entry of both rings, in order, and confirm them."""
    with connect(database_url, application_name="test") as connection:
        for ring in (arena.write_ring, arena.charge_ring):
            entries = ring.read(ring.committed_sequence, 1_000_000, 1 << 40)
            assert all(entry.intact for entry in entries)
            with connection.transaction():
                if ring is arena.write_ring:
                    write_batch(connection, [WRITE_TYPES[e.kind](*msgpack.unpackb(e.payload)) for e in entries])
                else:
                    _settle(connection, arena, entries)
            if entries:
                ring.advance(entries[-1].sequence)


def _settle(connection: psycopg.Connection[Any], arena: Arena, entries: Sequence[Entry]) -> None:
    charges = [(e.kind, CHARGE_TYPES[e.kind](*msgpack.unpackb(e.payload))) for e in entries]
    settle(connection, [(kind, each) for kind, each in charges if isinstance(each, Charge)], arena_id=arena.arena_id)
