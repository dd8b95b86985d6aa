"""SharedMapping: a dict, or a bounded cache, that all processes of a host share.

    with SharedMapping.create("sessions", "64 MiB") as sessions:     # once
        sessions["alice"] = {"visits": 1}

    with SharedMapping.attach("sessions") as sessions:               # in any other process, by name alone
        sessions["alice"]["visits"]

It is an arena of its own, without rings in use: entries have no database behind them, so they are always clean.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import ItemsView, Iterator, MutableMapping, ValuesView
from typing import Any, Self, cast

from shmcache.arena import survey
from shmcache.arena.arena import Arena
from shmcache.arena.decoded import DecodedLayer
from shmcache.arena.layout import FLAG_PINNED, FLAG_PLAIN
from shmcache.arena.mapping_codec import MSGPACK, Codec
from shmcache.arena.mapping_keys import Key, MappingKeys, split_record
from shmcache.arena.mapping_parts import ABSENT, Absent, Items, MappingStatistics, Values, Versioned
from shmcache.arena.transaction import Conflict, Delete, Put, Transaction
from shmcache.errors import ArenaError, ArenaFull, ArenaMissing, ArenaUnusable, InvalidValue

_IDENTITY = b"mapping\x01"
_PINNED = b"\x01"
_EVICTING = b"\x00"
_DECODED_LIMIT = 16_384


def is_mapping(identity: bytes) -> bool:
    """Say whether the arena that has this identity is a SharedMapping's."""
    return identity.startswith(_IDENTITY)


_REQUIRED = object()


