"""The model checker finds what is there to be found, in systems of which that is known, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest

from tests.model import commit
from tests.model.explorer import (
    Acquire,
    Atomically,
    Choose,
    Holds,
    Interrupted,
    Load,
    Memory,
    Note,
    Release,
    Rest,
    Steps,
    Store,
    System,
    Wrong,
    explore,
    run_alone,
)
from tests.model.mutation import mutated


def _add(times: int) -> Steps:
    for _ in range(times):
        value = yield Load("count")
        yield Store("count", value + 1)


def _add_under_lock(times: int) -> Steps:
    for _ in range(times):
        yield Acquire("lock")
        value = yield Load("count")
        yield Store("count", value + 1)
        yield Release("lock")


def _counts(count: int) -> Callable[..., str | None]:
    return lambda memory, _: None if memory["count"] == count else f"the count is {memory['count']}"


def test_a_lost_update_is_found_by_its_shortest_way() -> None:
    processes = dict.fromkeys(("a", "b"), partial(_add, 1))
    with pytest.raises(Wrong, match="the count is 1") as wrong:
        explore(System({"count": 0}, processes, finally_=_counts(2)))
    way = [line.split(maxsplit=1) for line in str(wrong.value).splitlines()[1:]]
    assert sorted(name for name, _ in way) == ["a", "a", "b", "b"]
    assert [what for _, what in way[:2]] == ['value = yield Load("count")'] * 2


def test_a_lock_prevents_it() -> None:
    processes = dict.fromkeys(("a", "b", "c"), partial(_add_under_lock, 2))
    explore(System({"count": 0}, processes, ["lock"], finally_=_counts(6)))


def test_all_interleavings_are_gone_through_and_each_state_once() -> None:
    def walk(name: str) -> Steps:
        for number in range(3):
            yield Store(name, number)

    explored = explore(System({"a": None, "b": None}, {name: partial(walk, name) for name in "ab"}))
    assert explored == (4 * 4, 2 * 3 * 4)


def _peterson(me: int, looks: bool) -> Steps:
    other = 1 - me
    yield Store(("wants", me), True)
    yield Store("turn", other)
    while looks:
        wants = yield Load(("wants", other))
        turn = yield Load("turn")
        if not wants or turn == me:
            break
        wants = turn = None
    inside = yield Load("inside")
    assert not inside, "both are inside"
    yield Store("inside", True)
    yield Store("inside", False)
    yield Store(("wants", me), False)


@pytest.mark.parametrize("looks", [True, False])
def test_petersons_algorithm_excludes_and_without_its_loop_it_does_not(looks: bool) -> None:
    memory: Memory = {("wants", 0): False, ("wants", 1): False, "turn": 0, "inside": False}
    system = System(memory, {f"process {me}": partial(_peterson, me, looks) for me in (0, 1)})
    if looks:
        explore(system)
    else:
        with pytest.raises(Wrong, match="both are inside"):
            explore(system)


def test_a_deadlock_is_found_and_rest_is_none() -> None:
    def take(first: str, second: str) -> Steps:
        yield Acquire(first)
        yield Acquire(second)
        yield Release(second)
        yield Release(first)

    processes = {"a": partial(take, "x", "y"), "b": partial(take, "y", "x")}
    with pytest.raises(Wrong, match="nobody can go on"):
        explore(System({}, processes, ["x", "y"]))

    def wait() -> Steps:
        yield Rest(lambda memory: memory["count"] == 1)
        yield Store("count", 2)

    explore(System({"count": 0}, {"a": wait}, finally_=lambda _, fates: None if fates == {"a": "rests"} else "?"))
    explore(System({"count": 0}, {"a": wait, "b": partial(_add, 1)}, finally_=_counts(2)))


def test_a_death_at_every_step_is_tried_and_told_to_who_takes_its_lock() -> None:
    def change() -> Steps:
        died = yield Acquire("lock")
        if died:
            yield Store("y", 0)
            yield Store("x", 0)
        x = yield Load("x")
        y = yield Load("y")
        assert x == y, "half done"
        yield Store("x", 1)
        yield Store("y", 1)
        yield Release("lock")

    processes = dict.fromkeys(("a", "b"), change)
    explored = explore(System({"x": 0, "y": 0}, processes, ["lock"], deaths=2))
    assert explored.states > 30

    def careless() -> Steps:
        yield Acquire("lock")
        x = yield Load("x")
        y = yield Load("y")
        assert x == y, "half done"
        yield Store("x", 1)
        yield Store("y", 1)
        yield Release("lock")

    with pytest.raises(Wrong, match="half done") as wrong:
        explore(System({"x": 0, "y": 0}, dict.fromkeys(("a", "b"), careless), ["lock"], deaths=1))
    assert "(dies)" in str(wrong.value)
    explore(System({"x": 0, "y": 0}, dict.fromkeys(("a", "b"), careless), ["lock"]))


def test_an_exception_at_every_step_is_tried() -> None:
    def change(repairs: bool) -> Steps:
        try:
            yield Acquire("lock")
            yield Release("lock")
        except Interrupted:
            held = yield Holds("lock")
            if held and repairs:
                yield Release("lock")

    explore(System({}, {"a": partial(change, True)}, ["lock"], interrupts=1))
    with pytest.raises(Wrong, match="ended with a lock held"):
        explore(System({}, {"a": partial(change, False)}, ["lock"], interrupts=1))


def test_choices_waiting_notes_and_what_is_watched() -> None:
    def choose() -> Steps:
        chosen = yield Choose((1, 2, 3))
        yield Note(lambda memory: memory.update(noted=chosen))
        yield Atomically(lambda memory: memory.update(stored=chosen), when=lambda memory: memory["open"])

    def unlock() -> Steps:
        yield Store("open", True)

    ends: set[tuple[int, ...]] = set()

    def at_the_end(memory: dict[object, int], _: object) -> None:
        ends.add((memory["noted"], memory["stored"], memory["watched"]))

    system = System(
        {"open": False, "noted": 0, "stored": 0, "watched": 0}, {"a": choose, "b": unlock}, finally_=at_the_end,
        watched="stored", on_change=lambda memory: memory.update(watched=10 * memory["stored"]),
    )  # fmt: skip
    explore(system)
    assert ends == {(1, 1, 10), (2, 2, 20), (3, 3, 30)}


def test_what_has_to_hold_at_every_step_is_looked_at_at_every_step() -> None:
    with pytest.raises(Wrong, match="it was 1"):
        explore(
            System(
                {"count": 0},
                {"a": partial(_add, 2)},
                always=lambda memory: "it was 1" if memory["count"] == 1 else None,
            )
        )


def _in_an_expression() -> Steps:
    value = (yield Load("count")) + (yield Load("count"))
    yield Store("count", value)


def _in_a_loop_over_values() -> Steps:
    for value in (1, 1):
        yield Store("count", value)


def _in_a_context() -> Steps:
    with open("/dev/null"):
        yield Load("count")


@pytest.mark.parametrize("process", [_in_an_expression, _in_a_loop_over_values, _in_a_context])
def test_a_model_whose_state_is_not_in_its_variables_is_refused(process: Callable[[], Steps]) -> None:
    with pytest.raises(ValueError, match="yields in"):
        explore(System({"count": 0}, {"a": process}))


def test_too_many_states_are_given_up() -> None:
    def count() -> Steps:
        number = 0
        while True:
            yield Store("count", number)
            number += 1

    with pytest.raises(Wrong, match="more than 100 states"):
        explore(System({"count": 0}, {"a": count}), limit=100)


def test_one_process_alone_goes_its_way() -> None:
    memory: Memory = {"count": 3, "lock": "free"}
    run_alone(_add_under_lock(2), memory)
    assert memory == {"count": 5, "lock": "free"}


def test_a_mutated_model_is_another_module_and_its_lines_are_known() -> None:
    def find(model: ModuleType) -> None:
        for system in model.systems():
            explore(system)

    changed = mutated(commit, [("    yield Store(COUNT, len(stage))\n", "    yield Store(COUNT, 0)\n")])
    with pytest.raises(Wrong, match="yield Store\\(COUNT, 0\\)"):
        find(changed)
    with pytest.raises(AssertionError, match="0 places"):
        mutated(commit, [("no such line", "")])
