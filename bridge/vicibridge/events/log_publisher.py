"""Publishes the log class: events may be dropped, but every loss is reported."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from ..bus.connection import Disconnected, NatsConnection, TooLarge
from ..bus.supervisor import ConnectionSupervisor
from .losses import Counts, Loss, Losses
from .raw_envelopes import read_headers, split_headers

STOPPED = "the bridge stopped"
_ROOM = 250  # overhead of a batch in memory beyond its payload, in bytes


class _Batch:
    """Envelopes of one subject that are published as one message."""

    __slots__ = ("subject", "payload", "count", "first_seq", "last_seq", "due")

    def __init__(self, subject: str, first_seq: int, due: float) -> None:
        self.subject = subject
        self.payload = bytearray()
        self.count = 0
        self.first_seq = self.last_seq = first_seq
        self.due = due

    @property
    def size(self) -> int:
        return len(self.payload) + _ROOM


class LogPublisher:
    """Batches envelopes by subject and publishes each batch as one message; if memory is full, drops the oldest.

    A message counts as published when the server has processed it. If the connection is lost before that is known, the
    message is sent again and may arrive twice; readers can recognize it by `seq`. `batch` is the maximum size of a
    batch in bytes; 0 publishes each envelope separately.
    """

    BATCH = 64 * 1024  # bytes; a larger batch is published at once
    WINDOW = 1024 * 1024  # bytes published between two round trips
    FENCE_TIMEOUT = 5.0

    def __init__(
        self,
        bus: ConnectionSupervisor,
        linger: float,
        max_bytes: int,
        report: Callable[[Loss], None],
        batch: int = BATCH,
    ) -> None:
        self.counts = Counts()
        self._bus = bus
        self._linger = linger
        self._max_bytes = max_bytes
        self._losses = Losses(report)
        self._open: dict[str, _Batch] = {}  # in the order of their first envelope, which is that of their due time
        self._ready: deque[_Batch] = deque()
        self._sent: deque[_Batch] = deque()  # not confirmed
        self._bytes = 0
        self._limit = self._batch = batch
        self._hurry = False
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def configure(self, linger: float, max_bytes: int) -> None:
        """Change the limits, for the next event and later."""
        self._linger = linger
        self._max_bytes = max_bytes

    @property
    def in_flight(self) -> int:
        return self.counts.received - self.counts.published - self.counts.dropped

    def put(self, subject: str, payload: bytes, count: int, first_seq: int, last_seq: int, now: float) -> None:
        """Add `count` envelopes; `now` is the loop's time, which the caller reads once for several calls."""
        self.counts.received += count
        batch = self._open.get(subject)
        if batch is not None and len(batch.payload) + len(payload) > self._limit:
            self._ready.append(batch)
            del self._open[subject]
            batch = None
        if batch is None:
            batch = self._open[subject] = _Batch(subject, first_seq, now + self._linger)
            self._bytes += _ROOM
            self._empty.clear()
            self._wake.set()
        batch.payload += payload
        batch.count += count
        batch.last_seq = last_seq
        self._bytes += len(payload)
        if self._bytes > self._max_bytes:
            self._shed()

    def lost(self, cause: str, first_seq: int, last_seq: int, count: int | None = None) -> None:
        """Count events that never became envelopes: all from the first to the last, or `count` of them."""
        count = last_seq - first_seq + 1 if count is None else count
        self.counts.received += count
        self.counts.drop(cause, count)
        self._losses.add(cause, count, first_seq, last_seq)
        self._wake.set()

    async def flush(self) -> None:
        """Publish without lingering; return when all events are published or dropped."""
        self._hurry = True
        self._wake.set()
        await self._empty.wait()
        self._hurry = False

    def give_up(self) -> None:
        """Drop the remaining events when the bridge stops, and report them; unconfirmed ones may have arrived."""
        for batch in (*self._sent, *self._ready, *self._open.values()):
            self._drop(batch, STOPPED)
        for waiting in (self._sent, self._ready, self._open):
            waiting.clear()
        self._losses.report(math.inf)

    async def run(self) -> None:
        """Publish until cancelled, on successive connections."""
        loop = asyncio.get_running_loop()
        while True:
            await self._pause(loop.time())
            self._close_due(loop.time())
            if not self._ready and self._losses.wait(loop.time()) != 0:
                continue
            connection = await self._bus.connection()
            self._limit = min(self._batch, connection.max_payload)
            await self._send(connection)

    async def _pause(self, now: float) -> None:
        """Wait for the first envelope, a full batch, or the next due time."""
        self._wake.clear()
        if self._ready or (self._hurry and self._open):
            return
        waits = [wait for wait in (self._losses.wait(now),) if wait is not None]
        if self._open:
            waits.append(next(iter(self._open.values())).due - now)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(waits)) if waits else None):
                await self._wake.wait()

    def _close_due(self, now: float) -> None:
        while self._open:
            subject, batch = next(iter(self._open.items()))
            if batch.due > now and not self._hurry:
                return
            self._ready.append(batch)
            del self._open[subject]

    async def _send(self, connection: NatsConnection) -> None:
        """Publish ready batches, up to a window, and wait until they are confirmed."""
        size = 0
        try:
            while self._ready and size < self.WINDOW:
                batch = self._ready.popleft()
                try:
                    lines, payload = split_headers(bytes(batch.payload))
                    await connection.publish(batch.subject, payload, headers=read_headers(lines))
                except TooLarge:
                    self._drop(batch, "larger than the server accepts")
                except Disconnected:
                    self._sent.append(batch)
                    raise
                else:
                    self._sent.append(batch)
                    size += len(batch.payload)
            await connection.fence(self.FENCE_TIMEOUT)
        except Disconnected:
            self._ready.extendleft(reversed(self._sent))
            self._sent.clear()
            return
        while self._sent:
            batch = self._sent.popleft()
            self.counts.published += batch.count
            self.counts.bytes += len(batch.payload)
            self._release(batch)
        self._losses.report(asyncio.get_running_loop().time())

    def _shed(self) -> None:
        while self._bytes > self._max_bytes and (self._ready or len(self._open) > 1):
            batch = self._ready.popleft() if self._ready else self._open.pop(next(iter(self._open)))
            self._drop(batch, "the memory for log events is full")

    def _drop(self, batch: _Batch, cause: str) -> None:
        self.counts.drop(cause, batch.count)
        self._losses.add(cause, batch.count, batch.first_seq, batch.last_seq)
        self._release(batch)

    def _release(self, batch: _Batch) -> None:
        self._bytes -= batch.size
        if not self.in_flight:
            self._empty.set()
