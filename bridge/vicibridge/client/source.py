"""Base of subscriptions and watches: they are set up again after each reconnect."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Self

import nats.errors
import nats.js.errors
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo

from vicifast._wire import MAX_SUBJECTS, Received
from vicifast.errors import ConnectionClosed, ViciError

from ..bus.connection import Disconnected, NatsConnection, reason_of
from ..bus.supervisor import ConnectionSupervisor
from ..contract import names
from .errors import Denied, JetStreamError

_logger = logging.getLogger(__name__)

_RETRY = 1.0  # seconds
_CONNECTION_TIMEOUT = 5.0  # seconds to wait for a connection at the start
_HEARTBEAT = 1.0  # seconds; JetStream forgets ordered consumers when it restarts
_SILENCE = 4 * _HEARTBEAT
_INACTIVE = 2.0  # seconds after which JetStream deletes an unused consumer: each connection creates its own
ACK = "$JS.ACK."
"""The beginning of the reply subject of a message of JetStream."""


class Source:
    """Reads from `start` to `aclose`, across reconnects; `_serve` reads on one connection."""

    def __init__(self, bus: ConnectionSupervisor, name: str) -> None:
        self.wake: Callable[[], None] | None = None
        self._bus = bus
        self._name = name  # in errors
        self._stream = ""  # the stream of JetStream that is read
        self._error: ViciError | None = None
        self._begun: asyncio.Future[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._reported = ""  # the last error in the log

    async def start(self) -> Self:
        """Begin to read. Raises `JetStreamError`, `Denied` without permission, `ConnectionClosed` without NATS."""
        try:
            async with asyncio.timeout(_CONNECTION_TIMEOUT):
                await self._bus.connection()
        except TimeoutError:
            raise ConnectionClosed(f"NATS: not connected: {self._bus.reason}") from None
        self._begun = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._bus.serve(self._read))
        try:
            await self._begun
        except BaseException:
            await self.aclose()
            raise
        return self

    async def _read(self, connection: NatsConnection) -> None:
        """Read on one connection until it is lost; retry if JetStream stops sending."""
        while connection.alive:
            try:
                await self._serve(connection)
                if connection.alive:
                    self._trouble(JetStreamError(f"JetStream: it stopped sending to {self._name}"))
            except Disconnected:
                return
            except JetStreamError as error:
                self._trouble(error)
            except (nats.js.errors.Error, nats.errors.NoRespondersError, TimeoutError) as error:
                self._trouble(JetStreamError(f"JetStream: {self._name}: {reason_of(error)}"))
            except Exception as error:  # unexpected; a program that waits for messages must get an error or a log line
                self._trouble(ConnectionClosed(f"NATS: {self._name}: {reason_of(error)}"))
            if connection.alive:
                await asyncio.sleep(_RETRY)

    async def _serve(self, connection: NatsConnection) -> None:
        """Read on `connection`; call `_resumed` when set up, and return to be set up again."""
        raise NotImplementedError

    def _resumed(self) -> None:
        self._reported = ""
        if self._begun is not None and not self._begun.done():
            self._begun.set_result(None)

    def _trouble(self, error: ViciError) -> None:
        if self._begun is not None and not self._begun.done():
            self._begun.set_exception(error)
        elif str(error) != self._reported:
            self._reported = str(error)
            _logger.warning("%s; retrying", error)

    def denied(self, error: str, inbox_prefix: str) -> bool:
        """Fail the start if a permission error of NATS, in lower case, is about it; return whether it is."""
        if not self._stream or self._begun is None or self._begun.done():
            return False
        if '"$js.api.' in error and re.search(rf"\.{re.escape(self._stream.lower())}[.\"]", error):
            text = f"this user may not publish to $JS.API.CONSUMER.CREATE.{self._stream}.>"
        elif f'subscription to "{inbox_prefix}.'.lower() in error:
            text = f"this user may not subscribe to its reply inbox {inbox_prefix}.>; set inbox_prefix to another one"
        else:
            return False
        self._begun.set_exception(Denied("NATS", self._name, names.DENIED, text))
        return True

    def fail(self, error: ViciError) -> None:
        """Raise `error` in the reader once it has read all messages."""
        self._error = error
        self._news()

    def _news(self) -> None:
        if self.wake is not None:
            self.wake()

    async def aclose(self) -> None:
        """Stop reading."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        self.fail(ConnectionClosed(f"{self._name} was closed"))

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class Ordered:
    """An ordered JetStream consumer on one connection: passes each message to `take` once and in order until it breaks.

    Flow control makes JetStream wait while `has_space` is unset.
    """

    def __init__(
        self,
        connection: NatsConnection,
        take: Callable[[list[Received]], None],
        has_space: Callable[[], bool] = lambda: True,
    ) -> None:
        self._connection = connection
        self._take = take
        self._has_space = has_space
        self._inbox = connection.client.new_inbox()
        self._subscription: Subscription | None = None
        self._count = 0  # of messages, as JetStream numbers them for this consumer
        self._stalled = ""  # where to let JetStream continue, once there is space
        self._broken = False
        self._received = asyncio.Event()

    async def open(self, stream: str, config: ConsumerConfig) -> ConsumerInfo:
        """Create the consumer; raises the errors of JetStream."""
        self._subscription = await self._connection.subscribe_blocks(self._inbox, self._on_messages)
        config = config.evolve(
            deliver_subject=self._inbox,
            ack_policy=AckPolicy.NONE,
            max_deliver=1,
            flow_control=True,
            idle_heartbeat=_HEARTBEAT,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=_INACTIVE,
        )
        return await self._connection.unless_lost(self._connection.jetstream.add_consumer(stream, config))

    async def broken(self) -> None:
        """Wait until it has to be recreated: a message was lost, or JetStream has deleted it."""
        await self._connection.unless_lost(self._silence())

    async def _silence(self) -> None:
        while not self._broken:
            self._received.clear()
            try:
                async with asyncio.timeout(_SILENCE):
                    await self._received.wait()
            except TimeoutError:
                await self._connection.probe(_SILENCE)  # messages received meanwhile are read before its reply
                if not self._received.is_set() and not self._stalled:
                    return

    def _on_messages(self, messages: list[Received]) -> None:
        self._received.set()
        taken: list[Received] = []
        for message in messages:
            if self._broken:
                break
            if not message.reply.startswith(ACK):
                self._pass(taken)
                taken = []
                self._control(message.reply, message.headers or {})
                continue
            number = consumer_number(message)
            if number is None:
                continue  # of another program
            if number != self._count + 1:
                self._broken = True
                break
            self._count = number
            taken.append(message)
        self._pass(taken)

    def _pass(self, taken: list[Received]) -> None:
        if taken:
            self._take(taken)

    def _control(self, reply: str, headers: Mapping[str, str]) -> None:
        """Acknowledge flow control after the messages before it; compare the count of a heartbeat."""
        self._stalled = reply or headers.get("Nats-Consumer-Stalled") or self._stalled
        self.resume()
        self._broken = headers.get("Nats-Last-Consumer", str(self._count)) != str(self._count)

    def resume(self) -> None:
        """Let JetStream continue, if it waits and there is space."""
        if self._stalled and self._has_space():
            to, self._stalled = self._stalled, ""
            with contextlib.suppress(Disconnected):
                self._connection.send_block(publication(to, b""))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._subscription is not None:
            await unsubscribe(self._subscription)


