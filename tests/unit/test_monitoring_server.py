"""The pages of the metrics server: who may see what, and what is answered when nothing is well."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from wsgiref.simple_server import make_server

import httpx
import pytest
from pydantic import ValidationError

from shmcache.arena import Arena, layout
from shmcache.arena.view import View
from shmcache.config import Settings, load_settings, split_address
from shmcache.errors import SettingsError
from tools.monitoring.endpoint import Endpoint, endpoint
from tools.monitoring.figures import Watch
from tools.monitoring.reader import Reader
from tools.monitoring.server import App, _Quiet, _server

Serve = Callable[..., httpx.Client]
TOKEN = "correct horse battery"


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena.create(f"test-server-{os.getpid()}", 4 << 20)
    made.enter("worker")
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def serve(arena: Arena) -> Iterator[Serve]:
    """Return a function that starts a server in a thread, and gives a client of it."""
    ends = []

    def start(token: str | None = None, *, is_cached: bool = False) -> httpx.Client:
        where = Endpoint("127.0.0.1", 0, token)
        watch = Watch(Reader(View(arena.name)))
        web = make_server(where.host, 0, App(watch, token, is_cached=is_cached), _server(where), _Quiet)
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        client = httpx.Client(base_url=f"http://127.0.0.1:{web.server_port}", timeout=60)

        def end() -> None:
            client.close()
            web.shutdown()
            thread.join()
            web.server_close()
            watch.close()

        ends.append(end)
        return client

    yield start
    for end in ends:
        end()


def test_without_a_token_everything_is_open_and_nothing_can_be_changed(serve: Serve) -> None:
    client = serve()
    for path, kind in (
        ("/", "text/html"), ("/metrics", "text/plain"), ("/figures.json", "application/json"),
        ("/healthz", "application/json"), ("/readyz", "application/json"),
    ):  # fmt: skip
        answer = client.get(path)
        assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, kind)
        assert client.post(path).status_code == 405
    assert client.get("/readyz").json() == {"ready": True, "reasons": []}
    assert client.get("/etc/passwd").status_code == 404
    assert client.head("/healthz").content == b""


def test_with_a_token_only_probes_are_open_and_say_no_more_than_yes_or_no(serve: Serve) -> None:
    client = serve(TOKEN, is_cached=True)
    for path in ("/", "/metrics", "/figures.json"):
        refused = client.get(path)
        assert (refused.status_code, refused.headers["www-authenticate"][:5]) == (401, "Basic")
        assert TOKEN not in refused.text
        for wrong in ("Bearer wrong", "Bearer", f"Digest {TOKEN}", "Basic !!!", "Basic " + _basic("user", "wrong")):
            assert client.get(path, headers={"Authorization": wrong}).status_code == 401
        for right in (f"Bearer {TOKEN}", f"bearer {TOKEN}", "Basic " + _basic("anybody", TOKEN)):
            assert client.get(path, headers={"Authorization": right}).status_code == 200
    assert client.get("/healthz").json() == {"status": "ok"}
    unready = client.get("/readyz")
    assert (unready.status_code, unready.json()) == (503, {"ready": False})
    told = client.get("/readyz", headers={"Authorization": f"Bearer {TOKEN}"})
    assert "no syncer leads: the write ring is not drained" in told.json()["reasons"]


def _basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def test_an_arena_that_is_too_damaged_to_read_is_not_ready_and_keeps_the_server_up(arena: Arena, serve: Serve) -> None:
    client = serve()
    kept = arena._words[layout.ENTRY_SLABS]
    arena._words[layout.ENTRY_SLABS] = (1 << 64) - 1
    try:
        for path in ("/readyz", "/figures.json", "/metrics"):
            answer = client.get(path)
            assert answer.status_code in (200, 503)
        assert client.get("/healthz").status_code == 200
    finally:
        arena._words[layout.ENTRY_SLABS] = kept
    assert client.get("/figures.json").status_code == 200


def test_the_page_may_run_its_own_script_and_nothing_else(serve: Serve) -> None:
    answer = serve().get("/")
    policy = answer.headers["content-security-policy"]
    for tag in ("script", "style"):
        (inline,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"""(src|href)=["'](https?:)?//""", answer.text)
    assert "innerHTML" not in answer.text


def test_figures_are_json_that_the_page_can_read_whatever_a_record_is_called(serve: Serve) -> None:
    said = json.loads(serve().get("/figures.json").text)
    assert said["processes"][0]["role"] == "worker"
    assert {ring["name"] for ring in said["rings"]} == {"write", "charge"}
    assert set(map(len, said["history"].values())) == {len(said["history"]["at"])}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("9464", ("127.0.0.1", 9464)), ("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:80", ("::1", 80)),
        ("localhost:0", ("localhost", 0)),
    ],
)  # fmt: skip
def test_an_address_is_a_port_or_a_host_and_a_port(address: str, said: tuple[str, int]) -> None:
    assert split_address(address) == said


@pytest.mark.parametrize("address", ["", "localhost", ":9464", "::1:9464", "127.0.0.1:", "1.2.3.4:99999", "a:b:1"])
def test_what_is_no_address_is_refused_by_name(address: str) -> None:
    with pytest.raises(SettingsError, match="SHMCACHE_METRICS_ADDRESS"):
        load_settings(metrics_address=address)


def test_without_a_token_it_listens_on_loopback_only() -> None:
    assert endpoint(load_settings()) is None
    for address in ("127.0.0.1:0", "0", "localhost:0", *(["[::1]:0"] if _has_ipv6() else [])):
        assert endpoint(load_settings(metrics_address=address)) is not None
    for address in ("0.0.0.0:0", "[::]:0"):
        with pytest.raises(SettingsError, match="SHMCACHE_METRICS_TOKEN"):
            endpoint(load_settings(metrics_address=address))
    with pytest.raises(SettingsError, match="is no address"):
        endpoint(load_settings(metrics_address="no such host:1"))


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_a_port_that_is_taken_is_said_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on {port}: Address already in use"):
            endpoint(load_settings(metrics_address=str(port)))


def test_a_token_is_long_enough_and_never_shown() -> None:
    settings = load_settings(metrics_token=TOKEN)
    assert TOKEN not in repr(settings)
    with pytest.raises(ValidationError):
        Settings(metrics_token="short")
    with pytest.raises(SettingsError, match="SHMCACHE_METRICS_TOKEN") as refused:
        load_settings(metrics_token="short")
    assert "short'" not in str(refused.value)
