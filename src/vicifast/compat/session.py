"""The session of strongSwan's module."""

from __future__ import annotations

import socket
import time
import weakref
from collections.abc import Callable, Generator, Iterable
from typing import cast

from .._blocking_connection import InUse
from ..address import Tcp, parse_address
from ..errors import ConnectionClosed, UnknownEvent
from ..protocol import CLOSE_TIMEOUT, Protocol, Subscription, content, readers_for
from .command_wrappers import CommandWrappers, Request
from .exception import CommandException, EventUnknownException, SessionException, Translated
from .protocol import RECV_TIMEOUT_DEFAULT, Message, Packet, Section, Transport, sendable

# Programs import all of them from here, as strongSwan's module allows.
__all__ = [
    "RECV_TIMEOUT_DEFAULT",
    "CommandException",
    "CommandWrappers",
    "EventUnknownException",
    "Message",
    "Packet",
    "Session",
    "SessionException",
    "Transport",
]


class Session(CommandWrappers):
    """A connection to charon at strongSwan's default address, or over a connected socket.

    Replies and events are OrderedDicts, values are bytes. Streams and events are generators, which send nothing before
    their first item is requested. The timeout of the socket, by default none, limits waiting. Raises the exceptions of
    `vicifast.compat.exception`; the OSError of the socket when the connection fails or has ended; and
    `vicifast.EncodeError`, a ValueError, for a message that VICI cannot carry.
    """

    def __init__(self, sock: socket.socket | None = None) -> None:
        self.transport = Transport(_connect() if sock is None else sock)

    @property
    def transport(self) -> Transport:
        """The transport of the packets; may be replaced, for example after a restart of charon."""
        return self._exchange.transport

    @transport.setter
    def transport(self, transport: Transport) -> None:
        self._exchange = _Exchange(transport)

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._exchange.protocol.closed is not None

    def request(self, command: str, message: Request | None = None) -> Section:
        """Run a command and return its reply."""
        with Translated():
            return self._exchange.call(command, sendable(message))

    def streamed_request(
        self, command: str, event_stream_type: str, message: Request | None = None
    ) -> Generator[Section, None, None]:
        """Run a command and yield the messages of the event that it streams."""
        with Translated():
            yield from self._exchange.stream(command, sendable(message), event_stream_type)

    def listen(
        self, event_types: Iterable[str], timeout: float | None = RECV_TIMEOUT_DEFAULT
    ) -> Generator[tuple[bytes, Section] | tuple[None, None], None, None]:
        """Yield events as (name, message), and (None, None) after each `timeout` seconds without an event."""
        with Translated():
            yield from self._exchange.listen([*event_types], timeout)


