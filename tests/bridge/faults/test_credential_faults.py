"""Credentials of the bridge and its clients expire while events flow; nothing is lost, and the mirror is correct.

`make test-faults` runs these; the default run leaves them out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import NatsServer, bucket, observing, run, service, settings, until, up
from identities import Operator, Pki
from lab import Lab, sas
from test_mirror_on_charon import difference
from test_on_charon import churn
from traffic import Scene, scene, verify_whole
from vicibridge.bus.credentials import read_credentials
from vicibridge.client import Completeness, Envelope, Events, Fleet
from vicibridge.contract.nats_settings import NatsSettings

pytestmark = pytest.mark.faults

LIFE = 3  # lifetime of a JWT, in seconds


@dataclass
class Guarded:
    """A server, and the credentials file of the bridge and its clients."""

    operator: Operator
    server: NatsServer
    creds: Path
    as_admin: dict[str, str]

    def renew(self, seconds: float = LIFE) -> None:
        self.operator.write_credentials(self.creds, seconds)

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[tuple[Scene, Collected, Collected]]:
        """A bridge, and two clients that read the stream."""
        ours = {"creds": self.creds}
        async with scene(self.server.url, reader_options=self.as_admin, nats=ours) as at:
            await until(lambda: not at.bridge.gateways[0].backlog.waiting)
            async with (
                Fleet(NatsSettings(servers=[self.server.url], **ours)) as fleet,
                collecting(fleet) as ordered,
                collecting(fleet, durable="pager") as durable,
            ):
                yield at, ordered, durable


@asynccontextmanager
async def renewed(at_server: Guarded) -> AsyncIterator[None]:
    """Replace the credentials file repeatedly, each time before its JWT expires."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(LIFE / 2)
            at_server.renew()

    at_server.renew()
    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()


class Collected:
    """The events that a client of ours has read from the stream, over all its connections."""

    def __init__(self) -> None:
        self.complete = Completeness(from_start=True)
        self.envelopes: list[Envelope] = []

    async def read(self, events: Events) -> None:
        async for envelope in events:
            self.complete.add(envelope)
            self.envelopes.append(envelope)

    @property
    def numbers(self) -> list[int]:
        return [int(each.data["gw"]["uniqueid"]) for each in self.envelopes if each.event == "ike-updown"]


@asynccontextmanager
async def collecting(fleet: Fleet, **arguments: Any) -> AsyncIterator[Collected]:
    collected = Collected()
    async with fleet.subscribe(start="first", **arguments) as events:
        reading = asyncio.create_task(collected.read(events))
        try:
            yield collected
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def verify(at: Scene, as_admin: dict[str, str], ordered: Collected, durable: Collected) -> None:
    """Check that the stream and both clients have every event: once and in order, or at least once."""
    url = at.bridge.settings.nats.urls[0]
    await verify_whole(url, at.traffic.sent, **as_admin)
    everything = list(range(1, at.traffic.sent + 1))
    await until(lambda: ordered.numbers == everything, 30)
    # What a connection that ended did not acknowledge, JetStream redelivers after a minute.
    await until(lambda: sorted(set(durable.numbers)) == everything, 75)
    assert ordered.complete.gaps() == durable.complete.gaps() == []
    assert ordered.complete.duplicates == ordered.complete.disordered == 0


@asynccontextmanager
async def guarded(make_nats_server: Callable[..., NatsServer], directory: Path) -> AsyncIterator[Guarded]:
    """A server with the users of an operator, and an administrator whose credentials do not expire."""
    operator = Operator()
    server = make_nats_server(operator.server_options())
    await server.up()
    operator.write_credentials(directory / "admin.creds")
    yield Guarded(operator, server, directory / "ours.creds", {"user_credentials": str(directory / "admin.creds")})


