"""Events that anyone can cause without authenticating are limited, counted and reported; others are not limited."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from harness import NatsServer, envelopes, run, service, settings, stored, until, up
from vicibridge.client import Completeness, unpack
from vicibridge.contract.subjects import OUTLINE, Subjects, kind_of
from vicibridge.events import reader
from vicibridge.events.ratelimit import BURST, TokenBucket, UnauthenticatedLimit, unauthenticated
from vicibridge.service import Service

from vicifast import decode, encode
from vicifast._wire import Outliner
from vicifast.commands import ALERTS, Trigger
from vicifast.recording import Recording
from vicifast.testing import FakeCharon

DATA = Path(__file__).parent.parent / "data"
CAUSE = "over the rate limit of unauthenticated events"
SLOW = {"unauthenticated_rate": 1e-6}  # so that only the burst passes
CONNECTING = {"uniqueid": "7", "state": "CONNECTING"}
ESTABLISHED = {"uniqueid": "8", "state": "ESTABLISHED", "established": "0"}
DELETING = {"uniqueid": "8", "state": "DELETING"}


def alert(type: str, sa: dict[str, str] | None = None, name: str = "gw") -> tuple[str, dict[str, Any]]:
    return "alert", {"type": type} | ({} if sa is None else {"ike-sa": {name: sa}})


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (("ike-updown", {"gw": CONNECTING}), "ike-updown"),
        (("ike-updown", {"(unnamed)": CONNECTING}), "ike-updown (unnamed)"),
        (("ike-updown", {"gw": DELETING}), None),
        (("ike-updown", {"gw": ESTABLISHED}), None),
        (("ike-updown", {"up": "yes", "gw": ESTABLISHED}), None),
        (("ike-updown", {}), None),
        (("ike-update", {"local-host": "192.0.2.1", "(unnamed)": CONNECTING}), "ike-update (unnamed)"),
        (("ike-update", {"local-host": "192.0.2.1", "gw": ESTABLISHED}), None),
        (("child-updown", {"gw": {**CONNECTING, "child-sas": {}}}), None),
        (alert("invalid-ike-spi"), "invalid-ike-spi"),
        (alert("retransmit-receive", ESTABLISHED), "retransmit-receive"),  # anyone can replay a packet
        (alert("half-open-timeout", CONNECTING, "(unnamed)"), "half-open-timeout (unnamed)"),
        (alert("peer-auth-failed", CONNECTING), "peer-auth-failed"),
        (alert("retransmit-send-timeout", CONNECTING), "retransmit-send-timeout"),
        (alert("retransmit-send-timeout", ESTABLISHED), None),  # an authenticated peer does not respond
        (alert("proposal-mismatch-ike", ESTABLISHED), None),
        (alert("unique-keep", CONNECTING), None),
        (alert("peer-addr-failed", {"state": "CREATED"}), None),
        (alert("shutdown-signal"), None),
        (alert("of-a-newer-charon"), "alert"),
        (alert("of-a-newer-charon", CONNECTING), "alert"),
        (alert("of-a-newer-charon", ESTABLISHED), None),
        (("alert", {}), "alert"),
        (("alert", {"type": ["x"], "ike-sa": "y"}), "alert"),
        (("child-rekey", {"gw": CONNECTING}), None),
    ],
)
def test_classification_of_events(event: tuple[str, dict[str, Any]], kind: str | None) -> None:
    name, message = event
    assert unauthenticated(name, encode(message)) == kind
    assert unauthenticated(name, Outliner(OUTLINE).outline(encode(message))) == kind


@pytest.mark.parametrize("event", ["ike-updown", "child-updown"])
def test_no_event_of_kind_up_or_down_is_limited(event: str) -> None:
    """The mirror and readers rely on these; the limit must classify an event as its subject does."""
    sections = [CONNECTING, ESTABLISHED, DELETING, {"state": ["CONNECTING"]}, {}, {**CONNECTING, "child-sas": {}}]
    messages = [{**up, "gw": section} for up in ({}, {"up": "yes"}, {"up": "no"}) for section in sections]
    kinds: Counter[str] = Counter()
    for raw in map(encode, [*messages, {}, {"up": "yes"}, {"up": CONNECTING}]):
        kind = kind_of(event, Subjects("vici", "gw1").event(event, raw))
        kinds[kind] += 1
        assert (unauthenticated(event, raw) is None) == (kind in ("up", "down"))
    assert kinds["up"] and kinds["down"]


def test_limit_of_a_type() -> None:
    limit = UnauthenticatedLimit(2.0)
    other = "ike-updown (unnamed)"

    def taken(second: int, count: int, kind: str = "ike-updown") -> int:
        return sum(limit.allows(second * 10**9, kind) for _ in range(count))

    assert taken(1, 1000) == BURST
    assert taken(1, 1000, other) == BURST  # a separate limit
    assert [taken(second, 10) for second in (2, 3, 13, 13)] == [2, 2, 10, 10]
    assert taken(1, 10) == 0 and taken(2, 10) == 2  # the clock was set back
    limit.rate = 0
    assert taken(2, 1000) == 1000


def test_bucket_with_less_than_one_event_per_second() -> None:
    bucket = TokenBucket()
    assert [bucket.allows(second * 10**9, 0.5, 1.0) for second in (10, 11, 12, 13, 14)] == [
        True, False, True, False, True,
    ]  # fmt: skip


async def flood(charon: FakeCharon, count: int) -> list[str]:
    """Emit `count` of each unauthenticated event, mixed with events that must arrive; return the latter's subjects."""
    subjects = []
    for number in range(count):
        charon.emit("ike-updown", {"(unnamed)": CONNECTING})
        charon.emit(*alert("invalid-ike-spi"))
        charon.emit(*alert("peer-auth-failed", CONNECTING, "(unnamed)"))
        if number % 10 == 0:
            charon.emit("ike-updown", {"up": "yes", "gw": ESTABLISHED})
            charon.emit("ike-updown", {"gw": DELETING})
            charon.emit("ike-updown", {"gw": CONNECTING})
            charon.emit(*alert("ts-mismatch", ESTABLISHED))
            ends = ("ike-updown.gw.up", "ike-updown.gw.down", "ike-updown.gw.failed", "alert.ts-mismatch")
            subjects += [f"vici.gw1.event.{end}" for end in ends]
        await charon.drain()
    return subjects


