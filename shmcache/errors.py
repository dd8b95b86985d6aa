"""Every error that shmcache raises on purpose, in one tree.

Each class keeps what it knows in fields, so that a caller can act on it without reading its text;
the text says what happened, to which arena and to what in it, and what to do. They survive pickling, as what a pool of
processes or a task queue hands back does.
"""

from __future__ import annotations

from typing import Any, Self


class ShmcacheError(Exception):
    """Base of every error that shmcache raises on purpose. `arena` names the one it concerns, if that is known."""

    arena: str = ""

    def of(self, arena_name: str) -> Self:
        """Say in the text which arena it concerns, unless that is known already; return the same error."""
        if arena_name and not self.arena:
            self.arena = arena_name
            self.args = (f"arena {arena_name!r}: {self}",)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[ShmcacheError], arguments: tuple[Any, ...], fields: dict[str, Any]) -> ShmcacheError:
    """Make an error anew from its text and its fields: constructors take what the text is made from."""
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(fields)
    return error


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
            f"no arena named {name!r} on this machine: start what makes it (shmcache serve, or a supervisor of yours), "
            "or check the name (SHMCACHE_ARENA)"
        )
        self.name = self.arena = name


class ArenaEnded(ArenaError):
    """The arena that this process has mapped is no more: its supervisor has drained and removed it."""

    def __init__(self) -> None:
        super().__init__(
            "the arena was drained and removed while this process was not in it: call get_db_client() again, "
            "it attaches to the next one"
        )


class ArenaExists(ArenaError):
    """A segment of this name exists already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"an arena named {name!r} exists already: attach to it, or choose another name")
        self.name = self.arena = name


class ArenaUnusable(ArenaError):
    """A segment is there but cannot be attached: foreign, truncated, of another layout, or not ours."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"arena {name!r} cannot be used: {reason}")
        self.name = self.arena = name
        self.reason = reason


class SharedMemoryTooSmall(ArenaError):
    """Shared memory has no room for the segment. Sizes in bytes."""

    def __init__(self, name: str, needed: int, available: int) -> None:
        super().__init__(
            f"arena {name!r} needs {needed:,} bytes of shared memory and /dev/shm has {available:,} free: "
            "make it smaller (SHMCACHE_ARENA_SIZE), or enlarge /dev/shm (docker run --shm-size)"
        )
        self.name = self.arena = name
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
    """More was written in one transaction than the arena's intent, or a ring, can hold. `problem` says how much."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"{problem}: nothing was written; write less in one step (client.atomically), or make the arena larger"
            " (SHMCACHE_ARENA_SIZE)"
        )
        self.problem = problem


class LockTimeout(ArenaError):
    """A lock was not had in time; `holder_pid` is who held it when the waiting ended."""

    def __init__(self, lock: str, holder_pid: int, waited_seconds: float) -> None:
        super().__init__(
            f"lock {lock!r} was not free after {waited_seconds:.1f} s: process {holder_pid} holds it "
            "(is it stopped, or paused in a debugger?): let it go on, or kill it, then the lock comes back"
        )
        self.lock = lock
        self.holder_pid = holder_pid
        self.waited_seconds = waited_seconds


class RingFull(ArenaError, Unavailable):
    """A ring had no room for an entry within the limit: the database does not keep up, or is away."""

    def __init__(self, ring: str, size: int, waited_seconds: float) -> None:
        super().__init__(
            f"the {ring} ring ({size:,} bytes) stayed full for {waited_seconds:.1f} s: nothing was written; "
            "the syncer is behind or the database is away: see its log and shmcache doctor, or make the arena, and with"
            " it its rings, larger (SHMCACHE_ARENA_SIZE)"
        )
        self.ring = ring
        self.size = size
        self.waited_seconds = waited_seconds


class InvalidValue(ShmcacheError):
    """A value cannot be kept: it is not JSON (text, numbers, true, false, null, lists, objects)."""


class NotFound(ShmcacheError):
    """Neither the arena nor the database has this record."""

    def __init__(self, kind: str, identifier: str, advice: str = "") -> None:
        advice = advice or "check the identifier; what another host wrote is there when that host has synced it"
        super().__init__(f"no {kind} {identifier}: {advice}")
        self.kind = kind
        self.identifier = identifier


class InsufficientBalanceError(ShmcacheError):
    """An account has less than a charge asks for; nothing was charged. Amounts in the smallest unit."""

    def __init__(self, user_id: str, balance: int, amount: int) -> None:
        super().__init__(f"user {user_id} has {balance} credits left and {amount} are needed: top the account up")
        self.user_id = user_id
        self.balance = balance
        self.amount = amount


class TransactionMisused(ShmcacheError):
    """A coroutine was to run inside a transaction, or what belongs inside of one was used outside."""


class ClientClosed(ShmcacheError):
    """An asynchronous client was closed while something was waited for; what was written stays written."""

    def __init__(self) -> None:
        super().__init__("the client was closed while this was waited for; what was written before is not lost")


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
        super().__init__(f"cannot use the database at {address}: {reason} (shmcache doctor looks into it)")
        self.address = address
        self.reason = reason


class Fenced(ShmcacheError):
    """A leader found that another one leads: nothing was written. `epoch` is its own, 0 where that is not known."""

    def __init__(self, role: str, epoch: int) -> None:
        lead = f"epoch {epoch}" if epoch else "its lead"
        super().__init__(
            f"{role}: {lead} is over, another process leads: nothing was written, and what was to be written is"
            " written by that one; stand for election again"
        )
        self.role = role
        self.epoch = epoch


class NotOwner(ShmcacheError):
    """A graph execution belongs to another host, or belonged to one when a row was written: it is not written.

    `token` counts the takings; `seconds` is how long the owner's lease lasts at least, 0 if that is over or unknown."""

    def __init__(self, graph_exec_id: str, arena_id: str, token: int, seconds: float = 0.0) -> None:
        reason = (
            f"whose lease lasts {seconds:.1f} s more: take it when that is over"
            if seconds > 0
            else "which has taken it: nothing that another host writes of it is kept but as a dead letter"
        )
        super().__init__(f"graph execution {graph_exec_id} belongs to arena {arena_id} by token {token}, {reason}")
        self.graph_exec_id = graph_exec_id
        self.arena_id = arena_id
        self.token = token
        self.seconds = seconds


class StillAtWork(Unavailable):
    """A graph execution that this host has lost, and takes again, has work here from before that has not ended."""

    def __init__(self, graph_exec_id: str) -> None:
        super().__init__(
            f"graph execution {graph_exec_id} has work on this host from before it was lost: take it when that ended"
        )
        self.graph_exec_id = graph_exec_id


class FlushTimeout(ShmcacheError):
    """Not everything written before a flush was committed in time. `reached` and `wanted` are sequence numbers."""

    def __init__(self, ring: str, reached: int, wanted: int, waited_seconds: float) -> None:
        super().__init__(
            f"{wanted - reached} entries of the {ring} ring were not committed after {waited_seconds:.1f} s "
            f"(reached {reached} of {wanted}); they stay on the ring and are carried all the same: wait again, or see"
            " the syncer's log and shmcache doctor"
        )
        self.ring = ring
        self.reached = reached
        self.wanted = wanted
        self.waited_seconds = waited_seconds
