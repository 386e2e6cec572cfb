"""Streams and buckets that an administrator made or changed, while events flow; mended, nothing is missing untold.

`make test-faults` runs these; the default run leaves them out.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import nats
import pytest
from harness import NatsServer, bucket, run, stored, until
from nats.aio.client import Client
from test_mirroring import listed, sa
from test_nats_faults import reload
from test_streams import CASES, WANTED, Admin, Case, condition_of, made
from traffic import Scene, account, scene, verify_numbers, verify_whole
from vicibridge.client import Envelope, Fleet, unpack
from vicibridge.streams import bucket_stream
from vicibridge.values import NODE, SA

from vicifast.testing import FakeCharon

pytestmark = pytest.mark.faults

OURS: dict[str, Any] = WANTED.as_dict()
STREAMS = {str(case): case for case in CASES if case.of == "stream"}
# Nothing is lost with these, or it is told.
HELD = {
    "no_ack", "sealed", "mirror", "allow_msg_counter", "subjects", "subjects of requests", "discard_new_per_subject",
    "max_bytes, max_msgs, discard = new", "max_msg_size", "max_consumers", "duplicate_window",
}  # fmt: skip
# With these JetStream acknowledges what nobody finds later.
LOST = {
    "subject_transform", "retention = interest", "max_msgs_per_subject", "max_age", "storage = memory",
    "max_bytes, max_msgs, discard = old",
}  # fmt: skip
WORK = "retention = workqueue"
ANEW = {"sealed", "mirror", "allow_msg_counter", "storage = memory", "deny_purge", WORK}  # what no change mends


async def connected(server: NatsServer, name: str = "VICI") -> Admin:
    client = await nats.connect(server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1, error_cb=_ignore)
    return Admin(server, client, name)


async def _ignore(error: Exception) -> None:
    """The server is restarted on purpose."""


async def mend(admin: Admin, case: Case, wanted: dict[str, Any] = OURS) -> None:
    """Do what is logged about the stream, which then is as `wanted`."""
    if case.property in ANEW:
        assert (await admin.api(f"STREAM.DELETE.{admin.name}"))["success"]
    else:
        await change(admin, **{key: wanted.get(key) for key in case.config})


async def change(admin: Admin, **properties: Any) -> None:
    """Change a stream; None is the default of the server."""
    changed = {**await admin.config(), **properties}
    answer = await admin.api(
        f"STREAM.UPDATE.{admin.name}", {key: value for key, value in changed.items() if value is not None}
    )
    assert "error" not in answer, answer


async def envelopes(server: NatsServer) -> list[Envelope]:
    return [envelope for message in await stored(server.url) for envelope in unpack(message)]


def of_events(found: list[Envelope]) -> list[int]:
    """Return the numbers of the traffic's events."""
    sections = [envelope.data.get("gw") for envelope in found if envelope.event == "ike-updown"]
    return [int(section["uniqueid"]) for section in sections if section]


def test_every_condition_is_tried() -> None:
    assert {case.property for case in STREAMS.values()} == HELD | LOST | {WORK}


