"""Events of the fleet, live or from JetStream."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Literal, Self

import nats.js.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy

from vicifast._wire import Envelope, Received

from ..bus.connection import Disconnected, NatsConnection
from ..bus.supervisor import ConnectionSupervisor
from .calls import news
from .envelopes import unpack
from .errors import JetStreamError, SlowConsumer
from .source import ACK, Ordered, Source, publication, stream_number, unsubscribe

_logger = logging.getLogger(__name__)

LIMIT = 64 * 1024 * 1024  # bytes of unread messages
Start = int | datetime | Literal["first", "new"]

_OVERHEAD = 512  # bytes per message in addition to its payload
_UNACKNOWLEDGED = 256  # messages that JetStream sends ahead
_ACK_WAIT = 60.0  # seconds until JetStream redelivers an unacknowledged message
_API_TIMEOUT = 5.0


@dataclass(frozen=True)
class Kept:
    """Where to read in JetStream: `start` is a sequence number of the stream, a time, `first` or `new`."""

    stream: str
    durable: str | None
    start: Start


class Events(Source):
    """An async iterator of envelopes, created by `Fleet.subscribe`. Use it in `async with`, or call `aclose`.

    Unread messages are buffered up to `LIMIT` bytes. Then the oldest are dropped and `SlowConsumer` is raised in their
    place; the iteration may continue. JetStream is not read ahead of the buffer, so nothing is dropped. A message that
    is not an envelope raises ValueError; the iteration may continue.

    After a reconnect the subscription resumes: from JetStream at the same position, otherwise with events published
    from then on. A message of a durable consumer is acknowledged when the iteration continues after its last envelope,
    or by `ack`. Otherwise JetStream redelivers it; after a crash, within a minute.
    """

    def __init__(
        self, bus: ConnectionSupervisor, prefix: str, filters: Sequence[str], queue: str, kept: Kept | None, limit: int
    ) -> None:
        super().__init__(bus, "the subscription")
        self._prefix = prefix
        self.filters = list(filters)
        self.lost = 0
        """The number of messages dropped so far."""
        self._queue = queue
        self._kept = kept
        self._stream = "" if kept is None else kept.stream
        self._limit = limit
        self._connection: NatsConnection | None = None
        self._ordered: Ordered | None = None
        self._newest: Received | None = None  # of JetStream
        self._messages: deque[Received] = deque()
        self._bytes = 0
        self._envelopes: deque[Envelope] = deque()
        self._taken: list[Received] = []  # not acknowledged yet
        self._here: set[int | None] = set()  # the numbers of the messages of a durable consumer that are here
        self._reported_lost = 0  # of the lost messages

    async def start(self) -> Self:
        """Subscribe; events published from now on arrive. Raises `JetStreamError` and `ConnectionClosed`."""
        return await super().start()

    async def _serve(self, connection: NatsConnection) -> None:
        self._connection = connection
        if self._kept is None:
            await self._subscribe(connection)
            return
        try:
            if self._kept.start == "new":  # from now on, across reconnects
                start = await self._last(connection, self._kept.stream) + 1
                self._kept = Kept(self._kept.stream, self._kept.durable, start)
            if self._kept.durable is None:
                await self._follow(connection, self._kept)
            else:
                await self._share(connection, self._kept, self._kept.durable)
        except nats.js.errors.NotFoundError:
            hint = "a bridge creates it, and its name is stream in [nats]"
            raise JetStreamError(f"JetStream: the stream {self._kept.stream} does not exist: {hint}") from None

    async def _subscribe(self, connection: NatsConnection) -> None:
        subscriptions: list[Subscription] = []
        try:
            for subject in self.filters:
                subscriptions.append(await connection.subscribe_blocks(subject, self._take, self._queue))
            await connection.fence(_API_TIMEOUT)
            self._resumed()
            await connection.lost()
        finally:
            for subscription in subscriptions:
                await unsubscribe(subscription)

    async def _last(self, connection: NatsConnection, stream: str) -> int:
        """Return the number of the newest message in a stream."""
        return (await connection.unless_lost(connection.jetstream.stream_info(stream))).state.last_seq

    def _config(self, start: Start) -> ConsumerConfig:
        config = ConsumerConfig()
        if len(self.filters) > 1:
            config.filter_subjects = self.filters
        else:
            [config.filter_subject] = self.filters
        match start:
            case "first":
                config.deliver_policy = DeliverPolicy.ALL
            case "new":
                config.deliver_policy = DeliverPolicy.NEW
            case int(number):
                config.deliver_policy, config.opt_start_seq = DeliverPolicy.BY_START_SEQUENCE, number
            case datetime() as time:
                config.deliver_policy = DeliverPolicy.BY_START_TIME
                config.opt_start_time = time.astimezone(UTC)
        return config

    async def _follow(self, connection: NatsConnection, kept: Kept) -> None:
        start = kept.start
        if self._newest is not None:
            start = (stream_number(self._newest) or 0) + 1
            if start > await self._last(connection, kept.stream) + 1:
                _logger.warning("JetStream: the stream %s was recreated; reading it from its beginning", kept.stream)
                start = "first"
        async with Ordered(connection, partial(self._take_next, connection), self._has_space) as consumer:
            self._ordered = consumer
            await consumer.open(kept.stream, self._config(start))
            self._resumed()
            await consumer.broken()

    async def _share(self, connection: NatsConnection, kept: Kept, durable: str) -> None:
        config = await self._durable(connection, kept, durable)
        # Unread messages of the connection before are delivered again.
        self._here = {number for message in (*self._messages, *self._taken) if (number := stream_number(message))}
        subscription = await connection.subscribe_blocks(
            str(config.deliver_subject), partial(self._take_unless_here, connection), config.deliver_group or ""
        )
        try:
            self._resumed()
            await connection.lost()
        finally:
            await unsubscribe(subscription)

    async def _durable(self, connection: NatsConnection, kept: Kept, durable: str) -> ConsumerConfig:
        """Return the durable consumer, created if absent; raise `JetStreamError` if this program cannot read it."""
        try:
            info: ConsumerInfo = await connection.unless_lost(connection.jetstream.consumer_info(kept.stream, durable))
        except nats.js.errors.NotFoundError:
            config = self._config(kept.start).evolve(
                durable_name=durable,
                deliver_subject=connection.client.new_inbox(),
                deliver_group=self._queue or None,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=_ACK_WAIT,
                max_ack_pending=_UNACKNOWLEDGED,
            )
            info = await connection.unless_lost(connection.jetstream.add_consumer(kept.stream, config))
        else:
            self._check(info, durable)
        return info.config

    def _check(self, info: ConsumerInfo, durable: str) -> None:
        config = info.config
        reads = config.filter_subjects or [config.filter_subject or ""]
        if sorted(reads) != sorted(self.filters):
            problem = f"reads {', '.join(reads)}, not {', '.join(self.filters)}: choose another name, or delete it"
        elif config.deliver_subject is None:
            problem = "is a pull consumer: choose another name, or delete it"
        elif (config.deliver_group or "") != self._queue:
            problem = f"is for the queue {config.deliver_group}" if config.deliver_group else "is not for a queue"
        elif info.push_bound and not self._queue:
            problem = "is already read by another program"
        else:
            return
        raise JetStreamError(f"JetStream: the durable consumer {durable} {problem}")

    def _take(self, messages: list[Received]) -> None:
        self._append(messages)
        while self._bytes > self._limit and len(self._messages) > 1:
            self._bytes -= _size(self._messages.popleft())
            self.lost += 1

    def _has_space(self) -> bool:
        return self._bytes <= self._limit

    def _take_next(self, connection: NatsConnection, messages: list[Received]) -> None:
        if connection is self._connection:  # otherwise the new connection receives them again
            self._newest = messages[-1]
            self._append(messages)

    def _take_unless_here(self, connection: NatsConnection, messages: list[Received]) -> None:
        # JetStream redelivers messages that were not acknowledged in time, even if they are still unread here.
        new: list[Received] = []
        for message in messages:
            number = stream_number(message) if message.reply.startswith(ACK) else None
            if number is None and message.reply and message.headers:  # flow control, if the consumer has it
                connection.send_block(publication(message.reply, b""))
            elif number is not None and number not in self._here:
                self._here.add(number)
                new.append(message)
        self._append(new)

    def _append(self, messages: list[Received]) -> None:
        self._messages.extend(messages)
        self._bytes += sum([_size(message) for message in messages])
        self._news()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Envelope:
        while not self._envelopes:
            await self._next_message()
        return self._envelopes.popleft()

    async def batch(self) -> list[Envelope]:
        """Return all unread envelopes, at least one, and acknowledge those of the batch before."""
        if not self._envelopes:
            self._envelopes.appendleft(await anext(self))
        while self._messages and self._reported_lost == self.lost:
            self._open(self._messages.popleft())
        batch = list(self._envelopes)
        self._envelopes.clear()
        return batch

    async def ack(self) -> None:
        """Acknowledge the messages whose last envelope was read, as continuing the iteration does."""
        if self._taken:
            taken, self._taken = self._taken, []
            self._answer(taken, Msg.Ack.Ack)

    def _answer(self, messages: Iterable[Received], what: bytes) -> None:
        """Acknowledge or refuse messages; without a connection JetStream redelivers them."""
        self._here.difference_update(map(stream_number, messages))
        with contextlib.suppress(Disconnected):
            if self._connection is not None:
                self._connection.send_block(b"".join([publication(message.reply, what) for message in messages]))

    async def _next_message(self) -> None:
        """Wait for a message, and acknowledge those whose envelopes were all read."""
        await self.ack()
        while not self._messages:
            if self._error is not None:
                raise self._error
            await news(self)
        if self._reported_lost < self.lost:
            lost, self._reported_lost = self.lost - self._reported_lost, self.lost
            raise SlowConsumer(lost)
        self._open(self._messages.popleft())

    def _open(self, message: Received) -> None:
        self._bytes -= _size(message)
        if self._ordered is not None:
            self._ordered.resume()
        if self._kept is not None and self._kept.durable is not None:
            self._taken.append(message)
        self._envelopes.extend(unpack(message, self._prefix))

    async def aclose(self) -> None:
        """Unsubscribe. A durable consumer remains, and redelivers unacknowledged messages."""
        reads = self._reading is not None
        await super().aclose()
        if reads and self._kept is not None and self._kept.durable is not None:
            self._answer([*self._taken, *self._messages], Msg.Ack.Nak)
            self._messages.clear()


def _size(message: Received) -> int:
    return len(message.data) + _OVERHEAD
