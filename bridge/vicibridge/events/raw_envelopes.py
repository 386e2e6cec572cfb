"""The codec `raw`: the payload is the unchanged VICI message, and the rest of the envelope is in headers.

Inside the bridge an envelope is one `bytes` object in NATS's format, the header block followed by the VICI message, so
that backlog, spool and counters need not handle headers; `split_headers` separates them for publishing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from vicifast import _wire
from vicifast.errors import DecodeError

from ..contract.bridge_events import to_vici
from ..contract.names import BOOT_HEADER, EVENT_HEADER, NODE_HEADER, SEQ_HEADER, TIME_HEADER
from .losses import OVER_RATE, SAMPLED, Loss
from .ratelimit import TokenBucket

_BEGIN = b"NATS/1.0\r\n"  # no envelope of another codec begins with this
_END = b"\r\n\r\n"


def split_headers(payload: bytes) -> tuple[bytes, bytes]:
    """Return the lines of the headers and the payload of an envelope; one of another codec has no headers."""
    if not payload.startswith(_BEGIN):
        return b"", payload
    lines, _, message = payload.removeprefix(_BEGIN).partition(_END)
    return lines + b"\r\n", message


def read_headers(lines: bytes) -> dict[str, str]:
    """Return the headers in lines of `split_headers`."""
    pairs = (line.partition(": ") for line in lines.decode().splitlines())
    return {name: value for name, _, value in pairs}


class RawEnvelopes:
    """The counterpart of `Envelopes` for codec `raw`."""

    def __init__(self, node: str, boot: str) -> None:
        self.seq = 0
        self._begin = f"{_BEGIN.decode()}{NODE_HEADER}: {node}\r\n{BOOT_HEADER}: {boot}\r\n"

    def wrap(self, time_ns: int, event: str, raw: bytes) -> bytes:
        """Return the envelope of `raw`, the message of `event`; raise DecodeError if it is not a VICI message."""
        _wire.Message(raw)
        return self._envelope(time_ns, event, raw)

    def wrap_object(self, time_ns: int, event: str, data: Mapping[str, object]) -> bytes:
        """Return the envelope of `data` as a VICI message; raise EncodeError if that exceeds VICI's limits."""
        return self._envelope(time_ns, event, _wire.encode(to_vici(data)))

    def intake(self, event: str, keys: Sequence[str], topic: Callable[[bytes, bytes], str | None]) -> Intake:
        """Return a batcher that puts the messages of `event` into envelopes of this node and class, and its feed."""
        batcher = RawBatcher(self, event, keys, topic)
        return Intake(batcher, _wire.Raw(), batcher.add)

    def skip(self, count: int) -> tuple[int, int]:
        """Assign the next `count` numbers to events without an envelope; return the first and the last."""
        first = self.seq + 1
        self.seq += count
        return first, self.seq

    def _envelope(self, time_ns: int, event: str, message: bytes) -> bytes:
        self.seq += 1
        return (
            f"{self._begin}{SEQ_HEADER}: {self.seq}\r\n{TIME_HEADER}: {time_ns}\r\n{EVENT_HEADER}: {event}".encode()
            + _END
            + message
        )


class RawBatcher:
    """The counterpart of `_wire.Batcher` for codec `raw`: selects and drops in the same way, without batches."""

    def __init__(
        self, envelopes: RawEnvelopes, event: str, keys: Sequence[str], topic: Callable[[bytes, bytes], str | None]
    ) -> None:
        self.left_out = 0
        self.every = 1
        self.rate = 0.0
        self.wanted: Callable[[bytes], object] | None = None
        self.silent = False  # no effect here: every message goes to the session
        self._envelopes = envelopes
        self._event = event
        self._keys = keys
        self._topic = lru_cache(256)(topic)
        self._taken: list[tuple[str, bytes, int, int, int]] = []
        self._dropped: dict[str, Loss] = {}
        self._passed = 0
        self._bucket = TokenBucket()

    def add(self, time_ns: int, raw: object) -> None:
        """Add one VICI message as bytes; raise DecodeError if it is malformed."""
        if not isinstance(raw, bytes):
            raise DecodeError("no message", 0)
        message = _wire.Message(raw, values=bytes)
        topic = self._topic(*(_bytes(message, key) for key in self._keys))
        if topic is None or (self.wanted is not None and not self.wanted(_bytes(message, "msg"))):
            self.left_out += 1
        elif cause := self._reason_to_drop(time_ns):
            number, _ = self._envelopes.skip(1)
            loss = Loss(cause, 1, number, number)
            if (known := self._dropped.setdefault(cause, loss)) is not loss:
                known.merge(loss)
        else:
            payload = self._envelopes.wrap(time_ns, self._event, raw)
            self._taken.append((topic, payload, 1, self._envelopes.seq, self._envelopes.seq))

    def _reason_to_drop(self, time_ns: int) -> str:
        self._passed += 1
        if self.every > 1 and self._passed % self.every:
            return SAMPLED
        if self.rate and not self._bucket.allows(time_ns, self.rate, max(self.rate, 1.0)):
            return OVER_RATE
        return ""

    def take(self) -> list[tuple[str, bytes, int, int, int]]:
        """Return the envelopes added since the last call as (topic, envelope, 1, number, number), in order."""
        taken, self._taken = self._taken, []
        return taken

    def dropped(self) -> list[tuple[str, int, int, int]]:
        """Return (cause, count, first and last number) of events dropped by `every` and `rate` since the last call."""
        dropped, self._dropped = self._dropped, {}
        return [(x.cause, x.count or 0, x.first_seq or 0, x.last_seq or 0) for x in dropped.values()]

    def forget(self) -> None:
        """Clear the cached results of `topic`, which have changed."""
        self._topic.cache_clear()


class Intake(NamedTuple):
    """A batcher and how it is fed: the session reads with `reader`, and `add` takes each message that this yields.

    `add` gets the time in nanoseconds and the message; it raises DecodeError if that is malformed.
    """

    batcher: RawBatcher | _wire.Batcher
    reader: _wire.Reader
    add: Callable[[int, object], None]


def _bytes(message: _wire.Message, key: str) -> bytes:
    value = message.get(key)
    return value if isinstance(value, bytes) else b""
