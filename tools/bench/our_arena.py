"""shmcache as a store of records: the one place where the suites reach into the arena and its cache."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence

from shmcache.arena import Arena, Transaction
from shmcache.arena.mapping import SharedMapping
from shmcache.arena.transaction import Append, Put
from shmcache.codec import Record, encode
from shmcache.identifiers import id_bytes, id_text
from shmcache.simple_cache import SimpleExecutorCache
from tools.bench.peers.stores import Store
from tools.bench.workload import Item

OURS = "shmcache"
_BYTES_A_RECORD = 2048
_WRITE = "write"


def make_arena(size_bytes: int, identity: bytes = bytes(16)) -> Arena:
    """Make an arena that only this process and its children use. Raises ShmcacheError."""
    return Arena.create(f"bench-{os.getpid()}-{os.urandom(3).hex()}", size_bytes, identity)


def remove_arena(arena: Arena) -> None:
    """Close and unlink an arena."""
    arena.unlink()
    arena.close()


def size_for(records: int) -> int:
    """Return the size of an arena in which so many node definitions are never evicted."""
    return max(32 << 20, records * _BYTES_A_RECORD)


def put(arena: Arena, key: bytes, record: bytes) -> None:
    """Store one record by itself."""
    arena.put(key, record)


def append(arena: Arena, kind: int, payload: bytes) -> int:
    """Put one entry on the write ring, and nothing else; return its sequence."""
    transaction = Transaction()
    transaction.operations.append(Append(_WRITE, kind, payload))
    return arena.commit(transaction).write_sequence


def put_and_append(arena: Arena, key: bytes, record: bytes, kind: int, payload: bytes) -> int:
    """Store a record and put an entry on the write ring, both or neither; return the entry's sequence."""
    transaction = Transaction()
    transaction.operations += [Put(key, record), Append(_WRITE, kind, payload)]
    return arena.commit(transaction).write_sequence


class LockTimes:
    """How often the commit lock was taken while this was open, and how long it was held, in nanoseconds."""

    def __init__(self, arena: Arena) -> None:
        self._critical = arena._critical
        self.taken = 0
        self.held = 0

    def __enter__(self) -> LockTimes:
        critical = self._critical
        self._acquire, self._release = acquire, release = critical._try, critical._release
        since = 0

        def timed_acquire(argument: ctypes.c_void_p) -> int:
            nonlocal since
            result = acquire(argument)
            since = time.perf_counter_ns()
            return result

        def timed_release(argument: ctypes.c_void_p) -> int:
            self.held += time.perf_counter_ns() - since
            self.taken += 1
            return release(argument)

        critical._try, critical._release = timed_acquire, timed_release
        return self

    def __exit__(self, *_: object) -> None:
        self._critical._try, self._critical._release = self._acquire, self._release


class SharedArena(Store):
    """SimpleExecutorCache over an arena: records decoded once in each process, coherent between all of them."""

    name = OURS
    settings = "arena in /dev/shm; every record kept decoded in each process that reads it"

    def __init__(self, items: Sequence[Item], room_for: int = 0) -> None:
        super().__init__(items)
        self.arena = make_arena(size_for(max(len(items), room_for)))
        for item in items:
            put(self.arena, id_bytes(item.key), encode(item.record))
        self.attach()

    def attach(self) -> None:
        """Begin with nothing decoded, as a process does that has just attached."""
        self.cache = SimpleExecutorCache(self.arena, limit=max(50_000, 2 * len(self.items)))

    def read_all(self, keys: Sequence[str]) -> None:
        """See Store."""
        get = self.cache.get
        for key in keys:
            get(key)

    def write_all(self, pairs: Sequence[tuple[str, Item]]) -> None:
        """See Store."""
        arena = self.arena
        for key, item in pairs:
            put(arena, id_bytes(key), encode(item.record))

    def close(self) -> None:
        """See Store."""
        remove_arena(self.arena)


class Mapping(Store):
    """SharedMapping: the dict that all processes share."""

    name = f"{OURS} SharedMapping"
    settings = "a dict for plain values; kept decoded in each process that reads them"

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__(items)
        name = f"bench-{os.getpid()}-{os.urandom(3).hex()}"
        self._mapping = SharedMapping.create(name, size_for(len(items)))
        for item in items:
            self._mapping[item.key] = item.plain

    def read_all(self, keys: Sequence[str]) -> None:
        """See Store."""
        mapping = self._mapping
        for key in keys:
            mapping[key]

    def write_all(self, pairs: Sequence[tuple[str, Item]]) -> None:
        """See Store."""
        mapping = self._mapping
        for key, item in pairs:
            mapping[key] = item.plain

    def close(self) -> None:
        """See Store."""
        self._mapping.unlink()
        self._mapping.close()


def filled(count: int, record: Record) -> tuple[SharedArena, list[str]]:
    """Return a store with so many copies of a record, and their keys."""
    store = SharedArena((), room_for=count)
    encoded = encode(record)
    keys = [os.urandom(16) for _ in range(count)]
    for key in keys:
        put(store.arena, key, encoded)
    return store, [id_text(key) for key in keys]
