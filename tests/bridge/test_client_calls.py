"""Commands over NATS from Python: the sessions' methods and errors, to one gateway and to all."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import nats
import pytest
from harness import NatsServer, run, service, settings, until, up
from nats.js.api import DiscardPolicy, StreamConfig
from vicibridge.client import BusError, Denied, Fleet, Unavailable
from vicibridge.config.model import Config, GatewayConfig
from vicibridge.contract.nats_settings import NatsSettings

from vicifast import Message
from vicifast.errors import CommandError, ConnectionClosed, EncodeError, RequestTimeout, UnknownCommand
from vicifast.testing import FakeCharon

SAS = [("list-sa", {f"gw{number}": {"uniqueid": str(number), "vips": ["10.0.0.1"]}}) for number in range(3)]
LOG = [("control-log", {"msg": f"line {number}"}) for number in range(2)]


@asynccontextmanager
async def a_fleet(
    server: NatsServer, *nodes: str, sas: list[tuple[str, Any]] = SAS, **sections: Any
) -> AsyncIterator[tuple[Fleet, list[FakeCharon]]]:
    """Bridges for `nodes`, each with its own charon that has `sas`, and a client."""
    await server.up()
    async with AsyncExitStack() as stack:
        charons = [await stack.enter_async_context(FakeCharon()) for _ in nodes]
        for node, charon in zip(nodes, charons, strict=True):
            charon.on("version", {"daemon": "charon", "on": node})
            charon.on("list-sas", {}, stream=sas)
            config = settings(server.url, charon.address, **sections)
            alone = Config(**{**dict(config), "gateway": [GatewayConfig(node=node, vici=charon.address)]})
            bridge = await stack.enter_async_context(service(alone))
            await up(bridge)
        fleet = await stack.enter_async_context(Fleet(server.url))
        for node in nodes:
            await served(fleet, node)
        yield fleet, charons


async def served(fleet: Fleet, node: str) -> None:
    while True:
        try:
            await fleet.node(node, timeout=5).version()
            return
        except Unavailable:
            await asyncio.sleep(0.01)


def test_calls_and_streams_as_with_a_session(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with a_fleet(nats_server, "gw 1", commands={"allow": ["@read", "@operate"]}) as (fleet, [charon]):
            node = fleet.node("gw 1")
            assert await node.version() == {"daemon": "charon", "on": "gw 1"}
            stream = node.list_sas(ike="gw", noblock=True)
            assert stream.response is None
            assert [sa async for sa in stream] == [message for _, message in SAS]
            assert stream.response == {}
            assert charon.requests[-1] == ("list-sas", {"ike": "gw", "noblock": "yes"})
            assert await node.call("list-sas") == {}

            charon.on("initiate", {"success": "yes"}, stream=LOG)
            stream = node.initiate(child="net")
            assert [line["msg"] async for line in stream] == ["line 0", "line 1"]
            assert stream.response == {"success": "yes"}
            name, request = charon.requests[-1]
            assert (name, request["child"]) == ("initiate", "net") and 0 < int(str(request["timeout"])) < 30_000
            charon.on("terminate", {"success": "yes", "matches": "2", "terminated": "2"}, stream=LOG)
            reply = await node.terminate(ike="gw", timeout=3).wait()
            assert reply == {"success": "yes", "matches": "2", "terminated": "2"}
            assert charon.requests[-1][1]["timeout"] == "3000"

    run(test())


def test_values(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with a_fleet(nats_server, "gw1") as (fleet, [charon]):
            charon.on("stats", {"odd": b"a\xff"})
            charon.on("list-certs", {}, stream=[("list-cert", {"type": "X509", "data": b"0\x82"})])
            assert await fleet.node("gw1").stats() == {"odd": "a\udcff"}
            assert await fleet.node("gw1", values=bytes).stats() == {"odd": b"a\xff"}
            assert (await fleet.node("gw1", values=Message).stats()).get("odd") == "a\udcff"
            assert [cert async for cert in fleet.node("gw1").list_certs()] == [{"type": "X509", "data": b"0\x82"}]

    run(test())


def test_errors(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with a_fleet(nats_server, "gw1") as (fleet, [charon]):
            node = fleet.node("gw1")
            charon.on("get-pools", {"success": "no", "errmsg": "no such pool"})
            with pytest.raises(CommandError, match="no such pool") as failed:
                await node.get_pools("x")
            assert failed.value.response == {"success": "no", "errmsg": "no such pool"}
            with pytest.raises(UnknownCommand):
                await node.call("no-such")
            with pytest.raises(UnknownCommand):
                await node.get_keys()  # this charon does not have it
            with pytest.raises(Denied, match='add "terminate" or "@operate" to allow') as denied:
                await node.terminate(ike="a").wait()
            assert (denied.value.node, denied.value.code) == ("gw1", 403)
            assert pickle.loads(pickle.dumps(denied.value)).text == denied.value.text
            with pytest.raises(EncodeError):
                await node.get_pools("\n")
            with pytest.raises(EncodeError):
                node.list_sas(ike="ü")
            with pytest.raises(EncodeError, match="longer than 524288 bytes"):
                await node.call("version", {str(n): "x" * 60_000 for n in range(20)})
            with pytest.raises(ValueError, match="does not stream"):
                node.stream("list-sas", event="list-conn")
            with pytest.raises(ValueError, match="version has no known event to stream"):
                node.stream("version")
            with pytest.raises(Unavailable, match="gw9: version: no bridge serves it"):
                await fleet.node("gw9").version()
            charon.on("stats", {})
            charon.mute("stats")
            with pytest.raises(RequestTimeout, match="gw1: stats"):
                await node.stats(timeout=0.2)
            assert await node.version()

    run(test())


CAPTURING = [
    StreamConfig(name="VICI", subjects=["vici.>"]),
    StreamConfig(name="THEIRS", subjects=["vici.*.cmd.>", "$SRV.PING.>"]),
    StreamConfig(name="FULL", subjects=["vici.*.cmd.*", "$SRV.PING.>"], max_msgs=1, discard=DiscardPolicy.NEW),
]


@pytest.mark.parametrize("stream", CAPTURING, ids=[str(stream.name) for stream in CAPTURING])
def test_answers_of_a_stream_that_captures_requests_are_ignored(nats_server: NatsServer, stream: StreamConfig) -> None:
    async def test() -> None:
        async with a_fleet(nats_server, "gw1", "gw2") as (fleet, charons):
            jetstream = fleet.client.jetstream()
            while "VICI" not in [str(info.config.name) for info in await jetstream.streams_info()]:
                await asyncio.sleep(0.01)
            await (jetstream.update_stream if stream.name == "VICI" else jetstream.add_stream)(stream)
            assert str(stream.name).encode() in (await fleet.client.request("vici.gw1.cmd.version")).data
            node = fleet.node("gw1")
            assert await node.version() == {"daemon": "charon", "on": "gw1"}
            assert [sa async for sa in node.list_sas()] == [message for _, message in SAS]
            with pytest.raises(Denied):
                await node.terminate(ike="a").wait()
            with pytest.raises(UnknownCommand):
                await node.call("no-such")
            for charon in charons:
                charon.on("get-pools", {"success": "no", "errmsg": "no such pool"})
            with pytest.raises(CommandError, match="no such pool"):
                await node.get_pools("x")
            assert [one.name for one in await fleet.nodes()] == ["gw1", "gw2"]
            answers = await fleet.everyone().list_sas().all()
            assert [(one.node, len(one.parts), one.error) for one in answers] == [("gw1", 3, None), ("gw2", 3, None)]
            failed = await fleet.everyone().get_pools("x").all()
            assert [(one.node, type(one.error)) for one in failed] == [("gw1", CommandError), ("gw2", CommandError)]
            with pytest.raises(RequestTimeout, match=f"no reply .* the stream {stream.name} captures vici.gw9"):
                await fleet.node("gw9", timeout=0.3).version()

    run(test())


def test_calls_while_charon_is_unreachable(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with service(settings(nats_server.url)), Fleet(nats_server.url) as fleet:
            text = ""
            while "charon" not in text:  # at first no bridge serves gw1
                with pytest.raises(Unavailable) as away:
                    await fleet.node("gw1").version()
                text = str(away.value)
            assert text == "gw1: version: charon is not reachable"

    run(test())


def test_request_larger_than_the_server_accepts(make_nats_server: Any) -> None:
    server = make_nats_server("max_payload: 2048")

    async def test() -> None:
        await server.up()
        async with Fleet(server.url) as fleet:
            with pytest.raises(EncodeError, match="the request has .* bytes; the server's limit is 2048"):
                await fleet.node("gw1").call("version", {"a": "x" * 2048})

    run(test())


def test_stream_can_be_abandoned_at_any_point(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with a_fleet(nats_server, "gw1") as (fleet, _):
            node = fleet.node("gw1")
            for taken in range(4):
                async with node.list_sas() as stream:
                    for _ in range(taken):
                        await anext(stream)
                assert [sa async for sa in stream] == []
            async for _ in node.list_sas():
                break
            abandoned = node.list_sas()
            del abandoned
            waiting = asyncio.create_task(node.call("version"))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert await node.version()
            assert fleet._calls is not None
            await until(lambda: fleet._calls is not None and not fleet._calls._open)

    run(test())


def test_calls_run_concurrently(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with a_fleet(nats_server, "gw1") as (fleet, _):
            node = fleet.node("gw1")
            replies = await asyncio.gather(*(node.version() for _ in range(20)), node.list_sas().wait())
            assert replies == [{"daemon": "charon", "on": "gw1"}] * 20 + [{}]

    run(test())


def test_lost_parts_are_reported(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        other = await nats.connect(nats_server.url)

        async def answer(message: Any) -> None:
            await other.publish(message.reply, b"\x80", headers={"Vici-Node": "gw1"})
            await other.publish(message.reply, b"", headers={"Vici-Node": "gw1", "Status": "200", "Vici-Count": "2"})

        await other.subscribe("vici.gw1.cmd.list-sas", cb=answer)
        await other.subscribe("vici.gw1.cmd.stats", cb=_nonsense(other))
        await other.flush()
        async with Fleet(nats_server.url) as fleet:
            with pytest.raises(BusError, match="1 of 2 parts arrived"):
                _ = [sa async for sa in fleet.node("gw1").list_sas()]
            with pytest.raises((BusError, EncodeError, ValueError)):
                await fleet.node("gw1").stats()
        await other.close()

    run(test())


def _nonsense(client: nats.NATS) -> Any:
    async def answer(message: Any) -> None:
        await client.publish(message.reply, b"\xc1\xc1", headers={"Vici-Node": "gw1"})

    return answer


async def refusal(url: str) -> str:
    """The reason NATS gives for a refusal; if it closes before the reason is read, there is none."""
    with pytest.raises(ConnectionClosed) as refused:
        await Fleet(url).connect()
    return str(refused.value).lower()


def test_connecting(nats_server: NatsServer, make_nats_server: Any) -> None:
    async def test() -> None:
        with pytest.raises(ConnectionClosed, match="not connected"):
            await Fleet(nats_server.url).node("gw1").version()
        with pytest.raises(ConnectionClosed, match=f"cannot connect to {nats_server.url}: Connection refused"):
            await Fleet(nats_server.url).connect()
        guarded = make_nats_server('authorization { user: "me", password: "secret" }')
        await guarded.up()
        while "authorization" not in await refusal(guarded.url):
            pass
        async with Fleet(
            NatsSettings(servers=[nats_server.url, guarded.url], user="me", password="secret"), user="tester"
        ) as fleet:
            assert fleet.client.is_connected
            with pytest.raises(Unavailable):
                await fleet.node("gw1").version()
            requests = await fleet.client.subscribe("vici.gw1.cmd.*")
            waiting = asyncio.create_task(fleet.node("gw1").version())
            request = await requests.next_msg()
            assert request.headers == {"Vici-User": "tester", "Vici-Timeout": "30"} and request.data == b"\x80"
        with pytest.raises(ConnectionClosed, match="the fleet was closed"):
            await waiting
        with pytest.raises(ConnectionClosed, match="not connected"):
            await fleet.node("gw1").version()

    run(test())


async def permitted(make_nats_server: Any, publish: str, subscribe: str) -> Callable[..., Fleet]:
    """Start a server with these permissions for `me`; return a function that creates a fleet of that user."""
    permissions = f"permissions: {{ publish: {publish}, subscribe: {subscribe} }}"
    server = make_nats_server(f"authorization {{ users: [ {{ user: me, password: s, {permissions} }} ] }}")
    await server.up()
    return lambda **more: Fleet(NatsSettings(servers=[server.url], user="me", password="s", **more))


def test_subjects_denied_by_nats(make_nats_server: Any) -> None:
    async def test() -> None:
        me = await permitted(make_nats_server, '["vici.gw1.cmd.version", "$SRV.>"]', '"_INBOX.>"')
        async with me() as fleet:
            with pytest.raises(Denied, match="may not publish to vici.gw1.cmd.stats"):
                await fleet.node("gw1").stats()
            with pytest.raises(Denied):
                await fleet.node("gw1").list_sas().wait()
            with pytest.raises(Denied):
                await fleet.everyone().version().all()

    run(test())


@pytest.mark.usefixtures("short_waits")
def test_reply_inbox_denied_by_nats(make_nats_server: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        me = await permitted(make_nats_server, '">"', '"_INBOX_me.>"')
        async with me() as fleet:
            for _ in range(2):
                with pytest.raises(Denied, match=r"may not subscribe to its reply inbox _INBOX\..*inbox_prefix"):
                    await fleet.node("gw1").stats()
            assert not caplog.messages
            with pytest.raises(Denied, match=r"the watch of VICI_SA: .* its reply inbox _INBOX\.>"):
                await fleet.watch_sas().start()
            with pytest.raises(Denied):
                await fleet.everyone(timeout=1).stats().all()
        async with me(inbox_prefix="_INBOX_me") as fleet:
            with pytest.raises(Unavailable):
                await fleet.node("gw1").stats()

    run(test())


async def present(fleet: Fleet) -> set[str]:
    return {"gw1", "gw2", "gw3"}


def test_everyone(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(Fleet, "present", present)
        async with a_fleet(nats_server, "gw1", "gw2") as (fleet, [first, second]):
            answers = fleet.everyone(timeout=10, stall=0.3).version()
            got = await answers.all()
            assert [(a.node, a.response and a.response["on"]) for a in got] == [("gw1", "gw1"), ("gw2", "gw2")]
            assert answers.missing == ["gw3"]

            [one, two] = await fleet.everyone(stall=0.3).list_sas().all()
            assert one.parts == two.parts == [message for _, message in SAS]
            first.on("stats", {"uptime": {"running": "1 s"}})
            got = await fleet.everyone(stall=0.3).stats().all()
            assert got[0].response == {"uptime": {"running": "1 s"}}
            assert isinstance(got[1].error, UnknownCommand)
            got = await fleet.everyone(stall=0.3).terminate(ike="a").all()
            assert [type(answer.error) for answer in got] == [Denied, Denied]

            second.on("stats", {})
            second.mute("stats")  # it sends nothing, neither within the timeout nor the stall
            answers = fleet.everyone(timeout=0.4, stall=5).stats()
            assert [answer.node async for answer in answers] == ["gw1"]
            assert answers.missing == ["gw2", "gw3"]
            async with asyncio.timeout(10):
                async for _ in fleet.everyone().version():
                    break
            with pytest.raises(EncodeError):
                fleet.everyone().get_pools("\n")

    run(test())


def test_everyone_ends_when_all_have_answered(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async def both(fleet: Fleet) -> set[str]:
            return {"gw1", "gw2"}

        monkeypatch.setattr(Fleet, "present", both)
        async with a_fleet(nats_server, "gw1", "gw2") as (fleet, _):
            async with asyncio.timeout(10):  # neither the timeout nor the stall below ends it
                answers = fleet.everyone(timeout=None, stall=1000).version()
                assert len(await answers.all()) == 2
            assert answers.missing == []

    run(test())


def test_everyone_without_a_bridge(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with Fleet(nats_server.url) as fleet:
            answers = fleet.everyone(timeout=None, stall=1000).version()
            assert await answers.all() == [] and answers.missing == []

    run(test())
