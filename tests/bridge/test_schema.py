"""The schemas accept what charon and the bridge really send, and the AsyncAPI document names the right subjects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from harness import NatsServer, bucket, envelopes, observing, run, service, settings
from test_raw_envelopes import BRIDGE_EVENT_DATA
from vicibridge.cli import cli
from vicibridge.contract import asyncapi
from vicibridge.contract.bucket_values import BUCKETS
from vicibridge.contract.schema import document, schemas
from vicibridge.contract.subjects import Subjects, patterns
from vicibridge.events.envelopes import Envelopes

from vicifast import encode
from vicifast._wire import CMD_REQUEST, CMD_RESPONSE, EVENT
from vicifast.commands import COMMANDS, EVENTS
from vicifast.recording import Recording
from vicifast.testing import FakeCharon

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")

DATA = Path(__file__).parent.parent / "data"
RECORDINGS = {path.stem: Recording.load(path) for path in sorted(DATA.glob("*.recording"))}
NEWER = [Recording.load(path) for path in sorted(DATA.glob("*/*.recording"))]
DOCUMENT = asyncapi.document("vici")
FULL_IKE = {
    "uniqueid": "1", "version": "2", "state": "ESTABLISHED", "local-host": "192.0.2.1", "local-port": "500",
    "local-id": "a", "remote-host": "192.0.2.2", "remote-port": "500", "remote-id": "b", "initiator": "yes",
}  # fmt: skip
UNKNOWN = {key: value for key, value in FULL_IKE.items() if key != "initiator"} | {
    "state": "CONNECTING", "local-id": "%any", "remote-id": "%any",
}  # fmt: skip
LINE = {"v": 1, "node": "a", "boot": "b", "seq": 1, "time": 1, "event": "log", "data": {"group": "", "msg": ""}}
FULL_CONN = {"local_addrs": ["%any"], "remote_addrs": ["%any"], "version": "IKEv2", "children": {}}
FULL_CHILD = {"name": "net", "uniqueid": "2", "reqid": "1", "state": "INSTALLED", "mode": "TUNNEL", "bytes-in": "7"}


@lru_cache
def validator(name: str) -> Any:
    return jsonschema.Draft202012Validator(document(name))


def check(name: str, value: object) -> None:
    problems = [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in validator(name).iter_errors(value)]
    assert not problems, (name, problems)


def is_valid(name: str, value: object) -> bool:
    return bool(validator(name).is_valid(value))


@pytest.mark.parametrize("name", schemas())
def test_each_schema_contains_all_its_references(name: str) -> None:
    whole = document(name)
    jsonschema.Draft202012Validator.check_schema(whole)
    refs = set(re.findall(r'"#/\$defs/([^"]+)"', json.dumps(whole)))
    assert refs == set(whole["$defs"])


def test_recorded_events_are_valid_envelopes() -> None:
    build = Envelopes("json", "gw1", "b")
    seen = set()
    for recording in (*RECORDINGS.values(), *NEWER):
        for packet in recording.events():
            assert packet.name and packet.message is not None
            [envelope] = envelopes(build.wrap(packet.time + 1, packet.name, packet.message))
            check(packet.name, envelope)
            seen.add(packet.name)
    assert seen >= {"ike-updown", "child-updown", "ike-rekey", "child-rekey", "log", "alert"}


def exchanges() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the data of recorded requests, replies and stream parts with the names of their schemas."""
    build = Envelopes("json", "gw1", "b")

    def data(raw: bytes) -> dict[str, Any]:
        [envelope] = envelopes(build.wrap(1, "log", raw))
        return dict(envelope["data"])

    for recording in (*RECORDINGS.values(), *NEWER):
        requests = [p for p in recording.packets("client") if p.kind == CMD_REQUEST]
        replies = [p for p in recording.packets("server") if p.kind == CMD_RESPONSE]
        for packet, reply in zip(requests, replies, strict=False):
            yield f"{packet.name}.request", data(packet.message or b"")
            yield f"{packet.name}.reply", data(reply.message or b"")
        for packet in recording.packets("server"):
            if packet.kind == EVENT and not EVENTS[packet.name or ""].standalone:
                yield f"{packet.name}.data", data(packet.message or b"")


def test_recorded_commands_and_streams_are_valid() -> None:
    seen = set()
    for name, value in exchanges():
        if name.partition(".")[0] in COMMANDS or name.endswith(".data"):
            check(name, value)
            seen.add(name)
    assert seen >= {"list-sa.data", "list-conn.data", "list-cert.data", "stats.reply", "get-pools.reply"}


