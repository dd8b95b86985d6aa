"""The models and the code are of the same steps, and at each of them in the same state."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shmcache import leased_credits
from shmcache.arena import Arena, critical, layout, stripes
from shmcache.arena.transaction import Add, Append, Put, Touch
from shmcache.database import leases
from syncer import charge_pool, consumer, credit_leases
from tests import kill_points
from tests.model import charges as charges_model
from tests.model import commit as commit_model
from tests.model import leases as leases_model
from tests.model import ring as ring_model
from tests.model import stripes as stripes_model
from tests.model.explorer import Memory, Steps, run_alone
from tests.unit.arena_state import commit, key

ROOT = Path(__file__).parents[2]
MODELS: dict[ModuleType, list[ModuleType]] = {
    commit_model: [critical],
    stripes_model: [stripes],
    ring_model: [consumer],
    charges_model: [consumer, charge_pool],
    leases_model: [leases, leased_credits, credit_leases],
}

BETWEEN_TRANSACTIONS = {
    ROOT / "shmcache" / "database" / "ledger_months.py",
    ROOT / "shmcache" / "database" / "lost_hosts.py",
    ROOT / "shmcache" / "database" / "ownership.py",
    ROOT / "shmcache" / "database" / "partitions.py",
    ROOT / "shmcache" / "definition_index.py",
    ROOT / "syncer" / "definition_changes.py",
}
"""Files whose steps lie in transactions of PostgreSQL, between them or between whole commits, each tried by a test that
kills there: no access to shared memory of their own is left to be explored."""


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_a_model_has_the_steps_of_the_code_and_no_others(model: ModuleType) -> None:
    of_the_code = [step for module in MODELS[model] for step in kill_points.steps_of(module)]
    assert sorted(kill_points.steps_of(model)) == sorted(of_the_code)


def test_every_file_with_steps_has_a_model() -> None:
    files = [path for part in ("shmcache", "syncer", "tools") for path in (ROOT / part).rglob("*.py")]
    with_steps = {str(path) for path in files if "# step: " in path.read_text() and path not in BETWEEN_TRANSACTIONS}
    assert with_steps == {module.__file__ for modules in MODELS.values() for module in modules}


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"test-steps-{os.getpid()}", 4 << 20)
    yield made
    made.unlink()
    made.close()


def _at_each_step(module: ModuleType, look: Callable[[], Any], work: Callable[[], object]) -> list[tuple[str, Any]]:
    """Return the steps that a piece of work comes to, and what is seen at each."""
    seen: list[tuple[str, Any]] = []
    kill_points.arm(module, lambda name: seen.append((name, look())))
    try:
        work()
    finally:
        kill_points.disarm(module)
    return seen


def _of_the_model(
    model: ModuleType, memory: Memory, steps: Callable[[], Steps], look: Callable[[Memory], Any]
) -> list[tuple[str, Any]]:
    return _at_each_step(model, lambda: look(memory), lambda: run_alone(steps(), memory))


def test_a_commit_is_at_each_step_where_its_model_is(arena: Arena) -> None:
    words = arena._words
    count = layout.INTENT_OFFSET // layout.WORD
    counted = key(1)
    commit(arena, Touch(counted), Put(key(2), b"before"))
    before = bytes(arena._memory.buffer)

    def change() -> None:
        commit(arena, Append("write", 1, b"row"), Put(key(2), b"after"), Add(counted, 3))

    change()
    stored = words[count + 2 : count + 2 + 2 * layout.INTENT_PAIRS].tolist()  # what the intent was, now cleared
    arena._memory.buffer[:] = before
    pairs = list(zip(stored[::2], stored[1::2], strict=True))
    intents: list[int] = []
    _at_each_step(critical, lambda: intents.append(words[count]), change)
    pairs = pairs[: max(intents)]
    assert len(pairs) > 4
    assert pairs[0][0] == layout.WRITE_RING_STATE + layout.TAIL, "the commit point is the ring's tail"
    arena._memory.buffer[:] = before

    code = _at_each_step(
        critical, lambda: (words[count] > 0, [words[word] == value for word, value in pairs].count(True)), change
    )
    unchanged = code[0][1][1]  # words that had their new value before
    assert unchanged == 0
    names = [f"word {number}" for number in range(len(pairs))]
    memory: Memory = {**commit_model.words(len(pairs)), **dict.fromkeys(names, 0), commit_model.LOCK: "free"}

    def steps() -> Steps:
        yield from commit_model.enter()
        yield from commit_model.publish(tuple((name, 1) for name in names))

    model = _of_the_model(
        commit_model, memory, steps,
        lambda memory: (memory[commit_model.COUNT] > 0, [memory[name] for name in names].count(1)),
    )  # fmt: skip
    assert code == model


def test_a_plain_put_is_at_each_step_where_its_model_is(arena: Arena) -> None:
    words, name = arena._words, key(3)
    arena.put(name, b"first")
    arena.put(name, b"second")  # the stripe has a slab from here on
    entry = arena._table.find(name)
    places = [
        arena._stripes._word(arena._stripes.number_of(name)) + layout.STRIPE_POSITION,
        entry + layout.LOCATION,
        entry + layout.VERSION,
    ]
    begun = [words[place] for place in places]

    def look() -> tuple[bool, ...]:
        written = begun[0] + 16
        slot = bytes(arena._memory.buffer[written : written + 5])
        return (slot == b"third", *(words[place] != value for place, value in zip(places, begun, strict=True)))

    code = _at_each_step(stripes, look, lambda: arena.put(name, b"third"))
    memory: Memory = dict(stripes_model.system("p", reads=(), deaths=0).memory)
    memory[stripes_model.STRIPE] = "free"
    first = memory[stripes_model.POSITION], memory[stripes_model.LOCATION], memory[stripes_model.VERSION]

    def look_at(memory: Memory) -> tuple[bool, ...]:
        now = memory[stripes_model.POSITION], memory[stripes_model.LOCATION], memory[stripes_model.VERSION]
        slot = memory[stripes_model.slot(first[0])]
        return (slot is not None, *(each != before for each, before in zip(now, first, strict=True)))

    model = _of_the_model(stripes_model, memory, lambda: stripes_model.overwrite("third"), look_at)
    assert [name for name, _ in model] == kill_points.steps_of(stripes)
    assert code == model
