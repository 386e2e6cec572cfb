"""Several gateways in one bridge, completely separate."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness import NatsServer, Observer, bucket, observing, run, service, settings, until, up
from test_metrics import Values, scraped, value
from test_mirror_worker import child, listed, sa
from vicibridge.config.model import Config, GatewayConfig
from vicibridge.service import Service

from vicifast.testing import FakeCharon

NODES = {"gw1": "gw1", "gw 2": "gw=202"}  # and their tokens in subjects
DOWN = {"bridge": "running", "charon": "down"}


@pytest.fixture(autouse=True)
def _http(_no_http: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VICIBRIDGE_HTTP__LISTEN", "127.0.0.1:0")


def two(url: str, charons: list[FakeCharon]) -> Config:
    gateways = [GatewayConfig(node=node, vici=charon.address) for node, charon in zip(NODES, charons, strict=True)]
    return settings(url, mirror={"heartbeat": 0.4}).model_copy(update={"gateway": gateways})


async def answers(observer: Observer, subject: str) -> dict[str, Any]:
    replies = await observer.ask(subject, parts=2)
    return {(reply.headers or {})["Vici-Node"]: json.loads(reply.data) for reply in replies}


def counted(values: Values, node: str) -> tuple[float, float, float]:
    """Return the state events, log lines and SA keys of a node in NATS."""
    state = value(values, "vicibridge_vici_events_total", node=node, event="ike-updown", kind="up")
    lines = value(values, "vicibridge_published_total", node=node, **{"class": "log"})
    return state, lines, value(values, "vicibridge_mirror_keys", node=node, bucket="VICI_SA")


async def told_apart(observer: Observer, one: FakeCharon, other: FakeCharon, bridge: Service) -> None:
    other.emit("ike-updown", {"up": "yes", "b": sa("8")})
    for _ in range(3):
        other.emit("log", {"group": "IKE", "level": "1", "msg": "of the other"})
    one.emit("ike-updown", {"up": "yes", "a": sa("8")})
    one.emit("ike-updown", {"up": "yes", "a": sa("9")})
    assert {s for s, _ in await observer.sees(".event.", 3)} == {
        "vici.gw=202.event.ike-updown.b.up",
        "vici.gw1.event.ike-updown.a.up",
    }
    assert {(s, e["node"]) for s, e in await observer.sees(".log.", 3)} == {("vici.gw=202.log.IKE.1", "gw 2")}
    await until(lambda: all(not gateway.backlog.waiting and not gateway.log.in_flight for gateway in bridge.gateways))
    for mirroring in bridge.mirrorings:
        await mirroring.buckets.settled()
    assert sorted(await bucket(observer.client, "VICI_SA")) == ["gw1.a.8", "gw1.a.9", "gw=202.b.1", "gw=202.b.8"]
    assert sorted(await bucket(observer.client, "VICI_CONN")) == ["gw1.a", "gw=202.b"]
    assert sorted(await bucket(observer.client, "VICI_NODE")) == sorted(NODES.values())
    values = await scraped(bridge)
    assert (counted(values, "gw1"), counted(values, "gw 2")) == ((2, 0, 2), (1, 3, 2))


def test_two_gateways_in_one_bridge(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as one, FakeCharon() as other, observing(nats_server.url) as observer:
            listed(one, [], {"a": {}})
            listed(other, [("b", sa("1", child("1")))], {"b": {}})
            one.on("stats", {"of": "one"})
            other.on("stats", {"of": "other"})
            async with service(two(nats_server.url, [one, other])) as bridge:
                await up(bridge)
                await until(lambda: all(mirroring.snapshots for mirroring in bridge.mirrorings))
                await told_apart(observer, one, other, bridge)
                for node, token in NODES.items():
                    [reply] = await observer.ask(f"vici.{token}.cmd.stats")
                    assert (reply.headers or {})["Vici-Node"] == token
                    assert json.loads(reply.data) == {"of": "one" if node == "gw1" else "other"}
                assert set(await answers(observer, "vici.all.cmd.stats")) == set(NODES.values())

                await other.stop()  # the first one continues
                await until(lambda: not bridge.gateways[1].reader.up)
                assert bridge.gateways[0].reader.up
                assert value(await scraped(bridge), "vicibridge_charon_up", node="gw 2") == 0
                await observer.ask("vici.gw=202.cmd.stats")
                [reply] = await observer.ask("vici.gw1.cmd.stats")
                assert json.loads(reply.data) == {"of": "one"}
                one.emit("ike-updown", {"a": sa("8")})
                await observer.sees("vici.gw1.event.ike-updown.a.down")
                down = {e["node"] for _, e in observer.seen(".bridge.status") if e["data"] == DOWN}
                assert down == {"gw 2"}
            assert await bucket(observer.client, "VICI_NODE") == {}

    run(test())
