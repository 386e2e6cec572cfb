"""The blocking client."""

from __future__ import annotations

import select
import socket
import time
from _thread import allocate_lock
from collections.abc import Callable, Mapping
from typing import Any, Generic, Self, cast, overload

from . import _wire
from .address import RETRY_DELAYS, Address, Tcp, no_connection, parse_address, unreachable
from .errors import ConnectionClosed, UnknownEvent, ViciError
from .methods import DEFAULT
from .protocol import (
    CLOSE_TIMEOUT,
    Body,
    Call,
    Protocol,
    Section,
    Subscription,
    Values,
    content,
    overdue,
    stream_event,
    unanswered,
)
from .session import BaseListener, BaseSession, BaseStream, M

_LONGEST_POLL = 3600.0  # poll counts milliseconds in 31 bits


class Session(BaseSession[M, "Stream[M]", "_Connection"], Generic[M]):
    """A connection to charon: commands, streams and events, each answered in order whatever else goes on.

    `address` is a path, `unix://PATH`, `tcp://HOST:PORT`, a connected stream socket (which the session then owns), or
    None for strongSwan's default. `timeout` is the longest wait in seconds for a reply or the next message of a stream,
    None for no limit. Messages are dicts, with `values` (`str` or `bytes`) as for `vicifast.decode`, or, when `values`
    is `vicifast.Message`, read lazily. `readers` maps names of events to readers of their messages.

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
        self._in_use = _InUse()

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
                sock = _open(self.address, self.timeout)
            except TimeoutError:
                raise no_connection(self.address, self.timeout) from None
            except OSError as error:
                raise unreachable(self.address, error) from error
            self._connection = _Connection(sock, self._new_protocol(), self._in_use)
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


class Stream(BaseStream["_Connection", M]):
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
                if call.has_ended():
                    raise StopIteration from None
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


class Listener(BaseListener["_Connection", M]):
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


class _InUse:
    """Lets one thread in at a time, and refuses others at once: they would else wait for each other's replies."""

    def __init__(self) -> None:
        self._lock = allocate_lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "this session is in use, by another thread or under this signal handler; use one session per thread"
            )

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


