"""`vicibridge check --nats` on a real nats-server: what it reports, its exit status, and that it changes nothing.

`check --charon` on a scripted charon, because a machine has only one version of the real one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from click.testing import CliRunner
from harness import NatsServer, service, settings, until
from vicibridge.bus.streams import bucket_stream, state_stream
from vicibridge.cli import cli
from vicibridge.client import Fleet, JetStreamError
from vicibridge.contract.bucket_values import BUCKETS

from vicifast.testing.blocking import FakeCharon


def check(tmp_path: Path, server: NatsServer, more: str = "") -> tuple[int, list[str]]:
    """Return the exit status and the reported problems."""
    path = tmp_path / "bridge.toml"
    path.write_text(f'[nats]\nservers = ["{server.url}"]\n{more}\n[[gateway]]\nnode = "gw1"\n')
    result = CliRunner().invoke(cli, ["check", "--nats", "--config", str(path)])
    assert 'servers = ["nats://' in result.stdout  # the configuration, as without --nats
    return result.exit_code, result.stderr.splitlines()


def administer(server: NatsServer, *streams: dict[str, Any], user: str | None = None) -> list[dict[str, Any]]:
    """Start a server, create streams, and return the configurations of all streams."""

    async def do() -> list[dict[str, Any]]:
        if server.process is None:
            await server.up()
        client = await nats.connect(server.url, user=user, password=user)
        for stream in streams:
            answer = await client.request(f"$JS.API.STREAM.CREATE.{stream['name']}", json.dumps(stream).encode())
            assert "error" not in json.loads(answer.data), answer.data
        answer = await client.request("$JS.API.STREAM.LIST", b"")
        await client.close()
        return [stream["config"] for stream in json.loads(answer.data)["streams"] or ()]

    return asyncio.run(do())


def ours(server: NatsServer, *names: str, **changes: Any) -> list[dict[str, Any]]:
    """Return the bridge's streams with these names, all by default, with `changes`."""
    streams = [state_stream(settings(server.url).nats).config, *map(bucket_stream, BUCKETS)]
    return [{**stream.as_dict(), **changes} for stream in streams if not names or stream.name in names]


def test_server_without_streams_has_no_problems_and_is_not_changed(nats_server: NatsServer, tmp_path: Path) -> None:
    assert administer(nats_server) == []
    assert check(tmp_path, nats_server) == (0, [])
    assert administer(nats_server) == []


def test_streams_created_by_the_bridge_have_no_problems(nats_server: NatsServer, tmp_path: Path) -> None:
    async def bridge() -> None:
        await nats_server.up()
        async with service(settings(nats_server.url, mirror={"enabled": True})) as running:
            await running.mirrorings[0].buckets.settled()
            await until(lambda: not running.gateways[0].backlog.waiting)

    asyncio.run(bridge())
    before = administer(nats_server)
    assert len(before) == 4
    assert check(tmp_path, nats_server, 'provision = "bind"') == (0, [])
    assert check(tmp_path, nats_server, 'provision = "reconcile"') == (0, [])
    assert administer(nats_server) == before


def test_existing_streams_are_reported(nats_server: NatsServer, tmp_path: Path) -> None:
    administer(
        nats_server,
        *ours(nats_server, "VICI", subjects=["vici.>"]),
        *ours(nats_server, "KV_VICI_SA", max_age=3600 * 10**9),
        *ours(nats_server, "KV_VICI_NODE", max_bytes=10**6),
    )
    status, lines = check(tmp_path, nats_server)
    assert status == 0
    assert [line.partition(":")[0] for line in lines] == ["warning"] * 3
    assert lines[0].startswith(
        "warning: the stream VICI captures requests (vici.>): JetStream replies to requests before"
    )
    assert lines[1].startswith("warning: the bucket VICI_NODE has max_bytes = 1000000 with discard = new: if it is")
    assert lines[2].startswith("warning: the bucket VICI_SA has max_age = 1h: current values are removed")
    assert check(tmp_path, nats_server, "[mirror]\nenabled = false") == (0, lines[:1])


