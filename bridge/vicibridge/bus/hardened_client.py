"""A nats-py client that survives malformed messages from other clients, and publishes and reads with little CPU.

nats-server passes subjects, reply subjects and headers on unchanged. nats-py ends a subject at any white space, and
stops reading at a subject that is not UTF-8 or at truncated headers: one message from any client that may send requests
would end the connection.

nats-py runs several coroutines for each published message, each acknowledgement and each received message. Here the
extension writes many messages as one block, and reads many acknowledgements and messages at once; everything else stays
nats-py's.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from typing import TypeAlias, TypeVar, cast
from urllib.parse import ParseResult

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.errors import ConnectionClosedError, ConnectionDrainingError, Error, OutboundBufferLimitError, ProtocolError
from nats.protocol.parser import Parser

from vicifast._wire import MAX_HEADERS, AckReader, BlockReader, Received

_T = TypeVar("_T")
Acks: TypeAlias = dict[int, int]
"""Acknowledged messages: by number of each, its sequence number in the stream."""

_END = b"\r\n"
# Bytes that asyncio's transport receives at once. By default they are 256 KiB: malloc then maps and unmaps memory for
# each read, and its page faults take as much CPU as all of the parsing.
_RECEIVED = 64 * 1024
_READ = 4 * _RECEIVED  # more than asyncio's reader holds


class Malformed(Error):
    """A message was dropped because its subject, reply subject or headers are malformed."""

    def __str__(self) -> str:
        return "a message with a malformed subject, reply or header was dropped"


class _Transport(TcpTransport):
    """TCP, upgraded to TLS in a way that asyncio's streams are aware of.

    nats-py upgrades without them: asyncio then logged a warning at each end of a connection ("returning true from
    eof_received() has no effect when using ssl"), and read ahead without limit.
    """

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        await super().connect(uri, buffer_size, connect_timeout)
        assert self._io_writer is not None
        transport = self._io_writer.transport
        if hasattr(transport, "max_size"):
            transport.max_size = _RECEIVED

    async def connect_tls(
        self, uri: str | ParseResult, ssl_context: ssl.SSLContext, buffer_size: int, connect_timeout: int
    ) -> None:
        assert self._io_writer is not None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()  # a new one: data received before TLS is not authenticated
        protocol = asyncio.StreamReaderProtocol(reader)
        name = uri if isinstance(uri, str) else uri.hostname
        start = loop.start_tls(self._io_writer.transport, protocol, ssl_context, server_hostname=name)
        transport = await asyncio.wait_for(start, connect_timeout)
        assert transport is not None
        protocol.connection_made(transport)
        self._io_reader, self._io_writer = reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def read(self, buffer_size: int) -> bytes:
        """Read all that has been received, of which nats-py would read 32 KiB."""
        assert self._io_reader is not None
        return await self._io_reader.read(_READ)

    def __bool__(self) -> bool:
        return True  # nats-py would replace a transport that is not connected yet


class HardClient(Client):
    """A client that drops malformed messages and continues."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = _Parser(self)
        self._transport = _Transport()  # type: ignore[no-untyped-call]
        self.acks = AckReader()
        self.blocks = BlockReader()
        self._settle: dict[int, Callable[[Acks], None]] = {}  # by number of the subscription
        self._receive: dict[int, Callable[[list[Received]], None]] = {}

    def send_block(self, block: bytes) -> None:
        """Queue a block of a `BlockWriter`; errors are those of `publish`, and as there nothing is awaited."""
        if self.is_closed:
            raise ConnectionClosedError
        if self.is_draining_pubs:
            raise ConnectionDrainingError
        if not self.is_connected:
            raise OutboundBufferLimitError
        if not self._pending:  # otherwise the flusher writes it soon
            asyncio.get_running_loop().call_soon(self._write_pending)
        self._pending.append(block)
        self._pending_data_size += len(block)

    def _write_pending(self) -> None:
        """Write the blocks of all publishers at once."""
        if self._pending and self.is_connected:
            assert self._transport is not None
            self._transport.writelines(self._pending)
            self._pending = []
            self._pending_data_size = 0

    async def subscribe_directly(
        self, subject: str, callback: Callable[[Msg], object], queue: str = ""
    ) -> Subscription:
        """Subscribe; the event loop calls `callback` with each message, without a task for the subscription."""
        return await self.subscribe(subject, queue, future=cast("asyncio.Future[Msg]", _Soon(callback)))

    async def subscribe_acks(
        self, inbox: str, settle: Callable[[Acks], None], callback: Callable[[Msg], object]
    ) -> None:
        """Subscribe to `<inbox>.*`: `settle` gets the acknowledgements, `callback` everything else.

        An acknowledgement that arrives in several pieces goes to `callback`, too.
        """
        subscription = await self.subscribe_directly(f"{inbox}.*", callback)
        self._settle[subscription._id] = settle
        self.acks.watch(subscription._id, inbox)

    async def subscribe_blocks(
        self, subject: str, receive: Callable[[list[Received]], None], queue: str = ""
    ) -> Subscription:
        """Subscribe; `receive` gets messages that arrived one after the other, in order also between subscriptions."""
        number = self._sid + 1  # nats-py numbers a subscription before it first waits
        self.blocks.watch(number)
        self._receive[number] = receive
        try:
            subscription = await self.subscribe_directly(subject, _unused, queue)
        except BaseException:
            self._remove_sub(number)
            raise
        assert subscription._id == number
        return subscription

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        super()._remove_sub(sid, max_msgs)
        self.blocks.forget(sid)
        self._receive.pop(sid, None)

    async def pass_on(self) -> None:
        """Pass on the acknowledgements and messages that were read."""
        for number, acks in self.acks.take().items():
            await self._call(self._settle[number], acks)
        for number, messages in self.blocks.take():
            self.stats["in_msgs"] += len(messages)
            self.stats["in_bytes"] += sum([len(message.data) for message in messages])
            if receive := self._receive.get(number):
                await self._call(receive, messages)

    async def _call(self, callback: Callable[[_T], None], received: _T) -> None:
        """Report an exception, as for the callbacks of subscriptions: it must not end the reading."""
        try:
            callback(received)
        except Exception as error:
            await self._error_cb(error)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        """Close; nats-py itself does not report the end of the connection when the rest cannot be sent."""
        try:
            await super()._close(status, do_cbs)
        except OSError:
            if do_cbs and self._closed_cb is not None:
                await self._closed_cb()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        try:
            if headers and len(headers) > MAX_HEADERS:
                raise ValueError
            if sid in self._receive:
                lines = await self._process_headers(headers)
                self.blocks.add(sid, Received(subject.decode(), reply.decode(), data, lines))
            else:
                await super()._process_msg(sid, subject, reply, data, headers)
        except (ValueError, IndexError):
            await self._error_cb(Malformed())


def _unused(message: Msg) -> None:
    """The callback of a subscription whose messages are read in blocks."""


class _Soon:
    """Replaces the future that nats-py completes with a message if a subscription has no callback."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[Msg], object]) -> None:
        self._callback = callback

    def cancelled(self) -> bool:
        return False

    def set_result(self, message: Msg) -> None:
        # Not called at once: an exception would end nats-py's reading.
        asyncio.get_running_loop().call_soon(self._callback, message)


class _Parser(Parser):
    """Splits protocol lines as the server does: only at blanks."""

    def reset(self) -> None:
        super().reset()
        self._message: tuple[int, bytes, bytes, int, int] | None = None

    async def parse(self, data: bytes = b"") -> None:
        """Append received data, and process every complete message."""
        if not self.buf and self._message is None:
            data = data[self.nc.blocks.read(data) :]  # most of it, without another copy
        self.buf += data
        try:
            while await self._take_next():
                pass
        finally:
            await self.nc.pass_on()

    async def _take_next(self) -> bool:
        """Process all that is read in blocks, and one line or other message; False if the rest is incomplete."""
        if self._message is None:
            del self.buf[: self.nc.acks.read(self.buf)]
            del self.buf[: self.nc.blocks.read(self.buf)]
            if self.nc.blocks.incomplete:
                return False
            end = self.buf.find(_END)
            if end < 0:
                return False
            line = bytes(self.buf[:end])
            del self.buf[: end + len(_END)]
            await self._take_line(line)
        elif len(self.buf) < self._message[-1] + len(_END):
            return False
        else:
            await self._take_message(*self._message)
        return True

    async def _take_line(self, line: bytes) -> None:
        operation, _, rest = line.partition(b" ")
        match operation.upper():
            case b"MSG":
                self._begin(rest.split(b" "), headers=False)
            case b"HMSG":
                self._begin(rest.split(b" "), headers=True)
            case b"PING":
                await self.nc._process_ping()
            case b"PONG":
                await self.nc._process_pong()
            case b"INFO":
                await self.nc._process_info(json.loads(rest))
            case b"-ERR":
                await self.nc._process_err(rest.decode("utf-8", "replace").lower())
            case b"+OK":
                pass
            case _:
                raise ProtocolError

    def _begin(self, fields: list[bytes], *, headers: bool) -> None:
        """Parse `subject sid [reply] [bytes of headers] bytes`."""
        try:
            size = int(fields.pop())
            before = int(fields.pop()) if headers else 0
            subject, sid, *reply = fields
            self._message = int(sid), subject, reply[0] if reply else b"", before, size
        except (ValueError, IndexError):
            raise ProtocolError from None

    async def _take_message(self, sid: int, subject: bytes, reply: bytes, before: int, size: int) -> None:
        payload = bytes(self.buf[:size])
        del self.buf[: size + len(_END)]
        self._message = None
        await self.nc._process_msg(sid, subject, reply, payload[before:], payload[:before])
