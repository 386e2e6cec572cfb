"""Buckets that administrators create, fill, empty and limit: only acknowledged writes count."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import nats.js.errors
import pytest
from harness import NatsServer, Observer, bucket, observing, run, service, settings, until
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StorageType, StreamConfig
from nats.js.kv import KeyValue
from test_console import outcome
from test_http import fetch
from test_mirror_worker import OLD_SERVER, child, listed, mirrored, sa, settled
from vicibridge.contract.bucket_values import BUCKETS
from vicibridge.ops.metrics import METRICS
from vicibridge.service import Service

from vicifast.testing import FakeCharon

ROOMY = {"max_bytes": -1, "max_msg_size": -1}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VICIBRIDGE_HTTP__LISTEN", "127.0.0.1:0")
    monkeypatch.setattr("vicibridge.mirror.ledger._FIRST_DELAY", 0.05)
    monkeypatch.setattr("vicibridge.mirror.ledger._LONGEST_DELAY", 0.2)
    monkeypatch.setattr("vicibridge.mirror.buckets._RETRY", 0.05)
    monkeypatch.setattr("vicibridge.mirror.buckets._LONGEST_RETRY", 0.2)


def made(name: str, **config: Any) -> StreamConfig:
    """Return the configuration of a bucket as `nats kv add` creates it, changed by `config`."""
    usual: dict[str, Any] = {
        "subjects": [f"$KV.{name}.>"],
        "storage": StorageType.FILE,
        "max_msgs_per_subject": 1,
        "discard": DiscardPolicy.NEW,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
    }
    return StreamConfig(name=f"KV_{name}", **usual | config)


async def change(jetstream: JetStreamContext, name: str, **config: Any) -> None:
    present = (await jetstream.stream_info(f"KV_{name}")).config
    await jetstream.update_stream(present.evolve(**config))


async def equal(observer: Observer, name: str, keys: set[str]) -> None:
    """Wait until a bucket has these keys and no others."""
    async with asyncio.timeout(20):
        while (await bucket(observer.client, name)).keys() != keys:
            await asyncio.sleep(0.05)


def metric(bridge: Service, name: str) -> float:
    """Return a metric of the node; if it has one for each bucket, that of VICI_SA."""
    [metric] = [metric for metric in METRICS if metric.name == f"vicibridge_{name}"]
    return dict(metric.read(bridge))[("gw1", "VICI_SA")[: len(metric.labels)]]


def troubles(bridge: Service) -> list[str]:
    return [reason for reason in bridge.reasons() if reason.startswith("gw1: mirror: ")]


def sas(*numbers: int, padding: int = 0) -> list[tuple[str, dict[str, Any]]]:
    return [("gw", sa(str(n), child(str(n)), spi=str(n), padding="x" * padding)) for n in numbers]


@asynccontextmanager
async def mirror(
    server: NatsServer, charon: FakeCharon, observer: Observer, **more: Any
) -> AsyncIterator[tuple[Service, JetStreamContext]]:
    """A bridge whose mirror is written as far as the buckets accept it."""
    async with service(mirrored(server.url, charon, **more)) as bridge:
        await settled(bridge)
        yield bridge, observer.client.jetstream()


@asynccontextmanager
async def mirroring(
    server: NatsServer, rows: list[tuple[str, dict[str, Any]]], **more: Any
) -> AsyncIterator[tuple[FakeCharon, Observer, Service, JetStreamContext]]:
    """A server, a charon with these SAs, an observer, and a bridge that mirrors them."""
    await server.up()
    async with FakeCharon() as charon, observing(server.url) as observer:
        listed(charon, rows)
        async with mirror(server, charon, observer, **more) as (bridge, jetstream):
            yield charon, observer, bridge, jetstream


async def whole(bridge: Service, observer: Observer, keys: set[str]) -> None:
    """Wait until no write is refused, and the bucket has the expected content."""
    await until(lambda: not troubles(bridge))
    await equal(observer, "VICI_SA", keys)
    assert metric(bridge, "mirror_keys") == len(keys)
    assert (metric(bridge, "mirror_unwritten"), metric(bridge, "mirror_complete")) == (0, 1)
    async with asyncio.timeout(10):
        while (await bucket(observer.client, "VICI_NODE"))["gw1"]["mirror"] != "complete":
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("config", "refusal"),
    [
        ({"max_bytes": 9000}, "maximum bytes exceeded in the stream KV_VICI_SA (JetStream error 10077)"),
        (
            {"max_msg_size": 3500},
            "message size exceeds maximum allowed in the stream KV_VICI_SA (JetStream error 10054)",
        ),
    ],
)
def test_full_bucket(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture, config: dict[str, Any], refusal: str
) -> None:
    """A refused write is counted, reported and retried, and blocks no other key."""
    caplog.set_level(logging.INFO, "vicibridge")

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            await observer.client.jetstream().add_stream(made("VICI_SA", **config))
            listed(charon, [*sas(1, 2, 3, 4, padding=1500), *sas(5, padding=5000)])
            async with mirror(nats_server, charon, observer) as (bridge, jetstream):
                await until(lambda: metric(bridge, "mirror_refused_total") > 5)  # repeatedly
                present = set(await bucket(observer.client, "VICI_SA"))
                assert 0 < len(present) < 5
                assert metric(bridge, "mirror_keys") == len(present)
                assert metric(bridge, "mirror_unwritten") == 5 - len(present) and not metric(bridge, "mirror_complete")
                status, text = await fetch(bridge, "/readyz")
                answer = json.loads(text)
                assert (status, answer["events"], answer["mirror"]) == (503, {"gw1": True}, {"gw1": False})
                [trouble] = answer["reasons"]
                assert trouble.startswith(f"gw1: mirror: VICI_SA: keys refused: {5 - len(present)}: {refusal}")
                async with asyncio.timeout(10):
                    while (await bucket(observer.client, "VICI_NODE"))["gw1"]["mirror"] != "incomplete":
                        await asyncio.sleep(0.05)
                _, out, _ = await outcome(nats_server, "nodes", "--json")
                assert json.loads(out)["mirror"] == "incomplete"
                # Other keys are written: a tunnel ends, another moves, and a connection is reported.
                gone, moved = (re.sub("^gw1.gw.", "", key) for key in sorted(present)[:2])
                charon.emit("ike-updown", {"gw": sa(gone, spi=gone)})
                charon.emit("ike-update", {"remote-host": "192.0.2.9", "gw": sa(moved, spi=moved)})
                async with asyncio.timeout(10):
                    while f"gw1.gw.{gone}" in (values := await bucket(observer.client, "VICI_SA")) or (
                        values[f"gw1.gw.{moved}"]["sa"].get("remote-host") != "192.0.2.9"
                    ):
                        await asyncio.sleep(0.05)
                await change(jetstream, "VICI_SA", **ROOMY)
                await whole(bridge, observer, {f"gw1.gw.{n}" for n in range(1, 6)} - {f"gw1.gw.{gone}"})

    run(test())
    assert caplog.text.count(" was refused: ") == caplog.text.count("VICI_SA accepts all writes again") == 1


def test_full_account(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server(
        "accounts { A { jetstream: {max_store: 100000}, users: [{user: a, password: a}] } }\nno_auth_user: a"
    )

    async def test() -> None:
        await server.up()
        async with FakeCharon() as charon, observing(server.url) as observer:
            jetstream = observer.client.jetstream()
            await jetstream.add_stream(name="OTHER", subjects=["other"])
            for _ in range(80):
                await jetstream.publish("other", b"x" * 1000)
            listed(charon, sas(*range(1, 8), padding=2000))
            async with mirror(server, charon, observer) as (bridge, _):
                await until(lambda: metric(bridge, "mirror_unwritten"))
                assert "resource limits exceeded for account" in str(troubles(bridge))
                await jetstream.delete_stream("OTHER")
                await whole(bridge, observer, {f"gw1.gw.{number}" for number in range(1, 8)})

    run(test())


def test_value_too_large_for_nats(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server("max_payload: 4000")

    async def test() -> None:
        async with mirroring(server, [*sas(1, 3), *sas(2, padding=5000)]) as (charon, observer, bridge, _):
            await equal(observer, "VICI_SA", {"gw1.gw.1", "gw1.gw.3"})
            [trouble] = troubles(bridge)
            assert trouble.startswith("gw1: mirror: VICI_SA: keys refused: 1: too large for NATS: ")
            listed(charon, sas(1, 2, 3))  # the last value wins: a retry writes the current value
            bridge.mirrorings[0].lost()
            await whole(bridge, observer, {"gw1.gw.1", "gw1.gw.2", "gw1.gw.3"})

    run(test())


def test_deleted_and_overwritten_values_are_restored_without_reconnecting(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with mirroring(nats_server, sas(1, 2, 3), interval=0.3) as (_, observer, bridge, jetstream):
            keys = {"gw1.gw.1", "gw1.gw.2", "gw1.gw.3"}
            await equal(observer, "VICI_SA", keys)
            before = len(observer.seen(".bridge.resync"))
            kv = await jetstream.key_value("VICI_SA")
            await jetstream.purge_stream("KV_VICI_SA")
            await equal(observer, "VICI_SA", keys)
            await kv.delete("gw1.gw.1")
            await kv.purge("gw1.gw.2")
            await kv.put("gw1.gw.4", b'{"odd": true}')
            await kv.put("gw1.gw.3", b'{"odd": true}')
            async with asyncio.timeout(20):
                while (values := await bucket(observer.client, "VICI_SA")).keys() != keys or any(
                    "odd" in value for value in values.values()
                ):
                    await asyncio.sleep(0.05)
            await jetstream.purge_stream("KV_VICI_CONN")
            await equal(observer, "VICI_CONN", {"gw1.gw"})
            await jetstream.purge_stream("KV_VICI_NODE")
            await equal(observer, "VICI_NODE", {"gw1"})
            await jetstream.delete_stream("KV_VICI_SA")
            await equal(observer, "VICI_SA", keys)
            assert bridge.bus.connects == 1 and len(observer.seen(".bridge.resync")) == before

    run(test())


def test_values_expired_by_max_age_are_restored(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            await observer.client.jetstream().add_stream(made("VICI_SA", max_age=1))
            listed(charon, sas(1, 2))
            async with mirror(nats_server, charon, observer, interval=0.3):
                expired = 0
                async with asyncio.timeout(15):
                    while expired < 2:
                        while await bucket(observer.client, "VICI_SA"):
                            await asyncio.sleep(0.02)
                        expired += 1
                        await equal(observer, "VICI_SA", {"gw1.gw.1", "gw1.gw.2"})

    run(test())


def test_comparison_during_writes_repeats_none(nats_server: NatsServer) -> None:
    """Writes in flight while the bucket is read count neither as missing nor as foreign."""

    async def test() -> None:
        async with mirroring(nats_server, sas(*range(1, 1200)), heartbeat=60) as (charon, observer, bridge, _):
            buckets = bridge.mirrorings[0].buckets
            written = buckets.written
            for round in range(10):
                for number in range(1 + round, 1200, 10):
                    new = {"remote-host": "192.0.2.9", "remote-port": str(round)}
                    charon.emit("ike-update", {**new, "gw": sa(str(number), spi=str(number))})
                await charon.drain()
                buckets.compare()
            await until(lambda: sum(bridge.gateways[0].reader.events.values()) == 1199)
            await asyncio.wait_for(buckets.settled(), 20)
            buckets.compare()
            await until(lambda: not any(b.check_at == 0 for b in buckets._buckets.values()))
            await asyncio.wait_for(buckets.settled(), 20)
            # Each SA, and its connection once for each batch of events.
            assert 1199 <= buckets.written - written <= 2 * 1199
            assert len(await bucket(observer.client, "VICI_SA")) == 1199

    run(test())


def test_bucket_with_no_ack(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url, "$KV.VICI_SA.>") as observer:
            await observer.client.jetstream().add_stream(made("VICI_SA", no_ack=True))
            listed(charon, sas(1, 2))
            async with mirror(nats_server, charon, observer) as (bridge, jetstream):
                await equal(observer, "VICI_CONN", {"gw1.gw"})
                [trouble] = troubles(bridge)
                assert trouble.startswith(
                    "gw1: mirror: VICI_SA: the bucket VICI_SA has no_ack: JetStream acknowledges nothing"
                )
                assert not observer.messages and metric(bridge, "mirror_keys") == 0
                await change(jetstream, "VICI_SA", no_ack=False)
                await whole(bridge, observer, {"gw1.gw.1", "gw1.gw.2"})

    run(test())
    assert caplog.text.count("VICI_SA is not writable") == 1


def test_bucket_changed_to_no_ack_at_run_time(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicibridge.mirror.buckets._ACK_TIMEOUT", 0.3)

    async def test() -> None:
        async with mirroring(nats_server, sas(1)) as (charon, observer, bridge, jetstream):
            await change(jetstream, "VICI_SA", no_ack=True)
            charon.emit("ike-updown", {"up": "yes", "gw": sa("2", spi="2")})
            await until(lambda: "no_ack" in str(troubles(bridge)))
            await change(jetstream, "VICI_SA", no_ack=False)
            await whole(bridge, observer, {"gw1.gw.1", "gw1.gw.2"})

    run(test())


def test_sealed_bucket(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with mirroring(nats_server, sas(1)) as (charon, observer, bridge, jetstream):
            await change(jetstream, "VICI_SA", sealed=True)
            charon.emit("ike-updown", {"up": "yes", "gw": sa("2", spi="2")})
            await until(lambda: "invalid operation on sealed stream" in str(troubles(bridge)))
            bridge.mirrorings[0].buckets.compare()
            await until(lambda: "the bucket VICI_SA is sealed" in str(troubles(bridge)))
            assert metric(bridge, "mirror_keys") == 1
            await jetstream.delete_stream("KV_VICI_SA")
            await whole(bridge, observer, {"gw1.gw.1", "gw1.gw.2"})

    run(test())


def test_missing_bucket_does_not_block_the_others(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            jetstream = observer.client.jetstream()
            await jetstream.add_stream(name="VICI", subjects=["vici.*.event.>", "vici.*.bridge.>"])
            for name in BUCKETS:
                await jetstream.add_stream(made(name))
            listed(charon, sas(1))
            config = settings(
                nats_server.url, charon.address, nats={"provision": "bind"}, mirror={"heartbeat": 0.4, "interval": 0.3}
            )
            async with service(config) as bridge:
                await settled(bridge)
                await equal(observer, "VICI_SA", {"gw1.gw.1"})
                await jetstream.delete_stream("KV_VICI_SA")
                await until(lambda: "the bucket VICI_SA for $KV.VICI_SA.> does not exist" in str(troubles(bridge)))
                listed(charon, [*sas(1), ("new", sa("2", spi="2"))])
                charon.emit("ike-updown", {"up": "yes", "new": sa("2", spi="2")})
                await equal(observer, "VICI_CONN", {"gw1.gw", "gw1.new"})
                await jetstream.add_stream(made("VICI_SA"))
                await whole(bridge, observer, {"gw1.gw.1", "gw1.new.2"})

    run(test())


async def consumers(jetstream: JetStreamContext) -> int:
    total = 0
    for name in BUCKETS:
        with suppress(nats.js.errors.NotFoundError):
            total += (await jetstream.stream_info(f"KV_{name}")).state.consumer_count
    return total


FEW = "accounts { A { jetstream: {max_consumers: 6}, users: [{user: a, password: a}] } }\nno_auth_user: a"


def test_starts_and_reconnects_leave_no_consumers(
    make_nats_server: Callable[..., NatsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vicibridge.bus.supervisor._LONGEST_DELAY", 0.05)
    server = make_nats_server(FEW)

    async def test() -> None:
        await server.up()
        async with FakeCharon() as charon, observing(server.url) as observer:
            listed(charon, sas(1, 2))
            jetstream = observer.client.jetstream()
            for _ in range(4):
                one, other = (
                    settings(server.url, charon.address, node=node, mirror={"heartbeat": 60}) for node in ("gw1", "gw2")
                )
                async with service(one) as first, service(other) as second:
                    for bridge in (first, second):
                        await settled(bridge)
                    for _ in range(9):
                        for bridge in (first, second):
                            connects = bridge.bus.connects
                            (await bridge.bus.connection()).lose("a test")
                            await until(lambda bridge=bridge, before=connects: bridge.bus.connects > before)
                            await until(lambda bridge=bridge: not bridge.mirrorings[0].buckets.troubles())
                        assert await consumers(jetstream) == 0
            keys = {f"{node}.gw.{number}" for node in ("gw1", "gw2") for number in (1, 2)}
            await equal(observer, "VICI_SA", keys)

    run(test(), 60)


@pytest.mark.parametrize("kind", ["keeps a history", "old server"])
def test_without_batched_direct_gets(
    make_nats_server: Callable[..., NatsServer], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A consumer reads the bucket, and is deleted."""
    if kind == "old server":
        if not (old := os.environ.get(OLD_SERVER)):
            pytest.skip(f"no nats-server before 2.11: {OLD_SERVER} may be the path of one")
        monkeypatch.setenv("NATS_SERVER_BINARY", old)
    server = make_nats_server(FEW)
    config = {"max_msgs_per_subject": 5} if kind == "keeps a history" else {}

    async def test() -> None:
        await server.up()
        async with FakeCharon() as charon, observing(server.url) as observer:
            jetstream = observer.client.jetstream()
            for name in ("VICI_SA", "VICI_CONN"):
                await jetstream.add_stream(made(name, **config))
            listed(charon, sas(*range(1, 600)))
            for _ in range(5):
                async with mirror(server, charon, observer, interval=0.2) as (bridge, _):
                    await until(lambda: metric(bridge, "mirror_keys") == 599)
                    kv = await jetstream.key_value("VICI_SA")
                    await kv.put("gw1.gw.1", b'{"odd": true}')
                    await kv.put("gw1.gw.odd", b'{"odd": true}')
                    await kv.delete("gw1.gw.2")
                    async with asyncio.timeout(20):
                        while await kept(kv, "gw1.gw.1", "gw1.gw.2", "gw1.gw.odd") != [True, True, False]:
                            await asyncio.sleep(0.05)
                assert await consumers(jetstream) <= 2  # of a comparison that the stop interrupted
            assert {e["data"]["kind"] for _, e in observer.seen(".bridge.resync")} == {"appeared"}

    run(test(), 60)


