"""Carries what is on an arena's rings to the database, in the test's own process: what the syncer does, without
waiting."""

from __future__ import annotations

import msgpack

from shmcache.arena import Arena
from shmcache.database.batches import write_batch
from shmcache.database.connection import connect
from shmcache.database.settlement import settle
from shmcache.writes import WRITE_TYPES, Charge


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
                    settle(connection, [Charge(*msgpack.unpackb(e.payload)) for e in entries])
            if entries:
                ring.advance(entries[-1].sequence)
