"""Existing streams and buckets on a real nats-server: settings that break a guarantee, and what reconcile adds."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import nats
import pytest
from harness import NatsServer, run, running, service, settings, until
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import StreamConfig
from nats.js.errors import BadRequestError
from vicibridge.bus.conditions import CONDITIONS, Condition, Target
from vicibridge.bus.connection import NatsConnection, reason_of
from vicibridge.bus.streams import MARKER, StateStream, Unprovisioned, Unsuitable, bucket_stream, ensure
from vicibridge.config.model import Config, GatewayConfig
from vicibridge.contract.bucket_values import NODE
from vicibridge.contract.subjects import stream_subjects

SECOND, DAY = 10**9, 86400 * 10**9
WANTED = StateStream("VICI", stream_subjects("vici"), 7 * 86400, prefix="vici").config
BUCKET = bucket_stream(NODE)
EVENT, STATUS = "vici.gw1.event.ike-updown.a.up", "vici.gw1.bridge.status"
KEY = f"$KV.{NODE}.gw1"
DELETE = {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}


class Admin:
    """A user with all permissions for JetStream."""

    def __init__(self, server: NatsServer, client: Client, name: str) -> None:
        self.server = server
        self.client = client
        self.name = name

    async def api(self, endpoint: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = await self.client.request(f"$JS.API.{endpoint}", json.dumps(request or {}).encode(), timeout=5)
        loaded: dict[str, Any] = json.loads(answer.data)
        return loaded

    async def make(self, **config: Any) -> dict[str, Any]:
        """Create a stream, without values that are None."""
        answer = await self.api(f"STREAM.CREATE.{config['name']}", {k: v for k, v in config.items() if v is not None})
        assert "error" not in answer, answer
        made: dict[str, Any] = answer["config"]
        return made

    async def info(self) -> dict[str, Any]:
        return await self.api(f"STREAM.INFO.{self.name}")

    async def config(self) -> dict[str, Any]:
        config: dict[str, Any] = (await self.info())["config"]
        return config

    async def count(self) -> int:
        return int((await self.info())["state"]["messages"])

    async def put(self, subject: str, data: bytes = b"x", **headers: str) -> dict[str, Any]:
        """Publish, and return JetStream's reply; empty without a reply."""
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        try:
            answer = await self.client.request(subject, data, timeout=0.5, headers=named or None)
        except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
            return {}
        loaded: dict[str, Any] = json.loads(answer.data)
        return loaded

    async def last(self, subject: str) -> dict[str, Any]:
        answer = await self.api(f"STREAM.MSG.GET.{self.name}", {"last_by_subj": subject})
        message: dict[str, Any] = answer.get("message", {})
        return message

    async def reads(self) -> bool:
        """Whether an ordered consumer may read it."""
        try:
            await (await self.client.jetstream().subscribe("", stream=self.name, ordered_consumer=True)).unsubscribe()
        except BadRequestError:
            return False
        return True


Broken = Callable[[Admin], Awaitable[bool]]


async def unacknowledged(admin: Admin) -> bool:
    return not await admin.put(EVENT if admin.name == "VICI" else KEY)


async def refused(admin: Admin) -> bool:
    return "error" in await admin.put(EVENT if admin.name == "VICI" else KEY)


async def status_unacknowledged(admin: Admin) -> bool:
    return not await admin.put(STATUS)


async def alert_unacknowledged(admin: Admin) -> bool:
    return not await admin.put("vici.gw1.event.alert.x")


async def key_unacknowledged(admin: Admin) -> bool:
    return not await admin.put(f"$KV.{NODE}.gw2")


async def request_answered(admin: Admin) -> bool:
    return bool(await admin.put("vici.gw1.cmd.version"))


async def stored_elsewhere(admin: Admin) -> bool:
    subject = EVENT if admin.name == "VICI" else KEY
    assert (await admin.put(subject))["seq"]
    return not await admin.last(subject)