@pytest.mark.parametrize("replies", [[{"Status": "odd"}], [{"Nats-Num-Pending": "1"}, {"Status": "204"}]])
def test_foreign_reply_to_a_direct_get(nats_server: NatsServer, replies: list[dict[str, str]]) -> None:
    """The bridge reports that, and continues when it ends."""

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            jetstream = observer.client.jetstream()
            for name in ("VICI_SA", "VICI_CONN"):
                await jetstream.add_stream(made(name, allow_direct=False))

            async def reply(request: Msg) -> None:
                for headers in replies:
                    await observer.client.publish(request.reply, b"", headers=headers)

            rogue = await observer.client.subscribe("$JS.API.DIRECT.GET.KV_VICI_SA", cb=reply)
            listed(charon, sas(1))
            async with service(mirrored(nats_server.url, charon)) as bridge:
                await until(lambda: "unexpected reply to a direct get" in str(troubles(bridge)))
                await rogue.unsubscribe()
                await whole(bridge, observer, {"gw1.gw.1"})

    run(test())


async def kept(kv: KeyValue, *keys: str) -> list[bool]:
    """Return for each key whether the bridge wrote its value."""
    found = []
    for key in keys:
        try:
            found.append(b"odd" not in ((await kv.get(key)).value or b"odd"))
        except nats.js.errors.KeyNotFoundError:
            found.append(False)
    return found
