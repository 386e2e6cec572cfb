"""Cancellation at every await: each ends as documented, leaves no connection behind, and the next call works."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from onloop import SAS

from vicifast import AsyncFollower, AsyncSession, ConnectionClosed
from vicifast.follow import Event, Snapshot, Up
from vicifast.testing import FakeCharon

LATE = pytest.mark.parametrize("late", [False, True], ids=["before", "after"])


class CancelledAt:
    """Awaits something and cancels the task at its n-th suspension: before or just after the awaited event."""

    def __init__(self, awaitable: Awaitable[Any], number: int, late: bool) -> None:
        self._awaitable = awaitable
        self._number = number
        self._late = late

    def __await__(self) -> Generator[Any, Any, Any]:
        steps: Any = self._awaitable.__await__()
        step = partial(steps.send, None)
        for number in itertools.count(1):
            try:
                future = step()
            except StopIteration as end:
                return end.value
            if number == self._number:
                self._cancel(future)
            try:
                yield future
                step = partial(steps.send, None)
            except BaseException as error:
                step = partial(steps.throw, error)

    def _cancel(self, future: asyncio.Future[Any] | None) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._late and future is not None:
            future.add_done_callback(lambda _: task.cancel())
        else:
            task.cancel()


async def each_await(
    late: bool,
    work: Callable[[AsyncSession, FakeCharon], Awaitable[object]],
    then: Callable[[AsyncSession, FakeCharon], Awaitable[object]],
    *,
    connected: bool = True,
    least: int = 1,
) -> None:
    """Cancel `work` at its first await, then at its second, until it ends uncancelled; `then` runs after each."""
    for number in itertools.count(1):
        async with FakeCharon() as charon:
            charon.on("version", {"daemon": "charon"})
            charon.on("list-sas", {}, stream=SAS)
            async with AsyncSession(charon.address, timeout=10) if connected else _unconnected(charon) as session:
                task = asyncio.ensure_future(_cancelled_at(work(session, charon), number, late))
                await asyncio.wait([task])
                if not task.cancelled():
                    task.result()
                    assert number > least
                    return
                await then(session, charon)
            await charon.connected(0)


async def _cancelled_at(awaitable: Awaitable[Any], number: int, late: bool) -> Any:
    return await CancelledAt(awaitable, number, late)


class _unconnected:
    def __init__(self, charon: FakeCharon) -> None:
        self.session = AsyncSession(charon.address, timeout=10)

    async def __aenter__(self) -> AsyncSession:
        return self.session

    async def __aexit__(self, *exc_info: object) -> None:
        await self.session.close()


def run(test: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


async def connection_was_closed(session: AsyncSession, charon: FakeCharon) -> None:
    with pytest.raises(ConnectionClosed, match="was cancelled"):
        await session.version()
    await connects_and_works(session, charon)


async def connects_and_works(session: AsyncSession, charon: FakeCharon) -> None:
    await session.connect()
    await charon.connected(1)
    assert await session.version() == {"daemon": "charon"}
    assert len([sa async for sa in session.list_sas()]) == 50


async def nothing_happened(session: AsyncSession, charon: FakeCharon) -> None:
    assert not session.closed
    await connects_and_works(session, charon)


@LATE
def test_connecting(late: bool) -> None:
    run(each_await(late, lambda session, _: session.connect(), connects_and_works, connected=False))


@LATE
def test_connecting_to_a_full_backlog(late: bool) -> None:
    async def connect(session: AsyncSession, charon: FakeCharon) -> None:
        charon.pause_accepting()
        fill_backlog(charon)
        asyncio.get_running_loop().call_later(0.01, charon.resume_accepting)
        await session.connect()

    async def then(session: AsyncSession, charon: FakeCharon) -> None:
        charon.resume_accepting()
        await connects_and_works(session, charon)

    run(each_await(late, connect, then, connected=False, least=2))


def fill_backlog(charon: FakeCharon) -> None:
    """Connections closed before they are accepted fill it too."""
    with suppress(BlockingIOError):
        while True:
            with socket.socket(socket.AF_UNIX) as waiting:
                waiting.setblocking(False)
                waiting.connect(charon.address.removeprefix("unix://"))


@LATE
def test_a_call(late: bool) -> None:
    run(each_await(late, lambda session, _: session.version(), connection_was_closed))


@LATE
def test_a_stream(late: bool) -> None:
    async def read(session: AsyncSession, _: FakeCharon) -> None:
        assert len([sa async for sa in session.list_sas()]) == 50

    run(each_await(late, read, connection_was_closed))
    run(each_await(late, lambda session, _: session.list_sas().wait(), connection_was_closed))


@LATE
def test_listening(late: bool) -> None:
    async def listen(session: AsyncSession, charon: FakeCharon) -> None:
        async with session.listen("log") as listener:
            asyncio.get_running_loop().call_later(0.01, charon.emit, "log", {"msg": "1"})
            assert await anext(listener) == ("log", {"msg": "1"})
            asyncio.get_running_loop().call_later(0.01, charon.emit, "log", {"msg": "2"})
            assert await listener.batch() == [("log", {"msg": "2"})]

    async def then(session: AsyncSession, charon: FakeCharon) -> None:
        await nothing_happened(session, charon)
        assert charon.registrations("log") == 0

    run(each_await(late, listen, then, least=2))


@LATE
def test_closing(late: bool) -> None:
    async def close(session: AsyncSession, charon: FakeCharon) -> None:
        listener = session.listen("log")
        await listener.ready()
        await session.close()

    async def then(session: AsyncSession, charon: FakeCharon) -> None:
        await session.close()
        assert session.closed
        await charon.connected(0)
        await connects_and_works(session, charon)

    run(each_await(late, close, then, least=2))


@LATE
def test_following(late: bool) -> None:
    """Cancellation loses no item, and closing works."""

    async def scenario(number: int) -> bool:
        async with FakeCharon() as charon:
            charon.on("list-sas", {}, stream=SAS)
            follower = AsyncFollower(charon.address, "log", sas=True)
            items: list[Any] = []

            async def follow() -> None:
                while len(items) < 2:
                    items.append(await anext(follower))
                charon.emit("log", {"msg": "1"})
                items.append(await anext(follower))
                await follower.aclose()

            task = asyncio.ensure_future(_cancelled_at(follow(), number, late))
            await asyncio.wait([task])
            if not follower.closed:
                await follow_on(follower, charon, items)
            await follower.aclose()
            await charon.connected(0)
            assert [type(item) for item in items] == [Up, Snapshot, Event]
            assert len(charon.requests) == 1
            if not task.cancelled():
                task.result()
            return task.cancelled()

    async def follow_on(follower: Any, charon: FakeCharon, items: list[Any]) -> None:
        while len(items) < 2:
            items.append(await anext(follower))
        if len(items) == 2:
            charon.emit("log", {"msg": "1"})
            items.append(await anext(follower))

    async def scenarios() -> None:
        number = 1
        while await scenario(number):
            number += 1
        assert number > 2

    run(scenarios())
