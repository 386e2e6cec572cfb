"""Metrics: their values after known traffic, their names, and the rules and dashboard that use them."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from harness import NatsServer, observing, run, service, settings, until, up
from prometheus_client.parser import text_string_to_metric_families
from test_http import exchanged, fetch
from vicibridge.config.model import HttpConfig
from vicibridge.ops.metrics import METRICS
from vicibridge.service import Service

from vicifast.testing import FakeCharon

ROOT = Path(__file__).parents[2]
LOG = {"group": "IKE", "level": "1", "thread": "3", "msg": "hello"}
SA = {"uniqueid": "7", "state": "ESTABLISHED"}
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(autouse=True)
def _http(_no_http: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VICIBRIDGE_HTTP__LISTEN", "127.0.0.1:0")


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
            published = gateway.backlog.counts.published  # the audit of the last command may follow
            values = await scraped(bridge)
            state = {"node": "gw1", "class": "state"}
            log = {"node": "gw1", "class": "log"}
            assert value(values, "vicibridge_received_total", **log) == 13
            assert value(values, "vicibridge_published_total", **log) == 10
            assert value(values, "vicibridge_dropped_total", **log, cause="the bridge fell behind charon") == 3
            assert value(values, "vicibridge_in_flight", **log) == 0
            assert value(values, "vicibridge_published_bytes_total", **log) > 500
            assert 3 <= published <= value(values, "vicibridge_published_total", **state)
            assert value(values, "vicibridge_published_total", **state) <= gateway.backlog.counts.published
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


def test_metrics_in_the_requested_format() -> None:
    async def test() -> None:
        async with service(settings("nats://127.0.0.1:1")) as bridge:
            await until(lambda: bridge.web.port)
            accept = b"Accept: application/openmetrics-text; version=1.0.0"
            assert (await exchanged(bridge, b"GET /metrics HTTP/1.1\r\n\r\n")).count(b"# EOF") == 0
            response = await exchanged(bridge, b"GET /metrics HTTP/1.1\r\n" + accept + b"\r\n\r\n")
            assert b"Content-Type: application/openmetrics-text;" in response and response.endswith(b"# EOF\n")

    run(test())


def test_alert_rules_use_existing_metrics() -> None:
    rules = (ROOT / "bridge" / "grafana" / "alerts.yml").read_text()
    names = set(re.findall(r"\bvicibridge_\w+", rules))
    assert names and names <= {metric.name for metric in METRICS}


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
