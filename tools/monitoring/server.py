"""The HTTP server of a supervisor: `/` for people, `/metrics` for Prometheus, `/healthz` and `/readyz` for probes.

    its process    a child of the supervisor, role `metrics`: forked like a worker, without a lane, its mapping of the
                   arena made read-only; threads begin after the fork, and it forks nothing
    its figures    all from the arena's memory: no worker is asked, none waits

Without a token it listens on loopback only. With one, `/` and `/metrics` want it, as a bearer token or as the password
of HTTP's basic authentication (any user), which browsers ask for; probes need none, and are told no reasons then.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from importlib.resources import files
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from shmcache.arena.view import View
from shmcache.errors import ArenaError
from tools.monitoring.endpoint import Endpoint
from tools.monitoring.exposition import SnapshotCollector
from tools.monitoring.figures import Watch
from tools.monitoring.page import as_json
from tools.monitoring.reader import Reader, Snapshot
from tools.monitoring.readiness import problems
from tools.processes import ShouldStop

logger = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
_FRESH_SECONDS = 0.5
_REQUEST_SECONDS = 10.0
_MOST_REQUESTS = 32
_RETRY_SECONDS = 1.0


def serve(view: View, where: Endpoint, should_stop: ShouldStop, *, is_cached: bool) -> None:
    """Serve until the process is asked to end, come what may: work goes on without being seen."""
    watch = Watch(Reader(view))
    threading.Thread(target=_look_on, args=(watch,), daemon=True).start()
    while not should_stop():
        try:
            _serve(watch, where, should_stop, is_cached=is_cached)
        except Exception as error:
            logger.warning("status page and metrics on %s: %s; trying again", where.url, error)
            time.sleep(_RETRY_SECONDS)


def _serve(watch: Watch, where: Endpoint, should_stop: ShouldStop, *, is_cached: bool) -> None:
    with make_server(
        where.host, where.port, App(watch, where.token, is_cached=is_cached), _server(where), _Quiet
    ) as web:
        assert isinstance(web, _Server)
        web.should_stop = should_stop
        logger.info("status page and metrics on %s", where.url)
        web.serve_forever()


def _look_on(watch: Watch) -> None:
    """Look every other second, so that a page that is opened has the last minutes to show."""
    while True:
        try:
            watch.look(LOOK_SECONDS / 2)
        except (ArenaError, ValueError, IndexError) as error:
            logger.debug("cannot read the arena: %s", error)
        time.sleep(LOOK_SECONDS)


class App:
    """The pages, as a WSGI application."""

    def __init__(self, watch: Watch, token: str | None, *, is_cached: bool = True) -> None:
        self._watch = watch
        self._token = token
        self._is_cached = is_cached
        self._page = files("tools.monitoring").joinpath("page.html").read_text(encoding="utf-8")
        registry = CollectorRegistry()
        registry.register(SnapshotCollector(lambda: watch.look(_FRESH_SECONDS)[0], self._problems, is_cached=is_cached))
        self._metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)
        self._open: dict[str, Callable[[WSGIEnvironment], tuple[int, Any]]] = {
            "/healthz": self._health, "/readyz": self._readiness,
        }  # fmt: skip

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        path = environ.get("PATH_INFO", "/")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _answer(start, "405 Method Not Allowed", "there is nothing to change here\n", ("Allow", "GET, HEAD"))
        try:
            if path in self._open:
                code, said = self._open[path](environ)
                return _answer(start, _STATUS[code], json.dumps(said) + "\n", kind="application/json")
            if path not in ("/", "/figures.json", "/metrics"):
                return _answer(start, "404 Not Found", "there are /, /metrics, /healthz and /readyz\n")
            if not self._may(environ):
                return _answer(
                    start, "401 Unauthorized", "the token is missing or wrong (SHMCACHE_METRICS_TOKEN)\n",
                    ("WWW-Authenticate", 'Basic realm="shmcache", charset="UTF-8"'),
                )  # fmt: skip
            if path == "/metrics":
                return self._metrics(environ, start)
            if path == "/":
                return _answer(start, _STATUS[200], self._page, ("Content-Security-Policy", _policy(self._page)),
                               kind="text/html")  # fmt: skip
            snapshot, figures = self._watch.look(_FRESH_SECONDS)
            said = as_json(snapshot, figures, self._watch.points(), self._problems(snapshot))
            return _answer(start, _STATUS[200], json.dumps(said), kind="application/json")
        except (ArenaError, ValueError, IndexError) as error:
            return _answer(start, _STATUS[503], f"the arena cannot be read: {error}\n")

    def _problems(self, snapshot: Snapshot) -> list[str]:
        return problems(snapshot, is_cached=self._is_cached)

    def _health(self, _environ: WSGIEnvironment) -> tuple[int, Any]:
        return 200, {"status": "ok"}

    def _readiness(self, environ: WSGIEnvironment) -> tuple[int, Any]:
        try:
            reasons = self._problems(self._watch.look(_FRESH_SECONDS)[0])
        except (ArenaError, ValueError, IndexError) as error:
            reasons = [f"the arena cannot be read: {error}"]
        said: dict[str, Any] = {"ready": not reasons}
        if self._may(environ):
            said["reasons"] = reasons
        return 503 if reasons else 200, said

    def _may(self, environ: WSGIEnvironment) -> bool:
        """Say whether a request brings the token, or none is needed."""
        if self._token is None:
            return True
        kind, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif kind.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode(), self._token.encode())


_STATUS = {200: "200 OK", 503: "503 Service Unavailable"}


def _answer(
    start: StartResponse, status: str, text: str, *headers: tuple[str, str], kind: str = "text/plain"
) -> list[bytes]:
    body = text.encode()
    start(status, [
        ("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"), *headers,
    ])  # fmt: skip
    return [body]


def _policy(page: str) -> str:
    """Return what the page may do: run its own script, use its own style, ask its own server."""

    def digests(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'" for part in parts
        )

    return (
        f"default-src 'none'; script-src {digests('script')}; style-src {digests('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    should_stop: ShouldStop = staticmethod(lambda: False)

    def __init__(self, *arguments: Any) -> None:
        self._room = threading.BoundedSemaphore(_MOST_REQUESTS)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Bind, without asking name servers what this host is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; with too many at once, not at all."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that hung up is no event."""

    def service_actions(self) -> None:
        """End with the supervisor, also if its end was missed."""
        if self.should_stop():
            raise SystemExit(0)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = _REQUEST_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that it has
        """Log no requests: a scrape is no event."""

    def address_string(self) -> str:
        """Return who asks, without asking name servers."""
        return str(self.client_address[0])


def _server(where: Endpoint) -> type[_Server]:
    return _Server6 if where.family == socket.AF_INET6 else _Server
