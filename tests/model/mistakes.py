"""Mistakes that could be made in the protocols, and what the checker has to find when one is made."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from tests.model import charges, commit, lease, leases, ring, stripes, table, waiting
from tests.model.mutation import Changes


class Mistake(NamedTuple):
    """A mistake in a protocol: what is changed in it, and what is found; `seen_in`: in a protocol that uses it."""

    model: ModuleType
    what: str
    changes: Changes
    found: str
    seen_in: ModuleType | None = None


MISTAKES = [
    Mistake(
        commit, "the count is stored before the pairs",
        [(
            "    for index, pair in enumerate(stage):\n        yield Store(intent(index), pair)\n"
            "    yield Store(COUNT, len(stage))\n",
            "    yield Store(COUNT, len(stage))\n"
            "    for index, pair in enumerate(stage):\n        yield Store(intent(index), pair)\n",
        )],
        "TypeError|seen in part",
    ),
    Mistake(
        commit, "there is no intent",
        [("    yield Store(COUNT, len(stage))\n", "")],
        "seen in part",
    ),
    Mistake(
        commit, "the commit point is not the first word stored",
        [("    for _, (word, value) in enumerate(stage):\n", "    for _, (word, value) in enumerate(stage[::-1]):\n")],
        "seen in part",
    ),
    Mistake(
        commit, "who inherits the lock does not recover",
        [("    if unrepaired:\n        yield from recover()\n", "")],
        "seen in part",
    ),
    Mistake(
        commit, "who recovers clears the intent first",
        [("        first = yield Load(", "        yield Store(COUNT, 0)\n        first = yield Load(")],
        "seen in part",
    ),
    Mistake(
        commit, "what was committed is undone like the rest",
        [("        if first == pairs[0][1]:\n", "        if False:\n")],
        "seen in part|were acknowledged",
    ),
    Mistake(
        commit, "an exception is not treated like a death",
        [("            yield from recover()\n            yield Release(LOCK)\n", "            yield Release(LOCK)\n")],
        "seen in part|were acknowledged",
    ),
    Mistake(
        commit, "the intent is not cleared",
        [("    # step: applied\n    yield Store(COUNT, 0)\n", "    # step: applied\n")],
        "is read after|came back", seen_in=stripes,
    ),
    Mistake(
        commit, "there is no doubt any more before what was committed is finished",
        [
            ("    count = yield Load(COUNT)\n", "    yield Store(DOUBT, 0)\n    count = yield Load(COUNT)\n"),
            ("    yield Store(DOUBT, 0)\n\n", "\n"),
        ],
        "is read after|came back", seen_in=stripes,
    ),
    Mistake(
        ring, "the tail moves before the bytes are there",
        [
            (
                "    yield Store(header(tail, sizes), (sequence + 1, value))\n"
                "    yield Store(payload(tail, sizes), value)\n", "",
            ),
            (
                "    yield Note(lambda memory: memory.update({PUT: (*memory[PUT], value)}))\n",
                "    yield Note(lambda memory: memory.update({PUT: (*memory[PUT], value)}))\n"
                "    yield Store(header(tail, sizes), (sequence + 1, value))\n"
                "    yield Store(payload(tail, sizes), value)\n",
            ),
        ],
        "is overwritten",
    ),
    Mistake(
        ring, "a producer does not look whether there is room",
        [("        if tail - head < sizes.ring:\n", "        if True:\n")],
        "is overwritten",
    ),
    Mistake(
        ring, "the head moves before the rows are committed",
        [("        outcome = yield from", "        yield from advance(entries[-1][0])\n        outcome = yield from")],
        "durable which is not",
    ),
    Mistake(
        ring, "rows and checkpoint are two transactions",
        [("    memory[CHECKPOINT] = max(before, entries[-1][0])\n    return True\n", "    return True\n")],
        "rows",
    ),
    Mistake(
        ring, "what a lost commit wrote is written again",
        [("        if sequence > before:\n", "        if True:\n")],
        "rows",
    ),
    Mistake(
        ring, "a new leader does not move the head to the checkpoint",
        [("    yield from advance(after)\n    # step: resumed\n", "    # step: resumed\n")],
        "room that nobody will make",
    ),
    Mistake(
        ring, "the head may move back",
        [("    if sequence > memory[COMMITTED]:\n", "    if True:\n")],
        "is overwritten|dead letter",
    ),
    Mistake(
        ring, "the epoch is not checked, by who takes bytes for an entry that are none yet",
        [
            ("    if memory[EPOCH] != epoch:\n", "    if False:\n"),
            ("    sequence = yield Load(COMMITTED)\n    position = yield Load(HEAD)\n",
             "    position = yield Load(HEAD)\n    sequence = yield Load(COMMITTED)\n"),
        ],
        "rows",
    ),
    Mistake(
        ring, "bytes are taken for an entry that are none yet",
        [("    sequence = yield Load(COMMITTED)\n    position = yield Load(HEAD)\n",
          "    position = yield Load(HEAD)\n    sequence = yield Load(COMMITTED)\n")],
        "settled that was never made", seen_in=charges,
    ),
    Mistake(
        ring, "bytes that are not intact are not read again under the lock",
        [("    if all(intact for _, _, intact in entries):\n        return entries\n", "    return entries\n")],
        "dead letter|off the ring", seen_in=charges,
    ),
    Mistake(
        leases, "what others have leased is leased again",
        [("sum(memory[LEASE, host] or 0 for host in HOSTS))", "0)")],
        "more is leased|are owed",
    ),
    Mistake(
        leases, "what was read earlier is taken over too",
        [("    if version <= memory[KNOWN, host]:\n", "    if False:\n")],
        "may hold more",
    ),
    Mistake(
        leases, "what is given back leaves the database first",
        [
            ("            version = yield Atomically(partial(withdraw, host))\n            # step: withdrawn\n"
             "            yield Atomically(partial(give, host, version))\n",
             "            version = yield Load((KNOWN, host))\n"
             "            yield Atomically(partial(give, host, version))\n"
             "            yield Atomically(partial(withdraw, host))\n"),
        ],
        "may hold more",
    ),
    Mistake(
        leases, "what is given back is given whatever was taken meanwhile",
        [("    if version == memory[VERSION, host] and memory[LEASE, host]:\n", "    if memory[LEASE, host]:\n")],
        "may hold more",
    ),
    Mistake(
        leases, "what is settled stays leased",
        [("memory[LEASE, host] - charged), memory)\n", "memory[LEASE, host]), memory)\n")],
        "more is leased",
    ),
    Mistake(
        leases, "what is settled pays with what others have leased",
        [("    others = sum(memory[LEASE, other] or 0 for other in HOSTS if other != host)\n", "    others = 0\n")],
        "more is leased|are owed",
    ),
    Mistake(
        leases, "a host looks at no clock",
        [("    if memory[TIME] >= memory[END, host]:\n", "    if not memory[END, host]:\n")],
        "are owed",
    ),
    Mistake(
        leases, "the end is reckoned from the answer",
        [
            ("    asked_at = yield Load(TIME)\n", ""),
            ("    # step: renewed\n", "    asked_at = yield Load(TIME)\n"),
        ],
        "may hold more|are owed",
    ),
    Mistake(
        leases, "who comes back does not read what it has",
        [("        yield Atomically(partial(rebase, host, read, 0))\n        # step: reread\n", "")],
        "may hold more|are owed",
    ),
    Mistake(
        leases, "who comes back is not told that something was taken",
        [("                memory[ROBBED, other] += 1\n", "")],
        "may hold more|are owed",
    ),
    Mistake(
        charges, "a charge has no key",
        [("        if intact and key not in memory[LEDGER]:\n", "        if intact:\n")],
        "settled twice",
    ),
    Mistake(
        charges, "a charger releases from where the head is by then",
        [("    amount = yield Atomically(lambda memory: confirm",
          "    after = yield Load(COMMITTED)\n    amount = yield Atomically(lambda memory: confirm")],
        "credits are there",
    ),
    Mistake(
        charges, "a charger does not look whether another has released",
        [("    if memory[COMMITTED] != after:\n", "    if False:\n")],
        "credits are there|off the ring",
    ),
    Mistake(
        charges, "accounts are read before it is seen how far the ring is released",
        [
            ("    sequence = yield Load(COMMITTED)\n    amount = yield Atomically(lambda memory: memory[BALANCE])\n",
             "    amount = yield Atomically(lambda memory: memory[BALANCE])\n    sequence = yield Load(COMMITTED)\n"),
        ],
        "credits are there",
    ),
    Mistake(
        charges, "the head moves before the charges are settled",
        [("    # step: dispatched\n",
          "    yield Atomically(lambda memory: memory.update({COMMITTED: entries[-1][0]}))\n")],
        "off the ring",
    ),
    Mistake(
        charges, "what is held is not counted into the credits",
        [("    memory[CREDITS] += amount - (memory[BASE] - len(entries))\n", "    memory[CREDITS] = amount\n")],
        "credits are there",
    ),
    Mistake(
        stripes, "a put does not look whether there is doubt",
        [("    if doubt or not location", "    if not location")],
        "is read after|came back|never stored|forgot",
    ),
    Mistake(
        stripes, "a commit does not say that there is doubt",
        [("    yield Store(DOUBT, 1)\n", "")],
        "is read after|came back|never stored|forgot",
    ),
    Mistake(
        stripes, "a commit does not take the stripe",
        [("    yield Acquire(STRIPE)\n    yield Store(DOUBT, 1)\n", "    yield Store(DOUBT, 1)\n"),
         ("    yield Store(DOUBT, 0)\n    yield Release(STRIPE)\n", "    yield Store(DOUBT, 0)\n")],
        "is read after|came back|never stored|forgot",
    ),
    Mistake(
        stripes, "room is reserved only when all is done",
        [("    yield Store(POSITION, position + 1)\n    # step: reserved\n", "    # step: reserved\n"),
         ("    # step: versioned\n", "    # step: versioned\n    yield Store(POSITION, position + 1)\n")],
        "is read after|came back|never stored|forgot",
    ),
    Mistake(
        stripes, "the record is written when it is published already",
        [("    yield Store(slot(position), (version + 2, value))\n    # step: written\n", "    # step: written\n"),
         ("    # step: published\n", "    # step: published\n    yield Store(slot(position), (version + 2, value))\n")],
        "TypeError|never stored",
    ),
    Mistake(
        stripes, "the version is not stored",
        [("    yield Store(VERSION, version + 2)\n    # step: versioned\n", "    # step: versioned\n")],
        "is read after",
    ),
    Mistake(
        stripes, "who reads what a dead process published does not say so",
        [("        yield from publish(((SEQUENCE, sequence + 2), (VERSION, found[0])))\n", "        pass\n")],
        "is read after",
    ),
    Mistake(
        stripes, "what is decoded is used without a look",
        [("            if current != kept[0]:\n", "            if False:\n")],
        "is read after",
    ),
    Mistake(
        table, "what was copied is not checked",
        [("    if head != (version, crc(key, version, (first, second))):\n", "    if head is None:\n")],
        "half of one|another key's|is read after",
    ),
    Mistake(
        table, "only the version of what was copied is checked",
        [("    if head != (version, crc(key, version, (first, second))):\n",
          "    if head is None or head[0] != version:\n")],
        "half of one",
    ),
    Mistake(
        table, "the CRC does not cover the key",
        [("    return (key, version, record)\n", "    return (version, record)\n")],
        "another key's",
    ),
    Mistake(
        table, "versions are not unique",
        [("    version = sequence + 1\n", "    version = 2\n")],
        "is read after",
    ),
    Mistake(
        table, "an entry that is forgotten keeps its version",
        [(" ((entry, \"version\"), 0),", "")],
        "is read after",
    ),
    Mistake(
        table, "that there is no record is believed without the lock",
        [("    if found is None:\n        yield from enter()\n", "    if False:\n        yield from enter()\n")],
        "that nobody forgot",
    ),
    Mistake(
        table, "a slot is used again while the record is still there",
        [("    yield from publish(((SEQUENCE, sequence + 1), ((entry, \"location\"), slot)))\n", "")],
        "that nobody forgot",
    ),
    Mistake(
        table, "a moved record is published before it is copied",
        [("    for _, part in enumerate((\"head\", 0, 1)):\n        word = yield Load((old, part))\n"
          "        yield Store((slot, part), word)\n"
          "    yield from publish(((SEQUENCE, sequence + 1), ((entry, \"location\"), slot)))\n",
          "    yield from publish(((SEQUENCE, sequence + 1), ((entry, \"location\"), slot)))\n"
          "    for _, part in enumerate((\"head\", 0, 1)):\n        word = yield Load((old, part))\n"
          "        yield Store((slot, part), word)\n")],
        "that nobody forgot",
    ),
    Mistake(
        table, "what is decoded is used without a look",
        [("            if current != kept[1]:\n", "            if False:\n")],
        "is read after",
    ),
    Mistake(
        lease, "a fill does not look whether anything was forgotten meanwhile",
        [("    if memory[EVICTIONS] != lease or memory[VERSION]:\n", "    if memory[VERSION]:\n")],
        "additions were acknowledged|is read after",
    ),
    Mistake(
        lease, "a fill does not look whether the record was written meanwhile",
        [("    if memory[EVICTIONS] != lease or memory[VERSION]:\n", "    if memory[EVICTIONS] != lease:\n")],
        "additions were acknowledged|is read after",
    ),
    Mistake(
        lease, "the lease is taken after the load",
        [("        lease = yield Load(EVICTIONS)\n", ""),
         ("        loaded = yield Load(DATABASE)\n",
          "        loaded = yield Load(DATABASE)\n        lease = yield Load(EVICTIONS)\n")],
        "additions were acknowledged|is read after",
    ),
    Mistake(
        lease, "what is not in the database yet is forgotten",
        [("    if memory[RECORD] is not None and not memory[DIRTY]:\n", "    if memory[RECORD] is not None:\n"),
         ("memory[RECORD] is not None and not memory[DIRTY])\n", "memory[RECORD] is not None)\n")],
        "additions were acknowledged|is read after",
    ),
    Mistake(
        lease, "a write does not look whether the record is as it was read",
        [("    if memory[VERSION] != version:\n", "    if False:\n")],
        "additions were acknowledged|is read after",
    ),
    Mistake(
        waiting, "who waits sleeps without a look at the signal",
        [("    if memory[SIGNAL] == seen:\n", "    if True:\n")],
        "nobody can go on",
    ),
    Mistake(
        waiting, "who waits does not look again under the lock",
        [("        there = yield Load(WORK)\n        if there:\n"
          "            yield Release(LOCK)\n            return\n", "")],
        "nobody can go on",
    ),
    Mistake(
        waiting, "who waits says so when it has given the lock back",
        [("        yield Store(WAITERS, waiters + 1)\n        yield Release(LOCK)\n",
          "        yield Release(LOCK)\n        yield Store(WAITERS, waiters + 1)\n")],
        "nobody can go on|still counted",
    ),
    Mistake(
        waiting, "who wakes looks for waiters before it has the lock",
        [("        waiters = yield Load(WAITERS)\n        yield Release(LOCK)\n        if waiters:\n",
          "        yield Release(LOCK)\n        if waiters:\n"),
         ("    for _ in range(times):\n        yield Acquire(LOCK)\n        work",
          "    for _ in range(times):\n        waiters = yield Load(WAITERS)\n"
           "        yield Acquire(LOCK)\n        work")],
        "nobody can go on",
    ),
]  # fmt: skip
