"""The connection of a fleet is closed, for example as credentials expire: subscriptions and requests continue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import nats
import pytest
from harness import NatsServer, processed, run, until
from identities import Operator
from mirror_values import sa, sa_value
from nats.aio.client import Client
from nats.js.api import KeyValueConfig
from test_client_events import GOOD, SUBJECT, filled, take
from vicibridge.client import Change, Events, Fleet
from vicibridge.contract.nats_settings import NatsSettings

from vicifast.errors import ConnectionClosed, RequestTimeout

SHORT = 2.0  # lifetime of a JWT, in seconds


class Access:
    """The identity of a fleet: a user of an account, whose credentials file may be revoked and renewed."""

    def __init__(self, server: NatsServer, operator: Operator, file: Path) -> None:
        self.file = file
        self._server, self._operator = server, operator

    def revoke(self) -> None:
        """Make the server close the fleet's connection and reject the user in the file."""
        self._operator.revoke()
        self._server.configure(self._operator.server_options())
        self._server.reload()

    def renew(self) -> None:
        """Write the credentials of the current user to the file."""
        self._operator.write_credentials(self.file)


@asynccontextmanager
async def accessing(
    make_nats_server: Callable[..., NatsServer], directory: Path, seconds: float | None = None
) -> AsyncIterator[tuple[Fleet, Client, Access]]:
    """A fleet whose JWT is valid for `seconds`, another user's client, and the fleet's access."""
    operator = Operator()
    server = make_nats_server(operator.server_options())
    await server.up()
    operator.write_credentials(directory / "other.creds")
    other = await nats.connect(server.url, user_credentials=str(directory / "other.creds"))
    operator.replace_user()
    file = directory / "fleet.creds"
    operator.write_credentials(file, seconds)
    try:
        async with Fleet(NatsSettings(servers=[server.url], creds=file)) as fleet:
            yield fleet, other, Access(server, operator, file)
    finally:
        await other.close()


async def heard(other: Client, events: Events, first: int) -> list[int]:
    """Store events, numbered from `first`, until a plain subscription receives one; return the numbers of all."""
    hearing = asyncio.create_task(anext(events))
    numbers: list[int] = []
    while not hearing.done():
        numbers.append(first + len(numbers))
        await filled(other, 1, first=numbers[-1])
        await asyncio.wait([hearing], timeout=0.05)
    return numbers


def test_subscriptions_resume_after_a_user_is_revoked_and_its_file_is_renewed(
    make_nats_server: Callable[..., NatsServer], tmp_path: Path
) -> None:
    async def test() -> None:
        async with accessing(make_nats_server, tmp_path) as (fleet, other, access):
            await filled(other, 2)
            bucket = await other.jetstream().create_key_value(KeyValueConfig(bucket="VICI_SA"))
            for key in ("gw1.a.1", "gw1.b.2", "gw1.c.3"):
                await bucket.put(key, sa_value(*key.split("."), since=1, updated=1))
            plain, kept, new = fleet.subscribe(), fleet.subscribe(start=1), fleet.subscribe(start="new")
            async with plain, kept, new, fleet.subscribe(durable="pager") as durable, fleet.watch_sas() as watch:
                assert await take(kept, 2) == await take(durable, 2) == [1, 2]
                assert {(await anext(watch)).key for _ in range(3)} == {"gw1.a.1", "gw1.b.2", "gw1.c.3"}
                connected = fleet.client
                access.revoke()
                access.renew()
                await until(lambda: connected.is_closed)
                # Events during the outage arrive too, except those of the plain subscription.
                await filled(other, 5, first=3)
                await bucket.put("gw1.a.1", sa_value("gw1", "a", "1", since=2, updated=1))
                await bucket.purge("gw1.b.2")
                numbers = [*range(3, 8), *await heard(other, plain, 8)]
                assert await take(kept, len(numbers)) == await take(new, len(numbers)) == numbers
                while (got := await take(durable, 1)) != numbers[-1:]:
                    assert got[0] in (2, *numbers)
                changes = {change.key: change for change in (await anext(watch), await anext(watch))}
                new_a = sa("gw1", "a", "1", since=2, updated=1)
                before = {key: sa(*key.split("."), since=1, updated=1) for key in ("gw1.a.1", "gw1.b.2", "gw1.c.3")}
                assert changes == {
                    "gw1.a.1": Change("gw1.a.1", new_a, before["gw1.a.1"]),
                    "gw1.b.2": Change("gw1.b.2", None, before["gw1.b.2"]),
                }
                assert watch.current == {"gw1.a.1": new_a, "gw1.c.3": before["gw1.c.3"]}

    run(test(), 60)


