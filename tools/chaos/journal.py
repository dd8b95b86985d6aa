"""What was acknowledged to a worker: a plain file, written before and after each call, that outlives a SIGKILL.

    ["T", number, [what it writes, ...]]     a transaction is about to be committed (again, after a conflict)
    ["D", number, began, seconds, idle]      it was: acknowledged (`idle`: ms of a long call waiting for a core)
    ["F", number]                            it was refused: nothing of it was written

A number with a "T" behind it and nothing else is undecided: the worker died before it was told. What a transaction
writes, each by its key:

    ["E", node execution]                          ["I", node execution, input, digest]
    ["O", node execution, ordinal, output, digest] ["S", node execution, status, moves]
    ["C", node execution, cost]                    ["G", graph execution, status, moves]
    ["P", node execution, ordinal]                 an output that the database will refuse
    ["K", transaction key, credits]                what a user spends on anything else
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from shmcache.execution_data_client import ExecutionDataClient
from shmcache.identifiers import new_id
from shmcache.records import ExecutionStatus, GraphExecution, InputSource, NodeExecution

T = TypeVar("T")

_LONG_SECONDS = 0.1
_STALL_SECONDS = 0.5
"""A call that takes longer leaves in the log where it is."""

POISON = "poison"
"""An output of this name holds a NUL, which no PostgreSQL takes."""


def digest(value: Any) -> int:
    """Return a checksum of a JSON value that its way through jsonb does not change."""
    return zlib.crc32(json.dumps(_canonical(value), sort_keys=True).encode())


def _canonical(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)  # jsonb keeps 1e3 as 1000
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return value


class _Core:
    """How long this thread could run and had no core to run on, as the kernel counts it; looked at now and then."""

    def __init__(self) -> None:
        try:
            self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._file = -1
        self._looked_at = 0.0
        self._before = 0

    def begin(self, now: float) -> None:
        """A call begins: one of many, so this looks only where the last look is some time ago."""
        if now > self._looked_at + _LONG_SECONDS / 2:
            self._looked_at, self._before = now, self._look()

    def waited_ms(self) -> int:
        """Return how long it was in the call that has just ended, and in those since the last look."""
        return (self._look() - self._before) // 1_000_000

    def _look(self) -> int:
        return int(os.pread(self._file, 100, 0).split()[1]) if self._file >= 0 else 0


class JournalingClient:
    """A client that journals what it writes. It has the calls that a `Manager` makes; `for_manager` says so.

    One for each thread. `show_stalls` has a long call leave in the log where it is, for which it takes SIGALRM."""

    def __init__(self, client: ExecutionDataClient, path: Path, *, show_stalls: bool = True) -> None:
        self._client = client
        self._stall_seconds = _STALL_SECONDS if show_stalls else 0.0
        # Unbuffered, one write a line: what was written is the kernel's, whatever becomes of this process.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._number = 0
        self._writes: list[list[Any]] | None = None
        self._core = _Core()
        if show_stalls:
            faulthandler.register(signal.SIGALRM, sys.__stderr__ or 2, all_threads=False)

    def for_manager(self) -> ExecutionDataClient:
        """Return this client as what it stands for."""
        return cast("ExecutionDataClient", self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def atomically(self, work: Callable[[], T], *, durable: bool = False, urgent: bool = False) -> T:
        """See ExecutionDataClient."""
        if self._writes is not None:
            return work()
        self._number += 1
        number = self._number

        def journaled() -> T:
            self._writes = []
            result = work()
            self._note(["T", number, self._writes])
            return result

        began = time.monotonic()
        self._core.begin(began)
        if self._stall_seconds:
            signal.setitimer(signal.ITIMER_REAL, self._stall_seconds)
        try:
            result = self._client.atomically(journaled, durable=durable, urgent=urgent)
        except BaseException:
            self._note(["F", number])
            raise
        finally:
            self._writes = None
            if self._stall_seconds:
                signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.monotonic() - began
        idle = [self._core.waited_ms()] if seconds > _LONG_SECONDS else []
        self._note(["D", number, round(began, 4), round(seconds, 4), *idle])
        return result

    def create_graph_execution(self, graph_id: str, user_id: str) -> GraphExecution:
        """See ExecutionDataClient."""

        def create() -> GraphExecution:
            made = self._client.create_graph_execution(graph_id, user_id)
            self._write("G", made.id, made.status, made.moves)
            return made

        return self.atomically(create)

    def upsert_execution_input(
        self,
        node_id: str,
        graph_exec_id: str,
        input_name: str | None,
        input_data: Any = None,
        node_exec_id: str | None = None,
        source: InputSource | None = None,
    ) -> tuple[str, Mapping[str, Any]]:
        """See ExecutionDataClient."""

        def upsert() -> tuple[str, Mapping[str, Any]]:
            identifier, inputs = self._client.upsert_execution_input(
                node_id, graph_exec_id, input_name, input_data, node_exec_id, source
            )
            if input_name is None:
                self._write("E", identifier)
            else:
                self._write("I", identifier, input_name, digest(inputs[input_name]))
            return identifier, inputs

        return self.atomically(upsert)

    def upsert_execution_output(
        self, node_exec_id: str, output_name: str, output_data: Any, *, ordinal: int
    ) -> NodeExecution:
        """See ExecutionDataClient."""

        def upsert() -> NodeExecution:
            execution = self._client.upsert_execution_output(node_exec_id, output_name, output_data, ordinal=ordinal)
            if output_name == POISON:
                self._write("P", node_exec_id, ordinal)
            else:
                self._write("O", node_exec_id, ordinal, output_name, digest(output_data))
            return execution

        return self.atomically(upsert)

    def update_node_execution_status(
        self,
        node_exec_id: str,
        status: ExecutionStatus,
        execution_data: Mapping[str, Any] | None = None,
        stats: Mapping[str, Any] | None = None,
    ) -> NodeExecution:
        """See ExecutionDataClient."""

        def update() -> NodeExecution:
            execution = self._client.update_node_execution_status(node_exec_id, status, execution_data, stats)
            self._write("S", node_exec_id, execution.status, execution.moves)
            return execution

        return self.atomically(update)

    def update_graph_execution_stats(
        self, graph_exec_id: str, status: ExecutionStatus | None = None, stats: Mapping[str, Any] | None = None
    ) -> GraphExecution:
        """See ExecutionDataClient."""

        def update() -> GraphExecution:
            execution = self._client.update_graph_execution_stats(graph_exec_id, status, stats)
            self._write("G", graph_exec_id, execution.status, execution.moves)
            return execution

        return self.atomically(update)

    def charge_usage(self, node_exec: NodeExecution, execution_count: int, async_mode: bool = True) -> tuple[int, int]:
        """See ExecutionDataClient."""

        def charge() -> tuple[int, int]:
            cost, balance = self._client.charge_usage(node_exec, execution_count, async_mode)
            self._write("C", node_exec.id, cost)
            return cost, balance

        return self.atomically(charge)

    def spend_credits(
        self, user_id: str, cost: int, metadata: Mapping[str, Any] | None = None, transaction_key: str | None = None
    ) -> int:
        """See ExecutionDataClient."""
        key = new_id() if transaction_key is None else transaction_key

        def spend() -> int:
            left = self._client.spend_credits(user_id, cost, metadata, key)
            self._write("K", key, cost)
            return left

        return self.atomically(spend)

    def close_journal(self) -> None:
        """Close the file; the client stays open."""
        os.close(self._file)

    def _write(self, *what: Any) -> None:
        assert self._writes is not None
        self._writes.append([*what])

    def _note(self, line: list[Any]) -> None:
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")
