"""A small model of how throughput grows with cores, from two figures that one process gives: the time an operation
takes, and the part of it under the one lock that all processes share.

A closed queueing network with one station and N customers, each thinking for the time outside of the lock; solved
exactly by mean value analysis (Reiser and Lavenberg, 1980):

    R(n) = s * (1 + Q(n-1))      time at the lock, waiting included
    X(n) = n / (R(n) + z)        operations a second
    Q(n) = X(n) * R(n)           how many are at the lock

It assumes a core for each process, as fast as those here; that waiting costs no more than the time waited; that nothing
else is shared (memory bandwidth, the syncer's core); and exponential times, which overstates waiting a little."""

from __future__ import annotations

ASSUMPTIONS = (
    "the model takes a core for each process, as fast as those measured, one lock that all share, no limit of memory "
    "bandwidth, and a syncer and a database that keep up"
)


def throughput(processes: int, operation_seconds: float, locked_seconds: float) -> float:
    """Return the operations a second of so many processes together.

    Raises ValueError where the part under the lock is longer than the whole."""
    if not 0 <= locked_seconds <= operation_seconds:
        raise ValueError("an operation is at least as long as its part under the lock")
    waiting = 0.0
    rate = 0.0
    for number in range(1, processes + 1):
        at_lock = locked_seconds * (1 + waiting)
        rate = number / (at_lock + operation_seconds - locked_seconds)
        waiting = rate * at_lock
    return rate
