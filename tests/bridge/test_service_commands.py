"""Commands over a real nats-server to a scripted charon: discovery, connections, limits, audit."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
from harness import NatsServer, Observer, observing, run, service, settings, until, up
from nats.aio.msg import Msg
from nats.micro.service import SEMVER_REGEX, ServiceInfo, ServicePing, ServiceStats
from vicibridge.bus.connection import Disconnected
from vicibridge.commands.reply import Reply
from vicibridge.events.losses import Tally
from vicibridge.service import Service

from vicifast.commands import COMMANDS, Danger
from vicifast.testing import FakeCharon

SAS = [("list-sa", {f"gw{number}": {"uniqueid": str(number)}}) for number in range(3)]
EVERYTHING = [f"@{danger}" for danger in Danger]


def code(message: Msg) -> str:
    return (message.headers or {}).get("Nats-Service-Error-Code", "200")


def text(message: Msg) -> str:
    return (message.headers or {}).get("Nats-Service-Error", "")


@asynccontextmanager
async def bridged(
    server: NatsServer, watch: str = "vici.>", **commands: Any
) -> AsyncIterator[tuple[FakeCharon, Observer, Service]]:
    """A charon that answers `version`, `stats` and `list-sas`, a bridge, and an observer on the bus."""
    await server.up()
    async with FakeCharon() as charon, observing(server.url, watch) as observer:
        charon.on("version", {"daemon": "charon", "version": "6.0.6"})
        charon.on("stats", {"workers": {"total": "8"}})
        charon.on("list-sas", {}, stream=SAS)
        async with service(settings(server.url, charon.address, commands=commands)) as bridge:
            await up(bridge)
            yield charon, observer, bridge


async def audits(observer: Observer, count: int) -> list[dict[str, Any]]:
    """Return the audit entries, without the requests of `Observer.ask` that check for a bridge."""

    def seen() -> list[dict[str, Any]]:
        return [e["data"] for _, e in observer.seen("bridge.audit") if e["data"].get("command") != "no-such-command"]

    await until(lambda: len(seen()) >= count)
    return seen()


async def discover(observer: Observer, what: str) -> list[dict[str, Any]]:
    inbox = observer.client.new_inbox()
    answers = await observer.client.subscribe(inbox)
    await observer.client.publish(f"$SRV.{what}", reply=inbox)
    found = [json.loads((await answers.next_msg(timeout=5)).data)]
    while answers.pending_msgs:
        found.append(json.loads((await answers.next_msg()).data))
    return found


def test_service_discovery(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with bridged(nats_server, allow=["@read", "terminate", "patched in"]) as (charon, observer, bridge):
            await observer.ask("vici.gw1.cmd.version")
            [reply] = await observer.ask("vici.gw1.cmd.terminate", b'{"timeout": "x"}')
            assert code(reply) == "400"
            [ping] = await discover(observer, "PING")
            assert ping["type"] == "io.nats.micro.v1.ping_response" and ping["name"] == "vicibridge"
            assert SEMVER_REGEX.match(ping["version"])
            assert ping["metadata"] == {"node": "gw1", "charon": "6.0.6", "bridge": ping["version"]}
            assert ServicePing.from_dict(ping).id == ping["id"]
            for verb in ("PING", "PING.vicibridge", f"PING.vicibridge.{ping['id']}"):
                assert await discover(observer, verb) == [ping]

            [info] = await discover(observer, f"INFO.vicibridge.{ping['id']}")
            assert info["type"] == "io.nats.micro.v1.info_response" and info["description"]
            endpoints = {endpoint.name: endpoint for endpoint in ServiceInfo.from_dict(info).endpoints}
            reads = {name for name, known in COMMANDS.items() if known.danger is Danger.READ}
            assert endpoints.keys() == reads | {"terminate", "patched_in"}
            assert endpoints["patched_in"].subject == "vici.gw1.cmd.patched=20in"
            listed = endpoints["list-sas"]
            assert (listed.subject, listed.queue_group) == ("vici.gw1.cmd.list-sas", "gw1")
            assert listed.metadata["danger"] == "read" and listed.metadata["streams"] == "list-sa"
            assert "ike-id (number)" in listed.metadata["keys"]
            assert {type(said) for e in info["endpoints"] for said in e["metadata"].values()} == {str}

            [response] = await discover(observer, "STATS")
            assert response["type"] == "io.nats.micro.v1.stats_response"
            stats = {endpoint.name: endpoint for endpoint in ServiceStats.from_dict(response).endpoints}
            assert (stats["version"].num_requests, stats["version"].num_errors) == (1, 0)
            assert 0 < stats["version"].average_processing_time <= stats["version"].processing_time < 5e9
            assert stats["terminate"].last_error == "400: timeout must be a whole number"
            assert (stats["terminate"].num_requests, stats["terminate"].num_errors) == (1, 1)
            assert stats["list-sas"].num_requests == 0
            assert bridge.gateways[0].commands.stats["terminate"].codes == {400: 1}

            await charon.stop()
            bridge.gateways[0].commands._charon._asked.clear()
            [ping] = await discover(observer, "PING")
            assert ping["metadata"]["charon"] == ""

    run(test())


def test_idle_connections_are_kept_except_after_an_error(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with bridged(nats_server, timeout=0.4) as (charon, observer, bridge):
            connections = bridge.gateways[0].commands._charon
            for payload in (b"", b"{}", b'{"noblock": true}'):
                *_, end = await observer.ask("vici.gw1.cmd.list-sas", payload, parts=4)
                [reply] = await observer.ask("vici.gw1.cmd.version", payload)
                assert (code(end), code(reply)) == ("200", "200")
            assert connections.connects == 1
            [reply] = await observer.ask("vici.gw1.cmd.version", b"\x80")
            assert msgpack.unpackb(reply.data)["daemon"] == "charon" and connections.connects == 2

            charon.on("get-conns", {"success": "no", "errmsg": "no"})
            [reply] = await observer.ask("vici.gw1.cmd.get-conns")
            assert code(reply) == "409"
            await observer.ask("vici.gw1.cmd.version")
            assert connections.connects == 2  # an error of a command does not close the connection
            charon.mute("get-conns")
            [reply] = await observer.ask("vici.gw1.cmd.get-conns")
            assert code(reply) == "504"
            await charon.connected(2)  # the one for events and the one for msgpack
            await observer.ask("vici.gw1.cmd.version")
            assert connections.connects == 3

            await charon.stop()
            await charon.start()
            [reply] = await observer.ask("vici.gw1.cmd.version")
            assert code(reply) == "200" and connections.connects == 4
            monkeypatch.setattr("vicibridge.commands.session_pool._IDLE", 0.05)
            await observer.ask("vici.gw1.cmd.version")
            await charon.connected(1)

    run(test())


class Held:
    """A command that charon is busy with until released."""

    def __init__(self, charon: FakeCharon, command: str) -> None:
        self.running = self.most = 0
        self._go = asyncio.Event()
        charon.on(command, self._run, stream=[("control-log", {"msg": "begun"})])

    async def _run(self, _: Mapping[str, object]) -> dict[str, str]:
        self.running += 1
        self.most = max(self.most, self.running)
        await self._go.wait()
        self.running -= 1
        return {"success": "yes"}

    def go(self) -> None:
        self._go.set()


def test_blocking_commands_hold_their_share_of_threads_until_charon_is_done(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with bridged(nats_server, allow=["@read", "@operate"], timeout=0.5, concurrency=4) as (
            charon,
            observer,
            bridge,
        ):
            held = Held(charon, "initiate")
            commands = bridge.gateways[0].commands
            asked = [asyncio.create_task(observer.ask("vici.gw1.cmd.initiate", b'{"child": "x"}')) for _ in range(30)]
            await until(lambda: held.running == 2)  # of 8 threads
            [reply] = await observer.ask("vici.gw1.cmd.version")
            assert code(reply) == "200"  # read-only commands do not wait for them
            codes = Counter([code((await task)[0]) for task in asked])
            assert codes == {"200": 2, "429": 28}  # the first message of those that ran is a log line
            assert commands.blocking.waiting == 0
            # The two have timed out on the bus, but still run in charon.
            await until(lambda: commands.stats["initiate"].codes == {429: 28, 504: 2})
            [reply] = await observer.ask("vici.gw1.cmd.terminate", b'{"ike": "x"}')
            assert code(reply) == "429" and held.running == 2 and commands.blocking.running == 2
            held.go()
            await until(lambda: commands.blocking.running == 0)
            *_, end = await observer.ask("vici.gw1.cmd.initiate", b'{"child": "x"}', parts=2)
            assert code(end) == "200" and held.most == 2
            # -1 makes charon answer at once, so it holds no thread
            [request] = [r for c, r in charon.requests[-1:] if c == "initiate"]
            assert request == {"child": "x", "timeout": "450", "loglevel": "1"}

    run(test())


def test_blocking_command_is_answered_in_time_without_a_thread_count(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with bridged(nats_server, allow=["@operate"], timeout=1) as (charon, observer, _):
            charon.mute("stats")
            asked = [asyncio.create_task(observer.ask("vici.gw1.cmd.terminate")) for _ in range(8)]
            async with asyncio.timeout(5):
                codes = [code((await task)[0]) for task in asked]
            assert set(codes) <= {"503", "504"}

    run(test())


def test_blocking_command_holds_its_share_when_its_late_reply_fails(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, fail = asyncio.Event(), asyncio.Event()

    async def part(self: Reply, data: bytes) -> None:
        failing.set()
        await fail.wait()
        raise Disconnected("the server does not respond")

    monkeypatch.setattr(Reply, "part", part)

    async def test() -> None:
        async with bridged(nats_server, allow=["@operate"], timeout=0.3) as (charon, observer, bridge):
            held = Held(charon, "initiate")
            [reply] = await observer.ask("vici.gw1.cmd.initiate")
            assert code(reply) == "504" and failing.is_set()
            fail.set()
            await asyncio.sleep(0.1)
            assert held.running == bridge.gateways[0].commands.blocking.running == 1
            held.go()
            await until(lambda: not bridge.gateways[0].commands.blocking.running)
            assert len(bridge.gateways[0].commands._charon._idle["json"]) == 1  # the connection is intact

    run(test())


def test_configured_blocking_limit_ignores_commands_that_do_not_wait(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with bridged(nats_server, allow=["@operate"], blocking=1, timeout=5) as (charon, observer, bridge):
            held = Held(charon, "terminate")
            asked = [asyncio.create_task(observer.ask("vici.gw1.cmd.terminate", parts=2)) for _ in range(3)]
            await until(lambda: bridge.gateways[0].commands.blocking.waiting == 2)
            assert held.running == 1
            charon.on("initiate", {"success": "yes"})
            [end] = await observer.ask("vici.gw1.cmd.initiate", b'{"child": "x", "timeout": -1}')
            assert code(end) == "200"
            held.go()
            assert [code((await task)[1]) for task in asked] == ["200"] * 3
            assert held.most == 1 and "stats" not in [command for command, _ in charon.requests]

    run(test())


def test_timeout_header_of_a_request(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with bridged(nats_server, allow=EVERYTHING, timeout=20) as (charon, observer, _):
            charon.on("get-conns", {})
            charon.mute("get-conns")
            [reply] = await observer.ask("vici.gw1.cmd.get-conns", b"", {"Vici-Timeout": "0.2"})
            assert (code(reply), text(reply)) == ("504", "no reply within 0.2 seconds")
            charon.on("initiate", {"success": "yes"})
            await observer.ask("vici.gw1.cmd.initiate", b"", {"Vici-Timeout": "2"})
            await observer.ask("vici.gw1.cmd.initiate", b"", {"Vici-Timeout": "2000"})
            sent = [request["timeout"] for command, request in charon.requests if command == "initiate"]
            assert sent == ["1800", "18000"]
            [reply] = await observer.ask("vici.gw1.cmd.version", b"", {"Vici-Timeout": "forever"})
            assert code(reply) == "400" and "Vici-Timeout" in text(reply)

    run(test())


@pytest.mark.parametrize("caps", [{"max_parts": 2}, {"max_bytes": 1024 * 1024}])
@pytest.mark.parametrize("collect", ["true", "false"])
def test_replies_are_limited(nats_server: NatsServer, caps: dict[str, int], collect: str) -> None:
    async def test() -> None:
        async with bridged(nats_server, **caps) as (charon, observer, _):
            charon.on("list-conns", {}, stream=[("list-conn", {"x": {"y": "z" * 60_000}})] * 30)
            sent = 0 if collect == "true" else caps.get("max_parts", 17)
            *_, end = await observer.ask("vici.gw1.cmd.list-conns", b"", {"Vici-Collect": collect}, parts=sent + 1)
            assert code(end) == "413" and "Vici-Count" in (end.headers or {})
            [reply] = await observer.ask("vici.gw1.cmd.version")
            assert code(reply) == "200"

    run(test())


def test_every_request_is_audited(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with bridged(nats_server, allow=["@read", "terminate", "load-conn"]) as (charon, observer, _):
            charon.on("terminate", {"success": "no", "errmsg": "no such\nSA"}, stream=[("control-log", {"msg": "x"})])
            charon.on("load-conn", {"success": "yes"})
            who = {"Vici-User": "ann\u00e9", "Vici-Request-Id": "r-7", "Nats-Request-Info": '{"acc":"A"}'}
            await observer.ask("vici.gw1.cmd.list-sas", b'{"ike": "gw0"}', who, parts=4)
            await observer.ask("vici.all.cmd.terminate", b'{"ike": "gw"}', parts=2)
            await observer.ask("vici.gw1.cmd.rekey", b'{"ike": "gw"}')
            await observer.ask("vici.gw1.cmd.rekey", b'{"ike": "' + b"x" * 5000 + b'"}')
            await observer.ask("vici.gw1.cmd.version", b"{")
            await observer.ask("vici.gw1.cmd.load-conn", json.dumps({"gw": {"local": {"certs": ["PEM"]}}}).encode())
            seen = await audits(observer, 6)
        listed, ended, denied, longer, bad, loaded = seen
        assert listed["reply"].startswith("_INBOX.") and listed["nanoseconds"] > 0 and listed["bytes"] > 0
        assert {
            key: listed[key] for key in ("user", "id", "info", "command", "arguments", "code", "parts", "subject")
        } == {
            "user": "ann\\xe9",
            "id": "r-7",
            "info": '{"acc":"A"}',
            "command": "list-sas",
            "arguments": {"ike": "gw0"},
            "code": 200,
            "parts": 3,
            "subject": "vici.gw1.cmd.list-sas",
        }
        assert (ended["code"], ended["text"], ended["parts"]) == (409, "no such SA", 1)
        assert ended["arguments"] == {"ike": "gw", "timeout": "27000", "loglevel": "1"}
        assert ended["subject"] == "vici.all.cmd.terminate" and "user" not in ended
        assert (denied["code"], denied["arguments"]) == (403, {"ike": "gw"})
        assert (longer["code"], longer["arguments"]) == (403, None)
        assert (bad["code"], bad["arguments"]) == (400, None)
        assert loaded["arguments"] == {"gw": {"local": {"certs": "**********"}}}

    run(test())


@pytest.mark.parametrize(("audit", "audited"), [("changes", ["rekey", "install"]), ("denied", ["install"])])
def test_scope_of_the_audit(nats_server: NatsServer, audit: str, audited: list[str]) -> None:
    async def test() -> None:
        async with bridged(nats_server, allow=["@read", "rekey"], audit=audit) as (charon, observer, _):
            charon.on("rekey", {"success": "yes"})
            for command in ("version", "rekey", "no-such", "install"):
                await observer.ask(f"vici.gw1.cmd.{command}")
            assert [entry["command"] for entry in await audits(observer, len(audited))] == audited

    run(test())


def test_flood_is_audited_in_sums_and_changes_individually(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with bridged(nats_server, allow=["@read", "reset-counters"], concurrency=64) as (
            charon,
            observer,
            bridge,
        ):
            charon.on("reset-counters", {"success": "yes"})
            inbox = observer.client.new_inbox()
            await observer.ask("vici.gw1.cmd.version")
            for _ in range(1000):
                await observer.client.publish("vici.gw1.cmd.rekey", reply=inbox)
            await until(lambda: ended(bridge, "rekey") == {403: 1000})
            for _ in range(300):
                await observer.client.publish("vici.gw1.cmd.reset-counters", reply=inbox)
            await until(lambda: ended(bridge, "reset-counters") == {200: 300})
            await until(lambda: sum(told_of(observer, "rekey")) == 1000)
            await until(lambda: sum(told_of(observer, "reset-counters")) == 300)
            assert told_of(observer, "reset-counters") == [1] * 300
            assert len(told_of(observer, "rekey")) < 300

    run(test())


def ended(bridge: Service, command: str) -> Mapping[int, int]:
    """Return the results of the requests for a command."""
    return bridge.gateways[0].commands.stats.get(command, Tally()).codes


def told_of(observer: Observer, command: str) -> list[int]:
    """Return the number of requests for a command in each audit envelope."""
    entries = [envelope["data"] for _, envelope in observer.seen("bridge.audit")]
    sums = [part["count"] for entry in entries for part in entry.get("sums", ()) if part["command"] == command]
    return sums + [1 for entry in entries if entry.get("command") == command]


def test_changes_wait_until_the_audit_has_room(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with bridged(nats_server, allow=["@operate"], timeout=0.3) as (charon, observer, bridge):
            charon.on("rekey", {"success": "yes"})
            room = bridge.gateways[0].commands._audit._changes
            room._left, room._rate = 0.0, 0.001
            [reply] = await observer.ask("vici.gw1.cmd.rekey")
            assert code(reply) == "504" and "rekey" not in [command for command, _ in charon.requests]
            room._rate = 100.0
            [reply] = await observer.ask("vici.gw1.cmd.rekey")
            assert code(reply) == "200"

    run(test())
