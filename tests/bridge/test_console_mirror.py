"""What `vicibridge nodes` and `sas` say about a mirror that is outdated, incomplete, invalid or unreadable."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest
from harness import NatsServer, run, service, settings, until
from mirror_values import conn_value, node_value, sa_value
from nats.aio.client import Client
from nats.js.api import KeyValueConfig, StreamConfig
from nats.js.client import JetStreamContext
from test_console import SITE, mirrored, outcome, program
from vicibridge.client import Fleet
from vicibridge.config.model import Config
from vicibridge.contract import bucket_values
from vicibridge.service import Service

from vicifast.testing import FakeCharon

BUCKETS = ("VICI_NODE", "VICI_CONN", "VICI_SA")


@asynccontextmanager
async def a_charon() -> AsyncIterator[FakeCharon]:
    async with FakeCharon() as charon:
        charon.on("version", {"daemon": "charon", "version": "6.0.6"})
        charon.on("list-sas", {}, stream=[("list-sa", {"site": SITE})])
        charon.on("list-conns", {})
        yield charon


def config(server: NatsServer, charon: FakeCharon, **mirror: Any) -> Config:
    return settings(server.url, charon.address, mirror={"heartbeat": 0.4, "interval": 0.5, **mirror})


@asynccontextmanager
async def administrator(server: NatsServer) -> AsyncIterator[tuple[Client, JetStreamContext]]:
    await server.up()
    client = await nats.connect(server.url)
    try:
        yield client, client.jetstream()
    finally:
        await client.close()


async def seal(jetstream: JetStreamContext, stream: str) -> None:
    present = (await jetstream.stream_info(stream)).config
    await jetstream.update_stream(present.evolve(sealed=True))


async def says(server: NatsServer, args: tuple[str, ...], wanted: str) -> tuple[int | None, str, str]:
    """Repeat a command until its standard error contains a text."""
    async with asyncio.timeout(20):
        while wanted not in (result := await outcome(server, *args))[2]:
            await asyncio.sleep(0.1)
    return result


async def has_sa(server: NatsServer) -> None:
    async with Fleet(server.url) as fleet:
        await mirrored(fleet)


def test_a_stopped_bridge(nats_server: NatsServer) -> None:
    """Its SAs stay, marked as outdated; its gateway is listed as gone."""

    async def test() -> None:
        await nats_server.up()
        async with a_charon() as charon:
            async with service(config(nats_server, charon)):
                await has_sa(nats_server)
                code, out, err = await outcome(nats_server, "sas")
                assert (code, err) == (0, "") and "gw1/site #7" in out
            code, out, err = await outcome(nats_server, "sas")
            assert code == 0 and "gw1/site #7" in out and "1 IKE_SAs" in out
            assert err.startswith("gw1: SAs may be outdated: no bridge is running since 20")
            code, out, err = await outcome(nats_server, "sas", "--json")
            assert code == 0 and err.startswith("gw1: SAs may be outdated: ")
            assert json.loads(out)["outdated"].startswith("no bridge is running since ")
            code, out, _ = await outcome(nats_server, "nodes")
            assert code == 0 and "0 of 1 gateways have a running bridge" in out
            assert out.splitlines()[1].split()[:2] == ["gw1", "gone"] and " ago" in out
            code, out, _ = await outcome(nats_server, "nodes", "--json")
            node = json.loads(out)
            assert (node["state"], node["alive"], node["gone_since"][:2]) == ("gone", False, "20")

    run(test(), 60)


def test_a_killed_bridge_while_its_sas_are_watched(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with a_charon() as charon:
            killed = asyncio.create_task(Service(config(nats_server, charon)).run(asyncio.Event()))
            await has_sa(nats_server)
            async with (
                program(nats_server, "sas", "--watch") as tables,
                program(nats_server, "sas", "--watch", "--json") as lines,
            ):
                assert tables.stdout and lines.stdout and lines.stderr
                assert b'"gw1.site.7"' in await lines.stdout.readline()
                assert (await tables.stdout.readline()).startswith(b"SA")  # nothing above the table yet
                killed.cancel()
                await asyncio.gather(killed, return_exceptions=True)
                found = b"gw1: SAs may be outdated: no bridge is running since "
                await tables.stdout.readuntil(found)
                await tables.stdout.readuntil(b"gw1/site #7")
                await lines.stderr.readuntil(found)
                async with service(config(nats_server, charon)):
                    await lines.stderr.readuntil(b"all SAs are current")
                for process in (tables, lines):
                    process.send_signal(signal.SIGINT)
                    await process.communicate()
                    assert process.returncode == 0

    run(test(), 60)


def test_a_gateway_that_nothing_but_its_sas_names(nats_server: NatsServer) -> None:
    """After an hour JetStream has forgotten that the gateway had a key; a key that was deleted names no gateway."""

    async def test() -> None:
        async with administrator(nats_server) as (_, jetstream):
            kept = {name: await jetstream.create_key_value(KeyValueConfig(bucket=name)) for name in BUCKETS}
            await kept["VICI_SA"].put("gw=201.a.1", sa_value("gw 1", "a", "1"))
            await kept["VICI_CONN"].put("of-another.program", b"7")
            await kept["VICI_CONN"].put("gw2.a", conn_value("gw2", "a"))
            await kept["VICI_CONN"].put("gw3.a", conn_value("gw3", "a"))
            await kept["VICI_CONN"].purge("gw3.a")
            await kept["VICI_NODE"].put("gw4", node_value("gw4"))
            await kept["VICI_NODE"].purge("gw4")
            code, out, err = await outcome(nats_server, "nodes")
            assert (code, err) == (0, "gone: gw 1, gw2: no bridge is running; the mirror has their last known state\n")
            assert "0 of 2 gateways" in out and out.count(" gone ") == 2 and "gw3" not in out and "gw4" not in out
            code, out, err = await outcome(nats_server, "sas")
            assert (code, err) == (0, "gw 1: SAs may be outdated: no bridge is running\n") and "gw 1/a #1" in out

    run(test(), 60)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"charon": "down"}, "its bridge has no connection to charon"),
        ({"mirror": "incomplete", "reasons": ["VICI_SA: full"]}, "the mirror is incomplete: VICI_SA: full"),
        ({"updated": 10**18, "expires": False}, "no bridge is running since 2001-09-09"),
        ({"updated": 10**18}, "no heartbeat of its bridge since 2001-09-09"),
    ],
)
def test_a_mirror_that_is_not_current(nats_server: NatsServer, value: dict[str, Any], reason: str) -> None:
    async def test() -> None:
        async with administrator(nats_server) as (_, jetstream):
            kept = {name: await jetstream.create_key_value(KeyValueConfig(bucket=name)) for name in BUCKETS}
            await kept["VICI_SA"].put("gw1.a.1", sa_value("gw1", "a", "1"))
            await kept["VICI_SA"].put("gw2.a.1", sa_value("gw2", "a", "1"))
            await kept["VICI_NODE"].put("gw1", node_value("gw1", **value))
            await kept["VICI_NODE"].put("gw2", node_value("gw2"))
            code, out, err = await outcome(nats_server, "sas")
            assert code == 0 and "2 IKE_SAs" in out
            assert err.startswith(f"gw1: SAs may be outdated: {reason}") and len(err.splitlines()) == 1
            code, out, err = await outcome(nats_server, "sas", "--json", "--node", "gw2")
            assert (code, err) == (0, "") and json.loads(out)["outdated"] is None

    run(test(), 60)


def test_no_bucket_of_gateways(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with administrator(nats_server) as (_, jetstream):
            bucket = await jetstream.create_key_value(KeyValueConfig(bucket="VICI_SA"))
            await bucket.put("gw1.a.1", sa_value("gw1", "a", "1"))
            code, out, err = await outcome(nats_server, "sas")
            assert code == 0 and "gw1/a #1" in out
            assert err.startswith("it is unknown which SAs are current: JetStream: the bucket VICI_NODE does not exist")

    run(test(), 60)


WRONG: dict[str, tuple[str, str, bytes, str]] = {
    "another shape": ("VICI_SA", "gw9.a.1", b'{"v":1}', "node is missing"),
    "a list": ("VICI_SA", "gw9.a.1", b"[]", "the value is not an object"),
    "msgpack": ("VICI_SA", "gw9.a.1", b"\x81\xa1v\x01", "not JSON: 'utf-8' codec can't decode byte"),
    "nested": ("VICI_SA", "gw9.a.1", b"[" * 100_000, "the JSON is nested too deeply"),
    "uniqueid": ("VICI_SA", "gw9.a.x", sa_value("gw9", "a", "x"), "uniqueid is not a number"),
    "another key": ("VICI_SA", "gw9.b.1", sa_value("gw9", "a", "1"), "it belongs to another key: gw9.a.1"),
    "updated": ("VICI_SA", "gw9.a.1", sa_value("gw9", "a", "1", updated="now"), "updated is not an integer"),
    "sa": ("VICI_SA", "gw9.a.1", sa_value("gw9", "a", "1", sa={"x": None}), "sa.x is not a string, a list of"),
    "surrogate": ("VICI_SA", "gw9.a.1", sa_value("gw9", "a", "1").replace(b"ESTAB", b"\\ud800"), "state is not a str"),
    "node": ("VICI_NODE", "gw9", b'{"v":1}', "node is missing"),
    "heartbeat": ("VICI_NODE", "gw9", node_value("gw9", heartbeat=None), "heartbeat is not a number"),
    "charon": ("VICI_NODE", "gw9", node_value("gw9", charon="asleep"), "charon is not 'up' or 'down'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_others(nats_server: NatsServer, name: str) -> None:
    """They are skipped and named, the rest is listed, and the exit status is 1."""
    bucket, key, value, reason = WRONG[name]
    line = f"{bucket}: {key}: not a value of a bridge: {reason}"

    async def test() -> None:
        async with administrator(nats_server) as (_, jetstream):
            kept = {name: await jetstream.create_key_value(KeyValueConfig(bucket=name)) for name in BUCKETS}
            await kept["VICI_SA"].put("gw1.a.1", sa_value("gw1", "a", "1"))
            await kept["VICI_NODE"].put("gw1", node_value("gw1"))
            await kept[bucket].put(key, value)
            for command in (["sas"], ["sas", "--json"]):
                code, out, err = await outcome(nats_server, *command)
                assert code == 1 and err.startswith(line) and len(err.splitlines()) == 1, err
                assert "gw1" in out and "gw9" not in out
            for command in (["nodes"], ["nodes", "--json"]):
                code, out, err = await outcome(nats_server, *command)
                assert code == (bucket == "VICI_NODE") and (line in err) == (bucket == "VICI_NODE"), err
                assert "gw1" in out and "Traceback" not in err
            assert (await outcome(nats_server, "call", "all", "version"))[0] == 3

            async def watched(*more: str) -> None:
                async with program(nats_server, "sas", "--watch", *more) as watch:
                    assert watch.stdout and watch.stderr
                    await (watch.stderr if more else watch.stdout).readuntil(line.encode())
                    await kept["VICI_SA"].put("gw1.a.2", sa_value("gw1", "a", "2"))
                    await watch.stdout.readuntil(b'"gw1.a.2"' if more else b"gw1/a #2")
                    watch.send_signal(signal.SIGINT)
                    await watch.communicate()
                    assert watch.returncode == 0

            await asyncio.gather(watched(), watched("--json"))

    run(test(), 60)


def test_values_of_charon_in_odd_forms(nats_server: NatsServer) -> None:
    """Names that VICI would not take as a section's, and lists where charon has strings, are shown."""

    async def test() -> None:
        async with administrator(nats_server) as (_, jetstream):
            kept = {name: await jetstream.create_key_value(KeyValueConfig(bucket=name)) for name in BUCKETS}
            section = {"state": ["a"], "uniqueid": {}, "established": ["1"], "local-host": {"a": ["b"]}}
            await kept["VICI_SA"].put("z=C3=BCrich.a.1", sa_value("zürich", "a", "1", sa=section))
            await kept["VICI_SA"].put(f"gw1.{'n' * 255}.1", sa_value("gw1", "n" * 255, "1"))
            code, out, err = await outcome(nats_server, "sas")
            assert code == 0 and "zürich/a" in out and "2 IKE_SAs" in out and "Traceback" not in err

    run(test(), 60)


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("stream", ["VICI", "KV_VICI_NODE", "KV_VICI_SA"])
def test_what_is_sealed(nats_server: NatsServer, stream: str) -> None:
    async def test() -> None:
        async with administrator(nats_server) as (_, jetstream), a_charon() as charon:
            async with service(config(nats_server, charon, interval=300)) as bridge:
                await has_sa(nats_server)
                await until(lambda: bridge.mirrorings[0].buckets.complete)
                await seal(jetstream, stream)
                code, out, err = await outcome(nats_server, "nodes")
                kind = "stream" if stream == "VICI" else "bucket"
                assert code == 0
                assert f"the {kind} {stream.removeprefix('KV_')} is sealed: JetStream rejects every message" in err
                assert (" incomplete " in out) == (kind == "bucket")
                bridge.mirrorings[0].buckets.compare()
                if stream == "KV_VICI_SA":
                    await says(nats_server, ("sas",), "the mirror is incomplete: VICI_SA: the bucket VICI_SA is sealed")
                if stream == "KV_VICI_NODE":
                    await says(nats_server, ("sas",), "no heartbeat of its bridge since ")

    run(test(), 60)


