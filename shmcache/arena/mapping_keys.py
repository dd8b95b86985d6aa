"""Keys of a shared mapping: text, bytes, whole numbers and UUIDs, as 16 bytes in the arena's table.

    record of a key    tag 1 | length of the key 4 | key ...    (of a UUID, which is its own 16 bytes, the tag alone)
                       then the encoded value

A key's place in the table is the BLAKE2b-128 (RFC 7693) of the first line, salted with the arena's id, so that nobody
can choose two keys that meet; a UUID's is the UUID itself. The key stands in the record as well: a reader knows by it
that it has the right one, and whoever walks the table learns the keys.
"""

from __future__ import annotations

import uuid
from hashlib import blake2b
from typing import NamedTuple, TypeAlias

Key: TypeAlias = str | bytes | int | uuid.UUID
"""What can be a key. As in a dict, True is 1; text, bytes and numbers that look alike are different keys."""

_STR, _BYTES, _INT, _UUID = b"s", b"b", b"i", b"u"
_LENGTH_BYTES = 4
_HEAD_BYTES = 1 + _LENGTH_BYTES


class Place(NamedTuple):
    """Where a key belongs in the arena, and what its record begins with."""

    name: bytes
    head: bytes


class MappingKeys:
    """The keys of one arena, whose id (16 bytes) salts their hashes."""

    __slots__ = ("_hasher",)

    def __init__(self, arena_id: bytes) -> None:
        self._hasher = blake2b(digest_size=16, salt=arena_id)

    def place(self, key: Key) -> Place:
        """Return a key's place. Raises TypeError for what cannot be a key."""
        if isinstance(key, str):
            tag, data = _STR, key.encode("utf-8", "surrogatepass")
        elif isinstance(key, uuid.UUID):
            return Place(key.bytes, _UUID)
        elif isinstance(key, bytes):
            tag, data = _BYTES, key
        elif isinstance(key, int):
            tag, data = _INT, int(key).to_bytes(key.bit_length() // 8 + 1, "big", signed=True)
        else:
            raise TypeError(f"a key is str, bytes, int or uuid.UUID, not {type(key).__name__}")
        head = tag + len(data).to_bytes(_LENGTH_BYTES, "big") + data
        hasher = self._hasher.copy()
        hasher.update(head)
        return Place(hasher.digest(), head)


def split_record(name: bytes, record: bytes) -> tuple[Key, int] | None:
    """Return the key of a record and where its value begins; None where the record is none of a mapping's."""
    tag = record[:1]
    if tag == _UUID:
        return uuid.UUID(bytes=name), 1
    end = _HEAD_BYTES + int.from_bytes(record[1:_HEAD_BYTES], "big")
    if len(record) < max(end, _HEAD_BYTES):
        return None
    data = record[_HEAD_BYTES:end]
    if tag == _BYTES:
        return data, end
    if tag == _INT:
        return int.from_bytes(data, "big", signed=True), end
    if tag == _STR:
        try:
            return data.decode("utf-8", "surrogatepass"), end
        except UnicodeDecodeError:
            return None
    return None
