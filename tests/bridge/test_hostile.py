"""Hostile clients: other clients are unaffected, charon gets only checked requests, and no secret is exposed."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Mapping
from typing import Any

import msgpack
import pytest
from harness import NatsServer, Observer, bucket, observing, run, service, settings, until, up
from prometheus_client import generate_latest
from test_service_commands import EVERYTHING, bridged, code, discover, ended, text
from vicibridge.contract.subjects import unescape
from vicibridge.ops.metrics import registry
from vicibridge.service import Service

from vicifast import encode
from vicifast.commands import COMMANDS
from vicifast.testing import FakeCharon

ODD_REQUESTS = [
    b"\x00",
    b"\xc1",
    b"null",
    b"[]",
    b"\x91\x80",
    b"{" * 100_000,
    b"\x81\xa1a" * 100_000,
    b'{"a":' * 70 + b"1" + b"}" * 70,
    b'{"a": 1, "a": 2}',
    b'{"a": {"b": 1, "b": 2}}',
    b"\x82\xa1a\x01\xa1a\x02",
    b'{"a": 1e400}',
    b'{"\xc3\xa4": "x"}',
    b'{"a\\u0000": "x"}',
    b'{"a": "\\ud800"}',
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b'{"a": ["b", ["c"]]}',
    b'{"a": "' + b"x" * 70_000 + b'"}',
    b'{"' + b"x" * 300 + b'": "y"}',
    b'{"a": "' + b"x" * 600_000 + b'"}',
    b"\xff" * 1000,
]


@pytest.mark.parametrize("allow", [[], *[[group] for group in EVERYTHING], EVERYTHING], ids=" ".join)
def test_denied_requests_never_reach_charon(nats_server: NatsServer, allow: list[str]) -> None:
    async def test() -> None:
        async with bridged(nats_server, allow=allow) as (charon, observer, _):
            charon.requests.clear()
            for command, known in COMMANDS.items():
                charon.on(command, {"success": "yes"})
                for payload in (b"", b"{}", b"\x80", b'{"a": 1, "a": 2}', b"{"):
                    [reply] = await observer.ask(f"vici.gw1.cmd.{command}", payload)
                    if f"@{known.danger}" not in allow:
                        assert code(reply) == "403" and f'"{command}" or "@{known.danger}"' in text(reply)
                    else:
                        assert code(reply) == ("400" if payload in (b"{", b'{"a": 1, "a": 2}') else "200")
            asked = {command for command, _ in charon.requests} - {"stats"}
            assert asked == {name for name, known in COMMANDS.items() if f"@{known.danger}" in allow} - {"stats"}

    run(test())


def test_invalid_requests_are_refused_and_block_nothing(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with bridged(nats_server, allow=EVERYTHING) as (charon, observer, _):
            charon.requests.clear()
            for payload in ODD_REQUESTS:
                for command in ("load-conn", "list-sas", "initiate", "load-shared"):
                    [reply] = await observer.ask(f"vici.gw1.cmd.{command}", payload)
                    assert (code(reply), reply.data) == ("400", b""), payload[:20]
            [reply] = await observer.ask("vici.gw1.cmd.version")
            assert code(reply) == "200"
            assert {command for command, _ in charon.requests} <= {"version", "stats"}

    run(test())


@pytest.mark.parametrize(
    "token",
    ["=", "=41", "=4", "=zz", "=2E", "a=20b", "VERSION", "version=00", "x" * 2000, "=40read", "%", "\u00fc", "$SRV"],
)
def test_unusual_subject_tokens(nats_server: NatsServer, token: str) -> None:
    async def test() -> None:
        async with bridged(nats_server, allow=EVERYTHING) as (charon, observer, bridge):
            charon.requests.clear()
            [reply] = await observer.ask(f"vici.gw1.cmd.{token}")
            assert code(reply) == "404" and charon.requests == []
            assert set(bridge.gateways[0].commands.stats) == {""}  # hostile names use no memory

    run(test())


FORBIDDEN_REPLIES = [
    "vici.gw1.event.ike-updown.gw.up",
    "vici.gw1.cmd.terminate",
    "vici.all.cmd.terminate",
    "vici.gw1.bridge.audit",
    "$JS.API.STREAM.PURGE.VICI",
    "$JS.API.STREAM.DELETE.VICI",
    "$KV.VICI_SA.gw1.x.1",
    "$SYS.REQ.SERVER.PING",
    "$SRV.PING",
    "other.client",
    "INBOX.x",
    "_INBOX",
    "_INBOX.*",
    "_INBOX.>",
    "_INBOX..x",
    "_INBOX.x.",
    "_.\x01",
    "_INBOX.\u00fc",
]


def test_requester_cannot_make_the_bridge_publish_elsewhere(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with bridged(nats_server, ">", allow=EVERYTHING) as (charon, observer, bridge):
            await observer.ask("vici.gw1.cmd.version")
            state_inbox = next(m.reply for m in observer.messages if ".bridge.status" in m.subject)
            charon.requests.clear()
            asked = [*FORBIDDEN_REPLIES, state_inbox]
            for reply in asked:
                await observer.client.publish("vici.gw1.cmd.version", b"{}", reply=reply)
                await observer.client.publish("vici.gw1.cmd.no-such-command", b"{}", reply=reply)
                for verb in ("PING", "INFO", "STATS.vicibridge"):
                    await observer.client.publish(f"$SRV.{verb}", reply=reply)
            await observer.client.publish("vici.gw1.cmd.version")  # without a reply subject
            await until(lambda: ended(bridge, "version")[403] == len(asked) + 1)
            [_] = await discover(observer, "PING")  # so earlier requests have been handled
            assert charon.requests == [] or charon.requests == [("version", {})]  # the latter from the discovery
            assert not [
                m.subject
                for m in observer.messages
                if m.headers and "Vici-Node" in m.headers and "INBOX" not in m.subject
            ]
            said = [m for m in observer.messages if b'"io.nats.micro' in m.data]
            assert {m.subject.partition(".")[0] for m in said} == {"_INBOX"} and len(said) == 1
            entries = [e["data"] for _, e in observer.seen("bridge.audit") if e["data"].get("code") == 403]
            assert entries and {entry["command"] for entry in entries} == {"version", "no-such-command"}

    run(test())


@pytest.mark.parametrize("reply", ["_INBOX.x.y", "_INBOX_ann.x"])
def test_replies_to_all_kinds_of_inboxes(nats_server: NatsServer, reply: str) -> None:
    async def test() -> None:
        async with bridged(nats_server, reply) as (_, observer, _bridge):
            await observer.ask("vici.gw1.cmd.version")
            await observer.client.publish("vici.gw1.cmd.version", b"{}", reply=reply)
            await until(lambda: observer.messages)
            assert json.loads(observer.messages[0].data)["daemon"] == "charon" and observer.messages[0].subject == reply

    run(test())


def _with_headers(headers: bytes, subject: bytes = b"vici.gw1.cmd.version", reply: bytes = b"_INBOX.x") -> bytes:
    sizes = b"%d %d" % (len(headers), len(headers) + 2)
    return b"HPUB " + b" ".join([subject, reply, sizes]) + b"\r\n" + headers + b"{}\r\n"


RAW = [
    b"PUB vici.gw1.cmd.version\x0bx _INBOX.x 2\r\n{}\r\n",
    b"PUB vici.gw1.cmd.version\x0c _INBOX.x 2\r\n{}\r\n",
    b"PUB vici.gw1.cmd.\xff _INBOX.x 2\r\n{}\r\n",
    b"PUB vici.gw1.cmd.\x00 _INBOX.x 2\r\n{}\r\n",
    b"PUB vici.gw1.cmd.version _INBOX.\x0bx 2\r\n{}\r\n",
    b"PUB vici.gw1.cmd.version _INBOX.\xff 2\r\n{}\r\n",
    b"PUB $SRV.PING _INBOX.\xff 0\r\n\r\n",
    _with_headers(b"NATS"),
    _with_headers(b"NATS/1.0"),
    _with_headers(b"NATS/1.0 \xff\xff\xff\r\n\r\n"),
    _with_headers(b"NATS/1.0 503\r\n\r\n"),
    _with_headers(b"NATS/1.0\r\n:\xff\xfe\x00\r\n\xff:\r\n\r\n"),
    _with_headers(b"NATS/1.0\r\n" + b"a:\r\n" * 75000 + b"\r\n"),
    _with_headers(b"NATS/1.0\r\nVici-Timeout: \xff\r\n\r\n", reply=b"_INBOX.\x0c"),
]


def test_malformed_protocol_bytes(nats_server: NatsServer) -> None:
    """Invalid subjects and headers that nats-server forwards."""

    async def test() -> None:
        async with bridged(nats_server, "nothing", allow=EVERYTHING) as (_, observer, bridge):
            host, _, port = nats_server.url.removeprefix("nats://").rpartition(":")
            for packet in RAW:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(
                    b'CONNECT {"verbose":false,"headers":true,"lang":"x","version":"1"}\r\n' + packet + b"PING\r\n"
                )
                lines = [await reader.readline() for _ in range(2)]
                assert lines[1] == b"PONG\r\n", packet[:60]  # so the server has forwarded it
                writer.close()
                [reply] = await observer.ask("vici.gw1.cmd.version")
                assert code(reply) == "200"
            assert bridge.bus.connects == 1 and bridge.bus.errors > 0

    run(test())


def test_flood_delays_neither_events_nor_other_requests(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with bridged(nats_server, allow=EVERYTHING, timeout=1, concurrency=2) as (charon, observer, bridge):
            charon.on("get-conns", {})
            charon.mute("get-conns")
            async with observing(nats_server.url, "nothing") as other:
                await other.ask("vici.gw1.cmd.version")
                for number in range(3000):
                    command = ("get-conns", "load-shared", "no-such")[number % 3]
                    await observer.client.publish(
                        f"vici.gw1.cmd.{command}", b"{" * 1000, reply="_INBOX.without.subscriber"
                    )
                    await observer.client.publish("vici.gw1.cmd.get-conns", reply="_INBOX.without.subscriber")
                charon.emit("ike-updown", {"gw": {"uniqueid": "1"}})
                await observer.sees(".event.ike-updown.")
                [reply] = await other.ask("vici.gw1.cmd.install")
                assert code(reply) in ("404", "429")
            await until(lambda: not bridge.gateways[0].commands._tasks)
            codes = ended(bridge, "get-conns")
            assert codes[504] >= 2 and codes[429] > codes[504]
            assert codes[504] + codes[429] == 3000 and codes[400] == 1000
            [reply] = await observer.ask("vici.gw1.cmd.version")
            assert code(reply) == "200"

    run(test())


SECRET = "tr0ub4dor-and-3-horses"


def _repeats(request: Mapping[str, object]) -> dict[str, str]:
    return {"success": "no", "errmsg": f"cannot take {request}"}


def _carriers(command: str) -> list[dict[str, Any]]:
    """Return requests for a command with the secret in each place for secrets."""
    known = COMMANDS[command]
    names = sorted(known.blob | {"pin", "PIN"} | {name.capitalize() for name in known.blob})
    if known.secret:
        names += [*(key.name for key in known.keys), "no-such-key", "\u00fcmlaut"]
    flat: list[dict[str, Any]] = [{name: SECRET} for name in names]
    flat += [{name: [SECRET, "x"]} for name in names] + [{name: SECRET.encode() + b"\xff\xfe"} for name in names]
    return [*flat, *({"gw": {"local": request}} for request in flat), {"pin": SECRET, "timeout": "x"}]


def _payloads(command: str) -> list[bytes]:
    whole = [payload for request in _carriers(command) for payload in _encoded(request)]
    first = json.dumps(_carriers(command)[0]).encode()
    broken = [
        first[:-1],
        first[:-1] + b', "pin": 1.5}',
        first[:-1] + b"," + first[1:],
        first + b"x",
        whole[0] + b"\x01",
    ]
    return whole + broken


def _encoded(request: dict[str, Any]) -> list[bytes]:
    try:
        return [msgpack.packb(request), json.dumps(request).encode()]
    except TypeError:  # bytes
        return [msgpack.packb(request)]


async def _send_everywhere(observer: Observer) -> None:
    for command in COMMANDS:
        for payload in _payloads(command):
            await observer.client.publish(f"vici.gw1.cmd.{command}", payload, reply=f"_INBOX.secrets.{command}")


@pytest.mark.parametrize("allow", [[], EVERYTHING], ids=["denied", "allowed"])
def test_secrets_are_never_exposed(nats_server: NatsServer, caplog: pytest.LogCaptureFixture, allow: list[str]) -> None:
    caplog.set_level(logging.DEBUG)

    async def all_ended(bridge: Service, rounds: int) -> None:
        count = rounds * sum(len(_payloads(command)) for command in COMMANDS)
        await until(lambda: sum(tally.requests for tally in bridge.gateways[0].commands.stats.values()) >= count, 20)

    async def test() -> None:
        await nats_server.up()
        limits = {"timeout": 5, "concurrency": 64, "blocking": 64}
        async with FakeCharon() as charon, observing(nats_server.url, ">") as observer:
            for command in COMMANDS:
                charon.on(command, _repeats)
            config = settings(nats_server.url, charon.address, commands={"allow": allow, **limits})
            async with service(config) as bridge:
                await up(bridge)
                audit = bridge.gateways[0].commands._audit
                audit._changes._rate = audit._others._rate = 1e6  # each must have its own envelope
                await observer.ask("vici.gw1.cmd.no-such-command")
                await _send_everywhere(observer)
                await all_ended(bridge, 1)
                await charon.stop()
                await _send_everywhere(observer)
                await all_ended(bridge, 2)
                out = [json.dumps(await discover(observer, what)) for what in ("INFO", "STATS")]
                out += [generate_latest(registry(bridge)).decode(), repr(bridge.gateways[0].commands.stats)]
        mine = [m for m in observer.messages if ".cmd." not in m.subject]
        out += [f"{m.subject} {m.reply} {m.headers} {m.data!r}" for m in mine]
        out += [record.getMessage() + str(record.exc_info) for record in caplog.records]
        audits = [e["data"] for _, e in observer.seen("bridge.audit")]
        assert len(audits) > 1000 and len(mine) > 2000
        assert ("**********" in str(audits)) is bool(allow) or not allow
        assert [text for text in out if SECRET[:12] in text] == []

    run(test(), 60)


def _names() -> list[bytes]:
    dice = random.Random(6)
    odd = [
        b"",
        b"..",
        b".>",
        b"*.*",
        b"$JS.API.STREAM.DELETE.VICI",
        b"\r\nPUB x 0\r\n",
        b"=",
        b"=2E",
        b"x" * 255,
        b"\xc3\xa4",
    ]
    return [
        *odd,
        *(bytes([byte]) for byte in range(256)),
        *(dice.randbytes(dice.randrange(2, 256)) for _ in range(100)),
    ]


def _emit_everywhere(charon: FakeCharon, name: bytes, number: int) -> None:
    """Use a name in every place where it becomes part of a subject or key."""
    ids = {"uniqueid": name + b"%d" % number, "initiator-spi": str(number), "state": "ESTABLISHED"}
    child = {"name": name, "uniqueid": str(number), "state": "INSTALLED", "spi-in": str(number)}
    section = b"\x01%c%s%s\x02" % (len(name), name, encode({**ids, "child-sas": {"net": child}}))
    charon.emit("ike-updown", encode({"up": "yes"}) + section)
    charon.emit("child-updown", encode({"up": "yes"}) + section)
    charon.emit("alert", {"type": name})
    charon.emit("log", {"group": name, "level": "1", "msg": str(number)})


def test_names_with_any_byte_stay_in_their_token(nats_server: NatsServer) -> None:
    """Each is one token that unescapes to the name; a name that VICI forbids is reported as a gap."""
    names = _names()

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url, ">") as observer:
            charon.on("list-sas", {})
            charon.on("list-conns", {})
            config = settings(
                nats_server.url,
                charon.address,
                mirror={"enabled": True, "interval": 3600},
                events={"unauthenticated_rate": 0},  # alerts of unknown types are limited otherwise
            )
            async with service(config) as bridge:
                await up(bridge)
                [mirroring] = bridge.mirrorings
                await until(lambda: mirroring.snapshots)
                for number, name in enumerate(names):
                    _emit_everywhere(charon, name, number)
                printable = [name for name in names if all(0x20 <= byte < 0x7F for byte in name)]
                causes = bridge.gateways[0].backlog.counts.causes
                await until(lambda: sum(causes.values()) == 2 * (len(names) - len(printable)))
                await observer.sees(".event.alert.", len(names))
                await observer.sees(".log.", len(names))
                await asyncio.wait_for(mirroring.buckets.settled(), 15)
                sas, conns = [await bucket(observer.client, name) for name in ("VICI_SA", "VICI_CONN")]
            assert set(causes) == {"malformed message from charon"} and bridge.bus.connects == 1
        seen = {place: [_names_in(subject) for subject, _ in observer.seen(f".{place}.")] for place in ("event", "log")}
        wanted = [[b"alert", name] for name in names]
        wanted += [[b"ike-updown", name, b"up"] for name in printable]
        wanted += [[b"child-updown", name, name, b"up"] for name in printable]
        assert sorted(seen["event"]) == sorted(wanted)
        assert sorted(seen["log"]) == sorted([name, b"1"] for name in names)
        assert {tuple(_tokens(key)) for key in conns} == {(b"gw1", name) for name in printable}
        numbered = {(b"gw1", name, name + b"%d" % number) for number, name in enumerate(names) if name in printable}
        assert {tuple(_tokens(key)) for key in sas} == numbered

    run(test(), 60)


def _tokens(subject: str) -> list[bytes]:
    return [unescape(token).encode("utf-8", "surrogateescape") for token in subject.split(".")]


def _names_in(subject: str) -> list[bytes]:
    assert subject.startswith("vici.gw1.")
    return _tokens(subject)[3:]