@pytest.mark.parametrize(("kind", "data"), BRIDGE_EVENT_DATA)
def test_bridge_events_are_valid(kind: str, data: dict[str, Any]) -> None:
    check(f"{kind}.data", json.loads(json.dumps(data)))


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ("ike-updown", {"up": "yes", "gw": FULL_IKE}),
        ("ike-updown", {"up": FULL_IKE}),  # a connection of that name went down
        ("ike-updown", {"(unnamed)": {**UNKNOWN, "initiator-spi": "0a", "responder-spi": "00", "nat-any": "yes"}}),
        ("ike-updown", {"gw": {**FULL_IKE, "new-in-7.0": ["x", {"$base64": "//4="}]}, "new": "1"}),
        ("ike-update", {"local-host": "a", "local-port": "1", "remote-host": "b", "remote-port": "2", "gw": FULL_IKE}),
        ("child-rekey", {"gw": {**FULL_IKE, "child-sas": {"net": {"old": FULL_CHILD, "new": FULL_CHILD}}}}),
        ("alert", {"type": "peer-auth-failed", "ike-sa": {"gw": FULL_IKE}}),
        ("alert", {"type": "half-open-timeout", "hosts": ["a", "b"], "ike-sa": {"(unnamed)": UNKNOWN}}),
        ("alert", {"type": "invalid-ike-spi"}),
        ("log", {"group": "IKE", "level": "-1", "thread": "7", "msg": {"$base64": "//4="}}),
        ("list-conn", {"gw": {**FULL_CONN, "proposals": {"0": {"encr": ["AES_CBC_128"], "new": ["a"]}}, "new": "1"}}),
    ],
)
def test_data_of_newer_daemons_is_valid(event: str, data: dict[str, Any]) -> None:
    check(f"{event}.data", data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ike-updown.data", {"up": "yes"}),
        ("ike-updown.data", {"up": "no", "gw": FULL_IKE}),
        ("ike-updown.data", {"gw": {**FULL_IKE, "uniqueid": "x"}}),
        ("ike-updown.data", {"gw": {**FULL_IKE, "uniqueid": 1}}),
        ("ike-updown.data", {"gw": {"uniqueid": "1"}}),
        ("ike-rekey.data", {"gw": {"old": FULL_IKE}}),
        ("child-updown.data", {"gw": FULL_IKE}),
        ("child-updown.data", {"gw": {**FULL_IKE, "child-sas": {}}}),
        ("child-updown.data", {"gw": {**FULL_IKE, "child-sas": {"net-1": {**FULL_CHILD, "bytes-in": "-"}}}}),
        ("log.data", {"group": "IKE", "msg": ["a"]}),
        (
            "log",
            {"v": 2, "node": "a", "boot": "b", "seq": 1, "time": 1, "event": "log", "data": {"group": "", "msg": ""}},
        ),
        (
            "log",
            {"v": 1, "node": "a", "boot": "b", "seq": 0, "time": 1, "event": "log", "data": {"group": "", "msg": ""}},
        ),
        ("gap.data", {"class": "other", "cause": "", "count": 1, "first_seq": 1, "last_seq": 1}),
        ("gap.data", {"class": "log", "cause": "", "count": 1, "first_seq": 1}),
        ("audit.data", {"sums": [{"command": "version", "code": "200", "count": 1}], "since": 1, "until": 2}),
        ("VICI_NODE", {"v": 1, "node": "gw1"}),
        ("list-conn.data", {"gw": {**FULL_CONN, "local_port": "ike"}}),
        ("list-conn.data", {"gw": {**FULL_CONN, "proposals": {"0": {"encr": "AES_CBC_128"}}}}),
        ("terminate.request", {"ike-id": "seven"}),
        ("terminate.request", {"timeout": -2}),
        ("load-shared.request", {"type": "IKE"}),
        ("load-conn.request", {}),
        ("load-conn.request", {"a": {}, "b": {}}),
        ("initiate.reply", {"success": "maybe"}),
    ],
)
def test_invalid_values(name: str, value: object) -> None:
    assert not is_valid(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log", LINE),
        ("terminate.request", {"ike-id": 7, "force": True, "timeout": -1}),
        ("list-sas.request", {"noblock": "yes", "ike": "gw"}),
        ("load-shared.request", {"type": "IKE", "data": {"$base64": "AAE="}, "owners": ["a"]}),
        ("load-conn.request", {"gw": {"version": 2, "mobike": False, "local": {"auth": "psk"}, "proposals": ["a"]}}),
        ("get-pools.reply", {"pool": {"base": "10.0.0.0", "leases": {"0": {"status": "online"}}}}),
    ],
)
def test_valid_values(name: str, value: object) -> None:
    check(name, value)


