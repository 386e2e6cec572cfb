"""Messages as strongSwan's module takes and gives them, and what closes a session there."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator, Mapping, MappingView, Set
from types import NoneType
from typing import Any, Final, TypeAlias

from .. import _wire
from ..client import Session
from .exception import Translated

Section: TypeAlias = dict[str, Any]

RECV_TIMEOUT_DEFAULT: Final[Any] = object()
"""As the timeout of `listen`: the socket's."""

# Left to the encoder, which takes them or says why not; everything else is sent as its str(), as an IPv4Address.
_NO_TEXT = (str, bytes, bytearray, memoryview, int, NoneType, Mapping, list, tuple, Set, Iterator, MappingView)


def sendable(message: Mapping[str, Any] | None) -> Section | None:
    """Return a message with the values that only strongSwan's module takes made text."""
    return None if message is None else _section(message, 0)


def _section(section: Mapping[str, Any], depth: int) -> Section:
    return {key: _value(value, depth) for key, value in section.items()}


def _value(value: Any, depth: int) -> Any:
    if isinstance(value, Mapping):
        return _section(value, depth + 1) if depth < _wire.MAX_DEPTH else value
    if isinstance(value, (list, tuple)):
        return [item if isinstance(item, _NO_TEXT) else str(item) for item in value]
    return value if isinstance(value, _NO_TEXT) else str(value)


class FiniteStream(io.BytesIO):
    """The bytes of a message."""


class Message:
    """Messages and their bytes."""

    @staticmethod
    def serialize(message: Mapping[str, Any]) -> bytes:
        """Return the bytes of a message. Raises `vicifast.EncodeError`."""
        return _wire.encode(_section(message, 0))

    @staticmethod
    def deserialize(stream: io.BytesIO) -> Section:
        """Return the message that a stream has from where it is to its end. Raises `DeserializationException`."""
        with Translated():
            return _wire.decode(stream.read(), values=bytes)


class Transport:
    """The connection of a session: its `socket`, on which a timeout may be set at any time."""

    def __init__(self, session: Session[Any], sock: socket.socket, timeout: float | None) -> None:
        self.socket = sock
        self._session = session
        self._timeout = timeout

    def close(self) -> None:
        """Close the session; in another thread, what waits for it then gets `ConnectionClosed`, an OSError."""
        try:
            self._session.close()
        except RuntimeError:  # the other thread is in the middle of reading, and will close
            self.socket.shutdown(socket.SHUT_RDWR)

    def timeout(self) -> float | None:
        """Return the timeout that was last set on the socket, in seconds."""
        timeout = self.socket.gettimeout()
        if timeout != 0:  # which is what the session has set
            self._timeout = timeout
            self.socket.setblocking(False)
        return self._timeout
