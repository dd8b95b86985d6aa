"""A snapshot as Prometheus metrics. Every series names its arena; units are base units, counters end in `_total`."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from shmcache.arena.histograms import HISTOGRAMS, Observed
from tools.monitoring.reader import Snapshot

_COUNTERS = {
    "commits": ("commits", "Transactions and single puts that were applied to the arena."),
    "conflicts": ("conflicts", "Transactions that were tried again because another one came first."),
    "evicted": ("evicted_records", "Records that left to make room."),
    "cleaned_slabs": ("cleaned_slabs", "Slabs that were emptied to make room."),
    "reclaimed_work": ("reclaimed_work", "Work entries that came back from processes that died."),
    "blocking_db_operations": ("blocking_database_operations", "Times that an executor waited for the database."),
    "node_runs": ("node_runs", "Node executions that ended."),
    "synced_outputs": ("synced_outputs", "Outputs that were written to the database."),
    "synced_statuses": ("synced_statuses", "Rows of node executions that were written to the database."),
    "dead_letters": ("dead_letters", "Entries that the database refused, kept in the table dead_letters."),
    "retries": ("retries", "Times that a leader waited and tried again because the database was away or busy."),
    "leaders": ("elections", "Times that a syncer began to lead."),
    "charges_settled": ("charges_settled", "Charges that are in the ledger."),
    "charges_in_debt": ("charges_in_debt", "Charges that an account could not pay when they were settled."),
    "debt_credits": ("debt_credits", "Credits that accounts came to owe by them."),
    "pool_replaced": ("charge_pools_replaced", "Charge pools that were replaced because one of their processes died."),
    "restarts": ("process_restarts", "Processes that the supervisor started again."),
    "recoveries": ("recoveries", "Commits of processes that died inside, finished or undone by who came next."),
}  # fmt: skip

_HISTOGRAMS = {
    "sync_lag_seconds": (
        "From when an entry was put on a ring to when it was in the database.",
        {"write": "write_lag_seconds", "charge": "charge_lag_seconds"},
    ),
    "batch_commit_seconds": (
        "How long a batch took to be in the database.",
        {"write": "write_commit_seconds", "charge": "charge_commit_seconds"},
    ),
    "batch_entries": (
        "How many entries a batch had.",
        {"write": "write_batch_entries", "charge": "charge_batch_entries"},
    ),
    "credit_hold_seconds": ("From when credits were held to when that was settled or voided.", {"": "hold_seconds"}),
}


class SnapshotCollector(Collector):
    """What a registry collects: metrics of a snapshot that is taken when it asks.

    `problems` says what is wrong, for `shmcache_ready`."""

    def __init__(
        self, take: Callable[[], Snapshot], problems: Callable[[Snapshot], Sequence[str]], *, is_cached: bool = True
    ) -> None:
        self._take = take
        self._problems = problems
        self._is_cached = is_cached

    def describe(self) -> Iterable[Metric]:
        """Return nothing: names are not checked beforehand, as that takes a snapshot."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of a new snapshot."""
        snapshot = self._take()
        yield from families(snapshot, ready=not self._problems(snapshot), is_cached=self._is_cached)


def families(snapshot: Snapshot, *, ready: bool, is_cached: bool = True) -> Iterable[Metric]:
    """Return a snapshot's metrics; who leads the rings only where somebody is to."""
    yield _gauge(
        snapshot, "arena_info", "The arena, and the version of shmcache that runs it.", ("arena_id", "version"),
        [(snapshot.arena_id, _version())], [1],
    )  # fmt: skip
    yield _single(snapshot, "ready", "1 if nothing is wrong, as /readyz says it; else 0.", ready)
    yield from _memory(snapshot)
    yield from _rings(snapshot)
    if is_cached:
        names = [(ring.name,) for ring in snapshot.rings]
        yield _gauge(
            snapshot, "leader", "1 if a process drains the ring; else 0.", ("ring",), names,
            [bool(ring.leader_pid) for ring in snapshot.rings],
        )  # fmt: skip
    yield from _processes(snapshot)
    yield _single(snapshot, "work_outstanding", "Entries of the work queue, waiting or in work.",
                  snapshot.work_outstanding)  # fmt: skip
    of_accounts = snapshot.credits
    yield _single(snapshot, "accounts", "Accounts that the arena has.", of_accounts.accounts)
    yield _single(snapshot, "held_credits", "Credits that this arena holds for what is not settled.", of_accounts.held)
    yield _single(snapshot, "accounts_in_debt", "Accounts of the arena that owe.", of_accounts.in_debt)
    yield _single(snapshot, "owed_credits", "Credits that they owe in all.", of_accounts.owed)
    yield _gets(snapshot)
    for counter, (name, text) in _COUNTERS.items():
        family = CounterMetricFamily(f"shmcache_{name}", text, labels=("arena",))
        family.add_metric((snapshot.arena,), snapshot.counters[counter])
        yield family
    for name, (text, sources) in _HISTOGRAMS.items():
        yield _histogram(snapshot, name, text, sources)