async def not_kept(admin: Admin) -> bool:
    assert (await admin.put(EVENT if admin.name == "VICI" else KEY))["seq"]
    return not await admin.count()


async def unreadable(admin: Admin) -> bool:
    return not await admin.reads()


async def second_refused(admin: Admin) -> bool:
    subject = EVENT if admin.name == "VICI" else KEY
    await admin.put(subject)
    return "error" in await admin.put(subject)


async def older_deleted(admin: Admin) -> bool:
    before = await admin.count()
    for _ in range(5):
        assert (await admin.put(EVENT))["seq"]
    return await admin.count() < before + 5


async def everything_kept(admin: Admin) -> bool:
    for _ in range(5):
        assert (await admin.put(KEY))["seq"]
    return await admin.count() == 5


async def key_vanished(admin: Admin) -> bool:
    for number in range(5):
        assert (await admin.put(f"{KEY}{number}"))["seq"]
    return not await admin.last(f"{KEY}0")


async def vanishes(admin: Admin) -> bool:
    assert (await admin.put(EVENT if admin.name == "VICI" else KEY))["seq"]
    async with asyncio.timeout(15):
        while await admin.count():
            await asyncio.sleep(0.1)
    return True


async def full(admin: Admin) -> bool:
    subject = EVENT if admin.name == "VICI" else f"{KEY}{{}}"
    answers = [await admin.put(subject.format(number), b"x" * 100) for number in range(5)]
    if admin.name != "VICI":  # a deletion is smaller than the value that it replaces
        deleted = await admin.put(subject.format(0), b"", **{key.replace("-", "_"): DELETE[key] for key in DELETE})
        assert "error" not in deleted, deleted
    return "error" in answers[-1]


async def large_refused(admin: Admin) -> bool:
    return "error" in await admin.put(EVENT if admin.name == "VICI" else KEY, b"x" * 200)


async def second_reader_refused(admin: Admin) -> bool:
    first = await admin.client.jetstream().subscribe("", stream=admin.name, ordered_consumer=True)
    refused = not await admin.reads()
    await first.unsubscribe()
    return refused


async def stored_twice(admin: Admin) -> bool:
    assert not (await admin.put(EVENT, Nats_Msg_Id="gw1.boot.1")).get("duplicate")
    async with asyncio.timeout(15):
        while (await admin.put(EVENT, Nats_Msg_Id="gw1.boot.1")).get("duplicate"):
            await asyncio.sleep(0.1)
    return True


async def lost_by_restart(admin: Admin) -> bool:
    await admin.put(EVENT if admin.name == "VICI" else KEY)
    await asyncio.to_thread(admin.server.stop)
    await admin.server.up()
    await until(lambda: admin.client.is_connected)
    return "error" in await admin.info()


async def delete_refused(admin: Admin) -> bool:
    assert (await admin.put(KEY))["seq"]
    return "error" in await admin.put(KEY, b"", KV_Operation="PURGE", Nats_Rollup="sub")


async def not_read_directly(admin: Admin) -> bool:
    assert (await admin.put(KEY))["seq"]
    try:
        await admin.client.request(f"$JS.API.DIRECT.GET.{admin.name}.{KEY}", timeout=5)
    except nats.errors.NoRespondersError:
        return True
    return False


async def expiry_refused(admin: Admin) -> bool:
    return "error" in await admin.put(KEY, Nats_TTL="60s")


async def expires_without_a_mark(admin: Admin) -> bool:
    number = (await admin.put(KEY, Nats_TTL="1s"))["seq"]
    async with asyncio.timeout(15):
        while (await admin.last(KEY)).get("seq") == number:
            await asyncio.sleep(0.1)
    return not await admin.last(KEY)