def dropped(bridge: Service) -> Counter[str]:
    return bridge.gateways[0].backlog.counts.causes


@pytest.fixture(autouse=True)
def _reported_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_LIMITED_EVERY", 0.1)


@pytest.mark.parametrize("codec", ["msgpack", "raw"])
def test_flood_is_limited_and_reported(nats_server: NatsServer, codec: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon:
            async with service(settings(nats_server.url, charon.address, events=SLOW | {"codec": codec})) as bridge:
                await up(bridge)
                subjects = await flood(charon, 500)
                [of] = bridge.gateways
                await until(lambda: sum(of.reader.events.values()) == 1500 + len(subjects))
                await until(lambda: dropped(bridge) == {CAUSE: 1500 - 3 * BURST} and not of.backlog.losses.unreported)
                counts = of.backlog.counts
                assert counts.received == counts.published + counts.dropped + of.backlog.waiting
                assert of.reader.events["ike-updown", "failed"] == 550  # events over the limit are counted as well
            kept = await stored(nats_server.url)
        seen = Counter(message.subject for message in kept)
        assert seen["vici.gw1.event.ike-updown.=28unnamed=29.failed"] == BURST
        assert seen["vici.gw1.event.alert.invalid-ike-spi"] == BURST
        assert seen["vici.gw1.event.alert.peer-auth-failed"] == BURST
        assert [m.subject for m in kept if m.subject in set(subjects)] == subjects
        whole = Completeness(from_start=True)
        for message in kept:
            for envelope in unpack(message):
                whole.add(envelope)
        assert {gap.cause for gap in whole.gaps()} == {CAUSE} and not whole.duplicates
        assert sum(gap.last - gap.first + 1 for gap in whole.gaps()) == 1500 - 3 * BURST
        gaps = [e["data"] for m in kept if m.subject.endswith(".gap") for e in envelopes(m.data, m.headers)]
        assert {gap["class"] for gap in gaps} == {"state"}
        assert sum(int(gap["count"]) for gap in gaps) == 1500 - 3 * BURST
        assert CAUSE not in caplog.text  # intended, so not logged each time
        assert all(int(gap["last_seq"]) - int(gap["first_seq"]) + 1 >= int(gap["count"]) for gap in gaps)

    run(test())


def test_flood_does_not_fill_the_spool(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with FakeCharon() as charon:
            async with service(settings(nats_server.url, charon.address, events=SLOW)) as bridge:
                await up(bridge)
                subjects = await flood(charon, 500)
                [of] = bridge.gateways
                await until(lambda: sum(of.reader.events.values()) == 1500 + len(subjects))
                assert of.backlog.waiting <= len(subjects) + 3 * BURST + 10  # of the bridge's own
                await nats_server.up()
                await until(lambda: not of.backlog.waiting and not of.backlog.losses.unreported)
            kept = await stored(nats_server.url)
        assert [m.subject for m in kept if m.subject in set(subjects)] == subjects
        [gap] = [e["data"] for m in kept if m.subject.endswith(".gap") for e in envelopes(m.data)]
        assert (gap["cause"], gap["count"]) == (CAUSE, 1500 - 3 * BURST)

    run(test())


def test_limit_is_changed_and_removed_at_run_time(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon:
            slow = settings(nats_server.url, charon.address, events=SLOW)
            async with service(slow) as bridge:
                await up(bridge)
                [of] = bridge.gateways
                await flood(charon, 150)
                await until(lambda: dropped(bridge)[CAUSE] == 150)
                bridge.reload(settings(nats_server.url, charon.address, events={"unauthenticated_rate": 0}))
                await flood(charon, 500)
                await until(lambda: of.reader.events["ike-updown", "failed"] == 715)
                assert dropped(bridge) == {CAUSE: 150}

    run(test())


@pytest.mark.parametrize("path", sorted(DATA.glob("*/alerts-*.recording")), ids=lambda path: path.stem)
def test_recorded_alerts_are_in_the_table(path: Path) -> None:
    limited = {}
    for packet in Recording.load(path).events():
        if packet.name == "alert" and packet.message is not None:
            limited[str(decode(packet.message)["type"])] = unauthenticated("alert", packet.message) is not None
    assert limited and limited.keys() <= ALERTS.keys()
    by_authenticated = {name for name in limited if ALERTS[name].trigger in (Trigger.PEER, Trigger.LOCAL)}
    assert not [name for name in by_authenticated if limited[name]]
    assert [name for name in limited if limited[name]]
