"""The state class with a real JetStream: every event arrives, once and in order, regardless of faults of the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import nats
import pytest
from harness import NatsServer, background, observing, run, settings, stored, until
from vicibridge.bus.hardened_client import Acks
from vicibridge.bus.streams import StateStream
from vicibridge.bus.supervisor import ConnectionSupervisor
from vicibridge.events.backlog import Backlog
from vicibridge.events.losses import Loss
from vicibridge.events.state_publisher import StatePublisher

STREAM = StateStream("VICI", ["vici.*.event.>", "vici.*.bridge.>"], 0)
MIB = 1024 * 1024


class Feed:
    """A publisher, the events it was given, and the losses it reported."""

    def __init__(self, bus: ConnectionSupervisor, max_bytes: int, ack_timeout: float, stream: StateStream) -> None:
        self.bus = bus
        self.losses: list[Loss] = []
        self.count = 0
        self.backlog = Backlog("gw1", "b", max_bytes, self.losses.append, None)
        self.pipeline = StatePublisher(bus, stream, self.backlog, ack_timeout=ack_timeout, delay=0.1)

    def put(self, count: int, subject: str = "vici.gw1.event.x", size: int = 1) -> None:
        for _ in range(count):
            self.count += 1
            self.backlog.put([(self.count, subject, b"%d".ljust(size) % self.count)])

    async def flush(self) -> None:
        await asyncio.wait_for(self.backlog.flush(), 15)
        self.check()
        assert self.backlog.in_flight == 0

    def check(self) -> None:
        counts = self.backlog.counts
        assert counts.received == counts.published + counts.dropped + self.backlog.in_flight


@asynccontextmanager
async def feeding(
    url: str, max_bytes: int = 64 * MIB, ack_timeout: float = 5.0, stream: StateStream = STREAM
) -> AsyncIterator[Feed]:
    bus = ConnectionSupervisor(settings(url).nats)
    feed = Feed(bus, max_bytes, ack_timeout, stream)
    async with background(bus.run(), feed.pipeline.run()):
        yield feed


async def numbers(url: str) -> list[int]:
    return [int(message.data) for message in await stored(url)]


def test_ten_thousand_events_once_and_in_order(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with feeding(nats_server.url) as feed:
            feed.put(10_000)
            await feed.flush()
            assert feed.backlog.counts.published == 10_000
            messages = await stored(nats_server.url)
            assert [int(m.data) for m in messages] == list(range(1, 10_001))
            assert messages[41].headers == {"Nats-Msg-Id": "gw1.b.42"}

    run(test())


def test_nothing_put_holds_up_nothing() -> None:
    """A read from charon may bring only events that are limited or malformed."""

    async def test() -> None:
        backlog = Backlog("gw1", "b", MIB, lambda loss: None, None)
        backlog.put([])
        await asyncio.wait_for(backlog.flush(), 1)
        assert backlog.take(1) == [] and not backlog.queued

    run(test())


def test_server_killed_repeatedly(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with feeding(nats_server.url) as feed:
            feed.put(500)  # before there is any server
            for _ in range(3):
                await nats_server.up()
                published = feed.backlog.counts.published
                feed.put(3000)
                await until(lambda before=published: feed.backlog.counts.published > before + 1000)
                feed.put(3000)
                await asyncio.sleep(0)
                feed.check()
                nats_server.kill()
                feed.put(500)
                feed.check()
            await nats_server.up()
            await feed.flush()
            assert await numbers(nats_server.url) == list(range(1, feed.count + 1))
            assert not feed.losses

    run(test())


def test_hung_server(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with feeding(nats_server.url) as feed:
            feed.put(2000)
            await feed.flush()
            nats_server.pause()
            feed.put(2000, size=5000)
            await until(lambda: not feed.bus.connected)  # the probe has failed
            feed.put(2000)
            nats_server.resume()
            await feed.flush()
            assert await numbers(nats_server.url) == list(range(1, 6001))

    run(test())


def test_unacknowledged_events_are_sent_again(nats_server: NatsServer) -> None:
    """A publisher based on futures would wait indefinitely (F4); JetStream drops the copies."""

    async def test() -> None:
        await nats_server.up()
        async with feeding(nats_server.url, ack_timeout=0.5) as feed:
            feed.put(10)
            await feed.flush()
            publisher = feed.pipeline._publisher
            take = publisher._on_acks

            def lose_one(acks: Acks) -> None:
                if 15 in acks and not lost:
                    lost[15] = acks.pop(15)
                take(acks)

            lost: Acks = {}
            publisher._on_acks = lose_one  # type: ignore[method-assign]
            connection = await feed.pipeline._bus.connection()
            connection.lose("test")  # the pipeline subscribes again
            feed.put(20)
            await feed.flush()
            assert lost
            assert await numbers(nats_server.url) == list(range(1, 31))

    run(test())


def test_missing_stream_is_created_and_an_existing_one_not_changed(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        client = await nats.connect(nats_server.url)
        jetstream = client.jetstream()
        async with feeding(nats_server.url) as feed:
            feed.put(1)
            await feed.flush()
            made = (await jetstream.stream_info("VICI")).config
            assert made.subjects == STREAM.subjects
            assert made.duplicate_window == 3600
            await replace(STREAM, name="SHORT", subjects=["short.>"], max_age=60).ensure(await feed.bus.connection())
            assert (await jetstream.stream_info("SHORT")).config.duplicate_window == 60
        await jetstream.delete_stream("VICI")
        await jetstream.add_stream(name="VICI", subjects=["vici.>"], max_msgs=5)
        async with feeding(nats_server.url) as feed:
            feed.put(7)
            await feed.flush()
            kept = (await jetstream.stream_info("VICI")).config
            assert (kept.subjects, kept.max_msgs) == (["vici.>"], 5)
        await client.close()

    run(test())


def test_stream_deleted_at_run_time_is_created_again(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        await nats_server.up()
        client = await nats.connect(nats_server.url)
        async with feeding(nats_server.url) as feed:
            feed.put(5)
            await feed.flush()
            await client.jetstream().delete_stream("VICI")
            feed.put(2000)
            await feed.flush()
            assert await numbers(nats_server.url) == list(range(6, 2006))
            assert not feed.losses
        await client.close()

    run(test())
    assert caplog.text.count("gw1: JetStream: rejects events") == 1


def test_without_jetstream_events_wait_until_memory_is_full(
    make_nats_server: Callable[..., NatsServer],
) -> None:
    server = make_nats_server("jetstream: disabled")

    async def test() -> None:
        await server.up()
        async with feeding(server.url, max_bytes=MIB, ack_timeout=0.5) as feed:
            feed.put(2000, size=1000)
            await until(lambda: feed.backlog.counts.dropped)
            feed.check()
            assert feed.backlog.in_flight * 1200 <= MIB
            assert feed.backlog.counts.published == 0

    run(test())


def test_overflow_is_reported_when_events_flow_again(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with feeding(nats_server.url, max_bytes=MIB) as feed:
            feed.put(2000, size=1000)
            dropped = feed.backlog.counts.dropped
            assert 1000 < dropped < 1200
            await nats_server.up()
            await feed.flush()
            await until(lambda: feed.losses)
            assert feed.losses == [Loss("the memory for unacknowledged events is full", dropped, 1, dropped)]
            assert await numbers(nats_server.url) == list(range(dropped + 1, 2001))

    run(test())


def test_too_large_event_is_reported_and_blocks_nothing(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server("max_payload: 10000")

    async def test() -> None:
        await server.up()
        async with feeding(server.url) as feed:
            feed.put(1)
            feed.put(1, size=20_000)
            feed.put(1)
            await feed.flush()
            await until(lambda: feed.losses)
            assert feed.losses == [Loss("larger than the server accepts", 1, 2, 2)]
            assert await numbers(server.url) == [1, 3]

    run(test())


def test_forbidden_subject_blocks_nothing(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server(
        """authorization { users: [
             {user: admin, password: a}
             {user: bridge, password: b, permissions: {publish: {deny: "vici.gw1.event.secret"}}} ] }"""
    )
    as_bridge = server.url.replace("//", "//bridge:b@")

    async def test() -> None:
        await server.up()
        async with feeding(as_bridge, ack_timeout=0.3) as feed:
            feed.put(3)
            feed.put(1, "vici.gw1.event.secret")
            for _ in range(12):
                feed.put(1)
                await asyncio.sleep(0.1)
            await feed.flush()
            await until(lambda: feed.losses)
            assert feed.losses == [Loss("refused by the server", 1, 4, 4)]
            assert await numbers(server.url.replace("//", "//admin:a@")) == [1, 2, 3, *range(5, 17)]

    run(test())


def test_lost_gap_causes_no_gap(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def test() -> None:
        await nats_server.up()
        async with feeding(nats_server.url) as feed:
            feed.backlog.put([(1, "vici.gw1.bridge.gap", b"x" * 2 * MIB)], report_loss=False)
            await feed.flush()
            feed.backlog.lost("malformed", 2, 4)
            await until(lambda: feed.losses)
            assert feed.losses == [Loss("malformed", 3, 2, 4)]
            assert feed.backlog.counts.dropped == 4
            feed.check()

    run(test())


NO_ACK = (
    "the stream VICI has no_ack: JetStream acknowledges nothing, so nothing counts as stored; "
    "run nats stream edit VICI --ack"
)


@pytest.mark.parametrize("while_running", [False, True])
def test_stream_that_never_acknowledges(
    nats_server: NatsServer, while_running: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is repeated or lost, and the reason is logged; publishing continues when the stream is fixed."""

    async def test() -> None:
        await nats_server.up()
        async with observing(nats_server.url, "vici.gw1.event.x") as observer:
            jetstream = observer.client.jetstream()
            made = (await jetstream.add_stream(name="VICI", subjects=STREAM.subjects, no_ack=not while_running)).config
            async with feeding(nats_server.url, ack_timeout=0.3) as feed:
                if while_running:
                    feed.put(3)
                    await feed.flush()
                    await jetstream.update_stream(made.evolve(no_ack=True))
                feed.put(10)
                await until(lambda: feed.pipeline.trouble == NO_ACK)
                sent = len(observer.messages)
                assert sent == (13 if while_running else 0)
                await asyncio.sleep(1.2)  # four times as long as an acknowledgement may take
                assert len(observer.messages) == sent and feed.backlog.waiting == 10
                feed.check()
                assert caplog.text.count("JetStream: rejects events") == 1
                await jetstream.update_stream(made.evolve(no_ack=False))
                await feed.flush()
                assert feed.pipeline.trouble == "" and not feed.losses
                assert await numbers(nats_server.url) == list(range(1, feed.count + 1))

    caplog.set_level(logging.INFO)
    run(test())
    assert f"rejects events: {NO_ACK}; keeping 10" in caplog.text
    assert caplog.text.count("acknowledges events again") == 1


