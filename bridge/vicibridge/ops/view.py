"""The attributes of the service that metrics and HTTP read, so that they need not import it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ..config.model import Config
from ..events.backlog import Backlog
from ..events.log_publisher import LogPublisher
from ..events.losses import Counts, Tally
from ..mirror.worker import MirrorWorker
from .watchdog import Lag


class Pipeline(NamedTuple):
    """The events of one node and class in transit to NATS."""

    node: str
    kind: str
    events: Backlog | LogPublisher
    lag: Lag

    @property
    def counts(self) -> Counts:
        """Events received, published and dropped."""
        return self.events.counts


class BusView(Protocol):
    """The connection to NATS."""

    @property
    def connected(self) -> bool: ...
    @property
    def connects(self) -> int: ...
    @property
    def errors(self) -> int: ...


class ReaderView(Protocol):
    """The connection to charon, and the events received, by name and kind."""

    @property
    def up(self) -> bool: ...
    @property
    def connects(self) -> int: ...
    @property
    def events(self) -> Mapping[tuple[str, str], int]: ...


class StateView(Protocol):
    """The publisher of state events; `trouble` says why JetStream does not accept them."""

    @property
    def trouble(self) -> str: ...


class CommandsView(Protocol):
    """The requests of one node, counted for each command."""

    @property
    def stats(self) -> Mapping[str, Tally]: ...


class GatewayView(Protocol):
    """One node."""

    @property
    def node(self) -> str: ...
    @property
    def reader(self) -> ReaderView: ...
    @property
    def backlog(self) -> Backlog: ...
    @property
    def state(self) -> StateView: ...
    @property
    def log(self) -> LogPublisher: ...
    @property
    def mirroring(self) -> MirrorWorker | None: ...
    @property
    def commands(self) -> CommandsView: ...


class WatchdogView(Protocol):
    """The heartbeat; `delay` is how late the event loop was, in seconds."""

    @property
    def delay(self) -> float: ...


class ServiceView(Protocol):
    """The whole service."""

    @property
    def settings(self) -> Config: ...
    @property
    def bus(self) -> BusView: ...
    @property
    def gateways(self) -> Sequence[GatewayView]: ...
    @property
    def pipelines(self) -> Sequence[Pipeline]: ...
    @property
    def watchdog(self) -> WatchdogView: ...
    def reasons(self) -> list[str]: ...
    def expires(self) -> Mapping[str, float]: ...
