"""The blocking client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Self, cast, overload

from . import _wire
from ._blocking_connection import BlockingConnection, InUse, open_socket
from .address import Address, no_connection, unreachable
from .errors import UnknownEvent
from .methods import DEFAULT
from .protocol import CLOSE_TIMEOUT, Body, Section, Values, content, stream_event
from .session import BaseListener, BaseSession, BaseStream, M


class Session(BaseSession[M, "Stream[M]", BlockingConnection], Generic[M]):
    """A connection to charon for commands, streams and events, in any combination.

    `address` is a path, `unix://PATH`, `tcp://HOST:PORT`, a connected stream socket (which the session then owns), or
    None for strongSwan's default. `timeout` is the maximum wait in seconds for a reply or the next message of a stream,
    None for no limit. Keepalive ends a `tcp://` connection that has been dead for a minute, also one that only waits
    for events. Messages are dicts, with `values` (`str` or `bytes`) as for `vicifast.decode`; if `values` is
    `vicifast.Message`, they are decoded lazily. `readers` maps event names to readers of their messages.

    Only one thread may use a session at a time; a second one gets RuntimeError. The session reads only while one of
    its methods runs, and charon buffers without limit for a session that does not read: receive events in a separate
    session, in a dedicated thread.
    """

    @overload
    def __init__(
        self: Session[Section],
        address: Address = None,
        *,
        timeout: float | None = 30.0,
        values: type[str] | type[bytes] = str,
        readers: Mapping[str, _wire.Reader] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self: Session[_wire.Message],
        address: Address = None,
        *,
        timeout: float | None = 30.0,
        values: type[_wire.Message],
        readers: Mapping[str, _wire.Reader] | None = None,
    ) -> None: ...

    def __init__(
        self,
        address: Address = None,
        *,
        timeout: float | None = 30.0,
        values: Values = str,
        readers: Mapping[str, _wire.Reader] | None = None,
    ) -> None:
        super().__init__(address, timeout, values, readers)
        self._in_use = InUse()

    def __enter__(self) -> Self:
        return self.connect()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def connect(self) -> Self:
        """Open the connection, or reopen a closed one; retries while charon's backlog is full (EAGAIN).

        Raises `ConnectionClosed` if no daemon listens there, `RequestTimeout` after `timeout` seconds.
        """
        with self._in_use:
            if not self.closed:
                return self
            try:
                sock = open_socket(self.address, self.timeout)
            except TimeoutError:
                raise no_connection(self.address, self.timeout) from None
            except OSError as error:
                raise unreachable(self.address, error) from error
            self._connection = BlockingConnection(sock, self._new_protocol(), self._in_use)
        return self

    def call(self, command: str, message: Mapping[str, object] | None = None, *, timeout: float | None = DEFAULT) -> M:
        """Run a command and return its reply, without its streamed messages.

        Raises `CommandError` for `success=no`, `UnknownCommand`, `EncodeError` before anything is sent,
        `RequestTimeout` (which closes the connection, as does interrupting the call) and `ConnectionClosed`.
        """
        with self._in_use:
            connection = self._require()
            call = connection.protocol.call(command, message, None)
            connection.finish(call, self._limit(timeout))
            return cast(M, call.result())

    def stream(
        self,
        command: str,
        message: Mapping[str, object] | None = None,
        event: str | None = None,
        *,
        timeout: float | None = DEFAULT,
    ) -> Stream[M]:
        """Send a command immediately and return an iterator of its messages; see `Stream`.

        Returns when the request has been sent; an earlier stream that has not ended is first read into memory.
        `event` is the event that the command streams, by default the one in `vicifast.commands`. Raises `EncodeError`,
        ValueError and errors of sending immediately, and the other errors of `call` when the stream is read.
        """
        event = stream_event(command, event)
        with self._in_use:
            connection = self._require()
            limit = self._limit(timeout)
            call = connection.protocol.call(command, message, event)
            connection.send(call, limit)
        return Stream(connection, call, limit)

    def listen(self, *events: str, timeout: float | None = None) -> Listener[M]:
        """Register for events immediately and return an iterator of them; see `Listener`.

        The iteration ends after `timeout` seconds without an event, and can be resumed.
        """
        if not events:
            raise ValueError("listen() needs at least one event name")
        with self._in_use:
            connection = self._require()
            limit = self._limit(DEFAULT)
            subscription = connection.protocol.listen(events)
            connection.register(subscription, limit)
        return Listener(connection, subscription, timeout, limit)

    def close(self) -> None:
        """Unregister all events, wait for charon's confirmation, and close the connection.

        Without this, charon would log each event that it cannot deliver, and send those lines to other clients.
        """
        with self._in_use:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()


class Stream(BaseStream[BlockingConnection, M]):
    """An iterator of the messages of one command; `response` is the reply once it has ended.

    It may be abandoned at any point: the remaining messages are read and dropped when the session is used next. The
    error of a failed command is raised after its last message.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> M:
        call = self._call
        while True:
            try:
                message: M = content(call.items.popleft())
                return message
            except IndexError:
                pass  # an error raised below must not have this one as its context
            if call.has_ended():
                raise StopIteration
            with self._connection.in_use:
                self._connection.wait_call(call, self._timeout)

    def wait(self) -> M:
        """Read and drop the remaining messages and return the reply, or raise the error of the command."""
        call = self._call
        with self._connection.in_use:
            while not call.done:
                call.items.clear()
                self._connection.wait_call(call, self._timeout)
        call.items.clear()
        return cast(M, call.result())

    def close(self) -> None:
        """Abandon the stream."""
        self._call.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Listener(BaseListener[BlockingConnection, M]):
    """An iterator of events in order of arrival, as (name, message).

    Raises `UnknownEvent` once, before the first event, if charon does not know one of the events; the others continue.
    Raises `ConnectionClosed` when the connection has ended and all received events were read. Use `with` or `close` to
    unregister; a listener that is garbage collected is unregistered when the session is used next.
    """

    def ready(self) -> None:
        """Wait until charon has confirmed or refused every registration. Raises `UnknownEvent` as described above."""
        if self._is_ready:
            return
        with self._connection.in_use:
            self._connection.wait_registered(self._subscription, self._register_timeout)
        self._is_ready = True
        if self._subscription.unknown:
            raise UnknownEvent(", ".join(self._subscription.unknown))

    def batch(self) -> list[tuple[str, Body]]:
        """Wait for an event and return all unread ones; an empty list after `timeout` seconds without an event.

        The body of a malformed message is its `DecodeError`.
        """
        self.ready()
        with self._connection.in_use:
            if not self._subscription.items:
                self._connection.wait_event(self._subscription, self.timeout)
            return self._take_all()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[str, M]:
        self.ready()
        with self._connection.in_use:
            items = self._subscription.items
            if not items and not self._connection.wait_event(self._subscription, self.timeout):
                raise StopIteration
            return self._take()

    def close(self) -> None:
        """Unregister; events that arrive before charon has confirmed are dropped."""
        with self._connection.in_use:
            self._connection.protocol.unlisten(self._subscription)
            self._connection.register(self._subscription, CLOSE_TIMEOUT)

    def __enter__(self) -> Self:
        try:
            self.ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