class _Exchange:
    """Matches the requests and replies of a transport, for one thread at a time.

    It reads a packet only while a caller waits for one, so that a program may poll the socket itself. Therefore it
    waits for the confirmation that an event is unregistered, as strongSwan's module does.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.protocol = _protocol()
        self._in_use = InUse()
        self._closing = False
        transport.before_close = weakref.WeakMethod(self._before_close)

    def call(self, command: str, message: Request | None) -> Section:
        with self._in_use:
            call = self._open().call(command, message, None)
            self._until(lambda: call.done)
        return cast(Section, call.result())

    def stream(self, command: str, message: Request | None, event: str) -> Generator[Section, None, None]:
        with self._in_use:
            protocol = self._open()
            call = protocol.call(command, message, event)
        try:
            while True:
                with self._in_use:
                    self._until(lambda: bool(call.items) or call.done)
                if not call.items:
                    break
                yield content(call.items.popleft())
            with self._in_use:
                self._until(lambda: not protocol.unregistering)
            if call.error is not None:
                raise call.error
        except (ConnectionClosed, ConnectionResetError):
            self._unregister_after_loss([event])
            raise
        finally:
            call.abandon()

    def listen(
        self, events: list[str], timeout: float | None
    ) -> Generator[tuple[bytes, Section] | tuple[None, None], None, None]:
        with self._in_use:
            protocol = self._open()
            subscription = protocol.listen(events)
            self._until(lambda: not subscription.pending)
        try:
            if subscription.unknown:
                raise UnknownEvent(", ".join(subscription.unknown))
            while True:
                if subscription.items or self._wait_event(subscription, timeout):
                    name, body = subscription.items.popleft()
                    yield name.encode(), content(body)
                else:
                    yield None, None
        except (ConnectionClosed, ConnectionResetError):
            self._unregister_after_loss(events)
            raise
        finally:
            protocol.leave(subscription)  # unregistered when the session is used next, also by another thread
            with self._in_use:
                self._until(lambda: not protocol.unregistering)

    def _open(self) -> Protocol:
        if self.protocol.closed is not None:
            self.protocol = _protocol()  # using the closed socket raises its own error
        return self.protocol

    def _wait_event(self, subscription: Subscription, timeout: float | None) -> bool:
        """Wait for an event; False after `timeout` seconds without. Raises the error that ended the subscription."""
        with self._in_use:
            try:
                self._until(
                    lambda: bool(subscription.items) or subscription.error is not None, timeout, only_events=True
                )
            except TimeoutError:
                if subscription.error is None:
                    return False
                raise
        if not subscription.items and subscription.error is not None:
            raise subscription.error
        return True

    def _until(
        self, done: Callable[[], bool], timeout: float | None = RECV_TIMEOUT_DEFAULT, *, only_events: bool = False
    ) -> None:
        """Send and receive until `done`.

        A timeout ends the connection, as a late reply would be mistaken for the next; except when waiting only for
        events and none has begun.
        """
        protocol, transport, receiving = self.protocol, self.transport, False
        try:
            lost = self._send()
            while not done():
                receiving = True
                try:
                    packet = transport.receive() if timeout is RECV_TIMEOUT_DEFAULT else transport.receive(timeout)
                except OSError:
                    if lost is None:
                        raise
                    raise lost from None
                receiving = False
                protocol.framer.feed(len(packet).to_bytes(Transport.HEADER_LENGTH) + packet)
                protocol.receive()
                if protocol.closed is not None:
                    raise protocol.closed
                lost = self._send() or lost
        except BaseException as error:
            gave_up = not isinstance(error, OSError) or isinstance(error, TimeoutError)
            if not (gave_up and only_events and receiving and transport.in_step):
                self._end(error)
            raise

    def _send(self) -> OSError | None:
        """Send what is pending; return the error if charon has closed, as what it sent before can still be received."""
        data, size = self.protocol.data_to_send(), Transport.HEADER_LENGTH
        try:
            while data:
                end = size + int.from_bytes(data[:size])
                self.transport.send(data[size:end])
                data = data[end:]
        except (BrokenPipeError, ConnectionResetError) as error:
            return error
        return None

    def _end(self, error: BaseException) -> None:
        """End all open calls; later calls get the socket's error, and never a reply to an earlier call."""
        self.protocol.fail(ConnectionClosed(str(error)))  # the traceback of the error itself would keep the socket open
        if not isinstance(error, OSError) or isinstance(error, (TimeoutError, BlockingIOError)):
            self.transport.shutdown()
        if self._closing:
            self.transport.socket.close()

    def _unregister_after_loss(self, events: list[str]) -> None:
        """Raise the same error as strongSwan's module after charon closed: usually BrokenPipeError on the next send."""
        for event in events:
            self.transport.send(Packet.unregister_event(event))
            self.transport.receive()

    def _before_close(self) -> bool:
        """Unregister all events; False if another thread is reading, which will then close the socket."""
        self._closing = True
        deadline = time.monotonic() + CLOSE_TIMEOUT
        try:
            with self._in_use:
                if self.protocol.closed is None:
                    self.protocol.unlisten_all()
                    self.transport.socket.settimeout(CLOSE_TIMEOUT)
                    self._until(lambda: self.protocol.idle or time.monotonic() > deadline)
        except RuntimeError:
            return False
        except OSError:
            pass  # the connection has already ended
        self.protocol.fail(ConnectionClosed("the session was closed"))
        return True


def _protocol() -> Protocol:
    return Protocol(*readers_for(bytes, {}, ordered=True))


def _connect() -> socket.socket:
    """Return a socket connected to strongSwan's default address. Raises OSError."""
    target = parse_address(None)
    if isinstance(target, Tcp):
        return socket.create_connection(target)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(target.path)
    except BaseException:
        sock.close()
        raise
    return sock
