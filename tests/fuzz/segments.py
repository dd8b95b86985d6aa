"""A segment of which the header, or a ring, is anything."""

from __future__ import annotations

import contextlib
import os
import struct
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from shmcache.arena import Arena, layout, segment
from shmcache.arena.ring import HEADER_BYTES
from shmcache.errors import ArenaError, ArenaUnusable
from tests.unit.arena_state import key

_HEADER_WORDS = 17
_FREE_WORDS = {layout.ARENA_ID_WORD, layout.ARENA_ID_WORD + 1, layout.IDENTITY_WORD, layout.IDENTITY_WORD + 1}
"""Words of the header that may be anything: who the arena is, and what its contents belong to."""
_WORDS = st.sampled_from([0, 1, 2, 8, 4096, 2**16, 2**32, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
_RING_STATE = [layout.TAIL, layout.LAST_SEQUENCE, layout.HEAD, layout.COMMITTED]

HEADERS: st.SearchStrategy[Any] = (
    st.dictionaries(st.integers(0, _HEADER_WORDS - 1), _WORDS, max_size=4)
    | st.tuples(st.integers(0, _HEADER_WORDS * 8 - 1), st.integers(0, 7))
    | st.binary(max_size=_HEADER_WORDS * 8)
)
"""Words of the header that are other ones; one bit that is; all of it; its beginning, and the file ends there."""

_headers = st.builds(
    lambda sequence, length, crc, kind: struct.pack("<QIIII", sequence, length, crc, kind, 0),
    st.integers(0, 9) | _WORDS,
    st.sampled_from([0, 1, 8, 64, 4096, 2**31, 2**32 - 1]) | st.integers(0, 2**19),
    st.integers(0, 2**32 - 1),
    st.integers(0, 7) | st.integers(0, 2**32 - 1),
)
RINGS: st.SearchStrategy[Any] = st.tuples(
    st.lists(st.integers(0, 2000) | _WORDS, min_size=4, max_size=4),
    st.lists(st.tuples(st.integers(0, 2000) | _WORDS, _headers | st.binary(max_size=64)), max_size=8),
    st.sampled_from([1, 3, 10_000]),
)
"""The four words of a ring's state, pieces of bytes at places in it, and how many entries are read at once."""


def segment_name(pid: int) -> str:
    """Return what the segment of a process is called."""
    return f"fuzz-{pid}"


class _Segment:
    """A segment of this process, and what it was at first."""

    def __init__(self) -> None:
        self.name = segment_name(os.getpid())
        self.arena = Arena.create(self.name, 4 << 20, ring_bytes=(16384, 16384), lock_wait=5.0, ring_wait=0.01)
        self.path = segment.segment_path(self.name)
        self.header = self.path.read_bytes()[: _HEADER_WORDS * 8]


_made: list[_Segment] = []


def _of_this_process() -> _Segment:
    if not _made or _made[0].name != segment_name(os.getpid()):
        _made[:] = [_Segment()]
    return _made[0]


def remove_segment() -> None:
    """Remove this process's segment, if it has one."""
    for each in _made:
        each.arena.unlink()
        each.arena.close()
    _made.clear()


def attach(change: Any) -> None:
    """Attach to a segment with another header: it is refused for every word that is not as it has to be."""
    ours = _of_this_process()
    header = bytearray(ours.header)
    if isinstance(change, dict):
        for word, value in change.items():
            header[word * 8 : word * 8 + 8] = value.to_bytes(8, "little")
    elif isinstance(change, tuple):
        header[change[0]] ^= 1 << change[1]
    else:
        header[: len(change)] = change
    wrong = {place // 8 for place in range(len(header)) if header[place] != ours.header[place]} - _FREE_WORDS
    refused = True
    descriptor = os.open(ours.path, os.O_RDWR)
    try:
        os.pwrite(descriptor, header, 0)
        with contextlib.suppress(ArenaUnusable):
            with Arena.attach(ours.name, lock_wait=5.0) as arena:
                assert arena.read(key(1)) is None
            refused = False
        assert refused == bool(wrong), f"words {sorted(wrong)} were other ones"
    finally:
        os.pwrite(descriptor, ours.header, 0)
        os.close(descriptor)


def read_ring(given: tuple[list[int], list[tuple[int, bytes]], int]) -> None:
    """Read a ring of any state and content to its end, as a consumer does, and say that it is durable."""
    state, pieces, limit = given
    arena = _of_this_process().arena
    region = arena.write_ring._region
    buffer = arena._memory.buffer
    buffer[region._first : region._first + 4096] = bytes(4096)
    for place, piece in pieces:
        begin = region._first + place % (region.size - len(piece))
        buffer[begin : begin + len(piece)] = piece
    for word, value in zip(_RING_STATE, state, strict=True):
        arena._words[region.state + word] = value
    region._cursors = []
    after = arena.write_ring.committed_sequence
    for _ in range(20):
        entries = arena.write_ring.read(after, limit, 1 << 16)
        if not entries:
            break
        assert entries[0].sequence > after
        assert all(one.sequence < two.sequence for one, two in pairwise(entries))
        assert all(len(each.payload) <= region.size - HEADER_BYTES * each.intact for each in entries)
        after = entries[-1].sequence
        try:
            arena.write_ring.advance(after)
        except ArenaError:
            break
