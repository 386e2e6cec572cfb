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
    """A connection to charon: commands, streams and events, each answered in order whatever else goes on.

    `address` is a path, `unix://PATH`, `tcp://HOST:PORT`, a connected stream socket (which the session then owns), or
    None for strongSwan's default. `timeout` is the longest wait in seconds for a reply or the next message of a stream,
    None for no limit. Keepalive ends a connection to `tcp://` that has been dead for a minute, also one that only waits
    for events. Messages are dicts, with `values` (`str` or `bytes`) as for `vicifast.decode`, or, when `values` is
    `vicifast.Message`, read lazily. `readers` maps names of events to readers of their messages.

    One session belongs to one thread at a time; a second one that uses it meanwhile gets RuntimeError. Nothing is read
    while no method runs, and charon keeps what it has for a session that does not read, without a limit: events are
    better had from a session of their own, by a thread that does little else.
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
        """Open the connection, anew after it was closed; charon's full backlog (EAGAIN) is waited out.

        Raises `ConnectionClosed` when nobody listens there, `RequestTimeout` after `timeout` seconds.
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
        """Run a command and return its reply; what it streams is not asked for.

        Raises `CommandError` for `success=no`, `UnknownCommand`, `EncodeError` before anything is sent,
        `RequestTimeout` (the connection is closed then, as it is when the call is interrupted) and `ConnectionClosed`.
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
        """Run a command, at once, and return its messages as they come; see `Stream`.

        Returns when the request has been sent: a stream before it that has not ended is first read, into memory.
        `event` is the event that the command streams, by default the one that `vicifast.commands` has for it.
        Raises as `call` does, all but `EncodeError`, ValueError and what went wrong in sending when the stream is read.
        """
        event = stream_event(command, event)
        with self._in_use:
            connection = self._require()
            limit = self._limit(timeout)
            call = connection.protocol.call(command, message, event)
            connection.send(call, limit)
        return Stream(connection, call, limit)

    def listen(self, *events: str, timeout: float | None = None) -> Listener[M]:
        """Register for events, at once, and return them as they come; see `Listener`.

        Without any event for `timeout` seconds the iteration ends; it may be taken up again.
        """
        if not events:
            raise ValueError("listen needs the name of an event")
        with self._in_use:
            connection = self._require()
            limit = self._limit(DEFAULT)
            subscription = connection.protocol.listen(events)
            connection.register(subscription, limit)
        return Listener(connection, subscription, timeout, limit)

    def close(self) -> None:
        """Close the connection, after giving up all registrations and waiting for charon's confirmation.

        charon logs each event that it cannot deliver any more, as events for all others who listen to its log.
        """
        with self._in_use:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()


class Stream(BaseStream[BlockingConnection, M]):
    """The messages of one command, as an iterator; `response` is the reply once they have ended.

    It may be left at any point: what charon still sends is read and dropped when the session is used next. The error
    of a command that failed is raised after its last message.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> M:
        call = self._call
        while True:
            try:
                return cast(M, content(call.items.popleft()))
            except IndexError:
                pass  # what is raised below is no consequence of it
            if call.has_ended():
                raise StopIteration
            with self._connection.in_use:
                self._connection.wait_call(call, self._timeout)

    def wait(self) -> M:
        """Read the rest of the messages, dropping them, and return the reply; raises the error of the command."""
        call = self._call
        with self._connection.in_use:
            while not call.done:
                call.items.clear()
                self._connection.wait_call(call, self._timeout)
        call.items.clear()
        return cast(M, call.result())

    def close(self) -> None:
        """Leave the stream."""
        self._call.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Listener(BaseListener[BlockingConnection, M]):
    """Events in the order in which they came, as an iterator of (name, message).

    Raises `UnknownEvent` once, before anything else, when charon does not have one of the events; the others go on.
    Raises `ConnectionClosed` when the connection has ended and all that had come was taken. Use it in `with`, or call
    `close`, to unregister; one that is dropped is unregistered when the session is used next.
    """

    def ready(self) -> None:
        """Wait until charon has answered every registration. Raises `UnknownEvent` as the class says."""
        if self._is_ready:
            return
        with self._connection.in_use:
            self._connection.wait_registered(self._subscription, self._register_timeout)
        self._is_ready = True
        if self._subscription.unknown:
            raise UnknownEvent(", ".join(self._subscription.unknown))

    def batch(self) -> list[tuple[str, Body]]:
        """Return all events that have come and were not taken, at least one; none after `timeout` seconds without.

        A message that is malformed stands there as its `DecodeError`.
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
        """Unregister; events that come before charon has confirmed are dropped."""
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
