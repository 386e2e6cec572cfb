"""Faults of charon while events flow: every event that reached the bridge arrives, and the others are reported."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from harness import NatsServer, bucket, run, stored, until
from traffic import account, heard, reading, scene, verify_but_breaks, verify_whole

from vicifast import _wire
from vicifast.commands import EVENTS
from vicifast.testing import FakeCharon

pytestmark = pytest.mark.faults

SAS = 10_000


@pytest.mark.parametrize("times", [1, 12])
def test_charon_gone_and_back(nats_server: NatsServer, times: int) -> None:
    async def test() -> None:
        await nats_server.up()
        async with scene(nats_server.url) as at:
            async with at.flowing():
                for _ in range(times):
                    await at.charon.stop()
                    at.traffic.breaks_here()
                    await at.charon.start()
                    await at.heard()
                    await asyncio.sleep(0.1)
            await at.settled(all_heard=False)
        found = await verify_but_breaks(nats_server.url, at.traffic)
        assert found.gone == times

    run(test(), 90)


def test_connection_cut(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with scene(nats_server.url) as at:
            async with at.flowing():
                for _ in range(5):
                    at.charon.drop()
                    at.traffic.breaks_here()
                    await asyncio.sleep(0.02)
                    await at.heard()
            await at.settled(all_heard=False)
        await verify_but_breaks(nats_server.url, at.traffic)

    run(test(), 90)


def test_socket_replaced(nats_server: NatsServer, tmp_path: Path) -> None:
    """A new daemon at the same path; the old one continues for a while, and the bridge stays with it until it ends."""
    path = tmp_path / "charon.vici"

    async def test() -> None:
        await nats_server.up()
        async with scene(nats_server.url, charon=FakeCharon(path)) as at:
            async with at.flowing():
                path.unlink()
                async with FakeCharon(path) as new:
                    await asyncio.sleep(0.3)
                    assert not new.registrations("log")
                    at.charon.drop()
                    at.traffic.breaks_here()
                    await heard(new)
                    at.traffic.charon = new
                    await asyncio.sleep(0.3)
                    at.traffic.breaks_here()
                os.link(make_socket(tmp_path), path)  # the old daemon removes this path
            await at.settled(all_heard=False)
        found = await verify_but_breaks(nats_server.url, at.traffic)
        assert found.gone == 1

    run(test(), 90)


def make_socket(directory: Path) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "other"))
    return str(directory / "other")


def test_backlog_full(nats_server: NatsServer) -> None:
    """Connecting fails with EAGAIN for a while."""

    async def test() -> None:
        await nats_server.up()
        async with scene(nats_server.url, charon=FakeCharon(backlog=0)) as at:
            async with at.flowing():
                at.charon.pause_accepting()
                with ExitStack() as taken:
                    for _ in range(3):
                        sock = taken.enter_context(socket.socket(socket.AF_UNIX))
                        sock.setblocking(False)
                        with suppress(BlockingIOError):
                            sock.connect(at.charon.address.removeprefix("unix://"))
                    at.charon.drop()
                    at.traffic.breaks_here()
                    await until(lambda: not at.bridge.gateways[0].reader.up)
                    await asyncio.sleep(1)
                    assert not at.bridge.gateways[0].reader.up
                at.charon.resume_accepting()
                await at.heard()
            await at.settled(all_heard=False)
        found = await verify_but_breaks(nats_server.url, at.traffic)
        assert found.gone == 1

    run(test(), 90)


def of_size(size: int) -> bytes:
    """Return a message that makes the packet of an ike-updown event exactly `size` bytes long."""
    left = size - len(_wire.packet(_wire.EVENT, "ike-updown", {"gw": {"uniqueid": "0", "much": []}})) + 4
    values: list[str] = []
    while left:
        values.append("x" * min(left - 3, 60_000))
        left -= len(values[-1]) + 3
    return _wire.encode({"gw": {"uniqueid": "0", "much": values}})


def test_largest_packet(nats_server: NatsServer) -> None:
    """Of exactly 512 KiB; charon sends no larger ones."""

    async def test() -> None:
        await nats_server.up()
        async with scene(nats_server.url) as at:
            async with at.flowing():
                assert at.charon.emit("ike-updown", of_size(512 * 1024)) == 1
                assert at.charon.emit("ike-updown", of_size(512 * 1024 + 1)) == 0
            at.traffic.sent += 1
            await at.settled()
            at.traffic.sent -= 1
        sizes = [len(message.data) for message in await stored(nats_server.url)]
        assert len([size for size in sizes if size > 500_000]) == 1

    run(test(), 90)


def test_malformed_messages_are_reported(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with scene(nats_server.url) as at:
            async with at.flowing():
                for _ in range(10):
                    at.charon.emit("ike-updown", b"\x03\xff")
                    at.charon.emit("log", b"\x01\x02\x03")
                    await asyncio.sleep(0.02)
            await at.settled()
            assert at.bridge.gateways[0].log.counts.causes == {"malformed message from charon": 10}
            assert at.bridge.gateways[0].reader.connects == 1
        found = await account(nats_server.url, at.traffic.sent)
        assert (found.dropped, found.absent) == ({"malformed message from charon": 10}, [])

    run(test(), 90)


@pytest.mark.parametrize("noise", [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x01\x63", b"\0\0\0\x02\x07\x09"])
def test_invalid_packets(nats_server: NatsServer, noise: bytes) -> None:
    """The stream is out of step: the bridge reports a gap and reconnects."""

    async def test() -> None:
        await nats_server.up()
        async with scene(nats_server.url) as at:
            async with at.flowing():
                at.charon.send(noise)
                at.traffic.breaks_here()
                await until(lambda: at.bridge.gateways[0].reader.connects == 2)
                await at.heard()
            await at.settled(all_heard=False)
        found = await verify_but_breaks(nats_server.url, at.traffic)
        assert found.gone == 1

    run(test(), 90)


def test_old_daemon_without_alert(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with scene(nats_server.url, charon=FakeCharon(events=set(EVENTS) - {"alert"})) as at:
            async with at.flowing():
                pass
            await at.settled()
        await verify_whole(nats_server.url, at.traffic.sent)

    run(test(), 90)


def many_sas(charon: FakeCharon) -> None:
    rows = [{"gw": {"uniqueid": str(n), "state": "ESTABLISHED", "child-sas": {}}} for n in range(10**6, 10**6 + SAS)]
    charon.on("list-sas", {}, stream=[("list-sa", row) for row in rows])
    charon.on("list-conns", {})
    charon.on("version", {"daemon": "charon"})


def test_log_flood_during_a_snapshot_of_ten_thousand_sas(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        charon = FakeCharon()
        many_sas(charon)
        async with scene(nats_server.url, charon=charon, mirror={"enabled": True}) as at:
            at.traffic.lines = 20
            async with at.flowing():
                [mirroring] = at.bridge.mirrorings
                await until(lambda: mirroring.snapshots, 30)
                await asyncio.wait_for(mirroring.buckets.settled(), 30)
                keys = await bucket(at.subscription._conn, "VICI_SA")
                assert len(keys) >= SAS
            await at.settled()
        found = await account(nats_server.url, at.traffic.sent)
        assert not found.dropped and not found.absent

    run(test(), 90)


def test_charon_ends_during_a_list(nats_server: NatsServer) -> None:
    """As at a restart or a reload of its plugins; the mirror lists again and is complete in the end."""

    async def test() -> None:
        await nats_server.up()
        charon = FakeCharon()
        many_sas(charon)
        charon.cut("list-sas", 5000)
        async with scene(nats_server.url, charon=charon, mirror={"enabled": True}) as at:
            async with at.flowing():
                await charon.requested("list-sas")
                at.charon.drop()
                at.traffic.breaks_here()
                many_sas(charon)
                await at.heard()
                [mirroring] = at.bridge.mirrorings
                await until(lambda: mirroring.snapshots, 30)
            await asyncio.wait_for(mirroring.buckets.settled(), 30)
            assert len(await bucket(at.subscription._conn, "VICI_SA")) >= SAS
            await at.settled(all_heard=False)
        await verify_but_breaks(nats_server.url, at.traffic)

    run(test(), 90)


def test_requesters_disconnect_during_a_stream(nats_server: NatsServer) -> None:
    """No resources remain, and no other client is affected."""

    async def test() -> None:
        await nats_server.up()
        charon = FakeCharon()
        many_sas(charon)
        async with scene(nats_server.url, charon=charon) as at:
            async with at.flowing():
                for _ in range(5):
                    await ask_and_go(nats_server.url)
                await until(lambda: not any(gateway.commands.quick.running for gateway in at.bridge.gateways))
            await at.settled()
            reply = await at.subscription._conn.request("vici.gw1.cmd.version", b"{}", timeout=10)
            assert b"charon" in reply.data
        await verify_whole(nats_server.url, at.traffic.sent)

    run(test(), 90)


async def ask_and_go(url: str) -> None:
    async with reading(url) as (_, subscription):
        client = subscription._conn
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox)
        await client.publish("vici.gw1.cmd.list-sas", b"{}", reply=inbox)
        await answers.next_msg(timeout=10)
