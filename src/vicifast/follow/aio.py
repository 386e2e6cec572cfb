"""The asyncio follower."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Self

from ..aio import AsyncSession, Listener
from ..errors import UnknownEvent, ViciError
from ..session import M
from .base import BaseFollower, Item


class AsyncFollower(BaseFollower[M]):
    """An async iterator that follows the events of one charon; see `vicifast.follow`.

    `address` is a path, `unix://PATH`, `tcp://HOST:PORT` or None for strongSwan's default; `events` are names, by
    default all standalone events except `log`. `sas` and `conns` select the content of a `Snapshot`; without either
    none are taken. The iteration ends after `timeout` seconds without an item, and can be resumed.
    `request_timeout` is the maximum wait for a connection and for each reply; `values` is as for `AsyncSession`.

    Waiting for an item may be cancelled at any time without losing any. A follower belongs to one event loop, and only
    one task at a time may wait. Use `async with`, or call `aclose`, also from another task.
    """

    _session: AsyncSession[M] | None = None
    _listener: Listener[M] | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _work: asyncio.Task[None] | None = None  # continues when the task that waits for it is cancelled

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item[M]:
        try:
            async with asyncio.timeout(self.timeout):
                while not self._items and not self._closed:
                    await self._advance()
        except TimeoutError:
            raise StopAsyncIteration from None
        if self._closed:
            raise StopAsyncIteration
        return self._items.popleft()

    async def aclose(self) -> None:
        """Unregister and disconnect; ends the iteration in any task."""
        self._closed = True
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])
        await self._disconnect()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def _advance(self) -> None:
        """Wait for the next step: connecting, a snapshot or events."""
        if self._work is None and (self._listener is None or self._stale):
            self._work = asyncio.create_task(self._refresh() if self._stale else self._connect())
        if self._work is not None:
            if not self._work.done():
                await asyncio.wait([self._work])
            work, self._work = self._work, None
            if not work.cancelled():
                work.result()
            return
        listener = self._listener
        assert listener is not None
        try:
            batch = await listener.batch()
        except ViciError as error:
            if not self._closed:
                self._work = asyncio.create_task(self._lose(error))
            return
        self._took(batch, listener.lost)

    async def _connect(self) -> None:
        await asyncio.sleep(self._pause())
        self._loop = asyncio.get_running_loop()
        self._session = session = AsyncSession(self.address, **self._options)
        try:
            await session.connect()
            listener = session.listen(*self.events)
            with suppress(UnknownEvent):
                await listener.ready()
            registered = time.time()
            self._came_up(listener.unknown, registered, await self._list(session))
            self._listener = listener
        except ViciError as error:
            self._went_down(error)
        finally:
            if self._listener is None:
                await self._disconnect()

    async def _refresh(self) -> None:
        """Take a new snapshot on the existing connection."""
        assert self._session is not None
        try:
            self._listed(await self._list(self._session))
        except ViciError as error:
            await self._lose(error)

    async def _lose(self, error: ViciError) -> None:
        self._went_down(error)
        await self._disconnect()

    async def _list(self, session: AsyncSession[M]) -> dict[str, list[M]]:
        return {command: [message async for message in session.stream(command)] for command in self._snapshot_commands}

    async def _disconnect(self) -> None:
        session, self._session, self._listener = self._session, None, None
        if session is not None:
            await session.close()

    def __del__(self) -> None:
        if self._session is not None and self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._session.close(), self._loop)
