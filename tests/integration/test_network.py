"""Hosts in network namespaces of their own, with a real network between them and the database: cut, slow and lossy."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from shmcache.arena import Arena
from shmcache.cached_client import CachedClient
from shmcache.config import load_settings
from shmcache.database import queries
from shmcache.database.connection import connect
from shmcache.errors import NotOwner
from shmcache.identifiers import new_id
from shmcache.records import ExecutionStatus
from syncer.sync_manager import SyncManager
from tests.integration.faults import await_true
from tests.integration.test_clients import SINK, SOURCE, small_graph
from tests.integration.test_definition_changes import ask_to_end
from tests.integration.test_ownership import lives, outputs
from tools.chaos.proxy import Proxy

Connection = psycopg.Connection[Any]
InChild = Callable[[Callable[[Callable[[], bool]], None]], int]

GRAPH = small_graph()[0].id
_LEASE_SECONDS = 1.0
_DELAY_SECONDS = 0.005
_NEW_NETWORK = 0x40000000


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need ip(8)"
    probe = f"probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return f"no network namespace can be made here: {made.stderr.strip()}" if made.returncode else None


_reason = _why_not()
pytestmark = pytest.mark.skipif(_reason is not None, reason=_reason or "")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _enter(namespace: str) -> None:
    """Have this process use the network of a namespace."""
    with open(f"/run/netns/{namespace}") as opened:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(opened.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "setns")


class Door(Proxy):
    """The way to the server's socket, on every address of the namespace that it stands in."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._listener.close()
        self._listener = socket.create_server(("", 0))
        self.port = self._listener.getsockname()[1]


class Network:
    """A namespace with the database's door, and one for each host, joined to it by a cable of its own."""

    def __init__(self, database_url: str, in_child: InChild) -> None:
        self._database_url = database_url
        self._prefix = f"shm{os.getpid()}"
        self._hosts = 0
        self.database = f"{self._prefix}-db"
        _ip("netns", "add", self.database)
        reads, writes = os.pipe()

        def serve(should_stop: Callable[[], bool]) -> None:
            _enter(self.database)
            with Door(database_url) as door:
                signal.signal(signal.SIGUSR1, lambda *_: setattr(door, "delay_seconds", _DELAY_SECONDS))
                os.write(writes, door.port.to_bytes(2, "big"))
                while not should_stop():
                    signal.sigtimedwait([], 0.1)

        self._door = in_child(serve)
        self._port = int.from_bytes(os.read(reads, 2), "big")
        os.close(reads)
        os.close(writes)

    def add_host(self) -> tuple[str, str]:
        """Return the namespace of a new host, and the database's address as it is seen from there."""
        self._hosts += 1
        number = self._hosts
        name = f"{self._prefix}-{number}"
        _ip("netns", "add", name)
        _ip("link", "add", f"h{number}", "netns", name, "type", "veth", "peer", "name", f"d{number}",
            "netns", self.database)  # fmt: skip
        for namespace, device, address in ((name, f"h{number}", 2), (self.database, f"d{number}", 1)):
            _ip("-n", namespace, "addr", "add", f"10.77.{number}.{address}/30", "dev", device)
            _ip("-n", namespace, "link", "set", device, "up")
        here = f"10.77.{number}.1"
        url = make_conninfo(
            self._database_url, host=here, port=self._port, sslmode="disable", gssencmode="disable", connect_timeout=2
        )
        return name, url

    def cut(self, number: int) -> None:
        """Take a host's cable out: packets are lost without a word."""
        _ip("-n", self.database, "link", "set", f"d{number}", "down")

    def join(self, number: int) -> None:
        """Put a host's cable in again."""
        _ip("-n", self.database, "link", "set", f"d{number}", "up")

    def spoil(self, number: int) -> None:
        """Have packets to a host delayed and lost; where the kernel has no netem, have the door delay them."""
        netem = ["tc", "qdisc", "add", "dev", f"d{number}", "root", "netem"]
        delay = f"{_DELAY_SECONDS * 1000:g}ms"
        command = ["ip", "netns", "exec", self.database, *netem, "delay", delay, delay, "loss", "10%"]
        if shutil.which("tc") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            os.kill(self._door, signal.SIGUSR1)

    def close(self) -> None:
        """Remove all of it."""
        ask_to_end(self._door)
        for name in (self.database, *(f"{self._prefix}-{number + 1}" for number in range(self._hosts))):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with connect(database_url, application_name="test") as opened:
        queries.save_graph(opened, *small_graph())
        yield opened


