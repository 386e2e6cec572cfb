"""Requests under way: all answers to one client come in one inbox, and the end of its subject says to what."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import nats.errors
from nats.aio.client import Client
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

from .. import requests
from ..answer import COUNT, PART
from ..link import reason_of
from ..raw import NODE
from .errors import BusError, Busy, Denied, Unavailable

_HEADERS = 512  # bytes that the headers of a request may take


class Asked(Protocol):
    """Whoever waits for the answers to one request."""

    subject: str

    def take(self, message: Msg) -> None:
        """Take in one answer."""

    def fail(self, error: ViciError) -> None:
        """No answer will come."""


class Calls:
    """The requests of one client that are under way."""

    def __init__(self, client: Client, user: str | None) -> None:
        self._client = client
        self._user = {} if user is None else {requests.USER_HEADER: user}
        self._inbox = client.new_inbox()
        self._open: dict[str, Asked] = {}
        self._numbers = itertools.count(1)
        self._subscribing: asyncio.Task[Subscription] | None = None
        self._sending: set[asyncio.Task[None]] = set()

    def begin(self, asked: Asked, payload: bytes, headers: Mapping[str, str]) -> Callable[[], None]:
        """Send a request, at once; return what to call when no more answers are wanted."""
        if len(payload) + _HEADERS > self._client.max_payload:
            raise EncodeError(f"the request has {len(payload)} bytes, and NATS takes {self._client.max_payload}")
        number = str(next(self._numbers))
        self._open[number] = asked
        task = asyncio.create_task(self._send(asked, payload, number, headers))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return lambda: cast(None, self._open.pop(number, None))

    async def close(self) -> None:
        """End what is under way with `ConnectionClosed`, and take no more answers."""
        for asked in list(self._open.values()):
            asked.fail(ConnectionClosed("the fleet was closed"))
        if self._subscribing is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await (await self._subscribing).unsubscribe()

    def denied(self, error: str) -> bool:
        """NATS does not let this user publish, or hear answers: fail the requests that `error` is about.

        `error` is in small letters. Returns whether it is about any of them, or about where answers come.
        """
        deaf = f'subscription to "{self._inbox}.*"'.lower() in error
        reason = f"this user may not subscribe to {self._inbox}.*, where answers come; inbox_prefix names another place"
        failed = [each for each in self._open.values() if deaf or f'publish to "{each.subject}"'.lower() in error]
        if deaf:  # the next request tries again, in an inbox that no subscription is left of
            self._inbox, self._subscribing = self._client.new_inbox(), None
        for asked in failed:
            text = reason if deaf else f"this user may not publish to {asked.subject}"
            asked.fail(Denied("NATS", asked.subject.rpartition(".")[2], requests.DENIED, text))
        return deaf or bool(failed)

    async def _send(self, asked: Asked, payload: bytes, number: str, headers: Mapping[str, str]) -> None:
        try:
            if self._subscribing is None:
                subscribe = self._client.subscribe(f"{self._inbox}.*", cb=self._take)
                self._subscribing = asyncio.create_task(subscribe)
            await asyncio.shield(self._subscribing)
            reply = f"{self._inbox}.{number}"
            await self._client.publish(asked.subject, payload, reply=reply, headers={**self._user, **headers} or None)
        except (nats.errors.Error, OSError) as error:
            asked.fail(ConnectionClosed(f"NATS: {reason_of(error)}"))

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
            text = f"{call.node}: {call.command}: nothing came for {timeout:g} seconds"
            if call.captured_by:
                text += (
                    f"; the stream {call.captured_by} captures {call.subject}, so NATS cannot report a missing bridge"
                )
            error = RequestTimeout(text)
            call.fail(error)
            raise error from None
        except asyncio.CancelledError:
            call.abandon()
            raise


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
    return not message.data and headers.get("Status") == "503" and NODE not in headers


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
        if NODE not in headers and not is_no_responders(message):
            self.captured_by = self.captured_by or _stream_of(message.data)
            return
        try:
            self._take(message.data, headers)
        except DecodeError as error:
            self.fail(error)
        except EncodeError as error:  # what stands in msgpack is not all VICI
            self.fail(BusError(self.node, self.command, requests.BAD_ANSWER, str(error)))
        if self.wake is not None:
            self.wake()

    def _take(self, data: bytes, headers: Mapping[str, str]) -> None:
        code = headers.get("Nats-Service-Error-Code") or headers.get("Status", "")
        if code and code != "200":
            self.fail(_error(self.node, self.command, int(code), headers, data))
        elif code:
            self._end(headers.get(COUNT, ""))
        elif headers.get(PART) == "response":
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
            self.fail(BusError(self.node, self.command, requests.BAD_ANSWER, text))
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
    return {} if timeout is None else {requests.TIMEOUT_HEADER: f"{timeout:g}"}


def _error(node: str, command: str, code: int, headers: Mapping[str, str], data: bytes) -> ViciError:
    """Return what a session would raise, or its counterpart on the bus."""
    text = headers.get("Nats-Service-Error") or headers.get("Description")
    if "Nats-Service-Error-Code" not in headers and code == requests.UNAVAILABLE:
        text = "no bridge serves it"  # says NATS, as nobody listens
    kinds: dict[int, Any] = {
        requests.DENIED: Denied,
        requests.BUSY: Busy,
        requests.UNAVAILABLE: Unavailable,
    }
    match code:
        case requests.UNKNOWN:
            return UnknownCommand(command)
        case requests.FAILED:
            response: dict[str, object] = {"success": "no", "errmsg": text or ""}
            return CommandError(command, text or "", _wire.decode(_wire.from_msgpack(data)) if data else response)
        case requests.TIMEOUT:
            return RequestTimeout(f"{node}: {command}: {text}")
    error: ViciError = kinds.get(code, BusError)(node, command, code, text or f"error {code}")
    return error
