"""The fleet commands with a real nats-server; those that signals end or that follow the fleet, as processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any
from unittest.mock import Mock

import msgpack
import nats
import pytest
from harness import NatsServer, run, until
from identities import Operator, Pki
from mirror_values import sa_value
from nats.js.api import KeyValueConfig
from test_client_calls import SAS, a_fleet
from vicibridge.client import Envelope, Fleet, JetStreamError

pytest.importorskip("rich", reason="the command line needs rich")

from click.testing import CliRunner  # noqa: E402
from vicibridge.cli import cli  # noqa: E402
from vicibridge.console.common import find_nats  # noqa: E402
from vicibridge.console.tail import coloured, text_of  # noqa: E402

from vicifast.cli import output  # noqa: E402
from vicifast.cli.common import WrongUse  # noqa: E402

SA = {"uniqueid": "7", "state": "ESTABLISHED", "local-host": "192.0.2.1", "remote-host": "192.0.2.2"}
CHILD = {"name": "net", "uniqueid": "3", "state": "INSTALLED", "bytes-in": "2048", "bytes-out": "7"}
SITE = {**SA, "child-sas": {"net-3": CHILD}}
SITES = [("list-sa", {"site": SITE})]
LOG = {"v": 1, "node": "gw1", "boot": "b", "seq": 1, "time": 1, "event": "log", "data": {}}
LINE = {"group": "IKE", "level": "1", "thread": "3", "msg": "retransmit"}


@pytest.mark.parametrize(
    ("direction", "message", "colour"),
    [
        ("up", {"up": "yes", "gw": SA}, "32"),
        ("down", {"gw": {**SA, "state": "DELETING"}}, "31"),
        ("failed", {"gw": {**SA, "state": "CONNECTING"}}, "33"),
    ],
)
def test_tail_distinguishes_up_down_and_failed(direction: str, message: dict[str, Any], colour: str) -> None:
    envelope = Envelope("gw1", "b", 1, 1, "ike-updown", message, f"vici.gw1.event.ike-updown.gw.{direction}")
    lines = text_of(envelope)
    assert lines == [f"ike-updown {direction} gw #7 192.0.2.1[] === 192.0.2.2[]"]
    assert f"\x1b[{colour}m{lines[0]}" in coloured(envelope, lines)


@asynccontextmanager
async def program(
    server: NatsServer, *args: str, stdout: int | IO[str] = asyncio.subprocess.PIPE
) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {"COLUMNS": "160", "PATH": os.environ["PATH"], "NATS_URL": server.url, "PYTHONWARNINGS": "error"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vicibridge", *args), stdout=stdout, stderr=asyncio.subprocess.PIPE, env=environment
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def outcome(server: NatsServer, *args: str) -> tuple[int, str, str]:
    """Run a command to its end in this process, without the half second that another interpreter needs to start."""
    return await asyncio.to_thread(_outcome, {"COLUMNS": "160", "NATS_URL": server.url}, args)


_ONE_AT_A_TIME = threading.Lock()  # CliRunner replaces the standard streams


def _forget_consoles() -> None:
    """A console keeps the width that it had when it was created."""
    for console in (output.results, output.notes):
        console.cache_clear()


def _outcome(environment: dict[str, str], args: tuple[str, ...]) -> tuple[int, str, str]:
    thread, logger = threading.get_ident(), logging.getLogger("vicibridge")

    def add(handler: logging.Handler) -> None:
        handler.addFilter(lambda record: record.thread == thread)  # bridges of the test log in another
        logging.Logger.addHandler(logger, handler)

    with _ONE_AT_A_TIME, pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "addHandler", add)
        patch.setattr("vicifast.cli.common.signal", Mock())  # only the main thread may set signal handlers
        level = logger.level
        _forget_consoles()
        try:
            result = CliRunner(env=environment).invoke(cli, args)
        finally:
            _forget_consoles()
            logger.setLevel(level)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


async def mirrored(fleet: Fleet) -> None:
    """Wait until an SA is in the mirror, which the bridge may still have to create."""
    while True:
        with suppress(JetStreamError):
            async with fleet.watch_sas() as mirror:
                if mirror.current:
                    return
        await asyncio.sleep(0.02)


def test_call(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with a_fleet(nats_server, "gw1", "gw2") as (_, charons):
            charons[0].on("get-pools", {"success": "no", "errmsg": "no such pool"})
            results = await asyncio.gather(
                outcome(nats_server, "call", "gw1", "version"),
                outcome(nats_server, "call", "gw1", "list-sas", "ike=gw", "noblock=yes", "--json"),
                outcome(nats_server, "call", "gw1", "terminate", "ike=gw"),
                outcome(nats_server, "call", "gw1", "get-pools", "name=x"),
                outcome(nats_server, "call", "gw9", "version"),
                outcome(nats_server, "call", "all", "version"),
                outcome(nats_server, "call", "all", "get-pools", "--json", "--stall", "1"),
                outcome(nats_server, "call", "gw1", "list-sas", "nonsense"),
            )
            assert results[0] == (0, "daemon: charon\non: gw1\n", "")
            assert [json.loads(line) for line in results[1][1].splitlines()] == [message for _, message in SAS]
            assert ("list-sas", {"ike": "gw", "noblock": "yes"}) in charons[0].requests
            assert results[2][0] == 4 and 'add "terminate" or "@operate" to allow' in results[2][2]
            assert results[3][0] == 1 and results[3][2] == "Error: get-pools: no such pool\n"
            assert results[4][0] == 3 and results[4][2] == "Error: gw9: version: no bridge serves it\n"
            assert results[5][0] == 0 and sorted(results[5][1].splitlines()) == [
                *(["  daemon: charon"] * 2),
                *("  on: gw1", "  on: gw2", "gw1:", "gw2:"),
            ]
            assert results[6][0] == 1
            answers = {answer["node"]: answer for answer in map(json.loads, results[6][1].splitlines())}
            assert answers["gw1"]["error"] == "get-pools: no such pool" and "does not know" in answers["gw2"]["error"]
            assert results[7][0] == 2 and "'nonsense' is not KEY=VALUE" in results[7][2]

    run(test())


def test_tail(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with a_fleet(nats_server, "gw1") as (fleet, [charon]):
            async with (
                program(nats_server, "tail", "--count", "3") as all_of_it,
                program(nats_server, "tail", "--json", "--group", "ike", "--level", "1", "--pattern", "^03") as lines,
                program(nats_server, "tail", "--ike", "gw") as of_one,
            ):
                # It is unknown when the programs listen, so events are sent until they arrive.
                out = asyncio.create_task(all_of_it.communicate())
                first = asyncio.create_task(lines.stdout.readline())  # type: ignore[union-attr]
                other = asyncio.create_task(of_one.stdout.readline())  # type: ignore[union-attr]
                while not (out.done() and first.done() and other.done()):
                    charon.emit("log", {**LINE, "level": "2"})
                    charon.emit("log", {**LINE, "group": "NET"})
                    charon.emit("log", LINE)
                    charon.emit("ike-updown", {"up": "yes", "gw": SA})
                    await asyncio.sleep(0.05)
                text = (await out)[0].decode()
                assert len(text.splitlines()) == 3 and " gw1 " in text
                envelope = json.loads(await first)
                assert (envelope["node"], envelope["event"], envelope["data"]) == ("gw1", "log", LINE)
                assert envelope["subject"] == "vici.gw1.log.IKE.1"
                assert (await other).decode().rstrip().endswith("ike-updown up gw #7 192.0.2.1[] === 192.0.2.2[]")
                of_one.send_signal(signal.SIGINT)
                _, err = await of_one.communicate()
                assert (of_one.returncode, err) == (0, b"")
            code, text, _ = await outcome(nats_server, "tail", "--since", "1h", "--count", "2", "--json")
            assert code == 0 and [json.loads(line)["seq"] for line in text.splitlines()] == [1, 2]

    run(test())


def test_nodes_and_sas(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with a_fleet(nats_server, "gw 1", sas=SITES, mirror={"enabled": True}) as (fleet, [charon]):
            charon.on("list-conns", {})
            charon.emit("child-updown", {"up": "yes", "site": SITE})
            await mirrored(fleet)
            results = await asyncio.gather(
                outcome(nats_server, "nodes"),
                outcome(nats_server, "nodes", "--json"),
                outcome(nats_server, "sas"),
                outcome(nats_server, "sas", "--json", "--node", "gw 1"),
                outcome(nats_server, "sas", "--node", "gw2"),
                outcome(nats_server, "top", "--count", "2", "--interval", "0.5"),
            )
            assert [code for code, _, _ in results] == [0] * 6, results
            assert "gw 1" in results[0][1] and "1 of 1 gateways have a running bridge" in results[0][1]
            node = json.loads(results[1][1])
            assert (node["node"], node["alive"], node["answers"]) == ("gw 1", True, True)
            assert "gw 1/site #7" in results[2][1] and "1 IKE_SAs, 1 CHILD_SAs" in results[2][1]
            assert json.loads(results[3][1])["sa"]["remote-host"] == "192.0.2.2"
            assert "0 IKE_SAs" in results[4][1]
            assert "events/s" in results[5][1]

    run(test())


@pytest.mark.usefixtures("short_waits")
def test_console_over_tls(make_nats_server: Callable[..., NatsServer], tmp_path: Path) -> None:
    """The output is only the requested one, without warnings of asyncio about closed connections."""
    pki = Pki(tmp_path)
    server = make_nats_server(pki.server_options())
    url = server.url.replace("nats:", "tls:")
    trust = f'tls_ca = "{pki.ca}"\ntls_hostname = "nats.example"'
    (tmp_path / "bridge.toml").write_text(f'[nats]\nservers = ["{url}"]\n{trust}\n')

    async def test() -> None:
        await server.up()
        here = ("--server", url, "--config", str(tmp_path / "bridge.toml"))
        nodes, call = await asyncio.gather(
            outcome(server, "nodes", *here),
            outcome(server, "call", "x", "y", *here),
        )
        absent = "the bucket VICI_NODE does not exist: no bridge with a mirror has created it\n"
        assert (nodes[0], nodes[2]) == (0, absent)
        assert (call[0], call[2]) == (3, "Error: x: y: no bridge serves it\n")
        tls_first = await asyncio.to_thread(CliRunner().invoke, cli, ["nodes", *here, "--tls-first"])
        assert tls_first.exit_code == 3 and "unset tls_first in [nats]" in tls_first.stderr

    run(test(), 60)


def test_expired_credentials_are_reported_and_replaced(
    make_nats_server: Callable[..., NatsServer], tmp_path: Path
) -> None:
    """Commands that follow the fleet report the disconnect and its reason, and continue when the file is renewed."""
    operator, creds = Operator(), tmp_path / "us.creds"
    server = make_nats_server(operator.server_options())
    before: list[str] = []
    cut: list[str] = []

    async def note(process: asyncio.subprocess.Process, text: str) -> None:
        assert process.stderr
        while text not in (line := (await process.stderr.readline()).decode()):
            assert line, f"ended without {text!r}"

    async def follow(command: list[str], expected: bytes) -> None:
        async with program(server, *command, "--creds", str(creds)) as process:
            assert process.stdout
            await process.stdout.readuntil(expected)
            before.append(command[0])
            await note(process, "NATS: not connected: the server rejects the credentials: Authorization Violation")
            cut.append(command[0])
            await note(process, f"NATS: connected to {server.url}")
            while expected not in await process.stdout.readline():  # the state at the disconnect
                pass

    async def publish(done: Callable[[], bool]) -> None:
        operator.write_credentials(tmp_path / "other.creds")
        other = await nats.connect(server.url, user_credentials=str(tmp_path / "other.creds"))
        bucket = await other.jetstream().create_key_value(KeyValueConfig(bucket="VICI_SA"))
        while not done():
            await bucket.put("gw1.a.1", sa_value("gw1", "a", "1"))
            await other.publish("vici.gw1.log.IKE.1", msgpack.packb(LOG))
            await asyncio.sleep(0.05)
        await other.close()

    async def test() -> None:
        await server.up()
        operator.write_credentials(creds)
        await publish(lambda: True)
        following = asyncio.gather(
            follow(["tail", "--json"], b"vici.gw1.log"),
            follow(["sas", "--watch", "--json"], b'"gw1.a.1"'),
            follow(["top", "--interval", "0.2"], b"gw1 "),
        )
        await publish(lambda: len(before) == 3 or following.done())
        operator.revoke()
        server.configure(operator.server_options())
        await asyncio.to_thread(server.stop)
        await server.up()
        await until(lambda: len(cut) == 3 or following.done(), 30)
        operator.write_credentials(creds)
        await publish(following.done)
        await following

    run(test(), 60)


def test_console_without_jetstream(make_nats_server: Callable[..., NatsServer]) -> None:
    """Commands do not need JetStream; stored events and the mirror do, and the error says so."""
    server = make_nats_server("jetstream: disabled")
    off = "JetStream does not respond: it is disabled in this server or for this account, or its cluster has no leader"

    async def test() -> None:
        await server.up()
        nodes, sas, tail, call = await asyncio.gather(
            outcome(server, "nodes"),
            outcome(server, "sas"),
            outcome(server, "tail", "--since", "1h"),
            outcome(server, "call", "all", "version"),
        )
        assert (
            nodes[0] == 0
            and nodes[2] == f"the bucket VICI_NODE cannot be read: {off}\n"
            and "0 of 0 gateways" in nodes[1]
        )
        assert sas == (1, "", f"Error: JetStream: the watch of VICI_SA: {off}\n")
        assert tail == (1, "", f"Error: JetStream: the subscription: {off}\n")
        assert call == (3, "", "Error: no bridge answers\n")

    run(test(), 60)


def test_sas_watch_without_a_terminal(nats_server: NatsServer) -> None:
    """`--watch` prints the table again after a change; with `--json`, a value of another writer does not end it."""

    async def text_until(process: asyncio.subprocess.Process, found: bytes) -> None:
        assert process.stdout
        while found not in (line := await process.stdout.readline()):
            assert line, f"ended without {found!r}"

    async def test() -> None:
        async with a_fleet(nats_server, "gw1", sas=SITES, mirror={"enabled": True}) as (fleet, [charon]):
            charon.on("list-conns", {})
            charon.emit("child-updown", {"up": "yes", "site": SITE})
            await mirrored(fleet)
            client = await nats.connect(nats_server.url)
            bucket = await client.jetstream().key_value("VICI_SA")
            async with (
                program(nats_server, "sas", "--watch") as tables,
                program(nats_server, "sas", "--watch", "--json") as lines,
            ):
                await text_until(tables, b"1 IKE_SAs, 1 CHILD_SAs")
                await text_until(lines, b'"gw1.site.7"')
                await bucket.put("gw1.a.1", b"not JSON")
                assert lines.stderr
                assert b"VICI_SA: gw1.a.1: " in await lines.stderr.readline()
                await bucket.delete("gw1.site.7")
                await text_until(lines, b'{"key":"gw1.site.7","value":null}')
                await text_until(tables, b"0 IKE_SAs, 0 CHILD_SAs")
                for process in (tables, lines):
                    process.send_signal(signal.SIGINT)
                    await process.communicate()
                    assert process.returncode == 0
            await client.close()

    run(test(), 60)


def test_unwritable_output(nats_server: NatsServer) -> None:
    async def test() -> None:
        async with a_fleet(nats_server, "gw1", sas=SITES, mirror={"enabled": True}) as (fleet, [charon]):
            charon.on("list-conns", {})
            charon.emit("child-updown", {"up": "yes", "site": SITE})
            await mirrored(fleet)
            commands = (
                *(["nodes"], ["nodes", "--json"], ["call", "gw1", "list-sas"], ["schema"], ["top"]),
                *(["sas"], ["sas", "--json"], ["sas", "--watch"], ["sas", "--watch", "--json"]),
            )

            async def unwritten(command: list[str]) -> tuple[list[str], int | None, bytes]:
                with open("/dev/full", "w") as full:
                    async with program(nats_server, *command, stdout=full) as process:
                        _, err = await process.communicate()
                        return command, process.returncode, err

            error = b"Error: standard output: No space left on device\n"
            ended = await asyncio.gather(*map(unwritten, commands))
            assert ended == [(command, 1, error) for command in commands]

    run(test(), 60)


def test_unreachable_nats(nats_server: NatsServer) -> None:
    async def test() -> None:
        code, _, err = await outcome(nats_server, "nodes")
        assert code == 3 and f"cannot connect to {nats_server.url}" in err and "Traceback" not in err
        code, _, err = await outcome(nats_server, "tail", "--event", "log", "--since", "1h")
        assert code == 2 and "JetStream does not store the log" in err

    run(test())


def test_sources_of_the_nats_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    contexts = tmp_path / "nats" / "context"
    contexts.mkdir(parents=True)
    (contexts / "first.json").write_text('{"url": "tls://a:1", "tls_first": true}')
    (contexts / "prod.json").write_text('{"url": "nats://a:1,nats://b:2", "user": "u", "password": "p", "ca": ""}')
    config = tmp_path / "bridge.toml"
    config.write_text('[nats]\nservers = ["nats://c:3"]\nprefix = "p"\ntoken = "t"\n')

    def found(given: dict[str, object], context: str | None = None, path: Path | None = None) -> Any:
        nats = find_nats(given, context, path)
        return list(nats.servers), nats.user, nats.token, nats.prefix

    assert found({}) == (["nats://127.0.0.1:4222"], None, None, "vici")
    assert found({"servers": ["x:1", "y", "u@[::1]:2"]}) == (
        ["nats://x:1", "nats://y", "nats://u@[::1]:2"],
        None,
        None,
        "vici",
    )
    assert found({"servers": ["nats://x:1"], "user": "me"}) == (["nats://x:1"], "me", None, "vici")
    assert found({}, "prod") == (["nats://a:1", "nats://b:2"], "u", None, "vici")
    assert found({"servers": ["nats://x:1"]}, "prod") == (["nats://x:1"], "u", None, "vici")
    assert found({}, None, config) == (["nats://c:3"], None, "t", "p")
    assert found({"user": "me"}, None, config) == (["nats://c:3"], "me", None, "p")  # replaces the token
    assert found({"servers": ["nats://u@x:1"]}, None, config) == (["nats://u@x:1"], None, None, "p")
    assert find_nats({}, "first", None).tls_first and find_nats({"tls_first": True}, None, None).tls_first
    for given, context, path, says in [
        ({}, "none", None, "cannot read context none"),
        ({}, None, tmp_path / "none.toml", "none.toml"),
        ({"servers": ["ftp://x"]}, None, None, "invalid server address"),
        ({"creds": tmp_path / "none.creds"}, None, None, "none.creds"),
        ({"user": "u", "token": "t"}, None, None, "are mutually exclusive"),
    ]:
        with pytest.raises(Exception, match=says) as wrong:
            find_nats(given, context, path)  # type: ignore[arg-type]
        assert wrong.value.exit_code == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"servers": ["nats://x:1", "tls://y:2"], "user": "u", "password": "p", "prefix": "a.b", "inbox_prefix": "_I"},
        {"servers": ["nats://u:p@x:1"], "tls_first": True, "tls_ca": str(Path(__file__))},
        {"creds": str(Path(__file__))},
        {"servers": []},
        {"servers": ["ftp://x"]},
        {"servers": ["x:1"]},
        {"prefix": "a b"},
        {"inbox_prefix": ".x"},
        {"user": 5},
        {"tls_first": "yes"},
        {"tls_first": "perhaps"},
        {"password": "p"},
        {"token": ["t"]},
        {"tls_cert": "/nowhere"},
        {"user": "u", "token": "t"},
        {"tls_key": str(Path(__file__))},
    ],
)
def test_settings_are_equal_with_and_without_a_configuration(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, object]
) -> None:
    """Without one they are checked without pydantic, which is slow to import."""

    def found() -> object:
        try:
            return find_nats(given, None, None)
        except WrongUse as error:
            return error.format_message()

    without = found()
    monkeypatch.setenv("VICIBRIDGE_LOGGING__LEVEL", "info")
    assert without == found()


FOREIGN = {
    "no JSON": b"{",
    "no envelope": b'{"v":1}',
    "nested": b'{"a":' * 100_000,
    "msgpack": b"\x81\xa1v\x01",
    "a type of its own": msgpack.packb({**LOG, "data": {"x": msgpack.ExtType(7, b"x")}}),
    "a time": msgpack.packb({**LOG, "data": {"x": msgpack.Timestamp(1, 1)}}),
    "time": json.dumps({**LOG, "time": "now"}).encode(),
    "a later time": json.dumps({**LOG, "time": 2**70}).encode(),
    "seq": json.dumps({**LOG, "seq": None}).encode(),
    "data": json.dumps({**LOG, "data": []}).encode(),
    "surrogate": json.dumps({**LOG, "data": {"msg": "\ud800"}}).encode(),
    "gap": json.dumps({**LOG, "event": "gap", "data": {"first_seq": 1}}).encode(),
    "status": json.dumps({**LOG, "event": "status", "data": {"previous": "x"}}).encode(),
}
ODD = [
    {**LOG, "data": {"level": "high", "msg": "odd level"}},
    {**LOG, "event": "child-rekey", "data": {"gw": {"child-sas": True}}},
    {**LOG, "event": "new", "data": {"number": 7, "nothing": None}},
]


@pytest.mark.parametrize("more", [["--level", "1"], [], ["--json"]], ids=str)
def test_tail_of_what_others_publish(nats_server: NatsServer, more: list[str]) -> None:
    """Each payload that is not an envelope is named, and the next one is shown."""

    async def test() -> None:
        await nats_server.up()
        client = await nats.connect(nats_server.url)
        async with program(nats_server, "tail", *more) as tail:
            assert tail.stdout and tail.stderr
            first = asyncio.create_task(tail.stdout.readuntil(b"begins"))
            while not first.done():  # until it listens
                begins = {**LOG, "data": {"level": "0", "msg": "begins"}}
                await client.publish("vici.gw1.log.IKE.1", json.dumps(begins).encode())
                await asyncio.sleep(0.05)
            for name, payload in FOREIGN.items():
                await client.publish("vici.gw1.log.IKE.1", payload)
                line = (await tail.stderr.readline()).decode()
                assert line.startswith("vici.gw1.log.IKE.1: not an envelope: "), (name, line)
            for odd in ODD:
                await client.publish("vici.gw1.log.IKE.1", json.dumps(odd).encode())
            await tail.stdout.readuntil(b'"number":7')
            tail.send_signal(signal.SIGINT)
            _, err = await tail.communicate()
            assert tail.returncode == 0 and b"Traceback" not in err
        await client.close()

    run(test(), 60)


ANSWERS: dict[str, tuple[dict[str, str], bytes, str]] = {
    "code": ({"Vici-Node": "gw1", "Nats-Service-Error-Code": "often"}, b"", "Error: gw1: version: error 502\n"),
    "payload": ({"Vici-Node": "gw1"}, b"{", "Error: "),
    "end": ({"Vici-Node": "gw1", "Status": "200", "Vici-Count": "x"}, b"", "Error: gw1: version: 0 of x parts"),
    "reply of a failure": ({"Vici-Node": "gw1", "Nats-Service-Error-Code": "409"}, b"{", "Error: "),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_others(nats_server: NatsServer, name: str) -> None:
    headers, payload, says = ANSWERS[name]

    async def test() -> None:
        await nats_server.up()
        client = await nats.connect(nats_server.url)

        async def answer(message: Any) -> None:
            await client.publish(message.reply, payload, headers={**headers, "Vici-Node": "=zz"})
            await client.publish(message.reply, payload, headers=headers)

        async def present(message: Any) -> None:
            for metadata in ([], {}, {"node": 7}, {"node": None}):
                reply = {"name": "vicibridge", "metadata": metadata}
                await client.publish(message.reply, json.dumps(reply).encode())
            await client.publish(message.reply, b"[" * 100_000)

        await client.subscribe("$SRV.PING.vicibridge", cb=present)
        await client.subscribe("vici.all.cmd.version", cb=answer)
        await client.flush()
        code, out, err = await outcome(nats_server, "call", "all", "version", "--stall", "0.5")
        assert code in (1, 3) and out == "" and says.removeprefix("Error: ") in err and "Traceback" not in err, err
        await client.subscribe("vici.gw1.cmd.version", cb=answer)
        await client.flush()
        code, out, err = await outcome(nats_server, "call", "gw1", "version", "--timeout", "5")
        assert code == 1 and out == "" and err.startswith(says) and "Traceback" not in err, err
        assert (await outcome(nats_server, "nodes"))[1].endswith("0 of 0 gateways have a running bridge\n")
        await client.close()

    run(test(), 60)
