"""Connections that share an IKE_SA, which is charon's default: each counts the children that it configures."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from harness import bridge_process, bucket, observing, run
from lab import Lab, sas
from nats.aio.client import Client
from prometheus_client.parser import text_string_to_metric_families
from vicibridge.bus.nats_server import free_port

from vicifast.aio import AsyncSession

pytestmark = pytest.mark.lab(nats=True)

Section = dict[str, Any]

CONNS = {"a": ["one", "both"], "b": ["two", "both"], "c": ["three", "same"], "d": ["four", "same"]}


@asynccontextmanager
async def bridge(lab: Lab) -> AsyncIterator[None]:
    config = lab.directory / "bridge.toml"
    text = f'[nats]\nservers = ["{lab.nats.url}"]\n[mirror]\ninterval = 0.5\n'
    gateway = f'[[gateway]]\nnode = "left"\nvici = "{lab.left.address}"\n'
    config.write_text(f'{text}{gateway}[spool]\npath = "{lab.directory / "spool"}"\n')
    async with bridge_process(config):
        yield


class Left:
    """The connections of `left` in charon and in the mirror."""

    def __init__(self, session: AsyncSession, client: Client, port: int) -> None:
        self.session = session
        self.client = client
        self.port = port

    async def initiate(self, conn: str, child: str) -> None:
        await self.session.call("initiate", {"ike": conn, "child": child, "timeout": 10_000})

    async def conns(self, right: Callable[[Section], bool]) -> dict[str, Section]:
        """Wait until the values of the connections are correct, and return them."""
        values: dict[str, Section] = {}
        try:
            async with asyncio.timeout(15):
                while not values or not right(values):
                    await asyncio.sleep(0.05)
                    found = await bucket(self.client, "VICI_CONN", "left.>")
                    values = {value["conn"]: value for value in found.values()}
        except TimeoutError:
            raise AssertionError(json.dumps(values, indent=1)) from None
        return values

    async def metrics(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the values of a metric by its labels other than the node."""

        def fetch() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                return str(answer.read().decode())

        families = text_string_to_metric_families(await asyncio.to_thread(fetch))
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return {
            tuple(sample.labels[key] for key in ("connection", "child") if key in sample.labels): sample.value
            for sample in samples
        }


def up(values: dict[str, Section]) -> set[str]:
    return {name for name, value in values.items() if value["up"]}


def bytes_out(value: Section) -> dict[str, int]:
    return {child: traffic["bytes_out"] for child, traffic in value["totals"].items() if traffic["bytes_out"]}


async def children_are_counted_where_they_are_configured(
    lab: Lab, left: Left, ports: dict[tuple[str, str], int]
) -> None:
    values = await left.conns(lambda values: values.keys() == CONNS.keys())
    assert not up(values)
    await left.initiate("a", "one")
    await left.initiate("b", "two")
    async with asyncio.timeout(10):
        assert [
            len(section["child-sas"]) async for row in left.session.stream("list-sas") for section in row.values()
        ] == [2]
    values = await left.conns(lambda values: up(values) == {"a", "b"})
    assert (values["a"]["ike_sas"], values["a"]["child_sas"]) == (1, {"one": 1, "both": 0})
    assert (values["b"]["ike_sas"], values["b"]["child_sas"]) == (0, {"two": 1, "both": 0})
    assert values["b"]["changed"] > values["c"]["changed"]
    await sas.knock(lab, [ports["b", "two"]])
    values = await left.conns(lambda values: bool(bytes_out(values["b"])))
    assert bytes_out(values["b"]) == {"two": 60} and not bytes_out(values["a"])
    assert await left.metrics("vicibridge_connection_up") == {("a",): 1, ("b",): 1, ("c",): 0, ("d",): 0}
    children = await left.metrics("vicibridge_child_up")
    assert {labels for labels, value in children.items() if value} == {("a", "one"), ("b", "two")}
    changed = await left.metrics("vicibridge_connection_changed_timestamp_seconds")
    assert changed["b",] == pytest.approx(values["b"]["changed"] / 1e9)


async def rekeying_changes_nothing(lab: Lab, left: Left, ports: dict[tuple[str, str], int]) -> None:
    before = await left.conns(lambda values: bool(values))
    for request in ({"child": "two"}, {"ike": "a"}):
        await left.session.call("rekey", request)
    await sas.knock(lab, [ports["b", "two"]])
    values = await left.conns(lambda values: bytes_out(values["b"]) == {"two": 120})
    assert {name: value["changed"] for name, value in values.items()} == {n: v["changed"] for n, v in before.items()}
    assert up(values) == {"a", "b"} and not bytes_out(values["a"])


async def what_charon_does_not_report(left: Left) -> None:
    """Initiate children whose names several connections configure."""
    await left.initiate("b", "both")
    await left.initiate("c", "same")
    values = await left.conns(lambda values: values["a"]["child_sas"] == {"one": 1, "both": 1, "same": 1})
    assert up(values) == {"a", "b"} and not values["a"]["ambiguous"] and not values["b"]["ambiguous"]
    assert values["c"]["ambiguous"] == values["d"]["ambiguous"] == ["same"]
    assert await left.metrics("vicibridge_child_sas_ambiguous") == {(): 1}
    await left.session.call("unload-conn", {"name": "d"})
    values = await left.conns(lambda values: values.keys() == {"a", "b", "c"})
    assert values["c"]["child_sas"] == {"three": 0, "same": 1} and not values["c"]["ambiguous"]
    assert values["a"]["child_sas"] == {"one": 1, "both": 1} and up(values) == {"a", "b", "c"}
    assert await left.metrics("vicibridge_child_sas_ambiguous") == {(): 0}


def test_each_connection_has_its_children(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("VICIBRIDGE_HTTP__LISTEN", f"127.0.0.1:{port}")

    async def test() -> None:
        ports = await sas.load_sharing(lab, CONNS)
        async with AsyncSession(lab.left.address) as session, observing(lab.nats.url, "vici.*.bridge.>") as observer:
            left = Left(session, observer.client, port)
            async with bridge(lab):
                await children_are_counted_where_they_are_configured(lab, left, ports)
                await rekeying_changes_nothing(lab, left, ports)
                await what_charon_does_not_report(left)
                before = await left.conns(lambda values: bool(values))
            started = len(observer.seen(".bridge.status"))
            async with bridge(lab):
                await observer.sees(".bridge.status", started + 2)  # starting, running
                values = await left.conns(lambda values: values == before)
                assert up(values) == {"a", "b", "c"} and bytes_out(values["b"]) == {"two": 120}
                await session.call("terminate", {"ike": "a", "timeout": 10_000})
                values = await left.conns(lambda values: not up(values))
                assert all(values[name]["changed"] > before[name]["changed"] for name in values)
                assert bytes_out(values["b"]) == {"two": 120} and not bytes_out(values["a"])
            repaired = [e["data"] for _, e in observer.seen(".bridge.resync")]
            reported = {(data["kind"], data["key"]) for data in repaired}
            assert reported == {("appeared", f"left.{conn}") for conn in CONNS} | {("vanished", "left.d")}

    run(test(), 90)
