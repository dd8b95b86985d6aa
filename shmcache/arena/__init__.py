"""The arena: bytes in shared memory. It knows no record, no SQL and no credit.

Arena.create(name, size_bytes)   make a segment            arena.read(key)        a record, without a lock
Arena.attach(name)               attach to one             arena.commit(changes)  all of a transaction or nothing
list_arenas()                    this user's segments      arena.write_ring       what is to become durable

SharedMapping.create(name, size), SharedMapping.attach(name): a dict that processes share, for who needs no more
"""

from shmcache.arena.arena import Arena
from shmcache.arena.counters import Counter, Process
from shmcache.arena.layout import FLAG_FINISHED, FLAG_INDEXED, FLAG_PINNED, FLAG_PLAIN
from shmcache.arena.mapping import SharedMapping
from shmcache.arena.mapping_codec import Codec
from shmcache.arena.mapping_parts import ABSENT, MappingStatistics, Versioned
from shmcache.arena.reading import Found
from shmcache.arena.ring import Entry
from shmcache.arena.ring_ends import Ring
from shmcache.arena.segment import free_bytes, list_arenas, segment_path, unlink_segment
from shmcache.arena.transaction import Conflict, CounterTooLow, Transaction
from shmcache.arena.work import Claim

__all__ = [
    "ABSENT",
    "FLAG_FINISHED",
    "FLAG_INDEXED",
    "FLAG_PINNED",
    "FLAG_PLAIN",
    "Arena",
    "Claim",
    "Codec",
    "Conflict",
    "Counter",
    "CounterTooLow",
    "Entry",
    "Found",
    "MappingStatistics",
    "Process",
    "Ring",
    "SharedMapping",
    "Transaction",
    "Versioned",
    "free_bytes",
    "list_arenas",
    "segment_path",
    "unlink_segment",
]
