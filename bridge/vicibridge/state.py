"""The state class: events that must arrive, each acknowledged by JetStream."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from .accounting import Counts, Loss, Losses
from .bus import Bus
from .link import Disconnected, Link, TooLarge
from .provision import Stream

_logger = logging.getLogger(__name__)

_OVERHEAD = 200  # bytes that a waiting record takes beyond its payload


@dataclass(slots=True, eq=False)
class _Record:
    seq: int
    subject: str
    payload: bytes
    tell: bool  # False for gap envelopes: a lost gap must not make a gap
    sent: float = 0.0
    refusals: int = 0


class StatePipeline:
    """Publishes in order, each message acknowledged by JetStream; what is not acknowledged is sent again.

    Each message carries `Nats-Msg-Id: <identity>.<seq>`, so JetStream stores it once. A new link or a refused or late
    acknowledgement makes everything unacknowledged go again, in order, from the first.
    """

    WINDOW = 1024  # messages on their way; nats-server buffers ten times as many for a stream
    REFUSALS = 3

    def __init__(
        self,
        bus: Bus,
        stream: Stream,
        identity: str,
        max_bytes: int,
        tell: Callable[[Loss], None],
        *,
        ack_timeout: float = 5.0,
        retry_delay: float = 0.25,
    ) -> None:
        self.counts = Counts()
        self._bus = bus
        self._stream = stream
        self._identity = identity
        self._max_bytes = max_bytes
        self._ack_timeout = ack_timeout
        self._first_delay = self._delay = retry_delay
        self._losses = Losses(tell)
        self._queue: deque[_Record] = deque()
        self._window: dict[int, _Record] = {}
        self._bytes = 0
        self._refused: dict[int, str] = {}
        self._highest_ack = 0
        self._troubled = False
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def configure(self, max_bytes: int) -> None:
        """Change the limit; it holds from the next event on."""
        self._max_bytes = max_bytes

    @property
    def in_flight(self) -> int:
        return len(self._queue) + len(self._window)

    def put(self, seq: int, subject: str, payload: bytes, *, tell: bool = True) -> None:
        """Take over one envelope; `seq` must grow from call to call."""
        self.counts.received += 1
        self._queue.append(_Record(seq, subject, payload, tell))
        self._bytes += len(payload) + _OVERHEAD
        while self._bytes > self._max_bytes and len(self._queue) > 1:
            self._drop(self._queue.popleft(), "the memory for unacknowledged events is full")
        self._empty.clear()
        self._wake.set()

    def lost(self, cause: str, first_seq: int, last_seq: int) -> None:
        """Count events that never became envelopes."""
        count = last_seq - first_seq + 1
        self.counts.received += count
        self.counts.drop(cause, count)
        self._losses.add(cause, count, first_seq, last_seq)
        self._wake.set()

    async def flush(self) -> None:
        """Wait until everything taken over is acknowledged or dropped."""
        await self._empty.wait()

    async def run(self) -> None:
        """Publish until cancelled, over as many links as it takes."""
        while True:
            link = await self._bus.link()
            try:
                await self._serve(link)
            except Disconnected:
                self._rewind()

    async def _serve(self, link: Link) -> None:
        inbox = link.new_inbox()
        await link.subscribe(f"{inbox}.*", self._on_ack)
        link.on_lost(self._wake.set)
        await self._ensure_stream(link)
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            await self._send(link, inbox)
            if self._refused or self._late(loop.time()):
                await self._retreat(link)
                continue
            if not self._held_up:
                self._losses.tell(loop.time())
            await self._pause(loop.time())
            if not link.alive:
                raise Disconnected(await link.lost())

    async def _send(self, link: Link, inbox: str) -> None:
        now = asyncio.get_running_loop().time()
        while self._queue and len(self._window) < self.WINDOW and not self._refused:
            record = self._queue.popleft()
            record.sent = now
            self._window[record.seq] = record
            headers = {"Nats-Msg-Id": f"{self._identity}.{record.seq}"}
            try:
                await link.publish(record.subject, record.payload, f"{inbox}.{record.seq}", headers)
            except TooLarge:
                self._drop(self._window.pop(record.seq), "larger than the server accepts")

    async def _pause(self, now: float) -> None:
        """Wait for a new event, an acknowledgement, the end of the link, or a deadline."""
        if self._wake.is_set():
            return
        waits = []
        if not self._held_up and (wait := self._losses.wait(now)) is not None:
            waits.append(wait)
        if self._window:
            waits.append(next(iter(self._window.values())).sent + self._ack_timeout - now)
        try:
            await asyncio.wait_for(self._wake.wait(), max(0.0, min(waits)) if waits else None)
        except TimeoutError:
            pass

    @property
    def _held_up(self) -> bool:
        """Whether a gap envelope would have to wait behind what caused the gap."""
        return self._troubled or bool(self._refused)

    def _late(self, now: float) -> bool:
        return bool(self._window) and now - next(iter(self._window.values())).sent >= self._ack_timeout

    async def _on_ack(self, message: Msg) -> None:
        seq = int(message.subject.rpartition(".")[2])
        if not message.data.startswith(b'{"stream"'):
            if seq in self._window:
                self._refused[seq] = _refusal(message)
                self._wake.set()
            return
        record = self._window.pop(seq, None)
        if record is None:
            return  # acknowledged twice, or sent again meanwhile: that one will be acknowledged as a duplicate
        self._refused.pop(seq, None)
        self._highest_ack = max(self._highest_ack, seq)
        self.counts.published += 1
        self.counts.bytes += len(record.payload)
        self._release(record)
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
            _logger.warning("JetStream: does not take events: %s; keeping %d", reason, self.in_flight)
        self._give_up_refused()
        self._rewind()
        await link.unless_lost(asyncio.sleep(self._delay))
        self._delay = min(self._delay * 2, self._ack_timeout)
        await self._ensure_stream(link)

    def _give_up_refused(self) -> None:
        """Drop what was refused again and again while later events were taken: it would hold up all others."""
        for seq, record in list(self._window.items()):
            if seq < self._highest_ack:
                record.refusals += 1
                if record.refusals >= self.REFUSALS:
                    self._drop(self._window.pop(seq), "refused by the server")

    def _rewind(self) -> None:
        self._queue.extendleft(reversed(self._window.values()))
        self._window.clear()
        self._refused.clear()
        self._highest_ack = 0

    async def _ensure_stream(self, link: Link) -> None:
        try:
            await self._stream.ensure(link)
        except NatsError as error:
            # An administrator may have forbidden the question; whether events are taken, the acknowledgements tell.
            if not self._troubled:
                _logger.warning("JetStream: cannot look after the stream %s: %s", self._stream.name, error)

    def _drop(self, record: _Record, cause: str) -> None:
        self.counts.drop(cause, 1)
        if record.tell:
            self._losses.add(cause, 1, record.seq, record.seq)
        self._release(record)

    def _release(self, record: _Record) -> None:
        self._bytes -= len(record.payload) + _OVERHEAD
        if not self.in_flight:
            self._empty.set()


def _refusal(message: Msg) -> str:
    """Return why JetStream did not take a message."""
    if message.headers and message.headers.get("Status") == "503":
        return "no stream takes their subject, or JetStream is off"
    try:
        return str(json.loads(message.data)["error"]["description"])
    except (ValueError, KeyError, TypeError):
        return "an answer that is no acknowledgement"