def test_requests_resume_after_a_user_is_revoked(make_nats_server: Callable[..., NatsServer], tmp_path: Path) -> None:
    async def test() -> None:
        async with accessing(make_nats_server, tmp_path) as (fleet, other, access):
            connected = fleet.client
            requests: asyncio.Queue[Any] = asyncio.Queue()
            await other.subscribe("vici.gw1.cmd.*", cb=requests.put)
            await processed(other)
            node = fleet.node("gw1")
            limited = asyncio.create_task(node.version())
            unlimited = asyncio.create_task(node.call("version", timeout=None))
            both = [await requests.get(), await requests.get()]
            access.revoke()
            access.renew()
            await until(lambda: connected.is_closed)
            with pytest.raises(ConnectionClosed, match="the connection was lost, perhaps with the reply"):
                await unlimited
            await until(lambda: fleet.trouble is None)
            while not limited.done():
                for request in both:
                    await other.publish(request.reply, b"\x80", headers={"Vici-Node": "gw1"})
                await asyncio.wait([limited], timeout=0.05)
            assert limited.result() == {}
            asked = asyncio.create_task(node.stats())
            request = await requests.get()
            await other.publish(request.reply, b"\x80", headers={"Vici-Node": "gw1"})
            assert await asked == {}

    run(test(), 60)


@pytest.mark.usefixtures("short_waits")
def test_expired_file_is_reported_until_it_is_renewed(
    make_nats_server: Callable[..., NatsServer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        async with accessing(make_nats_server, tmp_path, SHORT) as (fleet, other, access):
            await filled(other, 1)
            async with fleet.subscribe(start="new") as events, fleet.subscribe() as plain:
                await until(lambda: "Authorization Violation; creds expired at 20" in caplog.text)
                assert fleet.trouble is not None and fleet.trouble.startswith("NATS: not connected: ")
                with pytest.raises(ConnectionClosed, match="NATS: not connected: "):
                    await fleet.node("gw1").version(timeout=0.2)
                with pytest.raises(ConnectionClosed, match="NATS: not connected: "):
                    await fleet.watch_sas().start()
                access.file.unlink()
                await until(lambda: "creds: " in caplog.text)
                assert f"creds: {access.file}: No such file or directory; retrying" in caplog.text
                access.file.write_text("half of a")  # a partial write
                await until(lambda: "not a NATS credentials file" in caplog.text)
                access.renew()
                numbers = await heard(other, plain, 2)
                assert await take(events, len(numbers)) == numbers
                assert fleet.trouble is None
                assert "NATS: connected to" in caplog.messages[-1]

    run(test(), 60)


@pytest.mark.usefixtures("short_waits")
def test_deleted_consumer_is_recreated(nats_server: NatsServer) -> None:
    """An administrator deletes it, or the bucket, while the connection stays open."""

    async def test() -> None:
        await nats_server.up()
        async with Fleet(nats_server.url) as fleet:
            await filled(fleet.client, 1)
            jetstream = fleet.client.jetstream()
            bucket = await jetstream.create_key_value(KeyValueConfig(bucket="VICI_SA"))
            for key in ("gw1.a.1", "gw1.b.2"):
                await bucket.put(key, sa_value(*key.split(".")))
            async with fleet.subscribe(start="first") as events, fleet.watch_sas() as watch:
                assert await take(events, 1) == [1]
                [consumer] = await jetstream.consumers_info("VICI")
                await jetstream.delete_consumer("VICI", consumer.name)
                await jetstream.delete_key_value("VICI_SA")
                await filled(fleet.client, 3, first=2)
                bucket = await jetstream.create_key_value(KeyValueConfig(bucket="VICI_SA"))
                await bucket.put("gw1.b.2", sa_value("gw1", "b", "2", updated=1))
                assert await take(events, 3) == [2, 3, 4]
                await until(lambda: watch.current == {"gw1.b.2": sa("gw1", "b", "2", updated=1)})

    run(test(), 60)


@pytest.mark.usefixtures("short_waits")
def test_recreated_stream_is_read_from_its_beginning(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        await nats_server.up()
        async with Fleet(nats_server.url) as fleet:
            await filled(fleet.client, 5)
            async with fleet.subscribe(start="first") as events:
                assert await take(events, 5) == [1, 2, 3, 4, 5]
                await fleet.client.jetstream().delete_stream("VICI")
                await until(lambda: "the stream VICI does not exist" in caplog.text)
                await filled(fleet.client, 2, first=6)
                assert await take(events, 2) == [6, 7]
                assert "the stream VICI was recreated" in caplog.text

    run(test(), 60)


def test_timeouts_hold_across_connection_loss(nats_server: NatsServer) -> None:
    """No request waits longer than its timeout, regardless of the connection."""

    async def test() -> None:
        await nats_server.up()
        other = await nats.connect(nats_server.url, allow_reconnect=False)
        async with Fleet(nats_server.url) as fleet:
            requests = await other.subscribe("vici.*.cmd.*")
            await processed(other)
            lost = asyncio.create_task(fleet.node("gw1").version(timeout=2))
            await requests.next_msg()
            await other.close()
            await asyncio.to_thread(nats_server.stop)
            await nats_server.up()
            with pytest.raises(RequestTimeout, match="gw1: version: no reply within 2 seconds"):
                await lost
            envelope = msgpack.packb({**GOOD, "event": "ike-updown", "seq": 1})
            async with fleet.subscribe() as events:
                await fleet.client.publish(SUBJECT, envelope)
                assert await take(events, 1) == [1]

    run(test(), 60)
