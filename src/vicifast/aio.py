"""The asyncio client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Mapping
from typing import Any, Generic, Self, cast, overload

from . import _wire
from ._aio_connection import AsyncConnection, connect_unix
from .address import Address, Tcp, keep_alive, no_connection, parse_address, unreachable
from .errors import UnknownEvent
from .methods import DEFAULT
from .protocol import Body, Section, Values, content, stream_event
from .session import BaseListener, BaseSession, BaseStream, M, Waits


class AsyncSession(BaseSession[Coroutine[Any, Any, M], "Stream[M]", "AsyncConnection"], Generic[M]):
    """A connection to charon for commands, streams and events, in any combination.

    `address` is a path, `unix://PATH`, `tcp://HOST:PORT`, a connected stream socket (which the session then owns), or
    None for strongSwan's default. `timeout` is the maximum wait in seconds for a reply or the next message of a stream,
    None for no limit. Keepalive ends a `tcp://` connection that has been dead for a minute, also one that only waits
    for events. Messages are dicts, with `values` (`str` or `bytes`) as for `vicifast.decode`; if `values` is
    `vicifast.Message`, they are decoded lazily. `readers` maps event names to readers of their messages.

    A session belongs to one event loop. Concurrent calls run one after the other, so a blocking `initiate` delays all
    calls after it; receive events in a separate session.
    """

    @overload
    def __init__(
        self: AsyncSession[Section],
        address: Address = None,
        *,
        timeout: float | None = 30.0,
        values: type[str] | type[bytes] = str,
        readers: Mapping[str, _wire.Reader] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self: AsyncSession[_wire.Message],
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

    async def __aenter__(self) -> Self:
        return await self.connect()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def connect(self) -> Self:
        """Open the connection, or reopen a closed one; retries while charon's backlog is full (EAGAIN).

        Raises `ConnectionClosed` if no daemon listens there, `RequestTimeout` after `timeout` seconds.
        """
        if not self.closed:
            return self
        connection = AsyncConnection(self._new_protocol())
        try:
            async with asyncio.timeout(self.timeout):
                await self._open(connection)
        except TimeoutError:
            raise no_connection(self.address, self.timeout) from None
        except OSError as error:
            raise unreachable(self.address, error) from error
        self._connection = connection
        return self

    async def _open(self, connection: AsyncConnection) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(self.address, socket.socket):
            target = parse_address(self.address)
            if isinstance(target, Tcp):
                transport, _ = await loop.create_connection(lambda: connection, target.host, target.port)
                keep_alive(transport.get_extra_info("socket"))
                return
            sock = await connect_unix(target.path)
        else:
            sock = self.address
        sock.setblocking(False)
        try:
            if sock.family == getattr(socket, "AF_UNIX", None):
                await loop.create_unix_connection(lambda: connection, sock=sock)
            else:
                await loop.create_connection(lambda: connection, sock=sock)
        except BaseException:
            sock.close()
            raise

    async def call(
        self, command: str, message: Mapping[str, object] | None = None, *, timeout: float | None = DEFAULT
    ) -> M:
        """Run a command and return its reply, without its streamed messages.

        Raises `CommandError` for `success=no`, `UnknownCommand`, `EncodeError` before anything is sent,
        `RequestTimeout` (which closes the connection, as does cancelling the call) and `ConnectionClosed`.
        """
        connection = self._require()
        call = connection.protocol.call(command, message, None)
        connection.flush()
        await connection.finish(call, self._limit(timeout))
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

        `event` is the event that the command streams, by default the one in `vicifast.commands`. Raises `EncodeError`
        and ValueError immediately, and the other errors of `call` when the stream is read.
        """
        connection = self._require()
        call = connection.protocol.call(command, message, stream_event(command, event))
        connection.flush()
        return Stream(connection, call, self._limit(timeout))

    def listen(self, *events: str, timeout: float | None = None) -> Listener[M]:
        """Register for events immediately and return an iterator of them; see `Listener`.

        The iteration ends after `timeout` seconds without an event, and can be resumed.
        """
        if not events:
            raise ValueError("listen() needs at least one event name")
        connection = self._require()
        subscription = connection.protocol.listen(events)
        connection.flush()
        return Listener(connection, subscription, timeout, self._limit(DEFAULT))

    async def close(self) -> None:
        """Unregister all events, wait for charon's confirmation, and close the connection.

        Without this, charon would log each event that it cannot deliver, and send those lines to other clients.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class Stream(BaseStream[Waits, M]):
    """An async iterator of the messages of one command; `response` is the reply once it has ended.

    It may be abandoned at any point: the remaining messages are read and dropped, and the session stays usable. The
    error of a failed command is raised after its last message.
    """

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> M:
        call = self._call
        while not call.items:
            if call.has_ended():
                raise StopAsyncIteration
            await self._connection.wait_call(call, self._timeout)
        message: M = content(call.items.popleft())
        return message

    async def wait(self) -> M:
        """Read and drop the remaining messages and return the reply, or raise the error of the command."""
        call = self._call
        while not call.done:
            call.items.clear()
            await self._connection.wait_call(call, self._timeout)
        call.items.clear()
        return cast(M, call.result())

    async def aclose(self) -> None:
        """Abandon the stream."""
        self._call.abandon()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


class Listener(BaseListener["AsyncConnection", M]):
    """An async iterator of events in order of arrival, as (name, message).

    Raises `UnknownEvent` once, before the first event, if charon does not know one of the events; the others continue.
    Raises `ConnectionClosed` when the connection has ended and all received events were read. Only one task at a time
    may wait for events. Use `async with` or `aclose` to unregister; a listener that is garbage collected is
    unregistered when the session is used next.
    """

    async def ready(self) -> None:
        """Wait until charon has confirmed or refused every registration. Raises `UnknownEvent` as described above."""
        if self._is_ready:
            return
        await self._connection.wait_registered(self._subscription, self._register_timeout)
        self._is_ready = True
        if self._subscription.unknown:
            raise UnknownEvent(", ".join(self._subscription.unknown))

    async def batch(self) -> list[tuple[str, Body]]:
        """Wait for an event and return all unread ones; an empty list after `timeout` seconds without an event.

        The body of a malformed message is its `DecodeError`.
        """
        await self.ready()
        if not self._subscription.items:
            await self._connection.wait_event(self._subscription, self.timeout)
        return self._take_all()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[str, M]:
        await self.ready()
        items = self._subscription.items
        if not items and not await self._connection.wait_event(self._subscription, self.timeout):
            raise StopAsyncIteration
        return self._take()

    async def aclose(self) -> None:
        """Unregister; events that arrive before charon has confirmed are dropped."""
        self._connection.protocol.unlisten(self._subscription)
        self._connection.wake([self._subscription])
        self._connection.flush()

    async def __aenter__(self) -> Self:
        try:
            await self.ready()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()
