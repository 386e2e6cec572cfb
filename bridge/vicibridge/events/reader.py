"""Reads the events of one charon, without waiting for NATS, and passes them to the publisher of their class."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple, Protocol

from vicifast._wire import Message, Outliner, Raw, Reader
from vicifast.aio import AsyncSession, Listener
from vicifast.commands import EVENTS
from vicifast.errors import DecodeError, UnknownEvent, ViciError

from ..config.model import Config, LogConfig
from ..contract.subjects import OUTLINE, Subjects, kind_of
from .backlog import Backlog
from .envelopes import Envelopes
from .log_publisher import STOPPED, LogPublisher
from .losses import OVER_UNAUTHENTICATED_RATE, gap
from .ratelimit import UnauthenticatedLimit, unauthenticated
from .raw_envelopes import RawEnvelopes

_logger = logging.getLogger(__name__)

_STANDALONE = [event.name for event in EVENTS.values() if event.standalone]
_STATE = [name for name in _STANDALONE if name != "log"]
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 3.0
_LIMITED_EVERY = 5.0  # seconds; the events over the limit in that time are reported as one gap
_LABELS = 4096  # outlines whose labels are cached; each connection has a few
_TIMEOUT = 10.0  # seconds for charon to accept a connection and answer registrations


class _Label(NamedTuple):
    """What the outline of an event determines."""

    subject: str
    kind: tuple[str, str]
    """The name of the event, and its kind."""
    limited: str | None
    """The type by which it is limited, None for an event that only an authenticated peer can cause."""


class StateObserver(Protocol):
    """Receives the events of the state class as VICI messages: the mirror."""

    def connected(self, session: AsyncSession[Message]) -> None:
        """charon is connected and its events are registered on `session`."""

    def disconnected(self) -> None:
        """The connection to charon has ended."""

    def lost(self) -> None:
        """Events may be missing."""

    def event(self, time_ns: int, event: str, raw: bytes) -> None:
        """An event arrived; calls are in the order in which charon sent them."""


class EventReader:
    """Reads the events of one charon, reconnecting indefinitely.

    `report` publishes an event of the bridge: each change of the connection's state, and events that were lost.
    """

    def __init__(
        self,
        settings: Config,
        address: str,
        subjects: Subjects,
        events: Envelopes | RawEnvelopes,
        lines: Envelopes | RawEnvelopes,
        backlog: Backlog,
        log: LogPublisher,
        report: Callable[[str, Mapping[str, object]], None],
        mirror: StateObserver | None,
    ) -> None:
        self.connects = 0
        self.reason = "not connected yet"  # why charon is not up
        self.events: Counter[tuple[str, str]] = Counter()  # of the state class, by name and kind
        self._node = subjects.node
        self._address = address
        self._subjects = subjects
        self._events = events
        self._backlog = backlog
        self._lines = lines
        self._intake = self._lines.intake("log", ("group", "level"), self._log_subject)
        self._batcher = self._intake.batcher
        self._log = log
        self._report = report
        self._mirror = mirror
        self._filter(settings.log)
        self._limit = UnauthenticatedLimit(settings.events.unauthenticated_rate)
        self._outliner = Outliner(OUTLINE)
        self._label = lru_cache(_LABELS)(self._new_label)
        self._over_limit = 0
        self._session: AsyncSession[Message] | None = None
        self._stopping = asyncio.Event()
        self._unregistered = asyncio.Event()
        self._up: bool | None = None
        self._down_since = 0

    @property
    def up(self) -> bool:
        """Whether charon is connected and its events are registered."""
        return bool(self._up)

    @property
    def left_out(self) -> int:
        """Log events excluded by the configuration."""
        return self._batcher.left_out

    async def run(self) -> None:
        """Read events until `stop`, reconnecting indefinitely."""
        delay = _FIRST_DELAY
        while not self._stopping.is_set():
            try:
                await self._read()
            except (ViciError, OSError) as error:
                if not self._stopping.is_set():
                    delay = _FIRST_DELAY if self._up else min(delay * 2, _LONGEST_DELAY)
                    self._went_down(error)
            await self._sleep(delay * random.uniform(0.5, 1))
        await self._unregistered.wait()

    async def stop(self) -> None:
        """Unregister and end `run`; events that arrive before charon confirms are a gap, except batched log lines."""
        if self._stopping.is_set():
            await self._unregistered.wait()
            return
        self._stopping.set()
        if self._session is not None:
            self._batcher.silent = True  # no listener is left to receive lines
            await self._session.close()
            self._gather(asyncio.get_running_loop().time())
            if late := self._session.late_events:
                self._report("gap", gap("all", STOPPED, late))
        self._count_dropped()
        self._unregistered.set()

    def reload(self, settings: Config) -> None:
        """Apply what may change at run time: the log filter and the rate limits."""
        self._limit.rate = settings.events.unauthenticated_rate
        self._filter(settings.log)

    def report_status(self, bridge: str, **more: object) -> None:
        """Report the bridge's state and whether charon is up."""
        self._report("status", {"bridge": bridge, "charon": "up" if self._up else "down", **more})

    def _filter(self, log: LogConfig) -> None:
        self._groups = frozenset(name.encode() for name in log.groups)
        self._levels = frozenset(str(level).encode() for level in log.levels)
        pattern = re.compile(log.pattern.encode()) if log.pattern else None
        self._batcher.wanted = pattern.search if pattern else None
        self._batcher.every = log.every
        self._batcher.rate = log.rate
        self._batcher.forget()

    def _log_subject(self, group: bytes, level: bytes) -> str | None:
        # A line without group or level passes the filter: it may be malformed, and that must be reported.
        if (group and self._groups and group not in self._groups) or (level and level not in self._levels):
            return None
        return self._subjects.log(group, level)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _read(self) -> None:
        readers: dict[str, Reader] = {name: Raw() for name in _STATE}
        readers["log"] = self._intake.reader
        session = AsyncSession(self._address, timeout=_TIMEOUT, values=Message, readers=readers)
        self._session = session
        try:
            await session.connect()
            if self._stopping.is_set():
                return
            # One listener per class, so that lost events are counted by class.
            log, state = session.listen("log"), session.listen(*_STATE)
            for listener in (log, state):
                await self._ready(listener)
            self._came_up(session)
            await asyncio.gather(
                self._follow(log, self._lost_log, self._take_log),
                self._follow(state, self._lost_state, self._take_state),
            )
        finally:
            await session.close()
            self._gather(asyncio.get_running_loop().time())

    async def _ready(self, listener: Listener[Message]) -> None:
        try:
            await listener.ready()
        except UnknownEvent as error:
            _logger.info("%s: %s; continuing without", self._node, error)

    async def _follow(
        self,
        listener: Listener[Message],
        lose: Callable[[int], None],
        take: Callable[[Sequence[tuple[str, object]]], None],
    ) -> None:
        """Take the events of a listener until its connection ends."""
        lost = 0
        while True:
            batch = await listener.batch()
            if listener.lost > lost:
                lose(listener.lost - lost)
                lost = listener.lost
            take(batch)

    def _lost_log(self, count: int) -> None:
        self._log.lost("the bridge fell behind charon", *self._lines.skip(count))

    def _lost_state(self, count: int) -> None:
        self._backlog.lost("the bridge fell behind charon", *self._events.skip(count))
        if self._mirror:
            self._mirror.lost()

    def _take_log(self, batch: Sequence[tuple[str, object]]) -> None:
        time_ns = time.time_ns()
        for _, message in batch:
            try:
                self._intake.add(time_ns, message)
            except DecodeError:
                self._log.lost("malformed message from charon", *self._lines.skip(1))
        self._gather(asyncio.get_running_loop().time())

    def _take_state(self, batch: Sequence[tuple[str, object]]) -> None:
        time_ns = time.time_ns()
        outline, wrap, seq = self._outliner.outline, self._events.wrap, self._events.seq
        kinds: list[tuple[str, str]] = []
        envelopes: list[tuple[int, str, bytes]] = []
        mirrored: list[tuple[str, bytes]] = []
        for event, raw in batch:
            try:
                if not isinstance(raw, bytes):
                    raise DecodeError("no message", 0)
                subject, kind, limited = self._label(event, outline(raw))
                within_limit = limited is None or self._limit.allows(time_ns, limited)
                envelope = wrap(time_ns, event, raw) if within_limit else b""
            except DecodeError:
                self._backlog.put(envelopes)
                envelopes.clear()
                self._backlog.lost("malformed message from charon", *self._events.skip(1))
                seq += 1
                continue
            kinds.append(kind)
            if not within_limit:
                self._drop()
                continue
            seq += 1
            envelopes.append((seq, subject, envelope))
            if self._mirror:
                mirrored.append((event, raw))
        self.events.update(kinds)
        self._backlog.put(envelopes)
        for event, raw in mirrored:
            assert self._mirror
            self._mirror.event(time_ns, event, raw)

    def _new_label(self, event: str, outline: bytes) -> _Label:
        subject = self._subjects.event(event, outline)
        return _Label(subject, (event, kind_of(event, subject)), unauthenticated(event, outline))

    def _drop(self) -> None:
        """Drop an event over the limit; those of a few seconds get consecutive numbers, so that one gap covers them."""
        if not self._over_limit:
            asyncio.get_running_loop().call_later(_LIMITED_EVERY, self._count_dropped)
        self._over_limit += 1

    def _count_dropped(self) -> None:
        if self._over_limit:
            self._backlog.lost(OVER_UNAUTHENTICATED_RATE, *self._events.skip(self._over_limit))
            self._over_limit = 0

    def _gather(self, now: float) -> None:
        """Pass on the envelopes that the batcher has completed."""
        for subject, payload, count, first, last in self._batcher.take():
            self._log.put(subject, payload, count, first, last, now)
        for cause, count, first, last in self._batcher.dropped():
            self._log.lost(cause, first, last, count)

    def _came_up(self, session: AsyncSession[Message]) -> None:
        if self._up is False and self._down_since:
            times = {"since": self._down_since, "until": time.time_ns()}
            self._report("gap", gap("all", "charon was gone") | times)
        self._up = True
        self.connects += 1
        _logger.info("%s: charon is up at %s", self._node, self._address)
        self.report_status("running")
        if self._mirror:
            self._mirror.connected(session)

    def _went_down(self, error: Exception) -> None:
        self.reason = str(error)
        if self._up is False:
            return
        was_up, self._up = self._up, False
        _logger.warning("%s: charon is not reachable: %s; retrying", self._node, error)
        if was_up:
            self._down_since = time.time_ns()
        self.report_status("running")
        if self._mirror:
            self._mirror.disconnected()
