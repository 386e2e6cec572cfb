"""`Fleet`: the entry point for programs."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Self, overload

from nats.aio.client import Client

from vicifast import _wire
from vicifast.errors import ConnectionClosed
from vicifast.methods import DEFAULT
from vicifast.protocol import Section, Values

from ..bus.connection import Disconnected, NatsConnection
from ..bus.supervisor import ConnectionSupervisor, Refused
from ..contract.bucket_values import CONN, NODE, SA, ConnValue, NodeValue, SaValue
from ..contract.nats_settings import NatsSettings, hide
from ..contract.subjects import escape, filters
from .calls import Calls
from .discovery import Inventory, Node, alive, take_inventory
from .events import LIMIT, Events, Kept, Start
from .everyone import Everyone
from .session import BusSession
from .source import Source
from .watch import Watch

_ROUNDS = 2  # attempts per server for the first connection
_CLOSE_TIMEOUT = 2.0


class Fleet:
    """The gateways of a NATS system: their commands, events and state.

    `nats` is the address of a server, several addresses, or `NatsSettings` with credentials and TLS. `prefix` is the
    bridges' subject prefix, by default that of `nats` or `vici`. `timeout` is the default of the sessions, in seconds.
    `user` is recorded as the requester in the bridges' audit.

    A lost connection is restored indefinitely, and credentials are read from their files again each time; the logger
    `vicibridge` and `trouble` say why that fails. Subscriptions and watches resume automatically.
    """

    def __init__(
        self,
        nats: str | Sequence[str] | NatsSettings | None = None,
        *,
        prefix: str | None = None,
        timeout: float | None = 30.0,
        user: str | None = None,
    ) -> None:
        self._settings = _settings(nats)
        self.prefix = prefix or self._settings.prefix
        self.timeout = timeout
        self._user = user
        self._bus: ConnectionSupervisor | None = None
        self._running: asyncio.Task[None] | None = None
        self._calls: Calls | None = None
        self._sources: weakref.WeakSet[Source] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def client(self) -> Client:
        """The current nats-py client; a reconnect replaces it. Raises `ConnectionClosed` if not connected."""
        with self._connection() as connection:
            return connection.client

    @property
    def trouble(self) -> str | None:
        """Why NATS is not connected; None if it is."""
        if self._bus is None:
            return "the fleet is not connected"
        return None if self._bus.connected else f"NATS: not connected: {self._bus.reason}"

    async def connect(self) -> Self:
        """Connect. Raises `ConnectionClosed` if no server accepts the connection."""
        if self._bus is None:
            bus = ConnectionSupervisor(self._settings, "vicibridge client", self._denied)
            try:
                await bus.connect(_ROUNDS)
            except Refused as refused:
                where = ", ".join(map(hide, self._settings.servers))
                raise ConnectionClosed(f"NATS: cannot connect to {where}: {refused}") from None
            self._bus, self._running = bus, asyncio.create_task(bus.run())
        return self

    async def close(self) -> None:
        """Close the connection."""
        bus, self._bus = self._bus, None
        calls, self._calls = self._calls, None
        if calls is not None:
            await calls.close()
        for source in list(self._sources):
            await source.aclose()
        if bus is not None and self._running is not None:
            await bus.close(_CLOSE_TIMEOUT)
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    @overload
    def node(
        self, name: str, *, timeout: float | None = ..., values: type[str] | type[bytes] = ...
    ) -> BusSession[Section]: ...

    @overload
    def node(
        self, name: str, *, timeout: float | None = ..., values: type[_wire.Message]
    ) -> BusSession[_wire.Message]: ...

    def node(self, name: str, *, timeout: float | None = DEFAULT, values: Values = str) -> BusSession[Any]:
        """Return the commands of one gateway; `timeout` and `values` as in `AsyncSession`."""
        return BusSession(self._require, self.prefix, name, self._limit(timeout), values)

    def everyone(self, *, timeout: float | None = DEFAULT, stall: float = 2.0, values: Values = str) -> Everyone[Any]:
        """Return the commands of all gateways: each returns `Answers`, which documents `timeout` and `stall`."""
        return Everyone(self._require, self.prefix, self.present, self._limit(timeout), stall, values)

    def watch_sas(self, node: str | None = None, ike: str | None = None) -> Watch[SaValue]:
        """Watch the IKE_SAs of a node, of a connection, or of the fleet."""
        return self._watch(SA, ">" if node is ike is None else f"{_token(node)}.{_token(ike)}.*")

    def watch_conns(self, node: str | None = None) -> Watch[ConnValue]:
        """Watch the connections, up or down, of a node or of the fleet."""
        return self._watch(CONN, f"{_token(node)}.*")

    def watch_nodes(self) -> Watch[NodeValue]:
        """Watch the running bridges."""
        return self._watch(NODE, "*")

    async def nodes(self) -> list[Node]:
        """Return the gateways whose bridge answers or that are in the mirror, sorted by name."""
        return (await self.inventory()).nodes

    async def inventory(self) -> Inventory:
        """Return `nodes()`, and why values of these are unknown, invalid or outdated."""
        with self._connection() as connection:
            return await take_inventory(self._require(), connection, self._settings.stream)

    async def present(self) -> set[str]:
        """Return the names of `nodes()` that are alive."""
        with self._connection() as connection:
            return await alive(self._require(), connection)

    def subscribe(
        self,
        *,
        nodes: Sequence[str] = (),
        events: Sequence[str] = (),
        ike: str | None = None,
        log: bool = False,
        queue: str = "",
        durable: str | None = None,
        start: Start | None = None,
        limit: int = LIMIT,
    ) -> Events:
        """Return the events of all gateways, or of `nodes`, as they arrive; see `Events`.

        `events` are names of charon's or the bridges' events, or kinds such as `ike-updown.failed` and
        `alert.cert-expired`; empty for the whole state class, that is, all but `log`. `ike` selects the events of one
        connection. `log` adds the log. Programs with the same `queue` share the messages.

        With `durable`, the name of a consumer, or `start`, events of the state class are read from JetStream: from a
        sequence number of its stream, a time, the `first`, or only `new` ones. A durable consumer resumes at its
        position; `start` (default `first`) applies only when it is created, and its `queue` must have the same name.
        """
        kept = None
        if durable is not None or start is not None:
            if log or "log" in events:
                raise ValueError("JetStream does not store the log: subscribe to it without durable and start")
            if queue and queue != durable:
                raise ValueError("queue must equal durable, the name of the consumer")
            kept = Kept(self._settings.stream, durable, "first" if start is None else start)
        subjects = filters(self.prefix, nodes, events, ike)
        if log and "log" not in events:
            subjects += filters(self.prefix, nodes, ["log"])
        opened = Events(self._required, self.prefix, subjects, queue, kept, limit)
        self._sources.add(opened)
        return opened

    def _watch(self, bucket: str, keys: str) -> Watch[Any]:
        watch: Watch[Any] = Watch(self._required, bucket, keys)
        self._sources.add(watch)
        return watch

    def _limit(self, timeout: float | None) -> float | None:
        return self.timeout if timeout is DEFAULT else timeout

    def _require(self) -> Calls:
        if self._calls is None:
            self._calls = Calls(self._required, self._user)
        return self._calls

    @property
    def _required(self) -> ConnectionSupervisor:
        if self._bus is None:
            raise ConnectionClosed("the fleet is not connected")
        return self._bus

    @contextlib.contextmanager
    def _connection(self) -> Iterator[NatsConnection]:
        """Yield the current connection; raises `ConnectionClosed` if there is none or it is lost."""
        try:
            yield self._required.current
        except Disconnected as lost:
            raise ConnectionClosed(f"NATS: not connected: {lost}") from None

    def _denied(self, error: str) -> bool:
        handled = self._calls is not None and self._calls.denied(error)
        starting = [source.denied(error, self._settings.inbox_prefix) for source in list(self._sources)]
        return handled or any(starting)


def _settings(given: str | Sequence[str] | NatsSettings | None) -> NatsSettings:
    match given:
        case None:
            return NatsSettings()
        case NatsSettings():
            return given
        case str():
            return NatsSettings(servers=(given,))
    return NatsSettings(servers=given)


def _token(name: str | None) -> str:
    return "*" if name is None else escape(name)
