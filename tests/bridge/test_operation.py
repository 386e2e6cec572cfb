"""Operation of the bridge: metrics, health, its own log, systemd, SIGHUP."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from harness import NatsServer, observing, run, service, settings, start_bridge, until, up
from prometheus_client.parser import text_string_to_metric_families
from vicibridge.config.file import load
from vicibridge.config.model import HttpConfig
from vicibridge.events.losses import Counts
from vicibridge.ops import http, logsetup
from vicibridge.ops.metrics import METRICS
from vicibridge.ops.systemd import Systemd
from vicibridge.ops.watchdog import Lag
from vicibridge.service import Service

from vicifast.testing import FakeCharon

ROOT = Path(__file__).parents[2]

LOG = {"group": "IKE", "level": "1", "thread": "3", "msg": "hello"}
SA = {"uniqueid": "7", "state": "ESTABLISHED"}
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(autouse=True)
def _http(_no_http: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VICIBRIDGE_HTTP__LISTEN", "127.0.0.1:0")


async def fetch(bridge: Service, path: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        with closing(HTTPConnection("127.0.0.1", bridge.web.port, timeout=10)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    return await asyncio.to_thread(get)


async def exchanged(bridge: Service, request: bytes) -> bytes:
    """Return everything that the server sends for the bytes of a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", bridge.web.port)
    writer.write(request)
    response = await reader.read()
    writer.close()
    await writer.wait_closed()
    return response