@pytest.mark.usefixtures("short_waits")
def test_nodes_without_jetstream(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server("jetstream: disabled")

    async def test() -> None:
        await server.up()
        async with a_charon() as charon, service(config(server, charon)), Fleet(server.url) as fleet:
            while not await fleet.present():
                await asyncio.sleep(0.05)
            code, out, err = await outcome(server, "nodes")
            assert code == 0 and "1 of 1 gateways have a running bridge" in out
            assert err == (
                "the bucket VICI_NODE cannot be read: JetStream does not respond: it is disabled in this server or for "
                "this account, or its cluster has no leader\n"
            )
            row = out.splitlines()[1].split()
            assert row[:2] == ["gw1", "running"] and row[3:] == ["?", "6.0.6", "?", "yes", "?", "?"]

    run(test(), 60)


@pytest.mark.usefixtures("short_waits")
def test_nodes_without_permission(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server(
        "accounts { A { jetstream: enabled, users: ["
        '{user: a, password: a}, {user: b, password: b, permissions: {publish: ["$SRV.PING.vicibridge"]}}, '
        '{user: c, password: c, permissions: {subscribe: {deny: ["_INBOX.>"]}}}'
        "] } }\nno_auth_user: a"
    )

    async def test() -> None:
        await server.up()
        async with a_charon() as charon, service(config(server, charon)):
            await has_sa(server)
            code, out, err = await outcome(server, "nodes", "--user", "b", "--password", "b")
            assert code == 0 and "1 of 1 gateways" in out
            assert "the bucket VICI_NODE cannot be read: no answer: let this user publish to $JS.API.DIRECT.GET" in err
            for command, what, stream in (
                (["sas"], "the watch of VICI_SA", "KV_VICI_SA"),
                (["tail", "--since", "1h"], "the subscription", "VICI"),
            ):
                code, out, err = await outcome(server, *command, "--user", "b", "--password", "b")
                reason = f"this user may not publish to $JS.API.CONSUMER.CREATE.{stream}.>"
                assert (code, out, err) == (4, "", f"Error: NATS: {what}: {reason}\n")
            code, out, err = await outcome(server, "sas", "--user", "c", "--password", "c")
            assert code == 4 and "this user may not subscribe to its reply inbox _INBOX.>" in err, err

    run(test(), 60)


@pytest.mark.usefixtures("short_waits")
def test_a_bucket_that_drops_values_sooner_than_they_are_written_again(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with administrator(nats_server) as (_, jetstream), a_charon() as charon:
            await jetstream.add_stream(
                StreamConfig(
                    name="KV_VICI_SA",
                    subjects=["$KV.VICI_SA.>"],
                    max_age=2,
                    max_msgs_per_subject=1,
                    allow_direct=True,
                    allow_rollup_hdrs=True,
                )
            )
            async with service(config(nats_server, charon, interval=300)) as bridge:
                await until(lambda: bridge.gateways[0].reader.up)
                why = "the bucket VICI_SA has max_age = 2s, not more than the 5m after which the bridge writes"
                await until(lambda: why in str(bridge.reasons()))
                _, out, err = await says(nats_server, ("nodes",), f"gw1: the mirror is incomplete: VICI_SA: {why}")
                assert " incomplete " in out
                present = (await jetstream.stream_info("KV_VICI_SA")).config
                await jetstream.update_stream(present.evolve(max_age=0))
                bridge.mirrorings[0].buckets.compare()
                await until(lambda: not [one for one in bridge.reasons() if "mirror" in one])
                assert bridge.mirrorings[0].buckets.complete

    run(test(), 60)


def test_watches_and_inventory_of_programs(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with administrator(nats_server) as (_, jetstream), Fleet(nats_server.url) as fleet:
            kept = {name: await jetstream.create_key_value(KeyValueConfig(bucket=name)) for name in BUCKETS}
            for name in BUCKETS:
                await kept[name].put("gw1", b'{"v":1}')
            async with fleet.watch_sas("gw1") as sas, fleet.watch_conns() as conns:
                assert sas.current == {} and conns.current == {}
            async with fleet.watch_nodes() as nodes:
                assert nodes.current == {} and set(nodes.invalid) == {"gw1"}
                with pytest.raises(ValueError, match="VICI_NODE: gw1: not a value of a bridge: node is missing"):
                    await anext(nodes)
                value = node_value("gw1")
                await kept["VICI_NODE"].put("gw1", value)
                assert (await anext(nodes)).value == bucket_values.load(value) and not nodes.invalid
            assert await fleet.present() == {"gw1"}

    run(test())
