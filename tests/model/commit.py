"""The commit: several words become other ones all at once, whoever dies (`shmcache.arena.critical`).

Writers each take the lock, read three words that always say the same, and make them say one more. Any of them may
be killed at any step, the one that recovers included, or get an exception there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from tests.model.explorer import Acquire, Holds, Interrupted, Load, Memory, Note, Release, Steps, Store, System

LOCK, COUNT, DOUBT = "commit lock", "intent: count", "doubt"
TAIL, RECORD, LISTED = "tail", "record", "listed"
PAIRS = 3


def intent(index: int) -> str:
    return f"intent: pair {index}"


def words(pairs: int = PAIRS) -> Memory:
    """Return the words that every system with commits has."""
    return {COUNT: 0, DOUBT: 0, **dict.fromkeys(map(intent, range(pairs)))}


def enter() -> Steps:
    unrepaired = yield Acquire(LOCK, again=True)
    if unrepaired:
        yield from recover()
    # step: locked


def publish(stage: tuple[tuple[object, object], ...]) -> Steps:
    # step: staged
    for index, pair in enumerate(stage):
        yield Store(intent(index), pair)
    yield Store(COUNT, len(stage))
    # step: intended
    for _, (word, value) in enumerate(stage):
        yield Store(word, value)
        # step: committed
    # step: applied
    yield Store(COUNT, 0)
    # step: cleared


def recover() -> Steps:
    count = yield Load(COUNT)
    if count:
        pairs = []
        for index in range(count):
            pair = yield Load(intent(index))
            pairs.append(pair)
        first = yield Load(pairs[0][0])
        if first == pairs[0][1]:
            for _, (word, value) in enumerate(pairs):
                yield Store(word, value)
        yield Store(COUNT, 0)
    yield Store(DOUBT, 0)


def section(inside: Callable[[], Steps]) -> Steps:
    """Do something in the critical section; answer whether it came to its end.

    A second exception, in the handling of the first, goes on to the caller, and may leave the lock held."""
    try:
        yield from enter()
        yield from inside()
        yield Release(LOCK)
    except Interrupted:
        held = yield Holds(LOCK)
        if held:
            yield from recover()
            yield Release(LOCK)
        return False
    return True


def tried(inside: Callable[[], Steps]) -> Steps:
    """Do something in the critical section, and go on after any exception; answer whether it came to its end."""
    try:
        return (yield from section(inside))
    except Interrupted:
        return False


def add_one() -> Steps:
    now = yield from look()
    yield from publish(((TAIL, now + 1), (RECORD, now + 1), (LISTED, now + 1)))


def look() -> Steps:
    tail = yield Load(TAIL)
    record = yield Load(RECORD)
    listed = yield Load(LISTED)
    assert tail == record == listed, "what one commit stores is seen in part"
    return tail


def writer(times: int) -> Steps:
    for _ in range(times):
        yield Note(lambda memory: memory.update(begun=memory["begun"] + 1))
        done = yield from tried(add_one)
        if done:
            yield Note(lambda memory: memory.update(told=memory["told"] + 1))


def at_the_end(memory: Memory, _fates: Mapping[str, str]) -> str | None:
    if memory["told"] <= memory[TAIL] <= memory["begun"]:
        return None
    return f"{memory['told']} commits were acknowledged, {memory['begun']} begun, {memory[TAIL]} made"


def system(writers: int, times: int, deaths: int, interrupts: int) -> System:
    """Return writers, and one who looks at last."""
    names = [f"writer {number}" for number in range(1, writers + 1)]
    return System(
        memory={**words(), **dict.fromkeys((TAIL, RECORD, LISTED, "begun", "told"), 0)},
        locks=[LOCK],
        processes={**dict.fromkeys(names, partial(writer, times)), "auditor": partial(tried, look)},
        deaths=deaths,
        interrupts=interrupts,
        finally_=at_the_end,
        may_end_with_locks=interrupts > 1,
    )


def systems() -> list[System]:
    return [
        system(writers=2, times=2, deaths=2, interrupts=1),
        system(writers=3, times=1, deaths=3, interrupts=0),
        system(writers=1, times=2, deaths=1, interrupts=3),
    ]


def large_systems() -> list[System]:
    return [system(writers=3, times=2, deaths=3, interrupts=1), system(writers=2, times=2, deaths=1, interrupts=3)]
