"""What is to change in the arena, all of it or nothing: gathered first, applied by `Arena.commit`.

A transaction also says what it relied on: the versions of the keys it has read. If another process changed one of them
meanwhile, the commit applies nothing and raises Conflict, and the caller starts again from reading (optimistic
concurrency control, Kung and Robinson, 1981). So no lock is held while an executor thinks, and none can be left behind.
"""

from __future__ import annotations

from typing import NamedTuple


class Conflict(Exception):
    """A key that the transaction relied on was changed by another process: nothing was applied."""


class AlreadySet(Conflict):
    """A key that `SetOnce` was to give a counter has one, or a record, already: nothing was applied."""


class CounterTooLow(Exception):
    """A counter would have gone below its limit: nothing was applied. `value` is what it has."""

    def __init__(self, key: bytes, value: int) -> None:
        super().__init__(key, value)
        self.key = key
        self.value = value


class Put(NamedTuple):
    """Store a record under a key; a new key becomes a member of `parent`. `flags` are set on the entry."""

    key: bytes
    record: bytes
    parent: bytes | None = None
    flags: int = 0


class Touch(NamedTuple):
    """Make sure that a key has an entry, with or without a record; set and clear flags on it."""

    key: bytes
    set_flags: int = 0
    clear_flags: int = 0


class Delete(NamedTuple):
    """Forget a key that is no member, has no members, no counter, and is not on the work queue; else nothing
    happens."""

    key: bytes


class Append(NamedTuple):
    """Append an entry to a ring ("write" or "charge")."""

    ring: str
    kind: int
    payload: bytes


class Enqueue(NamedTuple):
    """Put a key on the work queue, counted by `counter`. A key without an entry gets one."""

    key: bytes
    kind: int
    counter: bytes


class Release(NamedTuple):
    """End this process's claim on a key; see `shmcache.arena.work.release`."""

    key: bytes
    counter: bytes
    follow_kind: int


class Add(NamedTuple):
    """Add to the counter of a key, which must have an entry; CounterTooLow if it would go below `minimum`."""

    key: bytes
    amount: int
    minimum: int | None = None


class SetCounter(NamedTuple):
    """Set the counter of a key, which must have an entry."""

    key: bytes
    value: int


class Number(NamedTuple):
    """Give a key the next number of another key's counter, once: a key that has its number keeps it."""

    key: bytes
    counter: bytes


class SetOnce(NamedTuple):
    """Set the counter of a key, not to 0; AlreadySet if it has a counter other than 0, or a record."""

    key: bytes
    value: int


class Clear(NamedTuple):
    """Set the counter of a key to 0 and forget the key like Delete. Conflict if the counter is not `expected`, which is
    0 where there is none; None expects nothing."""

    key: bytes
    expected: int | None


class Exchange(NamedTuple):
    """Give a key a record in place of its counter; nothing happens to a key that has no counter, or 0."""

    key: bytes
    record: bytes


class Rebase(NamedTuple):
    """Move a counter along with what it is reckoned from: `base`, another key's counter, becomes `value`.

    The counter of `key` changes by the difference between `value` and (`base` less `released`). With `versioned`, a key
    whose counter is the version of what `base` has, `value` stands only if it is of a later `version`; else `base` is
    left as it is. Nothing happens where one of the keys has no entry."""

    key: bytes
    base: bytes
    value: int
    released: int = 0
    versioned: bytes | None = None
    version: int = 0


class Advance(NamedTuple):
    """Say that a ring is durable up to `sequence`; Conflict unless it was up to `after` before.

    Who waits for it is woken by the `Ring.advance` that follows the commit."""

    ring: str
    after: int
    sequence: int


Operation = (
    Put
    | Touch
    | Delete
    | Append
    | Enqueue
    | Release
    | Add
    | SetCounter
    | Number
    | SetOnce
    | Clear
    | Exchange
    | Rebase
    | Advance
)


class Transaction:
    """Operations in the order made, and the versions they rely on."""

    __slots__ = ("evictions", "expected", "operations", "plain", "time")

    def __init__(self, plain: bool = False) -> None:
        self.operations: list[Operation] = []
        self.expected: dict[bytes, tuple[int, int]] = {}
        """The version of each key relied on, and where its entry was seen, or 0."""
        self.evictions: int | None = None
        self.plain = plain
        """Whether keys are, or become, plain ones (see `shmcache.arena.stripes`); found out if it is not said."""
        self.time = 0
        """The latest time in what it writes, from `Arena.time_after`; 0: there is none."""

    def keys_concerned(self) -> set[bytes]:
        """Return the keys whose records it changes or relies on."""
        return {*self.expected, *(each.key for each in self.operations if isinstance(each, Put | Delete))}

    def rely_on(self, key: bytes, version: int, entry: int = 0) -> None:
        """Make the commit fail if the key's version is another by then. Version 0: the key has no record.

        With `entry`, where the decoded layer found that version, the commit need not look for the key."""
        self.expected.setdefault(key, (version, entry))


class Outcome(NamedTuple):
    """What a commit did.

    `write_sequence`, `charge_sequence` of the last entries appended, 0 for none     `counters` those asked for
    `written` (entry, version) of each Put, in order"""

    write_sequence: int
    charge_sequence: int
    counters: dict[bytes, int]
    written: list[tuple[int, int]]
