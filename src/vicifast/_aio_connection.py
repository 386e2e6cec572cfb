"""The asyncio connection: transfers bytes between a socket and the sans-I/O protocol, and wakes tasks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable

from .address import RETRY_DELAYS, broken
from .errors import ConnectionClosed, ViciError
from .protocol import CLOSE_TIMEOUT, Call, Protocol, Subscription, Trickle, overdue, unanswered

_SHORTEST_PAUSE = 0.001  # asyncio rounds a shorter one up


class AsyncConnection(asyncio.BufferedProtocol):
    """Transfers bytes between a transport and a `Protocol`, and wakes tasks that wait for a reply or an event."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self._transport: asyncio.Transport | None = None
        self._idle: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._trickle = Trickle(_SHORTEST_PAUSE)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.protocol.framer)

    def buffer_updated(self, nbytes: int) -> None:
        self.protocol.framer.received(nbytes)
        self.wake(self.protocol.receive())
        self.flush()
        if self.protocol.closed is not None:
            self._abort()
        elif pause := self._trickle.pause(self._loop.time(), nbytes, self.protocol.streaming):
            assert self._transport is not None
            self._transport.pause_reading()
            self._loop.call_later(pause, self._resume)

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        self.wake(self.protocol.receive_eof())
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.wake(self.protocol.fail(broken(exc)))
        self.wake(self.protocol.receive_eof())
        if not self._lost.done():
            self._lost.set_result(None)

    def flush(self) -> None:
        data = self.protocol.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    async def finish(self, call: Call, timeout: float | None) -> None:
        while not call.done:
            await self.wait_call(call, timeout)

    async def wait_call(self, call: Call, timeout: float | None) -> None:
        """Wait for a message or the reply of a call. A timeout closes: a late reply would be mistaken for the next."""
        try:
            async with asyncio.timeout(timeout):
                await self._news(call)
        except TimeoutError:
            error = overdue(call, timeout)
            self._give_up_call(call, error)
            raise error from None
        except asyncio.CancelledError:
            self._give_up_call(call, ConnectionClosed(f"{call.command} was cancelled"))
            raise

    async def wait_registered(self, subscription: Subscription, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout):
                while subscription.pending and subscription.error is None:
                    await self._news(subscription)
        except TimeoutError:
            error = unanswered(subscription, timeout)
            self._give_up(ConnectionClosed(str(error)))
            raise error from None
        if subscription.error is not None and subscription.pending:
            raise subscription.error

    async def wait_event(self, subscription: Subscription, timeout: float | None) -> bool:
        """Wait for an event; False after `timeout` seconds without. Raises the error that ended the subscription."""
        try:
            async with asyncio.timeout(timeout):
                while not subscription.items:
                    if subscription.error is not None:
                        raise subscription.error
                    await self._news(subscription)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        protocol = self.protocol
        try:
            if protocol.closed is None:
                self.wake(protocol.unlisten_all())
                self.flush()
                if not protocol.idle:
                    self._idle = asyncio.get_running_loop().create_future()
                    await asyncio.wait([self._idle], timeout=CLOSE_TIMEOUT)
        finally:
            self._give_up(ConnectionClosed("the session was closed"))
        await asyncio.wait([self._lost], timeout=CLOSE_TIMEOUT)

    async def _news(self, asked: Call | Subscription) -> None:
        if self.protocol.closed is not None:
            return
        if asked.wake is not None:
            raise RuntimeError("another task is already waiting for this stream or listener")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        asked.wake = wake
        try:
            await waiter
        finally:
            asked.wake = None

    def _give_up_call(self, call: Call, error: ViciError) -> None:
        if not self.protocol.withdraw(call, error):
            self._give_up(ConnectionClosed(str(error)))

    def _give_up(self, error: ViciError) -> None:
        self.wake(self.protocol.fail(error))
        self._abort()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def wake(self, touched: Iterable[Call | Subscription]) -> None:
        for asked in touched:
            if asked.wake is not None:
                asked.wake()
        if self._idle is not None and self.protocol.idle and not self._idle.done():
            self._idle.set_result(None)


async def connect_unix(path: str) -> socket.socket:
    """Connect without blocking; asyncio itself mistakes EAGAIN for success (python/cpython#117208)."""
    attempt = 0
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(path)
            return sock
        except BlockingIOError:
            sock.close()
        except BaseException:
            sock.close()
            raise
        await asyncio.sleep(RETRY_DELAYS[min(attempt, len(RETRY_DELAYS) - 1)])
        attempt += 1
