"""Every error that shmcache raises on purpose, in one tree.

Each class keeps what it knows in fields, so that a caller can act on it without reading its text;
the text says what happened, to what, and what to do.
"""

from __future__ import annotations


class ShmcacheError(Exception):
    """Base of every error that shmcache raises on purpose."""


class Unavailable(ShmcacheError):
    """Something that is needed is away or behind: the same call may succeed later."""


class SettingsError(ShmcacheError):
    """A setting is unknown or has a value that cannot be used."""


class ArenaError(ShmcacheError):
    """Base of what can go wrong with a shared-memory arena."""


class ArenaMissing(ArenaError):
    """No segment of this name exists."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no arena named {name!r} on this machine: start what makes it, or check the name (SHMCACHE_ARENA)"
        )
        self.name = name


class ArenaExists(ArenaError):
    """A segment of this name exists already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"an arena named {name!r} exists already: attach to it, or choose another name")
        self.name = name


class ArenaUnusable(ArenaError):
    """A segment is there but cannot be attached: foreign, truncated, of another layout, or not ours."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"arena {name!r} cannot be used: {reason}")
        self.name = name
        self.reason = reason


class SharedMemoryTooSmall(ArenaError):
    """Shared memory has no room for the segment. Sizes in bytes."""

    def __init__(self, name: str, needed: int, available: int) -> None:
        super().__init__(
            f"arena {name!r} needs {needed:,} bytes of shared memory and /dev/shm has {available:,} free: "
            "make it smaller (SHMCACHE_ARENA_SIZE), or enlarge /dev/shm (docker run --shm-size)"
        )
        self.name = name
        self.needed = needed
        self.available = available


class ArenaFull(ArenaError):
    """No room for a record: everything left is unsynced, pinned or in use. `needed` in bytes."""

    def __init__(self, needed: int, reason: str) -> None:
        super().__init__(
            f"the arena has no room for {needed:,} more bytes: {reason}; make it larger (SHMCACHE_ARENA_SIZE)"
        )
        self.needed = needed
        self.reason = reason


class ArenaDamaged(ArenaError):
    """Words of the segment hold what no process of ours writes: another program, or faulty memory, changed them."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"the arena's memory was damaged from outside: {problem}; stop its processes, drain it (shmcache drain) "
            "and let the next supervisor make a new one"
        )
        self.problem = problem


class TransactionTooLarge(ArenaError):
    """More was written in one transaction than the arena's intent can hold."""


class LockTimeout(ArenaError):
    """A lock was not had in time; `holder_pid` is who held it when the waiting ended."""

    def __init__(self, lock: str, holder_pid: int, waited_seconds: float) -> None:
        super().__init__(
            f"lock {lock!r} was not free after {waited_seconds:.1f} s: process {holder_pid} holds it "
            "(is it stopped, or paused in a debugger?)"
        )
        self.lock = lock
        self.holder_pid = holder_pid
        self.waited_seconds = waited_seconds


class RingFull(ArenaError, Unavailable):
    """A ring had no room for an entry within the limit: the database does not keep up, or is away."""

    def __init__(self, ring: str, size: int, waited_seconds: float) -> None:
        super().__init__(
            f"the {ring} ring ({size:,} bytes) stayed full for {waited_seconds:.1f} s: nothing was written; "
            "the syncer is behind or the database is away"
        )
        self.ring = ring
        self.size = size
        self.waited_seconds = waited_seconds


class InvalidValue(ShmcacheError):
    """A value cannot be kept: it is not JSON (text, numbers, true, false, null, lists, objects)."""


class NotFound(ShmcacheError):
    """Neither the arena nor the database has this record."""

    def __init__(self, kind: str, identifier: str) -> None:
        super().__init__(f"no {kind} {identifier}")
        self.kind = kind
        self.identifier = identifier


class InsufficientBalanceError(ShmcacheError):
    """An account has less than a charge asks for; nothing was charged. Amounts in the smallest unit."""

    def __init__(self, user_id: str, balance: int, amount: int) -> None:
        super().__init__(f"user {user_id} has {balance} credits left and {amount} are needed: top the account up")
        self.user_id = user_id
        self.balance = balance
        self.amount = amount


class GraphFileError(ShmcacheError):
    """A graph file cannot be run. `place` names where in the file, `problem` what is wrong."""

    def __init__(self, path: str, place: str, problem: str) -> None:
        shown = path if path.isprintable() else ascii(path)
        super().__init__(f"{shown}: {place}: {problem}" if place else f"{shown}: {problem}")
        self.path = path
        self.place = place
        self.problem = problem


class UnknownBlock(ShmcacheError):
    """No block is registered under this id."""

    def __init__(self, block_id: str) -> None:
        super().__init__(f"no block {block_id!r}: is the package that brings it installed?")
        self.block_id = block_id


class BlockError(ShmcacheError):
    """What a built-in block raises when its inputs do not let it do its work."""


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached or used. `address` never holds a password."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"cannot use the database at {address}: {reason}")
        self.address = address
        self.reason = reason


class Fenced(ShmcacheError):
    """A leader found a newer epoch than its own in the database: another one leads, nothing was written."""

    def __init__(self, role: str, epoch: int) -> None:
        super().__init__(f"{role}: epoch {epoch} is over, another process leads")
        self.role = role
        self.epoch = epoch


class FlushTimeout(ShmcacheError):
    """Not everything written before a flush was committed in time. `reached` and `wanted` are sequence numbers."""

    def __init__(self, ring: str, reached: int, wanted: int, waited_seconds: float) -> None:
        super().__init__(
            f"{wanted - reached} entries of the {ring} ring were not committed after {waited_seconds:.1f} s "
            f"(reached {reached} of {wanted}); they stay on the ring"
        )
        self.ring = ring
        self.reached = reached
        self.wanted = wanted
        self.waited_seconds = waited_seconds
