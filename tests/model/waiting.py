"""Sleeping until something happens, and waking who sleeps: no wake-up is lost (`Critical.wait`, `futex`).

Who waits looks, notes under the lock what the signal is and that it waits, and sleeps unless the signal has changed by
then: that comparison and falling asleep are one step of the kernel's. Who makes what is waited for changes the signal
in the same commit, sees there whether anybody waits, and wakes outside of the lock. That sleepers look again after a
second is for those whose waker died just before: here nobody dies, and nobody looks again.
"""

from __future__ import annotations

from functools import partial

from tests.model.explorer import Acquire, Atomically, Load, Memory, Release, Steps, Store, System

LOCK, SIGNAL, WAITERS, WORK, ASLEEP = "commit lock", "signal", "waiters", "work", "asleep"


def taker(name: str, times: int) -> Steps:
    for _ in range(times):
        taken = False
        while not taken:
            yield from wait(name)
            yield Acquire(LOCK)
            work = yield Load(WORK)
            taken = work > 0
            if taken:
                yield Store(WORK, work - 1)
            yield Release(LOCK)


def wait(name: str) -> Steps:
    while True:
        there = yield Load(WORK)
        if there:
            return
        yield Acquire(LOCK)
        seen = yield Load(SIGNAL)
        there = yield Load(WORK)
        if there:
            yield Release(LOCK)
            return
        waiters = yield Load(WAITERS)
        yield Store(WAITERS, waiters + 1)
        yield Release(LOCK)
        yield Atomically(partial(fall_asleep, name, seen))
        yield Atomically(lambda _: None, when=lambda memory: name not in memory[ASLEEP])
        yield Acquire(LOCK)
        waiters = yield Load(WAITERS)
        yield Store(WAITERS, waiters - 1)
        yield Release(LOCK)


def fall_asleep(name: str, seen: int, memory: Memory) -> None:
    """What futex_wait does."""
    if memory[SIGNAL] == seen:
        memory[ASLEEP] |= {name}


def giver(times: int) -> Steps:
    for _ in range(times):
        yield Acquire(LOCK)
        work = yield Load(WORK)
        yield Store(WORK, work + 1)
        signal = yield Load(SIGNAL)
        yield Store(SIGNAL, signal + 1)
        waiters = yield Load(WAITERS)
        yield Release(LOCK)
        if waiters:
            yield Atomically(lambda memory: memory.update({ASLEEP: frozenset()}))


def system(takers: int, givers: int, times: int) -> System:
    """Return as much work as is taken."""
    return System(
        memory={**dict.fromkeys((SIGNAL, WAITERS, WORK), 0), ASLEEP: frozenset()},
        locks=[LOCK],
        processes={
            **{
                f"taker {number}": partial(taker, f"taker {number}", times * givers // takers)
                for number in range(takers)
            },
            **{f"giver {number}": partial(giver, times) for number in range(givers)},
        },
        finally_=lambda memory, _: "somebody is still counted as waiting" if memory[WAITERS] else None,
    )


def systems() -> list[System]:
    return [system(1, 1, 3), system(2, 1, 2), system(2, 2, 1)]


def large_systems() -> list[System]:
    return [system(2, 2, 2), system(3, 1, 3)]
