"""The mirror of real charons: whenever there is no traffic, the buckets equal their lists."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import Observer, bridge_process, bucket, observing, run
from lab import Lab, sas
from lab.daemons import Charon
from nats.aio.client import Client

from vicifast import Message
from vicifast.aio import AsyncSession

pytestmark = pytest.mark.lab(nats=True)

Section = dict[str, Any]

NODES = ("left", "right")
COUNT = 200
REAUTHENTICATED = 20
TASKS = {"tasks-queued", "tasks-active", "tasks-passive"}
RUNNING = {"established", "rekey-time", "reauth-time", "life-time", "install-time", "use-in", "use-out"}
COUNTERS = {"bytes-in", "packets-in", "bytes-out", "packets-out"}


@asynccontextmanager
async def bridges(lab: Lab, nodes: Iterable[str] = NODES) -> AsyncIterator[dict[str, Path]]:
    """Run one bridge process for each node; they compare often, so that false differences would show."""
    async with AsyncExitStack() as stack:
        logs = {}
        for node in nodes:
            config = lab.directory / f"bridge-{node}.toml"
            gateway = f'[[gateway]]\nnode = "{node}"\nvici = "{getattr(lab, node).address}"'
            bus = f'[nats]\nservers = ["{lab.nats.url}"]\nprobe_interval = 0.3'
            spool = f'[spool]\npath = "{lab.directory / f"spool-{node}"}"'
            config.write_text("\n".join([bus, spool, gateway, "[mirror]\ninterval = 0.5", '[http]\nlisten = ""']))
            logs[node] = await stack.enter_async_context(bridge_process(config))
        yield logs


async def listed(charon: Charon) -> tuple[dict[str, Section], dict[str, Section]]:
    """Return the lists of charon: IKE_SAs with their installed CHILD_SAs, and connections."""
    async with AsyncSession(charon.address, values=Message) as session:
        ikes = {}
        async for message in session.stream("list-sas"):
            [(name, section)] = message.to_dict().items()
            assert isinstance(section, dict)
            if section["state"] == "ESTABLISHED":
                ikes[f"{charon.name}.{name}.{section['uniqueid']}"] = section
        conns = {}
        async for message in session.stream("list-conns"):
            [(name, section)] = message.to_dict().items()
            conns[f"{charon.name}.{name}"] = section
    return ikes, conns


def steady(section: Section, *without: set[str]) -> Section:
    return {key: value for key, value in section.items() if key not in set().union(TASKS, RUNNING, *without)}


async def mirrored(client: Client, node: str) -> tuple[dict[str, Section], dict[str, Section]]:
    return await bucket(client, "VICI_SA", f"{node}.>"), await bucket(client, "VICI_CONN", f"{node}.>")


async def difference(client: Client, charon: Charon, *, counters: bool = False) -> object:
    """Return the differences between the buckets and charon."""
    without = set() if counters else COUNTERS
    ikes, conns = await listed(charon)
    sa_values, conn_values = await mirrored(client, charon.name)
    up: Counter[str] = Counter()
    children_up: Counter[str] = Counter()
    wrong: list[object] = [("keys", sa_values.keys() ^ ikes.keys(), conn_values.keys() ^ conns.keys())]
    for key, section in ikes.items():
        installed = [child for child in section.pop("child-sas").values() if child["state"] == "INSTALLED"]
        children = {child["uniqueid"]: steady(child, without) for child in installed}
        up[section_name := key.split(".")[1]] += 1
        children_up[section_name] += len(children)
        value = sa_values.get(key, {"sa": {}, "children": {}})
        shown = {uniqueid: steady(child, without) for uniqueid, child in value["children"].items()}
        if (steady(value["sa"]), shown) != (steady(section), children):
            wrong.append((key, steady(value["sa"]), shown, steady(section), children))
    for key, config in conns.items():
        value, name = conn_values.get(key, {}), key.split(".")[1]
        shown = (value.get("configured"), value.get("config"), value.get("ike_sas"), value.get("child_sas"))
        if shown != (True, config, up[name], {f"{name}-lan": children_up[name]}):
            wrong.append((key, shown, up[name], children_up[name]))
    return wrong if len(wrong) > 1 or any(wrong[0][1:]) else None  # type: ignore[index]


async def equal(lab: Lab, client: Client, *, counters: bool = False) -> None:
    """Wait until the buckets equal both charons."""
    for node in NODES:
        try:
            async with asyncio.timeout(15):
                while await difference(client, getattr(lab, node), counters=counters):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(await difference(client, getattr(lab, node), counters=counters)) from None


def resyncs(observer: Observer, since: int) -> Counter[tuple[str, str, str]]:
    """The number of reported differences by kind and bucket, with the changed part of a changed value."""
    reported: Counter[tuple[str, str, str]] = Counter()
    for _, envelope in observer.seen(".bridge.resync")[since:]:
        data = envelope["data"]
        where = "" if data["kind"] != "changed" else " ".join(sorted(_changed(data["before"], data["after"])))
        reported[data["kind"], data["bucket"], where] += 1
    return reported


def only_closed(observer: Observer, since: int) -> bool:
    """Whether all corrections were for SAs that charon closed without an event, as when both sides rekey."""
    repaired = resyncs(observer, since)
    return all(kind == "vanished" or ("children." in where or "_sas" in where) for kind, _, where in repaired)


def _changed(before: Section, after: Section, path: str = "") -> list[str]:
    paths = []
    for key in before.keys() | after.keys():
        one, other = before.get(key), after.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            paths += _changed(one, other, f"{path}{key}.")
        elif one != other and key not in RUNNING:
            paths.append(f"{path}{key}={one}>{other}")
    return paths


async def live(lab: Lab, observer: Observer) -> None:
    """SAs come up, carry traffic, are rekeyed, move, and go down, without a difference."""
    client = observer.client
    names = await sas.load(lab, COUNT)
    await equal(lab, client)
    before = len(observer.seen(".bridge.resync"))
    assert resyncs(observer, 0) == {("appeared", "VICI_CONN", ""): 2 * COUNT}
    await sas.initiate(lab, names)
    await equal(lab, client)
    await sas.send(lab, names)
    await equal(lab, client, counters=True)
    await sas.reauthenticate(lab, names[:REAUTHENTICATED])
    await equal(lab, client)
    assert only_closed(observer, before), resyncs(observer, before)
    await sas.rekey_child(lab, names)
    await equal(lab, client)
    await sas.rekey_ike(lab, names)
    await equal(lab, client)
    sa_values, _ = await mirrored(client, "right")
    kept = [value for value in sa_values.values() if value["ike"] not in names[:REAUTHENTICATED]]
    totals = [value["totals"][f"{value['ike']}-lan"] for value in kept]
    sent = {"bytes_in": 60, "packets_in": 1, "bytes_out": 40, "packets_out": 1}
    assert totals == [sent] * (COUNT - REAUTHENTICATED)
    assert only_closed(observer, before)
    await sas.update(lab, names)
    await equal(lab, client)
    await sas.terminate(lab, names[: COUNT // 2])
    await equal(lab, client)
    _, conn_values = await mirrored(client, "right")
    assert {value["totals"][f"{value['conn']}-lan"]["bytes_in"] for value in conn_values.values()} == {60}
    # Moving makes both sides rekey at once: one of the two new CHILD_SAs is closed without an event.
    assert only_closed(observer, before), resyncs(observer, before)


async def lose_charon(lab: Lab, observer: Observer) -> None:
    before = len(observer.seen(".bridge.resync"))
    lab.right.kill()
    lab.right.start()
    await equal(lab, observer.client)
    names = await sas.load(lab, COUNT)
    await sas.initiate(lab, names[:5])
    await equal(lab, observer.client)
    assert resyncs(observer, before)["vanished", "VICI_SA", ""] == COUNT // 2


async def lose_nats(lab: Lab, observer: Observer, names: list[str]) -> None:
    lab.nats.kill()
    await sas.rekey_child(lab, names)
    await sas.rekey_ike(lab, names)
    await sas.terminate(lab, names[:2])
    lab.nats.start()
    await equal(lab, observer.client)


def test_buckets_equal_both_charons(lab: Lab) -> None:
    async def test() -> None:
        async with observing(lab.nats.url, "vici.*.bridge.>") as observer, bridges(lab):
            await live(lab, observer)
            await lose_charon(lab, observer)
            await lose_nats(lab, observer, [f"site-{number:03}" for number in range(1, 6)])
            assert (await bucket(observer.client, "VICI_NODE")).keys() == set(NODES)

    run(test(), 120)