def test_blocking_problems_are_errors(nats_server: NatsServer, tmp_path: Path) -> None:
    administer(nats_server, *ours(nats_server, "VICI", no_ack=True))
    status, [line] = check(tmp_path, nats_server)
    assert status == 1 and line.startswith("error: the stream VICI has no_ack: JetStream acknowledges nothing")
    status, lines = check(tmp_path, nats_server, 'stream = "OTHER"\nprovision = "bind"')
    assert status == 1
    hint = 'create it, or set provision = "create" in [nats] to let the bridge create it'
    assert lines[0] == f"error: the stream OTHER for vici.*.event.>, vici.*.bridge.> does not exist: {hint}"
    assert lines[1] == (
        "error: the stream OTHER cannot take its subjects: the stream VICI has vici.*.event.> or vici.*.bridge.>: "
        'set stream = "VICI" in [nats], or remove these subjects from it'
    )
    assert lines[2:] == [
        f"error: the bucket {bucket} for $KV.{bucket}.> does not exist: {hint}" for bucket in BUCKETS
    ]  # fmt: skip


def test_other_streams_are_named(nats_server: NatsServer, tmp_path: Path) -> None:
    administer(
        nats_server,
        *ours(nats_server, "VICI", subjects=["vici.*.event.>"]),
        {"name": "STATUS", "subjects": ["vici.gw1.bridge.status"]},
        {"name": "REQUESTS", "subjects": ["vici.gw1.cmd.>"]},
        {"name": "KEYS", "subjects": ["$KV.VICI_SA.x"]},
    )
    status, lines = check(tmp_path, nats_server)
    assert status == 1
    assert lines[0].startswith("error: the stream VICI lacks the subjects vici.*.bridge.>: messages of the bridge")
    assert lines[1] == (
        "error: the stream VICI cannot take its subjects: the stream STATUS has vici.*.bridge.>: "
        'set stream = "STATUS" in [nats], or remove these subjects from it'
    )
    assert lines[2] == (
        "error: the bucket VICI_SA cannot take its subjects: the stream KEYS has $KV.VICI_SA.>: "
        "remove these subjects from it"
    )
    assert lines[3].startswith("warning: the stream REQUESTS captures requests (vici.*.cmd.*): JetStream replies")
    assert len(lines) == 4
    assert check(tmp_path, nats_server, 'prefix = "other"\nstream = "O"\n[mirror]\nenabled = false') == (0, [])


def limited(make: Callable[..., NatsServer], limits: str) -> NatsServer:
    return make(f"accounts {{ A {{ jetstream: {limits}, users: [{{user: a, password: a}}] }} }}\nno_auth_user: a")


REACHED = {
    "{max_streams: 3}": "error: max_streams = 3 of the account, of which 1 are in use, leaves no room for VICI, "
    "KV_VICI_NODE, KV_VICI_CONN, KV_VICI_SA: raise it to 5 or more",
    "{max_bytes_required: true}": "error: the account requires max_bytes (max_bytes_required): create VICI, "
    "KV_VICI_NODE, KV_VICI_CONN, KV_VICI_SA manually with it",
    "{max_file: 1000}": "warning: 1000 of 1000 bytes of the account's storage are in use: when all are, JetStream "
    "refuses events and changes of the mirror; raise its max_file",
}


@pytest.mark.parametrize("limits", REACHED)
def test_limits_of_the_account_are_reported(
    make_nats_server: Callable[..., NatsServer], tmp_path: Path, limits: str
) -> None:
    server = limited(make_nats_server, limits)
    administer(server, {"name": "OTHER", "subjects": ["other"], "max_bytes": 1000})
    status, lines = check(tmp_path, server)
    assert (status, lines) == (int(REACHED[limits].startswith("error")), [REACHED[limits]])


def test_account_without_storage(make_nats_server: Callable[..., NatsServer], tmp_path: Path) -> None:
    server = limited(make_nats_server, "{max_mem: 1000000, max_file: 0}")
    administer(server)
    status, lines = check(tmp_path, server)
    assert status == 1 and lines == [
        "error: the account has no storage for VICI, KV_VICI_NODE, KV_VICI_CONN, KV_VICI_SA: raise its max_file"
    ]


