"""Leases of credits (`shmcache.database.leases`, `shmcache.leased_credits`, `syncer.credit_leases`) between two hosts.

One account. A worker of each host holds single credits against its host's lease, and takes more where there is too
little; a charger settles what is held and gives some back. A transaction of the database is one step, and so is a
commit in the arena. The clock ticks whenever it likes: a lease lasts two ticks from its renewal, and a host reckons it
one shorter, from before it asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from tests.model.explorer import Atomically, Load, Memory, Rest, Steps, System

BALANCE, DEBT, DRAWN, TIME, LATE, GIVING = "balance", "debt", "versions drawn", "time", "late", "left to give"
LEASE, VERSION, UNTIL, ROBBED, SEEN, SETTLED = "lease", "version", "until", "robbed", "seen", "settled"
PART, BASE, KNOWN, END, TAIL, HEAD = "part", "base", "known version", "end", "tail", "head"
HOSTS = "a", "b"
LASTS, EARLY = 2, 1


# Workers


def worker(host: str, charges: int) -> Steps:
    for _ in range(charges):
        for _ in range(3):
            found = yield Atomically(partial(hold, host))
            if found == "held":
                break
            if found == "over":
                yield from renew(host)
            else:
                yield from take_credits(host)


def hold(host: str, memory: Memory) -> str:
    if memory[TIME] >= memory[END, host]:
        return "over"
    if memory[PART, host] < 1:
        return "low"
    memory[PART, host] -= 1
    memory[TAIL, host] += 1
    return "held"


def take_credits(host: str) -> Steps:
    # step: locked
    # step: leased
    taken = yield Atomically(partial(lease_more, host))
    # step: taken
    yield Atomically(partial(rebase, host, taken, 0))


def lease_more(host: str, memory: Memory) -> tuple[int, int]:
    if free(memory) < 1:
        for other in HOSTS:
            if other != host and memory[LEASE, other] and memory[UNTIL, other] <= memory[TIME]:
                memory[LEASE, other] = None
                memory[ROBBED, other] += 1
                memory[LATE] += memory[TAIL, other] - memory[SETTLED, other]
    grant = max(0, -(-free(memory) // 2))
    return put(host, (memory[LEASE, host] or 0) + grant, memory)


def free(memory: Memory) -> int:
    return int(memory[BALANCE] - memory[DEBT] - sum(memory[LEASE, host] or 0 for host in HOSTS))


def put(host: str, amount: int, memory: Memory) -> tuple[int, int]:
    memory[DRAWN] += 1
    memory[LEASE, host], memory[VERSION, host] = amount, memory[DRAWN]
    return amount, memory[DRAWN]


def rebase(host: str, read: tuple[int, int], released: int, memory: Memory) -> None:
    amount, version = read
    if version <= memory[KNOWN, host]:
        amount = memory[BASE, host]
    else:
        memory[KNOWN, host] = version
    memory[PART, host] += amount - (memory[BASE, host] - released)
    memory[BASE, host] = amount


def renew(host: str) -> Steps:
    asked_at = yield Load(TIME)
    robbed = yield Atomically(partial(renew_row, host))
    # step: renewed
    if robbed is not None:
        read = yield Atomically(partial(reopen, host))
        yield Atomically(partial(rebase, host, read, 0))
        # step: reread
        yield Atomically(partial(know, host, robbed))
        # step: known
    yield Atomically(partial(prolong, host, asked_at + LASTS - EARLY))
    # step: prolonged


def renew_row(host: str, memory: Memory) -> int | None:
    memory[UNTIL, host] = max(memory[UNTIL, host], memory[TIME] + LASTS)
    return None if memory[ROBBED, host] == memory[SEEN, host] else int(memory[ROBBED, host])


def reopen(host: str, memory: Memory) -> tuple[int, int]:
    return put(host, memory[LEASE, host] or 0, memory)


def know(host: str, robbed: int, memory: Memory) -> None:
    memory[SEEN, host] = max(memory[SEEN, host], robbed)


def prolong(host: str, until: int, memory: Memory) -> None:
    memory[END, host] = max(memory[END, host], until)


# Chargers


def charger(host: str) -> Steps:
    while True:
        yield Rest(lambda memory: memory[TAIL, host] > memory[HEAD, host] or can_give(host, memory))
        before, last = yield Atomically(lambda memory: (memory[HEAD, host], memory[TAIL, host]))
        if last > before:
            yield Atomically(partial(settle, host, last))
            read = yield Atomically(lambda memory: (memory[LEASE, host] or 0, memory[VERSION, host]))
            yield Atomically(partial(release, host, before, last, read))
        else:
            version = yield Atomically(partial(withdraw, host))
            # step: withdrawn
            yield Atomically(partial(give, host, version))
            # step: given
        before = last = read = version = None


def settle(host: str, last: int, memory: Memory) -> None:
    """Charge what is not charged yet, as far as nobody else has leased what there is; it leaves the host's lease."""
    charged = max(0, last - memory[SETTLED, host])
    others = sum(memory[LEASE, other] or 0 for other in HOSTS if other != host)
    paid = max(0, min(charged, memory[BALANCE] - others))
    memory[SETTLED, host] += charged
    memory[BALANCE] -= paid
    memory[DEBT] += charged - paid
    if charged and memory[LEASE, host] is not None:
        put(host, max(0, memory[LEASE, host] - charged), memory)


