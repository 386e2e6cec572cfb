"""The mirror between a scripted charon and a real nats-server."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import NatsServer, Observer, bucket, observing, processed, run, service, settings, until
from vicibridge.config.model import Config, EventsConfig
from vicibridge.contract.names import EventCodec
from vicibridge.contract.subjects import Subjects
from vicibridge.mirror.model import Mirror
from vicibridge.mirror.reconcile import Reconciliation
from vicibridge.service import Service

import vicifast
from vicifast.testing import FakeCharon

OLD_SERVER = "NATS_SERVER_OLD"  # the path of a nats-server before 2.11
Section = dict[str, Any]

CONFIG = {"version": "IKEv2", "local_addrs": ["%any"], "remote_addrs": ["192.0.2.1"], "children": {"net": {}}}


def sa(uniqueid: str, *children: Section, spi: str = "a", **more: str) -> Section:
    base = {
        "uniqueid": uniqueid,
        "state": "ESTABLISHED",
        "initiator-spi": spi,
        "responder-spi": spi,
        "established": "7",
    }
    return {**base, **more, "child-sas": {f"net-{child['uniqueid']}": child for child in children}}


def child(uniqueid: str, octets: int = 0, **more: str) -> Section:
    counters = {f"{what}-{way}": str(octets) for what in ("bytes", "packets") for way in ("in", "out")}
    return {"name": "net", "uniqueid": uniqueid, "state": "INSTALLED", "spi-in": f"c{uniqueid}", **counters, **more}


def listed(charon: FakeCharon, sas: list[tuple[str, Section]], conns: dict[str, Section] | None = None) -> None:
    charon.on("list-sas", {}, stream=[("list-sa", {name: section}) for name, section in sas])
    configured = {"gw": CONFIG} if conns is None else conns
    charon.on("list-conns", {}, stream=[("list-conn", {name: config}) for name, config in configured.items()])
    charon.on("version", {"daemon": "charon", "version": "6.0.6"})


def mirrored(url: str, charon: FakeCharon, **mirror: Any) -> Config:
    return settings(url, charon.address, mirror={"heartbeat": 0.4, **mirror})


async def settled(bridge: Service, snapshots: int = 1) -> None:
    mirroring = bridge.mirrorings[0]
    await until(lambda: mirroring.snapshots >= snapshots)
    await asyncio.wait_for(mirroring.buckets.settled(), 10)


def resyncs(observer: Observer) -> list[tuple[str, str]]:
    return [(e["data"]["kind"], e["data"]["key"]) for _, e in observer.seen(".bridge.resync")]


def test_life_of_a_mirror(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            listed(charon, [("gw", sa("1", child("1", 10)))])
            async with service(mirrored(nats_server.url, charon)) as bridge:
                await settled(bridge)
                [(key, value)] = (await bucket(observer.client, "VICI_SA")).items()
                assert key == "gw1.gw.1" and value["children"] == {"1": child("1", 10)}
                assert value["sa"] == {k: v for k, v in sa("1").items() if k != "child-sas"}
                assert (value["node"], value["ike"], value["state"]) == ("gw1", "gw", "ESTABLISHED")
                assert value["since"] < value["updated"] - 6_900_000_000
                assert value["totals"]["net"] == dict.fromkeys(value["totals"]["net"], 10) and not value["closed"]
                await observer.sees(".bridge.resync", 2)
                assert sorted(resyncs(observer)) == [("appeared", "gw1.gw"), ("appeared", "gw1.gw.1")]

                pair = {"old": child("1", 25, state="REKEYED"), "new": child("2")}
                charon.emit("child-rekey", {"gw": {**sa("1"), "child-sas": {"net": pair}}})
                old, new = sa("1"), sa("2", spi="b")
                del old["child-sas"], new["child-sas"]
                charon.emit("ike-rekey", {"gw": {"old": old, "new": new}})
                charon.emit("ike-update", {"remote-host": "192.0.2.9", "remote-port": "4500", "gw": new})
                await observer.sees(".event.ike-update")
                await settled(bridge)
                [(key, value)] = (await bucket(observer.client, "VICI_SA")).items()
                assert key == "gw1.gw.2" and list(value["children"]) == ["2"]
                assert value["sa"]["remote-host"] == "192.0.2.9" and value["closed"]["net"]["bytes_in"] == 25
                [(key, value)] = (await bucket(observer.client, "VICI_CONN")).items()
                assert (key, value["configured"], value["config"]) == ("gw1.gw", True, CONFIG)
                assert (value["ike_sas"], value["child_sas"]) == (1, {"net": 1})

                charon.emit("ike-updown", {"gw": new})
                charon.emit("child-updown", {"gw": {**new, "child-sas": {"net-2": child("2", 7)}}})
                await observer.sees(".event.child-updown")
                await settled(bridge)
                assert await bucket(observer.client, "VICI_SA") == {}
                value = (await bucket(observer.client, "VICI_CONN"))["gw1.gw"]
                assert (value["ike_sas"], value["child_sas"], value["totals"]["net"]["bytes_in"]) == (0, {"net": 0}, 32)

                node = (await bucket(observer.client, "VICI_NODE"))["gw1"]
                assert (node["charon"], node["charon_version"], node["heartbeat"]) == ("up", "6.0.6", 0.4)
                assert node["expires"] and node["boot"] == value["boot"]
            assert await bucket(observer.client, "VICI_NODE") == {}  # deleted at the stop
            assert len(resyncs(observer)) == 2

    run(test())


def test_presence_ends_with_the_bridge(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            listed(charon, [])
            config = mirrored(nats_server.url, charon)
            bridge = Service(config)
            running = asyncio.create_task(bridge.run(asyncio.Event()))
            await settled(bridge)
            await until(lambda: bridge.mirrorings[0].buckets.written > 4)  # refreshed
            assert list(await bucket(observer.client, "VICI_NODE")) == ["gw1"]
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            async with asyncio.timeout(10):
                while await bucket(observer.client, "VICI_NODE"):
                    await asyncio.sleep(0.1)

    run(test())


def test_snapshot_corrects_and_reports_differences(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            listed(charon, [("gw", sa("1", child("1"))), ("gw", sa("2", spi="b")), ("gw", sa("3", spi="c"))])
            async with service(mirrored(nats_server.url, charon, interval=0.2)) as bridge:
                await settled(bridge, 3)
                written, before = bridge.mirrorings[0].buckets.written, len(resyncs(observer))
                assert before == 4
                rows = [("gw", sa("1", child("1", 99))), ("gw", sa("2", spi="b", **{"remote-host": "192.0.2.7"}))]
                listed(charon, [*rows, ("gw", sa("4", spi="d"))])
                await observer.sees(".bridge.resync", before + 3)
                await settled(bridge, bridge.mirrorings[0].snapshots + 2)
                assert sorted(resyncs(observer)[before:]) == [
                    ("appeared", "gw1.gw.4"),
                    ("changed", "gw1.gw.2"),
                    ("vanished", "gw1.gw.3"),
                ]
                [(_, changed)] = [x for x in observer.seen("resync")[before:] if x[1]["data"]["kind"] == "changed"]
                data = changed["data"]
                assert "remote-host" not in data["before"]["sa"] and data["after"]["sa"]["remote-host"] == "192.0.2.7"
                rows_ = await bucket(observer.client, "VICI_SA")
                assert rows_.keys() == {"gw1.gw.1", "gw1.gw.2", "gw1.gw.4"}
                assert rows_["gw1.gw.1"]["totals"]["net"]["bytes_out"] == 99
                beats = 2 + bridge.mirrorings[0].snapshots
                assert bridge.mirrorings[0].buckets.written - written <= 5 + beats  # nothing else was written

    run(test())


def test_events_during_a_snapshot_take_precedence(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            listed(charon, [("gw", sa("1", child("1"))), ("gw", sa("2", spi="b"))])

            def meanwhile(request: object) -> dict[str, str]:
                """Events that charon raises between its list of SAs and its reply."""
                if not charon.registrations("ike-updown") or meanwhile_done:
                    return {}
                meanwhile_done.append(True)
                charon.emit("ike-updown", {"gw": sa("2", spi="b")})
                charon.emit("ike-updown", {"up": "yes", "gw": sa("3", spi="c")})
                charon.emit("child-updown", {"gw": sa("1", child("1", 5))})
                return {}

            meanwhile_done: list[bool] = []
            rows = [("list-sa", {"gw": sa("1", child("1"))}), ("list-sa", {"gw": sa("2", spi="b")})]
            charon.on("list-sas", meanwhile, stream=rows)
            async with service(mirrored(nats_server.url, charon)) as bridge:
                await settled(bridge)
                assert meanwhile_done
                values = await bucket(observer.client, "VICI_SA")
                assert values.keys() == {"gw1.gw.1", "gw1.gw.3"} and not values["gw1.gw.1"]["children"]
                await observer.sees(".bridge.resync", 2)
                # The events reported the connection first, but not whether it is configured.
                assert sorted(resyncs(observer)) == [("appeared", "gw1.gw.1"), ("changed", "gw1.gw")]

    run(test())


def test_charon_restart(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            listed(charon, [("gw", sa("1", child("1", 10))), ("gw", sa("2"))])
            async with service(mirrored(nats_server.url, charon)) as bridge:
                await settled(bridge)
                await charon.stop()
                async with asyncio.timeout(10):
                    while (await bucket(observer.client, "VICI_NODE"))["gw1"]["charon"] != "down":
                        await asyncio.sleep(0.05)
                assert len(await bucket(observer.client, "VICI_SA")) == 2  # the last known state
                before = len(resyncs(observer))
                listed(charon, [("gw", sa("1", child("1", 3, **{"spi-in": "new"}), spi="new"))])
                await charon.start()
                await settled(bridge, 2)
                await observer.sees(".bridge.resync", before + 2)
                assert sorted(resyncs(observer)[before:]) == [("changed", "gw1.gw.1"), ("vanished", "gw1.gw.2")]
                assert list(await bucket(observer.client, "VICI_SA")) == ["gw1.gw.1"]
                value = (await bucket(observer.client, "VICI_CONN"))["gw1.gw"]
                assert value["totals"]["net"]["bytes_in"] == 13

    run(test())


def test_nats_restart_without_its_store(make_nats_server: Callable[..., NatsServer]) -> None:
    async def test() -> None:
        server = make_nats_server()
        await server.up()
        async with FakeCharon() as charon, observing(server.url) as observer:
            listed(charon, [("gw", sa(str(number), spi=str(number))) for number in range(1, 400)])
            async with service(mirrored(server.url, charon)) as bridge:
                await settled(bridge)
                jetstream = observer.client.jetstream()
                assert len(await bucket(observer.client, "VICI_SA")) == 399
                await jetstream.delete_key_value("VICI_SA")
                server.kill()
                charon.emit("ike-updown", {"gw": sa("7", spi="7")})
                charon.emit("ike-updown", {"up": "yes", "gw": sa("1000", spi="1000")})
                await until(lambda: not bridge.bus.connected)
                await server.up()
                async with asyncio.timeout(15):
                    while (
                        "gw1.gw.1000" not in (values := await bucket(observer.client, "VICI_SA")) or len(values) < 399
                    ):
                        await asyncio.sleep(0.05)
                assert "gw1.gw.7" not in values and len(values) == 399

    run(test())


def test_values_of_an_earlier_run(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            listed(charon, [("gw", sa("1", child("1", 10))), ("gw", sa("2", spi="b"))])
            config = mirrored(nats_server.url, charon)
            async with service(config) as bridge:
                await settled(bridge)
            kv = await observer.client.jetstream().key_value("VICI_SA")
            await kv.put("gw1.odd", b"no value")
            await kv.put("gw2.gw.1", b"of another node")
            revision = (await kv.get("gw1.gw.1")).revision
            before = len(resyncs(observer))
            listed(charon, [("gw", sa("1", child("2", 5, **{"spi-in": "new"}))), ("gw", sa("3", spi="c"))])
            async with service(config) as bridge:
                await settled(bridge)
                await observer.sees(".bridge.resync", before + 3)
                assert sorted(resyncs(observer)[before:]) == [
                    ("appeared", "gw1.gw.3"),
                    ("changed", "gw1.gw.1"),
                    ("vanished", "gw1.gw.2"),
                ]
                assert set(await kv.keys()) == {"gw1.gw.1", "gw1.gw.3", "gw2.gw.1"}
                assert json.loads((await kv.get("gw1.gw.1")).value or b"")["totals"]["net"]["bytes_in"] == 15
            revision = (await kv.get("gw1.gw.1")).revision
            async with service(config) as bridge:
                await settled(bridge)
                assert (await kv.get("gw1.gw.1")).revision == revision
            assert len(resyncs(observer)) == before + 3

    run(test())


def test_markers_of_deleted_keys_take_no_memory(nats_server: NatsServer) -> None:
    marks = 10_000

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            listed(charon, [("gw", sa("1"))])
            async with service(mirrored(nats_server.url, charon)) as bridge:
                await settled(bridge)
                purge = {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}
                for number in range(marks):
                    await observer.client.publish(f"$KV.VICI_SA.gw1.gone.{number}", b"", headers=purge)
                await observer.client.publish("$KV.VICI_SA.gw1.gw.1", b"{}")  # after them, from another client
                await processed(observer.client)
                jetstream = observer.client.jetstream()
                while (await jetstream.stream_info("KV_VICI_SA")).state.messages < marks + 1:
                    await asyncio.sleep(0.05)
                tracemalloc.start()
                try:
                    (await bridge.bus.connection()).lose("a test")
                    async with asyncio.timeout(30):
                        while (await bucket(observer.client, "VICI_SA", "gw1.gw.1"))["gw1.gw.1"] == {}:
                            await asyncio.sleep(0.05)
                    peak = tracemalloc.get_traced_memory()[1]
                finally:
                    tracemalloc.stop()
                assert peak < marks * 500

    run(test())


def test_without_jetstream_and_unable_to_list(
    make_nats_server: Callable[..., NatsServer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("vicibridge.mirror.buckets._RETRY", 0.05)
    monkeypatch.setattr("vicibridge.mirror.worker._SOON", 0.05)

    async def test() -> None:
        server = make_nats_server()
        await server.up()
        async with FakeCharon() as charon, observing(server.url) as observer:
            charon.on("version", {"version": "5.9.8"})
            async with service(mirrored(server.url, charon)) as bridge:
                await until(lambda: "cannot list the SAs" in caplog.text)
                await observer.client.jetstream().delete_stream("KV_VICI_NODE")
                await until(lambda: "the bucket VICI_NODE is not writable" in caplog.text)
                await until(lambda: "the bucket VICI_NODE accepts all writes again" in caplog.text)
                listed(charon, [("gw", sa("1"))])
                await settled(bridge)
                assert list(await bucket(observer.client, "VICI_SA")) == ["gw1.gw.1"]
        assert caplog.text.count("cannot list the SAs") == caplog.text.count("is not writable") == 1

    run(test())


def test_server_without_key_expiry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.environ.get(OLD_SERVER)
    if not old:
        pytest.skip(f"no nats-server before 2.11: {OLD_SERVER} may be the path of one")
    monkeypatch.setenv("NATS_SERVER_BINARY", old)
    monkeypatch.setattr("vicibridge.mirror.buckets.MARKER", 0.3)
    server = NatsServer(tmp_path)

    async def test() -> None:
        await server.up()
        async with FakeCharon() as charon, observing(server.url) as observer:
            listed(charon, [("gw", sa("1", child("1"))), ("gw", sa("2", spi="b"))])
            config = mirrored(server.url, charon)
            async with service(config) as bridge:
                await settled(bridge)
                charon.emit("ike-updown", {"gw": sa("1")})
                await observer.sees(".event.ike-updown")
                await settled(bridge)
                assert list(await bucket(observer.client, "VICI_SA")) == ["gw1.gw.2"]
                node = (await bucket(observer.client, "VICI_NODE"))["gw1"]
                assert not node["expires"] and node["heartbeat"] == 0.4
                jetstream = observer.client.jetstream()
                async with asyncio.timeout(10):  # the marker of the deleted key is removed, too
                    while (await jetstream.stream_info("KV_VICI_SA")).state.messages > 1:
                        await asyncio.sleep(0.05)
            async with service(config) as bridge:
                await settled(bridge)
                assert set(await bucket(observer.client, "VICI_SA")) == {"gw1.gw.1", "gw1.gw.2"}

    try:
        run(test())
    finally:
        server.kill()


@pytest.mark.parametrize("number", ["9" * 20, "9" * 5000, "-1", "\u0663", "1.5", ""])
def test_invalid_counters(nats_server: NatsServer, number: str) -> None:
    """From an event and from a list: the mirror and its reports continue."""

    async def test() -> None:
        await nats_server.up()
        odd = {way: number for way in ("bytes-in", "packets-in", "bytes-out", "packets-out")}
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            listed(charon, [("gw", sa("1", child("1", **odd), established=number))])
            async with service(mirrored(nats_server.url, charon)) as bridge:
                await settled(bridge)
                charon.emit(
                    "child-updown", {"up": "yes", "gw": sa("2", child("2", **odd), spi="b", established=number)}
                )
                charon.emit("child-updown", {"gw": sa("2", child("2", **odd), spi="b", established=number)})
                charon.emit("alert", {"type": "end"})
                await observer.sees("alert.end")
                bridge.mirrorings[0].lost()
                await settled(bridge, 2)
                assert set(await bucket(observer.client, "VICI_SA")) == {"gw1.gw.1"}

    run(test())


def test_closed_sas_take_no_memory_without_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicibridge.mirror.model._COUNTED", 100)
    mirror = Mirror(Subjects("vici", "gw1"), "gw1", "b")
    for number in range(1000):
        old, new = child(str(number), 1), child(str(number + 1))
        rekeyed = {"gw": sa("1") | {"child-sas": {"net": {"old": old, "new": new}}}}
        mirror.event(1, "child-rekey", vicifast.encode(rekeyed))
    assert len(mirror.counted) == 100
    value = json.loads(mirror.value(("VICI_CONN", "gw1.gw")) or b"")
    assert value["totals"]["net"]["bytes_in"] == 1000


SHARED = {
    "a": {"children": {"one": {}, "both": {}}},
    "b": {"children": {"two": {}, "both": {}}},
    "c": {"children": {"same": {}}},
    "d": {"children": {"same": {}}},
}


class Shared:
    """A mirror of connections that share the IKE_SA of `a`."""

    def __init__(self) -> None:
        self.mirror = Mirror(Subjects("vici", "gw1"), "gw1", "b")
        self.now = 0
        self.snapshot([])

    def time(self) -> int:
        self.now += 1
        return self.now

    def snapshot(self, children: list[Section], conns: dict[str, Section] | None = None) -> None:
        snapshot = Reconciliation(self.mirror)
        for name, config in (SHARED if conns is None else conns).items():
            snapshot.conn(self.time(), vicifast.encode({name: config}))
        snapshot.sa(self.time(), vicifast.encode({"a": sa("1", *children)}))
        snapshot.finish(self.time())

    def event(self, event: str, children: Section, *, up: bool = False) -> None:
        flag = vicifast.encode({"up": "yes"}) if up else b""
        self.mirror.event(self.time(), event, flag + vicifast.encode({"a": sa("1") | {"child-sas": children}}))

    def conn(self, name: str) -> Section:
        value: Section = json.loads(self.mirror.value(("VICI_CONN", f"gw1.{name}")) or b"")
        return value

    def traffic(self, name: str) -> dict[str, int]:
        return {child: traffic["bytes_in"] for child, traffic in self.conn(name)["totals"].items()}


def test_child_counts_for_the_connection_that_configures_it() -> None:
    shared = Shared()
    assert [shared.conn(name)["up"] for name in SHARED] == [True, False, False, False]  # a has the IKE_SA
    since = shared.conn("b")["changed"]
    shared.event("child-updown", {"two-1": child("1", name="two")}, up=True)
    assert shared.conn("b")["child_sas"] == {"two": 1, "both": 0} and shared.conn("b")["ike_sas"] == 0
    assert shared.conn("a")["child_sas"] == {"one": 0, "both": 0}
    came = shared.conn("b")["changed"]
    assert shared.conn("b")["up"] and came > since
    pair = {"old": child("1", 5, name="two"), "new": child("2", name="two")}
    shared.event("child-rekey", {"two": pair})
    assert (shared.conn("b")["changed"], shared.traffic("b"), shared.traffic("a")) == (came, {"two": 5}, {})
    shared.event("child-updown", {"two-2": child("2", 7, name="two")})
    assert (shared.conn("b")["up"], shared.traffic("b"), shared.traffic("a")) == (False, {"two": 12}, {})
    assert shared.conn("b")["changed"] > came


def test_child_name_configured_by_several_connections() -> None:
    shared = Shared()
    shared.event("child-updown", {"both-1": child("1", name="both")}, up=True)
    shared.event("child-updown", {"same-2": child("2", name="same")}, up=True)
    assert shared.conn("a")["child_sas"] == {"one": 0, "both": 1, "same": 1}
    assert [shared.conn(name)["ambiguous"] for name in SHARED] == [[], [], ["same"], ["same"]]
    assert [shared.conn(name)["up"] for name in SHARED] == [True, False, False, False]
    shared.event("child-updown", {"same-2": child("2", 3, name="same")})
    assert not shared.conn("c")["ambiguous"] and not shared.mirror.ambiguous and shared.traffic("a")["same"] == 3


def test_traffic_of_a_reassigned_child_is_counted_once() -> None:
    shared = Shared()
    only_a = {"a": SHARED["a"]}
    shared.snapshot([], only_a)
    shared.snapshot([child("1", 10, name="two")], only_a)
    assert shared.traffic("a") == {"two": 10}
    shared.snapshot([child("1", 30, name="two")])
    assert (shared.traffic("a"), shared.traffic("b")) == ({"two": 10}, {"two": 20})
    data = shared.mirror.value(("VICI_SA", "gw1.a.1")) or b""
    assert json.loads(data)["counted"]["1"]["conn"] == "b" and json.loads(data)["totals"]["two"]["bytes_in"] == 30
    former, shared.mirror = shared.mirror, Mirror(Subjects("vici", "gw1"), "gw1", "b2")
    for key in former.keys():
        assert shared.mirror.restore(key, former.value(key) or b"", shared.time()) or key[0] == "VICI_CONN"
    shared.snapshot([child("1", 31, name="two")])
    assert (shared.traffic("a"), shared.traffic("b")) == ({"two": 10}, {"two": 21})
    shared.snapshot([child("1", 40, name="two")], only_a)  # b is removed with its totals
    shared.snapshot([child("1", 45, name="two")], only_a)
    assert shared.traffic("a") == {"two": 15}


@pytest.mark.parametrize("first", ["VICI_CONN", "VICI_SA"])
def test_inconsistent_values_are_rewritten(first: str) -> None:
    """A bridge that is killed, or a bucket that is purged, leaves values that contradict each other."""
    shared = Shared()
    shared.event("child-updown", {"two-1": child("1", name="two")}, up=True)
    second = vicifast.encode({"up": "yes"}) + vicifast.encode({"a": sa("2", spi="b")})
    shared.mirror.event(shared.time(), "ike-updown", second)
    left = {key: shared.mirror.value(key) or b"" for key in shared.mirror.keys()}
    del left["VICI_CONN", "gw1.b"], left["VICI_SA", "gw1.a.1"]
    shared.mirror = Mirror(Subjects("vici", "gw1"), "gw1", "b2")
    for key in sorted(left, key=lambda key: key[0] != first):
        shared.mirror.restore(key, left[key], shared.time())
    assert not shared.mirror.changed
    reconciliation = Reconciliation(shared.mirror)
    for name, config in SHARED.items():
        reconciliation.conn(shared.time(), vicifast.encode({name: config}))
    reconciliation.sa(shared.time(), vicifast.encode({"a": sa("2", spi="b")}))
    reconciliation.finish(shared.time())
    assert shared.mirror.changed.keys() == {("VICI_CONN", "gw1.a"), ("VICI_CONN", "gw1.b")}
    assert (shared.conn("a")["up"], shared.conn("a")["ike_sas"], shared.conn("b")["up"]) == (True, 1, False)


def test_child_of_an_unknown_connection_triggers_a_snapshot(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event reports that it was loaded; a child whose name no connection configures does."""
    monkeypatch.setattr("vicibridge.mirror.worker._SOON", 0.05)

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            listed(charon, [("gw", sa("1"))])
            async with service(mirrored(nats_server.url, charon, interval=3600)) as bridge:
                await settled(bridge)
                two = child("1", name="two")
                listed(charon, [("gw", sa("1", two))], {"gw": CONFIG, "b": SHARED["b"]})
                charon.emit("child-updown", {"up": "yes", "gw": sa("1", two)})
                await settled(bridge, 2)
                values = await bucket(observer.client, "VICI_CONN")
                assert (values["gw1.b"]["up"], values["gw1.b"]["child_sas"]) == (True, {"two": 1, "both": 0})
                assert values["gw1.gw"]["child_sas"] == {"net": 0}
                # A child that no connection configured at the last snapshot triggers none.
                for number, snapshots in ((2, 3), (3, 3)):
                    odd = child(str(number), name="odd")
                    listed(charon, [("gw", sa("1", two, odd))], {"gw": CONFIG, "b": SHARED["b"]})
                    charon.emit("child-updown", {"up": "yes", "gw": sa("1", odd)})
                    await observer.sees("child-updown", number)
                    await settled(bridge, snapshots)
                    await settled(bridge, snapshots)
                assert not bridge.mirrorings[0].mirror.doubtful and bridge.mirrorings[0].snapshots == 3

    run(test())