def test_disabled_jetstream_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    off = NatsServer(tmp_path, more="jetstream: disabled")

    async def test() -> None:
        await off.up()
        async with feeding(off.url, ack_timeout=0.3) as feed:
            feed.put(1)
            await until(lambda: "rejects events" in caplog.text)
            assert feed.pipeline.trouble.startswith("JetStream does not respond: it is disabled in this server")
            await asyncio.to_thread(off.stop)
            on = NatsServer(tmp_path, port=off.port)
            await on.up()
            await feed.flush()
            assert feed.pipeline.trouble == ""
            assert await numbers(on.url) == [1]
            on.kill()

    try:
        run(test())
    finally:
        off.kill()
    assert caplog.text.count("JetStream: rejects events") == caplog.text.count("cannot check the stream VICI") == 1
    assert "None" not in caplog.text


def test_missing_stream_is_detected_without_events(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicibridge.events.state_publisher._IDLE", 0.1)

    async def test() -> None:
        await nats_server.up()
        client = await nats.connect(nats_server.url)
        jetstream = client.jetstream()
        await jetstream.add_stream(name="VICI", subjects=STREAM.subjects)
        async with feeding(nats_server.url, stream=replace(STREAM, provision="bind")) as feed:
            await until(lambda: not feed.pipeline.trouble)
            await jetstream.delete_stream("VICI")
            await until(lambda: feed.pipeline.trouble.startswith("the stream VICI for "))
            await jetstream.add_stream(name="VICI", subjects=STREAM.subjects)
            await until(lambda: not feed.pipeline.trouble)
        await client.close()

    run(test())


def test_full_stream_is_a_problem_until_there_is_room(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        client = await nats.connect(nats_server.url)
        jetstream = client.jetstream()
        full = {"max_msgs": 3, "discard": nats.js.api.DiscardPolicy.NEW}
        await jetstream.add_stream(name="VICI", subjects=STREAM.subjects, **full)
        async with feeding(nats_server.url) as feed:
            feed.put(5)
            await until(lambda: feed.pipeline.trouble)
            await until(lambda: "maximum messages exceeded in the stream VICI" in feed.pipeline.trouble)
            assert feed.backlog.waiting == 2
            await jetstream.purge_stream("VICI")
            await feed.flush()
            assert feed.pipeline.trouble == "" and not feed.losses
        await client.close()

    run(test())


def test_purged_events_are_not_stored_again(nats_server: NatsServer) -> None:
    """JetStream remembers ids across a purge: an event that is sent again counts as published, and stays purged."""

    async def test() -> None:
        await nats_server.up()
        client = await nats.connect(nats_server.url)
        jetstream = client.jetstream()
        async with feeding(nats_server.url) as feed:
            feed.put(1)
            await feed.flush()
            publisher = feed.pipeline._publisher
            settle, lost = publisher._settle, []
            publisher._settle = lost.extend  # the bridge does not get them
            feed.put(5)
            await until(lambda: len(lost) == 5)
            await jetstream.purge_stream("VICI")
            publisher._settle = settle
            (await feed.bus.connection()).lose("test")
            feed.put(1)
            await feed.flush()
            assert feed.backlog.counts.published == 7 and not feed.losses
            assert await numbers(nats_server.url) == [7]
            state = (await jetstream.stream_info("VICI")).state
            assert (state.first_seq, state.last_seq) == (7, 7)
        await client.close()

    run(test())
