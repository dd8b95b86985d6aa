"""The lane of one's own process in an arena, and the giving back of what the dead held."""

from __future__ import annotations

import contextlib

from shmcache.arena import work
from shmcache.arena.counters import Counter, Lanes
from shmcache.arena.critical import Critical
from shmcache.arena.histograms import Histogram
from shmcache.arena.layout import ENDED, FORGET, QUEUE_SIGNAL, QUEUE_WAITERS, VERSION
from shmcache.arena.memory import Memory
from shmcache.arena.table import Table
from shmcache.errors import ArenaEnded, ArenaError, LockTimeout
from shmcache.patience import WouldWait

_NONE = 1 << 63
_STEP = 1 << 12
"""Words by which `lowest` is lowered at a time."""


class OwnLane:
    """The lane of this process: `lane` is its number, 0 for none; `commits_word` the word that counts its commits."""

    __slots__ = (
        "_critical",
        "_lanes",
        "_memory",
        "_role",
        "_seen",
        "_table",
        "_words",
        "commits_word",
        "lane",
        "lowest",
    )

    def __init__(self, mapped: Memory, critical: Critical, table: Table, lanes: Lanes) -> None:
        self._memory = mapped
        self._words = mapped.words
        self._critical = critical
        self._table = table
        self._lanes = lanes
        self._role = "other"
        critical.on_wait = self.beat
        self.forked()

    def forked(self) -> None:
        """Take note that this is a forked child, which has no lane yet."""
        self.lane = 0
        self.commits_word = self._lanes.first_counter(0)
        self.lowest = _NONE
        self._seen = self._words[FORGET]

    def enter(self, role: str) -> None:
        """Take a lane, or rename it. Raises ArenaError where all lanes are taken by processes that live, ArenaEnded."""
        self._role = role
        with self._critical:
            if self.lane:
                self._lanes.set_role(self.lane, role)
            else:
                self.now()

    def join(self) -> None:
        """Take a lane if this process has none, under the role that it, or who forked it, had last."""
        if not self.lane:
            self.enter(self._role)

    def count(self, counter: Counter, amount: int) -> None:
        """Add to one of this process's counters. Raises ArenaError as `enter`."""
        self.join()
        self._lanes.count(self.lane, counter, amount)

    def observe(self, histogram: Histogram, value: float, times: int) -> None:
        """Note a value in one of this process's histograms. Raises ArenaError as `enter`."""
        self.join()
        self._lanes.observe(self.lane, histogram, value, times)

    def lead(self, epoch: int) -> None:
        """Say in which epoch this process leads, 0 for not at all. Raises ArenaError as `enter`."""
        if epoch:
            self.join()
        if self.lane:
            self._lanes.set_epoch(self.lane, epoch)

    def counted(self, counter: Counter) -> int:
        """Return what this process has counted."""
        return self._lanes.counted(self.lane, counter) if self.lane else 0

    def beat(self) -> None:
        """Note that this process goes on; nothing happens where it has no lane."""
        if self.lane:
            self._lanes.beat(self.lane)

    def may_keep(self, entry: int, version: int) -> bool:
        """Say whether a record that was just read may be kept decoded, proved current by its entry's VERSION.

        A slab of entries that holds records again may hold any number where that word was. So it is not given back
        while a process that lives has said that it may have decoded entries of it. (Who does not get the lock keeps
        nothing: it may have written what is to be kept, and must not seem to have failed.)"""
        if entry >= self.lowest:
            return True
        with contextlib.suppress(WouldWait, LockTimeout), self._critical:  # as the giving back is
            if not self.or_none() or not self._table.is_entry(entry):
                return False
            self.lowest = max(entry - _STEP, 1)
            self._lanes.set_lowest(self.lane, self.lowest)
            current: bool = self._words[entry + VERSION] == version
            return current
        return False

    def must_forget(self) -> bool:
        """Say whether what this process has decoded is in the way of others: forget it all, then call `forgotten`."""
        wanted: bool = self._words[FORGET] != self._seen
        return wanted

    def forgotten(self) -> None:
        """Take note that nothing is kept decoded."""
        self._seen = self._words[FORGET]
        self.lowest = _NONE
        if self.lane:
            self._lanes.set_lowest(self.lane, 0)

    def now(self) -> int:
        """Return the lane; take one if there is none, from the dead if need be. Inside the section.

        Raises ArenaError; ArenaEnded where the segment is being removed, since nobody would read what is written."""
        if not self.lane:
            if self._words[ENDED] == 1:
                raise ArenaEnded
            try:
                self.lane = self._lanes.enter(self._role)
            except ArenaError:
                for process in self._lanes.processes():
                    if not process.alive:
                        self._release_if_dead(process.lane)
                self.lane = self._lanes.enter(self._role)
            self.commits_word = self._lanes.first_counter(self.lane)
        return self.lane

    def or_none(self) -> int:
        """Return the lane, or where all are taken lane 0, which may be counted on inside the section.

        Raises ArenaEnded."""
        try:
            return self.now()
        except ArenaEnded:
            raise
        except ArenaError:
            return 0

    def end_arena(self) -> bool:
        """Let no other process in any more, unless one that lives is there; return whether none is."""
        with self._critical:
            alone = not any(each.alive and each.lane != self.lane for each in self._lanes.processes())
            if alone:
                self._words[ENDED] = 1
            return alone

    def reopen_arena(self) -> None:
        """Let processes in again: who was about to remove the segment died before it did."""
        with self._critical:
            self._words[ENDED] = 0

    def leave(self) -> bool:
        """Give claims and lane back; return False if the life lock is another thread's, which has to end first."""
        with self._critical:
            self._give_claims_back(self.lane)
            self._retire(self.lane)
            unlocked = self._lanes.unlock(self.lane)
            self.forked()
            waiters = self._words[QUEUE_WAITERS]
        if waiters:
            self._critical.wake(QUEUE_SIGNAL)
        return unlocked

    def release_dead(self) -> int:
        """Put the claims of dead processes back on the queue and free their lanes; return how many claims."""
        returned = 0
        for process in self._lanes.processes():
            if not process.alive and process.lane != self.lane:
                with self._critical:
                    returned += self._release_if_dead(process.lane)
                    waiters = self._words[QUEUE_WAITERS]
                if waiters:
                    self._critical.wake(QUEUE_SIGNAL)
        if returned:
            self.count(Counter.RECLAIMED_WORK, returned)
        return returned

    def _release_if_dead(self, lane: int) -> int:
        if not self._lanes.is_dead(lane):
            return 0
        returned = self._give_claims_back(lane)
        self._retire(lane)
        self._lanes.unlock(lane)
        return returned

    def _give_claims_back(self, lane: int) -> int:
        claimed = work.claimed_by(self._table, lane)
        for entry in claimed:
            stage = self._memory.stage()
            work.reclaim(self._table, stage, entry)
            self._critical.publish(stage)
        return len(claimed)

    def _retire(self, lane: int) -> None:
        stage = self._memory.stage()
        self._lanes.retire(stage, lane)
        self._critical.publish(stage)