@pytest.mark.parametrize("name", [name for name, case in STREAMS.items() if case.property in HELD])
def test_a_stream_of_others_is_mended_and_has_everything(
    nats_server: NatsServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    case = STREAMS[name]

    async def test() -> None:
        await nats_server.up()
        admin = await connected(nats_server)
        await made(admin, case)
        async with scene(nats_server.url) as at:
            async with at.flowing():
                await until(lambda: condition_of(case).breaks in caplog.text)
                await asyncio.sleep(1)
                await mend(admin, case)
                await asyncio.sleep(1)
            await at.settled()
            assert at.bridge.gateways[0].state.trouble == ""
        found = await envelopes(nats_server)
        if case.property == "discard_new_per_subject":  # it refused some, and took others that came after them
            found.sort(key=lambda envelope: envelope.seq)
        gaps = verify_numbers(found)
        assert {gap.cause for gap in gaps} <= {"refused by the server"}
        there = of_events(found)
        assert there == sorted(set(there))
        assert at.traffic.sent - len(there) <= sum(gap.last - gap.first + 1 for gap in gaps)
        await admin.client.close()

    run(test(), 90)


@pytest.mark.parametrize("name", [name for name, case in STREAMS.items() if case.property in LOST])
def test_a_stream_of_others_that_loses_events_is_named_and_has_everything_once_it_is_mended(
    nats_server: NatsServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    case = STREAMS[name]

    async def test() -> None:
        await nats_server.up()
        admin = await connected(nats_server)
        await made(admin, case)
        async with scene(nats_server.url) as at:
            async with at.flowing():
                await until(lambda: condition_of(case).breaks in caplog.text)
                await asyncio.sleep(1)
                await mend(admin, case)
                mended = at.traffic.sent
                await asyncio.sleep(1)
            await at.settled()
        there = [number for number in of_events(await envelopes(nats_server)) if number > mended]
        assert there == list(range(mended + 1, at.traffic.sent + 1))
        await admin.client.close()

    run(test(), 90)


def test_a_work_queue_gives_each_event_to_one_worker(nats_server: NatsServer) -> None:
    [case] = [case for case in STREAMS.values() if case.property == WORK]

    async def test() -> None:
        await nats_server.up()
        admin = await connected(nats_server)
        await made(admin, case)
        async with scene(nats_server.url) as at:
            async with at.flowing():
                await asyncio.sleep(1)
            await at.settled()
            taken: list[int] = []
            async with Fleet(nats_server.url) as fleet, fleet.subscribe(durable="worker") as events:
                while len(taken) < at.traffic.sent:
                    taken += of_events(await events.batch())
                await events.ack()
            assert taken == list(range(1, at.traffic.sent + 1))
        await admin.client.close()

    run(test(), 90)


CHANGES: dict[str, dict[str, Any]] = {
    "no_ack": {"no_ack": True},
    "full": {"max_msgs": 50, "discard": "new"},
    "without space": {"max_bytes": 20_000, "discard": "new"},
    "too large": {"max_msg_size": 100},
    "no subjects": {"subjects": ["other"]},
    "no status": {"subjects": ["vici.*.event.>"]},
    "requests": {"subjects": ["vici.>"]},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_stream_changed_under_traffic_and_changed_back(
    nats_server: NatsServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        await nats_server.up()
        admin = await connected(nats_server)
        async with scene(nats_server.url) as at:
            async with at.flowing():
                await until(lambda: at.bridge.gateways[0].backlog.counts.published > 100)
                before = await admin.config()
                await change(admin, **CHANGES[name])
                await asyncio.sleep(8)  # longer than an acknowledgement may take
                await change(admin, **{key: before.get(key) for key in CHANGES[name]})
                await asyncio.sleep(0.5)
            await at.settled()
            assert at.bridge.gateways[0].state.trouble == ""
        found = await account(nats_server.url, at.traffic.sent)
        assert set(found.dropped) <= {"refused by the server"} and not found.absent
        assert caplog.text.count("rejects events") <= 1
        await admin.client.close()

    run(test(), 90)


ACCOUNT = "jetstream: {{max_file: {}}}, users: [{{user: a, password: a}}]"
BIG, SMALL = (f"accounts {{ A {{ {ACCOUNT.format(size)} }} }}\nno_auth_user: a" for size in (10**9, 60_000))


def test_the_account_is_full_and_given_room(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server(SMALL)

    async def test() -> None:
        await server.up()
        async with scene(server.url) as at:
            async with at.flowing():
                await until(lambda: "JetStream error 10002" in at.bridge.gateways[0].state.trouble)
                await asyncio.sleep(1)
                await reload(server, SMALL, BIG)
                await until(lambda: at.bridge.gateways[0].state.trouble == "", 30)
            await at.settled()
        await verify_whole(server.url, at.traffic.sent)

    run(test(), 90)


BUCKETS = {str(case): case for case in CASES if case.of == "bucket"}
KEYS = bucket_stream(SA)
FIRST = 10**6  # numbers of tunnels, which those of the traffic never reach


class Tunnels:
    """IKE_SAs of a charon whose list and events agree."""

    def __init__(self, charon: FakeCharon) -> None:
        self.numbers: set[int] = set()
        self.events = 0
        self._charon = charon
        self._list()

    def up(self, *numbers: int) -> None:
        self.numbers |= {FIRST + number for number in numbers}
        self._list()
        for number in numbers:
            self._emit({"up": "yes", "tunnel": sa(str(FIRST + number))})

    def down(self, *numbers: int) -> None:
        self.numbers -= {FIRST + number for number in numbers}
        self._list()
        for number in numbers:
            self._emit({"tunnel": sa(str(FIRST + number))})

    async def mirrored(self, client: Client) -> None:
        """Wait until the mirror has all of them and no others."""
        expected, found = {f"gw1.tunnel.{number}" for number in self.numbers}, {}
        try:
            async with asyncio.timeout(60):
                while expected != set(found := await bucket(client, SA)):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(expected ^ set(found)) from None
        assert {value["state"] for value in found.values()} == {"ESTABLISHED"}

    def _list(self) -> None:
        listed(self._charon, [("tunnel", sa(str(number))) for number in sorted(self.numbers)])

    def _emit(self, message: dict[str, Any]) -> None:
        self.events += 1
        self._charon.emit("ike-updown", message)


def of_sas(case: Case) -> Case:
    """Return a case with the bucket of SAs."""
    config = json.loads(json.dumps(case.config).replace(NODE, SA))
    return replace(case, config={**KEYS.as_dict(), **config})


@asynccontextmanager
async def tunnels(server: NatsServer, **mirror: Any) -> AsyncIterator[tuple[Scene, Tunnels]]:
    of_charon = Tunnels(charon := FakeCharon())
    mirror = {"enabled": True, "heartbeat": 0.4, "interval": 1, **mirror}
    async with scene(server.url, charon=charon, mirror=mirror) as at:
        yield at, of_charon


async def conserved(at: Scene, server: NatsServer, of_charon: Tunnels) -> None:
    """Every event of traffic and tunnels is in the stream, once and in order."""
    [gateway] = at.bridge.gateways
    await until(lambda: gateway.events.total() == at.traffic.sent + of_charon.events, 30)
    await at.settled(all_heard=False)
    found = await envelopes(server)
    assert not verify_numbers(found)
    assert of_events(found) == list(range(1, at.traffic.sent + 1))


@pytest.mark.parametrize("name", BUCKETS)
def test_a_bucket_of_others_is_mended_and_equals_charon(
    nats_server: NatsServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    case = of_sas(BUCKETS[name])

    async def test() -> None:
        await nats_server.up()
        admin = await connected(nats_server, f"KV_{SA}")
        await admin.make(name="ORIGIN", subjects=["origin.>"])
        config = {**case.config}
        sealed = config.pop("sealed", False)
        await admin.make(**config)
        if sealed:
            await change(admin, sealed=True)
        async with tunnels(nats_server) as (at, of_charon):
            of_charon.up(*range(1, 6))
            async with at.flowing():
                await until(lambda: condition_of(case).breaks in caplog.text)
                of_charon.down(1, 2)
                of_charon.up(6, 7, 8)
                await asyncio.sleep(1.5)
                await mend(admin, case, KEYS.as_dict())
                of_charon.down(3)
                of_charon.up(9)
            await of_charon.mirrored(admin.client)
            await until(lambda: at.bridge.mirrorings[0].buckets.complete, 60)
            assert not at.bridge.reasons()
            await conserved(at, nats_server, of_charon)
        await admin.client.close()

    run(test(), 150)
