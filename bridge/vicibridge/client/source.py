"""What is read from the bus for as long as it is wanted: on each connection it is asked for anew."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Self

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo

from vicifast.errors import ConnectionClosed, ViciError

from ..bus.connection import Disconnected, Link, reason_of
from ..bus.supervisor import Bus
from .errors import JetStreamError

_logger = logging.getLogger(__name__)

_AGAIN = 1.0  # seconds until what failed is tried again
_LINK_TIMEOUT = 5.0  # seconds to wait for a connection that is not there at the start
_HEARTBEAT = 1.0  # seconds; JetStream forgets ordered consumers when it restarts
_SILENCE = 4 * _HEARTBEAT
_INACTIVE = 2.0  # seconds after which JetStream deletes a consumer that nobody listens to: each link makes its own
_ACK = "$JS.ACK."


class Source:
    """Reads over as many connections as it takes, from `start` to `aclose`; `_serve` does it on one of them."""

    def __init__(self, bus: Bus, name: str) -> None:
        self.wake: Callable[[], None] | None = None
        self._bus = bus
        self._name = name  # in errors
        self._error: ViciError | None = None
        self._begun: asyncio.Future[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._reported = ""  # why it does not go on, as the log has it

    async def start(self) -> Self:
        """Begin to read. Raises `JetStreamError`, and `ConnectionClosed` while NATS is not connected."""
        try:
            async with asyncio.timeout(_LINK_TIMEOUT):
                await self._bus.link()
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

    async def _read(self, link: Link) -> None:
        """Read on one link for as long as that goes, again whenever JetStream does not go on."""
        while link.alive:
            try:
                await self._serve(link)
                if link.alive:
                    self._trouble(JetStreamError(f"JetStream: it stopped sending to {self._name}"))
            except Disconnected:
                return
            except JetStreamError as error:
                self._trouble(error)
            except (nats.js.errors.Error, nats.errors.NoRespondersError, TimeoutError) as error:
                self._trouble(JetStreamError(f"JetStream: {self._name}: {reason_of(error)}"))
            except Exception as error:  # whatever it is: what waits for messages must not wait without a word
                self._trouble(ConnectionClosed(f"NATS: {self._name}: {reason_of(error)}"))
            if link.alive:
                await asyncio.sleep(_AGAIN)

    async def _serve(self, link: Link) -> None:
        """Read on `link`, call `_goes_on` once that goes, and return when it has to be begun anew."""
        raise NotImplementedError

    def _goes_on(self) -> None:
        self._reported = ""
        if self._begun is not None and not self._begun.done():
            self._begun.set_result(None)

    def _trouble(self, error: ViciError) -> None:
        if self._begun is not None and not self._begun.done():
            self._begun.set_exception(error)
        elif str(error) != self._reported:
            self._reported = str(error)
            _logger.warning("%s; trying again", error)

    def fail(self, error: ViciError) -> None:
        """Raise `error` once all that has come was taken."""
        self._error = error
        self._news()

    def _news(self) -> None:
        if self.wake is not None:
            self.wake()

    async def aclose(self) -> None:
        """Read no more."""
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
    """A consumer of JetStream on one link: gives `take` every message once and in order, until it has to be made anew.

    JetStream waits while `take` does.
    """

    def __init__(self, link: Link, take: Callable[[Msg], Awaitable[None]]) -> None:
        self._link = link
        self._take = take
        self._inbox = link.client.new_inbox()
        self._subscription: Subscription | None = None
        self._count = 0  # of messages, as JetStream numbers them for this consumer
        self._busy = False
        self._broken = False
        self._heard = asyncio.Event()

    async def open(self, stream: str, config: ConsumerConfig) -> ConsumerInfo:
        """Begin with what `config` wants of the stream; raises what JetStream says."""
        self._subscription = await self._link.subscribe(
            self._inbox, self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
        )
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
        return await self._link.unless_lost(self._link.jetstream.add_consumer(stream, config))

    async def broken(self) -> None:
        """Wait until it has to be made anew: a message was lost, or JetStream does not know it any more."""
        await self._link.unless_lost(self._silence())

    async def _silence(self) -> None:
        while not self._broken:
            self._heard.clear()
            try:
                async with asyncio.timeout(_SILENCE):
                    await self._heard.wait()
            except TimeoutError:
                await self._link.probe(_SILENCE)  # what has come meanwhile is read before the answer to this
                if not self._heard.is_set() and not self._busy:
                    return

    async def _on_message(self, message: Msg) -> None:
        self._heard.set()
        if self._broken:
            return
        if not message.reply.startswith(_ACK):
            await self._control(message.reply, message.headers or {})
            return
        if _number(message.reply) != self._count + 1:
            self._broken = True
            return
        self._count += 1
        self._busy = True
        try:
            await self._take(message)
        finally:
            self._busy = False

    async def _control(self, reply: str, headers: Mapping[str, str]) -> None:
        """Answer flow control, which goes on when all before it was taken; a heartbeat says what has been sent."""
        if to := reply or headers.get("Nats-Consumer-Stalled"):
            with contextlib.suppress(Disconnected):
                await self._link.publish(to, b"")
        self._broken = headers.get("Nats-Last-Consumer", str(self._count)) != str(self._count)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._subscription is not None:
            await unsubscribe(self._subscription)


async def unsubscribe(subscription: Subscription) -> None:
    """End a subscription, unless its connection has ended it."""
    with contextlib.suppress(nats.errors.Error, OSError):
        await subscription.unsubscribe()


def stream_number(message: Msg) -> int:
    """Return the number that a message of JetStream has in its stream."""
    tokens = message.reply.split(".")
    return int(tokens[5 if len(tokens) == 9 else 7])  # the longer form names a domain and an account


def _number(reply: str) -> int:
    tokens = reply.split(".")
    return int(tokens[6 if len(tokens) == 9 else 8])
