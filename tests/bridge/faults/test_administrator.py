"""Streams and buckets that an administrator created or changed, while events flow; once fixed, every loss is reported.

`make test-faults` runs these; the default run leaves them out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest
from harness import NatsServer, run, stored, until
from lab import Lab, sas
from test_lab_faults import COUNT, mirror_is_right
from test_lab_faults import scene as lab_scene
from test_mirror_on_charon import difference
from test_nats_faults import reload
from test_streams import CASES, SECOND, WANTED, Admin, Case, condition_of, made
from traffic import account, scene, verify_numbers, verify_whole
from vicibridge.client import Envelope, Fleet, unpack
from vicibridge.contract.bucket_values import SA

pytestmark = pytest.mark.faults

OURS: dict[str, Any] = WANTED.as_dict()
STREAMS = {str(case): case for case in CASES if case.of == "stream"}
# These lose nothing, or the loss is reported.
HELD = {
    "no_ack", "sealed", "mirror", "allow_msg_counter", "subjects", "subjects of requests", "discard_new_per_subject",
    "max_bytes, max_msgs, discard = new", "max_msg_size", "max_consumers", "duplicate_window",
}  # fmt: skip
# With these JetStream acknowledges events that are not found later.
LOST = {
    "subject_transform", "retention = interest", "max_msgs_per_subject", "max_age", "storage = memory",
    "max_bytes, max_msgs, discard = old",
}  # fmt: skip
WORK = "retention = workqueue"
RECREATED = {"sealed", "mirror", "allow_msg_counter", "storage = memory"}  # settings that cannot be changed


@asynccontextmanager
async def administrator(server: NatsServer) -> AsyncIterator[Admin]:
    client = await nats.connect(server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1, error_cb=_ignore)
    try:
        yield Admin(server, client, "VICI")
    finally:
        await client.close()


async def _ignore(error: Exception) -> None:
    """The server is restarted on purpose."""


async def fix(admin: Admin, case: Case, wanted: dict[str, Any] = OURS) -> None:
    """Apply the fix that is logged for the stream, which then equals `wanted`."""
    if case.property in RECREATED:
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
    messages = await stored(server.url)
    # A transform of subjects replaces their prefix.
    return [envelope for message in messages for envelope in unpack(message, message.subject.partition(".")[0])]


def of_events(found: list[Envelope]) -> list[int]:
    """Return the numbers of the traffic's events."""
    sections = [envelope.data.get("gw") for envelope in found if envelope.event == "ike-updown"]
    return [int(section["uniqueid"]) for section in sections if section]


async def fixed_under_traffic(server: NatsServer, case: Case, caplog: pytest.LogCaptureFixture) -> tuple[int, int]:
    """Fix the stream of a case once the bridge has reported it; return the events sent before the fix, and in total."""
    await server.up()
    async with administrator(server) as admin:
        await made(admin, case)
        async with scene(server.url) as at:
            async with at.flowing():
                await until(lambda: condition_of(case).breaks in caplog.text)
                await asyncio.sleep(1)
                await fix(admin, case)
                before = at.traffic.sent
                await asyncio.sleep(1)
            await at.settled()
            assert at.bridge.gateways[0].state.trouble == ""
            return before, at.traffic.sent


def test_every_condition_has_a_case() -> None:
    assert {case.property for case in STREAMS.values()} == HELD | LOST | {WORK}


@pytest.mark.parametrize("name", [name for name, case in STREAMS.items() if case.property in HELD])
def test_fixed_stream_has_every_event(nats_server: NatsServer, name: str, caplog: pytest.LogCaptureFixture) -> None:
    case = STREAMS[name]

    async def test() -> None:
        _, sent = await fixed_under_traffic(nats_server, case, caplog)
        found = await envelopes(nats_server)
        if case.property == "discard_new_per_subject":  # it refused some events, and accepted later ones
            found.sort(key=lambda envelope: envelope.seq)
        gaps = verify_numbers(found)
        assert {gap.cause for gap in gaps} <= {"refused by the server"}
        there = of_events(found)
        assert there == sorted(set(there))
        assert sent - len(there) <= sum(gap.last - gap.first + 1 for gap in gaps)

    run(test(), 90)


