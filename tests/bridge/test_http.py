"""The HTTP endpoints: health, readiness, and clients that must not delay the bridge."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest
from harness import NatsServer, run, service, settings, start_bridge, until
from vicibridge.ops import http
from vicibridge.service import Service

from vicifast.testing import FakeCharon


@pytest.fixture(autouse=True)
def _http(_no_http: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VICIBRIDGE_HTTP__LISTEN", "127.0.0.1:0")


async def fetch(bridge: Service, path: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        with closing(HTTPConnection("127.0.0.1", bridge.web.port, timeout=10)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    return await asyncio.to_thread(get)


async def exchanged(bridge: Service, request: bytes) -> bytes:
    """Return everything that the server sends for the bytes of a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", bridge.web.port)
    writer.write(request)
    response = await reader.read()
    writer.close()
    await writer.wait_closed()
    return response


def test_health_distinguishes_process_nats_and_charon(nats_server: NatsServer, tmp_path: Path) -> None:
    async def test() -> None:
        charon = FakeCharon(tmp_path / "charon.vici")
        async with service(settings(nats_server.url, charon.address)) as bridge:
            await until(lambda: "not connected yet" not in str(bridge.reasons()))
            status, text = await fetch(bridge, "/readyz")
            answer = json.loads(text)
            assert status == 503
            assert (answer["ready"], answer["nats"], answer["charon"]) == (False, False, {"gw1": False})
            assert [reason.split(":")[0] for reason in answer["reasons"]] == ["NATS", "gw1"]
            await nats_server.up()
            await until(lambda: bridge.bus.connected and not bridge.gateways[0].state.trouble)
            status, text = await fetch(bridge, "/readyz")
            assert status == 503 and [reason.split(": ")[:2] for reason in json.loads(text)["reasons"]] == [
                ["gw1", "charon"]
            ]
            assert (await fetch(bridge, "/healthz"))[0] == 200
            async with charon:
                await until(lambda: bridge.gateways[0].reader.up)
                status, text = await fetch(bridge, "/readyz")
                well = {"nats": True, "charon": {"gw1": True}, "events": {"gw1": True}, "mirror": {}}
                well |= {"credentials_expire": {}}
                assert (status, json.loads(text)) == (200, {"ready": True, "reasons": [], **well})
                nats_server.kill()
                await until(lambda: not bridge.bus.connected)
                answer = json.loads((await fetch(bridge, "/readyz"))[1])
                assert (answer["nats"], answer["charon"]) == (False, {"gw1": True})
                assert "vicibridge_nats_up 0.0" in (await fetch(bridge, "/metrics"))[1]

    run(test())


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("jetstream: disabled", "gw1: events: JetStream does not respond: it is disabled in this server"),
        (
            "accounts { A: { users: [{user: a, password: b}] } }\nno_auth_user: a",
            "gw1: events: JetStream not enabled for account (JetStream error 10039)",
        ),
    ],
)
def test_ready_means_that_jetstream_accepts_events(
    make_nats_server: Callable[..., NatsServer], tmp_path: Path, more: str, reason: str
) -> None:
    server = make_nats_server(more)

    async def test() -> None:
        await server.up()
        async with (
            FakeCharon(tmp_path / "charon.vici") as charon,
            service(settings(server.url, charon.address)) as bridge,
        ):
            await until(lambda: bridge.gateways[0].reader.up and "not answered yet" not in str(bridge.reasons()))
            status, text = await fetch(bridge, "/readyz")
            answer = json.loads(text)
            assert (status, answer["nats"], answer["events"]) == (503, True, {"gw1": False})
            [sentence] = answer["reasons"]
            assert sentence.startswith(reason) and "None" not in sentence

    run(test())


