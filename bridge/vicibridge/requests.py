"""Requests from the bus: what they say, whether they are allowed, and how their answers look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgpack

from vicifast import _wire
from vicifast.commands import COMMANDS, Danger
from vicifast.errors import ViciError

from .envelope import Codec

MAX_REQUEST = _wire.MAX_PACKET
FORWARDED = (Danger.READ, Danger.OPERATE)  # the classes of commands whose arguments the bridge can judge
MAX_LOGLEVEL = 2  # charon's levels 3 and 4 may show key material
_JSON_STARTS = b"{ \t\r\n"


class Refusal(Exception):
    """A request that gets an error for an answer: `code` as in HTTP, and a text that may be shown to anybody."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    def headers(self) -> dict[str, str]:
        """Return the headers of the empty message that says so (ADR-32 for services, ADR-47 for streams)."""
        text = " ".join(self.text.split()).encode("ascii", "backslashreplace").decode("ascii")[:500]
        code = str(self.code)
        return {
            "Nats-Service-Error-Code": code,
            "Nats-Service-Error": text,
            "Status": code,
            "Description": text,
        }


# Every code that a caller can get.
BAD_REQUEST, DENIED, UNKNOWN, FAILED, TOO_LARGE, BUSY = 400, 403, 404, 409, 413, 429
INTERNAL, BAD_ANSWER, UNAVAILABLE, TIMEOUT = 500, 502, 503, 504


def codec_of(payload: bytes) -> Codec:
    """Return the codec of a request by its first byte; an empty one is answered in JSON, for people at a prompt."""
    return "json" if not payload or payload[0] in _JSON_STARTS else "msgpack"


def decode_request(payload: bytes) -> dict[str, object]:
    """Return the arguments in a request, scalars as text; Refusal 400 says what is wrong with it."""
    if not payload:
        return {}
    if len(payload) > MAX_REQUEST:
        raise Refusal(BAD_REQUEST, f"the request has {len(payload)} bytes, and charon takes {MAX_REQUEST}")
    try:
        encoded = _wire.from_json(payload) if codec_of(payload) == "json" else _wire.from_msgpack(payload)
        return dict(_wire.decode(encoded))
    except ViciError as error:
        # The text has names, types and offsets, and no value, which may be a secret.
        raise Refusal(BAD_REQUEST, f"the request: {error}") from None


def check(command: str, arguments: dict[str, object], allow: Sequence[str], timeout: float) -> dict[str, object]:
    """Return what may be sent to charon for this request, or raise the Refusal that says why nothing may.

    A command that occupies a thread of charon gets a finite timeout below `timeout` seconds.
    """
    known = COMMANDS.get(command)
    if command not in allow and known is None:
        raise Refusal(UNKNOWN, f"there is no command {command[:64]!r}")
    if known is None:
        return arguments
    if known.danger not in FORWARDED:
        raise Refusal(DENIED, f"{command} is not allowed: no bridge forwards commands of @{known.danger}")
    if command not in allow and f"@{known.danger}" not in allow:
        opens = f'add "{command}" or "@{known.danger}" to allow in [commands] of its configuration'
        raise Refusal(DENIED, f"{command} is not allowed on this bridge; to allow it, {opens}")
    if known.blocks:
        return {**arguments, "timeout": _finite(arguments, timeout), "loglevel": _loglevel(arguments)}
    return arguments


def _finite(arguments: Mapping[str, object], timeout: float) -> int:
    """Return charon's own timeout in milliseconds, short enough that its answer comes before we stop waiting."""
    longest = int(timeout * 900)
    given = _integer(arguments, "timeout", longest)
    if given != -1 and not 1 <= given <= longest:
        raise Refusal(BAD_REQUEST, f"timeout must be -1 or 1 to {longest} (milliseconds), not {given}")
    return given


def _loglevel(arguments: Mapping[str, object]) -> int:
    given = _integer(arguments, "loglevel", 1)
    if not -1 <= given <= MAX_LOGLEVEL:
        raise Refusal(BAD_REQUEST, f"loglevel must be -1 to {MAX_LOGLEVEL}, not {given}")
    return given


def _integer(arguments: Mapping[str, object], key: str, default: int) -> int:
    value = arguments.get(key, str(default))
    if not isinstance(value, str) or not value.removeprefix("-").isdecimal() or len(value) >= 16:
        raise Refusal(BAD_REQUEST, f"{key} must be a whole number")
    return int(value)


def encode_section(codec: Codec, section: Mapping[str, object]) -> bytes:
    """Return a reply as JSON or msgpack, by the same rules as events."""
    data = _wire.encode(section)
    return _wire.to_json(data) if codec == "json" else _wire.to_msgpack(data)


def encode_list(codec: Codec, parts: Sequence[bytes]) -> bytes:
    """Return one list of `parts` that are encoded already."""
    if codec == "json":
        return b"[" + b",".join(parts) + b"]"
    head: bytes = msgpack.Packer().pack_array_header(len(parts))
    return head + b"".join(parts)
