"""Decodes requests from the bus and encodes their replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vicifast import _wire
from vicifast.errors import ViciError

from ..contract.codecs import CODECS, codec_of
from ..contract.names import (
    BAD_REQUEST,
    CODEC_HEADER,
    COLLECT_HEADER,
    DESCRIPTION_HEADER,
    ERROR_CODE_HEADER,
    ERROR_HEADER,
    STATUS_HEADER,
    TIMEOUT_HEADER,
    Codec,
)

MAX_REQUEST = _wire.MAX_PACKET


class RequestError(Exception):
    """The error reply to a request: `code` as in HTTP, and a text without secrets or internals."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    def headers(self) -> dict[str, str]:
        """Return the headers of the error reply (ADR-32 for services, ADR-47 for streams)."""
        text = " ".join(self.text.split()).encode("ascii", "backslashreplace").decode("ascii")[:500]
        code = str(self.code)
        return {
            ERROR_CODE_HEADER: code,
            ERROR_HEADER: text,
            STATUS_HEADER: code,
            DESCRIPTION_HEADER: text,
        }


class Options(NamedTuple):
    """The reply format and the timeout of a request."""

    codec: Codec
    collect: bool
    seconds: float


def read_options(payload: bytes, headers: Mapping[str, str], longest: float) -> Options:
    """Return the options of a request, its timeout at most `longest` seconds; raises RequestError 400."""
    asked = headers.get(CODEC_HEADER)
    codec = codec_of(payload) if asked is None else next((codec for codec in CODECS if codec == asked), None)
    if codec is None:
        raise RequestError(BAD_REQUEST, f"{CODEC_HEADER} must be {' or '.join(sorted(CODECS))}")
    collect = headers.get(COLLECT_HEADER, "false").lower()
    if collect not in ("true", "false"):
        raise RequestError(BAD_REQUEST, f"{COLLECT_HEADER} must be true or false")
    return Options(codec, collect == "true", min(_seconds(headers.get(TIMEOUT_HEADER), longest), longest))


def _seconds(text: str | None, default: float) -> float:
    try:
        seconds = default if text is None else float(text)
    except ValueError:
        seconds = 0
    if not seconds > 0:  # false for NaN as well
        raise RequestError(BAD_REQUEST, f"{TIMEOUT_HEADER} must be a number of seconds above 0")
    return seconds


def decode_request(payload: bytes) -> dict[str, object]:
    """Return the arguments of a request, scalars as text; raises RequestError 400 if it is malformed."""
    if not payload:
        return {}
    if len(payload) > MAX_REQUEST:
        raise RequestError(BAD_REQUEST, f"the request has {len(payload)} bytes; charon accepts at most {MAX_REQUEST}")
    try:
        return dict(_wire.decode(CODECS[codec_of(payload)].to_vici(payload)))
    except ViciError as error:
        # The text has names, types and offsets, but no values, which may be secret.
        raise RequestError(BAD_REQUEST, f"the request: {error}") from None


def encode_section(codec: Codec, section: Mapping[str, object]) -> bytes:
    """Return a reply as JSON or msgpack, by the same rules as events."""
    return CODECS[codec].from_vici(_wire.encode(section))
