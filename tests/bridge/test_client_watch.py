"""The state mirror from Python: content, changes, and running bridges."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import mirror_values
import pytest
from harness import NatsServer, run, settings, until
from nats.js.api import KeyValueConfig
from nats.js.kv import KeyValue
from vicibridge.client import Change, Fleet, JetStreamError
from vicibridge.client.discovery import Node
from vicibridge.contract import bucket_values
from vicibridge.contract.bucket_values import SaValue
from vicibridge.contract.subjects import unescape
from vicibridge.service import Service

from vicifast.errors import ConnectionClosed


async def bucket(fleet: Fleet, name: str = "VICI_SA", **config: Any) -> KeyValue:
    return await fleet.client.jetstream().create_key_value(KeyValueConfig(bucket=name, **config))


def value(key: str, n: int, **more: Any) -> SaValue:
    """The value of an SA with one more key, as a later bridge may write it."""
    return mirror_values.sa(*map(unescape, key.split(".")), updated=1, n=n, **more)


async def put(kv: KeyValue, key: str, n: int, **more: Any) -> None:
    await kv.put(key, bucket_values.dump(value(key, n, **more)))


def test_content_and_changes(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with Fleet(nats_server.url) as fleet:
            kv = await bucket(fleet)
            await put(kv, "gw1.a.1", n=1)
            await put(kv, "gw1.a.1", n=2)
            await put(kv, "gw2.b.2", n=3, text="\udcff")
            await put(kv, "gw2.b.3", n=4)
            await kv.delete("gw2.b.3")
            async with fleet.watch_sas() as watch:
                assert watch.current == {
                    "gw1.a.1": value("gw1.a.1", 2),
                    "gw2.b.2": value("gw2.b.2", 3, text="\udcff"),
                }
                first = [await anext(watch), await anext(watch)]
                assert first == [
                    Change("gw1.a.1", value("gw1.a.1", 2), None),
                    Change("gw2.b.2", value("gw2.b.2", 3, text="\udcff"), None),
                ]
                await put(kv, "gw1.a.1", n=5)
                assert await anext(watch) == Change("gw1.a.1", value("gw1.a.1", 5), value("gw1.a.1", 2))
                await kv.purge("gw1.a.1")
                assert await anext(watch) == Change("gw1.a.1", None, value("gw1.a.1", 5))
                for number in range(100):
                    await put(kv, "gw1.c.7", n=number)
                await until(lambda: watch.current.get("gw1.c.7") == value("gw1.c.7", 99))
                assert await anext(watch) == Change("gw1.c.7", value("gw1.c.7", 99), None)  # only the last value
                await put(kv, "gw1.d.8", n=1)
                await kv.delete("gw1.d.8")
                await kv.put("gw1.e.9", b"{")
                await until(lambda: "gw1.e.9" in watch._changed)
                with pytest.raises(ValueError, match="VICI_SA: gw1.e.9: "):
                    await anext(watch)  # and no change of gw1.d.8, which appeared and disappeared
                await put(kv, "gw1.e.9", n=1)
                assert await anext(watch) == Change("gw1.e.9", value("gw1.e.9", 1), None)
            with pytest.raises(ConnectionClosed, match="the watch of VICI_SA was closed"):
                await anext(watch)

    run(test())


def test_watches_of_one_node_or_connection(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with Fleet(nats_server.url) as fleet:
            kv = await bucket(fleet)
            for key in ("gw=201.a.1", "gw=201.b.2", "gw2.a.3"):
                await put(kv, key, n=1)
            for arguments, expected in [
                ({"node": "gw 1"}, {"gw=201.a.1", "gw=201.b.2"}),
                ({"ike": "a"}, {"gw=201.a.1", "gw2.a.3"}),
                ({"node": "gw2", "ike": "a"}, {"gw2.a.3"}),
                ({"node": "gw9"}, set()),
            ]:
                async with fleet.watch_sas(**arguments) as watch:
                    assert set(watch.current) == expected

    run(test())


def test_watches_without_a_mirror(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with Fleet(nats_server.url) as fleet:
            with pytest.raises(JetStreamError, match="the bucket VICI_CONN does not exist"):
                await fleet.watch_conns().start()
            assert await fleet.nodes() == []

    run(test())


def test_nodes_alive() -> None:
    def node(answers: bool, **present: Any) -> Node:
        value: Any = {"heartbeat": 10.0, "expires": True, "updated": 0, "charon": "up", **present} if present else None
        return Node("gw1", answers, value)

    now = time.time_ns()
    assert node(True).alive and not node(False).alive
    assert node(False, updated=0).alive  # the server would have removed it
    assert node(False, expires=False, updated=now - 29_000_000_000).alive
    assert not node(False, expires=False, updated=now - 31_000_000_000).alive
    assert node(True, updated=0, expires=False).alive
    assert node(False, charon="down").charon == "down" and node(True).charon is None


def test_node_with_an_expired_key_is_absent(nats_server: NatsServer) -> None:
    """The key of a killed bridge expires, and the marker of its expiry stays for an hour."""

    async def test() -> None:
        await nats_server.up()
        nodes = settings(nats_server.url, mirror={"enabled": True, "heartbeat": 0.4})
        async with Fleet(nats_server.url) as fleet:
            killed = asyncio.create_task(Service(nodes).run(asyncio.Event()))
            while "gw1" not in await present(fleet):
                await asyncio.sleep(0.05)
            async with fleet.watch_nodes() as watch:
                killed.cancel()
                await asyncio.gather(killed, return_exceptions=True)
                async with asyncio.timeout(15):
                    while (change := await anext(watch)).value is not None:
                        assert change.key == "gw1"
                assert change.before is not None and change.before["node"] == "gw1"
            async with fleet.watch_nodes() as watch:
                assert watch.current == {}
            assert await fleet.nodes() == []
            kv = await fleet.client.jetstream().key_value("VICI_NODE")
            assert (await kv.get("gw1")).value is None  # as documented in bucket_values

    run(test(), 60)


async def present(fleet: Fleet) -> set[str]:
    try:
        return await fleet.present()
    except JetStreamError:
        return set()


def test_everyone_waits_for_present_nodes(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with Fleet(nats_server.url) as fleet:
            kv = await bucket(fleet, "VICI_NODE")
            await kv.put("gw1", mirror_values.node_value("gw1", updated=0))
            [node] = await fleet.nodes()
            assert (node.name, node.answers, node.bridge_version, node.charon_version) == ("gw1", False, "1.0", "6.0.1")
            quiet = await fleet.client.subscribe("vici.all.cmd.*")  # a subscriber that does not answer
            answers = fleet.everyone(timeout=0.5).version()
            assert await answers.all() == [] and answers.missing == ["gw1"]
            await quiet.unsubscribe()

    run(test())


def test_frequent_queries_leave_no_consumers(
    make_nats_server: Callable[..., NatsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries for the nodes leave no consumer, and the consumer of a watch ends soon after it."""
    monkeypatch.setattr("vicibridge.client.source._INACTIVE", 0.5)
    server = make_nats_server(
        "accounts { A { jetstream: {max_consumers: 2}, users: [{user: a, password: a}] } }\nno_auth_user: a"
    )

    async def test() -> None:
        await server.up()
        async with Fleet(server.url) as fleet:
            kv = await bucket(fleet, "VICI_NODE", direct=True)
            for node in ("gw1", "gw2", "gw3"):
                await kv.put(node, mirror_values.node_value(node))
            await kv.delete("gw2")
            await kv.put("odd", b"{")
            for _ in range(10):
                assert await fleet.present() == {"gw1", "gw3"}
                assert (await fleet.client.jetstream().stream_info("KV_VICI_NODE")).state.consumer_count == 0
            for _ in range(2):
                async with fleet.watch_nodes() as first, fleet.watch_nodes() as second:
                    assert first.current.keys() == second.current.keys() == {"gw1", "gw3"}
                async with asyncio.timeout(4):  # JetStream's own default is five seconds
                    while (await fleet.client.jetstream().stream_info("KV_VICI_NODE")).state.consumer_count:
                        await asyncio.sleep(0.05)

    run(test())
