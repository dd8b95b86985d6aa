"""Small things that a shared mapping hands out: the mark for "no value", values with versions, statistics, views."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, ValuesView
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from shmcache.arena.mapping_keys import Key

if TYPE_CHECKING:
    from shmcache.arena.mapping import SharedMapping


class _Absent(Enum):
    ABSENT = "ABSENT"


ABSENT: Final = _Absent.ABSENT
"""Stands for "no value" in `compare_and_set`: a key that is not there, or shall not be there any more."""

Absent: TypeAlias = Literal[_Absent.ABSENT]


class Versioned(NamedTuple):
    """A value and its version, which no other value of the key has or will have."""

    version: int
    value: Any


class MappingStatistics(NamedTuple):
    """What a mapping holds, in bytes and numbers; `hits`, `reads` and `misses` are this process's alone.

    `hits` were served decoded, `reads` from the arena; `evicted` counts the keys that left under pressure."""

    keys: int
    live_bytes: int
    free_bytes: int
    pinned: bool
    evicted: int
    processes: int
    decoded: int
    hits: int
    reads: int
    misses: int


class Items(ItemsView[Key, Any]):
    """A view of the keys and values, which skips what goes while it is walked."""

    def __init__(self, mapping: SharedMapping) -> None:
        super().__init__(mapping)
        self._shared = mapping

    def __iter__(self) -> Iterator[tuple[Key, Any]]:
        return self._shared._walk()


class Values(ValuesView[Any]):
    """A view of the values, which skips what goes while it is walked."""

    def __init__(self, mapping: SharedMapping) -> None:
        super().__init__(mapping)
        self._shared = mapping

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._shared._walk())
