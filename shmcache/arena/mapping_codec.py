"""How a shared mapping's values become bytes and come back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

import msgpack

from shmcache.frozen import FrozenDict, FrozenList


class _Packers(threading.local):
    """A packer for each thread: one is no whole answer's if the garbage collector lets another thread in meanwhile."""

    def __init__(self) -> None:
        self.pack: Callable[[Any], bytes] = msgpack.Packer(autoreset=True).pack


_packers = _Packers()
_unpack = msgpack.unpackb


class Codec(NamedTuple):
    """A pair of functions, both importable by name if the mapping is to be pickled.

    `frozen` says that what `decode` returns cannot be changed, or that its holders promise not to: only then is it kept
    decoded and handed out again. Else every get decodes the bytes anew."""

    name: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    frozen: bool = False

    @property
    def mark(self) -> bytes:
        """Seven bytes that stand for the name in the header of an arena."""
        return blake2b(self.name.encode(), digest_size=7).digest()


def encode_msgpack(value: Any) -> bytes:
    """Return the msgpack bytes of a value. Raises TypeError, ValueError, OverflowError, RecursionError."""
    return _packers.pack(value)


def decode_msgpack(data: bytes) -> Any:
    """Return the value of msgpack bytes, its maps and lists frozen. Raises ValueError, TypeError, UnpackException."""
    try:
        return _unpack(data, list_hook=FrozenList, object_hook=FrozenDict, strict_map_key=False)
    except TypeError:  # a key that was a tuple comes as a list, which cannot be one
        return _unpack(data, list_hook=FrozenList, object_pairs_hook=_frozen_dict, strict_map_key=False)


def _frozen_dict(pairs: Iterable[tuple[Any, Any]]) -> FrozenDict:
    return FrozenDict({_hashable(key): value for key, value in pairs})


def _hashable(key: Any) -> Any:
    return tuple(map(_hashable, key)) if isinstance(key, list) else key


MSGPACK = Codec("msgpack", encode_msgpack, decode_msgpack, frozen=True)
"""None, bool, int of 64 bits, float, str, bytes, and lists and dicts of them, which come back as `shmcache.frozen`
ones: equal, and impossible to change. Tuples come back as lists, as msgpack has no tuples."""