class _Connection:
    """Moves bytes between a socket and a `Protocol`, both ways at once, while somebody waits."""

    def __init__(self, sock: socket.socket, protocol: Protocol, in_use: _InUse) -> None:
        self.protocol = protocol
        self.in_use = in_use
        self._sock = sock
        self._unsent = b""
        self._wait_ready = _poller(sock)

    def finish(self, call: Call, timeout: float | None) -> None:
        while not call.done:
            self.wait_call(call, timeout)

    def wait_call(self, call: Call, timeout: float | None) -> None:
        """Wait for news of a call. Giving up means to close: a late reply would be taken for the next one's."""
        self._until_or_give_up(call, lambda: bool(call.items) or call.done, timeout)

    def send(self, call: Call, timeout: float | None) -> None:
        """Wait until a request has been written; errors are left in the call."""
        self._until_or_give_up(call, lambda: call.done or (call.sent and not self._unsent), timeout)

    def register(self, subscription: Subscription, timeout: float | None) -> None:
        """Write what there is to write; errors are left in the subscription."""
        if not self._until(lambda: not self._unsent, timeout):
            self._give_up(ConnectionClosed(str(unanswered(subscription, timeout))))

    def wait_registered(self, subscription: Subscription, timeout: float | None) -> None:
        if not self._until(lambda: not subscription.pending or subscription.error is not None, timeout):
            error = unanswered(subscription, timeout)
            self._give_up(ConnectionClosed(str(error)))
            raise error
        if subscription.error is not None and subscription.pending:
            raise subscription.error

    def wait_event(self, subscription: Subscription, timeout: float | None) -> bool:
        """Wait until there is an event; False when none came in time. Raises what ended the subscription."""
        if not self._until(lambda: bool(subscription.items) or subscription.error is not None, timeout):
            return False
        if not subscription.items and subscription.error is not None:
            raise subscription.error
        return True

    def close(self) -> None:
        try:
            if self.protocol.closed is None:
                self.protocol.unlisten_all()
                self._until(lambda: self.protocol.idle and not self._unsent, CLOSE_TIMEOUT)
        finally:
            self._give_up(ConnectionClosed("the session was closed"))

    def _until_or_give_up(self, call: Call, done: Callable[[], bool], timeout: float | None) -> None:
        try:
            if self._until(done, timeout):
                return
        except BaseException:
            self._give_up_call(call, ConnectionClosed(f"{call.command} was interrupted"))
            raise
        error = overdue(call, timeout)
        self._give_up_call(call, error)
        raise error

    def _until(self, done: Callable[[], bool], timeout: float | None) -> bool:
        """Write and read until `done`; False when that takes longer than `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._guarded(self._write)
        expired = False
        while not done():
            if expired:
                return False
            wait = _LONGEST_POLL
            if deadline is not None:
                wait = min(wait, deadline - time.monotonic())
                expired = wait <= 0  # what has come by now still counts
            if self._wait_ready(max(wait, 0), bool(self._unsent)):
                self._guarded(self._read_and_write)
        return True

    def _guarded(self, move: Callable[[], None]) -> None:
        """Move bytes; interrupted in the middle of that, the connection is out of step and of no use any more."""
        try:
            move()
        except OSError as error:
            self._give_up(ConnectionClosed(f"the connection broke: {error}"))
        except BaseException:
            self._give_up(ConnectionClosed("reading or writing was interrupted"))
            raise

    def _read_and_write(self) -> None:
        if self._unsent:
            self._write()
        try:
            count = self._sock.recv_into(self.protocol.framer)
        except BlockingIOError:
            return
        if count:
            self.protocol.framer.received(count)
            self.protocol.receive()
            self._write()
        else:
            self.protocol.receive_eof()
        if self.protocol.closed is not None:
            self._give_up(self.protocol.closed)

    def _write(self) -> None:
        data = self._unsent + self.protocol.data_to_send()
        if not data:
            return
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except ConnectionError:
            sent = len(data)  # charon has gone; what it sent before that can still be read, and then the end
        self._unsent = data[sent:]

    def _give_up_call(self, call: Call, error: ViciError) -> None:
        if not self.protocol.withdraw(call, error):
            self._give_up(ConnectionClosed(str(error)))

    def _give_up(self, error: ViciError) -> None:
        self.protocol.fail(error)
        self._unsent = b""
        self._sock.close()


def _poller(sock: socket.socket) -> Callable[[float, bool], object]:
    """Return what waits, so many seconds, until the socket can be read, or written if that is asked for too."""
    if not hasattr(select, "poll"):  # Windows

        def wait_select(timeout: float, write: bool) -> object:
            return any(select.select([sock], [sock] if write else [], [], timeout))

        return wait_select
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    writing = False

    def wait_poll(timeout: float, write: bool) -> object:
        nonlocal writing
        if write is not writing:
            poll.modify(sock, select.POLLIN | (select.POLLOUT if write else 0))
            writing = write
        return poll.poll(timeout * 1000)

    return wait_poll


def _open(address: Address, timeout: float | None) -> socket.socket:
    """Return a connected socket that does not block. Raises OSError; TimeoutError after `timeout` seconds."""
    if isinstance(address, socket.socket):
        sock = address
    else:
        deadline = None if timeout is None else time.monotonic() + timeout
        target = parse_address(address)
        sock = _connect_tcp(target, deadline) if isinstance(target, Tcp) else _connect_unix(target.path, deadline)
    sock.setblocking(False)
    return sock


def _connect_unix(path: str, deadline: float | None) -> socket.socket:
    attempt = 0
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)  # with a timeout set, connect would still fail at once
            sock.connect(path)
            return sock
        except BlockingIOError:
            sock.close()
        except BaseException:
            sock.close()
            raise
        time.sleep(min(RETRY_DELAYS[min(attempt, len(RETRY_DELAYS) - 1)], _remaining(deadline) or 1.0))
        attempt += 1


def _connect_tcp(target: Tcp, deadline: float | None) -> socket.socket:
    """Connect to the first address of a host that answers; looking up its name cannot be given a time limit."""
    error: OSError = OSError(f"{target.host} has no address")
    for family, kind, number, _, where in socket.getaddrinfo(*target, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, number)
        try:
            sock.settimeout(_remaining(deadline))
            sock.connect(cast(Any, where))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except TimeoutError:
            sock.close()
            raise
        except OSError as failure:
            error = failure
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise error


def _remaining(deadline: float | None) -> float | None:
    """Seconds to go, None for no limit; TimeoutError when there are none."""
    if deadline is None:
        return None
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
