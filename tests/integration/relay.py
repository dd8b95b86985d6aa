"""A relay between a client and PostgreSQL that counts round trips on the wire, and can lose answers."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Relay:
    """Listens on a unix socket in `directory` and passes everything to the server that `url` names.

    A round trip begins when the client sends something after the server has spoken, or first of all.

    `lose(statement, times)`: so many times, when a client has sent the statement and the server has answered, the
    answer is thrown away and the connection cut. `lost` counts them."""

    def __init__(self, url: str, directory: Path) -> None:
        self._target = f"{conninfo_to_dict(url)['host']}/.s.PGSQL.5432"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / ".s.PGSQL.5432"))
        self._listener.listen()
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self.url = make_conninfo(url, host=str(directory))
        self.round_trips = 0
        self.lost = 0
        self._losing = (b"", 0)

    def lose(self, statement: bytes, times: int) -> None:
        """Lose the answers to a statement so many times, from now on."""
        self._losing = (statement, self.lost + times)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.close()
        self._thread.join()
        self._stopped.close()
        self._listener.close()

    def _run(self) -> None:
        peers: dict[socket.socket, socket.socket] = {}
        clients: set[socket.socket] = set()
        answered: set[socket.socket] = set()
        doomed: set[socket.socket] = set()
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stopped, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    ready = key.fileobj
                    assert isinstance(ready, socket.socket)
                    if ready is self._stopped:
                        for each in peers:
                            each.close()
                        return
                    if ready is self._listener:
                        client, _ = self._listener.accept()
                        server = socket.socket(socket.AF_UNIX)
                        server.connect(self._target)
                        peers.update({client: server, server: client})
                        clients.add(client)
                        answered.add(client)
                        selector.register(client, selectors.EVENT_READ)
                        selector.register(server, selectors.EVENT_READ)
                        continue
                    if ready not in peers:
                        continue
                    data = b""
                    with contextlib.suppress(ConnectionError):
                        data = ready.recv(1 << 16)
                    other = peers[ready]
                    if other in doomed:  # the server's answer
                        doomed.discard(other)
                        data = b""
                    if not data:
                        for each in (ready, other):
                            selector.unregister(each)
                            each.close()
                            del peers[each]
                        continue
                    if ready in clients:
                        if ready in answered and data[:1] != b"X":  # "X" is goodbye: nobody waits for an answer
                            self.round_trips += 1
                        answered.discard(ready)
                        statement, until = self._losing
                        if self.lost < until and statement in data:
                            self.lost += 1
                            doomed.add(ready)
                    else:
                        answered.add(other)
                    with contextlib.suppress(ConnectionError):
                        other.sendall(data)