@pytest.mark.parametrize("name", [name for name, case in STREAMS.items() if case.property in LOST])
def test_lossy_stream_is_reported_and_complete_once_fixed(
    nats_server: NatsServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    case = STREAMS[name]

    async def test() -> None:
        fixed, sent = await fixed_under_traffic(nats_server, case, caplog)
        there = [number for number in of_events(await envelopes(nats_server)) if number > fixed]
        assert there == list(range(fixed + 1, sent + 1))

    run(test(), 90)


def test_work_queue_gives_each_event_to_one_worker(nats_server: NatsServer) -> None:
    [case] = [case for case in STREAMS.values() if case.property == WORK]

    async def test() -> None:
        await nats_server.up()
        async with administrator(nats_server) as admin:
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
def test_stream_changed_under_traffic_and_changed_back(
    nats_server: NatsServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        await nats_server.up()
        async with administrator(nats_server) as admin:
            async with scene(nats_server.url) as at:
                async with at.flowing():
                    await until(lambda: at.bridge.gateways[0].backlog.counts.published > 100)
                    before = await admin.config()
                    await change(admin, **CHANGES[name])
                    await asyncio.sleep(8)  # longer than the acknowledgement timeout
                    await change(admin, **{key: before.get(key) for key in CHANGES[name]})
                    await asyncio.sleep(0.5)
                await at.settled()
                assert at.bridge.gateways[0].state.trouble == ""
            found = await account(nats_server.url, at.traffic.sent)
            assert set(found.dropped) <= {"refused by the server"} and not found.absent
            assert caplog.text.count("JetStream: rejects events") <= 1

    run(test(), 90)


ACCOUNT = "jetstream: {{max_file: {}}}, users: [{{user: a, password: a}}]"
BIG, SMALL = (f"accounts {{ A {{ {ACCOUNT.format(size)} }} }}\nno_auth_user: a" for size in (10**9, 60_000))


def test_full_account_gets_more_room(make_nats_server: Callable[..., NatsServer]) -> None:
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


LIMITS: dict[str, dict[str, Any]] = {
    "full": {"max_bytes": 4000},
    "too large": {"max_msg_size": 100},
    "expires": {"max_age": SECOND, "duplicate_window": SECOND},
    "no roll-ups": {"allow_rollup_hdrs": False, "subject_delete_marker_ttl": None},
}


@pytest.mark.lab(nats=True)
@pytest.mark.parametrize("name", LIMITS)
def test_mirror_of_a_real_charon_with_a_full_bucket(lab: Lab, name: str) -> None:
    """SAs come and go while the bucket refuses changes, or loses values."""

    async def test() -> None:
        async with lab_scene(lab) as at:
            early = len(at.lines)
            names = await sas.up(lab, 2 * COUNT)
            await mirror_is_right(at)
            admin = Admin(lab.nats, at.observer.client, f"KV_{SA}")
            before = await admin.config()
            await change(admin, **LIMITS[name])
            await sas.terminate(lab, names[:COUNT])
            await sas.rekey_ike(lab, names[COUNT:])
            await sas.initiate(lab, names[: COUNT // 2])
            if name != "expires":  # each comparison fills it again
                assert await difference(at.observer.client, lab.left)
                await until(lambda: not at.bridge.mirrorings[0].buckets.complete, 30)
            await change(admin, **{key: before.get(key) for key in LIMITS[name]})
            await mirror_is_right(at)
            await until(lambda: at.bridge.mirrorings[0].buckets.complete, 60)
            await at.verify(early)

    run(test(), 180)