@dataclass
class Case:
    """A stream or bucket created with `config`, and a proof that it breaks a guarantee."""

    property: str
    of: str
    config: dict[str, Any]
    broken: Broken
    added: dict[str, Any] = field(default_factory=dict)  # by reconcile
    once: bool = False  # the proof works only for a stream that is not fixed
    refresh: float = 0

    def __str__(self) -> str:
        return f"{self.of}-{self.property}"

    @property
    def wanted(self) -> StreamConfig:
        return WANTED if self.of == "stream" else BUCKET


UNMARKED = {"subject_delete_marker_ttl": None}  # nats-server allows roll-ups for streams with markers
CASES = [
    Case("no_ack", "stream", {"no_ack": True}, unacknowledged, {"no_ack": None}),
    Case("no_ack", "bucket", {"no_ack": True}, unacknowledged, {"no_ack": None}),
    Case("sealed", "stream", {"sealed": True}, refused),
    Case("sealed", "bucket", {"sealed": True}, refused),
    Case("mirror", "stream", {"mirror": {"name": "ORIGIN"}, "subjects": None}, unacknowledged),
    Case("mirror", "bucket", {"mirror": {"name": "ORIGIN"}, "subjects": None, **UNMARKED}, unacknowledged),
    Case("allow_msg_counter", "stream", {"allow_msg_counter": True}, refused),
    Case(
        "allow_msg_counter",
        "bucket",
        {"allow_msg_counter": True, "discard": "old", "allow_msg_ttl": None, **UNMARKED},
        refused,
    ),
    Case(
        "subjects", "stream", {"subjects": ["vici.*.event.>"]}, status_unacknowledged, {"subjects": WANTED.subjects}
    ),
    Case(
        "subjects",
        "stream",
        {"subjects": ["vici.*.event.ike-updown.>", "vici.gw1.log.>", "vici.*.bridge.*"]},
        alert_unacknowledged,
        {"subjects": ["vici.gw1.log.>", "vici.*.event.>", "vici.*.bridge.>"]},
    ),
    Case("subjects", "bucket", {"subjects": [f"$KV.{NODE}.gw1"]}, key_unacknowledged, {"subjects": BUCKET.subjects}),
    Case("subjects of requests", "stream", {"subjects": ["vici.>"]}, request_answered),
    Case(
        "subjects of requests",
        "stream",
        {"subjects": [*stream_subjects("vici"), "vici.gw1.cmd.version"]},
        request_answered,
    ),
    Case(
        "subject_transform",
        "stream",
        {"subject_transform": {"src": "vici.*.event.>", "dest": "x.{{wildcard(1)}}.>"}},
        stored_elsewhere,
    ),
    Case("subject_transform", "bucket", {"subject_transform": {"src": ">", "dest": "x.>"}}, stored_elsewhere),
    Case("retention = interest", "stream", {"retention": "interest"}, not_kept, {"retention": "limits"}),
    Case("retention = interest", "bucket", {"retention": "interest"}, not_kept, {"retention": "limits"}),
    Case("retention = workqueue", "stream", {"retention": "workqueue"}, unreadable),
    Case("retention = workqueue", "bucket", {"retention": "workqueue"}, unreadable),
    Case(
        "discard_new_per_subject",
        "stream",
        {"discard_new_per_subject": True, "discard": "new", "max_msgs_per_subject": 1},
        second_refused,
        {"discard_new_per_subject": None, "max_msgs_per_subject": -1},
    ),
    Case(
        "discard_new_per_subject",
        "bucket",
        {"discard_new_per_subject": True},
        second_refused,
        {"discard_new_per_subject": None},
    ),
    Case("max_msgs_per_subject", "stream", {"max_msgs_per_subject": 2}, older_deleted, {"max_msgs_per_subject": -1}),
    Case("max_msgs_per_subject", "bucket", {"max_msgs_per_subject": -1}, everything_kept, once=True),
    Case(
        "max_age",
        "stream",
        {"max_age": SECOND, "duplicate_window": SECOND},
        vanishes,
        {"max_age": 7 * DAY, "duplicate_window": 3600 * SECOND},
        once=True,
    ),
    Case(
        "max_age, interval",
        "bucket",
        {"max_age": SECOND, "duplicate_window": SECOND, **UNMARKED},
        vanishes,
        {"max_age": 0, "subject_delete_marker_ttl": int(MARKER) * SECOND},
        once=True,
        refresh=300,
    ),
    Case(
        "max_age",
        "bucket",
        {"max_age": SECOND, "duplicate_window": SECOND, **UNMARKED},
        vanishes,
        {"max_age": 0, "subject_delete_marker_ttl": int(MARKER) * SECOND},
        once=True,
    ),
    Case("max_bytes, max_msgs, discard = old", "stream", {"max_bytes": 300}, older_deleted),
    Case("max_bytes, max_msgs, discard = new", "stream", {"max_msgs": 3, "discard": "new"}, full),
    Case(
        "max_bytes, max_msgs, discard = old",
        "bucket",
        {"max_bytes": 200, "discard": "old"},
        key_vanished,
        {"discard": "new"},
        once=True,
    ),
    Case("max_bytes, max_msgs, discard = new", "bucket", {"max_bytes": 200}, full),
    Case("max_msg_size", "stream", {"max_msg_size": 100}, large_refused),
    Case("max_msg_size", "bucket", {"max_msg_size": 100}, large_refused),
    Case("max_consumers", "stream", {"max_consumers": 1}, second_reader_refused),
    Case("max_consumers", "bucket", {"max_consumers": 1}, second_reader_refused),
    Case(
        "duplicate_window",
        "stream",
        {"duplicate_window": SECOND // 5},
        stored_twice,
        {"duplicate_window": 3600 * SECOND},
        once=True,
    ),
    Case("storage = memory", "stream", {"storage": "memory"}, lost_by_restart, once=True),
    Case("storage = memory", "bucket", {"storage": "memory"}, lost_by_restart, once=True),
    Case(
        "deny_purge", "bucket", {"deny_purge": True, "allow_rollup_hdrs": None, **UNMARKED}, delete_refused
    ),
    Case(
        "allow_rollup_hdrs",
        "bucket",
        {"allow_rollup_hdrs": None, **UNMARKED},
        delete_refused,
        {"allow_rollup_hdrs": True, "subject_delete_marker_ttl": int(MARKER) * SECOND},
    ),
    Case("allow_direct", "bucket", {"allow_direct": None}, not_read_directly, {"allow_direct": True}),
    Case(
        "allow_msg_ttl",
        "bucket",
        {"allow_msg_ttl": None, **UNMARKED},
        expiry_refused,
        {"allow_msg_ttl": True, "subject_delete_marker_ttl": int(MARKER) * SECOND},
    ),
    Case(
        "subject_delete_marker_ttl",
        "bucket",
        UNMARKED,
        expires_without_a_mark,
        {"subject_delete_marker_ttl": int(MARKER) * SECOND},
    ),
]  # fmt: skip


@asynccontextmanager
async def administered(server: NatsServer, name: str = "VICI") -> AsyncIterator[tuple[Admin, NatsConnection]]:
    """An administrator, and a connection of the bridge."""
    await server.up()
    client = await nats.connect(server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1, error_cb=_ignore)
    async with running(settings(server.url)) as bus:
        yield Admin(server, client, name), await bus.connection()
    await client.close()


async def _ignore(error: Exception) -> None:
    """Errors are expected: the test restarts the server."""


def condition_of(case: Case) -> Condition:
    [condition] = [c for c in CONDITIONS if c.property == case.property and c.of in ("both", case.of)]
    return condition


async def made(admin: Admin, case: Case) -> dict[str, Any]:
    """Create the stream of a case, and return its configuration."""
    await admin.make(name="ORIGIN", subjects=["origin.>"])
    config = {**case.wanted.as_dict(), **case.config}
    sealed = config.pop("sealed", False)
    made = await admin.make(**config)
    if sealed:  # none is at first
        assert "error" not in await admin.api(f"STREAM.UPDATE.{admin.name}", {**made, "sealed": True})
    return await admin.config()


async def ensured(connection: NatsConnection, case: Case, provision: Any, caplog: pytest.LogCaptureFixture) -> str:
    """Return what the bridge logs about a stream."""
    caplog.clear()
    try:
        await ensure(connection, Target(case.wanted, "vici", case.refresh), provision)
    except Unsuitable as error:
        return str(error)
    return caplog.text


def test_every_condition_has_a_case() -> None:
    cases = {(case.property, case.of) for case in CASES}
    kinds = {c: ("stream", "bucket") if c.of == "both" else (c.of,) for c in CONDITIONS}
    assert cases == {(condition.property, kind) for condition, of in kinds.items() for kind in of}


@pytest.mark.parametrize("provision", ["bind", "create"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_existing_streams_are_reported_and_not_changed(
    nats_server: NatsServer, case: Case, provision: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    condition = condition_of(case)

    async def test() -> None:
        async with administered(nats_server, str(case.wanted.name)) as (admin, connection):
            before = await made(admin, case)
            said = await ensured(connection, case, provision, caplog)
            assert condition.breaks in said and f"the {case.of} {admin.name.removeprefix('KV_')} " in said, said
            grades = {"error": logging.ERROR, "warning": logging.WARNING, "note": logging.INFO}
            assert condition.blocks or grades[condition.grade] in [record.levelno for record in caplog.records]
            assert await admin.config() == before

    run(test())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_guarantee_breaks_until_the_setting_is_fixed(
    nats_server: NatsServer, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    condition = condition_of(case)

    async def test() -> None:
        async with administered(nats_server, str(case.wanted.name)) as (admin, connection):
            before = await made(admin, case)
            assert await case.broken(admin)
            if not connection.alive:  # the server was restarted
                return
            said = await ensured(connection, case, "reconcile", caplog)
            after = await admin.config()
            changed = {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
            changed.pop("metadata", None)
            if not case.added:
                assert not changed and condition.breaks in said
                return
            assert {key: value or None for key, value in changed.items()} == {
                key: value or None for key, value in case.added.items()
            }
            assert condition.breaks not in said and "changed the" in said
            if not case.once:
                assert not await case.broken(admin)
            assert "changed the" not in await ensured(connection, case, "reconcile", caplog)

    run(test())


OURS = stream_subjects("vici")
HARMLESS: dict[str, tuple[str, dict[str, Any]]] = {
    "sources": ("stream", {"sources": [{"name": "ORIGIN"}]}),
    "sources of a bucket": ("bucket", {"sources": [{"name": "ORIGIN"}]}),
    "republish": ("stream", {"republish": {"src": ">", "dest": "copy.>"}}),
    "deny_delete and deny_purge": ("stream", {"deny_delete": True, "deny_purge": True}),
    "no deny_delete": ("bucket", {"deny_delete": False}),
    "other subjects": ("stream", {"subjects": [*OURS, "vici.*.log.>", "other"]}),
    "in pieces": ("stream", {"subjects": ["vici.*.bridge.*", "vici.*.bridge.*.>", "vici.*.event.>"]}),
    "wildcard": ("bucket", {"subjects": [f"$KV.{NODE}.>", "other"]}),
    "a foreign transform": (
        "stream",
        {"subjects": [*OURS, "other.>"], "subject_transform": {"src": "other.>", "dest": "x.>"}},
    ),
    "kept longer": ("stream", {"max_age": 30 * DAY, "duplicate_window": 7200 * SECOND}),
    "kept indefinitely": ("stream", {"max_age": 0}),
    "large messages only": ("stream", {"max_msg_size": 2 * 1024 * 1024}),
    "history": ("bucket", {"max_msgs_per_subject": 5}),
    "discard old without a limit": ("bucket", {"discard": "old"}),
    "discard new without a limit": ("stream", {"discard": "new"}),
    "compression": ("stream", {"compression": "s2"}),
    "newer properties": (
        "stream",
        {"allow_atomic": True, "allow_msg_schedules": True, "allow_msg_ttl": True, "allow_rollup_hdrs": True},
    ),
    "limits of consumers": ("stream", {"consumer_limits": {"max_ack_pending": 10}}),
    "metadata": ("bucket", {"metadata": {"owner": "another"}, "description": "ours"}),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_settings_are_neither_reported_nor_changed(
    nats_server: NatsServer, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vicibridge.bus.streams")
    of, config = HARMLESS[name]
    case = Case(name, of, config, unacknowledged)

    async def test() -> None:
        async with administered(nats_server, str(case.wanted.name)) as (admin, connection):
            before = await made(admin, case)
            for provision in ("bind", "create", "reconcile"):
                assert await ensured(connection, case, provision, caplog) == ""
            assert await admin.config() == before
            assert (await admin.put(EVENT if of == "stream" else KEY))["seq"]

    run(test())


def test_reconcile_changes_nothing_else(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """Including keys unknown to nats-py: the whole configuration of the server is sent back."""
    theirs = {
        "subjects": ["vici.>"],
        "max_age": 30 * DAY,
        "max_bytes": 10**9,
        "description": "the administrator's",
        "consumer_limits": {"inactive_threshold": 3600 * SECOND, "max_ack_pending": 10},
        "sources": [{"name": "ORIGIN", "filter_subject": "origin.a", "opt_start_seq": 7}],
        "republish": {"src": "vici.*.event.>", "dest": "copy.{{wildcard(1)}}.>", "headers_only": True},
        "allow_atomic": True,
        "metadata": {"owner": "another"},
        "compression": "s2",
    }
    case = Case("", "stream", theirs, unacknowledged)

    async def test() -> None:
        async with administered(nats_server) as (admin, connection):
            before = await made(admin, case)
            await ensured(connection, case, "reconcile", caplog)
            assert await admin.config() == before
            shorter = {**before, "duplicate_window": 60 * SECOND}
            assert "error" not in await admin.api("STREAM.UPDATE.VICI", shorter)
            await ensured(connection, case, "reconcile", caplog)
            assert {**before, "duplicate_window": 3600 * SECOND} == await admin.config()

    run(test())


@pytest.mark.parametrize("setting", [{"sealed": True}, {"mirror": {"name": "ORIGIN"}}, {"allow_msg_counter": True}])
@pytest.mark.parametrize("of", ["stream", "bucket"])
def test_reconcile_leaves_a_stream_that_it_cannot_fix(
    nats_server: NatsServer, of: str, setting: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Only the setting that requires a new stream is reported: fixing the others would not help."""
    caplog.set_level(logging.INFO)
    case = Case(next(iter(setting)), of, {}, unacknowledged)
    subjects = None if "mirror" in setting else case.wanted.subjects
    plain = {"name": case.wanted.name, "subjects": subjects, "storage": "file", "max_msgs_per_subject": -1}

    async def test() -> None:
        async with administered(nats_server, str(case.wanted.name)) as (admin, connection):
            await admin.make(name="ORIGIN", subjects=["origin.>"])
            sealed = setting.get("sealed")
            before = await admin.make(**plain, **({} if sealed else setting))
            if sealed:
                before = (await admin.api(f"STREAM.UPDATE.{admin.name}", {**before, **setting}))["config"]
            said = await ensured(connection, case, "reconcile", caplog)
            assert condition_of(case).breaks in said
            assert len(said.splitlines()) == 1 and await admin.config() == before

    run(test())


def test_reconcile_of_a_bucket_with_deny_purge(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """It excludes the expiry of keys, so nothing advises that."""
    caplog.set_level(logging.INFO)
    case = Case("deny_purge", "bucket", {}, unacknowledged)

    async def test() -> None:
        async with administered(nats_server, str(case.wanted.name)) as (admin, connection):
            plain = {"subjects": case.wanted.subjects, "storage": "file", "max_msgs_per_subject": 1}
            await admin.make(name=case.wanted.name, **plain, deny_purge=True, allow_direct=True)
            said = await ensured(connection, case, "reconcile", caplog)
            assert condition_of(case).breaks in said and len(said.splitlines()) == 1, said

    run(test())


def test_subjects_that_cannot_be_added_are_reported(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """The subjects of one stream must not overlap, and those of an administrator are not removed."""
    case = Case("", "stream", {"subjects": ["vici.gw1.>"]}, unacknowledged)

    async def test() -> None:
        async with administered(nats_server) as (admin, connection):
            before = await made(admin, case)
            said = await ensured(connection, case, "reconcile", caplog)
            assert "lacks the subjects vici.*.event.>, vici.*.bridge.>: messages of the bridge" in said
            assert "run nats stream edit VICI --subjects='vici.*.event.>,vici.*.bridge.>,vici.*.log.>'" in said
            assert await admin.config() == before

    run(test())


def test_bridge_of_several_gateways_logs_each_problem_once(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    case = Case("", "stream", {"subjects": ["vici.>"]}, unacknowledged)

    async def test() -> None:
        async with administered(nats_server) as (admin, _):
            await made(admin, case)
            await admin.make(**{**bucket_stream(NODE).as_dict(), "max_bytes": 10**6})
            config = settings(nats_server.url, mirror={"enabled": True})
            gateways = [GatewayConfig(node=node, vici="/nowhere") for node in ("gw1", "gw2", "gw3")]
            async with service(Config(**{**dict(config), "gateway": gateways})) as bridge:
                await until(lambda: not any(mirroring.buckets.troubles() for mirroring in bridge.mirrorings))
                await until(lambda: not any(gateway.backlog.waiting for gateway in bridge.gateways))
            assert caplog.text.count("captures requests (vici.>)") == 1
            assert caplog.text.count("the bucket VICI_NODE has max_bytes = 1000000") == 1

    run(test())


def test_each_problem_is_logged_once(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        await nats_server.up()
        client = await nats.connect(nats_server.url)
        jetstream = client.jetstream()
        theirs = StreamConfig(name="VICI", subjects=["vici.>"], duplicate_window=60)
        await jetstream.add_stream(theirs)
        async with running(settings(nats_server.url)) as bus:
            for connects in (1, 2):  # nor is it on a new connection
                await until(lambda: bus.connects == connects)  # noqa: B023
                connection = await bus.connection()
                for _ in range(2):
                    await ensure(connection, Target(WANTED, "vici"), "create")
                connection.lose("to try")
            assert caplog.text.count("captures requests (vici.>)") == 1
            assert caplog.text.count("duplicate_window = 1m") == 1
            await jetstream.update_stream(theirs.evolve(duplicate_window=120))
            await until(lambda: bus.connects == 3)
            await ensure(await bus.connection(), Target(WANTED, "vici"), "create")
            assert caplog.text.count("duplicate_window = 2m") == caplog.text.count("captures requests") == 1
            await jetstream.update_stream(theirs.evolve(duplicate_window=3600))
            await ensure(await bus.connection(), Target(WANTED, "vici"), "create")
            await jetstream.update_stream(theirs.evolve(duplicate_window=120))
            await ensure(await bus.connection(), Target(WANTED, "vici"), "create")
            assert caplog.text.count("duplicate_window = 2m") == 2
        await client.close()

    run(test())


def test_bind_creates_nothing_and_reports_missing_streams(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with administered(nats_server) as (admin, connection):
            for wanted, what in ((WANTED, "stream VICI for vici.*.event.>, vici.*.bridge.>"),
                                 (BUCKET, "bucket VICI_NODE for $KV.VICI_NODE.>")):  # fmt: skip
                with pytest.raises(Unprovisioned) as caught:
                    await ensure(connection, Target(wanted), "bind")
                hint = 'create it, or set provision = "create" in [nats] to let the bridge create it'
                assert str(caught.value) == f"the {what} does not exist: {hint}"
            assert (await admin.api("STREAM.NAMES"))["streams"] is None

    run(test())


@pytest.mark.parametrize("provision", ["create", "reconcile"])
def test_missing_streams_are_created_without_problems(
    nats_server: NatsServer, provision: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vicibridge.bus.streams")

    async def test() -> None:
        async with administered(nats_server) as (admin, connection):
            for _ in range(2):
                for wanted in (WANTED, BUCKET):
                    await ensure(connection, Target(wanted, "vici"), provision)
            said = [record.message for record in caplog.records]
            assert said == [
                "JetStream: created the stream VICI for vici.*.event.>, vici.*.bridge.>",
                "JetStream: created the bucket VICI_NODE for $KV.VICI_NODE.>",
            ]
            config = await admin.config()
            assert (config["subjects"], config["max_age"], config["duplicate_window"]) == (OURS, 7 * DAY, 3600 * SECOND)

    run(test())


def test_another_stream_with_the_same_subjects_is_named(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with administered(nats_server) as (admin, connection):
            await admin.make(name="EVENTS", subjects=["vici.>"])
            with pytest.raises(Unprovisioned) as caught:
                await ensure(connection, Target(WANTED), "create")
            assert str(caught.value) == (
                "cannot create the stream VICI: the stream EVENTS has vici.*.event.> or vici.*.bridge.>: "
                'set stream = "EVENTS" in [nats], or remove these subjects from it'
            )
            await admin.make(name="KEYS", subjects=["$KV.*.gw1"])
            with pytest.raises(Unprovisioned) as caught:
                await ensure(connection, Target(BUCKET), "create")
            assert str(caught.value) == (
                "cannot create the bucket VICI_NODE: the stream KEYS has $KV.VICI_NODE.>: remove these subjects from it"
            )

    run(test())


def test_reconcile_leaves_subjects_of_other_streams(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    case = Case("", "stream", {"subjects": ["vici.*.event.>"], "duplicate_window": 60 * SECOND}, unacknowledged)

    async def test() -> None:
        async with administered(nats_server) as (admin, connection):
            await made(admin, case)
            await admin.make(name="STATUS", subjects=["vici.*.bridge.status"])
            said = await ensured(connection, case, "reconcile", caplog)
            assert "cannot change the stream VICI: the stream STATUS has" in said
            assert "lacks the subjects vici.*.bridge.>" in said
            assert (await admin.config())["duplicate_window"] == 3600 * SECOND  # the rest is fixed
            assert "cannot change" not in await ensured(connection, case, "reconcile", caplog)  # and logged once

    run(test())


LIMITS = {
    "{max_streams: 1}": "maximum number of streams reached (JetStream error 10027): raise max_streams of the account",
    "{max_bytes_required: true}": "have max bytes set (JetStream error 10113): create it manually with max_bytes",
    "{max_mem: 1000000, max_file: 0}": "storage resources available (JetStream error 10047): raise max_file",
    "disabled": "JetStream not enabled for account (JetStream error 10039): enable JetStream",
}


@pytest.mark.parametrize("limits", LIMITS)
def test_account_limits_are_named(make_nats_server: Callable[..., NatsServer], limits: str) -> None:
    account = f"A {{ jetstream: {limits}, users: [{{user: a, password: a}}] }}"
    server = make_nats_server(f"accounts {{ {account} }}\nno_auth_user: a")

    async def test() -> None:
        async with administered(server) as (admin, connection):
            await admin.api("STREAM.CREATE.OTHER", {"name": "OTHER", "subjects": ["other"]})
            with pytest.raises(NatsError) as caught:
                await ensure(connection, Target(WANTED), "create")
            assert LIMITS[limits] in reason_of(caught.value)

    run(test())
