"""Lets a blocking test use objects of an event loop, which runs in a separate thread.

With it one test serves both kinds of everything: see `Kit`, and the fixture `kit`.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

from vicifast import AsyncFollower, AsyncSession, Follower, Session
from vicifast.aio import Listener, Stream
from vicifast.testing import FakeCharon

TIMEOUT = 20.0  # seconds for one operation in the loop
LIMIT = 30.0  # seconds for a test


class Loop:
    """An event loop in a thread; `run` runs a coroutine there, and waits for it."""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT)
        self._loop.close()

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        async def inside() -> Any:
            result = function(*args, **kwargs)
            async with asyncio.timeout(TIMEOUT):
                try:
                    return await result if inspect.isawaitable(result) else result
                except StopAsyncIteration:  # a future cannot carry it
                    return StopAsyncIteration

        return asyncio.run_coroutine_threadsafe(inside(), self._loop).result()

    def blocking(self, subject: Any) -> Any:
        """Return `subject` with all its attributes, without `await`."""
        return _Blocking(self, subject)


class _Blocking:
    def __init__(self, loop: Loop, subject: Any) -> None:
        vars(self).update(_loop=loop, _subject=subject)

    def __getattr__(self, name: str) -> Any:
        if name == "close" and hasattr(self._subject, "aclose"):
            name = "aclose"
        value = self._loop.run(getattr, self._subject, name)
        return self._method(value) if callable(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._subject, name, value)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        item = self._loop.run(self._subject.__anext__)
        if item is StopAsyncIteration:
            raise StopIteration
        return item

    def __enter__(self) -> Self:
        self._loop.run(self._subject.__aenter__)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.run(self._subject.__aexit__, *exc_info)

    def _method(self, method: Callable[..., Awaitable[Any] | Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = self._loop.run(method, *args, **kwargs)
            if result is self._subject:
                return self
            return self._loop.blocking(result) if isinstance(result, (Stream, Listener)) else result

        return call


@contextmanager
def time_limit() -> Iterator[None]:
    """Raise TimeoutError in a test that hangs; it interrupts a main thread that is blocked in a system call."""

    def end(number: int, frame: object) -> None:
        raise TimeoutError(f"the test did not end within {LIMIT:g} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


SAS = [("list-sa", {f"site-{i}": {"uniqueid": i}}) for i in range(50)]


class Kit:
    """Makes sessions of one of the two kinds, and daemons; both block."""

    def __init__(self, loop: Loop, pool: ThreadPoolExecutor, kind: str) -> None:
        self._loop = loop
        self._pool = pool
        self.kind = kind

    def session(self, address: Any = None, **options: Any) -> Any:
        if self.kind == "blocking":
            return Session(address, **options)
        return self._loop.blocking(AsyncSession(address, **options))

    def follower(self, address: Any = None, *events: str, **options: Any) -> Any:
        if self.kind == "blocking":
            return Follower(address, *events, **options)
        return self._loop.blocking(AsyncFollower(address, *events, **options))

    def charon(self, address: str | None = None, **options: Any) -> Any:
        return self._loop.blocking(FakeCharon(address, **options))

    @contextmanager
    def pair(self, **options: Any) -> Iterator[tuple[Any, Any]]:
        with self.charon() as charon:
            charon.on("version", {"daemon": "charon"})
            charon.on("list-sas", {}, stream=SAS)
            with self.session(charon.address, **options) as session:
                yield session, charon

    def begin(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """Run something in a thread."""
        return self._pool.submit(function, *args, **kwargs)