class SharedMapping(DecodedLayer, MutableMapping[Key, Any]):
    """A mapping in shared memory, of one user's processes on one host. Make it with `create`, reach it with `attach`.

    **Coherent.** What one process has put, deleted or evicted, every other sees at its next get. A warm get compares
    one word of shared memory and hands out the value decoded before; such values cannot be changed (`shmcache.frozen`:
    dicts and lists that refuse it; `thaw` gives a copy that does not), so no holder can damage what others get.

    **Bounded.** By default it is a cache: when the segment is full, old keys leave, as in any cache, so a get may miss
    what was put. With `pinned` it is a dict: nothing ever leaves by itself, and a put that finds no room raises
    ArenaFull and changes nothing. Each key takes about 130 bytes beside its value.

    **One key at a time.** Each call is atomic, `update` and `clear` are so for each key. Iteration sees every key that
    is there from its beginning to its end, and of the others some. `pop`, `setdefault` and `compare_and_set` do their
    look and their change in one step: of several processes that pop one key one gets the value.

    | what                                     | the mapping                                                           |
    |------------------------------------------|-----------------------------------------------------------------------|
    | fork                                     | works in the child at once, which shares the mapping, not the counts  |
    | spawn, forkserver                        | can be passed as an argument: it is pickled as its name, and attached |
    | threads                                  | may be used from all threads of a process                             |
    | end of a thread                          | stays                                                                 |
    | an exception in a call, a cancelled task | the call was done, or it was not: never half                          |
    | end or kill of a process                 | stays, its locks are inherited; a call that was cut off as above      |
    | `close`                                  | stays for the others                                                  |
    | end of the last process                  | stays in /dev/shm until `unlink`, with all its memory                 |
    | `unlink`                                 | cannot be attached any more; who has it keeps it until they close it  |
    | reboot                                   | is gone                                                               |
    """

    __slots__ = ("_closed", "_codec", "_flags", "_keys", "_memory", "name", "pinned")

    def __init__(self, arena: Arena, codec: Codec, pinned: bool, decoded_limit: int) -> None:
        """Only for `create` and `attach`."""
        super().__init__(arena, decoded_limit if codec.frozen else 0)
        self.name = arena.name
        self.pinned = pinned
        self._codec = codec
        self._flags = FLAG_PLAIN | FLAG_PINNED if pinned else FLAG_PLAIN
        self._keys = MappingKeys(uuid.UUID(arena.arena_id).bytes)
        self._memory = arena._memory
        self._closed = False
        _by_handle.setdefault(self._handle, self)

    @classmethod
    def create(
        cls,
        name: str,
        size: int | str = "256 MiB",
        *,
        pinned: bool = False,
        codec: Codec = MSGPACK,
        decoded_limit: int = _DECODED_LIMIT,
    ) -> Self:
        """Make a mapping; `size` in bytes, or as "256 MiB", is that of the whole segment, reserved at once.

        `decoded_limit` bounds the values that this process keeps decoded. Raises ArenaExists, SharedMemoryTooSmall,
        ArenaUnusable, ValueError for a size that is none or under 4 MiB."""
        identity = _IDENTITY + (_PINNED if pinned else _EVICTING) + codec.mark
        return cls(Arena.create(name, _bytes(size), identity, ring_bytes=(0, 0)), codec, pinned, decoded_limit)

    @classmethod
    def attach(cls, name: str, *, codec: Codec = MSGPACK, decoded_limit: int = _DECODED_LIMIT) -> Self:
        """Attach to a mapping by its name. Raises ArenaMissing, ArenaUnusable, the latter also for another codec."""
        arena = Arena.attach(name)
        marks = arena.identity[len(_IDENTITY) :]
        problem = ""
        if not is_mapping(arena.identity):
            problem = "it is an arena, but no SharedMapping: choose another name"
        elif marks[1:] != codec.mark:
            problem = f"it was made with another codec than {codec.name!r}: pass that one to attach"
        if problem:
            arena.close()
            raise ArenaUnusable(name, problem)
        return cls(arena, codec, marks[:1] == _PINNED, decoded_limit)

    # One key

    def get(self, key: Key, default: Any = None) -> Any:
        """Return a key's value, or `default`. Raises TypeError for what cannot be a key."""
        try:
            kept = entry, version, value, hits = self._decoded[key]
            if self._words[entry] == version:
                kept[3] = hits + 1.0
                return value
        except KeyError:
            pass
        found = self._look(key)[1]
        return default if found is None else found.value

    def __getitem__(self, key: Key) -> Any:
        try:
            kept = entry, version, value, hits = self._decoded[key]
            if self._words[entry] == version:
                kept[3] = hits + 1.0
                return value
        except KeyError:
            pass
        found = self._look(key)[1]
        if found is None:
            raise KeyError(key)
        return found.value

    def get_versioned(self, key: Key) -> Versioned | None:
        """Return a key's value with its version, for `compare_and_set`; None if it is not there."""
        return self._look(key)[1]

    def put(self, key: Key, value: Any) -> None:
        """Set a key's value. Raises InvalidValue for one that the codec does not take, ArenaFull, LockTimeout."""
        name, head = self._keys.place(key)
        record = head + self._encode(value)
        try:
            self._arena_now().put(name, record, self._flags)
        except ArenaFull as full:
            raise self._full(full, record) from full

    def delete(self, key: Key) -> bool:
        """Forget a key; return whether it was there: of several processes that delete it at once one is told so."""
        name, head = self._keys.place(key)
        while True:
            found = self._arena_now().read(name)
            if found is None or not found.record.startswith(head):
                return False
            with contextlib.suppress(Conflict):
                self._commit(Delete(name), found.version)
                return True

    def compare_and_set(
        self, key: Key, value: Any | Absent, *, expected: Any | Absent = _REQUIRED, version: int | None = None
    ) -> bool:
        """Set a key's value if it has the `expected` one, or that `version`; return whether it was set.

        One of the two is to be given; `expected` is compared by ==. ABSENT as `expected` (or version 0) means a key
        that is not there, as `value` that the key shall go. In a mapping that is not pinned a key that has left is
        absent: build no locks of it."""
        if (version is None) == (expected is _REQUIRED):
            raise TypeError("compare_and_set takes either an expected value or a version")
        name, head = self._keys.place(key)
        change = Delete(name) if value is ABSENT else Put(name, head + self._encode(value), None, self._flags)
        while True:
            current, found = self._look(key)
            if version is not None:
                if (0 if found is None else found.version) != version:
                    return False
            elif (ABSENT if found is None else found.value) != expected:
                return False
            try:
                self._commit(change, current)
            except Conflict:
                continue
            return True

    def pop(self, key: Key, default: Any = _REQUIRED) -> Any:
        """Forget a key and return its value, in one step; without it return `default`, or raise KeyError."""
        value = self._take(key)
        if value is not ABSENT:
            return value
        if default is _REQUIRED:
            raise KeyError(key)
        return default

    def setdefault(self, key: Key, default: Any = None) -> Any:
        """Return a key's value; if it has none, set `default` and return it as it comes out again, in one step."""
        while True:
            found = self._look(key)[1]
            if found is not None:
                return found.value
            self.compare_and_set(key, default, expected=ABSENT)

    def __setitem__(self, key: Key, value: Any) -> None:
        self.put(key, value)

    def __delitem__(self, key: Key) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        kept = self._decoded.get(key)
        if kept is not None and self._words[kept[0]] == kept[1]:
            return True
        name, head = self._keys.place(cast("Key", key))  # it raises TypeError itself
        found = self._arena_now().read(name)
        return found is not None and found.record.startswith(head)

    # All keys

    def __len__(self) -> int:
        self._arena_now()
        return survey.record_count(self._memory)

    def __iter__(self) -> Iterator[Key]:
        arena = self._arena_now()
        for name in survey.keys(self._memory):
            found = arena.read(name)
            split = found and split_record(name, found.record)
            if split:
                yield split[0]

    def items(self) -> ItemsView[Key, Any]:
        """Return a view of the keys and values; walking it skips what goes meanwhile."""
        return Items(self)

    def values(self) -> ValuesView[Any]:
        """Return a view of the values; walking it skips what goes meanwhile."""
        return Values(self)

    def popitem(self) -> tuple[Key, Any]:
        """Forget some key and return it with its value. Raises KeyError if there is none. Looks at all keys."""
        for key in self:
            value = self._take(key)
            if value is not ABSENT:
                return key, value
        raise KeyError("the mapping is empty")

    def clear(self) -> None:
        """Forget all keys that are there now, one by one."""
        self._arena_now()
        for name in survey.keys(self._memory):
            self._commit(Delete(name))

    def statistics(self) -> MappingStatistics:
        """Return what the mapping holds and how it is used; also reports this process's counts to the arena."""
        arena = self._arena_now()
        self.report()
        occupancy = survey.occupancy(self._memory)
        return MappingStatistics(
            keys=occupancy.records,
            live_bytes=occupancy.live_bytes,
            free_bytes=occupancy.free_bytes,
            pinned=self.pinned,
            evicted=arena.counter_totals()["evicted"],
            processes=sum(process.alive for process in arena.processes()),
            decoded=len(self._decoded),
            hits=int(self.hits),
            reads=self.reads,
            misses=self.misses,
        )

    # The segment

    def close(self) -> None:
        """Let go of the segment. The mapping stays for others; what is done with this object afterwards raises."""
        if not self._closed:
            self.report()
            self._closed = True
            self._decoded.clear()
            if _by_handle.get(self._handle) is self:
                del _by_handle[self._handle]
            self._arena.close()

    def unlink(self) -> None:
        """Remove the mapping from this host. Who is attached keeps it until they close it."""
        self._arena.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach_again, (type(self), self._handle, self._codec, self._limit)

    def __repr__(self) -> str:
        return f"<SharedMapping {self.name!r}{' pinned' * self.pinned}{' closed' * self._closed}>"

    # Inside

    def _arena_now(self) -> Arena:
        if self._closed:
            raise ArenaError(f"the mapping {self.name!r} was closed: attach to it again")
        return self._arena

    def _look(self, key: Key) -> tuple[int, Versioned | None]:
        """Return the version of what is at a key's place, 0 for nothing, and the value if it is this key's."""
        kept = self._decoded.get(key)
        if kept is not None and self._words[kept[0]] == kept[1]:
            kept[3] += 1.0
            return kept[1], Versioned(kept[1], kept[2])
        name, head = self._keys.place(key)
        found = self._arena_now().peek(name)
        own = found is not None and found.record.startswith(head)
        self._count_read(own)
        if found is None or not own:
            self._drop(key)
            return found.version if found else 0, None
        value = self._decode(key, found.record[len(head) :])
        self._keep(key, found.entry, found.version, value)
        return found.version, Versioned(found.version, value)

    def _take(self, key: Key) -> Any | Absent:
        while True:
            version, found = self._look(key)
            if found is None:
                return ABSENT
            with contextlib.suppress(Conflict):
                self._commit(Delete(self._keys.place(key).name), version)
                return found.value

    def _walk(self) -> Iterator[tuple[Key, Any]]:
        arena = self._arena_now()
        for name in survey.keys(self._memory):
            found = arena.read(name)
            split = found and split_record(name, found.record)
            if found and split:
                yield split[0], self._decode(split[0], found.record[split[1] :])

    def _commit(self, operation: Put | Delete, version: int | None = None) -> None:
        """Do one operation; with a version, raise Conflict if the key has another one."""
        wanted = Transaction(plain=True)
        if version is not None:
            wanted.rely_on(operation.key, version)
        wanted.operations.append(operation)
        try:
            self._arena_now().commit(wanted)
        except ArenaFull as full:
            raise self._full(full, operation.record if isinstance(operation, Put) else b"") from full

    def _full(self, full: ArenaFull, record: bytes) -> ArenaFull:
        if not self.pinned:
            return full
        return ArenaFull(len(record), "no key leaves a pinned mapping by itself: delete some").of(self.name)

    def _encode(self, value: Any) -> bytes:
        try:
            return self._codec.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidValue(f"mapping {self.name!r}: {self._codec.name} does not take this value: {error}") from None

    def _decode(self, key: Key, data: bytes) -> Any:
        try:
            return self._codec.decode(data)
        except Exception as error:
            raise InvalidValue(
                f"mapping {self.name!r}: the value of {key!r} is nothing that {self._codec.name} made: {error}; attach"
                " with the codec that wrote it"
            ) from error

    @property
    def _handle(self) -> tuple[str, str]:
        return self.name, self._arena.arena_id


_by_handle: dict[tuple[str, str], SharedMapping] = {}
"""The open mappings of this process, so that one that is pickled and comes back is the one that is there."""


def _attach_again(kind: type[SharedMapping], handle: tuple[str, str], codec: Codec, limit: int) -> SharedMapping:
    """Return the mapping that was pickled. Raises ArenaMissing where one of that name was made anew since."""
    known = _by_handle.get(handle)
    if known is not None:
        return known
    attached = kind.attach(handle[0], codec=codec, decoded_limit=limit)
    if attached._handle != handle:
        attached.close()
        raise ArenaMissing(handle[0])
    return attached


def _bytes(size: int | str) -> int:
    if isinstance(size, int):
        return size
    from pydantic import ByteSize, TypeAdapter, ValidationError  # as settings read sizes; it takes a while to load

    try:
        return int(TypeAdapter(ByteSize).validate_python(size))
    except ValidationError:
        raise ValueError(f'{size!r} is no size: write bytes as a number, or as "256 MiB"') from None
