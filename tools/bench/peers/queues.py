"""Queues between processes, beside the write ring. Each `put` packs as its user would; `take_all` empties the queue."""

from __future__ import annotations

import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from tools.bench.peers.servers import start_redis
from tools.bench.peers.stores import pack, required, unpack

_BYTES = 64 << 20
_STREAM = "writes"


class Queue(ABC):
    """A queue of tuples."""

    name: ClassVar[str]
    settings: ClassVar[str]

    def __init__(self) -> None:
        self._waiting = 0

    def put_all(self, items: Sequence[Any]) -> None:
        """Put every item."""
        self._put_all(items)
        self._waiting += len(items)

    def take_all(self) -> None:
        """Empty the queue."""
        self._take(self._waiting)
        self._waiting = 0

    @abstractmethod
    def _put_all(self, items: Sequence[Any]) -> None: ...

    @abstractmethod
    def _take(self, count: int) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Give back all that it holds."""


class FasterFifo(Queue):
    """faster-fifo, a queue in shared memory written in C++."""

    name = "faster-fifo"
    settings = "64 MiB, msgpack"

    def __init__(self) -> None:
        super().__init__()
        module = required("faster_fifo", "faster-fifo")
        self._queue = module.Queue(max_size_bytes=_BYTES, dumps=pack, loads=unpack)

    def _put_all(self, items: Sequence[Any]) -> None:
        put = self._queue.put
        for item in items:
            put(item)

    def _take(self, count: int) -> None:
        while count > 0:
            count -= len(self._queue.get_many(max_messages_to_get=10_000))

    def close(self) -> None:
        """See Queue."""
        self._queue.close()


class StandardQueue(Queue):
    """`multiprocessing.Queue`: a thread pickles and writes to a pipe."""

    name = "multiprocessing.Queue"
    settings = "put hands over to a thread of the same process, whose work is not in this figure"

    def __init__(self) -> None:
        super().__init__()
        self._queue: Any = multiprocessing.Queue()

    def _put_all(self, items: Sequence[Any]) -> None:
        put = self._queue.put
        for item in items:
            put(item)

    def _take(self, count: int) -> None:
        for _ in range(count):
            self._queue.get()

    def close(self) -> None:
        """See Queue."""
        self.take_all()  # its thread ends only when all is taken
        self._queue.close()
        self._queue.join_thread()


class RedisStream(Queue):
    """A Redis stream over a unix socket."""

    name = "Redis XADD"
    settings = "unix socket, hiredis, msgpack, nothing on disk"

    def __init__(self) -> None:
        super().__init__()
        self._server, redis = start_redis()
        self._client = redis.Redis(unix_socket_path=self._server.socket, single_connection_client=True)

    def _put_all(self, items: Sequence[Any]) -> None:
        add = self._client.xadd
        for item in items:
            add(_STREAM, {"v": pack(item)})

    def _take(self, count: int) -> None:
        del count
        self._client.delete(_STREAM)

    def close(self) -> None:
        """See Queue."""
        self._client.close()
        self._server.stop()


class PipelinedRedisStream(RedisStream):
    """The same, a hundred entries in a round trip: for who may lose a hundred with the process."""

    name = "Redis XADD, pipelined"
    settings = "as Redis XADD; 100 entries a round trip"

    def _put_all(self, items: Sequence[Any]) -> None:
        for begin in range(0, len(items), 100):
            with self._client.pipeline(transaction=False) as pipeline:
                for item in items[begin : begin + 100]:
                    pipeline.xadd(_STREAM, {"v": pack(item)})
                pipeline.execute()


QUEUES: tuple[type[Queue], ...] = (FasterFifo, StandardQueue, RedisStream, PipelinedRedisStream)
