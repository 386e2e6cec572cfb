"""The whole service between a scripted charon and a real nats-server."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest
from harness import (
    NatsServer,
    Observer,
    envelopes,
    observing,
    processed,
    run,
    service,
    settings,
    start_bridge,
    stored,
    until,
    up,
)
from nats.aio.msg import Msg

from vicifast import protocol
from vicifast.commands import EVENTS
from vicifast.testing import FakeCharon

SA = {"uniqueid": "7", "state": "ESTABLISHED"}
CHILD = {"uniqueid": "4", "name": "net"}
# one event of each kind, with the end of its subject
ONE_OF_EACH: list[tuple[str, dict[str, Any], str]] = [
    ("ike-updown", {"up": "yes", "site a": SA}, "event.ike-updown.site=20a.up"),
    ("child-updown", {"up": "yes", "gw": {**SA, "child-sas": {"net-4": CHILD}}}, "event.child-updown.gw.net.up"),
    ("ike-update", {"local-host": "192.0.2.9", "gw": SA}, "event.ike-update.gw"),
    ("ike-rekey", {"gw": {"old": SA, "new": SA}}, "event.ike-rekey.gw"),
    ("child-rekey", {"gw": {"child-sas": {"net": {"old": CHILD, "new": CHILD}}}}, "event.child-rekey.gw.net"),
    ("alert", {"type": "peer-auth-failed", "ike-sa": {"gw": SA}}, "event.alert.peer-auth-failed"),
    ("child-updown", {"gw": {**SA, "child-sas": {"net-4": CHILD}}}, "event.child-updown.gw.net.down"),
    ("ike-updown", {"site a": SA}, "event.ike-updown.site=20a.down"),
    ("log", {"group": "IKE", "level": "1", "thread": "3", "msg": "hello"}, "log.IKE.1"),
]
SAS = [("list-sa", {f"gw{number}": {**SA, "vips": ["10.0.0.1"]}}) for number in range(3)]


def code(message: Msg) -> str:
    return (message.headers or {}).get("Nats-Service-Error-Code", "")


def text(message: Msg) -> str:
    return (message.headers or {}).get("Nats-Service-Error", "")


@pytest.mark.parametrize("codec", ["msgpack", "json", "raw"])
def test_every_event_on_its_subject(nats_server: NatsServer, codec: str) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            config = settings(nats_server.url, charon.address, events={"codec": codec}, log={"codec": codec})
            async with service(config) as bridge:
                await up(bridge)
                for event, message, _ in ONE_OF_EACH:
                    charon.emit(event, message)
                state = await observer.sees(".event.", len(ONE_OF_EACH) - 1)
                lines = await observer.sees(".log.")
        seen = {(s, e["event"], json.dumps(e["data"])) for s, e in state + lines}
        assert seen == {(f"vici.gw1.{s}", event, json.dumps(message)) for event, message, s in ONE_OF_EACH}
        expected = [f"vici.gw1.{subject}" for event, _, subject in ONE_OF_EACH if event != "log"]
        assert [subject for subject, _ in state] == expected
        assert {(e["v"], e["node"]) for _, e in state} == {(1, "gw1")}
        assert len({e["boot"] for _, e in state + lines}) == 1
        # status events count too, so a reader of the class sees no missing seq
        kept = [e["seq"] for m in await stored(nats_server.url) for e in envelopes(m.data, m.headers)]
        assert kept == list(range(1, len(kept) + 1))

    run(test())


def test_commands(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            charon.on("version", {"daemon": "charon", "odd": b"\xff"})
            charon.on("list-sas", {}, stream=SAS)
            charon.on("list-certs", {}, stream=[("list-cert", {"type": "X509", "data": b"0\x82"})])
            charon.on("get-pools", {"success": "no", "errmsg": "no such\npool"})
            config = settings(nats_server.url, charon.address)
            async with service(config) as bridge:
                await until(lambda: bridge.bus.connected)
                await processed(observer.client)

                [reply] = await observer.ask("vici.gw1.cmd.version", b"\x80")
                assert msgpack.unpackb(reply.data) == {"daemon": "charon", "odd": b"\xff"}
                [reply] = await observer.ask("vici.all.cmd.version")
                assert json.loads(reply.data) == {"daemon": "charon", "odd": {"$base64": "/w=="}}
                assert reply.headers == {"Vici-Node": "gw1"}
                [reply] = await observer.ask("vici.gw1.cmd.version", b"", {"Vici-Codec": "msgpack"})
                assert msgpack.unpackb(reply.data)["daemon"] == "charon"

                *parts, end = await observer.ask("vici.gw1.cmd.list-sas", b'{"noblock": true, "ike": "gw"}', parts=4)
                assert [json.loads(part.data) for part in parts] == [message for _, message in SAS]
                assert end.data == b"" and end.headers
                assert (end.headers["Status"], end.headers["Vici-Count"]) == ("200", "3")
                assert charon.requests[-1] == ("list-sas", {"noblock": "yes", "ike": "gw"})

                [whole] = await observer.ask("vici.gw1.cmd.list-sas", b"\x80", {"Vici-Collect": "true"})
                assert msgpack.unpackb(whole.data) == [message for _, message in SAS]
                part, _ = await observer.ask("vici.gw1.cmd.list-certs", b"{}", parts=2)
                assert json.loads(part.data) == {"type": "X509", "data": {"$base64": "MII="}}
                part, _ = await observer.ask("vici.gw1.cmd.list-certs", b"\x80", parts=2)
                assert msgpack.unpackb(part.data)["data"] == b"0\x82"

                asked = len(charon.requests)
                for command, payload, expected in [
                    ("terminate", b'{"ike": "gw"}', "403"),
                    ("load-conn", b"{}", "403"),
                    ("no-such", b"{}", "404"),
                    ("=41", b"{}", "404"),
                    ("version", b'{"a": 1, "a": 2}', "400"),
                    ("version", b'{"a": 1.5}', "400"),
                    ("version", b'{"a": "\xc3\xbc"}', "400"),
                    ("version", b"\x81", "400"),
                ]:
                    [reply] = await observer.ask(f"vici.gw1.cmd.{command}", payload)
                    assert (code(reply), reply.data) == (expected, b""), command
                assert len(charon.requests) == asked  # none of them reached charon
                [reply] = await observer.ask("vici.gw1.cmd.terminate", b"{}")
                assert 'add "terminate" or "@operate" to allow in [commands]' in text(reply)

                [reply] = await observer.ask("vici.gw1.cmd.get-pools")
                assert (code(reply), text(reply)) == ("409", "no such pool")
                [reply] = await observer.ask("vici.gw1.cmd.get-keys")  # this charon does not have it
                assert code(reply) == "404"
            await charon.connected(0)

    run(test())


def test_commands_with_charon_unreachable_slow_or_malformed(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            charon.on("version", {"daemon": "charon"})
            charon.on("stats", {})
            charon.mute("stats")
            charon.on("list-sas", {}, stream=SAS)
            charon.cut("list-sas", 2)
            big = {"x": {"data": "y" * 60_000}}
            charon.on("list-conns", {}, stream=[("list-conn", big)] * 30)
            commands = {"timeout": 0.5, "concurrency": 2}
            config = settings(nats_server.url, charon.address, commands=commands)
            async with service(config) as bridge:
                await until(lambda: bridge.bus.connected)
                await up(bridge)
                slow = [asyncio.create_task(observer.ask("vici.gw1.cmd.stats")) for _ in range(30)]
                replies = [code((await task)[0]) for task in slow]
                assert set(replies) == {"504", "429"}
                assert 2 <= replies.count("504") <= 18

                first, second, cut = await observer.ask("vici.gw1.cmd.list-sas", parts=3)
                assert (code(first), code(second), code(cut)) == ("", "", "503")
                assert cut.headers and cut.headers["Vici-Count"] == "2"

                *parts, end = await observer.ask("vici.gw1.cmd.list-conns", parts=31)
                assert end.headers and end.headers["Vici-Count"] == "30"
                [reply] = await observer.ask("vici.gw1.cmd.list-conns", b"", {"Vici-Collect": "true"})
                assert code(reply) == "413"

                await charon.stop()
                [reply] = await observer.ask("vici.gw1.cmd.version")
                assert (code(reply), text(reply)) == ("503", "charon is not reachable")
                await charon.start()
                [reply] = await observer.ask("vici.gw1.cmd.version")
                assert json.loads(reply.data) == {"daemon": "charon"}

    run(test())


def test_charon_that_accepts_no_connection(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon(backlog=0) as charon, observing(nats_server.url) as observer:
            async with service(settings(nats_server.url, charon.address, commands={"timeout": 0.4})) as bridge:
                await until(lambda: bridge.gateways[0].reader.up and bridge.bus.connected)
                charon.pause_accepting()
                with ExitStack() as taken:
                    for _ in range(3):
                        sock = taken.enter_context(socket.socket(socket.AF_UNIX))
                        sock.setblocking(False)
                        with suppress(BlockingIOError):
                            sock.connect(charon.address.removeprefix("unix://"))
                    [reply] = await observer.ask("vici.gw1.cmd.version")
                    assert (code(reply), text(reply)) == ("503", "charon does not accept connections at present")
                charon.resume_accepting()

    run(test())


def test_requests_run_concurrently_and_are_answered_at_a_stop(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vicibridge.service._COMMANDS_END", 0.5)

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            charon.on("version", {"daemon": "charon"})
            charon.on("stats", {})
            charon.mute("stats")
            async with service(settings(nats_server.url, charon.address)) as bridge:
                await until(lambda: bridge.bus.connected)
                await up(bridge)
                hanging = asyncio.create_task(observer.ask("vici.gw1.cmd.stats"))
                await charon.requested("stats")
                [reply] = await observer.ask("vici.gw1.cmd.version")
                assert json.loads(reply.data) == {"daemon": "charon"}
            [reply] = await hanging
            assert (code(reply), text(reply)) == ("503", "this bridge is stopping")

    run(test())


def test_charon_gone_and_back(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vicibridge.events.reader")

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            async with service(settings(nats_server.url, charon.address)) as bridge:
                await up(bridge)
                charon.emit("ike-updown", {"up": "yes", "gw": SA})
                await observer.sees(".event.", 1)
                for _ in range(2):
                    await charon.stop()
                    await asyncio.sleep(0.4)  # more than one attempt
                    await charon.start()
                    await up(bridge)
                charon.emit("ike-updown", {"gw": SA})
                await observer.sees(".event.", 2)
                assert charon.registrations("ike-updown") == 1
                gaps = [e["data"] for _, e in await observer.sees("bridge.gap", 2)]
            statuses = [e["data"] for m in await stored(nats_server.url) if "status" in m.subject
                        for e in envelopes(m.data)]  # fmt: skip
        assert [(s["bridge"], s["charon"]) for s in statuses] == [
            ("starting", "down"),
            *[("running", "up"), ("running", "down")] * 2,
            ("running", "up"),
            ("stopping", "up"),
        ]
        for gap in gaps:
            assert (gap["class"], gap["cause"], gap["count"]) == ("all", "charon was gone", None)
            assert 0 < gap["until"] - gap["since"] < 5e9
        assert charon.abrupt_closes == 0

    run(test())
    levels = [record.levelname for record in caplog.records if record.name == "vicibridge.events.reader"]
    assert levels == ["INFO", "WARNING"] * 2 + ["INFO"]


def test_bridge_starts_before_charon_and_nats(nats_server: NatsServer, tmp_path: Path) -> None:
    async def test() -> None:
        charon = FakeCharon(f"{tmp_path}/charon.vici")
        async with service(settings(nats_server.url, charon.address)) as bridge:
            await asyncio.sleep(0.3)
            await charon.start()
            await up(bridge)
            charon.emit("ike-updown", {"up": "yes", "gw": SA})
            await until(lambda: bridge.gateways[0].backlog.counts.received >= 4)
            await nats_server.up()
            await bridge.gateways[0].backlog.flush()
            subjects = [message.subject for message in await stored(nats_server.url)]
            assert subjects[-1] == "vici.gw1.event.ike-updown.gw.up"
            await charon.stop()

    run(test())


def test_charon_without_alert(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vicibridge.events.reader")

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon(events=set(EVENTS) - {"alert"}) as charon, observing(nats_server.url) as observer:
            async with service(settings(nats_server.url, charon.address)) as bridge:
                await up(bridge)
                charon.emit("ike-updown", {"gw": SA})
                await observer.sees(".event.")

    run(test())
    assert "charon does not know the event 'alert'; continuing without" in caplog.text


def test_no_state_event_is_lost_when_nats_is_killed(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon:
            async with service(settings(nats_server.url, charon.address)) as bridge:
                await up(bridge)
                sent = 0

                def emit(count: int) -> None:
                    nonlocal sent
                    for _ in range(count):
                        sent += 1
                        charon.emit("ike-updown", {"gw": {"uniqueid": str(sent)}})
                        charon.emit("log", {"group": "IKE", "level": "1", "msg": str(sent)})

                for _ in range(3):
                    emit(2000)
                    state = bridge.gateways[0].backlog
                    await until(lambda pipeline=state: pipeline.counts.published > 500)
                    nats_server.kill()
                    emit(300)
                    await charon.drain()
                    await nats_server.up()
                await charon.drain()
                await until(lambda: state.counts.received >= sent and not state.waiting)
            kept = [e for m in await stored(nats_server.url) for e in envelopes(m.data)]
            ids = [int(e["data"]["gw"]["uniqueid"]) for e in kept if e["event"] == "ike-updown"]
            assert ids == list(range(1, sent + 1))
            assert [e["seq"] for e in kept] == list(range(1, len(kept) + 1))

    run(test())


def test_hung_nats_does_not_block_reading(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            async with service(settings(nats_server.url, charon.address)) as bridge:
                await up(bridge)
                gateway = bridge.gateways[0]
                nats_server.pause()
                line = {"group": "IKE", "level": "1", "msg": "x" * 300}
                for _ in range(20):
                    for _ in range(1000):
                        charon.emit("log", line)
                    await asyncio.wait_for(charon.drain(), 5)  # charon buffers nothing
                charon.emit("ike-updown", {"gw": SA})
                await until(lambda: gateway.log.counts.received == 20_000)
                assert gateway.log.counts.published < 20_000
                nats_server.resume()
                await until(lambda: gateway.log.counts.published == 20_000 and not gateway.backlog.waiting)
                await observer.sees(".event.")

    run(test())


def test_log_overflow_is_reported_as_a_gap(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with FakeCharon() as charon:
            config = settings(nats_server.url, charon.address, log={"max_bytes": 1024 * 1024})
            async with service(config) as bridge:
                await up(bridge)
                for number in range(8000):
                    charon.emit("log", {"group": "NET", "level": "1", "msg": f"{number:0300}"})
                log = bridge.gateways[0].log
                await until(lambda: log.counts.received == 8000)
                await nats_server.up()
                await until(lambda: not log.in_flight and not log._losses.unreported)
                await bridge.gateways[0].backlog.flush()
                found = [e for message in await stored(nats_server.url) for e in envelopes(message.data)]
                [gap] = [e["data"] for e in found if e["event"] == "gap"]
                assert log.counts.dropped > 4000
                assert gap == {
                    "class": "log",
                    "cause": "the memory for log events is full",
                    "count": log.counts.dropped,
                    "first_seq": 1,
                    "last_seq": log.counts.dropped,
                    "boot": bridge.gateways[0].boot,
                }
                assert log.counts.published + log.counts.dropped == 8000

    run(test())


def test_malformed_messages_are_reported_and_harmless(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            async with service(settings(nats_server.url, charon.address)) as bridge:
                await up(bridge)
                charon.emit("ike-updown", b"\x03\x02u")
                charon.emit("log", b"\x01")
                charon.emit("ike-updown", {"gw": SA})
                await observer.sees(".event.")
                gaps = [e["data"] for _, e in await observer.sees("bridge.gap", 2)]
        assert {(g["class"], g["count"], g["cause"]) for g in gaps} == {
            ("state", 1, "malformed message from charon"),
            ("log", 1, "malformed message from charon"),
        }

    run(test())


def test_falling_behind_loses_state_events_only_and_is_reported(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "LISTENER_LIMIT", 10)

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            async with service(settings(nats_server.url, charon.address)) as bridge:
                await up(bridge)
                [gateway] = bridge.gateways
                await observer.sees("bridge.status", 2)
                before = gateway.backlog.counts.received
                for _ in range(50):
                    charon.emit("ike-updown", {"gw": SA})
                [(_, first)] = await observer.sees("bridge.gap")
                assert gateway.log.counts.received == 0
                assert (first["data"]["class"], first["data"]["cause"]) == ("state", "the bridge fell behind charon")
                for _ in range(50):
                    charon.emit("log", {"group": "IKE", "level": "1", "msg": "x"})
                await observer.sees(".log.IKE.1", 50)
                assert gateway.log.counts.dropped == 0
                gaps = 1  # are of the state class themselves
                assert gateway.backlog.counts.received - before - gaps == 50

    run(test())


def test_events_that_arrive_while_it_unregisters_are_reported_as_a_gap(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon:
            async with service(settings(nats_server.url, charon.address)) as bridge:
                [gateway] = bridge.gateways
                await up(bridge)
                charon.pause_reading()
                stopping = asyncio.create_task(gateway.reader.stop())
                await asyncio.sleep(0)  # it has sent the unregistration, and charon has not read it
                for _ in range(3):
                    charon.emit("ike-updown", {"gw": SA})
                charon.resume_reading()
                await stopping
        *_, gap, status = [e for m in await stored(nats_server.url) for e in envelopes(m.data)]
        assert gap["data"] == {
            "class": "all",
            "cause": "the bridge stopped",
            "count": 3,
            "first_seq": None,
            "last_seq": None,
        }
        assert status["data"]["bridge"] == "stopping"

    run(test())


async def start_process(tmp_path: Path, url: str, address: str) -> asyncio.subprocess.Process:
    config = tmp_path / "bridge.toml"
    config.write_text(f'[nats]\nservers = ["{url}"]\n[[gateway]]\nnode = "gw1"\nvici = "{address}"\n')
    process = await start_bridge(config)
    assert process.stderr
    while b"charon is up" not in await process.stderr.readline():
        assert not process.stderr.at_eof()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_the_process(nats_server: NatsServer, tmp_path: Path, number: signal.Signals) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            bridge = await start_process(tmp_path, nats_server.url, charon.address)
            await observer.sees("bridge.status", 2)
            for _ in range(5000):
                charon.emit("log", {"group": "IKE", "level": "1", "msg": "x"})
            for _ in range(500):
                charon.emit("ike-updown", {"gw": SA})
            await charon.drain()
            bridge.send_signal(number)
            _, stderr = await asyncio.wait_for(bridge.communicate(), 10)
            assert bridge.returncode == 0, stderr.decode()
            assert "lost" not in stderr.decode() and "Traceback" not in stderr.decode()
            await charon.connected(0)
            assert charon.abrupt_closes == 0
            # every event that was read has arrived, and the last one is the stop
            kept = [e for m in await stored(nats_server.url) for e in envelopes(m.data)]
            assert kept[-1]["event"] == "status" and kept[-1]["data"]["bridge"] == "stopping"
            assert [e["seq"] for e in kept] == list(range(1, len(kept) + 1))
            lines = [e["seq"] for _, e in observer.seen(".log.")]
            assert sorted(lines) == list(range(1, len(lines) + 1))

    run(test())


def test_lines_that_arrive_while_it_unregisters_are_published(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            async with service(settings(nats_server.url, charon.address)) as bridge:
                [gateway] = bridge.gateways
                await up(bridge)
                charon.pause_reading()
                stopping = asyncio.create_task(gateway.reader.stop())
                for number in range(30):  # turns of the loop, until all listeners have noticed
                    charon.emit("log", {"group": "IKE", "level": "1", "msg": str(number)})
                    await asyncio.sleep(0)
                charon.resume_reading()
                await stopping
            seen = await observer.sees(".log.IKE.1", 30)
        assert [e["data"]["msg"] for _, e in seen] == [str(number) for number in range(30)]

    run(test())


def test_unpublished_lines_of_one_start_are_reported_by_the_next(nats_server: NatsServer, tmp_path: Path) -> None:
    def noted() -> bool:
        log = tmp_path / "state" / "gw1.spool-wal"  # the bridge locks the database
        return log.exists() and b'"seq": 2, "clean": false' in log.read_bytes()

    def of_log(client: Observer) -> list[dict[str, Any]]:
        return [e["data"] for _, e in client.seen(".bridge.gap") if e["data"]["class"] == "log"]

    async def life(charon: FakeCharon, end: signal.Signals) -> None:
        bridge = await start_process(tmp_path, nats_server.url, charon.address)
        await charon.registered("log")
        for _ in range(5):
            charon.emit("log", {"group": "IKE", "level": "1", "msg": "x"})
        await until(noted)  # the start, and that charon is up
        bridge.send_signal(end)
        await asyncio.wait_for(bridge.communicate(), 10)

    async def test() -> None:
        async with FakeCharon() as charon:
            await life(charon, signal.SIGTERM)
            await life(charon, signal.SIGKILL)
            await nats_server.up()
            async with observing(nats_server.url) as client:
                bridge = await start_process(tmp_path, nats_server.url, charon.address)
                await client.sees("bridge.status", 7)
                await until(lambda: len(of_log(client)) == 2)
                gaps = of_log(client)
                boots = dict.fromkeys(e["boot"] for _, e in client.seen(".bridge.status"))
            bridge.send_signal(signal.SIGTERM)
            _, stderr = await asyncio.wait_for(bridge.communicate(), 10)
        assert "gw1: an unknown number of events of class state lost: the bridge was killed" in stderr.decode()
        counts = {"count": 5, "first_seq": 1, "last_seq": 5}, {"count": None, "first_seq": None, "last_seq": None}
        causes = "the bridge stopped", "the bridge was killed"
        assert gaps == [
            {"class": "log", "cause": cause, **known, "boot": boot}
            for cause, known, boot in zip(causes, counts, boots, strict=False)
        ]

    run(test())


def test_stop_without_nats_keeps_events_for_the_next_start(nats_server: NatsServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with FakeCharon() as charon:
            bridge = await start_process(tmp_path, nats_server.url, charon.address)
            bridge.send_signal(signal.SIGTERM)
            _, stderr = await asyncio.wait_for(bridge.communicate(), 10)
            assert bridge.returncode == 0
            assert "gw1: 3 events are in the spool for the next start" in stderr.decode()
            assert "lost" not in stderr.decode()
            await nats_server.up()
            async with observing(nats_server.url) as observer:
                bridge = await start_process(tmp_path, nats_server.url, charon.address)
                await observer.sees("bridge.status", 5)
            bridge.send_signal(signal.SIGTERM)
            await asyncio.wait_for(bridge.communicate(), 10)
        statuses = [e for m in await stored(nats_server.url) for e in envelopes(m.data)]
        assert [e["data"]["bridge"] for e in statuses] == ["starting", "running", "stopping"] * 2
        assert statuses[3]["data"]["previous"] == {"boot": statuses[2]["boot"], "last_seq": 3, "clean": True}

    run(test())


def test_second_signal_ends_at_once(nats_server: NatsServer, tmp_path: Path) -> None:
    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            bridge = await start_process(tmp_path, nats_server.url, charon.address)
            await observer.sees("bridge.status", 2)
            charon.pause_reading()  # so that the unregistration is never confirmed
            bridge.send_signal(signal.SIGTERM)
            assert bridge.stderr
            while b"stopping" not in await bridge.stderr.readline():
                pass
            bridge.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(bridge.wait(), 1.5) == 128 + signal.SIGTERM
            charon.resume_reading()

    run(test())


def test_log_filters_hold_and_can_be_reloaded(nats_server: NatsServer) -> None:
    def lines(charon: FakeCharon) -> None:
        for group, level, text in (
            ("IKE", 1, "peer gone"),
            ("NET", 1, "peer"),
            ("IKE", 0, "peer"),
            ("IKE", 1, "other"),
        ):
            charon.emit("log", {"group": group, "level": level, "msg": text})

    async def test() -> None:
        await nats_server.up()
        log = {"groups": ["IKE"], "levels": [1], "pattern": "peer"}
        async with FakeCharon() as charon, observing(nats_server.url) as observer:
            async with service(settings(nats_server.url, charon.address, log=log)) as bridge:
                await up(bridge)
                lines(charon)
                [(subject, envelope)] = await observer.sees(".log.")
                assert subject == "vici.gw1.log.IKE.1" and envelope["data"]["msg"] == "peer gone"
                [gateway] = bridge.gateways
                await until(lambda: gateway.reader.left_out == 3)
                bridge.reload(settings(nats_server.url, charon.address, log={"groups": ["NET"]}))
                lines(charon)
                _, (subject, envelope) = await observer.sees(".log.", 2)
                assert (subject, envelope["seq"]) == ("vici.gw1.log.NET.1", 2)

    run(test())
