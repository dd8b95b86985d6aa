"""A way to the database whose connections are cut, delayed, half-closed or robbed of an answer, for real."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from types import TracebackType
from typing import Any, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_TURN_SECONDS = 0.02


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
        self._peers: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._mute: set[socket.socket] = set()
        self._awaited: set[socket.socket] = set()
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
                    client.shutdown(socket.SHUT_WR)
                self._mute.add(client)

    def _run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._stopped, selectors.EVENT_READ)
        while True:
            ready: list[Any] = [key.fileobj for key, _ in self._selector.select(_TURN_SECONDS)]
            with self._turn:
                if self._stopped in ready:
                    for each in self._peers:
                        each.close()
                    self._selector.close()
                    return
                for each in ready:
                    if each is self._listener:
                        self._accept()
                    elif each in self._peers:
                        self._pass_on(each)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._target)
        except OSError:
            client.close()  # the server is down
            return
        self.accepted += 1
        self._peers.update({client: server, server: client})
        self._clients.add(client)
        for each in (client, server):
            self._selector.register(each, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        target = self._peers[source]
        data = b""
        with contextlib.suppress(OSError):
            data = source.recv(1 << 16)
        if not data:
            self._drop(source if source in self._clients else target, reset=False)
            return
        if source in self._clients:
            # A simple query ("Q", length, text): how psycopg ends a transaction block.
            if self.lose_commit_answers and b"COMMIT\0" in data:
                if self.spare_commits:
                    self.spare_commits -= 1
                else:
                    self.lose_commit_answers -= 1
                    self._awaited.add(source)
        elif target in self._awaited:
            self.lost_answers += 1
            self._drop(target, reset=True)
            return
        elif target in self._mute:
            return
        if self.delay_seconds:
            threading.Event().wait(self.delay_seconds)
        with contextlib.suppress(OSError):
            target.sendall(data)

    def _drop(self, client: socket.socket, *, reset: bool) -> None:
        server = self._peers.pop(client)
        del self._peers[server]
        self._clients.discard(client)
        self._mute.discard(client)
        self._awaited.discard(client)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close sends RST
        for each in (client, server):
            self._selector.unregister(each)
            each.close()