async def scraped(bridge: Service) -> Values:
    _, text = await fetch(bridge, "/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(values: Values, name: str, **labels: str) -> float:
    return values[name, frozenset(labels.items())]


def test_metrics_after_known_traffic(nats_server: NatsServer) -> None:
    async def test() -> None:
        await nats_server.up()
        async with (
            FakeCharon() as charon,
            observing(nats_server.url) as observer,
            service(settings(nats_server.url, charon.address)) as bridge,
        ):
            [gateway] = bridge.gateways
            await up(bridge)
            charon.emit("ike-updown", {"up": "yes", "a hostile.name": SA})
            for kind in ("ts-mismatch", "a hostile.type"):
                charon.emit("alert", {"type": kind})
            for _ in range(10):
                charon.emit("log", LOG)
            charon.on("version", {"daemon": "charon"})
            for command in ("version", "terminate", "no-such"):
                await observer.ask(f"vici.gw1.cmd.{command}", b"{}")
            await until(
                lambda: (
                    gateway.log.counts.published == 10
                    and not gateway.backlog.waiting
                    and len(gateway.reader.events) == 3
                )
            )
            gateway.log.lost("the bridge fell behind charon", 11, 13)
            values = await scraped(bridge)
            state = {"node": "gw1", "class": "state"}
            log = {"node": "gw1", "class": "log"}
            assert value(values, "vicibridge_received_total", **log) == 13
            assert value(values, "vicibridge_published_total", **log) == 10
            assert value(values, "vicibridge_dropped_total", **log, cause="the bridge fell behind charon") == 3
            assert value(values, "vicibridge_in_flight", **log) == 0
            assert value(values, "vicibridge_published_bytes_total", **log) > 500
            assert value(values, "vicibridge_published_total", **state) == gateway.backlog.counts.published >= 3
            for event, kind in (("ike-updown", "up"), ("alert", "ts-mismatch"), ("alert", "other")):
                assert value(values, "vicibridge_vici_events_total", node="gw1", event=event, kind=kind) == 1
            assert value(values, "vicibridge_vici_events_total", node="gw1", event="log", kind="") == 13
            assert value(values, "vicibridge_charon_up", node="gw1") == 1
            assert value(values, "vicibridge_nats_up") == value(values, "vicibridge_nats_connects_total") == 1
            for command, code in (("version", "200"), ("terminate", "403"), ("unknown", "404")):
                assert value(values, "vicibridge_commands_total", node="gw1", command=command, code=code) >= 1
            assert value(values, "vicibridge_command_seconds_total", node="gw1", command="version") > 0
            assert value(values, "process_resident_memory_bytes") > 0
            assert "hostile" not in str(values)
            for metric in METRICS:
                labels = [{key for key, _ in key[1]} for key in values if key[0] == metric.name]
                assert all(names == set(metric.labels) for names in labels), metric.name

    run(test())


ODD_NAMES = ['"} 1 # HELP x', "back\\slash", "up", "", "x" * 255, "a{b=c},d", "\\n"]


def test_metrics_of_connections(nats_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    """With any names; those beyond the limit are counted."""
    conns = {name: {"children": {f"{name}1"[:255]: {}, "net": {}}} for name in ODD_NAMES}

    async def test() -> None:
        await nats_server.up()
        async with FakeCharon() as charon:
            charon.on("list-conns", {}, stream=[("list-conn", {name: config}) for name, config in conns.items()])
            sa = SA | {"child-sas": {"net-1": {"name": "net", "uniqueid": "1", "state": "INSTALLED"}}}
            rows = {"up": sa, "not configured": SA | {"uniqueid": "8"}}
            charon.on("list-sas", {}, stream=[("list-sa", {name: row}) for name, row in rows.items()])
            config = settings(nats_server.url, charon.address, mirror={"enabled": True}, http={"max_tunnels": 100})
            async with service(config) as bridge:
                await until(lambda: bridge.mirrorings[0].snapshots)
                # As another client may write to the bucket: charon lists printable ASCII only.
                bridge.mirrorings[0].mirror.conn(time.time_ns(), "b\n\udcff").configured = True
                values = await scraped(bridge)
                assert value(values, "vicibridge_connection_up", node="gw1", connection="b\n\\xff") == 0
                for name in ODD_NAMES:
                    labels = {"node": "gw1", "connection": name}
                    assert value(values, "vicibridge_connection_up", **labels) == (name == "up")
                    seconds = value(values, "vicibridge_connection_changed_timestamp_seconds", **labels)
                    assert 0 <= time.time() - seconds < 60
                    assert value(values, "vicibridge_child_up", **labels, child="net") == (name == "up")
                    assert value(values, "vicibridge_child_up", **labels, child=f"{name}1"[:255]) == 0
                assert value(values, "vicibridge_connections_left_out", node="gw1") == 0
                assert value(values, "vicibridge_child_sas_ambiguous", node="gw1") == 0
                assert len([key for key in values if key[0] == "vicibridge_connection_up"]) == len(conns) + 1
                assert "left out" not in caplog.text
                bridge.settings = config.model_copy(update={"http": HttpConfig(max_tunnels=7)})
                for _ in range(2):
                    values = await scraped(bridge)
                    assert len([key for key in values if key[0] == "vicibridge_connection_up"]) == 2
                    assert value(values, "vicibridge_connections_left_out", node="gw1") == len(conns) - 1
                assert caplog.text.count("6 connections are left out, as http.max_tunnels is 7") == 1

    run(test())


def test_metrics_follow_the_conventions() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"vicibridge(_[a-z]+)+", metric.name)
        assert metric.help.endswith(".")


def test_alert_rules_use_existing_metrics() -> None:
    rules = (ROOT / "bridge" / "grafana" / "alerts.yml").read_text()
    names = set(re.findall(r"\bvicibridge_\w+", rules))
    assert names and names <= {metric.name for metric in METRICS}


def test_image_uses_existing_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    containerfile = (ROOT / "bridge" / "Containerfile").read_text()
    for name, value in re.findall(r"(\w+)=(/\S+|[\d.:]+)(?: \\)?$", containerfile, re.MULTILINE):
        monkeypatch.setenv(name, value)
    config = load(None)
    assert (config.http.listen, str(config.spool.path)) == ("0.0.0.0:9273", "/var/lib/vicibridge")
    assert "EXPOSE 9273" in containerfile and "127.0.0.1:9273/healthz" in containerfile


def test_dashboard_uses_existing_metrics(nats_server: NatsServer) -> None:
    dashboard = (ROOT / "bridge" / "grafana" / "vicibridge.json").read_text()
    labels = {metric.name: {*metric.labels, "instance"} for metric in METRICS}

    async def test() -> set[str]:
        async with service(settings(nats_server.url)) as bridge:
            await until(lambda: bridge.web.port)
            return {name for name, _ in await scraped(bridge) if name.startswith("process_")}

    process = run(test())
    for panel in json.loads(dashboard)["panels"]:
        for target in panel["targets"]:
            names = set(re.findall(r"\b(?:vicibridge|process)_\w+", target["expr"]))
            assert names and names <= labels.keys() | process, target["expr"]
            known = set.intersection(*(labels.get(name, {"instance"}) for name in names))
            used = re.findall(r"{{(\w+)}}", target["legendFormat"])
            assert set(used) <= known | set(re.findall(r"by \(([^)]*)\)", target["expr"])), target
    names = set(re.findall(r"\bvicibridge_\w+", dashboard))
    assert names >= {name for name in labels if name.endswith("_total")}


def test_health_distinguishes_process_nats_and_charon(nats_server: NatsServer, tmp_path: Path) -> None:
    async def test() -> None:
        charon = FakeCharon(tmp_path / "charon.vici")
        async with service(settings(nats_server.url, charon.address)) as bridge:
            await until(lambda: "not connected yet" not in str(bridge.reasons()))
            status, text = await fetch(bridge, "/readyz")
            answer = json.loads(text)
            assert status == 503
            assert (answer["ready"], answer["nats"], answer["charon"]) == (False, False, {"gw1": False})
            assert [reason.split(":")[0] for reason in answer["reasons"]] == ["NATS", "gw1"]
            await nats_server.up()
            await until(lambda: bridge.bus.connected and not bridge.gateways[0].state.trouble)
            status, text = await fetch(bridge, "/readyz")
            assert status == 503 and [reason.split(": ")[:2] for reason in json.loads(text)["reasons"]] == [
                ["gw1", "charon"]
            ]
            assert (await fetch(bridge, "/healthz"))[0] == 200
            async with charon:
                await until(lambda: bridge.gateways[0].reader.up)
                status, text = await fetch(bridge, "/readyz")
                well = {"nats": True, "charon": {"gw1": True}, "events": {"gw1": True}, "mirror": {}}
                well |= {"credentials_expire": {}}
                assert (status, json.loads(text)) == (200, {"ready": True, "reasons": [], **well})
                nats_server.kill()
                await until(lambda: not bridge.bus.connected)
                answer = json.loads((await fetch(bridge, "/readyz"))[1])
                assert (answer["nats"], answer["charon"]) == (False, {"gw1": True})
                assert (await scraped(bridge))["vicibridge_nats_up", frozenset()] == 0

    run(test())


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("jetstream: disabled", "gw1: events: JetStream does not respond: it is disabled in this server"),
        (
            "accounts { A: { users: [{user: a, password: b}] } }\nno_auth_user: a",
            "gw1: events: JetStream not enabled for account (JetStream error 10039)",
        ),
    ],
)
def test_ready_means_that_jetstream_accepts_events(
    make_nats_server: Callable[..., NatsServer], tmp_path: Path, more: str, reason: str
) -> None:
    server = make_nats_server(more)

    async def test() -> None:
        await server.up()
        async with (
            FakeCharon(tmp_path / "charon.vici") as charon,
            service(settings(server.url, charon.address)) as bridge,
        ):
            await until(lambda: bridge.gateways[0].reader.up and "not answered yet" not in str(bridge.reasons()))
            status, text = await fetch(bridge, "/readyz")
            answer = json.loads(text)
            assert (status, answer["nats"], answer["events"]) == (503, True, {"gw1": False})
            [sentence] = answer["reasons"]
            assert sentence.startswith(reason) and "None" not in sentence

    run(test())


