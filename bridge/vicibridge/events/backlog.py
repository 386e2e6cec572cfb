"""The unacknowledged events of the state class, in order, in memory and on disk.

An event that is not acknowledged within 50 ms is written to the spool. Memory holds the oldest events; while it is half
full, new events go to disk only. They are read back when it is their turn, as are those of earlier boots.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from .losses import Counts, Loss, Losses
from .spool import DAMAGED, Found, Note, Row, Spool, SpooledEvent, SpoolError

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

KILLED = "the bridge was killed"
MEMORY_FULL = "the memory for unacknowledged events is full"

_DELAY = 0.05  # seconds; events acknowledged sooner are never written to disk
_BATCH = 256 * 1024  # size in memory of the events of a row, in bytes
_CHUNK = 1024 * 1024  # bytes read back at once
_LOW = 2048  # with fewer queued events in memory, more are read back
_RETRY = 1.0  # seconds until a failed spool is retried
_OPENING = 2.0  # seconds for which the start waits for a slow disk
_DISK = ThreadPoolExecutor(16, "spool")  # of all backlogs: a thread for each takes more memory


class Backlog:
    """The events of one node that JetStream has not acknowledged; `run` maintains the spool and must be running.

    Only `open`, `flush` and `close` wait.
    """

    def __init__(
        self, node: str, boot: str, max_bytes: int, report: Callable[[Loss], None], spool: Spool | None
    ) -> None:
        self.counts = Counts()
        self.losses = Losses(report)
        self.in_flight = 0  # in memory only
        self.spooled = 0  # on disk, whether or not in memory as well
        self.spool_trouble = ""  # why the spool is not in use
        self.window: dict[int, SpooledEvent] = {}  # sent and not acknowledged, in order, by number
        self.arrived = asyncio.Event()  # there is a new event to send
        self.max_bytes = max_bytes
        self.node = node
        self._boot = boot
        self._spool = spool
        self._seq = 0
        self._number = 0
        self._bytes = 0
        self._queue: deque[SpooledEvent] = deque()
        self._unsaved: deque[SpooledEvent] = deque()  # in memory only, in order; some sent, some queued
        self._behind = False  # new events go to disk only
        self._rows: dict[int, Row] = {}  # on disk and in memory
        self._last_row = 0  # all rows up to this one have been in memory
        self._known: set[int] = set()  # later rows that have been in memory, too
        self._finished: list[Row] = []
        self._note: Note | None = None  # the one in the spool
        self._open = False
        self._before: Note | None = None
        self._begun = asyncio.Event()
        self._ended = asyncio.Event()
        self._at_once = False
        self._work = asyncio.Event()
        self._refill = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._closing = False
        self._last_work: Future[Any] | None = None

    @property
    def waiting(self) -> int:
        """Events that JetStream has not acknowledged."""
        return self.in_flight + self.spooled

    @property
    def queued(self) -> bool:
        """Whether there may be an event to `take`."""
        return bool(self._queue)

    def put(self, envelopes: Sequence[tuple[int, str, bytes]], report_loss: bool = True) -> None:
        """Add envelopes as (seq, subject, payload); `seq` must increase from one to the next."""
        if not envelopes:
            return
        boot, half = self._boot, self.max_bytes // 2
        self._empty.clear()
        self._seq = envelopes[-1][0]
        self.counts.received += len(envelopes)
        self.in_flight += len(envelopes)
        for seq, subject, payload in envelopes:
            event = SpooledEvent(boot, seq, subject, payload, report_loss)
            self._bytes += event.size
            if self._bytes > half and self._open and not self.spool_trouble:
                self._behind = True
            if not self._behind:
                self._enqueue(event)
            if self._spool is not None:
                self._unsaved.append(event)
            if self._bytes > self.max_bytes:
                self._shed()
        if not report_loss:
            self._at_once = True  # the next note no longer has the loss that this gap envelope reports
        self.arrived.set()
        self._work.set()

    def lost(self, cause: str, first_seq: int, last_seq: int) -> None:
        """Count events that never became envelopes."""
        count = last_seq - first_seq + 1
        self._seq = last_seq
        self.counts.received += count
        self.counts.drop(cause, count)
        self.losses.add(cause, count, first_seq, last_seq)
        self.arrived.set()
        self._work.set()

    def take(self, count: int) -> list[SpooledEvent]:
        """Move the next events, at most `count`, into the window and return them."""
        taken: list[SpooledEvent] = []
        while self._queue and len(taken) < count:
            event = self._queue.popleft()
            if not event.done:
                self.window[event.number] = event
                taken.append(event)
        self._check_refill()
        return taken

    def rewind(self) -> None:
        """Queue the window to be sent again, in order."""
        self._queue.extendleft(reversed(self.window.values()))
        self.window.clear()

    def published(self, numbers: Iterable[int]) -> int:
        """Record acknowledgements; return the highest number that is still in the window, 0 if none is."""
        window = self.window
        events = [window.pop(number) for number in numbers if number in window]
        self.counts.published += len(events)
        self.counts.bytes += sum([len(event.payload) for event in events])
        self._release(events)
        return max([event.number for event in events], default=0)

    def drop(self, event: SpooledEvent, cause: str) -> None:
        self.window.pop(event.number, None)
        self.counts.drop(cause, 1)
        if event.report_loss:
            self.losses.add(cause, 1, event.seq, event.seq, self._other(event.boot))
        self._release([event])

    async def flush(self) -> None:
        """Wait until everything is acknowledged or dropped."""
        await self._empty.wait()

    async def open(self) -> Note | None:
        """Wait for the spool; return the note of the previous boot, if there is one and the disk is not too slow."""
        try:
            async with asyncio.timeout(_OPENING):
                await self._begun.wait()
        except TimeoutError:
            self._report("the disk is slow")
        return self._before

    async def close(self) -> None:
        """Save the remaining events, and record that this boot ended cleanly."""
        self._closing = True
        self._work.set()
        self._refill.set()
        await self._ended.wait()

    @property
    def _wants_refill(self) -> bool:
        """Whether events must be read back, and memory has room for them."""
        room = self._room > self.max_bytes // 4 or not (self.window or self._queue)
        return self._behind and len(self._queue) < _LOW and room

    @property
    def _room(self) -> int:
        """Bytes that may be read back; the other half of the memory is for new events that are not on disk yet."""
        return self.max_bytes // 2 - self._bytes

    def _check_refill(self) -> None:
        if self._behind and self._wants_refill:
            self._refill.set()
            self._work.set()

    def _enqueue(self, event: SpooledEvent) -> None:
        self._number += 1
        event.number = self._number
        self._queue.append(event)

    def _release(self, events: Iterable[SpooledEvent]) -> None:
        """Account for events that are published or dropped."""
        for event in events:
            event.done = True
            self._bytes -= event.size
            row = event.row
            if row is None:
                self.in_flight -= 1
            else:
                self.spooled -= 1
                row.left -= 1
                if not row.left:
                    self._finish(row)
        while self._unsaved and self._unsaved[0].done:
            self._unsaved.popleft()
        self._check_refill()
        self._check_empty()

    def _finish(self, row: Row) -> None:
        self._rows.pop(row.id, None)
        self._finished.append(row)
        self._work.set()

    def _check_empty(self) -> None:
        if not self.in_flight and not self.spooled:
            self._empty.set()

    def _shed(self) -> None:
        """Drop the oldest events; if new events go to disk only, the oldest that are not on disk yet."""
        events = self._unsaved if self._behind else self._queue
        while self._bytes > self.max_bytes and len(events) > 1:
            event = events.popleft()
            if not event.done:
                self.drop(event, MEMORY_FULL)

    def _other(self, boot: str) -> str:
        return "" if boot == self._boot else boot

    # The methods below run in one task: between their awaits, only put, take and _release change the state.

    async def run(self) -> None:
        """Maintain the spool until closed; if it fails, events are still sent from memory."""
        assert self._spool
        try:
            await self._keep(self._spool)
        finally:
            self._close_after(self._last_work, self._spool)
            self._begun.set()
            self._ended.set()

    async def _keep(self, spool: Spool) -> None:
        while True:
            try:
                if not self._open:
                    self._before = self._begin(await self._in_thread(spool.open))
                    self._begun.set()
                if await self._cycle():
                    continue
            except SpoolError as error:
                self._report(str(error))
                if error.damaged:
                    await self._give_up_file()
            self._begun.set()
            if self._closing:
                await self._in_thread(spool.close)
                return
            await self._wait_refill(_RETRY)
            self._work.set()

    async def _wait_refill(self, seconds: float) -> None:
        """Sleep until events must be read back, at most `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._refill.wait()

    async def _in_thread(self, function: Callable[..., _T], *arguments: object) -> _T:
        self._last_work = _DISK.submit(function, *arguments)
        done: _T = await asyncio.wrap_future(self._last_work)
        return done

    @staticmethod
    def _close_after(work: Future[Any] | None, spool: Spool) -> None:
        """Close the file without waiting, as this may be called on cancellation, while a thread still uses it."""
        if work is None or work.done():
            _DISK.submit(spool.close)
        else:
            work.add_done_callback(lambda _: spool.close())

    def _begin(self, found: Found) -> Note | None:
        """Add the events and losses of earlier boots."""
        self._open = True
        self.counts.received += found.count
        self.spooled += found.count
        if found.count:
            _logger.info("%s: spool: %d events of earlier runs are pending", self.node, found.count)
            self._empty.clear()
            self._behind = True
            self._refill.set()
        if found.damaged:
            _logger.error("%s: spool: the file was damaged; moved to %s", self.node, found.damaged)
            self.losses.add(DAMAGED, None, None, None)
        note = found.note
        if note is not None and note.boot != self._boot:
            for loss in note.losses:
                self.losses.add(loss.cause, loss.count, loss.first_seq, loss.last_seq, loss.boot or note.boot)
            if not note.clean:
                self.losses.add(KILLED, None, note.seq + 1, None, note.boot)
        self._note = None
        self._work.set()
        self.arrived.set()
        return note

    async def _cycle(self) -> bool:
        """Wait for work and do it; return False after the last cycle."""
        await self._work.wait()
        self._work.clear()
        until = self._seq
        if not (self._refill.is_set() or self._at_once or self.spool_trouble):
            await self._wait_refill(_DELAY)
        closing = self._closing
        if self._behind or self._at_once or closing:
            until = self._seq
        self._at_once = False
        try:
            await self._save(until, closing)
        finally:  # a full disk can still be read
            self._refill.clear()
            if self._wants_refill and not closing:
                await self._read()
                self._check_refill()  # the next cycle saves new events, then continues to read
        if self._unsaved:
            self._work.set()
        return not closing

    async def _save(self, until: int, closing: bool) -> None:
        """Write events up to `until` to disk, and update the note."""
        assert self._spool
        saving: list[SpooledEvent] = []
        while self._unsaved and (self._unsaved[0].seq <= until or self._unsaved[0].boot != self._boot):
            saving.append(self._unsaved.popleft())
        finished, self._finished = self._finished, []
        safe = self._unsaved[0].seq - 1 if self._unsaved else self._seq
        note = Note(self._boot, safe, closing, self.losses.unreported)
        if not saving and not finished and note == self._note and not self.spool_trouble:
            return
        batches = list(_batches((event for event in saving if not event.done), min(_BATCH, self.max_bytes // 8)))
        try:
            stored = await self._in_thread(self._spool.store, batches, finished, note)
        except SpoolError:
            self._unsaved.extendleft(reversed([event for event in saving if not event.done]))
            self._finished = finished + self._finished
            raise
        self._note = note
        for row in stored.rows:
            self._saved(row)
        for id, loss in stored.dropped:
            self._trimmed(id, loss)
        if self.spool_trouble:
            self.spool_trouble = ""
            _logger.info("%s: spool: in use again", self.node)

    def _saved(self, row: Row) -> None:
        in_memory = bool(row.events[0].number)
        if in_memory:
            self._rows[row.id] = row
            if self._behind:
                self._known.add(row.id)
            else:
                self._last_row = row.id
        for event in row.events:
            if event.done:
                continue
            self.in_flight -= 1
            self.spooled += 1
            row.left += 1
            event.row = row
            if not in_memory:
                self._bytes -= event.size
        if not row.left:
            self._finish(row)

    def _trimmed(self, id: int, loss: Loss) -> None:
        """Remove the events of a row that the spool dropped."""
        row = self._rows.pop(id, None)
        count = loss.count or 0
        if row is not None:
            events = [event for event in row.events if not event.done]
            count = len(events)
            for event in events:
                self.window.pop(event.number, None)
                event.done = True
                self._bytes -= event.size
        elif id <= self._last_row or id in self._known:
            self._finished = [row for row in self._finished if row.id != id]
            return
        self.spooled -= count
        self.counts.drop(loss.cause, count)
        self.losses.add(loss.cause, count, loss.first_seq, loss.last_seq, self._other(loss.boot))
        while self._queue and self._queue[0].done:
            self._queue.popleft()
        self.arrived.set()
        self._check_refill()
        self._check_empty()

    async def _read(self) -> None:
        """Read the next events from disk; if there are none, new events go through memory again."""
        assert self._spool
        rows = await self._in_thread(self._spool.read, self._last_row, min(_CHUNK, self._room))
        for row in rows:
            if row.id in self._known:
                self._known.remove(row.id)
            elif row.loss:
                self._trimmed(row.id, row.loss)
                self._finish(row)
            else:
                self._was_read(row)
            self._last_row = row.id
        if not rows:
            self._catch_up()

    def _was_read(self, row: Row) -> None:
        self._rows[row.id] = row
        row.left = len(row.events)
        for event in row.events:
            event.row = row
            self._bytes += event.size
            self._enqueue(event)
        self.arrived.set()

    def _catch_up(self) -> None:
        self._behind = False
        for event in self._unsaved:
            if not event.number:
                self._enqueue(event)
        self.arrived.set()

    async def _give_up_file(self) -> None:
        """Move the damaged file away; events that are also in memory are saved again in a new file."""
        assert self._spool
        with suppress(SpoolError):
            _logger.error("%s: spool: moved to %s", self.node, await self._in_thread(self._spool.set_aside))
        self._open = False
        in_memory = [e for row in self._rows.values() for e in row.events if not e.done]
        count = self.spooled - len(in_memory)
        self._unsaved.extendleft(reversed(in_memory))
        for event in in_memory:
            event.row = None
        self.in_flight += len(in_memory)
        self.spooled = 0
        self._rows.clear()
        self._known.clear()
        self._finished.clear()
        self._last_row = 0
        if count:
            self.counts.drop(DAMAGED, count)
            self.losses.add(DAMAGED, count, None, None)
        self._catch_up()

    def _report(self, reason: str) -> None:
        if reason != self.spool_trouble:
            self.spool_trouble = reason
            _logger.error("%s: spool: %s; events are kept in memory only", self.node, reason)


def _batches(events: Iterable[SpooledEvent], max_bytes: int) -> Iterator[list[SpooledEvent]]:
    """Split into rows of one boot and about `max_bytes`, whose events are either all in memory or all on disk only."""
    for _, group in itertools.groupby(events, lambda event: (event.boot, bool(event.number))):
        batch: list[SpooledEvent] = []
        size = 0
        for event in group:
            batch.append(event)
            size += event.size
            if size >= max_bytes:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch
