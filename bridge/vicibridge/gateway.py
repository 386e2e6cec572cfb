"""One charon: its events, read without pause whatever NATS does, and handed to the pipelines of their class."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from vicifast._wire import Raw, Reader
from vicifast.aio import AsyncSession, Listener
from vicifast.commands import EVENTS
from vicifast.errors import DecodeError, EncodeError, UnknownEvent, ViciError

from .bus.streams import state_stream
from .bus.supervisor import Bus
from .config.model import Config, GatewayConfig, LogConfig
from .contract.subjects import Subjects, kind_of
from .events.backlog import KILLED, Backlog
from .events.envelopes import new_boot, new_envelopes
from .events.log_publisher import STOPPED, LogPublisher
from .events.losses import OVER_UNAUTHENTICATED_RATE, Loss
from .events.ratelimit import UnauthenticatedLimit
from .events.raw_envelopes import RawBatcher
from .events.spool import Spool
from .events.state_publisher import StatePublisher
from .mirror.worker import MirrorWorker

_logger = logging.getLogger(__name__)

_STANDALONE = [event.name for event in EVENTS.values() if event.standalone]
_STATE = [name for name in _STANDALONE if name != "log"]
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 3.0
_LIMITED_EVERY = 5.0  # seconds whose events over the limit make one gap
_TIMEOUT = 10.0  # seconds for charon to take a connection and answer registrations


class Gateway:
    """Reads the events of one charon for ever, and tells on the bus when it is up, down, or events were lost."""

    def __init__(self, settings: Config, gateway: GatewayConfig, bus: Bus) -> None:
        self.node = gateway.node
        self.address = gateway.vici
        self.subjects = Subjects(settings.nats.prefix, gateway.node)
        self.boot = boot = new_boot()
        self._events = new_envelopes(settings.events.codec, gateway.node, boot)
        self._lines = new_envelopes(settings.log.codec, gateway.node, boot)
        self._batcher = self._lines.batcher("log", ("group", "level"), self._log_subject)
        self._filter(settings.log)
        self._limit = UnauthenticatedLimit(settings.events.unauthenticated_rate)
        self._over_limit = 0
        self.state = self._new_state(settings, bus)
        self.log = LogPublisher(
            bus,
            settings.log.linger_ms / 1000,
            settings.log.max_bytes,
            partial(self._tell_loss, "log"),
            batch=0 if settings.log.codec == "raw" else LogPublisher.BATCH,
        )
        self.mirroring = (
            MirrorWorker(settings, self.subjects, gateway, boot, bus, self.tell) if settings.mirror.enabled else None
        )
        self._session: AsyncSession | None = None
        self._stopping = asyncio.Event()
        self._unregistered = asyncio.Event()
        self.connects = 0
        self.reason = "not connected yet"  # why charon is not up
        self.events: Counter[tuple[str, str]] = Counter()  # of the state class, by name and kind
        self._up: bool | None = None
        self._down_since = 0

    def _new_state(self, settings: Config, bus: Bus) -> StatePublisher:
        node, kept = self.subjects.node, settings.spool
        spool = Spool(kept.path / f"{node}.spool", kept.max_bytes, kept.max_age_days * 86400)
        backlog = Backlog(node, self.boot, settings.events.max_bytes, partial(self._tell_loss, "state"), spool)
        return StatePublisher(bus, state_stream(settings.nats), backlog)

    @property
    def up(self) -> bool:
        """Whether charon is connected and its events are registered."""
        return bool(self._up)

    async def run(self) -> None:
        """Read events until `stop`; connect again for ever."""
        before = await self.state.backlog.open()
        known = {"boot": before.boot, "last_seq": before.seq, "clean": before.clean} if before else None
        self._tell_status("starting", **{"previous": known} if known else {})
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
        self._tell_status("stopping")

    async def stop(self) -> None:
        """Unregister and make `run` end; what comes until charon confirms is a gap, but for gathered log lines."""
        if self._stopping.is_set():
            await self._unregistered.wait()
            return
        self._stopping.set()
        if self._session is not None:
            self._batcher.silent = True  # nobody listens any more to be told of lines
            await self._session.close()
            self._gather(asyncio.get_running_loop().time())
            if late := self._session.late_events:
                self._tell_gap("all", STOPPED, late, None, None)
        self._count_dropped()
        self._unregistered.set()

    def reload(self, settings: Config) -> None:
        """Take over what may change at run time."""
        self.state.configure(settings.events.max_bytes)
        self._limit.rate = settings.events.unauthenticated_rate
        self.log.configure(settings.log.linger_ms / 1000, settings.log.max_bytes)
        self._filter(settings.log)
        if self.mirroring:
            self.mirroring.reload(settings.mirror)

    @property
    def left_out(self) -> int:
        """Log events that the configuration does not want."""
        return self._batcher.left_out

    def _filter(self, log: LogConfig) -> None:
        self._groups = frozenset(name.encode() for name in log.groups)
        self._levels = frozenset(str(level).encode() for level in log.levels)
        pattern = re.compile(log.pattern.encode()) if log.pattern else None
        self._batcher.wanted = pattern.search if pattern else None
        self._batcher.every = log.every
        self._batcher.rate = log.rate
        self._batcher.forget()

    def _log_subject(self, group: bytes, level: bytes) -> str | None:
        # What has no group or level is not filtered: it may be malformed, and that has to be told.
        if (group and self._groups and group not in self._groups) or (level and level not in self._levels):
            return None
        return self.subjects.log(group, level)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _read(self) -> None:
        readers: dict[str, Reader] = {name: Raw() for name in _STATE}
        readers["log"] = Raw() if isinstance(self._batcher, RawBatcher) else self._batcher
        session = AsyncSession(self.address, timeout=_TIMEOUT, readers=readers)
        self._session = session
        try:
            await session.connect()
            if self._stopping.is_set():
                return
            # One listener for each class, so that it is known of which class events were lost.
            listeners = [session.listen("log"), session.listen(*_STATE)]
            for listener in listeners:
                await self._ready(listener)
            self._came_up(session)
            await asyncio.gather(*(self._follow(listener) for listener in listeners))
        finally:
            await session.close()
            self._gather(asyncio.get_running_loop().time())

    async def _ready(self, listener: Listener) -> None:
        try:
            await listener.ready()
        except UnknownEvent as error:
            _logger.info("%s: %s; going on without", self.node, error)

    async def _follow(self, listener: Listener) -> None:
        """Take over what the listener has, for ever; raises what ends it."""
        lost = 0
        while True:
            batch = await listener.batch()
            if listener.lost > lost:
                is_log = batch[-1][0] == "log"
                pipeline, envelopes = (self.log, self._lines) if is_log else (self.state, self._events)
                pipeline.lost("the bridge fell behind charon", *envelopes.skip(listener.lost - lost))
                lost = listener.lost
                if self.mirroring and not is_log:
                    self.mirroring.lost()
            self._take(batch)

    def _take(self, batch: Sequence[tuple[str, object]]) -> None:
        """Hand over everything that came together; nothing here waits."""
        time_ns = time.time_ns()
        now = asyncio.get_running_loop().time()
        for event, raw in batch:
            if raw is self._batcher:
                self._gather(now)
                continue
            is_log = event == "log"
            envelopes = self._lines if is_log else self._events
            try:
                if not isinstance(raw, bytes):
                    raise DecodeError("no message", 0)
                if isinstance(self._batcher, RawBatcher) and is_log:
                    self._batcher.add(time_ns, raw)
                    continue
                subject = self.subjects.event(event, raw)
                kind = kind_of(event, subject)
                within_limit = kind in ("up", "down") or self._limit.takes(time_ns, event, raw)
                envelope = envelopes.wrap(time_ns, event, raw) if within_limit else b""
            except DecodeError:
                pipeline = self.log if is_log else self.state
                pipeline.lost("malformed message from charon", *envelopes.skip(1))
                continue
            self.events[event, kind] += 1
            if not within_limit:
                self._drop()
                continue
            self.state.put(envelopes.seq, subject, envelope)
            if self.mirroring:
                self.mirroring.event(time_ns, event, raw)
        if isinstance(self._batcher, RawBatcher):
            self._gather(now)

    def _drop(self) -> None:
        """Leave out an event over the limit; those of some seconds get their numbers together, so one gap has them."""
        if not self._over_limit:
            asyncio.get_running_loop().call_later(_LIMITED_EVERY, self._count_dropped)
        self._over_limit += 1

    def _count_dropped(self) -> None:
        if self._over_limit:
            self.state.lost(OVER_UNAUTHENTICATED_RATE, *self._events.skip(self._over_limit))
            self._over_limit = 0

    def _gather(self, now: float) -> None:
        """Hand over the log events that the framer has put into envelopes already."""
        for subject, payload, count, first, last in self._batcher.take():
            self.log.put(subject, payload, count, first, last, now)
        for cause, count, first, last in self._batcher.dropped():
            self.log.lost(cause, first, last, count)

    def _came_up(self, session: AsyncSession) -> None:
        if self._up is False and self._down_since:
            gap = {"since": self._down_since, "until": time.time_ns()}
            self._tell_gap("all", "charon was gone", None, None, None, **gap)
        self._up = True
        self.connects += 1
        _logger.info("%s: charon is up at %s", self.node, self.address)
        self._tell_status("running")
        if self.mirroring:
            self.mirroring.connected(session)

    def _went_down(self, error: Exception) -> None:
        self.reason = str(error)
        if self._up is False:
            return
        was_up, self._up = self._up, False
        _logger.warning("%s: charon is not there: %s; trying again", self.node, error)
        if was_up:
            self._down_since = time.time_ns()
        self._tell_status("running")
        if self.mirroring:
            self.mirroring.disconnected()

    def _tell_status(self, bridge: str, **more: object) -> None:
        self.tell("status", {"bridge": bridge, "charon": "up" if self._up else "down", **more})

    def _tell_loss(self, kind: str, loss: Loss) -> None:
        boot = loss.boot or self.boot
        self._tell_gap(kind, loss.cause, loss.count, loss.first_seq, loss.last_seq, boot=boot)
        if kind == "state" and loss.cause == KILLED:  # no log line was on disk
            self._tell_gap("log", KILLED, None, None, None, boot=boot)

    def _tell_gap(
        self, kind: str, cause: str, count: int | None, first_seq: int | None, last_seq: int | None, **more: object
    ) -> None:
        """Tell that events of a class are missing; None is what nobody can know."""
        gap = {"class": kind, "cause": cause, "count": count, "first_seq": first_seq, "last_seq": last_seq}
        self.tell("gap", {**gap, **more})

    def tell(self, kind: str, data: Mapping[str, object]) -> None:
        """Publish an envelope of the bridge's own, as one of the state class."""
        try:
            envelope = self._events.wrap_object(time.time_ns(), kind, data)
        except EncodeError:
            self.state.lost("larger than VICI carries", *self._events.skip(1))
            return
        self.state.put(self._events.seq, self.subjects.bridge(kind), envelope, tell=kind != "gap")
