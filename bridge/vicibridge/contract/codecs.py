"""The codecs of payloads, by name: everything about one that is not in the extension module `vicifast._wire`.

The codec `raw` has no encoding, so it is not here: its payloads are VICI messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgpack

from vicifast import _wire

from . import bucket_values
from .names import Codec


class CodecSpec(NamedTuple):
    """One codec; `starts` are the first bytes by which a payload is recognized."""

    media_type: str
    starts: bytes
    to_vici: Callable[[bytes], bytes]
    """Return a request as a VICI message; raise EncodeError or DecodeError if it is invalid."""
    from_vici: Callable[[bytes], bytes]
    """Return a VICI message in this codec."""
    join: Callable[[Sequence[bytes]], bytes]
    """Return a list of encoded messages."""
    fill: Callable[[bytes, Mapping[str, object]], bytes]
    """Return an envelope without data with this data, whose types the codec must support."""
    envelopes: Callable[[bytes], Iterator[Mapping[str, Any]]]
    """Yield the envelopes in a payload, with texts as a session returns them; raise ValueError for another payload."""


def _join_json(parts: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(parts) + b"]"


def _join_msgpack(parts: Sequence[bytes]) -> bytes:
    head: bytes = msgpack.Packer().pack_array_header(len(parts))
    return head + b"".join(parts)


def _fill_json(envelope: bytes, data: Mapping[str, object]) -> bytes:
    return envelope.removesuffix(b"{}}\n") + json.dumps(data, separators=(",", ":")).encode() + b"}\n"


def _fill_msgpack(envelope: bytes, data: Mapping[str, object]) -> bytes:
    packed: bytes = msgpack.packb(data)
    return envelope.removesuffix(b"\x80") + packed


def _json_envelopes(payload: bytes) -> Iterator[Mapping[str, Any]]:
    return map(bucket_values.load, payload.splitlines())


def _msgpack_envelopes(payload: bytes) -> Iterator[Mapping[str, Any]]:
    unpacker = msgpack.Unpacker(unicode_errors="surrogateescape", strict_map_key=True, max_buffer_size=len(payload))
    unpacker.feed(payload)
    binary = any(mark in payload for mark in _BINARY)
    count = 0
    try:
        for envelope in unpacker:
            count = unpacker.tell()
            yield _with_texts(envelope) if binary else envelope
    except msgpack.StackError:
        raise ValueError("the msgpack is nested too deeply") from None
    except msgpack.UnpackException as error:
        raise ValueError(f"not msgpack: {error or type(error).__name__}") from None
    if count != len(payload):
        raise ValueError(f"the last envelope is cut short at {count} of {len(payload)} bytes")


_BINARY = (b"\xc4", b"\xc5", b"\xc6")  # first byte of a msgpack bin value, used for bytes that are not UTF-8


def _with_texts(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, dict):
        return {key: _with_texts(item) for key, item in value.items()}
    return [_with_texts(item) for item in value] if isinstance(value, list) else value


CODECS: Mapping[Codec, CodecSpec] = MappingProxyType(
    {
        "msgpack": CodecSpec(
            "application/msgpack",
            bytes([*range(0x80, 0x90), 0xDE, 0xDF]),  # maps
            _wire.from_msgpack,
            _wire.to_msgpack,
            _join_msgpack,
            _fill_msgpack,
            _msgpack_envelopes,
        ),
        "json": CodecSpec(
            "application/json",
            b"{ \t\r\n",
            _wire.from_json,
            _wire.to_json,
            _join_json,
            _fill_json,
            _json_envelopes,
        ),
    }
)
"""Every codec, by name."""
_BY_START = {start: codec for codec, known in CODECS.items() for start in known.starts}


def codec_of(payload: bytes) -> Codec:
    """Return the codec of a payload by its first byte: JSON if it is empty, as sent by hand; msgpack if unknown."""
    return _BY_START.get(payload[0], "msgpack") if payload else "json"
