"""Dropping families: a key with its members and theirs, all of them or none, as when a finished graph is forgotten."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shmcache.arena.layout import CHAIN, DIRTY, FLAG_FINISHED, FLAG_INDEXED, LOW, MEMBERS, QUEUE
from shmcache.arena.memory import Stage
from shmcache.arena.moving import IN_ONE_COMMIT, Mover
from shmcache.errors import ArenaDamaged

_FAMILIES_AT_ONCE = 64


class Families:
    """The families over a memory."""

    def __init__(self, mover: Mover, remove: Callable[[Stage, int], None]) -> None:
        self._mover = mover
        self._remove = remove
        self._table = mover.table
        self._critical = mover.critical
        self._words = mover.words

    def drop(self, key: bytes) -> bool:
        """Forget a key with all its members and theirs, if all are clean; return whether it went.

        All lists of the family are marked incomplete first, so that nobody reads a part of one as the whole."""
        with self._critical:
            root = self._table.find_certainly(key)
            if not root:
                return False
            family = [root]
            for entry in family:
                family.extend(self._table.members(entry) or ())
                if len(family) > self._table.count:
                    raise ArenaDamaged("a family has more members than there are entries")
            words = self._words
            if not all(self._mover.may_go(words, each) for each in family):
                return False
            indexed = [each for each in family if words[each + CHAIN] & FLAG_INDEXED]
            for begin in range(0, len(indexed), _FAMILIES_AT_ONCE):
                stage = self._mover.begin()
                for each in indexed[begin : begin + _FAMILIES_AT_ONCE]:
                    stage[each + CHAIN] = words[each + CHAIN] & ~FLAG_INDEXED
                self._mover.publish(stage)
        gone: bool | None = None
        while gone is None:
            with self._critical, self._mover.stripes.hold_all():
                gone = self._drop_some(key)
        return gone

    def _drop_some(self, key: bytes) -> bool | None:
        """Forget the first few of a family, the youngest generation first; return None if there are more."""
        root = self._table.find_certainly(key)
        if not root:
            return True
        stage = self._mover.begin()
        gone: bool | None = None
        dropped = 0
        while gone is None and dropped < IN_ONE_COMMIT:
            parent, leaving = 0, root
            for _ in range(self._table.count):
                first = stage[leaving + MEMBERS] & LOW
                if not first:
                    break
                self._table.require(first)
                parent, leaving = leaving, first
            else:
                raise ArenaDamaged("a family is its own member")
            if not self._mover.may_go(stage, leaving):
                gone = False
                break
            if parent:
                self._table.drop_first_member(stage, parent)
            else:
                gone = True
            self._remove(stage, leaving)
            dropped += 1
        self._mover.publish(stage)
        self._mover.evicted += dropped
        return gone

    def drop_finished(self) -> int:
        """Drop some of the families that are finished and clean; return how many."""
        rows = self._table.rows()
        finished = (
            (rows[:, CHAIN] & np.uint64(FLAG_FINISHED) != 0)
            & (rows[:, DIRTY] <= np.uint64(self._mover.ring.committed_sequence))
            & (rows[:, QUEUE] == 0)
        )
        numbers = finished.nonzero()[0][:_FAMILIES_AT_ONCE]
        del rows
        return sum(self.drop(self._table.key_of(self._table.entry_at(number))) for number in numbers)
