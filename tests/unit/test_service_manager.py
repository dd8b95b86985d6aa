"""What systemd is told: over a real datagram socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.service_manager import ServiceManager


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a service manager, named in the environment."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(10)
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def lines(told: socket.socket) -> list[str]:
    """Return the next message."""
    return told.recv(4096).decode().split("\n")


def test_the_beginning_a_reload_and_the_end_are_told(told: socket.socket) -> None:
    service = ServiceManager()
    service.ready("2 workers")
    assert lines(told) == ["READY=1", "STATUS=2 workers"]
    before = time.monotonic_ns() // 1000
    service.reloading()
    reloading = lines(told)
    assert reloading[0] == "RELOADING=1"
    name, _, value = reloading[1].partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000
    service.stopping()
    assert lines(told)[0] == "STOPPING=1"


def test_no_child_can_speak_for_the_supervisor(told: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    ServiceManager()
    assert {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}.isdisjoint(os.environ)


def test_the_watchdog_is_patted_twice_in_its_time_and_only_if_it_is_ours(
    told: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    service = ServiceManager()
    began = time.monotonic()
    patted = 0
    told.settimeout(0)
    while time.monotonic() < began + 1 or patted < 3:
        service.pat()
        try:
            assert lines(told) == ["WATCHDOG=1"]
            patted += 1
        except BlockingIOError:
            pass
    assert patted <= (time.monotonic() - began) / 0.1 + 1
    monkeypatch.setenv("NOTIFY_SOCKET", told.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "1")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    ServiceManager().pat()
    with pytest.raises(BlockingIOError):
        told.recv(4096)


def test_an_abstract_socket_is_spoken_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(10)
        listener.bind(f"\0shmcache-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@shmcache-test-{os.getpid()}")
        ServiceManager().ready("here")
        assert lines(listener)[0] == "READY=1"


def test_a_manager_that_does_not_listen_stops_nobody(
    told: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2")
    service = ServiceManager()
    while "cannot tell the service manager (WATCHDOG=1)" not in caplog.text:
        service.pat()  # until its queue is full, and once more
    told.recv(4096)
    caplog.clear()
    service.ready("it listens again")
    assert caplog.text == ""


def test_without_a_manager_or_with_one_that_is_gone_nothing_is_raised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ServiceManager().ready("nobody asked")
    assert caplog.text == ""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    ServiceManager().ready("nobody hears")
    assert "cannot tell the service manager" in caplog.text
