"""Every subject the bridge publishes or listens on; names are escaped so that no name leaves its token."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType

from vicifast import _wire

ALL_NODES = "all"  # the token that addresses every gateway; no node may be called so

_ODD = re.compile(rb"[^A-Za-z0-9_-]")
_TOKEN = re.compile(r"=|(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")
_ESCAPED = re.compile(rb"=([0-9A-F]{2})")
_UP = _wire.encode({"up": "yes"})


@lru_cache(maxsize=4096)
def escape(name: str) -> str:
    """Return `name` as one token of a subject or key: every byte outside A-Za-z0-9_- becomes `=XX`, "" is `=`."""
    raw = name.encode("utf-8", "surrogateescape")
    return _ODD.sub(lambda odd: b"=%02X" % odd[0][0], raw).decode("ascii") or "="


def unescape(token: str) -> str:
    """Return the name that `escape` made `token` from; ValueError when `escape` makes no such token."""
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{token!r} is no escaped name")
    raw = token.encode("ascii") if token != "=" else b""
    name = _ESCAPED.sub(lambda code: bytes([int(code[1], 16)]), raw).decode("utf-8", "surrogateescape")
    if escape(name) != token:
        raise ValueError(f"{token!r} escapes a byte that needs no escape")
    return name


class _Facts:
    """What of one event's message appears in its subject."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.message: Mapping[str, object] = _wire.decode(raw)

    def text(self, key: str) -> str:
        value = self.message.get(key, "")
        return value if isinstance(value, str) else ""

    def direction(self) -> str:
        # An IKE_SA may be named "up": its section then hides the key of that name, which charon sends first.
        return "up" if self.text("up") == "yes" or self.raw.startswith(_UP) else "down"

    def ike(self) -> str:
        return _section(self.message)[0]

    def child(self) -> str:
        children = _section(self.message)[1].get("child-sas")
        name, child = _section(children if isinstance(children, dict) else {})
        own = child.get("name")  # the section's name carries a unique id in child-updown, none in child-rekey
        return own if isinstance(own, str) else name


def _section(message: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
    """Return the one section in `message`: found by type, because its name is data and may be anything."""
    for name, value in message.items():
        if isinstance(value, dict):
            return name, value
    return "", {}


_Token = Callable[[_Facts], str]

# What follows <prefix>.<node>. for each event: the fixed tokens, then those taken from the message.
_EVENTS: Mapping[str, tuple[str, tuple[_Token, ...]]] = MappingProxyType(
    {
        "ike-updown": ("event.ike-updown", (_Facts.ike, _Facts.direction)),
        "ike-rekey": ("event.ike-rekey", (_Facts.ike,)),
        "ike-update": ("event.ike-update", (_Facts.ike,)),
        "child-updown": ("event.child-updown", (_Facts.ike, _Facts.child, _Facts.direction)),
        "child-rekey": ("event.child-rekey", (_Facts.ike, _Facts.child)),
        "alert": ("event.alert", (lambda facts: facts.text("type"),)),
        "log": ("log", (lambda facts: facts.text("group"), lambda facts: facts.text("level"))),
    }
)


class Subjects:
    """The subjects of one node."""

    def __init__(self, prefix: str, node: str) -> None:
        self.prefix = prefix
        self.node = escape(node)
        self._base = f"{prefix}.{self.node}."

    def event(self, name: str, raw: bytes) -> str:
        """Return the subject of event `name` with message `raw`; DecodeError when that is no VICI message."""
        fixed, tokens = _EVENTS[name]
        facts = _Facts(raw)
        return ".".join([self._base + fixed, *(escape(token(facts)) for token in tokens)])

    def bridge(self, kind: str) -> str:
        """Return the subject of the bridge's own envelopes: status, gap."""
        return f"{self._base}bridge.{kind}"

    def commands(self) -> tuple[str, str]:
        """Return what to subscribe to: this node's commands, and those for every node."""
        return f"{self._base}cmd.*", f"{self.prefix}.{ALL_NODES}.cmd.*"


def stream_subjects(prefix: str) -> list[str]:
    """Return the subjects of the state class of every node: the ones JetStream has to acknowledge."""
    return [f"{prefix}.*.event.>", f"{prefix}.*.bridge.>"]
