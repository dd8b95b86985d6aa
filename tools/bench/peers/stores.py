"""What a store of records is to the suites, and the stores that live in this process or in shared memory.

A peer is opened with the records that it is to hold; then it reads and writes them by keys that it has prepared. What
its user must pack and unpack (msgpack is the fastest choice for these values) is part of its time."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import msgpack

from tools.bench.workload import Item

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where every peer that has files gets the fastest place for them

pack: Callable[[Any], bytes] = msgpack.Packer(autoreset=True).pack
unpack: Callable[[bytes], Any] = msgpack.unpackb


class CannotMeasure(Exception):
    """A peer is not installed, or does not start here. `install` is the command that would change it."""

    def __init__(self, reason: str, install: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.install = install


def required(module: str, package: str) -> Any:
    """Return a module. Raises CannotMeasure with the command that installs its package."""
    try:
        return import_module(module)
    except ImportError as error:
        raise CannotMeasure(f"{package} is not installed ({error})", f"pip install {package}") from None


class Store(ABC):
    """A store that holds `items`. Opening may raise CannotMeasure."""

    name: ClassVar[str]
    settings: ClassVar[str] = ""
    """How it was set up, for the reader of the figures."""
    shared: ClassVar[bool] = True
    """Whether processes forked after the opening read what any of them writes."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def native_key(self, key: str) -> Any:
        """Return a key as the store wants it; not timed."""
        return key

    @abstractmethod
    def read_all(self, keys: Sequence[Any]) -> None:
        """Get the record of every key, decoded."""

    @abstractmethod
    def write_all(self, pairs: Sequence[tuple[Any, Item]]) -> None:
        """Store every item under its key."""

    @abstractmethod
    def close(self) -> None:
        """Give back all that it holds."""


class PlainDict(Store):
    """A dict of this process alone: the floor."""

    name = "dict"
    settings = "of one process: shared with nobody"
    shared = False

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__(items)
        self._records = {item.key: item.record for item in items}

    def read_all(self, keys: Sequence[str]) -> None:
        """See Store."""
        get = self._records.get
        for key in keys:
            get(key)

    def write_all(self, pairs: Sequence[tuple[str, Item]]) -> None:
        """See Store."""
        records = self._records
        for key, item in pairs:
            records[key] = item.record

    def close(self) -> None:
        """See Store."""
        self._records.clear()


class _DictLike(Store):
    """A shared object that is used like a dict."""

    _shared: Any

    def read_all(self, keys: Sequence[Any]) -> None:
        """See Store."""
        shared = self._shared
        for key in keys:
            shared[key]

    def write_all(self, pairs: Sequence[tuple[Any, Item]]) -> None:
        """See Store."""
        shared = self._shared
        for key, item in pairs:
            shared[key] = item.plain


class _Msgpack:
    """msgpack in the form that UltraDict's `serializer` has."""

    @staticmethod
    def dumps(value: Any) -> bytes:
        return msgpack.packb(value)

    @staticmethod
    def loads(data: bytes) -> Any:
        return msgpack.unpackb(data, use_list=False, strict_map_key=False)


class UltraDict(_DictLike):
    """UltraDict: a full copy in every process, changes by a stream in shared memory."""

    name = "UltraDict"
    settings = "shared_lock, stream buffer of 64 MiB, msgpack"
    _module = "UltraDict"
    _package = "ultradict"

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__(items)
        module = required(self._module, self._package)
        required("atomics", "atomics")
        self._shared = module.UltraDict(
            shared_lock=True, buffer_size=64 << 20, full_dump_size=256 << 20, serializer=_Msgpack
        )
        for item in items:
            self._shared[item.key] = item.plain

    def close(self) -> None:
        """See Store."""
        self._shared.close()
        self._shared.unlink()


class UltraDict2(UltraDict):
    """Its successor."""

    name = "UltraDict2"
    _module = "UltraDict2"
    _package = "ultradict2"


