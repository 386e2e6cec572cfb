"""Events of the fleet, as they come or as JetStream keeps them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Self

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from vicifast.errors import ConnectionClosed, ViciError

from ..link import reason_of
from .calls import news
from .envelopes import Envelope, unpack
from .errors import JetStreamError, SlowConsumer
from .watch import HEARTBEAT

LIMIT = 64 * 1024 * 1024  # bytes of messages that wait to be taken
Start = int | datetime | Literal["first", "new"]

_OVERHEAD = 512  # bytes that a message takes beside its payload
_UNACKNOWLEDGED = 256  # messages that JetStream hands out ahead
_ACK_WAIT = 60.0  # seconds until it hands out again what is not acknowledged
_API_TIMEOUT = 5.0


@dataclass(frozen=True)
class Kept:
    """How to read from JetStream: `start` is a sequence number of the stream, a time, `first` or `new`."""

    stream: str
    durable: str | None
    start: Start


class Events:
    """Envelopes, as an async iterator; `Fleet.subscribe` makes it. Use it in `async with`, or call `aclose`.

    What comes faster than it is taken waits, up to `LIMIT` bytes. Then the oldest messages are dropped, and
    `SlowConsumer` is raised in their place; the iteration may go on. Reading from JetStream nothing is dropped: it
    waits. A message that holds no envelope is raised as ValueError, and the iteration may go on then too.

    A message of a durable consumer is acknowledged when the iteration goes on after its last envelope, or by `ack`:
    who stops before that gets it again, after a crash within a minute.
    """

    def __init__(self, client: Client, filters: Sequence[str], queue: str, kept: Kept | None, limit: int) -> None:
        self.filters = list(filters)
        self.lost = 0
        """How many messages were dropped so far."""
        self.wake: Callable[[], None] | None = None
        self._client = client
        self._queue = queue
        self._kept = kept
        self._limit = limit
        self._subscriptions: list[Subscription | JetStreamContext.PushSubscription] = []
        self._messages: deque[Msg] = deque()
        self._bytes = 0
        self._space = asyncio.Event()
        self._envelopes: deque[Envelope] = deque()
        self._taken: list[Msg] = []  # not acknowledged yet
        self._told = 0  # of those lost
        self._error: ViciError | None = None

    async def start(self) -> Self:
        """Subscribe; what is published after this returns will come. Raises `JetStreamError` and `ConnectionClosed`."""
        try:
            if self._kept is None:
                for subject in self.filters:
                    subscription = await self._client.subscribe(
                        subject, self._queue, self._take, pending_msgs_limit=0, pending_bytes_limit=0
                    )
                    self._subscriptions.append(subscription)
                # nats-py writes the PING of flush() ahead of the subscriptions; the second follows them.
                await self._client.flush()
                await self._client.flush()
            else:
                self._subscriptions.append(await self._read(self._kept))
        except nats.js.errors.Error as error:
            raise JetStreamError(f"JetStream: {_said(error)}") from None
        except (nats.errors.Error, OSError) as error:
            raise ConnectionClosed(f"NATS: {reason_of(error)}") from None
        return self

    async def _read(self, kept: Kept) -> JetStreamContext.PushSubscription:
        jetstream = self._client.jetstream(timeout=_API_TIMEOUT)
        config = ConsumerConfig(filter_subjects=self.filters if len(self.filters) > 1 else None)
        match kept.start:
            case "first":
                config.deliver_policy = DeliverPolicy.ALL
            case "new":
                config.deliver_policy = DeliverPolicy.NEW
            case int(number):
                config.deliver_policy, config.opt_start_seq = DeliverPolicy.BY_START_SEQUENCE, number
            case datetime() as time:
                config.deliver_policy = DeliverPolicy.BY_START_TIME
                config.opt_start_time = time.astimezone(UTC)
        if kept.durable is None:
            return await jetstream.subscribe(
                self.filters[0],
                stream=kept.stream,
                cb=self._take_when_space,
                config=config,
                ordered_consumer=True,
                idle_heartbeat=HEARTBEAT,
                pending_msgs_limit=0,
                pending_bytes_limit=0,
            )
        await self._check(jetstream, kept.stream, kept.durable)
        config.ack_policy, config.ack_wait = AckPolicy.EXPLICIT, _ACK_WAIT
        config.max_ack_pending = _UNACKNOWLEDGED
        return await jetstream.subscribe(
            self.filters[0],
            queue=self._queue or None,
            durable=kept.durable,
            stream=kept.stream,
            cb=self._take_unless_here,
            config=config,
            manual_ack=True,
        )

    async def _check(self, jetstream: JetStreamContext, stream: str, durable: str) -> None:
        """Refuse a consumer of that name that reads something else."""
        try:
            config = (await jetstream.consumer_info(stream, durable)).config
        except nats.js.errors.NotFoundError:
            return
        reads = config.filter_subjects or [config.filter_subject or ""]
        if sorted(reads) != sorted(self.filters):
            raise JetStreamError(
                f"JetStream: the durable consumer {durable} reads {', '.join(reads)}, not {', '.join(self.filters)}: "
                "choose another name, or delete it"
            )

    async def _take(self, message: Msg) -> None:
        self._append(message)
        while self._bytes > self._limit and len(self._messages) > 1:
            self._bytes -= _size(self._messages.popleft())
            self.lost += 1

    async def _take_when_space(self, message: Msg) -> None:
        while self._bytes > self._limit:
            self._space.clear()
            await self._space.wait()
        self._append(message)

    async def _take_unless_here(self, message: Msg) -> None:
        # JetStream hands out again what was not acknowledged in time, though it may still wait here.
        number = message.metadata.sequence.stream
        if not any(m.metadata.sequence.stream == number for m in (*self._messages, *self._taken)):
            self._append(message)

    def _append(self, message: Msg) -> None:
        self._messages.append(message)
        self._bytes += _size(message)
        self._news()

    def _news(self) -> None:
        if self.wake is not None:
            self.wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Envelope:
        while not self._envelopes:
            await self._next_message()
        return self._envelopes.popleft()

    async def batch(self) -> list[Envelope]:
        """Return all envelopes that have come, at least one, and acknowledge those of the batch before."""
        if not self._envelopes:
            self._envelopes.appendleft(await anext(self))
        while self._messages and self._told == self.lost:
            self._open(self._messages.popleft())
        batch = list(self._envelopes)
        self._envelopes.clear()
        return batch

    async def ack(self) -> None:
        """Acknowledge the messages whose last envelope was taken, as going on with the iteration does."""
        taken, self._taken = self._taken, []
        for message in taken:
            with contextlib.suppress(nats.errors.Error, OSError):  # then it will come again
                await message.ack()

    async def _next_message(self) -> None:
        """Wait for a message, and acknowledge those whose envelopes were all taken."""
        await self.ack()
        while not self._messages:
            if self._error is not None:
                raise self._error
            await news(self)
        if self._told < self.lost:
            lost, self._told = self.lost - self._told, self.lost
            raise SlowConsumer(lost)
        self._open(self._messages.popleft())

    def _open(self, message: Msg) -> None:
        self._bytes -= _size(message)
        self._space.set()
        if self._kept is not None and self._kept.durable is not None:
            self._taken.append(message)
        self._envelopes.extend(unpack(message))

    def fail(self, error: ViciError) -> None:
        """Raise `error` once all that has come was taken."""
        self._error = error
        self._news()

    async def aclose(self) -> None:
        """Unsubscribe. A durable consumer stays, and hands out again what was not acknowledged."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            with contextlib.suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()
        if subscriptions and self._kept is not None and self._kept.durable is not None:
            for message in (*self._taken, *self._messages):
                with contextlib.suppress(nats.errors.Error, OSError):
                    await message.nak()
            self._messages.clear()
        self.fail(ConnectionClosed("the subscription was closed"))

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


def _size(message: Msg) -> int:
    return len(message.data) + _OVERHEAD


def _said(error: nats.js.errors.Error) -> str:
    return getattr(error, "description", None) or reason_of(error)
