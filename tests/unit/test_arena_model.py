"""The arena against a dict: whatever the order of puts, deletes, evictions and cleanings, it is never wrong."""

from __future__ import annotations

import itertools
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shmcache.arena import FLAG_INDEXED, Arena
from shmcache.arena.transaction import Append, Delete, Operation, Put, Touch
from shmcache.errors import ArenaFull
from tests.unit.arena_state import commit, key

_numbers = itertools.count()
_keys = st.integers(0, 40).map(key)
_sizes = st.one_of(st.integers(0, 3000), st.sampled_from([65_503, 65_504, 65_505, 131_008, 300_000, 1 << 20]))


class ArenaAgainstDict(RuleBasedStateMachine):
    """Clean records may vanish, dirty ones may not, and none may ever be another than the one put last."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena.create(f"test-model-{os.getpid()}-{next(_numbers)}", 4 << 20, ring_wait=0.02)
        self.model: dict[bytes, bytes] = {}
        self.dirty: set[bytes] = set()
        self.children: list[bytes] = []

    @initialize()
    def make_parent(self) -> None:
        commit(self.arena, Touch(key(100), FLAG_INDEXED))

    @rule(name=_keys, size=_sizes, seed=st.integers(0, 255), dirty=st.booleans())
    def put(self, name: bytes, size: int, seed: int, dirty: bool) -> None:
        record = bytes([seed, 255 - seed, seed // 2]) * (size // 3) + bytes(size % 3)
        operations: list[Operation] = [Put(name, record)]
        if dirty:
            operations.append(Append("write", 1, name))
        try:
            commit(self.arena, *operations)
        except ArenaFull:
            assert self.dirty  # it may only refuse for the sake of what is not durable
            return
        self.model[name] = record
        if dirty:
            self.dirty.add(name)

    @rule(name=_keys)
    def get(self, name: bytes) -> None:
        found = self.arena.read(name)
        if found is None:
            assert name not in self.dirty
            self.model.pop(name, None)
        else:
            assert found.record == self.model[name]
            assert self.arena.version(name) == found.version

    @rule(name=_keys)
    def delete(self, name: bytes) -> None:
        commit(self.arena, Delete(name))
        self.model.pop(name, None)
        self.dirty.discard(name)
        assert self.arena.read(name) is None

    @rule(number=st.integers(200, 230))
    def put_child(self, number: int) -> None:
        commit(self.arena, Put(key(number), b"child", key(100)))
        if key(number) not in self.children:
            self.children.append(key(number))

    @rule()
    def drop_family(self) -> None:
        assert self.arena.drop_family(key(100))
        self.children.clear()
        assert self.arena.members(key(100)) is None
        self.make_parent()

    @rule()
    def advance(self) -> None:
        self.arena.write_ring.advance(self.arena.write_ring.last_sequence)
        self.dirty.clear()

    @rule()
    def evict(self) -> None:
        self.arena._room.evict()

    @rule()
    def clean(self) -> None:
        before = {name: self.arena.read(name) for name in self.model}
        self.arena._room.clean()
        assert {name: self.arena.read(name) for name in self.model} == before

    @invariant()
    def sound(self) -> None:
        assert self.arena.check() == []
        if self.arena.is_indexed(key(100)):
            assert self.arena.members(key(100)) == self.children
        for name in self.dirty:
            found = self.arena.read(name)
            assert found is not None
            assert found.record == self.model[name]

    def teardown(self) -> None:
        self.arena.unlink()
        self.arena.close()


ArenaAgainstDict.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestArenaAgainstDict = ArenaAgainstDict.TestCase
