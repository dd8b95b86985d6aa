"""Stores behind a server that the benchmark starts for itself, on a unix socket. Nothing is written to disk."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.bench.method import CORES
from tools.bench.peers.stores import CannotMeasure, Store, pack, required, unpack
from tools.bench.workload import Item

_READY_SECONDS = 20.0
_BATCH = 100


class Server:
    """A server program with a unix socket in a directory of its own."""

    def __init__(self, program: str, package: str, arguments: Callable[[str], list[str]]) -> None:
        found = shutil.which(program)
        if found is None:
            raise CannotMeasure(f"there is no program {program}", f"apt-get install {package}")
        self._directory = tempfile.mkdtemp(prefix=f"bench-{program}-")
        self.socket = str(Path(self._directory) / "socket")
        self._process = subprocess.Popen(
            [found, *arguments(self.socket)],
            cwd=self._directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.sched_setaffinity(self._process.pid, set(CORES))  # where the kernel likes it best: not on ours alone

    def wait(self, is_ready: Callable[[], object], not_yet: tuple[type[Exception], ...]) -> None:
        """Wait until the server answers. Raises CannotMeasure."""
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                is_ready()
                return
            except not_yet as error:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    self.stop()
                    raise CannotMeasure(f"the server does not come up: {error}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End the server and remove its directory."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory)


def start_redis(port: int = 0) -> tuple[Server, Any]:
    """Start a Redis, with a port on loopback too if one is given; return it and the client library.

    Raises CannotMeasure."""
    redis = required("redis", "redis")
    required("hiredis", "hiredis")
    server = Server(
        "redis-server", "redis-server",
        lambda path: [
            "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", path, "--save", "", "--appendonly", "no",
        ],
    )  # fmt: skip
    client = redis.Redis(unix_socket_path=server.socket)
    server.wait(client.ping, (redis.ConnectionError,))
    client.close()
    return server, redis


class Redis(Store):
    """Redis over a unix socket, a round trip for each operation."""

    name = "Redis"
    settings = "unix socket, hiredis, nothing on disk"

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__(items)
        self._server, redis = self._start()
        try:
            self._client = self._connect(redis)
            with self._client.pipeline(transaction=False) as pipeline:
                for item in items:
                    pipeline.set(item.key, pack(item.plain))
                pipeline.execute()
        except BaseException:
            self._server.stop()
            raise

    def _start(self) -> tuple[Server, Any]:
        return start_redis()

    def _connect(self, redis: Any) -> Any:
        return redis.Redis(unix_socket_path=self._server.socket, single_connection_client=True)

    def read_all(self, keys: Sequence[str]) -> None:
        """See Store."""
        get = self._client.get
        for key in keys:
            unpack(get(key))

    def write_all(self, pairs: Sequence[tuple[str, Item]]) -> None:
        """See Store."""
        put = self._client.set
        for key, item in pairs:
            put(key, pack(item.plain))

    def close(self) -> None:
        """See Store."""
        self._client.close()
        self._server.stop()


class PipelinedRedis(Redis):
    """Redis, a hundred operations in a round trip: where the caller knows so many keys beforehand."""

    name = "Redis, pipelined"
    settings = f"as Redis; {_BATCH} operations a round trip (MGET, MSET)"

    def read_all(self, keys: Sequence[str]) -> None:
        """See Store."""
        for begin in range(0, len(keys), _BATCH):
            for value in self._client.mget(keys[begin : begin + _BATCH]):
                unpack(value)

    def write_all(self, pairs: Sequence[tuple[str, Item]]) -> None:
        """See Store."""
        for begin in range(0, len(pairs), _BATCH):
            self._client.mset({key: pack(item.plain) for key, item in pairs[begin : begin + _BATCH]})


class CachingRedis(Redis):
    """Redis with client-side caching: a local copy that the server invalidates."""

    name = "Redis, client-side caching"
    settings = "RESP3 over TCP on loopback (its client caches over no unix socket), room for every key"

    def _start(self) -> tuple[Server, Any]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        return start_redis(self._port)

    def _connect(self, redis: Any) -> Any:
        cache = required("redis.cache", "redis>=5.1")
        # Redis has had the invalidation since 6.0; the client asks for a newer server than distributions have.
        redis.connection.CacheProxyConnection.MIN_ALLOWED_VERSION = "6.0.0"
        size = len(self.items) * 2
        return redis.Redis(host="127.0.0.1", port=self._port, protocol=3, cache_config=cache.CacheConfig(max_size=size))


class Memcached(Store):
    """memcached over a unix socket."""

    name = "memcached"

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__(items)
        try:
            self._module, self.client_name = required("pylibmc", "pylibmc"), "pylibmc"
        except CannotMeasure:
            self._module, self.client_name = required("pymemcache.client.base", "pymemcache"), "pymemcache"
        self._server = Server("memcached", "memcached", lambda path: ["-s", path, "-m", "2048", "-t", "1", *_as_root()])
        try:
            self._client = self._connect()
            self._server.wait(lambda: self._client.set("ready", b"1"), (OSError, *_errors(self._module)))
            for item in items:
                self._client.set(item.key, pack(item.plain))
        except BaseException:
            self._server.stop()
            raise

    def _connect(self) -> Any:
        if self.client_name == "pylibmc":
            return self._module.Client([self._server.socket], binary=True, behaviors={"tcp_nodelay": True})
        return self._module.Client(self._server.socket, no_delay=True, default_noreply=False)

    def read_all(self, keys: Sequence[str]) -> None:
        """See Store."""
        get = self._client.get
        for key in keys:
            unpack(get(key))

    def write_all(self, pairs: Sequence[tuple[str, Item]]) -> None:
        """See Store."""
        put = self._client.set
        for key, item in pairs:
            put(key, pack(item.plain))

    def close(self) -> None:
        """See Store."""
        self._server.stop()


def _as_root() -> list[str]:
    return ["-u", "root"] if os.getuid() == 0 else []


def _errors(module: Any) -> tuple[type[Exception], ...]:
    error = getattr(module, "Error", None)
    return (error,) if isinstance(error, type) and issubclass(error, Exception) else ()
