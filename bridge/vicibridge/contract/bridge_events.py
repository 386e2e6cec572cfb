"""The bridge's own events: the data of `status`, `gap`, `resync` and `audit`, and how it is written in VICI.

VICI has only strings, lists of strings and sections. Numbers become strings, true and false become `yes` and `no`, null
(unknown) is omitted, and a list of sections becomes a section of numbered sections. Names that VICI does not allow are
escaped as in subjects.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, Union, get_args, get_origin

from typing_extensions import TypedDict, is_typeddict

from vicifast import _wire

from .bucket_values import ConnValue, SaValue, Section
from .forms import hints, required
from .subjects import escape


class Previous(TypedDict):
    """The previous run of the bridge."""

    boot: str
    last_seq: int
    """The last known sequence number of class state."""
    clean: bool
    """Whether it shut down cleanly."""


class StatusData(TypedDict):
    """The bridge started or is stopping, or charon came up or went down."""

    bridge: Literal["starting", "running", "stopping"]
    charon: Literal["up", "down"]
    previous: NotRequired[Previous]
    """Only in `starting`, if a previous run is known."""


# A class statement cannot have a key `class`.
_Gap = TypedDict(
    "_Gap",
    {
        "class": Literal["state", "log", "all"],
        "cause": str,
        "count": int | None,
        "first_seq": int | None,
        "last_seq": int | None,
    },
)


class GapData(_Gap, total=False):
    """Events of a class are missing; a value that cannot be known is null."""

    boot: str
    """The run of the bridge that the sequence numbers belong to."""
    since: int
    """The start of the gap, in nanoseconds since the epoch."""
    until: int


class ResyncData(TypedDict):
    """A key of the mirror differed from charon's list, and was repaired."""

    kind: Literal["appeared", "vanished", "changed"]
    bucket: Literal["VICI_SA", "VICI_CONN"]
    key: str
    before: SaValue | ConnValue | None
    after: SaValue | ConnValue | None


class AuditData(TypedDict):
    """A request and its result."""

    subject: str
    reply: str
    command: str
    """Empty for an unknown command."""
    arguments: Section | None
    """Secrets are hidden and long strings are cut; null if the arguments were not read."""
    code: int
    """200, or an error code as in HTTP."""
    text: str
    parts: int
    bytes: int
    began: int
    nanoseconds: int
    user: NotRequired[str]
    """Header Vici-User: the requester, as named by the request itself."""
    id: NotRequired[str]
    """Header Vici-Request-Id."""
    info: NotRequired[str]
    """Header Nats-Request-Info."""


class Sum(TypedDict):
    """The number of requests for one command with the same result."""

    command: str
    code: int
    count: int


class AuditSums(TypedDict):
    """Requests that came too fast to be recorded individually."""

    sums: list[Sum]
    since: int
    until: int


BRIDGE_EVENTS: Mapping[str, Any] = types.MappingProxyType(
    {"status": StatusData, "gap": GapData, "resync": ResyncData, "audit": AuditData | AuditSums}
)


def to_vici(data: Mapping[str, object]) -> dict[str, object]:
    """Return the data of a bridge event as a VICI section."""
    return {_name(key): _value(value) for key, value in data.items() if value is not None}


def _value(value: object) -> object:
    if isinstance(value, Mapping):
        return to_vici(value)
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return to_vici({str(number): item for number, item in enumerate(value)})
    return value


def _name(name: str) -> str:
    if len(name) <= _wire.MAX_NAME and name.isascii() and name.isprintable():
        return name
    return escape(name)[: _wire.MAX_NAME]


def from_vici(kind: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data that was passed to `to_vici`; raise ValueError if the section is not of that kind."""
    try:
        data: dict[str, Any] = _typed(BRIDGE_EVENTS[kind], section)
    except (AttributeError, TypeError):  # a text in place of a section, or the reverse
        raise ValueError(f"the data is not that of {kind}") from None
    return data


def _typed(form: Any, value: Any) -> Any:
    if get_origin(form) in (Union, types.UnionType):
        form = None if value is None else _fitting(get_args(form), value)
    if is_typeddict(form):
        keys = hints(form)
        missing = {key: None for key in required(form) if key not in value}
        known = {key: _typed(keys.get(key), item) for key, item in value.items()}
        return known | {key: _typed(keys[key], None) for key in missing}
    if get_origin(form) is list:
        (inner,) = get_args(form)
        return [_typed(inner, item) for item in value.values()] if is_typeddict(inner) else value
    if get_origin(form) is dict:
        return {key: _typed(get_args(form)[1], item) for key, item in value.items()}
    if form is bool:
        return value == "yes"
    return int(value) if form is int or get_args(form) == (1,) else value


def _fitting(forms: tuple[Any, ...], value: Any) -> Any:
    """Return the alternative that fits: the first section type whose required keys the value has, or the only one."""
    sections = [form for form in forms if is_typeddict(form)]
    for form in sections:
        optional = {key for key, hint in hints(form).items() if type(None) in get_args(hint)}
        if required(form) - optional <= value.keys():
            return form
    return next(form for form in forms if form is not type(None)) if not sections else None