def test_jwts_renewed_before_they_expire(make_nats_server: Callable[..., NatsServer], tmp_path: Path) -> None:
    async def test() -> None:
        async with guarded(make_nats_server, tmp_path) as at_server, renewed(at_server):
            async with at_server.flowing() as (at, ordered, durable):
                async with at.flowing():
                    await until(lambda: at.bridge.bus.connects >= 4, 30)
                await at.settled()
                await verify(at, at_server.as_admin, ordered, durable)

    run(test(), 180)


def test_jwts_renewed_after_they_expire(make_nats_server: Callable[..., NatsServer], tmp_path: Path) -> None:
    async def test() -> None:
        async with guarded(make_nats_server, tmp_path) as at_server:
            at_server.renew()
            async with at_server.flowing() as (at, ordered, durable):
                async with at.flowing():
                    for _ in range(2):
                        await until(lambda: not at.bridge.bus.connected)
                        await asyncio.sleep(2)
                        at_server.renew()
                        await until(lambda: at.bridge.bus.connected)
                at_server.renew(3600)
                await at.settled()
                await verify(at, at_server.as_admin, ordered, durable)

    run(test(), 180)


def test_expiring_certificates(make_nats_server: Callable[..., NatsServer], tmp_path: Path) -> None:
    """Renewed and applied by SIGHUP; and expired during a restart of NATS, and renewed after it."""
    pki = Pki(tmp_path)
    server = make_nats_server(pki.server_options(f', ca_file: "{pki.ca}", verify: true'))
    files = {"tls_ca": pki.ca, "tls_cert": pki.cert, "tls_key": pki.key, "tls_hostname": "nats.example"}

    async def test() -> None:
        await server.up()
        pki.renew()
        options = read_credentials(NatsSettings(servers=[server.url], **files), server.url).options
        as_admin = {key: options[key] for key in ("tls", "tls_hostname")}
        async with scene(server.url, reader_options=as_admin, nats=files) as at:
            await until(lambda: not at.bridge.gateways[0].backlog.waiting)
            async with at.flowing():
                for _ in range(3):
                    pki.renew()
                    connection = await at.bridge.bus.connection()
                    at.bridge.reload(at.bridge.settings)
                    await connection.lost()
                    await at.bridge.bus.connection()
                pki.renew(-60)
                await asyncio.to_thread(server.stop)
                await server.up()
                await until(lambda: "certificate" in at.bridge.bus.reason)
                pki.renew()
                await at.bridge.bus.connection()
            await at.settled()
        await verify_whole(server.url, at.traffic.sent, **as_admin)

    run(test(), 120)


@pytest.mark.lab(nats=True)
def test_mirror_equals_charon(make_nats_server: Callable[..., NatsServer], tmp_path: Path, lab: Lab) -> None:
    """Real SAs come and go while JWTs expire; afterwards the buckets equal charon, and a client equals the buckets."""

    async def test() -> None:
        async with guarded(make_nats_server, tmp_path) as at_server, renewed(at_server):
            url, ours = at_server.server.url, {"creds": at_server.creds}
            mirror = {"enabled": True, "interval": 300}
            config = settings(url, lab.left.address, node="left", nats=ours, mirror=mirror)
            async with observing(url, "nothing", **at_server.as_admin) as admin, service(config) as bridge:
                await up(bridge)
                names = await sas.load(lab, 20)
                await sas.initiate(lab, names)
                async with asyncio.timeout(30):
                    while await difference(admin.client, lab.left):
                        await asyncio.sleep(0.1)
                async with Fleet(NatsSettings(servers=[url], **ours)) as fleet, fleet.watch_sas("left") as watch:
                    async with churn(lab, names):
                        await until(lambda: bridge.bus.connects >= 4, 30)
                    async with asyncio.timeout(60):
                        while wrong := await difference(admin.client, lab.left):
                            print(wrong)
                            await asyncio.sleep(0.1)
                    now = await bucket(admin.client, "VICI_SA", "left.>")
                    await until(lambda: watch.current == now)

    run(test(), 180)
