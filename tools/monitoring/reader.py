"""Snapshots of an arena: everything an operator asks for, read from its memory without a lock and without a lane.

Counters only ever grow in what is given out. In the memory the sum of all lanes may be smaller for an instant, while a
lane is given back; what was seen before stands then.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import NamedTuple

from shmcache.account_keys import ACCOUNTS, base_key
from shmcache.arena import activity, survey
from shmcache.arena.activity import Claimed, Waits
from shmcache.arena.counters import LEADING_ROLES, ROLES
from shmcache.arena.histograms import Observed
from shmcache.arena.mapping import is_mapping
from shmcache.arena.survey import Holder, Lane, Occupancy, RingDepth
from shmcache.arena.view import View
from shmcache.codec import PartialExecution, decode
from shmcache.errors import InvalidValue
from shmcache.execution_data_client import WorkKind
from shmcache.identifiers import id_bytes, id_text
from shmcache.records import NodeDefinition, NodeExecution
from shmcache.writes import written_at
from syncer.entries import read_entry
from tools.monitoring.proc import process_facts

_MOST_ACCOUNTS = 10_000
_MOST_MARKS = 1_000


class Ring(NamedTuple):
    """A ring: bytes and entries that are not durable yet, how old the oldest of them is, and who drains it (0:
    nobody)."""

    name: str
    size: int
    used_bytes: int
    entries: int
    last_sequence: int
    committed_sequence: int
    oldest_seconds: float
    leader_pid: int
    epoch: int

    @property
    def fullness(self) -> float:
        """Used bytes of the size, from 0 to 1."""
        return self.used_bytes / self.size


class Process(NamedTuple):
    """An attached process. `state`: working, idle, leading, waiting, running, stopped, dead; `doing` is what it works
    on, since `seconds`; `private_bytes` is its memory without the arena's."""

    pid: int
    role: str
    state: str
    doing: str
    seconds: float
    private_bytes: int


class Fill(NamedTuple):
    """How much of a part of the arena is in use; in bytes, or in pieces. `grows`: it gets larger when needed."""

    name: str
    used: int
    size: int
    is_bytes: bool
    grows: bool = False


class Credits(NamedTuple):
    """Of the accounts that the arena has: how many, what its processes hold, how many owe, and how much in all."""

    accounts: int
    held: int
    in_debt: int
    owed: int


class Snapshot(NamedTuple):
    """An arena at a time (`taken_at`, seconds since the epoch)."""

    taken_at: float
    arena: str
    arena_id: str
    is_mapping: bool
    size: int
    fills: tuple[Fill, ...]
    occupancy: Occupancy
    rings: tuple[Ring, ...]
    counters: dict[str, int]
    histograms: dict[str, Observed]
    processes: tuple[Process, ...]
    locks: tuple[Holder, ...]
    waits: Waits
    work_outstanding: int
    credits: Credits

    def ring(self, name: str) -> Ring:
        """Return the ring "write" or "charge"."""
        return next(ring for ring in self.rings if ring.name == name)

    @property
    def is_alive(self) -> bool:
        """Whether a process that lives is attached."""
        return any(process.state != "dead" for process in self.processes)


