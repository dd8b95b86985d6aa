"""The host's work queue for a client that keeps its data elsewhere: entries of the arena without records."""

from __future__ import annotations

from shmcache.arena import Arena, Counter, Transaction
from shmcache.arena.transaction import Delete, Enqueue, Release
from shmcache.execution_data_client import Work, WorkKind
from shmcache.identifiers import id_bytes, id_text


class WorkQueue:
    """Work that any process attached to the arena can take. See `ExecutionDataClient.put_work` and its neighbours."""

    __slots__ = ("_arena",)
    keeps_records = False

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    def put(self, kind: WorkKind, identifier: str, graph_exec_id: str) -> None:
        """Put an entry on the queue; nothing happens if it is on it or claimed already."""
        wanted = Transaction()
        wanted.operations.append(Enqueue(id_bytes(identifier), kind, id_bytes(graph_exec_id)))
        self._arena.commit(wanted)

    def take(self, timeout_seconds: float) -> Work | None:
        """Claim the oldest entry, waiting for one; None after the timeout."""
        claim = self._arena.take_work(timeout_seconds)
        return claim and Work(WorkKind(claim.kind), id_text(claim.key), claim.attempt)

    def end(self, work: Work, graph_exec_id: str) -> None:
        """End a claim; after the graph execution's last, its FINISH entry follows. The entry is forgotten."""
        self._arena.count(Counter.NODE_RUNS, work.kind is WorkKind.RUN)
        wanted = Transaction()
        follow = 0 if work.kind is WorkKind.FINISH else WorkKind.FINISH
        wanted.operations.append(Release(id_bytes(work.id), id_bytes(graph_exec_id), follow))
        if not self.keeps_records:
            wanted.operations.append(Delete(id_bytes(work.id)))
        self._arena.commit(wanted)


class SharedWorkQueue(WorkQueue):
    """The same where the arena has records under the identifiers of the entries: they stay."""

    __slots__ = ()
    keeps_records = True
