"""The charge ring, from a hold to the ledger, under two chargers (`syncer.charge_pool`).

A charge is put on the ring in the commit that takes it from the account's credits. A charger has the processes of a
pool settle what is on the ring, each its part in a transaction of its own, under the charges' keys; then it confirms
checkpoint and epoch, and releases: the head moves, and credits become what the database says. Of two chargers that
both believe to lead, each may settle; what keeps that harmless are the keys, and that entries are read as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from tests.model.explorer import Acquire, Atomically, Load, Memory, Note, Release, Rest, Steps, Store, System
from tests.model.ring import (
    COMMITTED,
    EPOCH,
    HEAD,
    LAST,
    LEADER,
    LETTERS,
    LOCK,
    PUT,
    TAIL,
    Entry,
    Sizes,
    header,
    payload,
    take,
)

CREDITS, BASE, BALANCE, LEDGER, CHECKPOINT = "credits", "base", "balance", "ledger", "checkpoint"
OPENING = 3


# Workers


def worker(name: str, sizes: Sizes) -> Steps:
    for number in range(sizes.entries):
        yield from charge((name, number), sizes)


def charge(key: tuple[str, int], sizes: Sizes) -> Steps:
    """Hold one credit and put the charge on the ring; or find, with the entry written already, that it cannot be paid.

    So it is with every commit that is refused: its entries are written, and stay behind the tail."""
    while True:
        yield Acquire(LOCK)
        tail, head, sequence, left = yield Atomically(
            lambda memory: (memory[TAIL], memory[HEAD], memory[LAST], memory[CREDITS])
        )
        if tail - head < sizes.ring:
            break
        yield Release(LOCK)
        yield Rest(lambda memory: memory[HEAD] != head)
    yield Store(header(tail, sizes), (sequence + 1, key))
    yield Store(payload(tail, sizes), key)
    if left < 1:
        yield Release(LOCK)
        return
    yield Atomically(lambda memory: memory.update({TAIL: tail + 1, LAST: sequence + 1, CREDITS: left - 1}))
    yield Note(lambda memory: memory.update({PUT: (*memory[PUT], key)}))
    yield Release(LOCK)


# A charger


def charger(name: str, sizes: Sizes) -> Steps:
    for _ in range(sizes.leads):
        yield from lead(name, sizes)


def lead(name: str, sizes: Sizes) -> Steps:
    """Lead until another has taken over."""
    epoch = yield Atomically(lambda memory: begin_epoch(memory, name))
    # step: begun
    after = yield Load(COMMITTED)
    # step: resumed
    looks = sizes.failures
    while True:
        entries = yield from take(after, sizes)
        # step: taken
        if not entries:
            if looks:
                looks -= 1
                yield from refresh()
            yield Rest(lambda memory: memory[LAST] > after)
            continue
        is_fenced = yield from carry(epoch, after, entries)
        if is_fenced:
            return
        # step: carried
        after = entries[-1][0]
        entries = None
        # The release has moved the head.
        # step: advanced


def begin_epoch(memory: Memory, name: str) -> int:
    memory[LEADER] = name
    memory[EPOCH] += 1
    return int(memory[EPOCH])


def carry(epoch: int, after: int, entries: tuple[Entry, ...]) -> Steps:
    """Settle, confirm, release; answer whether another charger has taken over."""
    # step: read
    # step: dispatched
    for part in range(2):
        yield Atomically(partial(settle, entries[part::2]))
    # step: settled
    amount = yield Atomically(lambda memory: confirm(memory, epoch, entries))
    if amount is None:
        return True
    # step: confirmed
    # step: told
    yield Acquire(LOCK)
    is_ours = yield Atomically(lambda memory: release(memory, after, entries, amount))
    yield Release(LOCK)
    # step: released
    return not is_ours


def refresh() -> Steps:
    """Take over what the database says of the account, which somebody else may have changed."""
    sequence = yield Load(COMMITTED)
    amount = yield Atomically(lambda memory: memory[BALANCE])
    # step: reread
    yield Acquire(LOCK)
    yield Atomically(lambda memory: release(memory, sequence, (), amount))
    yield Release(LOCK)


def settle(entries: tuple[Entry, ...], memory: Memory) -> None:
    for _, key, intact in entries:
        if intact and key not in memory[LEDGER]:
            memory[LEDGER] = (*memory[LEDGER], key)
            memory[BALANCE] -= 1


def confirm(memory: Memory, epoch: int, entries: tuple[Entry, ...]) -> int | None:
    """Move the checkpoint and return what the account has, in one transaction; None if the epoch is over."""
    if memory[EPOCH] != epoch:
        return None
    memory[CHECKPOINT] = max(memory[CHECKPOINT], entries[-1][0])
    memory[LETTERS] = (*memory[LETTERS], *[key for _, key, intact in entries if not intact])
    return int(memory[BALANCE])


def release(memory: Memory, after: int, entries: tuple[Entry, ...], amount: int) -> bool:
    """In one commit: the head moves, what was held for the batch is not held any more, credits are what is there."""
    if memory[COMMITTED] != after:
        return False
    sequence = entries[-1][0] if entries else after
    if sequence > memory[COMMITTED]:
        memory[HEAD] = memory[COMMITTED] = min(sequence, memory[LAST])
    memory[CREDITS] += amount - (memory[BASE] - len(entries))
    memory[BASE] = amount
    return True


# What has to hold


def always(memory: Memory) -> str | None:
    if memory[LETTERS]:
        return "an entry that nobody damaged is a dead letter"
    if len(set(memory[LEDGER])) < len(memory[LEDGER]):
        return "a charge is settled twice"
    if not set(memory[LEDGER]) <= set(memory[PUT]):
        return "a charge is settled that was never made"
    if not set(memory[PUT][: memory[COMMITTED]]) <= set(memory[LEDGER]):
        return "a charge is off the ring and not in the ledger"
    if memory[CREDITS] + len(memory[PUT]) - len(memory[LEDGER]) > memory[BALANCE]:
        return "credits are there that the account does not have"
    return None


def at_the_end(memory: Memory, fates: Mapping[str, str]) -> str | None:
    if fates.get(memory[LEADER]) == "rests":
        if set(memory[LEDGER]) != set(memory[PUT]):
            return f"the charger is at rest, and of {memory[PUT]} the ledger has {memory[LEDGER]}"
        if memory[CREDITS] != memory[BALANCE]:
            return f"nothing is held, and {memory[CREDITS]} can be spent of {memory[BALANCE]}"
        if "rests" in (fate for name, fate in fates.items() if name.startswith("worker")):
            return "a worker waits for room that nobody will make"
    return None


def system(sizes: Sizes, opening: int = OPENING) -> System:
    """Return workers and chargers over a ring."""
    workers = [f"worker {number}" for number in range(1, sizes.producers + 1)]
    chargers = [f"charger {number}" for number in range(1, sizes.leaders + 1)]
    return System(
        memory={
            **dict.fromkeys((HEAD, TAIL, COMMITTED, LAST, EPOCH, CHECKPOINT), 0),
            **dict.fromkeys((CREDITS, BASE, BALANCE), opening),
            **dict.fromkeys((LEDGER, LETTERS, PUT), ()),
            LEADER: None,
            **{word(position, sizes): None for position in range(sizes.ring) for word in (header, payload)},
        },
        locks=[LOCK],
        processes={
            **{name: partial(worker, name, sizes) for name in workers},
            **{name: partial(charger, name, sizes) for name in chargers},
        },
        deaths=sizes.deaths,
        always=always,
        finally_=at_the_end,
    )


def systems() -> list[System]:
    return [
        system(Sizes(ring=1, deaths=0, failures=0)),
        system(Sizes(ring=1, producers=2, leaders=1, leads=3, deaths=2), opening=1),
        system(Sizes(ring=1, failures=0), opening=1),
        system(Sizes(entries=2, deaths=0)),
        system(Sizes(entries=2, failures=0)),
    ]


def large_systems() -> list[System]:
    return [system(Sizes(entries=3)), system(Sizes(ring=1, leads=2, entries=2, deaths=2), opening=2)]
