"""Faults of NATS while events flow; afterwards a subscriber has every event or a report of the missing ones.

`make test-faults` runs these; the default run leaves them out.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress

import nats
import pytest
from harness import NatsServer, run, stored, until
from traffic import account, scene, settled, verify_but_breaks, verify_numbers, verify_whole
from vicibridge.client import unpack

pytestmark = pytest.mark.faults

Break = Callable[[NatsServer], Awaitable[None]]


async def broken(server: NatsServer, url: str, fault: Break) -> None:
    """Cause a fault while events flow, until the end or until the fault repairs itself, and verify."""
    async with scene(url, reader=server.url) as at:
        async with at.flowing():
            await fault(server)
        await at.settled()
    await verify_whole(server.url, at.traffic.sent)


async def kill(server: NatsServer) -> None:
    for _ in range(3):
        server.kill()
        await asyncio.sleep(0.7)
        await server.up()
        await asyncio.sleep(0.7)


async def restart(server: NatsServer) -> None:
    await asyncio.to_thread(server.stop)
    await server.up()


async def hang(server: NatsServer) -> None:
    server.pause()
    await asyncio.sleep(3)
    server.resume()


@pytest.mark.parametrize("fault", [kill, restart, hang])
def test_server(nats_server: NatsServer, fault: Break) -> None:
    async def test() -> None:
        await nats_server.up()
        await broken(nats_server, nats_server.url, fault)

    run(test(), 90)


class Wire:
    """A network between the bridge and its server that can drop everything silently."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.carries = asyncio.Event()
        self.carries.set()
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Close every connection."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        there = await asyncio.open_connection("127.0.0.1", self._port)
        ways = [asyncio.ensure_future(self._carry(*way)) for way in ((reader, there[1]), (there[0], writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            there[1].close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self.carries.wait()
                writer.write(data)
                await writer.drain()


def test_temporary_black_hole(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        wire = Wire(nats_server.port)

        async def hole(server: NatsServer) -> None:
            wire.carries.clear()
            await asyncio.sleep(4)
            wire.carries.set()

        async with wire.laid() as url:
            await broken(nats_server, url, hole)
            assert wire.connections > 1

    run(test(), 90)


@pytest.mark.parametrize("load", [True, False])
def test_black_hole_is_left_for_the_next_server_within_ten_seconds(nats_server: NatsServer, load: bool) -> None:
    """With the default probe settings."""

    async def test() -> None:
        await nats_server.up()
        wire = Wire(nats_server.port)
        async with wire.laid() as url:
            bus = {"servers": [url, nats_server.url], "probe_interval": 2, "probe_timeout": 4}
            async with scene(url, reader=nats_server.url, nats=bus) as at:
                await until(lambda: not at.bridge.gateways[0].backlog.waiting)
                async with at.flowing() if load else nullcontext():
                    wire.carries.clear()
                    await until(lambda: at.bridge.bus.connects == 2, 10)
                await at.settled()
        await verify_whole(nats_server.url, at.traffic.sent)

    run(test(), 90)


def test_killed_server_is_replaced_by_the_next_one(make_nats_server: Callable[..., NatsServer]) -> None:
    """Each has its own stream: together they have every event, once unless it was not acknowledged."""

    async def test() -> None:
        first, second = make_nats_server(), make_nats_server()
        await first.up()
        await second.up()
        async with scene(first.url, reader=second.url, nats={"servers": [first.url, second.url]}) as at:
            async with at.flowing():
                await until(lambda: at.bridge.bus.connected)
                first.kill()
                await until(lambda: at.bridge.bus.connects == 2)
            await settled(at.bridge, at.traffic.sent)
        await first.up()
        messages = [message for server in (first, second) for message in await stored(server.url)]
        envelopes = [envelope for message in messages for envelope in unpack(message)]
        assert not verify_numbers(envelopes, again=True)
        numbers = {int(one.data["gw"]["uniqueid"]) for one in envelopes if one.event == "ike-updown"}
        assert numbers == set(range(1, at.traffic.sent + 1))
        assert len(envelopes) > len(await stored(second.url)) > 0

    run(test(), 90)


def test_stream_deleted(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with scene(nats_server.url) as at:
            async with at.flowing():
                client = await nats.connect(nats_server.url)
                await client.jetstream().delete_stream("VICI")
                await client.close()
                await asyncio.sleep(0.5)
            await at.settled()
            counts = at.bridge.gateways[0].backlog.counts
            assert (counts.published, counts.dropped) == (counts.received, 0)
            numbers = [envelope.seq for message in await stored(nats_server.url) for envelope in unpack(message)]
            assert numbers == list(range(numbers[0], counts.received + 1))

    run(test(), 90)


def test_full_stream_gets_more_room(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        client = await nats.connect(nats_server.url)
        jetstream = client.jetstream()
        options = {"name": "VICI", "subjects": ["vici.*.event.>", "vici.*.bridge.>"], "discard": "new"}
        await jetstream.add_stream(**options, max_msgs=200)

        async def room(server: NatsServer) -> None:
            await asyncio.sleep(1)
            await jetstream.update_stream(**options, max_msgs=-1)

        await broken(nats_server, nats_server.url, room)
        await client.close()

    run(test(), 90)


def users(permissions: str = "", password: str = "b") -> str:
    bridge = f"{{user: bridge, password: {password}{permissions}}}"
    return f"authorization {{ users: [{{user: admin, password: a}}, {bridge}] }}"


async def reload(server: NatsServer, old: str, new: str) -> None:
    config = server.log.with_name("nats.conf")
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    reloads = server.log.read_text().count("Reloaded server configuration")
    assert server.process
    server.process.send_signal(signal.SIGHUP)
    await until(lambda: server.log.read_text().count("Reloaded server configuration") > reloads)


def test_credentials_revoked_and_restored(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server(users())
    as_bridge, as_admin = (server.url.replace("//", f"//{user}@") for user in ("bridge:b", "admin:a"))

    async def test() -> None:
        await server.up()
        async with scene(as_bridge, reader=as_admin) as at:
            async with at.flowing():
                await reload(server, users(), users(password="other"))
                await until(lambda: not at.bridge.bus.connected)
                await asyncio.sleep(1)
                await reload(server, users(password="other"), users())
                await until(lambda: at.bridge.bus.connected)
            await at.settled()
        await verify_whole(as_admin, at.traffic.sent)

    run(test(), 90)


def test_one_subject_forbidden(make_nats_server: Callable[..., NatsServer]) -> None:
    forbidden = users(', permissions: {publish: {deny: "vici.*.event.ike-updown.secret.>"}}')
    server = make_nats_server(users())
    as_bridge, as_admin = (server.url.replace("//", f"//{user}@") for user in ("bridge:b", "admin:a"))

    async def test() -> None:
        await server.up()
        async with scene(as_bridge, reader=as_admin) as at:
            at.bridge.gateways[0].state._publisher.timeout = 0.3
            async with at.flowing():
                await reload(server, users(), forbidden)
                await until(lambda: at.bridge.bus.connected)
                for _ in range(3):
                    at.charon.emit("ike-updown", {"secret": {"uniqueid": "0"}})
                    await asyncio.sleep(0.2)
                await until(lambda: at.bridge.gateways[0].backlog.counts.dropped == 3)
            at.traffic.sent += 3
            await at.settled()
            at.traffic.sent -= 3
        found = await account(as_admin, at.traffic.sent)
        assert (found.dropped, found.absent) == ({"refused by the server": 3}, [])

    run(test(), 90)


def test_max_payload_lowered(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server("max_payload: 1000000")

    async def test() -> None:
        await server.up()
        async with scene(server.url) as at:
            async with at.flowing():
                await reload(server, "max_payload: 1000000", "max_payload: 4000")
                for _ in range(20):
                    at.traffic.emit(large="x" * 5000)
                    await asyncio.sleep(0.02)
                await until(lambda: at.bridge.gateways[0].backlog.counts.dropped)
                await reload(server, "max_payload: 4000", "max_payload: 1000001")
                at.traffic.emit(large="x" * 5000)
            await at.settled()
        found = await account(server.url, at.traffic.sent)
        assert set(found.dropped) <= {"larger than the server accepts"}
        assert len(found.absent) == found.dropped.total() >= 1

    run(test(), 90)


def test_lame_duck(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server('lame_duck_duration: "30s"\nlame_duck_grace_period: "1s"')

    async def lame_duck(server: NatsServer) -> None:
        process = server.process
        assert process
        process.send_signal(signal.SIGUSR2)
        await asyncio.to_thread(process.wait, 30)
        await server.up()

    async def test() -> None:
        await server.up()
        await broken(server, server.url, lame_duck)

    run(test(), 90)


def test_connection_is_cut_repeatedly(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        wire = Wire(nats_server.port)

        async def cuts(server: NatsServer) -> None:
            for _ in range(20):
                await asyncio.sleep(0.25)
                wire.cut()

        async with wire.laid() as url:
            await broken(nats_server, url, cuts)
            assert wire.connections > 5

    run(test(), 90)


def test_all_connections_are_cut_for_a_minute(nats_server: NatsServer) -> None:
    """The connections to charon and to NATS; no resources remain."""

    async def test() -> None:
        await nats_server.up()
        wire = Wire(nats_server.port)
        async with wire.laid() as url, scene(url, reader=nats_server.url) as at:
            at.traffic.lines = 1
            resources = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
            async with at.flowing():
                for _ in range(20):
                    wire.cut()
                    await asyncio.sleep(1.5)
                    at.charon.drop()
                    at.traffic.breaks_here()
                    await at.heard()
                    await asyncio.sleep(1.5)
            await until(lambda: (len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))) <= resources)
            await at.settled(all_heard=False)
            assert (at.bridge.gateways[0].reader.connects, at.bridge.bus.connects) == (21, 21)
        assert (await verify_but_breaks(nats_server.url, at.traffic)).gone == 20

    run(test(), 150)


def test_subscriber_ten_times_slower_than_the_traffic(nats_server: NatsServer) -> None:
    """It must affect neither other clients nor the bridge."""

    async def test() -> None:
        await nats_server.up()
        async with scene(nats_server.url) as at:
            at.traffic.lines = 100
            reader, writer = await asyncio.open_connection("127.0.0.1", nats_server.port, limit=4096)
            writer.write(b'CONNECT {"verbose":false}\r\nSUB vici.> 1\r\n')
            async with at.flowing():
                for _ in range(30):
                    await reader.read(4096)
                    await asyncio.sleep(0.1)
                assert at.bridge.bus.connects == 1
                assert at.bridge.gateways[0].log.counts.bytes > 30 * 4096 * 10
            await at.settled()
            assert not at.bridge.gateways[0].log.counts.dropped and len(at.reader.of_connections) == 1
            writer.transport.abort()
        await verify_whole(nats_server.url, at.traffic.sent)

    run(test(), 90)