def test_messages_of_a_running_bridge_are_valid(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        config = settings(
            nats_server.url, events={"codec": "json"}, log={"codec": "json"}, mirror={"enabled": True, "heartbeat": 0.5}
        )
        async with FakeCharon.from_recordings(list(RECORDINGS.values())) as charon:
            charon.on("version", {"daemon": "charon-systemd", "version": "5.9.8"})
            gateway = config.gateway[0].model_copy(update={"vici": charon.address})
            config = config.model_copy(update={"gateway": [gateway]})
            async with observing(nats_server.url) as observer, service(config) as bridge:
                await charon.registered("log")
                await observer.sees(".resync")  # of the first snapshot
                await charon.replay(RECORDINGS["events"])
                charon.emit("ike-updown", b"\x03")
                replies = [("version", await observer.ask("vici.gw1.cmd.version", b"{}"))]
                for command, event in (("list-sas", "list-sa"), ("list-conns", "list-conn")):
                    *parts, _ = await observer.ask(f"vici.gw1.cmd.{command}", b"{}", parts=5)
                    replies.append((event, [part for part in parts if part.data]))
                await observer.ask("vici.gw1.cmd.terminate", b'{"ike": "gw"}')
                await observer.sees(".gap")
                await observer.sees(".audit", 4)
                await bridge.gateways[0].log.flush()
                await bridge.gateways[0].backlog.flush()
                for name in BUCKETS:
                    values = await until_there(observer.client, name)
                    for value in values.values():
                        check(name, value)
            for name, messages in replies:
                for message in messages:
                    check(f"{name}.data" if name in EVENTS else f"{name}.reply", json.loads(message.data))
            seen = set()
            channels = {name: channel["address"] for name, channel in DOCUMENT["channels"].items()}
            for message in observer.messages:
                if ".cmd." in message.subject:
                    continue
                for envelope in envelopes(message.data):
                    check(envelope["event"], envelope)
                    seen.add(envelope["event"])
                    assert fits(channels[envelope["event"]], message.subject)
                    assert [n for n, a in channels.items() if a and fits(a, message.subject)] == [envelope["event"]]
                    headers = DOCUMENT["components"]["messages"][envelope["event"]]["headers"]["properties"]
                    assert set(message.headers or {}) <= set(headers)
            assert seen >= {"ike-updown", "child-updown", "child-rekey", "log", "status", "gap", "resync", "audit"}

    async def until_there(client: Any, name: str) -> dict[str, Any]:
        for _ in range(500):
            if found := await bucket(client, name):
                return found
        raise AssertionError(f"the bucket {name} is empty")

    run(test())


def fits(address: str, subject: str) -> bool:
    return bool(re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^.]+", re.escape(address)), subject))


def resolve(ref: str) -> Any:
    found: Any = DOCUMENT
    for part in ref.removeprefix("#/").split("/"):
        found = found[part]
    return found


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (item for key, item in value.items() if key == "$ref" and isinstance(item, str))
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_document_has_no_dangling_references() -> None:
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT
    assert DOCUMENT["asyncapi"] == "3.0.0"
    found = set(references(DOCUMENT))
    for ref in found:
        resolve(ref)
    named = {f"#/components/messages/{name}" for name in DOCUMENT["components"]["messages"]}
    assert named <= found
    for place in ("channels", "operations"):
        assert all(re.fullmatch(r"[\w.-]+", name) for name in DOCUMENT[place])
    for part in DOCUMENT["components"].values():
        assert all(re.fullmatch(r"[\w.-]+", name) for name in part)


def test_channels_and_operations() -> None:
    for channel in DOCUMENT["channels"].values():
        words = set(re.findall(r"\{(\w+)\}", channel["address"] or ""))
        assert words == set(channel.get("parameters", {}))
        assert channel["messages"]
    for operation in DOCUMENT["operations"].values():
        for side in (operation, operation.get("reply", operation)):
            inside = side["channel"]["$ref"]
            assert all(message["$ref"].startswith(f"{inside}/messages/") for message in side["messages"])
    receives = {name for name, operation in DOCUMENT["operations"].items() if operation["action"] == "receive"}
    assert receives == set(COMMANDS)
    assert {event.name for event in EVENTS.values() if event.standalone} <= set(DOCUMENT["channels"])


def test_every_event_has_a_subject() -> None:
    assert {event.name for event in EVENTS.values() if event.standalone} == set(patterns("vici"))


def test_addresses_match_the_bridge_subjects() -> None:
    subjects = Subjects("my.bus", "gw.1")
    channels = asyncapi.document("my.bus")["channels"]
    message = {"up": "yes", "a b": {"child-sas": {"net-1": {"name": "net"}}}}
    assert fits(channels["child-updown"]["address"], subjects.event("child-updown", encode(message)))
    assert fits(channels["gap"]["address"], subjects.bridge("gap"))
    assert fits(channels["VICI_SA"]["address"], f"$KV.VICI_SA.{subjects.key('a b', '7')}")
    assert channels["list-sas.request"]["address"] == "my.bus.{node}.cmd.list-sas"


def ask(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["schema", *arguments])
    return done.exit_code, done.output


def test_command_line(tmp_path: Path) -> None:
    assert json.loads(ask()[1]) == DOCUMENT
    assert json.loads(ask("--json-schema", "VICI_SA")[1]) == document("VICI_SA")
    assert ask("--list")[1].split() == list(schemas())
    code, output = ask("--json-schema", "nonsense")
    assert code == 1 and "unknown schema nonsense; vicibridge schema --list prints the names" in output
    assert ask("--directory", str(tmp_path / "new"), "--prefix", "my.bus") == (0, "")
    written = {path.name for path in (tmp_path / "new").iterdir()}
    assert written == {"asyncapi.json", *(f"{name}.json" for name in schemas())}
    assert json.loads((tmp_path / "new" / "asyncapi.json").read_text("utf-8")) == asyncapi.document("my.bus")
    assert json.loads((tmp_path / "new" / "gap.json").read_text("utf-8")) == document("gap")
