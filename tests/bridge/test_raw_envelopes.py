"""The codec raw: unchanged VICI bytes and the envelope in headers, from charon to the client and across outages."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import pytest
from harness import NatsServer, envelopes, observing, run, service, settings, stored, until
from nats.aio.client import Client
from nats.aio.msg import Msg
from vicibridge.client import Completeness, Envelope, Fleet, unpack
from vicibridge.config.model import Config
from vicibridge.contract.bridge_events import from_vici, to_vici
from vicibridge.contract.bucket_values import ConnValue, SaValue
from vicibridge.events.backlog import Backlog
from vicibridge.events.envelopes import Envelopes
from vicibridge.events.raw_envelopes import RawEnvelopes, read_headers, split_headers
from vicibridge.gateway import Gateway

from vicifast import DecodeError, Framer, Raw, decode, encode
from vicifast._wire import EVENT
from vicifast.testing import FakeCharon

SA = {"uniqueid": "7", "state": "ESTABLISHED"}
LINE = {"group": "IKE", "level": "1", "msg": "hello"}
TRAFFIC = {"bytes_in": 2**64 - 1, "packets_in": 0, "bytes_out": 7, "packets_out": 1}
SA_VALUE = SaValue(
    v=1, node="gw 1", boot="b", ike="zürich", uniqueid="7", state="ESTABLISHED", since=2**60, updated=5,
    sa={"uniqueid": "7", "local-vips": ["10.0.0.1"], "remote-vips": []}, children={"4": {"bytes-in": "7"}},
    counted={"4": {"conn": "b", "before": TRAFFIC}}, closed={}, totals={"net": TRAFFIC},
)  # fmt: skip
CONN_VALUE = ConnValue(
    v=1, node="gw1", boot="b", conn="gw", configured=None, since=1, updated=2, up=False, changed=2, ike_sas=0,
    child_sas={"net": 0}, ambiguous=["net"], config={}, closed={"net": TRAFFIC}, totals={},
)  # fmt: skip
REQUEST = {
    "subject": "vici.gw1.cmd.version", "reply": "_INBOX.a", "user": "ann", "command": "version",
    "arguments": {"a": ["b"]}, "code": 200, "text": "", "parts": 0, "bytes": 17, "began": 2**60, "nanoseconds": 900,
}  # fmt: skip
BRIDGE_EVENT_DATA: list[tuple[str, Mapping[str, Any]]] = [
    ("status", {"bridge": "running", "charon": "up"}),
    ("status", {"bridge": "starting", "charon": "down", "previous": {"boot": "a", "last_seq": 3, "clean": False}}),
    ("gap", {"class": "log", "cause": "full", "count": 5, "first_seq": 1, "last_seq": 9, "boot": "b"}),
    ("gap", {"class": "all", "cause": "charon was gone", "count": None, "first_seq": None, "last_seq": None}),
    ("resync", {"kind": "changed", "bucket": "VICI_SA", "key": "gw1.gw.7", "before": SA_VALUE, "after": SA_VALUE}),
    ("resync", {"kind": "appeared", "bucket": "VICI_CONN", "key": "gw1.gw", "before": None, "after": CONN_VALUE}),
    ("audit", REQUEST),
    ("audit", {**REQUEST, "arguments": None}),
    ("audit", {"sums": [{"command": "version", "code": 200, "count": 9}, {"command": "", "code": 404, "count": 1}],
               "since": 1, "until": 2}),
]  # fmt: skip


def message(sealed: bytes) -> Msg:
    lines, payload = split_headers(sealed)
    return Msg(Client(), subject="vici.gw=201=3A=20=C3=B6.x", data=payload, headers=read_headers(lines))


@pytest.mark.parametrize(("kind", "data"), BRIDGE_EVENT_DATA)
def test_bridge_events_round_trip(kind: str, data: Mapping[str, Any]) -> None:
    encoded = decode(encode(to_vici(data)))
    assert "None" not in str(encoded)
    assert from_vici(kind, encoded) == data
    sealed = RawEnvelopes("gw 1: ö", "b0").wrap_object(2**62, kind, data)
    assert unpack(message(sealed)) == [
        Envelope("gw 1: ö", "b0", 1, 2**62, kind, dict(data), "vici.gw=201=3A=20=C3=B6.x")
    ]


def test_names_that_vici_does_not_allow_are_escaped() -> None:
    data = {**SA_VALUE, "closed": {"zürich": TRAFFIC, "x" * 256: TRAFFIC}}
    section = to_vici({"kind": "changed", "before": data})
    assert list(decode(encode(section))["before"]["closed"]) == ["z=C3=BCrich", "x" * 255]  # type: ignore[index, call-overload]


def test_bytes_are_unchanged() -> None:
    build = RawEnvelopes("gw1", "b")
    raw = b"\x03\x01a\x00\x02\xff\n\x03\x01a\x00\x00"  # a duplicate key, and a value that is not text
    lines, payload = split_headers(build.wrap(5, "log", raw))
    assert payload == raw
    assert read_headers(lines) == {
        "Vici-Node": "gw1",
        "Vici-Boot": "b",
        "Vici-Seq": "1",
        "Vici-Time": "5",
        "Vici-Event": "log",
    }
    with pytest.raises(DecodeError):
        build.wrap(5, "log", b"\x03")
    assert (build.seq, build.skip(3), build.seq) == (1, (2, 4), 4)
    assert split_headers(b"\x87\xa1v") == (b"", b"\x87\xa1v")


@pytest.mark.parametrize(
    "headers",
    [
        {"Vici-Event": "log"},
        {"Vici-Node": "n", "Vici-Boot": "b", "Vici-Seq": "x", "Vici-Time": "1", "Vici-Event": "log"},
        {"Vici-Node": "n", "Vici-Boot": "b", "Vici-Seq": "1", "Vici-Time": "1", "Vici-Event": "status"},
    ],
)
@pytest.mark.parametrize("payload", [b"x", encode({"previous": "no section"})])
def test_invalid_envelopes(headers: dict[str, str], payload: bytes) -> None:
    with pytest.raises(ValueError, match="vici.n.x: not an envelope: ") as caught:
        unpack(Msg(Client(), subject="vici.n.x", data=payload, headers=headers))
    assert "KeyError" not in str(caught.value)


@pytest.mark.parametrize(
    "limits",
    [{}, {"every": 3}, {"rate": 20.0}, {"rate": 0.1}, {"wanted": lambda text: b"7" in text}, {"every": 2, "rate": 5.0}],
)
def test_lines_are_selected_and_dropped_as_with_other_codecs(limits: dict[str, Any]) -> None:
    def topic(group: bytes, level: bytes) -> str | None:
        return None if level == b"2" else f"{group.decode()}.{level.decode()}"

    dice = random.Random(3)
    lines = [
        {"group": dice.choice("abc"), "level": str(dice.randrange(3)), "msg": str(dice.randrange(99))}
        for _ in range(500)
    ] + [{"group": ["a"], "level": {}}, {}]
    keys = ("group", "level")
    fast = Envelopes("msgpack", "gw1", "b").intake("log", keys, topic).batcher
    intake = RawEnvelopes("gw1", "b").intake("log", keys, topic)
    plain = intake.batcher
    for batcher in (fast, plain):
        for name, value in limits.items():
            setattr(batcher, name, value)
    framer = Framer(Raw(), {"log": fast})
    for line in lines:
        body = bytes([EVENT, 3]) + b"log" + encode(line)
        framer.feed(len(body).to_bytes(4, "big") + body)
        intake.add(10**18, encode(line))
    framer.packets()
    got = {e["seq"]: (name, e["data"]) for name, payload, *_ in fast.take() for e in envelopes(payload)}
    taken = plain.take()
    assert {first: (name, decode(split_headers(payload)[1])) for name, payload, _, first, _ in taken} == got
    assert all((count, first) == (1, last) for _, _, count, first, last in taken)
    assert (plain.left_out, plain.dropped()) == (fast.left_out, fast.dropped())
    assert plain.take() == plain.dropped() == []


def test_clock_set_back_stops_no_line() -> None:
    batcher, _, add = RawEnvelopes("gw1", "b").intake("log", ("group", "level"), lambda group, level: "topic")
    batcher.rate = 1.0
    second = 10**9
    for time_ns in (10_000 * second, 1 * second, 2 * second, 3 * second):
        add(time_ns, encode({"group": "IKE", "level": "1", "msg": "x"}))
    assert [first for _, _, _, first, _ in batcher.take()] == [1, 3, 4]


def raw(url: str, address: str, **sections: Any) -> Config:
    log = {"codec": "raw"} | sections.pop("log", {})
    return settings(url, address, events={"codec": "raw"}, log=log, **sections)


def test_from_charon_to_the_client(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, Fleet(nats_server.url) as fleet, observing(nats_server.url) as observer:
            config = raw(nats_server.url, charon.address, mirror={"enabled": True})
            charon.on("list-sas", {}, stream=[("list-sa", {"other": {**SA, "uniqueid": "9"}})])
            charon.on("list-conns", {})
            charon.on("version", {"version": "5.9.8"})
            names = ["ike-updown", "log", "status", "gap", "resync", "audit"]
            async with fleet.subscribe(events=names) as events, service(config) as bridge:
                await charon.registered("log")
                charon.emit("ike-updown", {"up": "yes", "gw": SA})
                for number in range(300):
                    charon.emit("log", {**LINE, "msg": str(number)})
                charon.emit("log", b"\x03")
                await observer.ask("vici.gw1.cmd.version")
                seen: list[Envelope] = []
                check = Completeness(from_start=True)
                lines = resyncs = 0
                while {*names} - {e.event for e in seen} or lines < 300 or not resyncs:
                    seen += (found := await events.batch())
                    for envelope in found:
                        check.add(envelope)
                        lines += envelope.event == "log"
                        resyncs += envelope.data.get("key") == "gw1.other.9"
                log = bridge.gateways[0].log
                await log.flush()
                assert log.counts.received == log.counts.published + log.counts.dropped == 301
            assert [e.data["msg"] for e in seen if e.event == "log"] == [str(number) for number in range(300)]
            [up] = [e for e in seen if e.event == "ike-updown"]
            assert (up.subject, up.data, up.kind) == (
                "vici.gw1.event.ike-updown.gw.up",
                {"up": "yes", "gw": SA},
                "state",
            )
            [gap] = [e.data for e in seen if e.event == "gap"]
            assert gap == {
                "class": "log", "cause": "malformed message from charon", "count": 1,
                "first_seq": 301, "last_seq": 301, "boot": up.boot,
            }  # fmt: skip
            [resync] = [e.data for e in seen if e.data.get("key") == "gw1.other.9"]
            assert resync["before"] is None and resync["after"]["since"] > 10**18
            assert next(e.data["code"] for e in seen if e.event == "audit") in (200, 404)
            assert check.gaps() == [] and check.duplicates == check.disordered == 0
        alone = [m for m in observer.messages if ".log." in m.subject]
        assert len(alone) == 300
        assert alone[0].data == encode({**LINE, "msg": "0"})

    run(test())


def test_spool_keeps_headers_across_a_restart(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with FakeCharon() as charon:
            for number in (1, 2):  # starts without NATS
                async with service(raw(nats_server.url, charon.address)) as bridge:
                    await charon.registered("log")
                    charon.emit("ike-updown", {"up": "yes", f"gw{number}": SA})
                    await until(lambda bridge=bridge: bridge.gateways[0].reader.events["ike-updown", "up"])
            await nats_server.up()
            # the codec may change meanwhile: pending events keep theirs
            async with service(settings(nats_server.url, charon.address)) as bridge:
                await charon.registered("log")
                charon.emit("ike-updown", {"up": "yes", "gw3": SA})
                await bridge.gateways[0].backlog.flush()
        messages = await stored(nats_server.url)
        found = [unpack(m) for m in messages]
        kept = [e for each in found for e in each]
        assert [e.data for e in kept if e.event == "ike-updown"] == [{"up": "yes", f"gw{n}": SA} for n in (1, 2, 3)]
        boots = sorted({e.boot for e in kept})
        assert len(boots) == 3
        for boot in boots:
            seqs = [e.seq for e in kept if e.boot == boot]
            assert seqs == list(range(1, len(seqs) + 1)) and len(seqs) >= 4
        raw_ones = [m for m in messages if "Vici-Boot" in (m.headers or {})]
        assert {(m.headers or {})["Vici-Boot"] for m in raw_ones} == set(boots[:2])
        for m in raw_ones:
            headers = m.headers or {}
            assert headers["Nats-Msg-Id"] == f"gw1.{headers['Vici-Boot']}.{headers['Vici-Seq']}"

    run(test())


def test_bridge_event_too_large_for_vici_is_lost(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            async with service(raw(nats_server.url, charon.address)) as bridge:
                await charon.registered("log")
                gateway: Gateway = bridge.gateways[0]
                gateway.report("resync", {"before": {f"a{n}": "x" * 60_000 for n in range(10)}})
                [(_, gap)] = await observer.sees(".gap")
                assert gap["data"]["cause"] == "larger than VICI allows"
                backlog: Backlog = gateway.backlog
                assert backlog.counts.causes == {"larger than VICI allows": 1}

    run(test())


def test_pending_lines_are_bounded_individually(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with FakeCharon() as charon:
            config = raw(nats_server.url, charon.address, log={"max_bytes": 1024 * 1024})
            async with service(config) as bridge:
                await charon.registered("log")
                log = bridge.gateways[0].log
                for number in range(3000):
                    charon.emit("log", {**LINE, "msg": f"{number}".ljust(1000)})
                    if not number % 100:
                        await asyncio.sleep(0)
                await until(lambda: log.counts.received == 3000)
                assert log.counts.dropped + log.in_flight == 3000 and 500 < log.in_flight < 1024
                kept = log.in_flight
                await nats_server.up()
                await log.flush()
                assert (log.counts.published, log.counts.dropped) == (kept, 3000 - kept)

    run(test())
