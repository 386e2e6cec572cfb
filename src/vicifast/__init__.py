"""A fast, strict codec and clients for VICI, the protocol for controlling strongSwan's IKE daemon charon.

`decode`, `encode` and related functions work on single messages. `Session` and `AsyncSession` talk to a daemon,
`Follower` and `AsyncFollower` follow its events across restarts; these four are loaded on first access, because sockets
and asyncio are slow to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ._wire import (
    Batcher,
    Decoder,
    EnvelopeWriter,
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
    from .blocking import Session
    from .follow import AsyncFollower, Follower

__all__ = [
    "AsyncFollower",
    "AsyncSession",
    "CommandError",
    "ConnectionClosed",
    "DecodeError",
    "Decoder",
    "EncodeError",
    "EnvelopeWriter",
    "Follower",
    "Framer",
    "Batcher",
    "Message",
    "MessageReader",
    "ProtocolError",
    "Raw",
    "Reader",
    "RequestTimeout",
    "Session",
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


_LATER = {"AsyncFollower": "follow", "AsyncSession": "aio", "Follower": "follow", "Session": "blocking"}


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