def test_one_request_at_a_time_to_a_busy_charon(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicibridge.mirror.worker._SOON", 0.05)
    monkeypatch.setattr("vicibridge.mirror.worker._TIMEOUT", 0.2)

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon:
            listed(charon, [("gw", sa("1"))])
            charon.mute("version")
            async with service(mirrored(nats_server.url, charon)) as bridge:
                await until(lambda: [command for command, _ in charon.requests].count("list-sas") >= 4)
                asked = [command for command, _ in charon.requests]
                assert asked.count("version") == len(bridge.mirrorings[0]._requests) == 1

    run(test())


def test_sas_during_a_nats_outage_take_no_memory(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url, "nothing") as observer:
            listed(charon, [("gw", sa("1")), ("gw", sa("2"))])
            async with service(mirrored(nats_server.url, charon)) as bridge:
                await settled(bridge)
                mirror = bridge.mirrorings[0].mirror
                nats_server.kill()
                await until(lambda: not bridge.bus.connected)
                received = bridge.gateways[0].backlog.counts.received
                charon.emit("ike-updown", {"gw": sa("2")})
                for number in range(10, 4010):
                    charon.emit("ike-updown", {"up": "yes", "gw": sa(str(number))})
                    charon.emit("ike-updown", {"gw": sa(str(number))})
                    await charon.drain()
                await until(lambda: bridge.gateways[0].backlog.counts.received > received + 8000)
                assert len(mirror.changed) < 1100
                listed(charon, [("gw", sa("1"))])
                await nats_server.up()
                await until(lambda: bridge.bus.connected)
                await settled(bridge)
                async with asyncio.timeout(20):
                    while list(await bucket(observer.client, "VICI_SA")) != ["gw1.gw.1"]:
                        await asyncio.sleep(0.05)

    run(test())


LARGE = 10**30
DEEP: Any = json.loads('{"x":' * 600 + "1" + "}" * 600)
COUNTERS = ("bytes_in", "packets_in", "bytes_out", "packets_out")
FORGED: list[Section] = [
    {"since": -LARGE},
    {"updated": float("inf")},
    {"since": "long ago"},
    {"sa": {"version": LARGE, "odd": None, "list": [{}]}},
    {"sa": {"version": LARGE}},
    {"sa": {"x": DEEP}},
    {"sa": {"\ud800": "x"}},
    {"sa": {"x": "\ud800"}},
    {"closed": {"net": dict.fromkeys(COUNTERS, -LARGE)}},
    {"closed": {"net": dict.fromkeys(COUNTERS, 0.5)}},
    {"closed": {"\ud800": dict.fromkeys(COUNTERS, 1)}},
    {"children": {"1": {"name": LARGE, "uniqueid": "1", "bytes-in": LARGE}}},
    {"children": {"2": {"name": "\ud800", "uniqueid": "2"}}},
    {"counted": {"2": {"conn": "gw", "before": dict.fromkeys(COUNTERS, -1)}}},
    {"counted": {"2": {"conn": "gw", "before": LARGE}}},
    {"counted": LARGE},
]


def forged(uniqueid: str, changed: Section) -> bytes:
    value = {
        "v": 1,
        "ike": "gw",
        "uniqueid": uniqueid,
        "since": 1,
        "updated": 1,
        "sa": {},
        "children": {},
        "counted": {},
        "closed": {},
    }
    return json.dumps(value | changed).encode()


@pytest.mark.parametrize("codec", ["msgpack", "json", "raw"])
def test_invalid_values_from_other_clients(nats_server: NatsServer, codec: EventCodec) -> None:
    """The bridge continues, and corrects them."""
    sas = {f"gw1.gw.9{number}": forged(f"9{number}", changed) for number, changed in enumerate(FORGED)}
    sas |= {"gw1.gw.deep": b"[" * 100_000, "gw1.gw.none": b"null"}
    conn = {"v": 1, "conn": "old", "configured": DEEP, "since": 1, "updated": 1, "config": {}, "closed": {}}
    conn |= {"up": True, "changed": 1}

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            listed(charon, [("gw", sa("1"))])
            config = mirrored(nats_server.url, charon).model_copy(update={"events": EventsConfig(codec=codec)})
            async with service(config) as bridge:
                await settled(bridge)
            kv = await observer.client.jetstream().key_value("VICI_SA")
            conns = await observer.client.jetstream().key_value("VICI_CONN")
            for key, value in sas.items():
                await kv.put(key, value)
            await conns.put("gw1.old", json.dumps(conn).encode())
            async with service(config) as bridge:
                await settled(bridge)
                for name, key in (("VICI_SA", "gw1.gw.1"), ("VICI_CONN", "gw1.gw")):
                    assert list(await bucket(observer.client, name)) == [key]
                await until(lambda: not bridge.gateways[0].backlog.waiting)
                assert not bridge.gateways[0].backlog.counts.dropped

    run(test())