def release(host: str, before: int, last: int, read: tuple[int, int], memory: Memory) -> None:
    if memory[HEAD, host] == before:
        memory[HEAD, host] = last
        rebase(host, read, last - before, memory)


def can_give(host: str, memory: Memory) -> bool:
    return bool(memory[GIVING]) and memory[PART, host] > 0


def withdraw(host: str, memory: Memory) -> int | None:
    if not can_give(host, memory):
        return None
    memory[GIVING] -= 1
    memory[PART, host] -= 1
    memory[BASE, host] -= 1
    return int(memory[KNOWN, host])


def give(host: str, version: int | None, memory: Memory) -> None:
    if version == memory[VERSION, host] and memory[LEASE, host]:
        put(host, memory[LEASE, host] - 1, memory)


def clock(ticks: int) -> Steps:
    for _ in range(ticks):
        yield Atomically(lambda memory: memory.update({TIME: memory[TIME] + 1}))


# What has to hold


def always(memory: Memory) -> str | None:
    if memory[BALANCE] < 0:
        return "the balance is below 0"
    if free(memory) < 0 and not memory[DEBT]:
        return "more is leased than there is"
    if memory[DEBT] > memory[LATE]:
        return f"{memory[DEBT]} are owed, and {memory[LATE]} were held when their lease was over"
    for host in HOSTS:
        unsettled = memory[TAIL, host] - memory[SETTLED, host]
        may_hold = memory[PART, host] if memory[TIME] < memory[END, host] else 0
        if may_hold > 0 and may_hold + unsettled > (memory[LEASE, host] or 0):
            return f"host {host} may hold more than it has leased"
    return None


def at_the_end(memory: Memory, fates: Mapping[str, str]) -> str | None:
    for host in HOSTS:
        if fates[f"charger {host}"] == "rests" and memory[SETTLED, host] != memory[TAIL, host]:
            return f"of {memory[TAIL, host]} charges of host {host} {memory[SETTLED, host]} are settled"
    return None


def system(
    opening: int,
    a: Sequence[int],
    b: Sequence[int],
    *,
    leased: int = 0,
    ticks: int = 0,
    gives: int = 0,
    deaths: int = 1,
) -> System:
    """Return two hosts that have leased so much each, workers that make so many charges and a charger on each, and a
    clock. Without ticks, what is leased lasts for ever."""
    words = (VERSION, ROBBED, SEEN, SETTLED, KNOWN, TAIL, HEAD)
    workers = [(host, count) for host, counts in (("a", a), ("b", b)) for count in counts]
    return System(
        memory={
            **dict.fromkeys((DEBT, DRAWN, TIME, LATE), 0),
            **{(word, host): 0 for word in words for host in HOSTS},
            **{(word, host): leased for word in (PART, BASE, LEASE) for host in HOSTS},
            **{(UNTIL, host): LASTS for host in HOSTS},
            **{(END, host): LASTS - EARLY for host in HOSTS},
            BALANCE: opening,
            GIVING: gives,
        },
        processes={
            **{f"worker {number}": partial(worker, *each) for number, each in enumerate(workers, 1)},
            **{f"charger {host}": partial(charger, host) for host in HOSTS},
            "clock": partial(clock, ticks),
        },
        deaths=deaths,
        always=always,
        finally_=at_the_end,
    )


def systems() -> list[System]:
    return [
        system(2, [1], [1], ticks=3),
        system(4, [1, 1], [], gives=1),
        system(3, [1], [1], gives=1),
        system(2, [1], [2], leased=1, ticks=3, deaths=0),
    ]


def large_systems() -> list[System]:
    return [system(2, [1], [2], leased=1, ticks=3), system(3, [2], [1], gives=1), system(2, [2], [1], ticks=2)]
