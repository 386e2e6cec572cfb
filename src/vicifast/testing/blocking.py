"""The scripted charon for tests that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from ..recording import Recording
from .charon import FakeCharon, Handler, Message

T = TypeVar("T")


class BlockingFakeCharon:
    """A `FakeCharon` in a separate thread and event loop, with the same methods; those that wait block.

    A context manager, listening from enter to exit. Every wait raises TimeoutError after `timeout` seconds. Functions
    passed to `on` run in its thread, and may call only methods that do not wait.
    """

    def __init__(self, charon: FakeCharon | None = None, *, timeout: float = 10.0) -> None:
        self.timeout = timeout
        self._charon = charon or FakeCharon()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="FakeCharon", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait("its end", self._charon.__aexit__(kind, error, trace))
        finally:
            self._end()

    @property
    def address(self) -> str:
        """The address, for a session."""
        return self._charon.address

    @property
    def events(self) -> set[str]:
        """The events that it supports; the set may be changed."""
        return self._charon.events

    @property
    def requests(self) -> list[tuple[str, Mapping[str, object]]]:
        """Every command that was started, and its message, in order."""
        return self._charon.requests

    @property
    def packets(self) -> list[tuple[int, str]]:
        """The type and name of every well-formed packet that was handled, in order."""
        return self._charon.packets

    @property
    def abrupt_closes(self) -> int:
        """Number of clients that disconnected with `log` registered; each makes a real charon log a burst of lines."""
        return self._charon.abrupt_closes

    @property
    def chunk(self) -> int | None:
        """Number of bytes written at a time (1: byte by byte); None for no limit."""
        return self._charon.chunk

    @chunk.setter
    def chunk(self, size: int | None) -> None:
        self._charon.chunk = size

    @property
    def delay(self) -> float:
        """Seconds from the start of a command to its first event or reply."""
        return self._charon.delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._charon.delay = seconds

    def start(self) -> None:
        """Listen again after `stop`, like a restarted daemon, without any registrations."""
        self._wait("its start", self._charon.start())

    def stop(self) -> None:
        """Stop listening and cut every connection. Scripted replies and recorded requests are kept."""
        self._wait("its stop", self._charon.stop())

    def on(self, command: str, reply: Message | Handler, *, stream: Iterable[tuple[str, Message]] = ()) -> None:
        """Answer `command` from now on, after the events of `stream`; see `FakeCharon.on`."""
        self._do(lambda: self._charon.on(command, reply, stream=stream))

    def mute(self, command: str) -> None:
        """Never reply to `command`, as charon does when the reply is over 512 KiB; other commands are answered."""
        self._do(lambda: self._charon.mute(command))

    def cut(self, command: str, after: int) -> None:
        """Cut the connection of a client that runs `command`, after `after` events of its stream."""
        self._do(lambda: self._charon.cut(command, after))

    def emit(self, event: str, message: Message) -> int:
        """Send an event once per registration, and return the number sent. Bytes are sent unchanged."""
        return self._do(lambda: self._charon.emit(event, message))

    def send(self, data: bytes) -> None:
        """Write any bytes to every connection, also invalid ones."""
        self._do(lambda: self._charon.send(data))

    def drop(self) -> None:
        """Cut every connection at once and discard unsent output; over TCP with a reset."""
        self._do(self._charon.drop)

    def pause_reading(self) -> None:
        """Stop reading from clients: their requests fill the sockets, then their writes block."""
        self._do(self._charon.pause_reading)

    def resume_reading(self) -> None:
        """Resume reading."""
        self._do(self._charon.resume_reading)

    def pause_accepting(self) -> None:
        """Leave new connections in the backlog; once it is full, connecting to a Unix socket fails with EAGAIN."""
        self._do(self._charon.pause_accepting)

    def resume_accepting(self) -> None:
        """Resume accepting, beginning with the connections in the backlog."""
        self._do(self._charon.resume_accepting)

    def registrations(self, event: str) -> int:
        """The current number of registrations of `event`."""
        return self._do(lambda: self._charon.registrations(event))

    def registered(self, event: str, count: int = 1) -> None:
        """Wait until there are at least `count` registrations of `event`."""
        self._wait(f"{count} registrations of {event}", self._charon.registered(event, count))

    def requested(self, command: str, count: int = 1) -> Mapping[str, object]:
        """Wait until `command` was started `count` times since the start, and return the message of the last."""
        return self._wait(f"{command} to be requested {count} times", self._charon.requested(command, count))

    def connected(self, count: int) -> None:
        """Wait until exactly `count` connections are open."""
        self._wait(f"{count} open connections", self._charon.connected(count))

    def drain(self) -> None:
        """Wait until all output is in the clients' sockets; a client that does not read delays this."""
        self._wait("a client to read", self._charon.drain())

    def replay(self, recording: Recording, speed: float | None = None) -> int:
        """Send the recorded standalone events to their subscribers, and return the number; see `FakeCharon.replay`."""
        return self._wait("the end of the replay", self._charon.replay(recording, speed))

    def _do(self, function: Callable[[], T]) -> T:
        """Run a function that does not wait in the thread of the loop."""
        if threading.current_thread() is self._thread:
            return function()

        async def inside() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(inside(), self._loop).result()

    def _wait(self, what: str, waiting: Coroutine[Any, Any, T]) -> T:
        if threading.current_thread() is self._thread:
            waiting.close()
            raise RuntimeError("a function passed to on() cannot call methods that wait: they would block FakeCharon")

        async def inside() -> T:
            async with asyncio.timeout(self.timeout):
                return await waiting

        try:
            return asyncio.run_coroutine_threadsafe(inside(), self._loop).result()
        except TimeoutError:
            raise TimeoutError(f"waited {self.timeout:g} s for {what}") from None

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
