"""Requests and their replies: one inbox per client, whose last subject token identifies the request."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
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

from ..bus.connection import Disconnected, NatsConnection, TooLarge, reason_of
from ..bus.supervisor import ConnectionSupervisor
from ..contract import names
from .errors import BusError, Busy, Denied, Unavailable


class PendingRequest(Protocol):
    """Receives the replies to one request."""

    subject: str

    def take(self, message: Msg) -> None:
        """Handle one reply."""

    def fail(self, error: ViciError) -> None:
        """End with an error; no reply will arrive."""


class Calls:
    """The pending requests of one client.

    After a reconnect, replies arrive on the new connection. Replies sent in between are lost, so a request without a
    time limit ends with `ConnectionClosed`.
    """

    def __init__(self, bus: ConnectionSupervisor, user: str | None) -> None:
        self._bus = bus
        self._user = {} if user is None else {names.USER_HEADER: user}
        self._inbox = ""
        self._open: dict[str, PendingRequest] = {}
        self._unlimited: set[str] = set()
        self._numbers = itertools.count(1)
        self._connection: NatsConnection | None = None  # the connection with the subscription to replies
        self._subscribing: asyncio.Task[Subscription] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._serving = asyncio.create_task(bus.serve(self._serve))

    def begin(
        self, request: PendingRequest, payload: bytes, headers: Mapping[str, str], limit: float | None
    ) -> Callable[[], None]:
        """Send a request once connected; return a function that ends it.

        `limit` is the maximum wait for replies in seconds, None for no limit.
        """
        number = str(next(self._numbers))
        self._open[number] = request
        if limit is None:
            self._unlimited.add(number)
        task = asyncio.create_task(self._send(request, payload, number, headers))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return lambda: self._leave(number)

    def _leave(self, number: str) -> None:
        self._open.pop(number, None)
        self._unlimited.discard(number)

    async def close(self) -> None:
        """End all pending requests with `ConnectionClosed`."""
        for request in list(self._open.values()):
            request.fail(ConnectionClosed("the fleet was closed"))
        tasks = [self._serving, *self._sending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def denied(self, error: str) -> bool:
        """Fail the requests that a permission error of NATS is about: it denied publishing or the reply inbox.

        `error` is in lower case. Returns whether it is about a pending request or the reply inbox.
        """
        no_replies = f'subscription to "{self._inbox}.*"'.lower() in error
        reason = f"this user may not subscribe to its reply inbox {self._inbox}.*; set inbox_prefix to another one"
        failed = [each for each in self._open.values() if no_replies or f'publish to "{each.subject}"'.lower() in error]
        if no_replies:  # the next request uses a new inbox
            self._inbox, self._subscribing = "", None
        for request in failed:
            text = reason if no_replies else f"this user may not publish to {request.subject}"
            request.fail(Denied("NATS", request.subject.rpartition(".")[2], names.DENIED, text))
        return no_replies or bool(failed)

    async def _serve(self, connection: NatsConnection) -> None:
        if self._open:
            await self._subscribe(connection)
        reason = await connection.lost()
        for number in list(self._unlimited):
            text = f"NATS: the connection was lost, perhaps with the reply: {reason}"
            self._open[number].fail(ConnectionClosed(text))

    async def _subscribe(self, connection: NatsConnection) -> None:
        """Subscribe to the reply inbox on `connection`."""
        if self._subscribing is None or self._connection is not connection:
            self._inbox = self._inbox or connection.client.new_inbox()
            self._connection = connection
            self._subscribing = asyncio.create_task(connection.subscribe(f"{self._inbox}.*", self._take))
        await asyncio.shield(self._subscribing)

    async def _send(self, request: PendingRequest, payload: bytes, number: str, headers: Mapping[str, str]) -> None:
        connection = await self._connected()
        if number not in self._open:
            return
        try:
            reply = f"{self._inbox}.{number}"
            await connection.publish(request.subject, payload, reply, {**self._user, **headers} or None)
        except TooLarge as error:
            request.fail(EncodeError(f"the request has {error}"))
        except Disconnected as lost:
            request.fail(ConnectionClosed(f"NATS: the connection was lost while the request was sent: {lost}"))
        except nats.errors.Error as error:
            request.fail(ConnectionClosed(f"NATS: {reason_of(error)}"))

    async def _connected(self) -> NatsConnection:
        """Wait for a connection with the subscription to replies."""
        while True:
            connection = await self._bus.connection()
            with contextlib.suppress(Disconnected):
                await self._subscribe(connection)
                return connection

    async def _take(self, message: Msg) -> None:
        request = self._open.get(message.subject.rpartition(".")[2])
        if request is not None:
            request.take(message)

    async def wait_call(self, call: Call, timeout: float | None) -> None:
        """Wait for the next message of a call; raises `RequestTimeout` after `timeout` seconds without one."""
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
        text = f"{call.node}: {call.command}: no reply within {timeout:g} seconds"
        if call.captured_by:
            text += f"; the stream {call.captured_by} captures {call.subject}, so NATS cannot report a missing bridge"
        return RequestTimeout(text)


class Wakes(Protocol):
    """Can be awaited with `news`: calls `wake` when it has something new."""

    wake: Callable[[], None] | None


async def news(request: Wakes) -> None:
    """Wait for something new; only one task at a time may wait."""
    if request.wake is not None:
        raise RuntimeError("another task is already waiting for this")
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    request.wake = lambda: None if waiter.done() else waiter.set_result(None)
    try:
        await waiter
    finally:
        request.wake = None


def is_no_responders(message: Msg) -> bool:
    """Whether NATS reports that the subject of the request has no subscriber."""
    headers = message.headers or {}
    return not message.data and headers.get(names.STATUS_HEADER) == "503" and names.NODE_HEADER not in headers


class NodeCall(Call):
    """A command on one node. `leave` removes it from the pending requests.

    `captured_by` is the JetStream stream that acknowledged the request, because its subjects include commands.
    """

    __slots__ = ("node", "subject", "leave", "captured_by", "_values", "_count", "_response")

    def __init__(self, node: str, subject: str, command: str, values: Values) -> None:
        known = COMMANDS.get(command)
        super().__init__(command, known.event if known else None)
        self.node = node
        self.subject = subject
        self.leave: Callable[[], None] = lambda: None
        self.captured_by = ""
        self._values = values
        self._count = 0
        self._response: Section | _wire.Message | None = None
        self.sent = True

    def take(self, message: Msg) -> None:
        """Handle one message of the reply."""
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
        except EncodeError as error:  # msgpack can hold values that VICI cannot
            self.fail(BusError(self.node, self.command, names.BAD_ANSWER, str(error)))
        if self.wake is not None:
            self.wake()

    def _take(self, data: bytes, headers: Mapping[str, str]) -> None:
        code = headers.get(names.ERROR_CODE_HEADER) or headers.get(names.STATUS_HEADER, "")
        if code and code != "200":
            number = int(code) if re.fullmatch("[0-9]{3}", code) else names.BAD_ANSWER
            self.fail(_error(self.node, self.command, number, headers, data))
        elif code:
            self._end(headers.get(names.COUNT_HEADER, ""))
        elif headers.get(names.PART_HEADER) == "response":
            self._response = self._read(data)
        elif self.event is None:
            self._finish(self._read(data))
        else:
            self._count += 1
            if not self.abandoned:
                self.items.append(cast(Body, self._read(data, EVENTS[self.event].binary)))

    def _end(self, count: str) -> None:
        if count != str(self._count):
            text = f"{self._count} of {count} parts arrived; the others were lost"
            self.fail(BusError(self.node, self.command, names.BAD_ANSWER, text))
            return
        known = COMMANDS.get(self.command)
        good: dict[str, object] = {"success": "yes"} if known is not None and known.result else {}
        self._finish(self._response if self._response is not None else _value(_wire.encode(good), self._values))

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
    """Return the stream name in a JetStream acknowledgement; empty if the payload is something else."""
    try:
        return str(json.loads(acknowledgement)["stream"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _value(raw: bytes, values: Values, binary: frozenset[str] = frozenset()) -> Section | _wire.Message:
    if values is str or values is bytes:
        return _wire.decode(raw, values=values, binary=binary)
    return _wire.Message(raw, binary=binary)


def encode_request(command: str, message: Mapping[str, object] | None) -> bytes:
    """Return a request as msgpack; raises EncodeError for values that VICI or charon does not support."""
    check_text(command, message or {})
    return _wire.to_msgpack(_wire.encode(message or {}))


def request_headers(timeout: float | None) -> dict[str, str]:
    """Return the headers with the time limit for the bridge."""
    return {} if timeout is None else {names.TIMEOUT_HEADER: f"{timeout:g}"}


def _error(node: str, command: str, code: int, headers: Mapping[str, str], data: bytes) -> ViciError:
    """Return the error that a session would raise, or its counterpart on the bus."""
    text = headers.get(names.ERROR_HEADER) or headers.get(names.DESCRIPTION_HEADER)
    if names.ERROR_CODE_HEADER not in headers and code == names.UNAVAILABLE:
        text = "no bridge serves it"  # from NATS: the subject has no subscriber
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
