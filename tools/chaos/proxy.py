"""A way to the database whose connections are cut, delayed, half-closed or robbed of an answer, for real.

One thread passes everything on. No connection waits for another: what its receiver does not take yet is kept, up to a
limit, beyond which its sender is not listened to.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_TURN_SECONDS = 0.02
_PIECE_BYTES = 1 << 16
_MOST_KEPT_PIECES = 16
_RESET = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds; with it, close sends RST


class _Side:
    """One of the two sockets of a connection, with what is on its way to it: pieces, each with when it is due."""

    def __init__(self, its: socket.socket) -> None:
        its.setblocking(False)
        self.socket = its
        self.peer = self
        self.kept: deque[tuple[float, bytes]] = deque()
        self.has_ended = False
        """It says nothing any more."""
        self.is_mute = False
        """It is told nothing any more."""
        self.is_awaited = False
        """The next that it is told is an answer that gets lost."""

    def interest(self, now: float) -> int:
        """Return what to wait for: its words, unless too many are kept; that it takes some, if some are due."""
        wanted = 0
        if not self.has_ended and len(self.peer.kept) < _MOST_KEPT_PIECES:
            wanted |= selectors.EVENT_READ
        if self.kept and self.kept[0][0] <= now:
            wanted |= selectors.EVENT_WRITE
        return wanted


class Proxy:
    """Listens on a TCP port of the loopback and passes everything to the server that `url` names.

    `cut()` resets all connections. `half_close()` ends what the server says, as a firewall may, and passes on what the
    clients say. `delay_seconds` holds each piece up. `lose_commit_answers` passes the next so many COMMITs on and
    resets the connection in place of the answer (the first `spare_commits` are spared); `lost_answers` counts them."""

    def __init__(self, url: str) -> None:
        parts = conninfo_to_dict(url)
        self._target = f"{parts['host']}/.s.PGSQL.{parts.get('port') or 5432}"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._turn = threading.Lock()
        self._clients: set[_Side] = set()
        self._selector = selectors.DefaultSelector()
        self.port: int = self._listener.getsockname()[1]
        self.url = make_conninfo(url, host="127.0.0.1", port=self.port, sslmode="disable", gssencmode="disable")
        self.delay_seconds = 0.0
        self.lose_commit_answers = 0
        self.spare_commits = 0
        self.lost_answers = 0
        self.accepted = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.send(b"!")  # closing it would say nothing: forked children have it too
        self._thread.join()
        self._stop.close()
        self._stopped.close()
        self._listener.close()

    def cut(self) -> None:
        """Reset all connections, both ways."""
        with self._turn:
            for client in list(self._clients):
                self._drop(client, reset=True)

    def half_close(self) -> None:
        """Let the clients of all connections hear the end of the stream, and the server what they say from now on."""
        with self._turn:
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.socket.shutdown(socket.SHUT_WR)
                client.is_mute = True
                client.kept.clear()

    def _run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._stopped, selectors.EVENT_READ)
        while True:
            ready = self._selector.select(self._arm())
            with self._turn:
                for key, events in ready:
                    if key.fileobj is self._stopped:
                        for client in list(self._clients):
                            self._drop(client, reset=False)
                        self._selector.close()
                        return
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.data.peer is not key.data:  # else it was dropped a moment ago
                        self._serve(key.data, events)

    def _arm(self) -> float:
        """Tell the selector what to wait for; return for how long, in seconds: until a piece is due."""
        with self._turn:
            now = time.monotonic()
            due = now + _TURN_SECONDS
            for client in self._clients:
                for side in (client, client.peer):
                    self._wait_for(side, side.interest(now))
                    if side.kept and side.kept[0][0] > now:
                        due = min(due, side.kept[0][0])
            return due - now

    def _wait_for(self, side: _Side, wanted: int) -> None:
        known = self._selector.get_map().get(side.socket)
        if known is None:
            if wanted:
                self._selector.register(side.socket, wanted, side)
        elif not wanted:
            self._selector.unregister(side.socket)
        elif known.events != wanted:
            self._selector.modify(side.socket, wanted, side)

    def _accept(self) -> None:
        accepted, _ = self._listener.accept()
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.connect(self._target)
        except OSError:
            accepted.close()  # the server is down
            return
        self.accepted += 1
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client, server = _Side(accepted), _Side(connected)
        client.peer, server.peer = server, client
        self._clients.add(client)

    def _serve(self, side: _Side, events: int) -> None:
        client = side if side in self._clients else side.peer
        try:
            if events & selectors.EVENT_READ and not self._hear(side, client):
                return
            if events & selectors.EVENT_WRITE:
                self._tell(side)
            if (side.has_ended and not side.peer.kept) or (side.peer.has_ended and not side.kept):
                self._drop(client, reset=False)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client, reset=False)

    def _hear(self, side: _Side, client: _Side) -> bool:
        """Take what one side says, for the other; return whether the connection is still there."""
        data = side.socket.recv(_PIECE_BYTES)
        if not data:
            side.has_ended = True
        elif side is client:
            # A simple query ("Q", length, text): how psycopg ends a transaction block.
            if self.lose_commit_answers and b"COMMIT\0" in data:
                if self.spare_commits:
                    self.spare_commits -= 1
                else:
                    self.lose_commit_answers -= 1
                    client.is_awaited = True
        elif client.is_awaited:
            self.lost_answers += 1
            self._drop(client, reset=True)
            return False
        if data and not side.peer.is_mute:
            side.peer.kept.append((time.monotonic() + self.delay_seconds, data))
            if not self.delay_seconds and len(side.peer.kept) == 1:
                with contextlib.suppress(BlockingIOError):
                    self._tell(side.peer)
        return True

    @staticmethod
    def _tell(side: _Side) -> None:
        """Give one side the piece that is due."""
        due, data = side.kept.popleft()
        sent = 0
        try:
            sent = side.socket.send(data)
        finally:
            if sent < len(data):
                side.kept.appendleft((due, data[sent:]))

    def _drop(self, client: _Side, *, reset: bool) -> None:
        self._clients.discard(client)
        if reset:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        for side in (client, client.peer):
            self._wait_for(side, 0)
            side.socket.close()
        client.peer.peer = client.peer
        client.peer = client
