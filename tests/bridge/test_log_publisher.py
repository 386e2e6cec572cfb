"""The log class: batched per subject, bounded, and every dropped event reported."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from harness import NatsServer, background, observing, run, settings, until
from vicibridge.bus.supervisor import ConnectionSupervisor
from vicibridge.events.log_publisher import LogPublisher
from vicibridge.events.losses import Loss

MIB = 1024 * 1024


class Feed:
    """A publisher and the losses it reported."""

    def __init__(self, bus: ConnectionSupervisor, linger: float, max_bytes: int) -> None:
        self.bus = bus
        self.losses: list[Loss] = []
        self.count = 0
        self.pipeline = LogPublisher(bus, linger, max_bytes, self.losses.append)

    def put(self, count: int, subject: str = "vici.gw1.log.IKE.1", size: int = 8) -> None:
        now = asyncio.get_running_loop().time()
        for _ in range(count):
            self.count += 1
            self.pipeline.put(subject, b"%d\n".rjust(size) % self.count, 1, self.count, self.count, now)

    async def flush(self) -> None:
        await asyncio.wait_for(self.pipeline.flush(), 15)
        assert self.pipeline.in_flight == 0
        assert self.pipeline.counts.received == self.pipeline.counts.published + self.pipeline.counts.dropped


@asynccontextmanager
async def feeding(url: str, linger: float = 0.02, max_bytes: int = 64 * MIB) -> AsyncIterator[Feed]:
    bus = ConnectionSupervisor(settings(url).nats)
    feed = Feed(bus, linger, max_bytes)
    async with background(bus.run(), feed.pipeline.run()):
        yield feed


def test_batches_per_subject(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with feeding(nats_server.url) as feed, observing(nats_server.url) as observer:
            feed.put(3, "vici.gw1.log.IKE.1")
            feed.put(2, "vici.gw1.log.CFG.0")
            feed.put(1, "vici.gw1.log.IKE.1")
            await until(lambda: len(observer.messages) == 2)
            assert [(m.subject, [int(n) for n in m.data.split()]) for m in observer.messages] == [
                ("vici.gw1.log.IKE.1", [1, 2, 3, 6]),
                ("vici.gw1.log.CFG.0", [4, 5]),
            ]

    run(test())


def test_full_batches_and_flush_do_not_linger(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with feeding(nats_server.url, linger=3600) as feed, observing(nats_server.url) as observer:
            feed.put(250, size=1000)
            await until(lambda: len(observer.messages) == 3)
            assert all(60_000 < len(message.data) <= 65536 for message in observer.messages)
            await feed.flush()
            await until(lambda: len(observer.messages) == 4)
            data = b"".join(message.data for message in observer.messages)
            assert [int(n) for n in data.split()] == list(range(1, 251))

    run(test())


def test_overflow_drops_the_oldest_and_reports_them(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with feeding(nats_server.url, max_bytes=MIB) as feed:
            feed.put(3000, size=1000)  # no connection yet
            dropped = feed.pipeline.counts.dropped
            assert 1900 < dropped < 2100
            assert feed.pipeline.in_flight == 3000 - dropped
            await nats_server.up()
            async with observing(nats_server.url) as observer:
                feed.put(1)
                await feed.flush()
                await until(lambda: feed.losses)
                assert feed.losses == [Loss("the memory for log events is full", dropped, 1, dropped)]
                await until(lambda: observer.messages and int(observer.messages[-1].data.split()[-1]) == 3001)
                # the observer may have subscribed after the first of them
                data = b"".join(message.data for message in observer.messages)
                seen = [int(n) for n in data.split()]
                assert seen == list(range(3002 - len(seen), 3002))

    run(test())


def test_short_lines_use_no_more_memory_than_long_ones(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with feeding(nats_server.url, max_bytes=MIB) as feed:
            tracemalloc.start()
            try:
                for number in range(20_000):
                    feed.put(1, f"vici.{number}", size=10)
                assert feed.pipeline.counts.dropped and tracemalloc.get_traced_memory()[0] < 1.5 * MIB
            finally:
                tracemalloc.stop()

    run(test())


def test_drops_are_reported_without_further_events(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with feeding(nats_server.url) as feed:
            feed.pipeline.lost("malformed", 1, 1)
            await until(lambda: len(feed.losses) == 1)
            feed.pipeline.lost("malformed", 2, 3)
            await until(lambda: len(feed.losses) == 2)
            assert feed.losses == [Loss("malformed", 1, 1, 1), Loss("malformed", 2, 2, 3)]

    run(test())


def test_too_large_event_is_reported(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server("max_payload: 10000")

    async def test() -> None:
        await server.up()
        async with feeding(server.url) as feed, observing(server.url) as observer:
            feed.put(1, "vici.a")
            await feed.flush()
            feed.put(1, "vici.b", size=20_000)
            feed.put(30, "vici.c", size=1000)
            await feed.flush()
            await until(lambda: feed.losses)
            assert feed.losses == [Loss("larger than the server accepts", 1, 2, 2)]
            await until(lambda: sum(len(m.data.split()) for m in observer.messages) == 31)

    run(test())


def test_server_killed_and_hung_under_flood(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with feeding(nats_server.url) as feed:
            for fault in (nats_server.kill, nats_server.pause):
                for step in range(200):
                    feed.put(100, size=500)
                    await asyncio.sleep(0)
                    if step == 100:
                        fault()
                if fault == nats_server.kill:
                    await nats_server.up()
                else:
                    await until(lambda: not feed.bus.connected)  # the probe has failed
                    nats_server.resume()
                await feed.flush()
            assert feed.pipeline.counts.published == feed.count == 40_000
            assert not feed.losses

    run(test())


def test_cancelled_while_an_event_arrives() -> None:
    """It must end, although `asyncio.wait_for` before Python 3.12 swallows the cancellation then."""

    async def test() -> None:
        async with feeding("nats://127.0.0.1:1", linger=3600) as feed:
            feed.put(1)
            for _ in range(5):
                await asyncio.sleep(0)
            feed.put(1, "vici.gw1.log.CFG.1")

    run(test(), 5)