@pytest.fixture
def network(database_url: str, in_child: InChild) -> Iterator[Network]:
    made = Network(database_url, in_child)
    yield made
    made.close()


@pytest.fixture
def add_host(
    network: Network, connection: Connection, tmp_path: Path, in_child: InChild, database_url: str
) -> Iterator[Callable[[], tuple[Arena, CachedClient]]]:
    """Return a function that adds a host to the network, whose leader lives in its namespace."""
    with contextlib.ExitStack() as left:

        def add() -> tuple[Arena, CachedClient]:
            namespace, url = network.add_host()
            arena = Arena.create(f"network-{namespace}", 16 << 20)
            left.callback(arena.unlink)
            left.callback(arena.close)
            own = load_settings(state_dir=tmp_path, arena=arena.name, sync_interval=0.05, host_lease=_LEASE_SECONDS)

            def lead(should_stop: Callable[[], bool]) -> None:
                _enter(namespace)
                SyncManager(arena, url, own).run(should_stop)

            left.callback(ask_to_end, in_child(lead))
            await_true(lambda: lives(connection, arena.arena_id))
            return arena, left.enter_context(CachedClient(arena, database_url, own))

        yield add


def begin(client: CachedClient) -> tuple[str, str]:
    run = client.create_graph_execution(GRAPH, new_id()).id
    step, _ = client.upsert_execution_input(SINK, run, "left", 1)
    client.update_node_execution_status(step, ExecutionStatus.RUNNING)
    return run, step


def test_a_host_whose_cable_was_out_for_longer_than_its_lease_writes_only_what_is_its_own(
    network: Network, add_host: Callable[[], tuple[Arena, CachedClient]], connection: Connection
) -> None:
    (one, first), (two, second) = add_host(), add_host()
    (run, step), (other, other_step) = begin(first), begin(first)
    first.upsert_execution_output(step, "out", "in time")
    first.flush()
    with pytest.raises(NotOwner):
        second.take_graph_execution(run)
    network.cut(1)
    first.upsert_execution_output(step, "out", "unheard")
    first.upsert_execution_output(other_step, "out", "kept")
    await_true(lambda: not lives(connection, one.arena_id))
    assert second.take_graph_execution(run) == 2
    second.upsert_execution_output(step, "out", "of the new owner")
    second.update_node_execution_status(step, ExecutionStatus.COMPLETED)
    second.flush()
    connection.execute("UPDATE nodes SET constants = '{\"value\": 8}' WHERE id = %s", (SOURCE,))
    network.join(1)
    first.flush()
    assert outputs(connection, step) == ["in time", "of the new owner"]
    assert outputs(connection, other_step) == ["kept"]
    assert all(run in reason and "token 2" in reason for reason in reasons_of(connection, one))
    assert reasons_of(connection, one)
    assert not reasons_of(connection, two)
    assert first.take_graph_execution(other) == 1
    await_true(lambda: lives(connection, one.arena_id))
    await_true(lambda: first.get_node(SOURCE).constants == {"value": 8})


def reasons_of(connection: Connection, arena: Arena) -> list[str]:
    rows = connection.execute("SELECT error FROM dead_letters WHERE arena_id = %s ORDER BY sequence", (arena.arena_id,))
    return [row[0] for row in rows]


def test_over_a_network_that_loses_and_delays_packets_everything_arrives_once_and_in_order(
    network: Network, add_host: Callable[[], tuple[Arena, CachedClient]], connection: Connection
) -> None:
    _, client = add_host()
    network.spoil(1)
    _, step = begin(client)
    for value in range(300):
        client.upsert_execution_output(step, "out", value, urgent=value % 50 == 0)
    client.flush()
    assert outputs(connection, step) == list(range(300))