class EasyGlobals(_DictLike):
    """EasyGlobals: seqlock slots in shared memory."""

    name = "EasyGlobals"
    settings = "one writer a key; bytes of msgpack, which its fast path takes"

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__(items)
        module = required("EasyGlobals", "easyglobals")
        space = f"bench{id(self):x}"
        self._shared = module.Globals(space, capacity=512 << 20, slot_count=1 << (4 * len(items)).bit_length())
        for item in items:
            self._shared[item.key] = pack(item.plain)

    def read_all(self, keys: Sequence[str]) -> None:
        """See Store."""
        shared = self._shared
        for key in keys:
            unpack(shared[key])

    def write_all(self, pairs: Sequence[tuple[str, Item]]) -> None:
        """See Store."""
        shared = self._shared
        for key, item in pairs:
            shared[key] = pack(item.plain)

    def close(self) -> None:
        """See Store."""
        self._shared.close()


class ManagerDict(_DictLike):
    """`multiprocessing.Manager().dict()`: a dict in a process of its own, over a unix socket."""

    name = "Manager().dict"

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__(items)
        self._manager = multiprocessing.Manager()
        self._shared = self._manager.dict({item.key: item.plain for item in items})

    def close(self) -> None:
        """See Store."""
        self._manager.shutdown()


class Lmdb(Store):
    """LMDB, a memory-mapped B-tree, a transaction for each operation."""

    name = "LMDB"
    settings = "on /dev/shm, sync off, writemap"
    _writemap = True

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__(items)
        lmdb = required("lmdb", "lmdb")
        self._directory = tempfile.mkdtemp(prefix="bench-lmdb-", dir=SHARED_MEMORY)
        try:
            self.open(lmdb, len(items))
            with self._environment.begin(write=True) as transaction:
                for item in items:
                    transaction.put(item.key.encode(), pack(item.plain))
        except BaseException:
            shutil.rmtree(self._directory)
            raise

    def open(self, lmdb: Any, count: int) -> None:
        """Open the environment in this process."""
        self._environment = lmdb.open(
            self._directory, map_size=max(256 << 20, 8192 * count), sync=False, metasync=False, readahead=False,
            writemap=self._writemap, map_async=self._writemap, meminit=False, max_spare_txns=8,
        )  # fmt: skip

    def reopen(self) -> None:
        """Open it anew, as another process has to."""
        self._environment.close()
        self.open(required("lmdb", "lmdb"), len(self.items))

    def native_key(self, key: str) -> bytes:
        """See Store."""
        return key.encode()

    def read_all(self, keys: Sequence[bytes]) -> None:
        """See Store."""
        begin = self._environment.begin
        for key in keys:
            with begin() as transaction:
                unpack(transaction.get(key))

    def write_all(self, pairs: Sequence[tuple[bytes, Item]]) -> None:
        """See Store."""
        begin = self._environment.begin
        for key, item in pairs:
            with begin(write=True) as transaction:
                transaction.put(key, pack(item.plain))

    def close(self) -> None:
        """See Store."""
        self._environment.close()
        shutil.rmtree(self._directory)


class LmdbWithoutWritemap(Lmdb):
    """LMDB as most use it: no stray write of the program can damage it."""

    name = "LMDB, no writemap"
    settings = "on /dev/shm, sync off"
    _writemap = False


class DiskCache(Store):
    """diskcache: SQLite and files."""

    name = "diskcache"
    settings = "on /dev/shm, synchronous off, no eviction, bytes of msgpack"

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__(items)
        module = required("diskcache", "diskcache")
        self._directory = tempfile.mkdtemp(prefix="bench-diskcache-", dir=SHARED_MEMORY)
        self._cache = module.Cache(
            self._directory, eviction_policy="none", sqlite_synchronous=0, sqlite_mmap_size=1 << 28,
            disk_min_file_size=1 << 20,
        )  # fmt: skip
        with self._cache.transact():
            for item in items:
                self._cache[item.key] = pack(item.plain)

    def read_all(self, keys: Sequence[str]) -> None:
        """See Store."""
        get = self._cache.get
        for key in keys:
            unpack(get(key))

    def write_all(self, pairs: Sequence[tuple[str, Item]]) -> None:
        """See Store."""
        put = self._cache.set
        for key, item in pairs:
            put(key, pack(item.plain))

    def close(self) -> None:
        """See Store."""
        self._cache.close()
        shutil.rmtree(self._directory)