def _memory(snapshot: Snapshot) -> Iterable[Metric]:
    yield _single(snapshot, "arena_size_bytes", "Size of the whole segment.", snapshot.size)
    yield _single(snapshot, "records", "Records in the arena.", snapshot.occupancy.records)
    yield _single(snapshot, "unsynced_records", "Records with a write that is not in the database yet.",
                  snapshot.occupancy.records_dirty)  # fmt: skip
    parts = [fill for fill in snapshot.fills if fill.is_bytes]
    pieces = [fill for fill in snapshot.fills if not fill.is_bytes]
    names, piece_names = [(fill.name,) for fill in parts], [(fill.name,) for fill in pieces]
    yield _gauge(snapshot, "region_used_bytes", "Bytes in use in a part of the arena.", ("region",), names,
                 [fill.used for fill in parts])  # fmt: skip
    yield _gauge(snapshot, "region_size_bytes", "Bytes that a part of the arena has.", ("region",), names,
                 [fill.size for fill in parts])  # fmt: skip
    yield _gauge(snapshot, "slots_used", "Entries of the table, or lanes of processes, in use.", ("region",),
                 piece_names, [fill.used for fill in pieces])  # fmt: skip
    yield _gauge(snapshot, "slots", "Entries of the table, or lanes, that there are; entries grow when needed.",
                 ("region",), piece_names, [fill.size for fill in pieces])  # fmt: skip


def _rings(snapshot: Snapshot) -> Iterable[Metric]:
    rings = snapshot.rings
    names = [(ring.name,) for ring in rings]
    for name, text, values in (
        ("ring_size_bytes", "Size of a ring.", [ring.size for ring in rings]),
        ("ring_used_bytes", "Bytes of a ring that are not in the database yet.", [ring.used_bytes for ring in rings]),
        ("ring_entries", "Entries of a ring that are not in the database yet.", [ring.entries for ring in rings]),
        ("ring_oldest_entry_age_seconds", "How long the oldest of them waits; 0 without any.",
         [ring.oldest_seconds for ring in rings]),
        ("leader_epoch", "The epoch of who drains the ring; 0 if nobody does.", [ring.epoch for ring in rings]),
    ):  # fmt: skip
        yield _gauge(snapshot, name, text, ("ring",), names, values)
    for name, text, values in (
        ("ring_put_entries", "Entries that were put on a ring.", [ring.last_sequence for ring in rings]),
        ("ring_committed_entries", "Entries of a ring that are in the database.",
         [ring.committed_sequence for ring in rings]),
    ):  # fmt: skip
        family = CounterMetricFamily(f"shmcache_{name}", text, labels=("arena", "ring"))
        for ring, value in zip(rings, values, strict=True):
            family.add_metric((snapshot.arena, ring.name), value)
        yield family


def _processes(snapshot: Snapshot) -> Iterable[Metric]:
    processes = Tally((each.role, each.state) for each in snapshot.processes)
    yield _gauge(snapshot, "processes", "Attached processes.", ("role", "state"), list(processes),
                 list(processes.values()))  # fmt: skip
    memory: Tally[str] = Tally()
    for each in snapshot.processes:
        memory[each.role] += each.private_bytes
    yield _gauge(snapshot, "process_private_memory_bytes", "Memory of processes without the arena, by role.",
                 ("role",), [(role,) for role in memory], list(memory.values()))  # fmt: skip
    locks = Tally(each.lock.split()[0] for each in snapshot.locks)
    yield _gauge(snapshot, "locks_held", "Locks that are held, or were left by who died.", ("lock",),
                 [(kind,) for kind in locks], list(locks.values()))  # fmt: skip
    yield _single(snapshot, "locks_contended", "Locks that somebody waits for.",
                  sum(each.waited_for for each in snapshot.locks))  # fmt: skip
    waits = snapshot.waits._asdict()
    yield _gauge(snapshot, "waiting_threads", "Threads that sleep until a ring's head moves, or for work or its end.",
                 ("wait",), [(name,) for name in waits], list(waits.values()))  # fmt: skip


def _gets(snapshot: Snapshot) -> Metric:
    family = CounterMetricFamily(
        "shmcache_gets", "Gets: from what a process keeps decoded, else from the arena.",
        labels=("arena", "layer", "result"),
    )  # fmt: skip
    for layer, result, counter in (
        ("decoded", "hit", "decoded_hits"), ("arena", "hit", "reads"), ("arena", "miss", "misses")
    ):  # fmt: skip
        family.add_metric((snapshot.arena, layer, result), snapshot.counters[counter])
    return family


def _histogram(snapshot: Snapshot, name: str, text: str, sources: dict[str, str]) -> Metric:
    labels = ("arena", "ring") if "" not in sources else ("arena",)
    family = HistogramMetricFamily(f"shmcache_{name}", text, labels=labels)
    for ring, source in sources.items():
        observed = snapshot.histograms[source]
        family.add_metric((snapshot.arena, ring)[: len(labels)], _buckets(source, observed), observed.sum)
    return family


def _buckets(name: str, observed: Observed) -> list[tuple[str, float]]:
    bounds = next(each.bounds for each in HISTOGRAMS if each.name == name)
    return list(zip((*map(repr, bounds), "+Inf"), map(float, accumulate(observed.counts)), strict=True))


def _single(snapshot: Snapshot, name: str, text: str, value: float) -> Metric:
    return _gauge(snapshot, name, text, (), [()], [value])


def _gauge(
    snapshot: Snapshot,
    name: str,
    text: str,
    labels: Sequence[str],
    names: Sequence[Sequence[str]],
    values: Sequence[float],
) -> Metric:
    family = GaugeMetricFamily(f"shmcache_{name}", text, labels=("arena", *labels))
    for labelled, value in zip(names, values, strict=True):
        family.add_metric((snapshot.arena, *labelled), value)
    return family


def _version() -> str:
    try:
        return version("shmcache")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
