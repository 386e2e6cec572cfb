"""The state class: events that must arrive, each acknowledged by JetStream."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from .accounting import Counts
from .backlog import Backlog
from .bus import Bus
from .link import Link, TooLarge, reason_of
from .raw import opened
from .streams import Stream

_logger = logging.getLogger(__name__)


class StatePipeline:
    """Publishes in order, each message acknowledged by JetStream; what is not acknowledged is sent again.

    Each message carries `Nats-Msg-Id: <node>.<boot>.<seq>`, so JetStream stores it once. A new link or a refused or
    late acknowledgement makes everything unacknowledged go again, in order, from the first.
    """

    WINDOW = 1024  # messages on their way; nats-server buffers ten times as many for a stream
    REFUSALS = 3

    def __init__(
        self, bus: Bus, stream: Stream, backlog: Backlog, ack_timeout: float = 5.0, delay: float = 0.25
    ) -> None:
        self.backlog = backlog
        self._bus = bus
        self._stream = stream
        self._ack_timeout = ack_timeout
        self._first_delay = self._delay = delay
        self._window = backlog.window
        self._refused: dict[int, str] = {}
        self._highest_ack = 0
        self._troubled = False
        self._wake = backlog.arrived

    @property
    def counts(self) -> Counts:
        return self.backlog.counts

    def configure(self, max_bytes: int) -> None:
        """Change the limit; it holds from the next event on."""
        self.backlog.max_bytes = max_bytes

    @property
    def in_flight(self) -> int:
        """Events in memory only."""
        return self.backlog.in_flight

    @property
    def spooled(self) -> int:
        """Events on disk, whether or not they are in memory as well."""
        return self.backlog.spooled

    @property
    def waiting(self) -> int:
        return self.backlog.in_flight + self.backlog.spooled

    def put(self, seq: int, subject: str, payload: bytes, *, tell: bool = True) -> None:
        """Take over one envelope; `seq` must grow from call to call."""
        self.backlog.put(seq, subject, payload, tell)

    def lost(self, cause: str, first_seq: int, last_seq: int) -> None:
        """Count events that never became envelopes."""
        self.backlog.lost(cause, first_seq, last_seq)

    async def flush(self) -> None:
        """Wait until everything taken over is acknowledged or dropped."""
        await self.backlog.flush()

    async def run(self) -> None:
        """Publish until cancelled, over as many links as it takes."""
        await self._bus.serve(self._serve)

    async def _serve(self, link: Link) -> None:
        inbox = link.new_inbox()
        await link.subscribe(f"{inbox}.*", self._on_ack)
        link.on_lost(self._wake.set)
        await self._ensure_stream(link)
        try:
            while link.alive:
                await self._step(link, inbox)
        finally:
            self._rewind()

    async def _step(self, link: Link, inbox: str) -> None:
        loop = asyncio.get_running_loop()
        self._wake.clear()
        await self._send(link, inbox)
        if self._refused or self._late(loop.time()):
            await self._retreat(link)
            return
        if not self._held_up:
            self.backlog.losses.tell(loop.time())
        await self._pause(loop.time())

    async def _send(self, link: Link, inbox: str) -> None:
        now = asyncio.get_running_loop().time()
        while len(self._window) < self.WINDOW and not self._refused and (event := self.backlog.take()):
            event.sent = now
            headers, payload = opened(event.payload)
            headers["Nats-Msg-Id"] = self.backlog.message_id(event)
            try:
                await link.publish(event.subject, payload, f"{inbox}.{event.number}", headers)
            except TooLarge:
                self.backlog.drop(event, "larger than the server accepts")

    async def _pause(self, now: float) -> None:
        """Wait for a new event, an acknowledgement, the end of the link, or a deadline."""
        if self._wake.is_set():
            return
        waits = []
        if not self._held_up and (wait := self.backlog.losses.wait(now)) is not None:
            waits.append(wait)
        if self._window:
            waits.append(next(iter(self._window.values())).sent + self._ack_timeout - now)
        with suppress(TimeoutError):
            async with asyncio.timeout(min(waits) if waits else None):
                await self._wake.wait()

    @property
    def _held_up(self) -> bool:
        """Whether a gap envelope would have to wait behind what caused the gap."""
        return self._troubled or bool(self._refused)

    def _late(self, now: float) -> bool:
        return bool(self._window) and now - next(iter(self._window.values())).sent >= self._ack_timeout

    async def _on_ack(self, message: Msg) -> None:
        number = int(message.subject.rpartition(".")[2])
        if not message.data.startswith(b'{"stream"'):
            if number in self._window:
                self._refused[number] = _refusal(message)
                self._wake.set()
            return
        if self.backlog.published(number) is None:
            return  # acknowledged twice, or to be sent again: that one will be acknowledged as a duplicate
        self._refused.pop(number, None)
        self._highest_ack = max(self._highest_ack, number)
        self._delay = self._first_delay
        if self._troubled:
            self._troubled = False
            _logger.info("JetStream: acknowledges events again")
        self._wake.set()

    async def _retreat(self, link: Link) -> None:
        """Let the window settle, then make ready to send again what was not acknowledged."""
        loop = asyncio.get_running_loop()
        while len(self._refused) < len(self._window) and link.alive and not self._late(loop.time()):
            self._wake.clear()
            await self._pause(loop.time())
        reason = next(iter(self._refused.values()), f"no acknowledgement within {self._ack_timeout:g} seconds")
        if self._window and next(iter(self._window)) > self._highest_ack and not self._troubled:
            self._troubled = True
            _logger.warning("JetStream: does not take events: %s; keeping %d", reason, self.waiting)
        self._give_up_refused()
        self._rewind()
        await link.unless_lost(asyncio.sleep(self._delay))
        self._delay = min(self._delay * 2, self._ack_timeout)
        await self._ensure_stream(link)

    def _give_up_refused(self) -> None:
        """Drop what was refused again and again while later events were taken: it would hold up all others."""
        for number, event in list(self._window.items()):
            if number < self._highest_ack:
                event.refusals += 1
                if event.refusals >= self.REFUSALS:
                    self.backlog.drop(event, "refused by the server")

    def _rewind(self) -> None:
        self.backlog.rewind()
        self._refused.clear()
        self._highest_ack = 0

    async def _ensure_stream(self, link: Link) -> None:
        try:
            await self._stream.ensure(link)
        except NatsError as error:
            # An administrator may have forbidden the question; whether events are taken, the acknowledgements tell.
            if not self._troubled:
                _logger.warning("JetStream: cannot look after the stream %s: %s", self._stream.name, reason_of(error))


def _refusal(message: Msg) -> str:
    """Return why JetStream did not take a message."""
    if message.headers and message.headers.get("Status") == "503":
        return "no stream takes their subject, or JetStream is off"
    try:
        return str(json.loads(message.data)["error"]["description"])
    except (ValueError, KeyError, TypeError):
        return "an answer that is no acknowledgement"
