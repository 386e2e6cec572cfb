"""A gateway whose embedded nats-server is a leaf node of a hub, which stops and returns."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from harness import NatsServer, envelopes, observing, run, service, until, up
from identities import Pki
from nats.js import JetStreamContext
from test_mirror_worker import child, listed, sa, settled
from vicibridge.bus.nats_server import free_port
from vicibridge.client import Fleet, JetStreamError, Unavailable
from vicibridge.config.model import Config, GatewayConfig
from vicibridge.contract.nats_settings import NatsSettings
from vicibridge.service import Service

from vicifast.testing import FakeCharon

ROOT = Path(__file__).parents[2]
USERS = ("gw1", "reader", "operator", "admin")


@pytest.fixture
def hub(make_nats_server: Callable[..., NatsServer], monkeypatch: pytest.MonkeyPatch) -> tuple[NatsServer, int]:
    """The hub of bridge/nats with other ports, and the port for leaf nodes; the users' names are their passwords."""
    for user in USERS:
        monkeypatch.setenv(f"VICI_{user.upper()}", user)
    server, leaves = make_nats_server(), free_port()
    directory = server.log.parent
    for template in (ROOT / "bridge" / "nats").glob("*.conf"):
        (directory / template.name).write_text(template.read_text())
    text = (directory / "hub.conf").read_text().replace("/var/lib/nats", f"{directory}/jetstream")
    text = text.replace("0.0.0.0:4222", f"127.0.0.1:{server.port}").replace("0.0.0.0:7422", f"127.0.0.1:{leaves}")
    (directory / "nats.conf").write_text(text)
    return server, leaves


def as_user(server: NatsServer, user: str) -> NatsSettings:
    return NatsSettings(servers=[server.url], user=user, password=user, inbox_prefix=f"_INBOX_{user}")


@asynccontextmanager
async def a_leaf(leaves: int) -> AsyncIterator[tuple[FakeCharon, Service]]:
    async with FakeCharon() as charon:
        listed(charon, [("gw", sa("1", child("1")))])
        charon.on("terminate", {"success": "yes", "matches": "1"})
        bus: dict[str, Any] = {"embedded": {"port": free_port()}, "probe_interval": 0.3}
        bus["leaf"] = {"remotes": [f"nats-leaf://gw1:gw1@127.0.0.1:{leaves}"]}
        gateway = GatewayConfig(node="gw1", vici=charon.address)
        config = Config(
            nats=bus, gateway=[gateway], commands={"allow": ["@read", "@operate"]}, mirror={"heartbeat": 0.4}
        )
        async with service(config) as bridge:
            await up(bridge)
            await settled(bridge)
            yield charon, bridge


async def emitted(charon: FakeCharon, bridge: Service, first: int, last: int) -> None:
    """Emit events, and wait until the leaf node has stored them."""
    for number in range(first, last + 1):
        charon.emit("ike-updown", {"up": "yes", "gw": sa(str(number))})
    await until(lambda: bridge.gateways[0].reader.events["ike-updown", "up"] == last)
    await bridge.gateways[0].backlog.flush()


async def numbers(jetstream: JetStreamContext, count: int) -> list[str]:
    """Return the unique ids in `count` connection events, in the order of a consumer."""
    events = await jetstream.subscribe("vici.*.event.>", stream="VICI", ordered_consumer=True)
    found: list[str] = []
    while len(found) < count:
        for envelope in envelopes((await events.next_msg(timeout=10)).data):
            found.append(envelope["data"]["gw"]["uniqueid"])
    return found


async def everything_at_the_hub(server: NatsServer) -> None:
    """After examples/hub.py has created the streams, the hub has events, mirror and commands."""
    url = server.url.replace("nats://", "nats://admin:admin@")
    made = await asyncio.create_subprocess_exec(sys.executable, str(ROOT / "examples" / "hub.py"), url, "gw1")
    assert await made.wait() == 0
    async with Fleet(as_user(server, "operator")) as fleet:
        async with fleet.subscribe(events=["ike-updown"], start="first") as events:
            assert [(await anext(events)).data["gw"]["uniqueid"] for _ in range(50)] == [str(n) for n in range(1, 51)]
        while True:
            with_mirror = await fleet.nodes()
            async with fleet.watch_sas() as sas:
                if with_mirror[0].present and len(sas.current) == 50:
                    break
            await asyncio.sleep(0.1)
        assert (await fleet.node("gw1").terminate(ike="gw").wait())["success"] == "yes"


async def answers_again(fleet: Fleet) -> None:
    while True:
        try:
            await fleet.node("gw1", timeout=5).version()
            return
        except (Unavailable, JetStreamError):
            await asyncio.sleep(0.05)


def test_leaf_without_its_hub(hub: tuple[NatsServer, int]) -> None:
    server, leaves = hub

    async def test() -> None:
        await server.up()
        async with a_leaf(leaves) as (charon, bridge):
            await emitted(charon, bridge, 1, 50)
            async with Fleet(as_user(server, "operator")) as fleet:
                await answers_again(fleet)
            await everything_at_the_hub(server)
            server.kill()
            await emitted(charon, bridge, 51, 500)
            await server.up()
            async with Fleet(as_user(server, "operator")) as fleet:
                await answers_again(fleet)
                while (await fleet.nodes())[0].present:  # expired at the hub, where the copy is not renewed yet
                    await asyncio.sleep(0.1)
            # Streams at the hub take up to a minute to resume; the leaf's stream can be read through the hub at once.
            admin = await nats.connect(server.url, user="admin", password="admin")
            assert await numbers(admin.jetstream(domain="gw1"), 500) == [str(n) for n in range(1, 501)]
            await admin.close()
            assert bridge.bus.connects == 1 and bridge.embedded and bridge.embedded.starts == 1

    run(test(), timeout=60)


def test_renewed_certificate_for_the_hub(make_nats_server: Callable[..., NatsServer], tmp_path: Path) -> None:
    """nats-server reads it only once; the bridge makes it read the changed file again."""
    pki, leaves = Pki(tmp_path), free_port()
    tls = pki.server_options(f', ca_file: "{pki.ca}", verify: true')
    hub = make_nats_server(f'server_name: hub\nleafnodes {{ listen: "127.0.0.1:{leaves}", {tls} }}')
    pki.renew(-60)
    leaf = {"remotes": [f"tls://localhost:{leaves}"], "tls_ca": pki.ca, "tls_cert": pki.cert, "tls_key": pki.key}
    config = Config(nats={"embedded": {"port": free_port()}, "leaf": leaf}, mirror={"enabled": False})

    async def test() -> None:
        await hub.up()
        async with service(config) as bridge, observing(hub.url, "hello") as observer:
            connection = await bridge.bus.connection()
            await until(lambda: "TLS leafnode handshake error" in hub.log.read_text())
            assert bridge.expires()["leaf.tls_cert"] < time.time()
            pki.renew()
            while not observer.messages:
                await connection.publish("hello", b"")
                await asyncio.sleep(0.05)
            assert bridge.expires()["leaf.tls_cert"] > time.time()
            assert await bridge.bus.connection() is connection  # the connection was kept

    run(test(), 60)
