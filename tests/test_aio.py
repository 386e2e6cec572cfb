"""Features of AsyncSession only: concurrent calls and cancellation. The rest is in test_sessions.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps

import pytest

from vicifast import AsyncSession, ConnectionClosed, RequestTimeout
from vicifast.testing import FakeCharon

SAS = [("list-sa", {f"site-{i}": {"uniqueid": i}}) for i in range(50)]


def run(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    @wraps(test)
    def in_loop(*args: object, **kwargs: object) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 20))

    return in_loop


@asynccontextmanager
async def session_and_charon(**options: object) -> AsyncIterator[tuple[AsyncSession, FakeCharon]]:
    async with FakeCharon() as charon:
        charon.on("version", {"daemon": "charon"})
        charon.on("list-sas", {}, stream=SAS)
        async with AsyncSession(charon.address, **options) as session:  # type: ignore[arg-type]
            yield session, charon


@run
async def test_concurrent_calls_get_their_own_replies() -> None:
    async with session_and_charon() as (session, charon):
        charon.on("get-shared", lambda message: {"echo": message["n"]})
        calls = [session.call("get-shared", {"n": n}) for n in range(50)]
        streams = [session.stream("list-sas") for _ in range(5)]
        replies = await asyncio.gather(*calls)
        assert [reply["echo"] for reply in replies] == [str(n) for n in range(50)]
        for stream in streams:
            assert len([sa async for sa in stream]) == 50


@run
async def test_missing_reply_does_not_consume_the_next_one() -> None:
    async with session_and_charon() as (session, charon):
        charon.on("get-counters", {})
        charon.mute("get-counters")
        lost = asyncio.create_task(session.call("get-counters", timeout=0.1))
        await charon.requested("get-counters")
        waiting = [asyncio.create_task(session.call("version")) for _ in range(3)]
        with pytest.raises(RequestTimeout):
            await lost
        for call in waiting:
            with pytest.raises(ConnectionClosed, match="get-counters"):
                await call


@run
async def test_cancelling_a_call_that_waits_for_another() -> None:
    async with session_and_charon() as (session, charon):
        release = asyncio.Event()

        async def slow(message: object) -> dict[str, object]:
            await release.wait()
            return {"slow": True}

        charon.on("stats", slow)
        first = asyncio.create_task(session.call("stats"))
        await charon.requested("stats")
        with pytest.raises(RequestTimeout, match="version: not sent within 0.01 s"):
            await session.call("version", timeout=0.01)
        cancelled = asyncio.create_task(session.call("version"))
        await asyncio.sleep(0)
        cancelled.cancel()
        release.set()
        assert await first == {"slow": "yes"}
        assert await session.call("version") == {"daemon": "charon"}
        assert [name for name, _ in charon.requests] == ["stats", "version"]


@pytest.mark.parametrize("what", ["call", "stream"])
@run
async def test_cancelling_closes_the_connection(what: str) -> None:
    async with session_and_charon() as (session, charon):
        charon.delay = 5
        waiting = session.call("version") if what == "call" else anext(session.stream("list-sas"))
        task = asyncio.ensure_future(waiting)
        await charon.requested("version" if what == "call" else "list-sas")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ConnectionClosed, match="cancelled"):
            await session.call("version")


@run
async def test_cancelling_a_listener_closes_nothing() -> None:
    async with session_and_charon() as (session, charon), session.listen("log") as listener:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(listener), 0.01)
        charon.emit("log", {"msg": "1"})
        assert await anext(listener) == ("log", {"msg": "1"})


@run
async def test_full_backlog_is_waited_out() -> None:
    async with FakeCharon(backlog=1) as charon:
        charon.on("version", {"daemon": "charon"})
        charon.pause_accepting()
        sessions = [AsyncSession(charon.address) for _ in range(40)]
        connecting = [asyncio.create_task(session.connect()) for session in sessions]
        await asyncio.wait(connecting, timeout=0.05)
        assert not all(task.done() for task in connecting)
        charon.resume_accepting()
        await asyncio.gather(*connecting)
        for reply in await asyncio.gather(*(session.call("version") for session in sessions)):
            assert reply == {"daemon": "charon"}
        for session in sessions:
            await session.close()


@run
async def test_closing_twice_and_with_open_calls() -> None:
    async with session_and_charon() as (session, charon):
        charon.delay = 0.01
        charon.mute("version")
        call = asyncio.create_task(session.call("version"))
        await charon.requested("version")
        await asyncio.gather(session.close(), session.close())
        with pytest.raises(ConnectionClosed, match="session was closed"):
            await call
        with pytest.raises(ConnectionClosed, match="not connected"):
            await session.call("version")


@run
async def test_an_unread_stream_is_still_received() -> None:
    async with session_and_charon() as (session, _):
        streams = [session.stream("list-sas") for _ in range(3)]
        assert await session.call("version") == {"daemon": "charon"}
        assert [stream.response for stream in streams] == [{}, {}, {}]


@run
async def test_dropping_a_listener_needs_no_call() -> None:
    async with session_and_charon() as (session, charon):
        listener = session.listen("log")
        await listener.ready()
        del listener
        charon.emit("log", {"msg": "1"})
        while charon.registrations("log"):
            await asyncio.sleep(0.001)


@run
async def test_two_tasks_cannot_wait_for_one_listener() -> None:
    async with session_and_charon() as (session, charon), session.listen("log") as listener:
        first = asyncio.create_task(anext(listener))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(listener)
        charon.emit("log", {"msg": "1"})
        assert await first == ("log", {"msg": "1"})


@run
async def test_a_close_that_is_cancelled_closes() -> None:
    async with session_and_charon() as (session, charon):
        await session.listen("log").ready()
        charon.pause_reading()
        closing = asyncio.create_task(session.close())
        await asyncio.sleep(0.01)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        charon.resume_reading()
        await charon.connected(0)
        assert session.closed
