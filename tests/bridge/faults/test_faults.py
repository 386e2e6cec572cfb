"""Something real breaks while events flow; afterwards a subscriber has every event or was told what is missing.

`make test-faults` runs these; the default run leaves them out.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path

import nats
import pytest
from harness import NatsServer, run, service, settings, stored, until
from vicibridge.client import Completeness, unpack
from vicibridge.service import Service

from vicifast.testing import FakeCharon

pytestmark = pytest.mark.faults

Break = Callable[[NatsServer], Awaitable[None]]


class Traffic:
    """A charon that sends numbered events and lines without end."""

    def __init__(self, charon: FakeCharon) -> None:
        self.charon = charon
        self.sent = 0

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._flow())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _flow(self) -> None:
        while True:
            for _ in range(5):
                self.sent += 1
                self.charon.emit("ike-updown", {"gw": {"uniqueid": str(self.sent)}})
                self.charon.emit("log", {"group": "IKE", "level": "1", "msg": "x" * 200})
            await asyncio.sleep(0.005)


async def verify(url: str, sent: int, *, whole: bool) -> list[str]:
    """Hold the stream against what was sent: nothing twice, in order, nothing missing untold; return the causes.

    `whole` is that nothing may be missing at all.
    """
    complete = Completeness(from_start=True)
    numbers: list[int] = []
    for message in await stored(url):
        for envelope in unpack(message):
            complete.add(envelope)
            if envelope.event == "ike-updown":
                numbers.append(int(envelope.data["gw"]["uniqueid"]))
    missing = [gap for gap in complete.gaps() if gap.kind == "state"]
    assert not [gap for gap in missing if gap.cause is None], missing
    assert (complete.duplicates, complete.disordered) == (0, 0)
    assert numbers == sorted(set(numbers))
    if whole:
        assert not missing and numbers == list(range(1, sent + 1))
    return [gap.cause or "" for gap in missing]


async def settled(bridge: Service, sent: int) -> None:
    """Wait until all that was sent has arrived, was dropped, or is told; the accounts have to balance all the time."""
    [gateway] = bridge.gateways
    await until(lambda: gateway.events["ike-updown"] == sent, 30)
    await until(lambda: not gateway.state.waiting and not gateway.state.backlog.losses.untold, 30)
    await until(lambda: not gateway.log.in_flight, 30)
    balanced(bridge)


def balanced(bridge: Service) -> None:
    for gateway in bridge.gateways:
        for pipeline, spooled in ((gateway.state, gateway.state.spooled), (gateway.log, 0)):
            counts = pipeline.counts
            assert counts.received == counts.published + counts.dropped + spooled + pipeline.in_flight


async def broken(server: NatsServer, url: str, fault: Break, *, seconds: float = 1.0) -> list[str]:
    """Break something while events flow, for ever or until the fault itself mends it, and verify."""
    async with FakeCharon() as charon, service(settings(url, charon.address)) as bridge:
        traffic = Traffic(charon)
        await charon.registered("log")
        async with traffic.flowing():
            await asyncio.sleep(0.5)
            await fault(server)
            balanced(bridge)
            await asyncio.sleep(seconds)
        await settled(bridge, traffic.sent)
        sent = traffic.sent
    return await verify(server.url, sent, whole=True)


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
    """A network between the bridge and its server that can stop carrying anything, without a word."""

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


def test_black_hole_for_a_while(nats_server: NatsServer) -> None:
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
    """With the probe's defaults."""

    async def test() -> None:
        await nats_server.up()
        wire = Wire(nats_server.port)
        async with wire.laid() as url, FakeCharon() as charon:
            bus = {"servers": [url, nats_server.url], "probe_interval": 2, "probe_timeout": 4}
            async with service(settings(url, charon.address, nats=bus)) as bridge:
                await charon.registered("log")
                await until(lambda: bridge.bus.connected and not bridge.gateways[0].state.waiting)
                traffic = Traffic(charon)
                async with traffic.flowing() if load else nullcontext():
                    wire.carries.clear()
                    await until(lambda: bridge.bus.connects == 2, 10)
                await settled(bridge, traffic.sent)
        await verify(nats_server.url, traffic.sent, whole=True)

    run(test(), 90)


def test_stream_deleted(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, service(settings(nats_server.url, charon.address)) as bridge:
            traffic = Traffic(charon)
            await charon.registered("log")
            async with traffic.flowing():
                await asyncio.sleep(0.5)
                client = await nats.connect(nats_server.url)
                await client.jetstream().delete_stream("VICI")
                await client.close()
                await asyncio.sleep(1)
            await settled(bridge, traffic.sent)
            counts = bridge.gateways[0].state.counts
            assert (counts.published, counts.dropped) == (counts.received, 0)
            first, *_ = [e.seq for m in await stored(nats_server.url) for e in unpack(m)]
            kept = len(await stored(nats_server.url))
            assert kept == counts.received - first + 1

    run(test(), 90)


def test_stream_full_and_given_room(nats_server: NatsServer) -> None:
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


def test_credentials_revoked_and_restored(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server("authorization { users: [{user: admin, password: a}, {user: bridge, password: b}] }")
    config = server.log.with_name("nats.conf")
    text = config.read_text()
    plain = server.url

    async def reload(password: str) -> None:
        config.write_text(text.replace("password: b}", f"password: {password}}}"))
        assert server.process
        server.process.send_signal(signal.SIGHUP)

    async def test() -> None:
        await server.up()
        as_bridge = plain.replace("//", "//bridge:b@")
        async with FakeCharon() as charon, service(settings(as_bridge, charon.address)) as bridge:
            traffic = Traffic(charon)
            await charon.registered("log")
            async with traffic.flowing():
                await asyncio.sleep(0.5)
                await reload("other")
                await until(lambda: not bridge.bus.connected)
                await asyncio.sleep(1)
                await reload("b")
                await until(lambda: bridge.bus.connected)
            await settled(bridge, traffic.sent)
            sent = traffic.sent
        await verify(plain.replace("//", "//admin:a@"), sent, whole=True)

    run(test(), 90)


async def start(config: Path) -> asyncio.subprocess.Process:
    argv = [sys.executable, "-m", "vicibridge", "run", "--config", str(config)]
    return await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.DEVNULL)


def test_bridge_killed_at_random_moments(nats_server: NatsServer, tmp_path: Path) -> None:
    """With the server there, away, and coming back; what was lost is told for the start that lost it."""
    dice = random.Random(6)
    config = tmp_path / "bridge.toml"

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon:
            config.write_text(
                f'[nats]\nservers = ["{nats_server.url}"]\nprobe_interval = 0.3\n[mirror]\nenabled = false\n'
                f'[[gateway]]\nnode = "gw1"\nvici = "{charon.address}"\n'
            )
            traffic = Traffic(charon)
            async with traffic.flowing():
                for turn in range(8):
                    bridge = await start(config)
                    await charon.registered("log")
                    await asyncio.sleep(dice.uniform(0.05, 0.8))
                    if turn % 3 == 1:
                        nats_server.kill()
                        await asyncio.sleep(dice.uniform(0.05, 0.5))
                    bridge.kill()
                    await bridge.wait()
                    await charon.connected(0)
                    if turn % 3 == 2:
                        await nats_server.up()
            await nats_server.up() if nats_server.process is None else None
            bridge = await start(config)
            await charon.registered("log")
            await asyncio.sleep(2)
            bridge.terminate()
            assert await asyncio.wait_for(bridge.wait(), 20) == 0
        causes = await verify(nats_server.url, traffic.sent, whole=False)
        assert set(causes) <= {"the bridge was killed"}

    run(test(), 90)
