"""Packets, messages and the connection of strongSwan's module."""

from __future__ import annotations

import io
import socket
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Mapping, MappingView, Set
from contextlib import suppress
from types import NoneType
from typing import Any, Final, TypeAlias, cast

from .. import _wire
from ..errors import ConnectionClosed
from .exception import DeserializationException, SessionException, Translated

Section: TypeAlias = OrderedDict[str, Any]

RECV_TIMEOUT_DEFAULT: Final[Any] = object()
"""The default timeout of `receive` and `listen`: that of the socket."""

# Passed to the encoder, which accepts or rejects them; other values, such as an IPv4Address, are sent as their str().
_NO_TEXT = (str, bytes, bytearray, memoryview, int, NoneType, Mapping, list, tuple, Set, Iterator, MappingView)


def sendable(message: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a message in which values that only strongSwan's module accepts are converted to text."""
    return None if message is None else _section(message, 0)


def _section(section: Mapping[str, Any], depth: int) -> dict[str, Any]:
    return {key: _value(value, depth) for key, value in section.items()}


def _value(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        return _section(value, depth + 1) if depth < _wire.MAX_DEPTH else value
    if isinstance(value, (list, tuple)):
        return [item if isinstance(item, _NO_TEXT) else str(item) for item in value]
    return value if isinstance(value, _NO_TEXT) else str(value)


class FiniteStream(io.BytesIO):
    """The bytes of a message."""

    def __len__(self) -> int:
        return len(self.getbuffer())

    def has_more(self) -> bool:
        """Whether there are bytes left to read."""
        return self.tell() < len(self)


class Packet:
    """Builds and parses packets without their length, as `Transport` sends and receives them."""

    CMD_REQUEST: Final = _wire.CMD_REQUEST
    CMD_RESPONSE: Final = _wire.CMD_RESPONSE
    CMD_UNKNOWN: Final = _wire.CMD_UNKNOWN
    EVENT_REGISTER: Final = _wire.EVENT_REGISTER
    EVENT_UNREGISTER: Final = _wire.EVENT_UNREGISTER
    EVENT_CONFIRM: Final = _wire.EVENT_CONFIRM
    EVENT_UNKNOWN: Final = _wire.EVENT_UNKNOWN
    EVENT: Final = _wire.EVENT

    ParsedPacket = namedtuple("ParsedPacket", ["response_type", "payload"])
    ParsedEventPacket = namedtuple("ParsedEventPacket", ["response_type", "event_type", "payload"])

    @classmethod
    def request(cls, command: str, message: bytes | None = None) -> bytes:
        """Return the request for a command; `message` is from `Message.serialize`."""
        return _named(_wire.CMD_REQUEST, command) + (message or b"")

    @classmethod
    def register_event(cls, event_type: str) -> bytes:
        """Return the registration of an event."""
        return _named(_wire.EVENT_REGISTER, event_type)

    @classmethod
    def unregister_event(cls, event_type: str) -> bytes:
        """Return the packet that unregisters an event."""
        return _named(_wire.EVENT_UNREGISTER, event_type)

    @classmethod
    def parse(cls, packet: bytes) -> Packet.ParsedPacket | Packet.ParsedEventPacket:
        """Return the type, name (bytes, only of an event) and message (a `FiniteStream`) of a packet from charon.

        Raises `DeserializationException` for a packet without a type or with a truncated name.
        """
        stream = FiniteStream(packet)
        kind = stream.read(1)
        if kind != bytes([_wire.EVENT]):
            if kind:
                return cls.ParsedPacket(kind[0], stream)
            raise DeserializationException("the packet is empty")
        size = stream.read(1)
        name = stream.read(size[0]) if size else b""
        if not size or len(name) < size[0]:
            raise DeserializationException("the name of the event is truncated")
        return cls.ParsedEventPacket(kind[0], name, stream)


def _named(kind: int, name: str) -> bytes:
    return _wire.packet(kind, name)[Transport.HEADER_LENGTH :]


class Message:
    """Converts between messages and their bytes."""

    SECTION_START: Final = 1
    SECTION_END: Final = 2
    KEY_VALUE: Final = 3
    LIST_START: Final = 4
    LIST_ITEM: Final = 5
    LIST_END: Final = 6

    @classmethod
    def serialize(cls, message: Mapping[str, Any]) -> bytes:
        """Return the bytes of a message. Raises `vicifast.EncodeError`."""
        return _wire.encode(_section(message, 0))

    @classmethod
    def deserialize(cls, stream: io.BytesIO) -> Section:
        """Return the message in the rest of a stream. Raises `DeserializationException`."""
        with Translated():
            return cast(Section, _wire.Decoder(values=bytes, ordered=True).decode(stream.read()))


class Transport:
    """Sends and receives packets over a connected `socket`, or an object with the same methods.

    Reads exactly one packet at a time, so that the socket stays readable as long as there is another packet. The
    timeout of the socket may be changed at any time. Raises the OSError of the socket, and `ConnectionClosed`, also an
    OSError, at the end of the connection.
    """

    HEADER_LENGTH: Final = 4
    MAX_SEGMENT: Final = _wire.MAX_PACKET

    in_step = True
    """Whether the next byte from the socket begins a packet."""

    before_close: Callable[[], Callable[[], bool] | None] | None = None
    """A weak reference to a function of the session, called before closing; False if the session closes the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def send(self, packet: bytes) -> None:
        """Send a packet."""
        self.socket.sendall(len(packet).to_bytes(self.HEADER_LENGTH) + packet)

    def receive(self, timeout: float | None = RECV_TIMEOUT_DEFAULT) -> bytes:
        """Return the next packet.

        Raises TimeoutError if none begins within `timeout` seconds, by default the timeout of the socket. If the rest
        of a packet does not arrive within the socket's timeout, or reading is interrupted, the connection is shut down,
        as it is out of step. A packet longer than `MAX_SEGMENT` raises `SessionException` and shuts it down too.
        """
        usual = self.socket.gettimeout()
        rest = usual or None  # the rest of a packet is awaited even on a non-blocking socket
        data = self._receive(self.HEADER_LENGTH, usual if timeout is RECV_TIMEOUT_DEFAULT else timeout, usual)
        try:
            while len(data) < self.HEADER_LENGTH:
                data += self._receive(self.HEADER_LENGTH - len(data), rest, usual)
            length = int.from_bytes(data)
            if length > self.MAX_SEGMENT:
                raise SessionException(f"a packet of {length} bytes, but the length must be 1 to {self.MAX_SEGMENT}")
            data = self._receive(length, rest, usual) if length else b""
            while len(data) < length:
                data += self._receive(length - len(data), rest, usual)
        except BaseException:
            self.in_step = False
            self.shutdown()
            raise
        return data

    def close(self) -> None:
        """Unregister the events of the session, if any, and close the connection.

        A thread that is waiting on it gets an OSError.
        """
        session = self.before_close() if self.before_close is not None else None
        done = session is None or session()
        self.shutdown()
        if done:
            self.socket.close()

    def shutdown(self) -> None:
        """Shut down sending and receiving."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def _receive(self, count: int, timeout: float | None, usual: float | None) -> bytes:
        """Return 1 to `count` bytes; `usual` is the timeout of the socket."""
        if timeout == usual:
            data = self.socket.recv(count)
        else:
            self.socket.settimeout(timeout)
            try:
                data = self.socket.recv(count)
            finally:
                self.socket.settimeout(usual)
        if not data:
            raise ConnectionClosed("Connection closed")
        return data
