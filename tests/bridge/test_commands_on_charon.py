"""Commands over the bus to real charons: only allowed commands run, and charon is never frozen."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from harness import Observer, observing, run, service, settings
from lab import Lab, sas
from test_service_commands import EVERYTHING, audits, code, discover, text
from vicibridge.service import Service

from vicifast.aio import AsyncSession

pytestmark = pytest.mark.lab(nats=True)


@asynccontextmanager
async def beside_left(lab: Lab, **commands: Any) -> AsyncIterator[tuple[Observer, Service]]:
    config = settings(lab.nats.url, lab.left.address, mirror={"enabled": False}, commands=commands)
    async with observing(lab.nats.url) as observer, service(config) as bridge:
        await observer.ask("vici.gw1.cmd.no-such-command")
        yield observer, bridge


def conn(**child: str) -> dict[str, Any]:
    ends = {"local": {"auth": "psk", "id": "a"}, "remote": {"auth": "psk", "id": "b"}}
    return {"version": 2, "remote_addrs": ["10.99.0.77"], **ends, "children": {"net": {"mode": "tunnel", **child}}}


async def ask(observer: Observer, command: str, request: dict[str, Any]) -> tuple[str, str]:
    """Return code and text of the reply; streams are collected."""
    [reply] = await observer.ask(f"vici.gw1.cmd.{command}", json.dumps(request).encode(), {"Vici-Collect": "true"})
    return code(reply), text(reply)


def test_load_conn_with_and_without_scripts_and_files(lab: Lab) -> None:
    async def test() -> None:
        async with beside_left(lab, allow=["@read", "load-conn", "unload-conn", "load-shared"]) as (observer, _):
            assert await ask(observer, "load-conn", {"fine": conn()}) == ("200", "")
            for odd in (conn(updown="/bin/true"), conn(UpDown="/bin/true")):
                refused, why = await ask(observer, "load-conn", {"bad": odd})
                assert refused == "403" and "set allow_updown = true" in why
            with_file = {**conn(), "LOCAL-2": {"Cert9": {"File": "/etc/hostname"}}}
            refused, why = await ask(observer, "load-conn", {"bad": with_file})
            assert refused == "403" and "set allow_files = true" in why
            [reply] = await observer.ask("vici.gw1.cmd.get-conns")
            assert json.loads(reply.data) == {"conns": ["fine"]}
            assert await ask(observer, "load-shared", {"type": "IKE", "data": "s3cret-of-the-lab"}) == ("200", "")
            assert await ask(observer, "unload-conn", {"name": "fine"}) == ("200", "")
            refused, why = await ask(observer, "load-conn", {"gw": {"nonsense": "x"}})
            assert refused == "409" and "unknown option: nonsense" in why
            assert "s3cret" not in str(await audits(observer, 8))
            [ping] = await discover(observer, "PING")
            assert ping["metadata"]["charon"][0].isdecimal()

    run(test())


def test_initiate_and_terminate(lab: Lab) -> None:
    async def test() -> None:
        [name] = await sas.load(lab, 1)
        async with beside_left(lab, allow=["@read", "@operate"]) as (observer, _):
            request = {"ike": name, "child": f"{name}-lan"}
            assert await ask(observer, "initiate", request) == ("200", "")
            [reply] = await observer.ask("vici.gw1.cmd.list-sas", b"{}", {"Vici-Collect": "true"})
            [sa] = json.loads(reply.data)
            assert sa[name]["state"] == "ESTABLISHED"
            assert await ask(observer, "terminate", {"ike": name}) == ("200", "")
            assert (await ask(observer, "terminate", {"ike": name}))[0] == "409"
            seen = [entry for entry in await audits(observer, 4) if entry["command"] != "list-sas"]
            assert [(entry["command"], entry["code"]) for entry in seen] == [
                ("initiate", 200),
                ("terminate", 200),
                ("terminate", 409),
            ]
            assert seen[0]["parts"] > 0 and seen[0]["arguments"]["ike"] == name

    run(test())


def test_fifty_initiates_to_an_absent_peer_never_freeze_charon(lab: Lab) -> None:
    async def test() -> None:
        async with AsyncSession(lab.left.address) as session:
            await session.call("load-conn", {"absent": conn()})
        async with (
            beside_left(lab, allow=EVERYTHING, timeout=2) as (observer, bridge),
            AsyncSession(lab.left.address, timeout=1) as own,
        ):
            request = {"ike": "absent", "child": "net", "timeout": 0}
            asked = [asyncio.create_task(ask(observer, "initiate", request)) for _ in range(50)]
            most = 0
            while not all(task.done() for task in asked):
                workers = (await own.call("stats"))["workers"]  # within a second, regardless of the load
                assert isinstance(workers, dict)
                most = max(most, bridge.gateways[0].commands.blocking.running)
                assert int(str(workers["idle"])) >= 8
                assert (await ask(observer, "version", {}))[0] == "200"
                await asyncio.sleep(0.05)
            codes = Counter([(await task)[0] for task in asked])
            assert most == 8 and set(codes) <= {"409", "429", "504"}  # of the lab's 32 threads
            assert codes["409"] + codes["504"] >= 8  # charon gave up, perhaps too late for queued requests

    run(test(), 60)
