"""Recordings of one VICI connection, both directions with timestamps, and the proxy that makes them.

A file is `MAGIC`, one line of JSON (the metadata, an object of strings), and chunks up to the end of the file. A
chunk is one byte (`>` written by the client, `<` written by the server), the time in nanoseconds since the
recording began (8 bytes), the length (4 bytes), both big-endian, and the bytes as read from the socket.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import TracebackType
from typing import Literal, NamedTuple, Self

from . import _wire
from .address import Tcp, Unix
from .commands import EVENTS
from .errors import DecodeError, ProtocolError
from .standard_output import naming_errors

MAGIC = b"vici recording 1\n"

Side = Literal["client", "server"]

_HEAD = struct.Struct(">cQI")
_MARKS: dict[Side, bytes] = {"client": b">", "server": b"<"}
_SIDES: dict[bytes, Side] = {mark: side for side, mark in _MARKS.items()}
_READ_SIZE = 65536


class Chunk(NamedTuple):
    """The bytes of one read: `time` in nanoseconds since the start, and the `side` that wrote `data`."""

    time: int
    side: Side
    data: bytes


class RecordedPacket(NamedTuple):
    """One packet; `time` is that of the chunk that completed it, `message` is None if its type has none."""

    time: int
    kind: int
    name: str | None
    message: bytes | None


class Recording:
    """A recorded connection, held in memory."""

    def __init__(self, chunks: list[Chunk], metadata: Mapping[str, str]) -> None:
        self.chunks = chunks
        self.metadata = metadata

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file. Raises DecodeError with the file and the offset at which it is truncated or damaged."""
        with open(path, "rb") as file:
            data = file.read(len(MAGIC))
            if data != MAGIC:
                raise DecodeError(f"{os.fspath(path)}: not a VICI recording", 0)
            data += file.read()
        end = data.find(b"\n", len(MAGIC))
        metadata = _metadata(data[len(MAGIC) : end]) if end >= 0 else None
        if metadata is None:
            raise DecodeError(f"{os.fspath(path)}: the metadata is not a line of JSON with text values", len(MAGIC))
        return cls(list(_chunks(data, end + 1, os.fspath(path))), metadata)

    @property
    def duration(self) -> int:
        """Nanoseconds from the start to the last chunk."""
        return self.chunks[-1].time if self.chunks else 0

    def stream(self, side: Side) -> bytes:
        """Every byte that `side` wrote, in order."""
        return b"".join(chunk.data for chunk in self.chunks if chunk.side == side)

    def packets(self, side: Side) -> list[RecordedPacket]:
        """Every packet that `side` wrote, in order, except one that the end of the connection truncated.

        Client packets that charon ignores as malformed are also omitted (see RequestSplitter). Raises ProtocolError
        if the server violated the packet protocol, or a client sent a frame over 512 KiB.
        """
        return list(self._requests() if side == "client" else self._replies())

    def events(self) -> list[RecordedPacket]:
        """Every standalone event, in order; those streamed by commands are omitted."""
        return [p for p in self.packets("server") if p.kind == _wire.EVENT and is_standalone(p.name or "")]

    def _requests(self) -> Iterator[RecordedPacket]:
        splitter = RequestSplitter()
        for chunk in self.chunks:
            if chunk.side == "client":
                for request in splitter.feed(chunk.data):
                    yield RecordedPacket(chunk.time, *request)

    def _replies(self) -> Iterator[RecordedPacket]:
        framer = _wire.Framer(_wire.Raw())
        for chunk in self.chunks:
            if chunk.side == "server":
                framer.feed(chunk.data)
                for kind, name, body in framer.packets():
                    yield RecordedPacket(chunk.time, kind, name, body if isinstance(body, bytes) else None)
                if framer.error is not None:
                    raise framer.error


def is_standalone(event: str) -> bool:
    """Whether an event is sent outside of commands; true for events not in the table."""
    return event not in EVENTS or EVENTS[event].standalone


def _metadata(line: bytes) -> dict[str, str] | None:
    try:
        metadata = json.loads(line)
    except ValueError:
        return None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return None
    return metadata


def _chunks(data: bytes, offset: int, path: str) -> Iterator[Chunk]:
    last = 0
    while offset < len(data):
        if len(data) - offset < _HEAD.size:
            raise DecodeError(f"{path}: truncated in the header of a chunk", offset)
        mark, when, length = _HEAD.unpack_from(data, offset)
        if mark not in _SIDES:
            raise DecodeError(f"{path}: damaged, a chunk begins with the byte {mark[0]:#04x}", offset)
        if when < last:
            raise DecodeError(f"{path}: damaged, the time of a chunk is before that of the previous one", offset)
        start = offset + _HEAD.size
        if length > len(data) - start:
            raise DecodeError(f"{path}: truncated, {len(data) - start} of {length} bytes of a chunk", start)
        offset, last = start + length, when
        yield Chunk(when, _SIDES[mark], data[start:offset])


