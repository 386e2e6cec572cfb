"""Messages for which a server would close the connection, and what happens if it does."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import nats
import nats.errors
import pytest
from harness import NatsServer, observing, run, running, service, settings, until, up
from nats.aio.msg import Msg
from nats.js import errors
from vicibridge.bus.connection import NatsConnection, TooLarge, reason_of
from vicibridge.bus.supervisor import ConnectionSupervisor

from vicifast.testing import FakeCharon

LONG = "x" * 5000  # longer than a line of the protocol may be


def test_overlong_subjects_are_reported_and_block_nothing(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            async with service(settings(nats_server.url, charon.address)) as bridge:
                await up(bridge)
                for kind in (LONG, "ok"):
                    charon.emit("alert", {"type": kind})
                    charon.emit("log", {"group": kind, "level": "1", "msg": "x"})
                await observer.sees("event.alert.ok")
                await observer.sees("log.ok.1")
                gaps = [envelope["data"] for _, envelope in await observer.sees("bridge.gap", 2)]
                assert {(gap["class"], gap["cause"], gap["count"]) for gap in gaps} == {
                    ("state", "larger than the server accepts", 1),
                    ("log", "larger than the server accepts", 1),
                }
                [gateway] = bridge.gateways
                assert (gateway.backlog.counts.dropped, gateway.log.counts.dropped) == (1, 1)
                assert bridge.bus.connects == 1

    run(test())


def test_subject_and_reply_count_together(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        bus = ConnectionSupervisor(settings(nats_server.url).nats)
        running = asyncio.create_task(bus.run())
        async with observing(nats_server.url) as observer:
            connection = await bus.connection()
            with pytest.raises(TooLarge):
                await connection.publish("vici." + "x" * 3400, b"", "r" * 100)
            await connection.publish("vici." + "x" * 3400, b"", "r" * 95)
            await connection.fence(5)
            await until(lambda: observer.messages)
            assert connection.alive
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(test())


def test_calls_on_a_draining_connection_raise_disconnected(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with running(settings(nats_server.url)) as bus:
            connection = await bus.connection()
            arrived, go_on = asyncio.Event(), asyncio.Event()

            async def answer(message: Msg) -> None:
                arrived.set()
                await go_on.wait()
                await connection.publish("answer", b"")

            async def subscribe(connection: NatsConnection) -> None:
                await connection.subscribe("other", answer)

            async with observing(nats_server.url, "answer") as observer:
                await connection.subscribe("question", answer)
                await connection.publish("question", b"")
                await arrived.wait()
                closing = asyncio.create_task(bus.close(5))
                await until(lambda: connection.client.is_draining)
                serving = asyncio.create_task(bus.serve(subscribe))
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(serving), 0.3)
                go_on.set()
                await closing
                await until(lambda: observer.messages)
                serving.cancel()

    run(test())


class Greeter:
    """A server that announces a cluster, records the CONNECT, and closes the connection."""

    def __init__(self) -> None:
        self.connects: list[dict[str, Any]] = []
        self.cluster: list[str] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._greet, "127.0.0.1", 0)
        self.host = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": "2.11.0", "max_payload": 1048576, "connect_urls": self.cluster}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        while (line := await reader.readline()) and not line.startswith(b"PING"):
            if line.startswith(b"CONNECT "):
                self.connects.append(json.loads(line.removeprefix(b"CONNECT ")))
        writer.write(b"PONG\r\n")
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


def test_backoff_from_a_server_that_closes_at_once() -> None:
    async def test() -> None:
        server = Greeter()
        await server.start()
        bus = ConnectionSupervisor(settings(f"nats://{server.host}").nats)
        running = asyncio.create_task(bus.run())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(running), 1)
        assert 2 <= bus.connects <= 8
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.stop()

    run(test())


def test_announced_servers_get_its_credentials_and_are_removed_with_it() -> None:
    async def test() -> None:
        first, second = Greeter(), Greeter()
        await first.start()
        await second.start()
        first.cluster = second.cluster = [first.host, second.host, "127.0.0.1:1"]
        bus = ConnectionSupervisor(settings(f"nats://joe:s3cret@{first.host}").nats)
        running = asyncio.create_task(bus.run())
        await until(lambda: second.connects)
        assert (second.connects[0]["user"], second.connects[0]["pass"]) == ("joe", "s3cret")
        assert len(bus._servers) == 3
        first.cluster = second.cluster = [first.host]
        await until(lambda: bus._servers == [f"nats://joe:s3cret@{first.host}"])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await first.stop()
        await second.stop()

    run(test())


OFF = "JetStream does not respond: it is disabled in this server or for this account, or its cluster has no leader"

TWO_ADDRESSES = "Connection refused, No route to host"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.ServiceUnavailableError(), OFF),
        (errors.NoStreamResponseError(), "no stream has this subject, or JetStream is disabled"),
        (errors.APIError(), "JetStream answered with an error without a description"),
        (errors.ServerError(code=500), "JetStream answered with an error without a description (JetStream error 500)"),
        (errors.KeyNotFoundError(), "key not found"),
        (errors.KeyWrongLastSequenceError("wrong last sequence: 3"), "wrong last sequence: 3"),
        (nats.errors.NoRespondersError(), "nothing answers requests on this subject"),
        (nats.errors.TimeoutError(), "no answer in time"),
        (errors.FetchTimeoutError(), "no answer in time"),
        (TimeoutError(), "no answer in time"),
        (TimeoutError("no acknowledgement within 5 seconds"), "no acknowledgement within 5 seconds"),
        (nats.errors.UnexpectedEOF(), "the server closed the connection"),
        (nats.errors.Error("nats: 'authorization violation'"), "'authorization violation'"),
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "Connection refused"),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed (1), [Errno 113] x"), TWO_ADDRESSES),
        (socket.gaierror(-2, "Name or service not known"), "cannot resolve the host name: Name or service not known"),
        (OSError("the server is away"), "the server is away"),
        (ValueError("two\nlines"), "two lines"),
        (ValueError(), "ValueError"),
    ],
)
def test_every_error_is_a_sentence(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def of_nats_py() -> list[type[Exception]]:
    bases = (nats.errors.Error, errors.Error)  # raised with only a text
    found = [each for module in (nats.errors, errors) for each in vars(module).values() if isinstance(each, type)]
    return [each for each in found if issubclass(each, nats.errors.Error) and each not in bases]


@pytest.mark.parametrize("kind", of_nats_py(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_no_nats_py_error_is_only_a_name_or_none(kind: type[Exception]) -> None:
    """Every error that reaches a user is a sentence."""
    error = kind(*(None,) * 4) if kind is nats.errors.SlowConsumerError else kind()
    reason = reason_of(error)
    assert reason == reason.strip() and " " in reason
    assert not any(wrong in reason for wrong in ("None", "nats:", "JetStream.", "<", kind.__name__))


def test_jetstream_errors_are_sentences(make_nats_server: Callable[..., NatsServer]) -> None:
    async def asked(server: NatsServer) -> str:
        await server.up()
        client = await nats.connect(server.url)
        try:
            await client.jetstream().stream_info("VICI")
        except errors.APIError as error:
            return reason_of(error)
        finally:
            await client.close()
        raise AssertionError("there is no such stream")

    assert run(asked(make_nats_server())) == "stream not found (JetStream error 10059)"
    assert run(asked(make_nats_server("jetstream: disabled"))) == OFF
    account = "accounts { A: { users: [{user: a, password: b}] } }\nno_auth_user: a"
    assert run(asked(make_nats_server(account))).startswith("JetStream not enabled for account")
