"""How the calls of a synchronous client are made for an event loop: what `AsyncExecutionDataClient` is built on.

Each call is a coroutine, so nothing happens before it is awaited. What it may never do is to make the loop wait. Two
kinds of clients do that in two ways (`shmcache.asynchronous.clients`).

Inside of a transaction there is no awaiting. `atomically` runs its function in one piece, because all that it reads
must still be true when it commits: a task that gave way in the middle would let others read and write between its two
halves, and keep this thread's transaction open under their calls. So the function is an ordinary one, its calls are
those of `client.inside`, and a coroutine in it is refused, before anything is written.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, ParamSpec, Self, TypeVar, TypeVarTuple

from shmcache.errors import TransactionMisused
from shmcache.execution_data_client import ExecutionDataClient, Work
from shmcache.patience import patience

T = TypeVar("T")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")


class AsyncCalls(ABC):
    """What every asynchronous client does with the synchronous one it is made from."""

    def __init__(self, client: ExecutionDataClient) -> None:
        self._client = client
        self._transactions: list[Callable[[], Any]] = []
        """The functions of transactions that run at this moment, on any thread."""

    @property
    def inside(self) -> ExecutionDataClient:
        """The client for the function that `atomically` runs: the same calls, which do not block the loop there.

        Raises TransactionMisused anywhere else, where they would."""
        if patience.of_this_thread is None:
            raise TransactionMisused(
                "`client.inside` is for the function given to `await client.atomically(...)`: elsewhere await the "
                "calls of the client itself"
            )
        return self._inside()

    @abstractmethod
    def _inside(self) -> ExecutionDataClient:
        """Return the client whose transaction this thread is in."""

    @abstractmethod
    async def _run(self, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Make a call of `self._client` that leaves nothing to be carried to the database."""

    @abstractmethod
    async def _run_and_carry(self, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Make a call of `self._client`; do as it says about what it wrote (durable, urgent)."""

    @abstractmethod
    async def _take_work(self, timeout_seconds: float) -> Work | None: ...

    @abstractmethod
    async def _wait_durable(self, sequence: int, timeout_seconds: float | None) -> None: ...

    @abstractmethod
    async def _flush(self, timeout_seconds: float | None) -> None: ...

    @abstractmethod
    def stop(self) -> None:
        """What `close` does, for who has no event loop any more: end all threads, close what is open. Blocks."""

    @abstractmethod
    async def _close(self) -> None: ...

    def _outside(self) -> None:
        """Refuse a call that was made inside of a transaction. Asked only while there is one, on whatever thread."""
        if patience.of_this_thread is not None:
            raise TransactionMisused(
                "a call that has to be awaited was made inside of a transaction, where nothing can be awaited: there "
                "the calls are those of `client.inside`, without await. Nothing was written"
            )

    def _in_one_piece(self, work: Callable[[], T]) -> Callable[[], T]:
        """Return a transaction's function, which raises TransactionMisused if it turns out to be a coroutine's."""
        if inspect.iscoroutinefunction(work):
            _refuse_coroutine()

        def run() -> T:
            self._transactions.append(work)
            try:
                result = work()
            finally:
                self._transactions.pop()
            if inspect.isawaitable(result):
                if inspect.iscoroutine(result):
                    result.close()
                _refuse_coroutine()
            return result

        return run

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()


def _refuse_coroutine() -> NoReturn:
    raise TransactionMisused(
        "a transaction's function must not be a coroutine: an await inside would let others read and write between "
        "its two halves. Await first, then give `atomically` a function that calls `client.inside`. Nothing was written"
    )