def test_address_in_use_is_reported_before_the_start(tmp_path: Path) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            listen = f"127.0.0.1:{taken.getsockname()[1]}"
            bridge = await start_bridge(tmp_path / "none", VICIBRIDGE_HTTP__LISTEN=listen)
            assert bridge.stderr
            assert "No such file" in (await bridge.stderr.read()).decode()
            config = tmp_path / "bridge.toml"
            config.write_text('[nats]\nservers = ["nats://127.0.0.1:1"]')
            begin = time.monotonic()
            bridge = await start_bridge(config, VICIBRIDGE_HTTP__LISTEN=listen)
            assert bridge.stderr
            text = (await bridge.stderr.read()).decode()
            assert f"Error: http.listen: {listen}: " in text and "in use" in text and "Traceback" not in text
            assert await bridge.wait() == 1
            assert time.monotonic() - begin < 10

    run(test())


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK", b'{"status": "ok"}'),
        (b"GET /healthz?a=b HTTP/1.0\r\n\r\n", b"200 OK", b'{"status": "ok"}'),
        (b"HEAD /healthz HTTP/1.1\r\n\r\n", b"200 OK", b""),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found", b"404 Not Found\n"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"501 Unsupported method ('POST')", None),
        (b"GET a b HTTP/1.1\r\n\r\n", b"400 Bad request syntax ('GET a b HTTP/1.1')", None),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70000 + b"\r\n\r\n", b"431 Line too long", None),
    ],
)
def test_http_requests(request_: bytes, status: bytes, body: bytes | None) -> None:
    async def test() -> None:
        async with service(settings("nats://127.0.0.1:1")) as bridge:
            await until(lambda: bridge.web.port)
            head, _, rest = (await exchanged(bridge, request_)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.0 " + status + b"\r\n") and body in (None, rest)
            length = 16 if b"/healthz" in request_ else len(rest)
            assert f"Content-Length: {length}".encode() in head

    run(test())


def test_incomplete_request_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_LONGEST", 0.05)

    async def test() -> None:
        async with service(settings("nats://127.0.0.1:1")) as bridge:
            await until(lambda: bridge.web.port)
            with suppress(ConnectionResetError):
                assert await exchanged(bridge, b"GET /healthz HTTP/1.1\r\n") == b""

    run(test())


@pytest.mark.parametrize("request_", [b"GET /metrics HTTP/1.1\r\n\r\n", b"GET /metr"])
def test_client_that_hangs_does_not_delay_the_stop(monkeypatch: pytest.MonkeyPatch, request_: bytes) -> None:
    """The client reads no response, or sends an incomplete request."""
    large = b"x" * 64_000_000
    monkeypatch.setattr(
        "prometheus_client.exposition.choose_encoder", lambda accept: (lambda registry: large, "text/plain")
    )

    async def test() -> None:
        async with service(settings("nats://127.0.0.1:1")) as bridge:
            await until(lambda: bridge.web.port)
            with socket.create_connection(("127.0.0.1", bridge.web.port)) as client:
                client.sendall(request_)
                server = bridge.web._server
                assert server
                await until(lambda: server._open)
                loop = asyncio.get_running_loop()
                begin = loop.time()
                bridge.web.stop()
                assert loop.time() - begin < 5 and not server._open

    run(test())


def test_listens_on_ipv6_and_a_new_connection_replaces_the_oldest_of_too_many() -> None:
    async def test() -> None:
        async with service(settings("nats://127.0.0.1:1")) as bridge:
            web = http.HttpServer("[::1]:0", bridge)
            await web.start()
            try:
                idle = [await asyncio.open_connection("::1", web.port) for _ in range(http._MOST)]
                assert web._server
                await until(lambda: len(web._server._open) == http._MOST)
                reader, writer = await asyncio.open_connection("::1", web.port)
                writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
                assert b" 200 OK\r\n" in await reader.read()
                writer.close()
                assert await idle[0][0].read() == b""
                assert not idle[1][0].at_eof()
                for _, connection in idle:
                    connection.close()
            finally:
                web.stop()

    run(test())