class Reader:
    """Takes snapshots of an arena through a view of it."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._memory = view.memory
        header = survey.header(view.memory)
        self._arena_id = header.arena_id
        self._is_mapping = is_mapping(header.identity)
        self._counters: dict[str, int] = {}
        self._histograms: dict[str, Observed] = {}
        self._marks: dict[str, deque[tuple[float, int]]] = {name: deque(maxlen=_MOST_MARKS) for name in LEADING_ROLES}
        self._base_entries: dict[bytes, tuple[bytes, int]] = {}

    def read(self) -> Snapshot:
        """Return what there is now. Raises ArenaError where the memory is too damaged to say."""
        memory = self._memory
        now = time.time()
        lanes = survey.lanes(memory)
        occupancy = survey.occupancy(memory)
        rings = self._rings(now, lanes)
        lane_count = memory.layout.lane_count - 1
        fills = (
            Fill("records", occupancy.live_bytes, occupancy.slab_bytes, True),
            Fill("entries", occupancy.entries_used, occupancy.entries, False, grows=True),
            *(Fill(f"{ring.name} ring", ring.used_bytes, ring.size, True) for ring in rings),
            Fill("lanes", len(lanes), lane_count, False),
        )
        return Snapshot(
            taken_at=now,
            arena=self._view.name,
            arena_id=self._arena_id,
            is_mapping=self._is_mapping,
            size=memory.layout.end,
            fills=fills,
            occupancy=occupancy,
            rings=rings,
            counters=self._totals(occupancy),
            histograms=self._observed(),
            processes=tuple(self._processes(now, lanes, {ring.leader_pid for ring in rings})),
            locks=tuple(survey.holders(memory)),
            waits=activity.waits(memory),
            work_outstanding=survey.work_outstanding(memory),
            credits=self._credits(),
        )

    def close(self) -> None:
        """Let go of the arena."""
        self._view.close()

    def _totals(self, occupancy: Occupancy) -> dict[str, int]:
        found = {**activity.totals(self._memory), "recoveries": occupancy.recoveries}
        self._counters = {name: max(value, self._counters.get(name, 0)) for name, value in found.items()}
        return self._counters

    def _observed(self) -> dict[str, Observed]:
        for name, found in activity.observed(self._memory).items():
            before = self._histograms.get(name, found)
            counts = tuple(map(max, found.counts, before.counts))
            self._histograms[name] = Observed(counts, max(found.sum, before.sum))
        return dict(self._histograms)

    # Rings

    def _rings(self, now: float, lanes: list[Lane]) -> tuple[Ring, ...]:
        leaders = activity.leaders(lanes)
        found = []
        for depth in survey.rings(self._memory):
            leader = leaders.get(depth.name)
            age = self._age_of_oldest(now, depth)
            found.append(Ring(*depth, age, leader.pid if leader else 0, leader.epoch if leader else 0))
        return tuple(found)

    def _age_of_oldest(self, now: float, depth: RingDepth) -> float:
        """Return how old the oldest entry of a ring is, 0 if there is none.

        It says so itself, more or less (see `syncer.measures`); it was not there yet when its number was not."""
        marks = self._marks[depth.name]
        while len(marks) > 1 and marks[1][1] <= depth.committed_sequence:
            marks.popleft()
        marks.append((now, depth.last_sequence))
        entry = activity.oldest_entry(self._memory, depth.name)
        if entry is None:
            return 0.0
        made_at = max((at for at, last in marks if last < entry.sequence), default=0.0)
        with contextlib.suppress(ValueError, TypeError):  # the syncer will make a dead letter of it
            made_at = max(made_at, written_at(read_entry(depth.name, entry.kind, entry.payload)) or 0.0)
        return max(0.0, now - made_at) if made_at else 0.0

    # Processes

    def _processes(self, now: float, lanes: list[Lane], leading: set[int]) -> list[Process]:
        working = {claim.lane: claim for claim in activity.claims(self._memory)}
        found = []
        for lane in lanes:
            facts = process_facts(lane.pid) if lane.alive else None
            claim = working.get(lane.lane)
            doing, since = self._doing(claim) if claim else ("", 0.0)
            if facts is None:
                state = "dead"
            elif facts.is_stopped:
                state = "stopped"
            elif lane.role in LEADING_ROLES.values():
                state = "leading" if lane.pid in leading else "waiting"
            elif lane.role == "worker":
                state = "working" if claim else "idle"
            else:
                state = "running"
            seconds = max(0.0, now - since) if since else 0.0
            found.append(Process(lane.pid, lane.role, state, doing, seconds, facts.private_bytes if facts else 0))
        return sorted(found, key=lambda each: (ROLES.index(each.role), each.pid))

    def _doing(self, claim: Claimed) -> tuple[str, float]:
        """Return what a claimed entry of the work queue is, in words, and since when it runs (0: not known)."""
        again = f", attempt {claim.attempt}" if claim.attempt > 1 else ""
        if claim.kind != WorkKind.RUN:
            name = "beginning" if claim.kind == WorkKind.START else "end"
            return f"{name} of graph execution {id_text(claim.key)}{again}", 0.0
        execution = self._decoded(claim.key)
        if isinstance(execution, PartialExecution):
            execution = execution.execution
        if not isinstance(execution, NodeExecution):
            return f"node execution {id_text(claim.key)}{again}", 0.0
        node = self._decoded(id_bytes(execution.node_id))
        name = node.name if isinstance(node, NodeDefinition) else execution.node_id
        return f"{name} ({execution.block_id}){again}", execution.started_at or 0.0

    def _decoded(self, key: bytes) -> object:
        found = self._view.read(key)
        try:
            return found and decode(found.record)
        except InvalidValue:
            return None

    # Credits

    def _credits(self) -> Credits:
        accounts = [] if self._is_mapping else activity.counted_members(self._memory, ACCOUNTS)
        held = in_debt = owed = 0
        for account in accounts[:_MOST_ACCOUNTS]:
            key, entry = self._base_entries.get(account.key, (b"", 0))
            key = key or base_key(id_text(account.key))
            entry, base = activity.counter_at(self._memory, entry, key)
            self._base_entries[account.key] = key, entry
            if base is not None:
                held += base - account.counter
                in_debt += base < 0
                owed += max(0, -base)
        return Credits(len(accounts), held, in_debt, owed)
