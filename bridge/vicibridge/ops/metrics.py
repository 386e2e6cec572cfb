"""Prometheus metrics: one table. Values are read from the objects' counters at each scrape and cost nothing otherwise.

Label values come from the code or the bridge's configuration, except `connection` and `child`: those are names from
charon's configuration, never from a peer, and `http.max_tunnels` limits their number.
"""

from __future__ import annotations

import asyncio
import logging
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from vicifast.version import VERSION

from ..contract.bucket_values import BUCKETS
from ..events.losses import Counts
from ..mirror.buckets import Buckets
from ..mirror.model import Conn
from .view import ServiceView

_logger = logging.getLogger(__name__)

_Sample = tuple[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its full name, help, label names, and the function that reads its values from the service."""

    name: str
    help: str
    labels: tuple[str, ...]
    read: Callable[[ServiceView], Iterable[_Sample]]

    @property
    def kind(self) -> str:
        """`counter` if the name ends with _total, else `gauge`."""
        return "counter" if self.name.endswith("_total") else "gauge"


def _counts(value: Callable[[Counts], float]) -> Callable[[ServiceView], Iterator[_Sample]]:
    """Read a value for each node and class."""

    def read(service: ServiceView) -> Iterator[_Sample]:
        for pipeline in service.pipelines:
            yield (pipeline.node, pipeline.kind), value(pipeline.counts)

    return read


def _dropped(service: ServiceView) -> Iterator[_Sample]:
    for pipeline in service.pipelines:
        for cause, count in pipeline.counts.causes.items():
            yield (pipeline.node, pipeline.kind, cause), count


def _in_flight(service: ServiceView) -> Iterator[_Sample]:
    for pipeline in service.pipelines:
        yield (pipeline.node, pipeline.kind), pipeline.events.in_flight


def _lag(service: ServiceView) -> Iterator[_Sample]:
    now = asyncio.get_running_loop().time()
    for pipeline in service.pipelines:
        yield (pipeline.node, pipeline.kind), pipeline.lag.seconds(now)


def _events(service: ServiceView) -> Iterator[_Sample]:
    for gateway in service.gateways:
        yield (gateway.node, "log", ""), gateway.log.counts.received
        for (event, kind), count in gateway.reader.events.items():
            yield (gateway.node, event, kind), count


def _commands(service: ServiceView) -> Iterator[_Sample]:
    for gateway in service.gateways:
        for command, tally in gateway.commands.stats.items():
            for code, count in tally.codes.items():
                yield (gateway.node, command or "unknown", str(code)), count


def _command_seconds(service: ServiceView) -> Iterator[_Sample]:
    for gateway in service.gateways:
        for command, tally in gateway.commands.stats.items():
            yield (gateway.node, command or "unknown"), tally.nanoseconds / 1e9


def _mirror(value: Callable[[Buckets], Mapping[str, int]]) -> Callable[[ServiceView], Iterator[_Sample]]:
    """Read a value for each node and bucket."""

    def read(service: ServiceView) -> Iterator[_Sample]:
        for gateway in service.gateways:
            if gateway.mirroring:
                values = value(gateway.mirroring.buckets)
                for bucket in BUCKETS:
                    yield (gateway.node, bucket), values[bucket]

    return read


def _tunnels(service: ServiceView) -> Iterator[tuple[str, Conn]]:
    """Yield the configured connections with their nodes, up to the limit."""
    room = service.settings.http.max_tunnels
    for gateway in service.gateways:
        for conn in gateway.mirroring.mirror.conns.values() if gateway.mirroring else ():
            if conn.configured:
                room -= 1 + len(conn.configures)
                if room < 0:
                    return
                yield gateway.node, conn


def _text(name: str) -> str:
    """Return a name as a label value, which must be UTF-8: a bucket can hold other bytes from another writer."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _connection_up(service: ServiceView) -> Iterator[_Sample]:
    for node, conn in _tunnels(service):
        yield (node, _text(conn.name)), conn.up


def _connection_changed(service: ServiceView) -> Iterator[_Sample]:
    for node, conn in _tunnels(service):
        yield (node, _text(conn.name)), conn.changed / 1e9


def _child_up(service: ServiceView) -> Iterator[_Sample]:
    for node, conn in _tunnels(service):
        for name in conn.configures:
            yield (node, _text(conn.name), _text(name)), name in conn.children


def _left_out(service: ServiceView) -> Iterator[_Sample]:
    shown = Counter(node for node, _ in _tunnels(service))
    for gateway in service.gateways:
        if gateway.mirroring:
            configured = sum(1 for conn in gateway.mirroring.mirror.conns.values() if conn.configured)
            yield (gateway.node,), configured - shown[gateway.node]


def _ambiguous(service: ServiceView) -> Iterator[_Sample]:
    for gateway in service.gateways:
        if gateway.mirroring:
            yield (gateway.node,), sum(gateway.mirroring.mirror.ambiguous.values())


def _build(service: ServiceView) -> Iterator[_Sample]:
    yield (VERSION, platform.python_version(), version("nats-py")), 1


METRICS = (
    Metric(
        "vicibridge_received_total",
        "Events received from charon and events of the bridge.",
        ("node", "class"),
        _counts(lambda c: c.received),
    ),
    Metric(
        "vicibridge_published_total", "Events acknowledged by NATS.", ("node", "class"), _counts(lambda c: c.published)
    ),
    Metric("vicibridge_dropped_total", "Lost events, by cause.", ("node", "class", "cause"), _dropped),
    Metric("vicibridge_in_flight", "Events in memory that NATS has not acknowledged.", ("node", "class"), _in_flight),
    Metric(
        "vicibridge_spooled",
        "Events in the spool that NATS has not acknowledged.",
        ("node",),
        lambda service: [((gateway.node,), gateway.backlog.spooled) for gateway in service.gateways],
    ),
    Metric(
        "vicibridge_spool_up",
        "1 while the spool works; 0 while pending events are in memory only.",
        ("node",),
        lambda service: [((gateway.node,), not gateway.backlog.spool_trouble) for gateway in service.gateways],
    ),
    Metric("vicibridge_lag_seconds", "Age of the oldest pending event.", ("node", "class"), _lag),
    Metric(
        "vicibridge_published_bytes_total",
        "Payload acknowledged by NATS, in bytes.",
        ("node", "class"),
        _counts(lambda c: c.bytes),
    ),
    Metric(
        "vicibridge_vici_events_total",
        "Events from charon, by name and kind: up, down or failed, or the type of an alert.",
        ("node", "event", "kind"),
        _events,
    ),
    Metric(
        "vicibridge_charon_up",
        "1 while charon is connected and its events are registered.",
        ("node",),
        lambda service: [((gateway.node,), gateway.reader.up) for gateway in service.gateways],
    ),
    Metric(
        "vicibridge_charon_connects_total",
        "Successful connections to charon.",
        ("node",),
        lambda service: [((gateway.node,), gateway.reader.connects) for gateway in service.gateways],
    ),
    Metric(
        "vicibridge_mirror_keys",
        "Keys acknowledged by the buckets of the mirror.",
        ("node", "bucket"),
        _mirror(lambda buckets: buckets.keys()),
    ),
    Metric(
        "vicibridge_mirror_complete",
        "1 while the buckets of the mirror accept every key.",
        ("node",),
        lambda service: [
            ((gateway.node,), gateway.mirroring.buckets.complete) for gateway in service.gateways if gateway.mirroring
        ],
    ),
    Metric(
        "vicibridge_mirror_unwritten",
        "Keys that a bucket refuses, or that are pending until it accepts writes.",
        ("node", "bucket"),
        _mirror(lambda buckets: buckets.unwritten()),
    ),
    Metric(
        "vicibridge_mirror_refused_total",
        "Writes to the mirror that JetStream refused or did not acknowledge in time.",
        ("node", "bucket"),
        _mirror(lambda buckets: buckets.refusals),
    ),
    Metric(
        "vicibridge_connection_up",
        "1 while a configured connection has an IKE_SA, or one of its children a CHILD_SA; last known value while "
        "charon is not connected.",
        ("node", "connection"),
        _connection_up,
    ),
    Metric(
        "vicibridge_connection_changed_timestamp_seconds",
        "Last time the bridge saw the connection come up or go down.",
        ("node", "connection"),
        _connection_changed,
    ),
    Metric(
        "vicibridge_child_up",
        "1 while a configured child has a CHILD_SA.",
        ("node", "connection", "child"),
        _child_up,
    ),
    Metric(
        "vicibridge_connections_left_out",
        "Configured connections without metrics because http.max_tunnels is reached.",
        ("node",),
        _left_out,
    ),
    Metric(
        "vicibridge_child_sas_ambiguous",
        "CHILD_SAs whose name is configured by several connections, but not by that of their IKE_SA: charon does not "
        "report which of them is up.",
        ("node",),
        _ambiguous,
    ),
    Metric("vicibridge_nats_up", "1 while NATS is connected.", (), lambda service: [((), service.bus.connected)]),
    Metric(
        "vicibridge_nats_credential_expiration_timestamp_seconds",
        "Expiry of the NATS credentials, in seconds since the epoch, by their key in [nats].",
        ("kind",),
        lambda service: [((kind,), time) for kind, time in service.expires().items()],
    ),
    Metric(
        "vicibridge_nats_connects_total",
        "Successful connections to NATS.",
        (),
        lambda service: [((), service.bus.connects)],
    ),
    Metric(
        "vicibridge_nats_errors_total",
        "Errors that NATS reported while connected, such as missing permissions.",
        (),
        lambda service: [((), service.bus.errors)],
    ),
    Metric(
        "vicibridge_commands_total",
        "Command requests, by result code; 200 is success.",
        ("node", "command", "code"),
        _commands,
    ),
    Metric(
        "vicibridge_command_seconds_total",
        "Total duration of command requests.",
        ("node", "command"),
        _command_seconds,
    ),
    Metric(
        "vicibridge_loop_delay_seconds",
        "Delay of the event loop at the last heartbeat.",
        (),
        lambda service: [((), service.watchdog.delay)],
    ),
    Metric(
        "vicibridge_build_info",
        "1; versions of the bridge, Python and nats-py.",
        ("version", "python", "nats_py"),
        _build,
    ),
)


class _FromService(Collector):
    def __init__(self, service: ServiceView) -> None:
        self._service = service
        self._reported = False

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        self._report(self._service)
        for metric in METRICS:
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(metric.name, metric.help, labels=metric.labels)
            for labels, value in metric.read(self._service):
                family.add_metric(labels, value)
            yield family

    def _report(self, service: ServiceView) -> None:
        """Log once that connections are left out."""
        if not self._reported and (count := sum(count for _, count in _left_out(service))):
            self._reported = True
            text = "metrics: %d connections are left out, as http.max_tunnels is %d"
            _logger.warning(text, count, service.settings.http.max_tunnels)


def registry(service: ServiceView) -> CollectorRegistry:
    """Return a registry of `METRICS` and Prometheus's process metrics."""
    registry = CollectorRegistry()
    registry.register(_FromService(service))
    ProcessCollector(registry=registry)
    return registry
