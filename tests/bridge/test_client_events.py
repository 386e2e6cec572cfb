"""Envelopes from the bus: every codec, also from JetStream, bounded buffers, and completeness."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime
from typing import Any

import msgpack
import nats
import pytest
from harness import NatsServer, processed, run, service, settings, until, up
from mirror_values import sa_value
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import KeyValueConfig
from vicibridge.client import Completeness, Envelope, Events, Fleet, JetStreamError, MissingEvents, SlowConsumer, unpack
from vicibridge.contract.subjects import filters
from vicibridge.events.envelopes import Envelopes

from vicifast import _wire, encode
from vicifast.errors import ConnectionClosed
from vicifast.testing import FakeCharon

SUBJECT = "vici.gw1.event.ike-updown.gw.up"
SA = {"uniqueid": "7", "state": "ESTABLISHED"}


def message(payload: bytes, subject: str = SUBJECT) -> Msg:
    return Msg(Client(), subject=subject, data=payload)


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_envelopes_of_the_bridge_are_decoded(codec: Any) -> None:
    envelopes = Envelopes(codec, "gw 1", "b0")
    data = {"up": "yes", "gä": {"id": "a\udcff\n", "list": ["x", "\udc80"]}}
    own = {"class": "log", "cause": "full", "count": 2, "first_seq": None, "last_seq": None}
    payload = envelopes.wrap(2**62, "ike-updown", b"") + envelopes.wrap_object(5, "gap", own)
    raw = encode({"up": "yes", "g": data["gä"]})
    payload += envelopes.wrap(7, "ike-updown", raw)
    subject = "vici.gw=201.event.ike-updown.gw.up"
    assert unpack(message(payload, subject)) == [
        Envelope("gw 1", "b0", 1, 2**62, "ike-updown", {}, subject),
        Envelope("gw 1", "b0", 2, 5, "gap", own, subject),
        Envelope("gw 1", "b0", 3, 7, "ike-updown", {"up": "yes", "g": data["gä"]}, subject),
    ]
    assert [envelope.kind for envelope in unpack(message(payload, subject))] == ["state"] * 3


GOOD = {"v": 1, "node": "gw1", "boot": "b", "seq": 1, "time": 1, "event": "log", "data": {"msg": "Ä"}}


def test_text_that_looks_like_bytes() -> None:
    [envelope] = unpack(message(msgpack.packb(GOOD)))
    assert envelope.data == {"msg": "Ä"} and envelope.kind == "log"


@pytest.mark.parametrize(
    "payload",
    [
        b"x",
        b"{",
        b"\xc1",
        b'{"node": "gw1"}',
        b"\x93\x01\x02\x03",
        msgpack.packb(GOOD)[:-1],
        msgpack.packb(GOOD) + b"\x01",
        msgpack.packb(GOOD) + msgpack.packb(GOOD)[:-1],
        json.dumps(GOOD).encode() + b"\n{",
        msgpack.packb({1: 2}),
    ],
)  # fmt: skip
def test_payloads_that_are_not_envelopes(payload: bytes) -> None:
    with pytest.raises(ValueError, match=f"{SUBJECT}: not an envelope: ") as caught:
        unpack(message(payload))
    assert "Error" not in str(caught.value)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"x", "the value is not an object"),
        (b'{"v":1}', "node is missing"),
        (b"\x81" * 5000, "the msgpack is nested too deeply"),
        (b'{"a":' * 50000, "the JSON is nested too deeply"),
        (msgpack.packb({**GOOD, "v": 2}), "v is not 1"),
        (msgpack.packb({**GOOD, "node": 1}), "node is not a string"),
        (msgpack.packb({**GOOD, "seq": True}), "seq is not an integer of 64 bits"),
    ],
)
def test_reasons_why_payloads_are_not_envelopes(payload: bytes, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        unpack(message(payload))
    assert str(caught.value) == f"{SUBJECT}: not an envelope: {reason}"


def test_envelopes_of_another_node_than_in_the_subject_are_rejected() -> None:
    # The permissions of NATS limit a gateway to the subjects of its node, but not what it writes in the payload.
    payload = msgpack.packb({**GOOD, "node": "gw2"})
    for subject in (SUBJECT, "vici.gw1.event.gw2.event.x", "vici.gw1"):
        with pytest.raises(ValueError, match="not an envelope: node is 'gw2', not that of the subject"):
            unpack(message(payload, subject))
    for subject in ("other.vici.gw2.event.x", "gw2"):
        with pytest.raises(ValueError, match="not an envelope: the subject does not begin with vici"):
            unpack(message(payload, subject))
    assert unpack(message(payload, "a.b.gw2.log.IKE.1"), "a.b")


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_the_extension_and_the_codecs_agree(codec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build, rng = Envelopes(codec, "gw1", "b"), random.Random(1)
    good = build.wrap(2**62, "ike-updown", encode({"up": "yes", "g": {"l": ["x", "\udcff"], "e": {}}}))
    payloads = [good, *(_changed(rng, good * rng.randrange(1, 3)) for _ in range(3000))]
    found = [_unpacked(payload) for payload in payloads]
    assert any(isinstance(one, list) for one in found[1:]) and any(isinstance(one, str) for one in found)
    monkeypatch.setattr(_wire, "envelopes", lambda payload, subject, node: None)
    assert [_unpacked(payload) for payload in payloads] == found


def _changed(rng: random.Random, payload: bytes) -> bytes:
    changed = bytearray(payload)
    for _ in range(rng.randrange(1, 3)):
        changed[rng.randrange(len(changed))] = rng.choice(
            [*b'\x00\x80\xa1\xc2\xc4\xff"\\{}[],:\n\r 1e.', rng.randrange(256)]
        )
    return bytes(changed)


def _unpacked(payload: bytes) -> list[Envelope] | str:
    try:
        return unpack(message(payload))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ["vici.*.event.>", "vici.*.bridge.>"]),
        ({"nodes": ["gw 1"]}, ["vici.gw=201.event.>", "vici.gw=201.bridge.>"]),
        ({"events": ["log", "gap"]}, ["vici.*.log.>", "vici.*.bridge.gap"]),
        (
            {"nodes": ["a", "b"], "events": ["ike-updown"]},
            ["vici.a.event.ike-updown.>", "vici.b.event.ike-updown.>"],
        ),
        (
            {"ike": "s.1"},
            [
                "vici.*.event.ike-updown.s=2E1.*",
                "vici.*.event.ike-rekey.s=2E1",
                "vici.*.event.ike-update.s=2E1",
                "vici.*.event.child-updown.s=2E1.*.*",
                "vici.*.event.child-rekey.s=2E1.*",
            ],
        ),
        ({"events": ["child-rekey"], "ike": "a"}, ["vici.*.event.child-rekey.a.*"]),
        (
            {"events": ["ike-updown.failed", "child-updown.down", "alert.cert-expired", "alert.of-a-newer-charon"]},
            [
                "vici.*.event.ike-updown.*.failed",
                "vici.*.event.child-updown.*.*.down",
                "vici.*.event.alert.cert-expired",
                "vici.*.event.alert.of-a-newer-charon",
            ],
        ),
        ({"events": ["child-updown.up"], "ike": "a.b"}, ["vici.*.event.child-updown.a=2Eb.*.up"]),
        (
            {"nodes": ["a", "a"], "events": ["ike-updown.failed", "ike-updown", "gap", "gap"]},
            ["vici.a.event.ike-updown.>", "vici.a.bridge.gap"],
        ),
        ({"events": ["ike-updown.up", "ike-updown"], "ike": "a"}, ["vici.*.event.ike-updown.a.*"]),
    ],
)
def test_filters(arguments: dict[str, Any], expected: list[str]) -> None:
    assert filters("vici", **arguments) == expected


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        ("ike-updown.lost", "ike-updown.lost: use up, down, failed"),
        ("child-updown.failed", "child-updown.failed: use up, down"),
        ("ike-rekey.up", "ike-rekey.up: ike-rekey has no kinds"),
        ("log.1", "log.1: log has no kinds"),
    ],
)
def test_filter_rejects_unknown_kinds(event: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        filters("vici", events=[event])


@pytest.mark.parametrize("event", ["log", "alert", "alert.cert-expired", "gap"])
def test_filter_rejects_a_connection_for_events_without_one(event: str) -> None:
    with pytest.raises(ValueError, match=f"{event} cannot be selected by connection"):
        filters("vici", events=[event], ike="gw")


def an(seq: int, event: str = "ike-updown", boot: str = "b1", node: str = "gw1", **data: Any) -> Envelope:
    return Envelope(node, boot, seq, 0, event, data, "")


def test_completeness() -> None:
    whole = Completeness(from_start=True)
    for seq in (2, 3, 6):
        whole.add(an(seq))
    assert whole.gaps() == [MissingEvents("gw1", "b1", "state", 1, 1), MissingEvents("gw1", "b1", "state", 4, 5)]
    assert str(whole.gaps()[1]) == "gw1: 2 of class state are missing, the first is 4"
    whole.add(an(5))
    whole.add(an(5))
    whole.add(an(1))
    assert whole.gaps() == [MissingEvents("gw1", "b1", "state", 4, 4)]
    assert (whole.duplicates, whole.disordered) == (1, 2)


def test_late_subscriber_misses_only_later_events() -> None:
    joined = Completeness()
    for envelope in (an(7), an(5), an(8), an(100, "log"), an(3, node="gw2"), an(2, boot="b2"), an(1, boot="b0")):
        joined.add(envelope)
    assert joined.gaps() == [MissingEvents("gw1", "b2", "state", 1, 1)]
    assert joined.duplicates == 0


def test_gap_events_explain_missing_numbers() -> None:
    whole = Completeness(from_start=True)
    whole.add(an(5, "log"))
    whole.add(an(1, "gap", **{"class": "log", "cause": "full", "count": 3, "first_seq": 1, "last_seq": 4}))
    whole.add(an(2, "gap", **{"class": "all", "cause": "charon was gone", "count": None, "first_seq": None}))
    assert whole.gaps() == [MissingEvents("gw1", "b1", "log", 1, 4, "full")]
    assert str(whole.gaps()[0]) == "gw1: 4 of class log are missing, the first is 1: full"


def test_status_reports_the_last_number_of_the_previous_start() -> None:
    whole = Completeness(from_start=True)
    whole.add(an(1))
    whole.add(an(1, "status", boot="b2", bridge="starting", previous={"boot": "b1", "last_seq": 3, "clean": False}))
    assert whole.gaps() == [MissingEvents("gw1", "b1", "state", 2, 3)]
    killed = {"class": "state", "cause": "killed", "count": None, "first_seq": 2, "last_seq": None, "boot": "b1"}
    whole.add(Envelope("gw1", "b2", 2, 0, "gap", killed, ""))
    assert whole.gaps() == [MissingEvents("gw1", "b1", "state", 2, 3, "killed")]
    whole.add(an(2))
    whole.add(an(3))
    assert whole.gaps() == []


def test_late_subscriber_misses_no_earlier_events_after_the_clock_was_set_back() -> None:
    joined = Completeness()
    joined.add(an(1, "status", boot="b1", bridge="starting", previous={"boot": "b2", "last_seq": 9, "clean": False}))
    joined.add(an(8, boot="b2"))
    joined.add(an(1, "status", boot="b0", bridge="starting", previous={"boot": "b1", "last_seq": 4, "clean": True}))
    joined.add(an(5, boot="b0"))
    assert joined.gaps() == [MissingEvents("gw1", "b1", "state", 2, 4), MissingEvents("gw1", "b0", "state", 2, 4)]


def test_completeness_in_any_order_and_with_any_loss() -> None:
    dice = random.Random(7)
    for _ in range(200):
        numbers = list(range(1, dice.randrange(2, 40)))
        kept = [n for n in numbers if dice.random() < 0.7]
        dice.shuffle(kept)
        whole = Completeness(from_start=True)
        for seq in kept:
            whole.add(an(seq))
        missing = {n for gap in whole.gaps() for n in range(gap.first, gap.last + 1)}
        assert missing == set(range(1, max(kept, default=0) + 1)) - set(kept)


@pytest.mark.parametrize("codec", ["msgpack", "json", "raw"])
def test_events_of_a_bridge(nats_server: NatsServer, codec: str) -> None:
    async def test() -> None:
        await nats_server.up()
        config = settings(nats_server.url, events={"codec": codec}, log={"codec": codec})
        async with FakeCharon() as charon, Fleet(nats_server.url) as fleet:
            config = settings(nats_server.url, charon.address, events={"codec": codec}, log={"codec": codec})
            events = fleet.subscribe(events=["ike-updown", "log", "status"])
            async with events, fleet.subscribe(ike="gw") as of_one, service(config) as bridge:
                await up(bridge)
                charon.emit("ike-updown", {"other": SA})
                charon.emit("ike-updown", {"up": "yes", "gw": SA})
                for number in range(100):
                    charon.emit("log", {"group": "IKE", "level": "1", "msg": str(number)})
                seen: list[Envelope] = []
                check = Completeness(from_start=True)
                while sum(envelope.event == "log" for envelope in seen) < 100 or len(seen) < 104:
                    for envelope in await events.batch():
                        seen.append(envelope)
                        check.add(envelope)
                assert check.gaps() == [] and check.duplicates == check.disordered == 0
                assert [e.data["msg"] for e in seen if e.event == "log"] == [str(n) for n in range(100)]
                only = await anext(of_one)
                assert (only.subject, only.data) == (SUBJECT, {"up": "yes", "gw": SA})
            with pytest.raises(ConnectionClosed, match="the subscription was closed"):
                while True:
                    await anext(events)

    run(test())


async def filled(client: Client, count: int, first: int = 1) -> None:
    """Store state events of a bridge that is not running."""
    jetstream = client.jetstream()
    await jetstream.add_stream(name="VICI", subjects=["vici.*.event.>", "vici.*.bridge.>"])
    for seq in range(first, first + count):
        await jetstream.publish(SUBJECT, msgpack.packb({**GOOD, "event": "ike-updown", "seq": seq}))


async def take(events: Events, count: int) -> list[int]:
    return [(await anext(events)).seq for _ in range(count)]


def test_jetstream_from_any_start(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with Fleet(nats_server.url) as fleet:
            with pytest.raises(JetStreamError, match="the stream VICI does not exist"):
                await fleet.subscribe(start="first").start()
            await filled(fleet.client, 5)
            time = datetime.now(UTC)
            await filled(fleet.client, 1, first=6)
            async with fleet.subscribe(start="first") as events:
                assert await take(events, 6) == [1, 2, 3, 4, 5, 6]
            async with fleet.subscribe(start=3, nodes=["gw1"], events=["ike-updown"]) as events:
                assert await take(events, 4) == [3, 4, 5, 6]
            async with fleet.subscribe(start=time) as events:
                assert await take(events, 1) == [6]
            async with fleet.subscribe(start="new") as events:
                await filled(fleet.client, 1, first=7)
                assert await take(events, 1) == [7]
            with pytest.raises(ValueError, match="JetStream does not store the log"):
                fleet.subscribe(events=["log"], start="first")

    run(test())


async def acknowledged(fleet: Fleet, seq: int) -> None:
    """Wait until exactly the messages up to `seq` are acknowledged in JetStream."""
    jetstream = fleet.client.jetstream()
    async with asyncio.timeout(10):
        while (floor := (await jetstream.consumer_info("VICI", "pager")).ack_floor.stream_seq) < seq:
            await asyncio.sleep(0.01)
    assert floor == seq


def test_durable_consumer_resumes_after_the_last_acknowledgement(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with Fleet(nats_server.url) as fleet:
            await filled(fleet.client, 5)
            async with fleet.subscribe(durable="pager") as events:
                assert await take(events, 3) == [1, 2, 3]
                with pytest.raises(JetStreamError, match="already read by another program"):
                    await fleet.subscribe(durable="pager").start()
            await acknowledged(fleet, 2)
            with pytest.raises(JetStreamError, match="pager reads vici.*.bridge.>, not vici.gw1.event.>"):
                await fleet.subscribe(durable="pager", nodes=["gw1"]).start()
            with pytest.raises(ValueError, match="queue must equal durable"):
                fleet.subscribe(durable="pager", queue="other")
        async with Fleet(nats_server.url) as fleet, fleet.subscribe(durable="pager") as events:
            await filled(fleet.client, 1, first=6)
            assert sorted(await take(events, 4)) == [3, 4, 5, 6]
            await events.ack()
            await acknowledged(fleet, 6)

    run(test())


def test_queue_shares_messages(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with Fleet(nats_server.url) as fleet:
            await filled(fleet.client, 0)
            durable = [fleet.subscribe(durable="workers", queue="workers") for _ in range(2)]
            plain = [fleet.subscribe(queue="others") for _ in range(2)]
            for events in (*durable, *plain):
                await events.start()
            await filled(fleet.client, 50)
            for pair in (durable, plain):
                both: list[list[int]] = [[], []]

                async def work(number: int, pair: list[Events] = pair, both: list[list[int]] = both) -> None:
                    async for envelope in pair[number]:
                        both[number].append(envelope.seq)

                working = [asyncio.create_task(work(number)) for number in range(2)]
                await until(lambda both=both: len(both[0]) + len(both[1]) == 50)
                assert sorted(both[0] + both[1]) == list(range(1, 51)) and both[0] and both[1]
                for task in working:
                    task.cancel()
                await asyncio.gather(*working, return_exceptions=True)

    run(test())


def test_slow_consumer_is_reported(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with Fleet(nats_server.url) as fleet, fleet.subscribe(limit=100_000) as events:
            other = await nats.connect(nats_server.url)
            for seq in range(1, 501):
                await other.publish(SUBJECT, msgpack.packb({**GOOD, "event": "ike-updown", "seq": seq}))
            await other.publish(SUBJECT, b"nonsense")
            await processed(other)
            await until(lambda: events.lost > 300)
            with pytest.raises(SlowConsumer) as dropped:
                await anext(events)
            assert dropped.value.lost == events.lost
            rest = [envelope.seq for envelope in [await anext(events) for _ in range(500 - events.lost)]]
            assert rest == list(range(events.lost + 1, 501))
            with pytest.raises(ValueError, match="not an envelope"):
                await anext(events)
            await other.publish(SUBJECT, msgpack.packb({**GOOD, "event": "ike-updown", "seq": 501}))
            assert await take(events, 1) == [501]
            await other.close()

    run(test())


def test_jetstream_waits_for_a_slow_consumer(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with Fleet(nats_server.url) as fleet:
            await filled(fleet.client, 600)
            for arguments in ({"start": "first"}, {"durable": "slow"}):
                async with fleet.subscribe(limit=20_000, **arguments) as events:
                    assert await take(events, 600) == list(range(1, 601))
                    assert events.lost == 0

    run(test())


async def heard_again(fleet: Fleet, plain: Events, first: int = 2) -> list[int]:
    """Store events until a plain subscription receives one; return the numbers of all of them."""
    hearing = asyncio.create_task(anext(plain))
    numbers: list[int] = []
    while not hearing.done():
        numbers.append(first + len(numbers))
        await filled(fleet.client, 1, first=numbers[-1])
        await asyncio.wait([hearing], timeout=0.05)
    return numbers


def test_subscriptions_survive_a_restart_of_nats(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with Fleet(nats_server.url) as fleet:
            await filled(fleet.client, 1)
            await fleet.client.jetstream().create_key_value(KeyValueConfig(bucket="VICI_SA"))
            plain, kept, durable = fleet.subscribe(), fleet.subscribe(start=1), fleet.subscribe(durable="pager")
            async with plain, kept, durable, fleet.watch_sas() as watch:
                assert await take(durable, 1) == await take(kept, 1) == [1]
                nats_server.kill()
                await nats_server.up()
                await until(lambda: fleet.trouble is None)
                sent = await heard_again(fleet, plain)
                assert await take(kept, len(sent)) == sent
                jetstream = fleet.client.jetstream()
                await (await jetstream.key_value("VICI_SA")).put("gw1.a.1", sa_value("gw1", "a", "1"))
                assert (await anext(watch)).key == "gw1.a.1"
                while (await take(durable, 1)) != sent[-1:]:
                    pass

    run(test())
