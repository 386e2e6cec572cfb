"""Envelopes: the format of events on the bus.

An envelope is the map `v, node, boot, seq, time, event, data`. A payload holds one or more envelopes in sequence:
msgpack maps, or JSON objects each on its own line. The codec `raw` is in `raw_envelopes`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from vicifast import _wire
from vicifast.commands import EVENTS
from vicifast.errors import DecodeError

from ..contract.codecs import CODECS
from ..contract.names import Codec, EventCodec
from .raw_envelopes import Intake, RawEnvelopes


def new_boot() -> str:
    """Return the identifier of one run of the bridge: unique, and sortable by start time."""
    return f"{time.time_ns() // 1_000_000:x}-{secrets.token_hex(3)}"


class Envelopes:
    """Builds the envelopes of one node and class, counting `seq` from 1.

    `wrap` converts VICI bytes in one pass, without Python objects for the message; `wrap_object` converts the data of
    the bridge's own events.
    """

    def __init__(self, codec: Codec, node: str, boot: str) -> None:
        self.codec = codec
        self._envelope = _wire.EnvelopeWriter(codec, node, boot)
        self._transcoders = {
            event.name: self._transcoder(event.name, event.binary) for event in EVENTS.values() if event.standalone
        }

    @property
    def seq(self) -> int:
        """The number of the last event."""
        return self._envelope.seq

    def wrap(self, time_ns: int, event: str, raw: bytes) -> bytes:
        """Return the envelope of `raw`, the message of `event`; raise DecodeError if it is not a VICI message."""
        self._envelope.time = time_ns
        return self._transcoders[event].transcode(raw)

    def wrap_object(self, time_ns: int, event: str, data: Mapping[str, object]) -> bytes:
        """Return the envelope of `data`, whose types both codecs must support."""
        self._envelope.time = time_ns
        empty = self._transcoder(event, ()).transcode(b"")
        return CODECS[self.codec].fill(empty, data)

    def intake(self, event: str, keys: Sequence[str], topic: Callable[[bytes, bytes], str | None]) -> Intake:
        """Return a batcher that puts the messages of `event` into envelopes of this node and class, and its feed."""
        batcher = _wire.Batcher(self._envelope, event, keys, topic)
        return Intake(batcher, batcher, _check_added)

    def skip(self, count: int) -> tuple[int, int]:
        """Assign the next `count` numbers to events without an envelope; return the first and the last."""
        first = self._envelope.seq + 1
        self._envelope.seq += count
        return first, self._envelope.seq

    def _transcoder(self, event: str, binary: Iterable[str]) -> _wire.Transcoder:
        return _wire.Transcoder(self.codec, binary=binary, envelope=self._envelope, event=event)


def _check_added(time_ns: int, message: object) -> None:
    """The batcher has added the messages while it read them; only errors remain."""
    if isinstance(message, DecodeError):
        raise message


def new_envelopes(codec: EventCodec, node: str, boot: str) -> Envelopes | RawEnvelopes:
    """Return the builder of envelopes for a codec, node and boot."""
    return RawEnvelopes(node, boot) if codec == "raw" else Envelopes(codec, node, boot)
