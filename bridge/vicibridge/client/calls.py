"""Requests under way: all answers to one client come in one inbox, and the end of its subject says to what."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from vicifast import _wire
from vicifast.commands import COMMANDS, EVENTS
from vicifast.errors import (
    CommandError,
    ConnectionClosed,
    DecodeError,
    EncodeError,
    RequestTimeout,
    UnknownCommand,
    ViciError,
)
from vicifast.protocol import Body, Call, Section, Values, check_text

from ..bus.connection import Disconnected, Link, TooLarge, reason_of
from ..bus.supervisor import Bus
from ..contract import names
from .errors import BusError, Busy, Denied, Unavailable


class Asked(Protocol):
    """Whoever waits for the answers to one request."""

    subject: str

    def take(self, message: Msg) -> None:
        """Take in one answer."""

    def fail(self, error: ViciError) -> None:
        """No answer will come."""


class Calls:
    """The requests of one client that are under way.

    After a loss of the connection answers come on the next one. As those of between are lost, a request that would
    wait without a limit ends with `ConnectionClosed`.
    """

    def __init__(self, bus: Bus, user: str | None) -> None:
        self._bus = bus
        self._user = {} if user is None else {names.USER_HEADER: user}
        self._inbox = ""
        self._open: dict[str, Asked] = {}
        self._unlimited: set[str] = set()
        self._numbers = itertools.count(1)
        self._heard: Link | None = None  # the link on which answers come
        self._hearing: asyncio.Task[Subscription] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._serving = asyncio.create_task(bus.serve(self._serve))

    def begin(
        self, asked: Asked, payload: bytes, headers: Mapping[str, str], limit: float | None
    ) -> Callable[[], None]:
        """Send a request, once there is a connection; return what to call when no more answers are wanted.

        `limit` is how long its answers are waited for, in seconds.
        """
        number = str(next(self._numbers))
        self._open[number] = asked
        if limit is None:
            self._unlimited.add(number)
        task = asyncio.create_task(self._send(asked, payload, number, headers))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return lambda: self._leave(number)

    def _leave(self, number: str) -> None:
        self._open.pop(number, None)
        self._unlimited.discard(number)

    async def close(self) -> None:
        """End what is under way with `ConnectionClosed`, and take no more answers."""
        for asked in list(self._open.values()):
            asked.fail(ConnectionClosed("the fleet was closed"))
        tasks = [self._serving, *self._sending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def denied(self, error: str) -> bool:
        """NATS does not let this user publish, or hear answers: fail the requests that `error` is about.

        `error` is in small letters. Returns whether it is about any of them, or about where answers come.
        """
        deaf = f'subscription to "{self._inbox}.*"'.lower() in error
        reason = f"this user may not subscribe to {self._inbox}.*, where answers come; inbox_prefix names another place"
        failed = [each for each in self._open.values() if deaf or f'publish to "{each.subject}"'.lower() in error]
        if deaf:  # the next request tries again, in an inbox that no subscription is left of
            self._inbox, self._hearing = "", None
        for asked in failed:
            text = reason if deaf else f"this user may not publish to {asked.subject}"
            asked.fail(Denied("NATS", asked.subject.rpartition(".")[2], names.DENIED, text))
        return deaf or bool(failed)

    async def _serve(self, link: Link) -> None:
        if self._open:
            await self._hear(link)
        reason = await link.lost()
        for number in list(self._unlimited):
            text = f"NATS: the connection was lost, and maybe the answer with it: {reason}"
            self._open[number].fail(ConnectionClosed(text))

    async def _hear(self, link: Link) -> None:
        """See that answers come on `link`."""
        if self._hearing is None or self._heard is not link:
            self._inbox = self._inbox or link.client.new_inbox()
            self._heard = link
            self._hearing = asyncio.create_task(link.subscribe(f"{self._inbox}.*", self._take))
        await asyncio.shield(self._hearing)

    async def _send(self, asked: Asked, payload: bytes, number: str, headers: Mapping[str, str]) -> None:
        link = await self._connected()
        if number not in self._open:
            return
        try:
            reply = f"{self._inbox}.{number}"
            await link.publish(asked.subject, payload, reply, {**self._user, **headers} or None)
        except TooLarge as error:
            asked.fail(EncodeError(f"the request has {error}"))
        except Disconnected as lost:
            asked.fail(ConnectionClosed(f"NATS: the connection was lost while the request was sent: {lost}"))
        except nats.errors.Error as error:
            asked.fail(ConnectionClosed(f"NATS: {reason_of(error)}"))

    async def _connected(self) -> Link:
        """Return a link on which answers come, waiting for one if need be."""
        while True:
            link = await self._bus.link()
            with contextlib.suppress(Disconnected):
                await self._hear(link)
                return link

    async def _take(self, message: Msg) -> None:
        asked = self._open.get(message.subject.rpartition(".")[2])
        if asked is not None:
            asked.take(message)

    async def wait_call(self, call: Call, timeout: float | None) -> None:
        """Wait for news of a call; `RequestTimeout` when there is none for `timeout` seconds."""
        assert isinstance(call, NodeCall)
        try:
            async with asyncio.timeout(timeout):
                await news(call)
        except TimeoutError:
            error = self._overdue(call, timeout)
            call.fail(error)
            raise error from None
        except asyncio.CancelledError:
            call.abandon()
            raise

    def _overdue(self, call: NodeCall, timeout: float | None) -> ViciError:
        if not self._bus.connected:
            return ConnectionClosed(f"NATS: not connected: {self._bus.reason}")
        text = f"{call.node}: {call.command}: nothing came for {timeout:g} seconds"
        if call.captured_by:
            text += f"; the stream {call.captured_by} captures {call.subject}, so NATS cannot report a missing bridge"
        return RequestTimeout(text)


class Wakes(Protocol):
    """What can be waited for: it calls `wake` when it has something new."""

    wake: Callable[[], None] | None


async def news(asked: Wakes) -> None:
    """Wait until there is something new; one task at a time may."""
    if asked.wake is not None:
        raise RuntimeError("another task waits for this already")
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asked.wake = lambda: None if waiter.done() else waiter.set_result(None)
    try:
        await waiter
    finally:
        asked.wake = None


def is_no_responders(message: Msg) -> bool:
    """Whether NATS itself reports that nobody subscribes to the subject of the request."""
    headers = message.headers or {}
    return not message.data and headers.get(names.STATUS_HEADER) == "503" and names.NODE_HEADER not in headers


class NodeCall(Call):
    """A command that one node answers. `leave` forgets it where answers come in.

    `captured_by` is the JetStream stream that acknowledged the request, as one does whose subjects include commands.
    """

    __slots__ = ("node", "subject", "leave", "captured_by", "_values", "_count", "_told")

    def __init__(self, node: str, subject: str, command: str, values: Values) -> None:
        known = COMMANDS.get(command)
        super().__init__(command, known.event if known else None)
        self.node = node
        self.subject = subject
        self.leave: Callable[[], None] = lambda: None
        self.captured_by = ""
        self._values = values
        self._count = 0
        self._told: Section | _wire.Message | None = None
        self.sent = True

    def take(self, message: Msg) -> None:
        """Take in one message of the answer."""
        if self.done:
            return
        headers = message.headers or {}
        if names.NODE_HEADER not in headers and not is_no_responders(message):
            self.captured_by = self.captured_by or _stream_of(message.data)
            return
        try:
            self._take(message.data, headers)
        except DecodeError as error:
            self.fail(error)
        except EncodeError as error:  # what stands in msgpack is not all VICI
            self.fail(BusError(self.node, self.command, names.BAD_ANSWER, str(error)))
        if self.wake is not None:
            self.wake()

    def _take(self, data: bytes, headers: Mapping[str, str]) -> None:
        code = headers.get(names.ERROR_CODE_HEADER) or headers.get(names.STATUS_HEADER, "")
        if code and code != "200":
            self.fail(_error(self.node, self.command, int(code), headers, data))
        elif code:
            self._end(headers.get(names.COUNT_HEADER, ""))
        elif headers.get(names.PART_HEADER) == "response":
            self._told = self._read(data)
        elif self.event is None:
            self._finish(self._read(data))
        else:
            self._count += 1
            if not self.abandoned:
                self.items.append(cast(Body, self._read(data, EVENTS[self.event].binary)))

    def _end(self, count: str) -> None:
        if count != str(self._count):
            text = f"{self._count} parts of {count} have come, the others were lost"
            self.fail(BusError(self.node, self.command, names.BAD_ANSWER, text))
            return
        good: dict[str, object] = {"success": "yes"} if COMMANDS[self.command].result else {}
        self._finish(self._told if self._told is not None else _value(_wire.encode(good), self._values))

    def _finish(self, response: Section | _wire.Message) -> None:
        self.response = response
        self.done = True
        self.leave()

    def fail(self, error: ViciError) -> None:
        """End with an error."""
        if not self.done:
            self.error = error
            self.done = True
            self.leave()
            if self.wake is not None:
                self.wake()

    def abandon(self) -> None:
        super().abandon()
        self.leave()

    def _read(self, data: bytes, binary: frozenset[str] = frozenset()) -> Section | _wire.Message:
        return _value(_wire.from_msgpack(data), self._values, binary)


def _stream_of(acknowledgement: bytes) -> str:
    """Return the name of the stream in an acknowledgement of JetStream; nothing when it is something else."""
    try:
        return str(json.loads(acknowledgement)["stream"])
    except (ValueError, KeyError, TypeError):
        return ""


def _value(raw: bytes, values: Values, binary: frozenset[str] = frozenset()) -> Section | _wire.Message:
    if values is str or values is bytes:
        return _wire.decode(raw, values=values, binary=binary)
    return _wire.Message(raw, binary=binary)


def encode_request(command: str, message: Mapping[str, object] | None) -> bytes:
    """Return a request as msgpack; EncodeError for what VICI cannot carry or charon would misunderstand."""
    check_text(command, message or {})
    return _wire.to_msgpack(_wire.encode(message or {}))


def request_headers(timeout: float | None) -> dict[str, str]:
    """Return the headers that tell a bridge how long it may take."""
    return {} if timeout is None else {names.TIMEOUT_HEADER: f"{timeout:g}"}


def _error(node: str, command: str, code: int, headers: Mapping[str, str], data: bytes) -> ViciError:
    """Return what a session would raise, or its counterpart on the bus."""
    text = headers.get(names.ERROR_HEADER) or headers.get(names.DESCRIPTION_HEADER)
    if names.ERROR_CODE_HEADER not in headers and code == names.UNAVAILABLE:
        text = "no bridge serves it"  # says NATS, as nobody listens
    kinds: dict[int, Any] = {
        names.DENIED: Denied,
        names.BUSY: Busy,
        names.UNAVAILABLE: Unavailable,
    }
    match code:
        case names.UNKNOWN:
            return UnknownCommand(command)
        case names.FAILED:
            response: dict[str, object] = {"success": "no", "errmsg": text or ""}
            return CommandError(command, text or "", _wire.decode(_wire.from_msgpack(data)) if data else response)
        case names.TIMEOUT:
            return RequestTimeout(f"{node}: {command}: {text}")
    error: ViciError = kinds.get(code, BusError)(node, command, code, text or f"error {code}")
    return error
