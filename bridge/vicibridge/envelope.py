"""Envelopes: what the bridge puts around a VICI message on the bus.

An envelope is the map `v, node, boot, seq, time, event, data`. A payload holds one or more of them, one after the
other: msgpack maps, or JSON objects each on a line of its own.
"""

from __future__ import annotations

import json
import secrets
import struct
import time
from collections.abc import Mapping
from typing import Literal

import msgpack

from vicifast import _wire
from vicifast.commands import EVENTS

Codec = Literal["msgpack", "json"]
VERSION = 1


def new_boot() -> str:
    """Return the name of one start of the bridge: unique, and sorted by the time of the start."""
    return f"{time.time_ns() // 1_000_000:x}-{secrets.token_hex(3)}"


class Envelopes:
    """Builds the envelopes of one node and class, counting `seq` from 1.

    `wrap` takes VICI bytes and splices their transcoded form in, so no Python object of the message exists;
    `wrap_object` takes the data of the bridge's own events.
    """

    def __init__(self, codec: Codec, node: str, boot: str) -> None:
        self.codec = codec
        self.node = node
        self.boot = boot
        self.seq = 0
        self._build = _Msgpack(node, boot) if codec == "msgpack" else _Json(node, boot)
        self._readers = {
            event.name: _wire.Transcoder(codec, binary=event.binary) for event in EVENTS.values() if event.standalone
        }

    def wrap(self, time_ns: int, event: str, raw: bytes) -> bytes:
        """Return the envelope of `raw`, the message of `event`; DecodeError when it is no VICI message."""
        data = self._readers[event].transcode(raw)
        self.seq += 1
        return self._build.envelope(self.seq, time_ns, event, data)

    def wrap_object(self, time_ns: int, event: str, data: Mapping[str, object]) -> bytes:
        """Return the envelope of `data`, which must be of types that both codecs know."""
        self.seq += 1
        return self._build.envelope(self.seq, time_ns, event, self._build.data(data))

    def skip(self, count: int) -> tuple[int, int]:
        """Give the next `count` numbers to events that will have no envelope; return the first and the last."""
        first = self.seq + 1
        self.seq += count
        return first, self.seq


class _Msgpack:
    """The head is packed once; `seq` and `time` always as 64-bit integers, so that their places are fixed."""

    _NUMBERS = struct.Struct(">BQ6sQ")

    def __init__(self, node: str, boot: str) -> None:
        fixed = msgpack.packb({"v": VERSION, "node": node, "boot": boot})
        self._head: bytes = b"\x87" + fixed[1:] + msgpack.packb("seq")
        self._tails: dict[str, bytes] = {}

    def envelope(self, seq: int, time_ns: int, event: str, data: bytes) -> bytes:
        tail = self._tails.get(event)
        if tail is None:
            tail = b"".join(map(msgpack.packb, ("event", event, "data")))
            self._tails[event] = tail
        return self._head + self._NUMBERS.pack(0xCF, seq, b"\xa4time\xcf", time_ns) + tail + data

    def data(self, data: Mapping[str, object]) -> bytes:
        packed: bytes = msgpack.packb(data)
        return packed


class _Json:
    def __init__(self, node: str, boot: str) -> None:
        self._head = f'{{"v":{VERSION},"node":{json.dumps(node)},"boot":{json.dumps(boot)},"seq":'

    def envelope(self, seq: int, time_ns: int, event: str, data: bytes) -> bytes:
        head = f'{self._head}{seq},"time":{time_ns},"event":"{event}","data":'
        return head.encode() + data + b"}\n"

    def data(self, data: Mapping[str, object]) -> bytes:
        return json.dumps(data, separators=(",", ":")).encode()