class RecordingWriter:
    """Writes a recording that begins now. `metadata` describes how it was made and the daemon."""

    def __init__(self, path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
        self._path = os.fspath(path)
        self._file = open(path, "wb")
        self._file.write(MAGIC + json.dumps(dict(metadata)).encode() + b"\n")
        self._start = time.monotonic_ns()
        self.size = 0
        """Bytes recorded so far, both directions."""

    def write(self, side: Side, data: bytes, when: int | None = None) -> None:
        """Add bytes that `side` wrote, now or at `when` nanoseconds since the start (must not decrease)."""
        when = time.monotonic_ns() - self._start if when is None else when
        with naming_errors(self._path):
            self._file.write(_HEAD.pack(_MARKS[side], when, len(data)) + data)
        self.size += len(data)

    def close(self) -> None:
        with naming_errors(self._path):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Tasks(asyncio.TaskGroup):
    """Raises the first error of a task itself, not in a group."""

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None


class RequestSplitter:
    """Splits a client's byte stream into packets, as charon does; Framer accepts only a server's packets."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, str, bytes | None]]:
        """Return (kind, name, message) of each packet that `data` completes. Raises ProtocolError above 512 KiB.

        Packets that charon ignores without a reply are omitted (vici_dispatcher.c): those of an unknown type, empty
        ones, and those whose name is not printable ASCII or longer than the frame.
        """
        rest, requests, offset = self._rest, [], 0
        rest += data
        while len(rest) - offset >= 4:
            length = int.from_bytes(rest[offset : offset + 4])
            if length > _wire.MAX_PACKET:
                raise ProtocolError(f"a client sent a frame of {length} bytes, over 512 KiB")
            if len(rest) - offset - 4 < length:
                break
            request = _request(bytes(rest[offset + 4 : offset + 4 + length]))
            if request is not None:
                requests.append(request)
            offset += 4 + length
        del rest[:offset]
        return requests


def _request(frame: bytes) -> tuple[int, str, bytes | None] | None:
    if len(frame) < 2 or frame[0] not in (_wire.CMD_REQUEST, _wire.EVENT_REGISTER, _wire.EVENT_UNREGISTER):
        return None
    end = 2 + frame[1]
    name = frame[2:end]
    if len(frame) < end or not all(0x20 <= byte <= 0x7E for byte in name):
        return None
    return frame[0], name.decode(), frame[end:] if frame[0] == _wire.CMD_REQUEST else None


def listen_at(endpoint: Unix | Tcp, backlog: int) -> socket.socket:
    """Return a non-blocking socket that listens at `endpoint`. Raises OSError, also if the path already exists."""
    try:
        if isinstance(endpoint, Tcp):
            family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
            listener = socket.create_server(endpoint, family=family, backlog=backlog)
        else:
            listener = _listen_unix(endpoint.path, backlog)
    except OSError as error:
        system = error.errno is not None and error.errno > 0  # create_server adds to the text
        reason = os.strerror(error.errno or 0) if system else error.strerror or str(error)
        raise OSError(error.errno, f"cannot listen at {endpoint}: {reason}") from None
    listener.setblocking(False)
    return listener


def _listen_unix(path: str, backlog: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


async def tee(client: socket.socket, server: socket.socket, writer: RecordingWriter) -> None:
    """Forward bytes between two connected sockets and record them, until both sides end; closes both.

    Each direction is read only as fast as the receiver reads, so that backpressure of a slow client reaches charon.
    Raises the OSError of `writer`, with the file's name.
    """
    try:
        client.setblocking(False)
        server.setblocking(False)
        async with _Tasks() as group:
            group.create_task(_pump(client, server, writer, "client"))
            group.create_task(_pump(server, client, writer, "server"))
    finally:
        client.close()
        server.close()


async def _pump(source: socket.socket, sink: socket.socket, writer: RecordingWriter, side: Side) -> None:
    loop = asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(source, _READ_SIZE):
            writer.write(side, data)
            await loop.sock_sendall(sink, data)
    except ConnectionError:
        pass  # a normal end: everything read until then is recorded
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other direction has already seen the end


async def proxy(
    listener: socket.socket,
    connect: Callable[[], Awaitable[socket.socket]],
    new_writer: Callable[[], RecordingWriter],
) -> None:
    """Accept clients until cancelled, connect each to the daemon, and record each in a separate file.

    `listener` is non-blocking; `connect` returns a socket connected to the daemon, `new_writer` a file, both once per
    client. If `connect` fails, the client is disconnected. Cancelling closes all connections: end clients of `log`
    first.
    """
    loop = asyncio.get_running_loop()
    async with _Tasks() as group:
        while True:
            client, _ = await loop.sock_accept(listener)
            group.create_task(_carry(client, connect, new_writer))


async def _carry(
    client: socket.socket,
    connect: Callable[[], Awaitable[socket.socket]],
    new_writer: Callable[[], RecordingWriter],
) -> None:
    with client:
        try:
            server = await connect()
        except OSError:
            return
        with server, new_writer() as writer:
            await tee(client, server, writer)
