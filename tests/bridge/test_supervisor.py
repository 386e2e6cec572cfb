"""The bus with a real server: it never gives up, and detects failures that nats-py misses."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from harness import NatsServer, observing, processed, run, running, settings, until
from vicibridge.bus.connection import Disconnected, TooLarge
from vicibridge.bus.nats_server import free_port


def test_server_starts_late_and_restarts(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        async with running(settings(nats_server.url)) as bus:
            waiting = asyncio.create_task(bus.connection())
            await asyncio.sleep(0.5)  # several attempts fail meanwhile
            assert not waiting.done()
            await nats_server.up()
            first = await waiting
            nats_server.kill()
            await first.lost()
            with pytest.raises(Disconnected):
                await first.publish("x", b"")
            await nats_server.up()
            assert await bus.connection() is not first
            assert bus.connects == 2

    run(test())
    # one line per change, regardless of the number of attempts
    texts = [record.message for record in caplog.records if record.name == "vicibridge.bus.supervisor"]
    assert len(texts) == 4
    assert "not connected" in texts[0] and "not connected" in texts[2]
    assert texts[1] == texts[3] == f"NATS: connected to {nats_server.url}"


async def greet_and_reset(last: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reply to the first PING as a server does, then send `last` and reset the connection."""
    writer.write(b'INFO {"server_id":"x","version":"2.11.0","max_payload":1048576,"headers":true}\r\n')
    while not (await reader.readline()).startswith(b"PING"):
        pass
    writer.write(b"PONG\r\n")
    await asyncio.sleep(0.02)
    writer.write(last)
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@pytest.mark.parametrize("last", [b"", b"-ERR 'User Authentication Expired'\r\n"])
def test_connection_reset_leaves_no_tasks(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    """nats-py then fails to close completely, leaves its tasks running, and does not report the end."""
    monkeypatch.setattr("vicibridge.bus.supervisor._LONGEST_DELAY", 0.05)

    async def ignore(message: Any) -> None:
        pass

    async def test() -> None:
        server = await asyncio.start_server(partial(greet_and_reset, last), "127.0.0.1", 0)
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with running(settings(url, nats={"probe_interval": 60})) as bus:
            for _ in range(5):
                connection = await bus.connection()
                with suppress(Disconnected):
                    await connection.subscribe("x.y", ignore)
                    while True:
                        for _ in range(20):  # more than the server reads, so that some data is buffered in nats-py
                            await connection.publish("x", b"y" * 10_000)
                        await asyncio.sleep(0)
                await connection.lost()
        server.close()
        await server.wait_closed()
        await until(lambda: len(asyncio.all_tasks()) <= 2)  # this one and its runner

    run(test())
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_hung_server_is_replaced_by_the_next_one(make_nats_server: Callable[..., NatsServer]) -> None:
    """Under load nats-py would wait indefinitely for the hung server (nats-py#671)."""
    hanging, healthy = make_nats_server(), make_nats_server()

    async def test() -> None:
        await hanging.up()
        await healthy.up()
        config = settings(hanging.url, nats={"servers": [hanging.url, healthy.url]})
        async with running(config) as bus:
            connection = await bus.connection()
            hanging.pause()
            begin = time.monotonic()
            block = b"x" * 60_000
            with pytest.raises(Disconnected):
                while True:  # far more than socket buffers take
                    for _ in range(20):
                        await connection.publish("load", block)
                    await connection.fence(60)
            replacement = await bus.connection()
            assert time.monotonic() - begin < 5
            await replacement.fence(2)

    try:
        run(test())
    finally:
        hanging.resume()


def test_hung_server_resumes(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with running(settings(nats_server.url)) as bus:
            connection = await bus.connection()
            nats_server.pause()
            await asyncio.wait_for(connection.lost(), 5)
            nats_server.resume()
            await (await bus.connection()).fence(5)

    run(test())


def test_headers_count_as_payload(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with running(settings(nats_server.url)) as bus, observing(nats_server.url) as observer:
            connection = await bus.connection()
            frame = len("NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n")
            fits = b"x" * (connection.max_payload - frame)
            with pytest.raises(TooLarge):
                await connection.publish("vici.x", fits + b"x", headers={"Nats-Msg-Id": "1"})
            await connection.publish("vici.x", fits, headers={"Nats-Msg-Id": "1"})
            await connection.fence(5)
            assert connection.alive
            await until(lambda: observer.messages)
            assert observer.messages[0].data == fits

    run(test())


def test_fence_means_processed(nats_server: NatsServer) -> None:
    """nats-py's own flush() overtakes messages that were published just before it."""

    async def test() -> None:
        await nats_server.up()
        async with running(settings(nats_server.url)) as bus, observing(nats_server.url) as observer:
            connection = await bus.connection()
            for number in range(300):
                for _ in range(10):
                    await connection.publish("vici.x", b"x" * 5000)
                await connection.fence(5)
                # the server has routed all messages to the other client, which needs a round trip to receive them
                await processed(observer.client)
                assert len(observer.messages) == 10 * (number + 1)

    run(test())


def test_retries_back_off_without_a_server() -> None:
    async def test() -> None:
        config = settings(f"nats://127.0.0.1:{free_port()}")
        async with running(config) as bus:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(bus.connection(), 1)

    begin = time.process_time()
    run(test())
    assert time.process_time() - begin < 0.5