def test_consumer_limit(make_nats_server: Callable[..., NatsServer], tmp_path: Path) -> None:
    server = limited(make_nats_server, "{max_consumers: 1}")
    administer(server, *ours(server))

    async def read() -> tuple[int, list[str]]:
        client = await nats.connect(server.url)
        await client.jetstream().subscribe("", stream="VICI", ordered_consumer=True)
        async with Fleet(server.url) as fleet:
            async with fleet.watch_nodes():  # the limit applies to each stream
                pass
            for reader in (fleet.subscribe(start="first"), fleet.subscribe(durable="worker")):
                with pytest.raises(JetStreamError, match="raise max_consumers of the account or the stream"):
                    await reader.start()
        try:
            return await asyncio.to_thread(check, tmp_path, server)
        finally:
            await client.close()

    assert check(tmp_path, server) == (0, [])
    status, lines = asyncio.run(read())
    assert status == 0 and lines[0] == (
        "warning: the stream VICI has 1 consumers, as many as max_consumers of the account allows: "
        "JetStream refuses further readers; raise it, or delete consumers not in use"
    )


def test_jetstream_off(make_nats_server: Callable[..., NatsServer], tmp_path: Path) -> None:
    server = limited(make_nats_server, "disabled")
    server.start()
    status, [line] = check(tmp_path, server)
    assert status == 1 and line.startswith("error: JetStream cannot be used: JetStream not enabled for account")


@pytest.mark.usefixtures("short_waits")
def test_denied_requests_are_named(make_nats_server: Callable[..., NatsServer], tmp_path: Path) -> None:
    """Everything available is reported, and each request without a reply is named."""
    users = (
        '{user: admin, password: admin}, {user: b, password: b, permissions: {publish: ["$JS.API.STREAM.INFO.VICI"]}}'
    )
    server = make_nats_server(f"authorization {{ users: [{users}] }}")
    administer(server, *ours(server, "VICI", duplicate_window=10**9), user="admin")
    more = 'user = "b"\npassword = "b"\n[mirror]\nenabled = false'
    status, lines = check(tmp_path, server, more)
    assert status == 0
    assert lines[0].endswith("the limits of the account: let this user publish to $JS.API.INFO")
    assert "the stream VICI has duplicate_window = 1s" in lines[1]
    assert lines[2].endswith("streams that capture requests: let this user publish to $JS.API.STREAM.NAMES")
    assert len(lines) == 3


def test_nats_unreachable(nats_server: NatsServer, tmp_path: Path) -> None:
    status, [line] = check(tmp_path, nats_server, 'user = "u"\npassword = "s3cret"')
    assert status == 1 and line == f"error: cannot connect to NATS at {nats_server.url}: Connection refused"
    path = tmp_path / "own.toml"
    path.write_text(f"[nats.embedded]\nport = {nats_server.port}\n")
    result = CliRunner().invoke(cli, ["check", "--nats", "--config", str(path)])
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("; the bridge runs this server itself: check while it does")


@pytest.mark.parametrize(
    ("version", "reported"),
    [
        ("5.9.8", ["note: gw1: strongSwan 5.9.8 has no event alert; it needs 6.0.3"]),
        (
            "5.9.1",
            [
                "note: gw1: strongSwan 5.9.1 has no event ike-update; it needs 5.9.2",
                "note: gw1: strongSwan 5.9.1 has no event alert; it needs 6.0.3",
            ],
        ),
        ("6.0.7", []),
        (
            "6.1.0",
            [
                "warning: gw1: strongSwan 6.1.0 has no IKEv1 unless it was built with it, which these connections "
                "need: old, oldest"
            ],
        ),
    ],
)
def test_version_of_charon(fake_charon: FakeCharon, tmp_path: Path, version: str, reported: list[str]) -> None:
    versions = {"new": "IKEv2", "old": "IKEv1", "either": "IKEv1/2", "oldest": "IKEv1"}
    fake_charon.on("version", {"daemon": "charon", "version": version})
    conns = [("list-conn", {name: {"version": own}}) for name, own in versions.items()]
    fake_charon.on("list-conns", {}, stream=conns)
    assert check_charon(tmp_path, fake_charon.address) == (0, reported)


def test_charon_unreachable(tmp_path: Path) -> None:
    code, [line] = check_charon(tmp_path, f"unix://{tmp_path}/nothing.vici")
    assert code == 1 and line.startswith(f"error: gw1: cannot connect to unix://{tmp_path}/nothing.vici")


def check_charon(tmp_path: Path, address: str) -> tuple[int, list[str]]:
    path = tmp_path / "bridge.toml"
    path.write_text(f'[[gateway]]\nnode = "gw1"\nvici = "{address}"\n')
    result = CliRunner().invoke(cli, ["check", "--charon", "--config", str(path)])
    return result.exit_code, result.stderr.splitlines()
