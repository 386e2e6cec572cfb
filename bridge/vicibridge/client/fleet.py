"""The way into the bus for programs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Sequence
from typing import Any, Self, overload

import nats.errors
from nats.aio.client import Client

from vicifast import _wire
from vicifast.errors import ConnectionClosed
from vicifast.methods import DEFAULT
from vicifast.protocol import Section, Values

from ..config import Nats, hide
from ..link import reason_of
from ..subjects import escape, filters
from ..values import CONN, NODE, SA, ConnValue, NodeValue, SaValue
from .calls import Calls
from .discovery import Node, take_inventory
from .events import LIMIT, Events, Kept, Start
from .everyone import Everyone
from .session import BusSession
from .watch import Watch

_logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT = 5
_TRIES = 2  # of each server, before the first connection
_CLOSE_TIMEOUT = 2.0
_PING = 5  # seconds; a server that leaves two of them unanswered is given up


class Fleet:
    """Gateways behind bridges, by way of a NATS system: their commands, events and state.

    `nats` is the address of a server, several of them, a `vicibridge.config.Nats` with credentials and TLS, or a client
    of nats-py, connected, which stays the caller's. `prefix` is the bridges' own, by default what `nats` has or `vici`.
    `timeout` is the sessions' default, in seconds. `user` is who the bridges' audit shall say has asked.

    A connection of its own is taken up again whenever it breaks.
    """

    def __init__(
        self,
        nats: str | Sequence[str] | Nats | Client | None = None,
        *,
        prefix: str | None = None,
        timeout: float | None = 30.0,
        user: str | None = None,
    ) -> None:
        self._given = nats if isinstance(nats, Client) else None
        self._settings = _settings(nats)
        self.prefix = prefix or self._settings.prefix
        self.timeout = timeout
        self._user = user
        self._client: Client | None = self._given
        self._calls: Calls | None = None
        self._trouble: Exception | None = None
        self._events: weakref.WeakSet[Events | Watch[Any]] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def client(self) -> Client:
        """The client of nats-py; `ConnectionClosed` when there is none."""
        if self._client is None:
            raise ConnectionClosed("the fleet is not connected")
        return self._client

    async def connect(self) -> Self:
        """Connect, unless a client was given. Raises `ConnectionClosed` when no server takes us."""
        if self._client is None:
            client = Client()
            try:
                await client.connect(
                    servers=self._settings.urls,
                    name="vicibridge client",
                    error_cb=self._on_error,
                    connect_timeout=_CONNECT_TIMEOUT,
                    max_reconnect_attempts=_TRIES - 1,
                    reconnect_time_wait=0,
                    ping_interval=_PING,
                    max_outstanding_pings=2,
                    **self._settings.options(),
                )
            except (nats.errors.Error, OSError, TimeoutError) as error:
                where = ", ".join(map(hide, self._settings.urls))
                raise ConnectionClosed(
                    f"NATS: cannot connect to {where}: {reason_of(self._trouble or error)}"
                ) from None
            client.options["max_reconnect_attempts"] = -1
            client.options["reconnect_time_wait"] = 1
            self._client = client
        return self

    async def close(self) -> None:
        """Close the connection, unless its client was given."""
        client, self._client = self._client, self._given
        calls, self._calls = self._calls, None
        if calls is not None:
            await calls.close()
        for events in list(self._events):
            await events.aclose()
        if client is not None and client is not self._given:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                await asyncio.wait_for(client.close(), _CLOSE_TIMEOUT)

    @overload
    def node(
        self, name: str, *, timeout: float | None = ..., values: type[str] | type[bytes] = ...
    ) -> BusSession[Section]: ...

    @overload
    def node(
        self, name: str, *, timeout: float | None = ..., values: type[_wire.Message]
    ) -> BusSession[_wire.Message]: ...

    def node(self, name: str, *, timeout: float | None = DEFAULT, values: Values = str) -> BusSession[Any]:
        """Return the commands of one gateway; `timeout` and `values` are as with `AsyncSession`."""
        return BusSession(self._require, self.prefix, name, self._limit(timeout), values)

    def everyone(self, *, timeout: float | None = DEFAULT, stall: float = 2.0, values: Values = str) -> Everyone[Any]:
        """Return the commands of all gateways at once: each gives `Answers`, which explain `timeout` and `stall`."""
        return Everyone(self._require, self.prefix, self.present, self._limit(timeout), stall, values)

    def watch_sas(self, node: str | None = None, ike: str | None = None) -> Watch[SaValue]:
        """Return the IKE_SAs that are up, and what becomes of them: of a node, of a connection, or all."""
        return self._watch(SA, ">" if node is ike is None else f"{_token(node)}.{_token(ike)}.*")

    def watch_conns(self, node: str | None = None) -> Watch[ConnValue]:
        """Return the connections, up or down, and what becomes of them."""
        return self._watch(CONN, f"{_token(node)}.*")

    def watch_nodes(self) -> Watch[NodeValue]:
        """Return the bridges that run, and what becomes of them."""
        return self._watch(NODE, "*")

    async def nodes(self) -> list[Node]:
        """Return the gateways whose bridges answer, or are present in the mirror, sorted by name."""
        return await take_inventory(self._require(), self.watch_nodes())

    async def present(self) -> set[str]:
        """Return the names of `nodes()` that are alive."""
        return {node.name for node in await self.nodes() if node.alive}

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
        """Return the events of all gateways, or of `nodes`, as they come; see `Events`.

        `events` are names, of charon's events and the bridges' own, or one kind of an event, as `ike-updown.failed` and
        `alert.cert-expired` are; none means all but `log`, all the state class. `ike` leaves the events of one
        connection. `log` adds the log to all that. Of the programs in one `queue` each gets a part of the messages.

        With `durable`, the name of a consumer, or `start`, events of the state class are read from JetStream: from a
        sequence number of its stream, a time, the `first`, or those that are `new`. A durable consumer goes on where
        it was, and `start` (by default `first`) counts only when it is new; its `queue` must be of the same name.
        """
        kept = None
        if durable is not None or start is not None:
            if log or "log" in events:
                raise ValueError("JetStream does not keep the log: subscribe to it without durable and start")
            if queue and queue != durable:
                raise ValueError("the queue of a durable consumer has the consumer's name")
            kept = Kept(self._settings.stream, durable, "first" if start is None else start)
        subjects = filters(self.prefix, nodes, events, ike)
        if log:
            subjects += filters(self.prefix, nodes, ["log"])
        opened = Events(self.client, subjects, queue, kept, limit)
        self._events.add(opened)
        return opened

    def _watch(self, bucket: str, keys: str) -> Watch[Any]:
        watch: Watch[Any] = Watch(self.client, bucket, keys)
        self._events.add(watch)
        return watch

    def _limit(self, timeout: float | None) -> float | None:
        return self.timeout if timeout is DEFAULT else timeout

    def _require(self) -> Calls:
        if self._calls is None:
            self._calls = Calls(self.client, self._user)
        return self._calls

    async def _on_error(self, error: Exception) -> None:
        self._trouble = error
        text = str(error).lower()
        if "permissions violation" in text and not (self._calls and self._calls.denied(text)):
            # What waits for an answer cannot know why there is none.
            _logger.warning("NATS: %s", text.removeprefix("nats: "))


def _settings(given: object) -> Nats:
    match given:
        case Nats():
            return given
        case str():
            return Nats(servers=[given])
        case Sequence():
            return Nats(servers=list(given))
    return Nats()


def _token(name: str | None) -> str:
    return "*" if name is None else escape(name)