async def unsubscribe(subscription: Subscription) -> None:
    """End a subscription, if its connection is still open."""
    with contextlib.suppress(nats.errors.Error, OSError):
        await subscription.unsubscribe()


def publication(subject: str, payload: bytes) -> bytes:
    """Return a message in the protocol of NATS clients; empty if nothing can be published to the subject.

    For subjects of the server, which are short. Another program may have sent one that would begin another message.
    """
    if not subject.isascii() or not subject.isprintable() or " " in subject or len(subject) > MAX_SUBJECTS:
        return b""
    return b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(payload), payload)


def stream_number(message: Received) -> int | None:
    """Return the sequence number of a JetStream message in its stream; None for a message of another program."""
    return _field(message, 5)


def consumer_number(message: Received) -> int | None:
    """Return the sequence number of a JetStream message in its consumer."""
    return _field(message, 6)


def stored_at(message: Received) -> datetime:
    """Return when JetStream stored a message."""
    return datetime.fromtimestamp((_field(message, 7) or 0) / 1e9, UTC)


def _field(message: Received, index: int) -> int | None:
    tokens = message.reply.split(".")
    if len(tokens) < 9:
        return None
    text = tokens[index if len(tokens) == 9 else index + 2]  # the longer form includes a domain and an account
    return int(text) if text.isdecimal() and len(text) <= 20 else None
