"""Publishes the state class: every event must arrive and is acknowledged by JetStream."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from nats.errors import Error as NatsError

from ..bus.acked_publisher import AckedPublisher, Refusal
from ..bus.connection import NatsConnection, TooLarge, reason_of
from ..bus.hardened_client import Acks
from ..bus.streams import StateStream, Unsuitable
from ..bus.supervisor import ConnectionSupervisor
from .backlog import Backlog
from .raw_envelopes import split_headers

_logger = logging.getLogger(__name__)

_IDLE = 60.0  # seconds without events after which the stream is checked, unless another gateway has done so lately


class StatePublisher:
    """Publishes in order, each message acknowledged by JetStream; unacknowledged messages are sent again.

    Each message carries `Nats-Msg-Id: <node>.<boot>.<seq>`, so that JetStream stores it once. After a new connection, a
    refusal or a late acknowledgement, all unacknowledged messages are sent again in order. While the stream
    acknowledges no message (`no_ack`), none is sent.
    """

    WINDOW = 1024  # unacknowledged messages; nats-server buffers ten times as many for a stream
    REFUSALS = 3

    def __init__(
        self,
        bus: ConnectionSupervisor,
        stream: StateStream,
        backlog: Backlog,
        ack_timeout: float = 5.0,
        delay: float = 0.25,
    ) -> None:
        self._backlog = backlog
        self.trouble = "JetStream has not answered yet"
        """Why events are not accepted, as a sentence; empty while they are."""
        self._bus = bus
        self._stream = stream
        self._publisher = AckedPublisher(self.WINDOW, ack_timeout, self._settle, self._refuse)
        self._longest_delay = ack_timeout
        self._first_delay = self._delay = delay
        self._window = backlog.window
        self._refused: dict[int, Refusal] = {}
        self._highest_ack = 0
        self._idle: float | None = _IDLE
        self._unchecked = ""  # why the stream cannot be checked
        self._troubled = False  # none of the messages sent last was accepted
        self._wake = backlog.arrived

    async def run(self) -> None:
        """Publish until cancelled, on successive connections."""
        await self._bus.serve(self._serve)

    async def _serve(self, connection: NatsConnection) -> None:
        await self._publisher.open(connection)
        connection.on_lost(self._wake.set)
        self._idle, refusal = _IDLE, None
        try:
            while connection.alive:
                # After trouble the stream is checked again, even if another gateway has just done so.
                fresh = self._troubled or refusal is not None
                if not await self._check_stream(connection, since=_now() - (0 if fresh else _IDLE / 2)):
                    await connection.unless_lost(asyncio.sleep(self._longest_delay))
                    continue
                if refusal is not None:
                    if refusal:
                        self._report(refusal)
                    await connection.unless_lost(asyncio.sleep(self._delay))
                    self._delay = min(self._delay * 2, self._longest_delay)
                refusal = await self._publish(connection)
        finally:
            self._rewind()

    async def _check_stream(self, connection: NatsConnection, since: float) -> bool:
        """Ensure that the stream exists, unless that was checked after `since`; return whether to publish."""
        unchecked, self._unchecked = self._unchecked, ""
        try:
            await self._stream.ensure(connection, since)
        except Unsuitable as error:
            self._report(reason_of(error))
            return False
        except NatsError as error:
            # An administrator may have denied this request; the acknowledgements show whether events are accepted.
            self._unchecked = self.trouble = reason_of(error)
            if isinstance(error, TimeoutError):
                self._idle = None
            if not (unchecked or self._troubled):
                _logger.warning("JetStream: cannot check the stream %s: %s", self._stream.name, self._unchecked)
            return True
        if not self._troubled:
            self.trouble = ""
        elif not self._backlog.waiting:
            self._recover()
        return True

    async def _publish(self, connection: NatsConnection) -> str | None:
        """Publish until a message is refused or late; return why if none was accepted, and None when idle."""
        loop = asyncio.get_running_loop()
        while connection.alive:
            self._wake.clear()
            self._send()
            late = bool(self._publisher.late(loop.time()))
            if late or self._refused:
                return await self._abandon_window(connection, late)
            if not self._held_up:
                self._backlog.losses.report(loop.time())
            if not await self._pause(loop.time()) and not self._window:
                break
        return None

    def _send(self) -> None:
        room = self._publisher.room
        if self._refused or room < self.WINDOW // 4:  # acknowledgements make room for a larger block
            return
        node = self._backlog.node
        for event in self._backlog.take(room):
            lines, payload = split_headers(event.payload)
            lines += f"Nats-Msg-Id: {node}.{event.boot}.{event.seq}\r\n".encode()
            try:
                self._publisher.publish(event.number, event.subject, payload, lines)
            except TooLarge:
                self._backlog.drop(event, "larger than the server accepts")
        self._publisher.flush()

    async def _pause(self, now: float) -> bool:
        """Wait for a new event, an acknowledgement, the loss of the connection or a deadline; return False if idle."""
        if self._wake.is_set():
            return True
        wait = self._publisher.wait(now)
        if not self._held_up and (due := self._backlog.losses.wait(now)) is not None:
            wait = due if wait is None else min(wait, due)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._idle if wait is None else wait):
                await self._wake.wait()
        return wait is not None or self._wake.is_set()

    @property
    def _held_up(self) -> bool:
        """Whether a gap envelope would be queued behind the events that caused the gap."""
        return self._troubled or bool(self._refused)

    def _settle(self, acks: Acks) -> None:
        highest = self._backlog.published(acks)
        if not highest:
            return  # the spool has dropped them meanwhile
        self._highest_ack = max(self._highest_ack, highest)
        self._delay = self._first_delay
        if self.trouble:
            self._recover()
        if self._backlog.queued or self._refused:  # otherwise nothing is to be done before the next event
            self._wake.set()

    def _refuse(self, number: int, refusal: Refusal) -> None:
        if number in self._window:
            self._refused[number] = refusal
            self._wake.set()

    async def _abandon_window(self, connection: NatsConnection, late: bool) -> str:
        """Wait for the window's answers, queue the rest again, and return why no message was acknowledged, if so."""
        loop = asyncio.get_running_loop()
        while self._publisher.waiting and connection.alive and not late:
            self._wake.clear()
            await self._pause(loop.time())
            late = bool(self._publisher.late(loop.time()))
        silence = f"no acknowledgement within {self._publisher.timeout:g} seconds"
        reason = next((refusal.sentence for refusal in self._refused.values()), silence)
        none_accepted = bool(self._window) and next(iter(self._window)) > self._highest_ack
        self._drop_refused()
        self._rewind()
        return reason if none_accepted else ""

    def _drop_refused(self) -> None:
        """Drop events that were refused repeatedly while later ones were accepted: they would block all others."""
        for number, event in list(self._window.items()):
            if number < self._highest_ack:
                event.refusals += 1
                if event.refusals >= self.REFUSALS:
                    self._backlog.drop(event, "refused by the server")

    def _rewind(self) -> None:
        self._publisher.forget()
        self._backlog.rewind()
        self._refused.clear()
        self._highest_ack = 0

    def _report(self, trouble: str) -> None:
        self.trouble = self._unchecked or trouble
        if not self._troubled:
            self._troubled = True
            node = self._backlog.node
            _logger.warning("%s: JetStream: rejects events: %s; keeping %d", node, trouble, self._backlog.waiting)

    def _recover(self) -> None:
        self.trouble = ""
        if self._troubled:
            self._troubled = False
            _logger.info("%s: JetStream: acknowledges events again", self._backlog.node)


def _now() -> float:
    return asyncio.get_running_loop().time()
