"""SharedMapping against a dict: alone, from three processes in turn, and as a cache that may forget but never lie."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shmcache.arena import ABSENT, SharedMapping
from shmcache.errors import ArenaFull

_numbers = itertools.count()
_keys: st.SearchStrategy[Any] = st.one_of(
    st.integers(-3, 3), st.sampled_from(["", "a", "1"]), st.sampled_from([b"", b"a", b"1"]), st.just(2**64), st.uuids()
)
_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=5), st.binary(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=2), inner, max_size=3)),
    max_leaves=6,
)
_quick = settings(max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))


def _serve(mapping: SharedMapping, calls: Connection, others: list[Connection]) -> None:
    """Do what comes through a pipe, in a process of its own, until the pipe ends."""
    for other in others:
        other.close()
    while True:
        try:
            method, arguments = calls.recv()
        except EOFError:
            return
        try:
            calls.send((True, getattr(mapping, method)(*arguments)))
        except KeyError as error:
            calls.send((False, error))


class MappingAgainstDict(RuleBasedStateMachine):
    """Every call is answered as by a dict, whichever process makes it."""

    processes = 0

    def __init__(self) -> None:
        super().__init__()
        name = f"test-mapping-model-{os.getpid()}-{next(_numbers)}"
        self.mapping = SharedMapping.create(name, "4 MiB", pinned=True, decoded_limit=8)
        self.model: dict[Any, Any] = {}
        self.children: list[tuple[Any, Connection]] = []
        context = multiprocessing.get_context("fork")
        for _ in range(self.processes):
            ours, theirs = context.Pipe()
            others = [ours, *(pipe for _, pipe in self.children)]
            child = context.Process(target=_serve, args=(self.mapping, theirs, others), daemon=True)
            child.start()
            theirs.close()
            self.children.append((child, ours))

    def call(self, who: int, method: str, *arguments: Any) -> Any:
        """Call a method of the mapping in this process (0) or in a child."""
        who %= self.processes + 1
        if not who:
            return getattr(self.mapping, method)(*arguments)
        pipe = self.children[who - 1][1]
        pipe.send((method, arguments))
        done, result = pipe.recv()
        if not done:
            raise result
        return result

    @rule(who=st.integers(0, 2), key=_keys, value=_values)
    def put(self, who: int, key: Any, value: Any) -> None:
        self.call(who, "put", key, value)
        self.model[key] = value

    @rule(who=st.integers(0, 2), key=_keys)
    def get(self, who: int, key: Any) -> None:
        for _ in range(2):
            assert self.call(who, "get", key, "none") == self.model.get(key, "none")
        assert self.call(who, "__contains__", key) == (key in self.model)

    @rule(who=st.integers(0, 2), key=_keys)
    def delete(self, who: int, key: Any) -> None:
        assert self.call(who, "delete", key) == (self.model.pop(key, ABSENT) is not ABSENT)

    @rule(who=st.integers(0, 2), key=_keys)
    def pop(self, who: int, key: Any) -> None:
        try:
            popped = self.call(who, "pop", key)
        except KeyError:
            popped = ABSENT
        assert popped == self.model.pop(key, ABSENT)

    @rule(who=st.integers(0, 2), key=_keys, value=_values)
    def setdefault(self, who: int, key: Any, value: Any) -> None:
        assert self.call(who, "setdefault", key, value) == self.model.setdefault(key, value)

    @rule(key=_keys, value=_values, guess=_values, right=st.booleans())
    def compare_and_set(self, key: Any, value: Any, guess: Any, right: bool) -> None:
        current = self.model.get(key, ABSENT)
        expected = current if right else guess
        assert self.mapping.compare_and_set(key, value, expected=expected) == (current == expected)
        if current == expected:
            self.model[key] = value

    @rule(who=st.integers(0, 2))
    def clear(self, who: int) -> None:
        self.call(who, "clear")
        self.model.clear()

    @invariant()
    def holds_the_same(self) -> None:
        assert dict(self.mapping.items()) == self.model
        assert sorted(map(repr, self.mapping)) == sorted(map(repr, self.model))
        assert len(self.mapping) == len(self.model)

    def teardown(self) -> None:
        for child, pipe in self.children:
            pipe.close()
            child.join(60)
            assert child.exitcode == 0
        assert self.mapping._arena.check() == []
        self.mapping.unlink()
        self.mapping.close()


class MappingOfThreeProcesses(MappingAgainstDict):
    """The same, with two more processes whose decoded layers must not go stale."""

    processes = 2


class CacheAgainstDict(RuleBasedStateMachine):
    """A cache under pressure may have forgotten a key; what it has is what was put last."""

    def __init__(self) -> None:
        super().__init__()
        name = f"test-cache-model-{os.getpid()}-{next(_numbers)}"
        self.cache = SharedMapping.create(name, "4 MiB", decoded_limit=5)
        self.other = SharedMapping.attach(name)
        self.model: dict[int, bytes] = {}

    @rule(key=st.integers(0, 30), size=st.sampled_from([0, 10, 1000, 100_000, 400_000]), seed=st.integers(0, 255))
    def put(self, key: int, size: int, seed: int) -> None:
        try:
            self.cache[key] = self.model[key] = bytes([seed]) * size
        except ArenaFull as full:
            raise AssertionError("everything in a cache may leave") from full
        assert self.other.get(key) == self.model[key]

    @rule(key=st.integers(0, 30))
    def get(self, key: int) -> None:
        assert self.other.get(key) in (None, self.model.get(key))
        assert self.cache.get(key) == self.other.get(key)

    @rule(key=st.integers(0, 30))
    def delete(self, key: int) -> None:
        self.other.delete(key)
        self.model.pop(key, None)
        assert key not in self.cache

    @invariant()
    def never_lies(self) -> None:
        assert dict(self.cache.items()).items() <= self.model.items()
        assert self.cache._arena.check() == []

    def teardown(self) -> None:
        self.other.close()
        self.cache.unlink()
        self.cache.close()


for machine in (MappingAgainstDict, MappingOfThreeProcesses, CacheAgainstDict):
    machine.TestCase.settings = _quick
TestMappingAgainstDict = MappingAgainstDict.TestCase
TestMappingOfThreeProcesses = MappingOfThreeProcesses.TestCase
TestCacheAgainstDict = CacheAgainstDict.TestCase
