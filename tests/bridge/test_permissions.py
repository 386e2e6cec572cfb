"""The permissions in bridge/nats, on a real server with users that have exactly these."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from harness import NatsServer, processed, run, service, settings, until, up
from nats.aio.client import Client
from test_console import outcome
from test_mirror_worker import child, listed, sa, settled
from vicibridge.client import Denied, Fleet
from vicibridge.config.model import Config
from vicibridge.contract.nats_settings import NatsSettings
from vicibridge.ops.inspection import inspect
from vicibridge.service import Service

from vicifast.commands import COMMANDS, Danger
from vicifast.testing import FakeCharon

TEMPLATES = Path(__file__).parents[2] / "bridge" / "nats"
USERS = ("gw1", "reader", "operator")
NODES = [(f"gw{number}", {**sa(str(number)), "padding": "x" * 2000}) for number in range(1500)]
LINE = {"group": "IKE", "level": "1", "msg": "hello"}


@pytest.fixture
def guarded(make_nats_server: Callable[..., NatsServer], monkeypatch: pytest.MonkeyPatch) -> NatsServer:
    """A server with the users of the templates; their names are their passwords."""
    for user in ("admin", *USERS):
        monkeypatch.setenv(f"VICI_{user.upper()}", user)
    server = make_nats_server('include "accounts.conf"')
    for template in TEMPLATES.glob("*.conf"):
        shutil.copy(template, server.log.parent)
    return server


def identity(server: NatsServer, user: str) -> dict[str, Any]:
    return {"servers": [server.url], "user": user, "password": user, "inbox_prefix": f"_INBOX_{user}"}


def configured(server: NatsServer, address: str, **more: Any) -> Config:
    return settings(server.url, address, nats=identity(server, "gw1"), mirror={"heartbeat": 0.4}, **more)


def violations(server: NatsServer) -> list[str]:
    """Return the denied attempts of all users, such as `gw1 Publish vici.gw2.event.x`."""
    log = server.log.read_text()
    return [" ".join(m.groups()) for m in re.finditer(r"user:(\w+).* - (\w+) Violation - Subject \"([^\"]*)\"", log)]


@asynccontextmanager
async def a_bridge(server: NatsServer, **commands: Any) -> AsyncIterator[tuple[FakeCharon, Service]]:
    await server.up()
    async with FakeCharon() as charon:
        listed(charon, NODES)
        charon.on("terminate", {"success": "yes", "matches": "1"})
        async with service(configured(server, charon.address, commands=commands)) as bridge:
            await up(bridge)
            await settled(bridge)
            yield charon, bridge


async def all_of_it(charon: FakeCharon, bridge: Service, fleet: Fleet) -> None:
    """Events, log, mirror, commands, discovery and audit, as a reader sees them."""
    async with fleet.subscribe(log=True) as events:
        charon.emit("ike-updown", {"up": "yes", "new": sa("5000", child("1"))})
        charon.emit("log", LINE)
        assert {(await anext(events)).event, (await anext(events)).event} == {"ike-updown", "log"}
    assert len([one async for one in fleet.node("gw1").list_sas()]) == len(NODES)
    [answer] = await fleet.everyone().version().all()
    assert (answer.node, answer.error) == ("gw1", None)
    await bridge.gateways[0].backlog.flush()
    seen = set()
    async with fleet.subscribe(start="first") as kept:
        while not {"status", "audit", "resync", "ike-updown"} <= seen:
            seen.add((await anext(kept)).event)
    await bridge.mirrorings[0].buckets.settled()
    async with fleet.watch_sas() as sas, fleet.watch_conns() as conns:
        assert len(sas.current) == len(NODES) + 1 and "gw1.gw" in conns.current
    [node] = await fleet.nodes()
    assert node.answers and node.present and node.present["charon"] == "up"


def test_templates_grant_enough(guarded: NatsServer) -> None:
    async def test() -> None:
        async with a_bridge(guarded, allow=["@read", "@operate"]) as (charon, bridge):
            for user in ("reader", "operator"):
                async with Fleet(NatsSettings(**identity(guarded, user))) as fleet:
                    await all_of_it(charon, bridge, fleet)
            us = ("--user", "reader", "--password", "reader", "--inbox-prefix", "_INBOX_reader")
            code, out, err = await outcome(guarded, "nodes", *us)
            assert code == 0 and "gw1" in out, err
            async with Fleet(NatsSettings(**identity(guarded, "operator"))) as fleet:
                assert (await fleet.node("gw1").terminate(ike="new").wait())["success"] == "yes"
                async with fleet.subscribe(events=["ike-updown"], durable="worker") as events:
                    assert (await anext(events)).event == "ike-updown"
                    await events.ack()
            async with service(configured(guarded, charon.address)) as again:  # reads what the other has left
                await settled(again)
                assert again.bus.errors == 0
            assert await inspect(configured(guarded, charon.address)) == []
            assert bridge.bus.errors == 0
        assert violations(guarded) == []

    run(test())


def test_reader_cannot_change_anything(guarded: NatsServer) -> None:
    async def test() -> None:
        async with a_bridge(guarded, allow=["@read", "@operate"]) as (charon, _):
            async with Fleet(NatsSettings(**identity(guarded, "reader"))) as fleet:
                with pytest.raises(Denied, match="this user may not publish to vici.gw1.cmd.terminate"):
                    await fleet.node("gw1").terminate(ike="a").wait()
            assert "terminate" not in dict(charon.requests)

    run(test())


KEYS = "$KV.VICI_SA.gw2.a.1"
ELSEWHERE = ["$JS.API.STREAM.DELETE.VICI", "$JS.API.STREAM.PURGE.KV_VICI_SA", "$JS.API.STREAM.UPDATE.VICI"]
NOBODYS = [*ELSEWHERE, "$JS.API.STREAM.MSG.DELETE.VICI", "$JS.API.CONSUMER.DELETE.VICI.x", "$SYS.REQ.SERVER.PING", KEYS]
FORBIDDEN = {
    "gw1": [
        *[
            "vici.gw2.event.x",
            "vici.gw2.log.IKE.1",
            "vici.gw2.bridge.status",
            "vici.gw1.cmd.stats",
            "vici.all.cmd.stats",
        ],
        *["$KV.VICI_CONN.gw2.a", "$KV.VICI_NODE.gw2", "$KV.OTHER.gw1", "$JS.API.STREAM.CREATE.OTHER", "$SRV.PING"],
        *["$JS.API.CONSUMER.CREATE.VICI", "_INBOX.x.y", "_INBOX_operator.x"],
    ],
    "reader": ["vici.gw1.event.x", "vici.gw1.cmd.load-conn", "$KV.VICI_NODE.gw1", "$JS.API.STREAM.CREATE.VICI"],
    "operator": ["vici.gw1.bridge.audit", "vici.gw1.cmd.load-conn", "vici.gw1.cmd.load-shared", "$KV.VICI_NODE.gw1"],
}
FOREIGN = {
    "gw1": ["vici.gw2.cmd.*", "vici.>", "vici.gw2.event.>", "_INBOX.>", "_INBOX_operator.>", "$KV.>", ">"],
    "reader": ["vici.*.cmd.*", "_INBOX_gw1.>", "$SRV.PING", ">"],
    "operator": ["vici.*.cmd.*", "_INBOX_gw1.>", "$SRV.PING", ">"],
}


@pytest.mark.parametrize("user", USERS)
def test_other_subjects_are_denied(guarded: NatsServer, user: str) -> None:
    async def ignore(error: Exception) -> None:
        """The server's log is checked instead."""

    async def test() -> None:
        await guarded.up()
        client: Client = await nats.connect(guarded.url, user=user, password=user, error_cb=ignore)
        for subject in NOBODYS + FORBIDDEN[user]:
            await client.publish(subject, b"")
        for subject in FOREIGN[user]:
            await client.subscribe(subject)
        await processed(client)
        expected = [f"{user} Publish {subject}" for subject in NOBODYS + FORBIDDEN[user]]
        expected += [f"{user} Subscription {subject}" for subject in FOREIGN[user]]
        await until(lambda: len(violations(guarded)) >= len(expected))
        assert sorted(violations(guarded)) == sorted(expected)
        await client.close()

    run(test())


def test_server_requires_passwords(guarded: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VICI_READER")
    with pytest.raises(RuntimeError, match="VICI_READER"):
        guarded.start()


@pytest.mark.parametrize(
    ("template", "dangers"), [("reader", {Danger.READ}), ("operator", {Danger.READ, Danger.OPERATE})]
)
def test_commands_of_the_templates(template: str, dangers: set[Danger]) -> None:
    named = re.findall(r'"vici\.\*\.cmd\.([^"]*)"', (TEMPLATES / f"{template}.conf").read_text())
    assert named == [command.name for danger in Danger if danger in dangers for command in COMMANDS.values()
                     if command.danger is danger]  # fmt: skip
