"""VICI, the protocol by which programs talk to strongSwan's IKE daemon charon: a fast, strict codec and its clients.

`decode`, `encode` and their kin work on single messages. `AsyncSession`, loaded when first asked for because asyncio is
slow to import, talks to a daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._wire import (
    Decoder,
    Envelope,
    Framer,
    Message,
    MessageReader,
    Raw,
    Reader,
    Transcoder,
    decode,
    encode,
    from_json,
    from_msgpack,
    packet,
    to_json,
    to_msgpack,
)
from .errors import (
    CommandError,
    ConnectionClosed,
    DecodeError,
    EncodeError,
    ProtocolError,
    RequestTimeout,
    UnknownCommand,
    UnknownEvent,
    ViciError,
)

if TYPE_CHECKING:
    from .aio import AsyncSession

__all__ = [
    "AsyncSession",
    "CommandError",
    "ConnectionClosed",
    "DecodeError",
    "Decoder",
    "EncodeError",
    "Envelope",
    "Framer",
    "Message",
    "MessageReader",
    "ProtocolError",
    "Raw",
    "Reader",
    "RequestTimeout",
    "Transcoder",
    "UnknownCommand",
    "UnknownEvent",
    "ViciError",
    "decode",
    "encode",
    "from_json",
    "from_msgpack",
    "packet",
    "to_json",
    "to_msgpack",
]


def __getattr__(name: str) -> object:
    if name == "AsyncSession":
        from .aio import AsyncSession

        return AsyncSession
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
