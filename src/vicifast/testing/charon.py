"""The fake charon, in an event loop."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import struct
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

from .. import _wire
from ..address import Tcp, Unix, parse_address
from ..commands import EVENTS
from ..errors import DecodeError, ProtocolError, UnknownEvent
from ..recording import RecordedPacket, Recording, RequestSplitter, is_standalone, listen_at

Message = Mapping[str, object] | bytes
Handler = Callable[[Mapping[str, object]], Message | Awaitable[Message]]

_DRAIN_EVERY = 256  # packets of a replay
_COMMAND_ANSWERS = (_wire.CMD_RESPONSE, _wire.CMD_UNKNOWN)
_CONFIRM = _wire.packet(_wire.EVENT_CONFIRM)
_EVENT_UNKNOWN = _wire.packet(_wire.EVENT_UNKNOWN)
_COMMAND_UNKNOWN = _wire.packet(_wire.CMD_UNKNOWN)
_UNPARSED = _wire.packet(_wire.CMD_RESPONSE, None, {"success": "no", "errmsg": "parsing request failed"})


class _Answer(NamedTuple):
    reply: bytes | Handler  # a whole packet, or a function that returns the message
    stream: list[tuple[str, bytes]]


def _packet(kind: int, name: str | None, message: Message) -> bytes:
    """Return a whole packet; empty if it is over 512 KiB, as charon then sends nothing."""
    if not isinstance(message, bytes):
        return _wire.packet(kind, name, message)
    body = _wire.packet(kind, name)[4:] + message
    return len(body).to_bytes(4) + body if len(body) <= _wire.MAX_PACKET else b""


def _answer(reply: Message | Handler, stream: Iterable[tuple[str, Message]]) -> _Answer:
    events = [(event, _packet(_wire.EVENT, event, message)) for event, message in stream]
    return _Answer(reply if callable(reply) else _packet(_wire.CMD_RESPONSE, None, reply), events)


class _Connection:
    """One client: a reader, a worker that handles its packets in order, and a writer."""

    def __init__(self, charon: FakeCharon, sock: socket.socket) -> None:
        self.registered: Counter[str] = Counter()
        self.open = True
        self._charon = charon
        self._sock = sock
        self._packets: asyncio.Queue[tuple[int, str, bytes | None] | None] = asyncio.Queue()
        self._unsent = bytearray()
        self._wake = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()

    def write(self, data: bytes) -> None:
        if self.open and data:
            self._unsent += data
            self._sent.clear()
            self._wake.set()

    async def drain(self) -> None:
        await self._sent.wait()

    def reset(self) -> None:
        """Discard unsent output, and over TCP make the close a reset."""
        self.leave()
        if self._sock.fileno() >= 0:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def leave(self) -> None:
        self.open = False
        self.registered.clear()
        self._unsent.clear()
        self._sent.set()
        self._packets.put_nowait(None)
        self._charon._news.set()

    async def serve(self) -> None:
        """Serve the client until it disconnects; a running command is then completed, and its output dropped."""
        writing = asyncio.create_task(self._write())
        working = asyncio.create_task(self._work())
        try:
            await self._read()
            self._charon.abrupt_closes += self.registered["log"] > 0
            self.leave()
            await _cancel(writing)
            self._sock.close()
            await working
        finally:
            self.leave()
            await _cancel(writing, working)
            self._sock.close()

    async def _read(self) -> None:
        loop, splitter = asyncio.get_running_loop(), RequestSplitter()
        try:
            while data := await loop.sock_recv(self._sock, 65536):
                await self._charon._reading.wait()
                for packet in splitter.feed(data):
                    self._packets.put_nowait(packet)
        except (ConnectionError, ProtocolError):
            pass  # charon closes in both cases

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while await self._wake.wait():
                self._wake.clear()
                data, self._unsent = memoryview(self._unsent), bytearray()
                size = self._charon.chunk or len(data) or 1
                for at in range(0, len(data), size):
                    await loop.sock_sendall(self._sock, data[at : at + size])
                    if self._charon.chunk:
                        await asyncio.sleep(0)  # so that a reader in the same loop receives each piece separately
                if not self._unsent:
                    self._sent.set()
        except ConnectionError:
            self._sent.set()  # the reader will notice the end too

    async def _work(self) -> None:
        try:
            while (packet := await self._packets.get()) and self.open:
                kind, name, message = packet
                self._charon.packets.append((kind, name))
                if message is not None:
                    await self._command(name, message)
                elif kind == _wire.EVENT_REGISTER:
                    self._register(name)
                else:
                    self._unregister(name)
                self._charon._news.set()
        except Exception as error:
            self._charon._failed(error)
            self._charon._end(self)

    def _register(self, event: str) -> None:
        known = event in self._charon.events
        self.registered[event] += known
        self.write(_CONFIRM if known else _EVENT_UNKNOWN)

    def _unregister(self, event: str) -> None:
        known = self.registered[event] > 0
        self.registered[event] -= known
        self.write(_CONFIRM if known else _EVENT_UNKNOWN)

    async def _command(self, command: str, message: bytes) -> None:
        charon = self._charon
        answers = charon._answers.get(command, {})
        answer = answers.get(message) or answers.get(None)
        try:
            request = _wire.decode(message)
        except DecodeError:
            self.write(_UNPARSED if answer else _COMMAND_UNKNOWN)
            return
        charon.requests.append((command, request))
        charon._news.set()
        await asyncio.sleep(charon.delay)
        if answer is None:
            self.write(_COMMAND_UNKNOWN)
            return
        cut = charon._cuts.get(command)
        for event, packet in answer.stream[:cut]:
            self.write(packet * self.registered[event])
        if cut is not None:
            await self.drain()
            charon._end(self)
            return
        reply = answer.reply if isinstance(answer.reply, bytes) else await _ask(answer.reply, request)
        if command not in charon._muted:
            self.write(reply)


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(handler: Handler, request: Mapping[str, object]) -> bytes:
    reply = handler(request)
    if inspect.isawaitable(reply):
        reply = await reply
    return _packet(_wire.CMD_RESPONSE, None, reply)


class FakeCharon:
    """A daemon with scripted replies; an async context manager, listening from enter to exit.

    `address` is a path, `unix://` or `tcp://host:port` (port 0: any free port), by default a socket in a new temporary
    directory. `events` are the supported events: without "alert" it behaves like a charon before 6.0.3.
    """

    def __init__(
        self,
        address: str | os.PathLike[str] | None = None,
        *,
        events: Iterable[str] = EVENTS,
        backlog: int = 3,
    ) -> None:
        self.events = set(events)
        self.requests: list[tuple[str, Mapping[str, object]]] = []
        """Every command that was started, and its message, in order."""
        self.packets: list[tuple[int, str]] = []
        """The type and name of every well-formed packet that was handled, in order."""
        self.abrupt_closes = 0
        """Number of clients that disconnected with `log` registered; each makes a real charon log a burst of lines."""
        self.chunk: int | None = None
        """Number of bytes written at a time (1: byte by byte); None for no limit."""
        self.delay = 0.0
        """Seconds from the start of a command to its first event or reply."""
        self._endpoint = None if address is None else parse_address(address, any_port=True)
        self._backlog = backlog
        self._temporary: str | None = None
        self._listener: socket.socket | None = None
        self._acceptor: asyncio.Task[None] | None = None
        self._tasks: dict[_Connection, asyncio.Task[None]] = {}
        self._answers: dict[str, dict[bytes | None, _Answer]] = {}  # by the message of the request; None: any other
        self._cuts: dict[str, int] = {}
        self._muted: set[str] = set()
        self._failure: BaseException | None = None
        self._news = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()

    @classmethod
    def from_recordings(cls, recordings: Iterable[Recording], address: str | os.PathLike[str] | None = None) -> Self:
        """A daemon with recorded replies: that to the same request, else the last one to the same command.

        Commands that were not recorded are unknown, as are events that the recorded daemon did not know.
        """
        charon = cls(address)
        for recording in recordings:
            for request, reply, stream in _exchanges(recording):
                charon._learn(request, reply, stream)
        return charon

    def _learn(self, request: RecordedPacket, reply: RecordedPacket, stream: list[RecordedPacket]) -> None:
        name = request.name or ""
        if reply.kind == _wire.EVENT_UNKNOWN and request.kind == _wire.EVENT_REGISTER:
            self.events.discard(name)
        elif reply.kind == _wire.EVENT_CONFIRM:
            self.events.add(name)
        elif reply.kind == _wire.CMD_RESPONSE:
            made = _answer(reply.message or b"", [(p.name or "", p.message or b"") for p in stream])
            self._answers.setdefault(name, {}).update({request.message: made, None: made})

    @property
    def address(self) -> str:
        """The address, for a session; for port 0 it contains the actual port once FakeCharon has started."""
        if self._endpoint is None:
            raise RuntimeError("FakeCharon has no address before it starts")
        return str(self._endpoint)

    async def start(self) -> None:
        """Listen; after `stop` at the same address, like a restarted daemon, without any registrations."""
        if self._endpoint is None:
            self._temporary = tempfile.mkdtemp(prefix="charon-")
            self._endpoint = Unix(f"{self._temporary}/charon.vici")
        elif self._temporary is not None:
            os.mkdir(self._temporary, 0o700)
        self._listener = listen_at(self._endpoint, self._backlog)
        if isinstance(self._endpoint, Tcp):
            self._endpoint = Tcp(self._endpoint.host, self._listener.getsockname()[1])
        self.resume_accepting()

    async def stop(self) -> None:
        """Stop listening, cut every connection, cancel handlers. Scripted replies and recorded requests are kept."""
        self.pause_accepting()
        self.drop()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._listener is None:
            return
        self._listener.close()
        self._listener = None
        if isinstance(self._endpoint, Unix):
            os.unlink(self._endpoint.path)
        if self._temporary is not None:
            os.rmdir(self._temporary)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if self._failure is not None and error is None:
            raise self._failure  # else an error in a handler would look like a dropped connection

    def on(
        self,
        command: str,
        reply: Message | Handler,
        *,
        stream: Iterable[tuple[str, Message]] = (),
    ) -> None:
        """Answer `command` from now on: first each event of `stream`, once per registration of the client.

        `reply` is a message, its bytes, or a function or coroutine function that gets the message of the request and
        returns one. An exception in the function cuts the connection and is raised when FakeCharon exits. Cancels an
        earlier `mute` or `cut` of the command.
        """
        self._answers[command] = {None: _answer(reply, stream)}
        self._muted.discard(command)
        self._cuts.pop(command, None)

    def mute(self, command: str) -> None:
        """Never reply to `command`, as charon does when the reply is over 512 KiB; other commands are answered."""
        self._muted.add(command)

    def cut(self, command: str, after: int) -> None:
        """Cut the connection of a client that runs `command`, after `after` events of its stream."""
        self._cuts[command] = after

    def emit(self, event: str, message: Message) -> int:
        """Send an event once per registration, and return the number sent. Bytes are sent unchanged."""
        if event not in self.events:
            raise UnknownEvent(event)
        return self._deliver(event, _packet(_wire.EVENT, event, message))

    def _deliver(self, event: str, packet: bytes) -> int:
        reached = 0
        if packet:
            for connection in self._tasks:
                times = connection.registered.get(event, 0)
                if times:
                    connection.write(packet * times)
                    reached += times
        return reached

    def send(self, data: bytes) -> None:
        """Write any bytes to every connection, also invalid ones."""
        for connection in self._tasks:
            connection.write(data)

    async def drain(self) -> None:
        """Wait until all output is in the clients' sockets; a client that does not read delays this."""
        for connection in list(self._tasks):
            await connection.drain()

    async def replay(self, recording: Recording, speed: float | None = None) -> int:
        """Send the recorded standalone events to their subscribers, and return the number sent.

        `speed` is a multiple of the recorded speed; None is as fast as the clients read.
        """
        if speed is not None and speed <= 0:
            raise ValueError(f"speed is {speed}, but must be above 0")
        events = recording.events()
        start = asyncio.get_running_loop().time()
        sent = 0
        for number, event in enumerate(events):
            if speed is not None:
                await _sleep_until(start + (event.time - events[0].time) / 1e9 / speed)
            name = event.name or ""
            sent += self._deliver(name, _packet(_wire.EVENT, name, event.message or b""))
            if number % _DRAIN_EVERY == 0:
                await self.drain()
        await self.drain()
        return sent

    def registrations(self, event: str) -> int:
        """The current number of registrations of `event`."""
        return sum(connection.registered[event] for connection in self._tasks)

    async def registered(self, event: str, count: int = 1) -> None:
        """Wait until there are at least `count` registrations of `event`."""
        await self._until(lambda: self.registrations(event) >= count)

    async def requested(self, command: str, count: int = 1) -> Mapping[str, object]:
        """Wait until `command` was started `count` times since the start, and return the message of the last."""
        await self._until(lambda: len(self._requests_of(command)) >= count)
        return self._requests_of(command)[count - 1]

    async def connected(self, count: int) -> None:
        """Wait until exactly `count` connections are open."""
        await self._until(lambda: sum(connection.open for connection in self._tasks) == count)

    def _requests_of(self, command: str) -> list[Mapping[str, object]]:
        return [message for name, message in self.requests if name == command]

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()

    def pause_reading(self) -> None:
        """Stop reading from clients: their requests fill the sockets, then their writes block."""
        self._reading.clear()

    def resume_reading(self) -> None:
        """Resume reading."""
        self._reading.set()

    def pause_accepting(self) -> None:
        """Leave new connections in the backlog; once it is full, connecting to a Unix socket fails with EAGAIN."""
        if self._acceptor is not None:
            self._acceptor.cancel()
            self._acceptor = None

    def resume_accepting(self) -> None:
        """Resume accepting, beginning with the connections in the backlog."""
        if self._acceptor is None and self._listener is not None:
            self._acceptor = asyncio.create_task(self._accept(self._listener))

    def drop(self) -> None:
        """Cut every connection at once and discard unsent output; over TCP with a reset."""
        for connection in self._tasks:
            connection.reset()
            self._end(connection)

    def _end(self, connection: _Connection) -> None:
        connection.leave()
        self._tasks[connection].cancel()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(listener)
            connection = _Connection(self, sock)
            self._tasks[connection] = task = asyncio.create_task(connection.serve())
            task.add_done_callback(partial(self._forget, connection))
            self._news.set()

    def _forget(self, connection: _Connection, task: asyncio.Task[None]) -> None:
        del self._tasks[connection]
        self._news.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self._failure = self._failure or error


async def _sleep_until(time: float) -> None:
    wait = time - asyncio.get_running_loop().time()
    if wait > 0:
        await asyncio.sleep(wait)


def _exchanges(recording: Recording) -> Iterator[tuple[RecordedPacket, RecordedPacket, list[RecordedPacket]]]:
    """Yield each request with its reply and the messages streamed in between; omits requests without a reply."""
    requests = iter(recording.packets("client"))
    stream: list[RecordedPacket] = []
    for packet in recording.packets("server"):
        if packet.kind == _wire.EVENT:
            stream += [] if is_standalone(packet.name or "") else [packet]
            continue
        request = next(requests, None)
        if request is None or (request.kind == _wire.CMD_REQUEST) != (packet.kind in _COMMAND_ANSWERS):
            asked = "nothing" if request is None else f"{request.kind} {request.name!r}"
            raise ProtocolError(f"recorded at {packet.time} ns: type {packet.kind} answers {asked}")
        yield request, packet, stream
        stream = []