def test_lag_is_the_age_of_the_oldest_pending_event() -> None:
    counts = Counts()
    lag = Lag(counts)
    lag.sample(0.0)
    assert lag.seconds(0.5) == 0
    for second in range(1, 5000):
        counts.received += 10
        lag.sample(second)
    assert lag.seconds(5000) == 4999
    assert len(lag._samples) <= 1025
    counts.published = counts.received - 1000
    assert 100 <= lag.seconds(5000) <= 110
    counts.drop("full", 1000)
    lag.sample(5000)
    assert lag.seconds(5000) == 0


def logged(capfd: pytest.CaptureFixture[str], level: str, form: str, *calls: Callable[[], None]) -> list[str]:
    before = logging.root.level, logging.root.handlers
    try:
        logging.root.handlers = []
        logsetup.set_up(settings("nats://h", logging={"level": level, "format": form}).logging)
        for call in calls:
            call()
    finally:
        for handler in logging.root.handlers:
            handler.close()
        logging.root.level, logging.root.handlers = before
    return capfd.readouterr().err.splitlines()


def broken() -> None:
    try:
        raise ValueError("no\nway")
    except ValueError:
        logging.getLogger("x").exception("it %s", "broke")


def test_log_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    line, error = logged(
        capfd,
        "info",
        "json",
        lambda: logging.getLogger("vicibridge.bus.supervisor").info('a "%s"\nline', "quoted"),
        broken,
    )
    parsed = json.loads(line)
    assert {**parsed, "time": ""} == {
        "time": "",
        "level": "info",
        "logger": "vicibridge.bus.supervisor",
        "message": 'a "quoted"\nline',
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", parsed["time"])
    assert json.loads(error)["exception"].endswith("ValueError: no\nway")


def test_log_for_the_journal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    lines = logged(capfd, "warning", "text", lambda: logging.getLogger("x").info("not shown"), broken)
    assert lines[0] == "<3>it broke" and all(line.startswith("<3>") for line in lines)


def test_log_limits_repeated_lines(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(logsetup.time, "monotonic", lambda: clock[0])

    def flood() -> None:
        for number in range(1000):
            logging.getLogger("x").warning("event %d is odd", number)
        logging.getLogger("x").warning("something else")
        clock[0] = 11.0
        logging.getLogger("x").warning("event %d is odd", 1000)

    lines = logged(capfd, "info", "text", flood)
    assert len(lines) == 32
    assert lines[30].endswith("something else")
    assert lines[31].endswith("event 1000 is odd (970 similar lines suppressed before)")


@asynccontextmanager
async def systemd(path: Path | str) -> AsyncIterator[Callable[[str], Any]]:
    """Listen as systemd does; yields a function that waits for a message that contains a text."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.setblocking(False)
        ear.bind(str(path).replace("@", "\0"))
        heard: list[str] = []

        async def hear(text: str) -> str:
            while not any(text in message for message in heard):
                heard.append((await asyncio.get_running_loop().sock_recv(ear, 4096)).decode())
            found = next(message for message in heard if text in message)
            heard.remove(found)
            return found

        yield hear


async def line_with(process: asyncio.subprocess.Process, text: str) -> str:
    assert process.stderr
    while True:
        line = (await asyncio.wait_for(process.stderr.readline(), 15)).decode()
        assert line, f"the end came before {text!r}"
        if text in line:
            return line


def test_process_under_systemd(nats_server: NatsServer, tmp_path: Path) -> None:
    """Ready, watchdog, reload, stop; SIGHUP applies the live settings without losing an event."""

    async def test() -> None:
        await nats_server.up()
        config = tmp_path / "bridge.toml"

        async def emit(charon: FakeCharon, count: int) -> None:
            for _ in range(count):
                charon.emit("log", LOG)
                await asyncio.sleep(0)

        async with (
            FakeCharon() as charon,
            observing(nats_server.url) as observer,
            systemd(tmp_path / "notify") as hear,
        ):
            text = (
                f'[nats]\nservers = ["{nats_server.url}"]\npassword = "hunter2"\nuser = "u"\n'
                f'[[gateway]]\nnode = "gw1"\nvici = "{charon.address}"\n'
            )
            config.write_text(text)
            bridge = await start_bridge(config, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="400000")
            try:
                await hear("READY=1")
                await hear("WATCHDOG=1")
                await hear("STATUS=NATS connected, charon up at 1 of 1")
                charon.on("terminate", {"success": "yes"})
                [refused] = await observer.ask("vici.gw1.cmd.terminate", b'{"ike": "x"}')
                assert refused.headers and refused.headers["Nats-Service-Error-Code"] == "403"

                emitting = asyncio.create_task(emit(charon, 2000))
                config.write_text(text + '[commands]\nallow = ["@operate"]\n[log]\nlinger_ms = 1\ncodec = "json"\n')
                bridge.send_signal(signal.SIGHUP)
                assert "MONOTONIC_USEC=" in await hear("RELOADING=1")
                await hear("READY=1")
                assert "applied: log.linger_ms, commands.allow" in await line_with(bridge, "configuration")
                assert "needs a restart: log.codec" in await line_with(bridge, "configuration")
                [done] = await observer.ask("vici.gw1.cmd.terminate", b'{"ike": "x"}')
                assert done.headers and done.headers["Status"] == "200"
                await emitting
                lines = await observer.sees(".log.", 2000)
                assert [envelope["seq"] for _, envelope in lines] == list(range(1, 2001))

                config.write_text("[nats\nhunter2")
                bridge.send_signal(signal.SIGHUP)
                assert "not applied" in (problem := await line_with(bridge, "configuration"))
                assert "invalid TOML" in problem and "hunter2" not in problem
                [done] = await observer.ask("vici.gw1.cmd.terminate", b'{"ike": "x"}')
                assert done.headers and done.headers["Status"] == "200"

                bridge.send_signal(signal.SIGTERM)
                await hear("STOPPING=1")
                assert await asyncio.wait_for(bridge.wait(), 10) == 0
            finally:
                if bridge.returncode is None:
                    bridge.kill()
                    await bridge.wait()

    run(test())


def test_watchdog_and_health_stop_with_the_event_loop(nats_server: NatsServer, tmp_path: Path) -> None:
    async def test() -> None:
        config = tmp_path / "bridge.toml"
        config.write_text(f'[nats]\nservers = ["{nats_server.url}"]\n[[gateway]]\nnode = "gw1"\nvici = "/nowhere"\n')
        address = "@vicibridge-test-" + os.urandom(8).hex()
        async with systemd(address) as hear:
            bridge = await start_bridge(config, NOTIFY_SOCKET=address, WATCHDOG_USEC="200000")
            try:
                await hear("WATCHDOG=1")
                bridge.send_signal(signal.SIGSTOP)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.6):
                        while True:
                            await hear("WATCHDOG=1")
            finally:
                bridge.kill()
                await bridge.wait()

    run(test())


def test_no_notifications_without_systemd(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for variable in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(variable, raising=False)
    assert Systemd().watchdog is None
    Systemd().ready()
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    Systemd().ready()
    assert "cannot notify systemd" in caplog.text
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert Systemd().watchdog == 3
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Systemd().watchdog is None


def test_address_in_use_is_reported_before_the_start(tmp_path: Path) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            listen = f"127.0.0.1:{taken.getsockname()[1]}"
            bridge = await start_bridge(tmp_path / "none", VICIBRIDGE_HTTP__LISTEN=listen)
            assert bridge.stderr
            assert "No such file" in (await bridge.stderr.read()).decode()
            config = tmp_path / "bridge.toml"
            config.write_text('[nats]\nservers = ["nats://127.0.0.1:1"]')
            begin = time.monotonic()
            bridge = await start_bridge(config, VICIBRIDGE_HTTP__LISTEN=listen)
            assert bridge.stderr
            text = (await bridge.stderr.read()).decode()
            assert f"Error: http.listen: {listen}: " in text and "in use" in text and "Traceback" not in text
            assert await bridge.wait() == 1
            assert time.monotonic() - begin < 10

    run(test())


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK", b'{"status": "ok"}'),
        (b"GET /healthz?a=b HTTP/1.0\r\n\r\n", b"200 OK", b'{"status": "ok"}'),
        (b"HEAD /healthz HTTP/1.1\r\n\r\n", b"200 OK", b""),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found", b"404 Not Found\n"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405 Method Not Allowed", b"405 Method Not Allowed\n"),
        (b"\x16\x03\x01\r\n\r\n", b"400 Bad Request", b"400 Bad Request\n"),
        (
            b"GET / HTTP/1.1\r\nX: " + b"x" * 20000 + b"\r\n\r\n",
            b"431 Request Header Fields Too Large",
            b"431 Request Header Fields Too Large\n",
        ),
    ],
)
def test_http_requests(request_: bytes, status: bytes, body: bytes) -> None:
    async def test() -> None:
        async with service(settings("nats://127.0.0.1:1")) as bridge:
            await until(lambda: bridge.web.port)
            head, _, rest = (await exchanged(bridge, request_)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status + b"\r\n") and rest == body
            length = 16 if b"/healthz" in request_ else len(body)
            assert f"Content-Length: {length}\r\n".encode() in head

    run(test())


def test_incomplete_request_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_LONGEST", 0.05)

    async def test() -> None:
        async with service(settings("nats://127.0.0.1:1")) as bridge:
            await until(lambda: bridge.web.port)
            with suppress(ConnectionResetError):
                assert await exchanged(bridge, b"GET /healthz HTTP/1.1\r\n") == b""

    run(test())


def test_metrics_in_the_format_that_is_asked_for() -> None:
    async def test() -> None:
        async with service(settings("nats://127.0.0.1:1")) as bridge:
            await until(lambda: bridge.web.port)
            accept = b"Accept: application/openmetrics-text; version=1.0.0"
            assert (await exchanged(bridge, b"GET /metrics HTTP/1.1\r\n\r\n")).count(b"# EOF") == 0
            response = await exchanged(bridge, b"GET /metrics HTTP/1.1\r\n" + accept + b"\r\n\r\n")
            assert b"Content-Type: application/openmetrics-text;" in response and response.endswith(b"# EOF\n")

    run(test())


@pytest.mark.parametrize("request_", [b"GET /metrics HTTP/1.1\r\n\r\n", b"GET /metr"])
def test_client_that_hangs_does_not_delay_the_stop(monkeypatch: pytest.MonkeyPatch, request_: bytes) -> None:
    """Neither one that reads no response, nor one that sends no whole request."""
    large = b"x" * 64_000_000
    monkeypatch.setattr(http, "choose_encoder", lambda accept: (lambda registry: large, "text/plain"))

    async def test() -> None:
        async with service(settings("nats://127.0.0.1:1")) as bridge:
            await until(lambda: bridge.web.port)
            with socket.create_connection(("127.0.0.1", bridge.web.port)) as client:
                client.sendall(request_)
                await until(lambda: bridge.web._open)
                loop = asyncio.get_running_loop()
                begin = loop.time()
                await bridge.web.stop()
                assert loop.time() - begin < 5 and not bridge.web._open

    run(test())


def test_unread_log_blocks_nothing(tmp_path: Path) -> None:
    """charon buffers unread events, so the bridge keeps reading while its own log is blocked."""
    config = tmp_path / "bridge.toml"

    async def test() -> None:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        os.set_blocking(writing, True)
        async with FakeCharon() as charon:
            config.write_text(
                f'[nats]\nservers = ["nats://127.0.0.1:1"]\n[[gateway]]\nnode = "gw1"\nvici = "{charon.address}"\n'
            )
            bridge = await start_bridge(config, stderr=writing, VICIBRIDGE_SPOOL__PATH=str(tmp_path))
            try:
                await charon.registered("log")
                bridge.terminate()
                assert await asyncio.wait_for(bridge.wait(), 15) == 0
            finally:
                if bridge.returncode is None:
                    bridge.kill()
                    await bridge.wait()
                os.close(reading)
                os.close(writing)

    run(test())
