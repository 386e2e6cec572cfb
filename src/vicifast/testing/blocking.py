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
    """A `FakeCharon` in an event loop and a thread of its own: the same methods, and those that wait block.

    A context manager, listening from enter to exit. Every wait raises TimeoutError after `timeout` seconds. Functions
    given to `on` run in its thread; they may use all methods but those that wait.
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
        """Where it listens, as sessions take it."""
        return self._charon.address

    @property
    def events(self) -> set[str]:
        """The events that it knows; a set that may be changed."""
        return self._charon.events

    @property
    def requests(self) -> list[tuple[str, Mapping[str, object]]]:
        """Every command that was begun, and its message, in order."""
        return self._charon.requests

    @property
    def packets(self) -> list[tuple[int, str]]:
        """The type and name of every well-formed packet that was begun, in order."""
        return self._charon.packets

    @property
    def abrupt_closes(self) -> int:
        """How many clients left with `log` registered; each makes a real charon log a burst of lines."""
        return self._charon.abrupt_closes

    @property
    def chunk(self) -> int | None:
        """Write so many bytes at a time (1: byte by byte); None: all that is there."""
        return self._charon.chunk

    @chunk.setter
    def chunk(self, size: int | None) -> None:
        self._charon.chunk = size

    @property
    def delay(self) -> float:
        """Seconds from a command's beginning to its first event or reply."""
        return self._charon.delay

    @delay.setter
    def delay(self, seconds: float) -> None:
        self._charon.delay = seconds

    def start(self) -> None:
        """Listen again after `stop`, as a restarted daemon does, with every registration gone."""
        self._wait("its start", self._charon.start())

    def stop(self) -> None:
        """Be gone: no listener, every connection cut. What was scripted and noted stays."""
        self._wait("its stop", self._charon.stop())

    def on(self, command: str, reply: Message | Handler, *, stream: Iterable[tuple[str, Message]] = ()) -> None:
        """Answer `command` from now on, after the events of `stream`; see `FakeCharon.on`."""
        self._do(lambda: self._charon.on(command, reply, stream=stream))

    def mute(self, command: str) -> None:
        """Never answer `command`, as charon does when the answer is over 512 KiB; later ones are answered."""
        self._do(lambda: self._charon.mute(command))

    def cut(self, command: str, after: int) -> None:
        """Cut the connection of who asks for `command`, after that many events of its stream."""
        self._do(lambda: self._charon.cut(command, after))

    def emit(self, event: str, message: Message) -> int:
        """Send an event, and return how often: once for each registration. Bytes are sent as they are."""
        return self._do(lambda: self._charon.emit(event, message))

    def send(self, data: bytes) -> None:
        """Write any bytes to every connection, for what a real daemon would not send."""
        self._do(lambda: self._charon.send(data))

    def drop(self) -> None:
        """Cut every connection at once, with what was not written yet; over TCP with a reset."""
        self._do(self._charon.drop)

    def pause_reading(self) -> None:
        """Read nothing more from clients: their requests fill the sockets, then their writing stops."""
        self._do(self._charon.pause_reading)

    def resume_reading(self) -> None:
        """Read on."""
        self._do(self._charon.resume_reading)

    def pause_accepting(self) -> None:
        """Leave new connections in the backlog; once it is full, connecting gives EAGAIN on a Unix socket."""
        self._do(self._charon.pause_accepting)

    def resume_accepting(self) -> None:
        """Accept what waits in the backlog, and go on accepting."""
        self._do(self._charon.resume_accepting)

    def registrations(self, event: str) -> int:
        """How many registrations of `event` there are now."""
        return self._do(lambda: self._charon.registrations(event))

    def registered(self, event: str, count: int = 1) -> None:
        """Wait until there are at least `count` registrations of `event`."""
        self._wait(f"{count} registrations of {event}", self._charon.registered(event, count))

    def requested(self, command: str, count: int = 1) -> Mapping[str, object]:
        """Wait until `command` was begun `count` times since the start, and return the message of that one."""
        return self._wait(f"{command} to be asked for {count} times", self._charon.requested(command, count))

    def connected(self, count: int) -> None:
        """Wait until exactly `count` connections are open."""
        self._wait(f"{count} open connections", self._charon.connected(count))

    def drain(self) -> None:
        """Wait until all output is in the clients' sockets; a client that does not read holds this up."""
        self._wait("a client to read", self._charon.drain())

    def replay(self, recording: Recording, speed: float | None = None) -> int:
        """Send the recorded standalone events to who registered them, and return how many; see `FakeCharon.replay`."""
        return self._wait("the end of the replay", self._charon.replay(recording, speed))

    def _do(self, function: Callable[[], T]) -> T:
        """Run what does not wait, in the thread of the loop."""
        if threading.current_thread() is self._thread:
            return function()

        async def inside() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(inside(), self._loop).result()

    def _wait(self, what: str, waiting: Coroutine[Any, Any, T]) -> T:
        if threading.current_thread() is self._thread:
            waiting.close()
            raise RuntimeError("a function that answers a command cannot wait: charon would not go on meanwhile")

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
