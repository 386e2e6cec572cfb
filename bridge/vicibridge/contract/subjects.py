"""Every subject that the bridge publishes or subscribes to; names are escaped so that each stays one token."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from vicifast import _wire
from vicifast.commands import ALERTS, UNESTABLISHED

ALL_NODES = "all"  # the token that addresses every gateway; not allowed as the name of a node

WORDS: Mapping[str, str] = MappingProxyType(
    {
        "node": "The gateway.",
        "ike": "The connection, which is also the name of the IKE_SA.",
        "child": "The name of a CHILD_SA.",
        "uniqueid": "charon's unique number for an IKE_SA.",
        "conn": "A connection.",
        "group": "The log group of charon, such as IKE.",
        "level": "The log level, 0 or 1.",
        "type": "The alert type; newer versions of charon may add types.",
        "direction": "Whether the SA came up, went down, or failed to establish.",
    }
)
"""What each variable token of a subject, or of a key in a bucket, means."""

_ODD = re.compile(rb"[^A-Za-z0-9_-]")
_TOKEN = re.compile(r"=|(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")
_ESCAPED = re.compile(rb"=([0-9A-F]{2})")
# _INBOX, its replacements by NATS between accounts and clusters (_R_, _GR_), and inboxes of users such as _INBOX_ann
_INBOX = re.compile(r"_[!-~]*\.[!-~]+")
_NO_TOKEN = re.compile(r"[*>]|\.\.|\.$")


@lru_cache(maxsize=4096)
def escape(name: str) -> str:
    """Return `name` as one token of a subject or key: each byte outside A-Za-z0-9_- becomes `=XX`, "" becomes `=`."""
    raw = name.encode("utf-8", "surrogateescape")
    return _ODD.sub(lambda odd: b"=%02X" % odd[0][0], raw).decode("ascii") or "="


def unescape(token: str) -> str:
    """Return the name that `escape` turned into `token`; raise ValueError if no name gives that token."""
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"{token!r} is not an escaped name: use A-Za-z0-9_- and =XX")
    raw = token.encode("ascii") if token != "=" else b""
    name = _ESCAPED.sub(lambda code: bytes([int(code[1], 16)]), raw).decode("utf-8", "surrogateescape")
    if escape(name) != token:
        raise ValueError(f"{token!r} escapes a byte that must not be escaped; expected {escape(name)!r}")
    return name


def name_of(token: str) -> str | None:
    """Return the name that `escape` turned into `token`, None if no name gives it, as in messages of other programs."""
    try:
        return unescape(token)
    except ValueError:
        return None


class _Token(NamedTuple):
    """A token of a subject whose value comes from the message: its name, and the function that reads it.

    `kinds` are the known values of a token that distinguishes kinds of one event; it is the last token of its subject.
    """

    word: str
    read: Callable[[_wire.Message], str]
    kinds: tuple[str, ...] = ()


def _text(key: str, kinds: tuple[str, ...] = ()) -> _Token:
    def read(message: _wire.Message) -> str:
        value = message.get(key)
        return value if isinstance(value, str) else ""

    return _Token(key, read, kinds)


def _ike_direction(message: _wire.Message) -> str:
    direction = _direction(message)
    return "failed" if direction == "down" and is_unestablished(message) else direction


def _direction(message: _wire.Message) -> str:
    # An IKE_SA may be named "up": the key then occurs twice, once as its section.
    return "up" if "yes" in message.get_all("up") else "down"


def is_unestablished(message: _wire.Message) -> bool:
    """Whether a message is about an IKE_SA that was never established, by the state at the root of its one section.

    False for ike-rekey, whose section has the states of two IKE_SAs instead: charon rekeys only what was established.
    """
    section = section_of(message)[1]
    state = section.get("state") if section is not None else None
    return isinstance(state, str) and state in UNESTABLISHED


def _ike(message: _wire.Message) -> str:
    return section_of(message)[0]


def _child(message: _wire.Message) -> str:
    ike = section_of(message)[1]
    children = ike.get("child-sas") if ike is not None else None
    name, child = section_of(children) if isinstance(children, _wire.Message) else ("", None)
    own = child.get("name") if child is not None else None
    return own if isinstance(own, str) else name  # in child-updown the section's name has a unique id appended


def section_of(message: _wire.Message) -> tuple[str, _wire.Message | None]:
    """Return the one section in `message` and its name, found by type because the name can be anything."""
    for name, value in message.items():
        if isinstance(value, _wire.Message):
            return name, value
    return "", None


OUTLINE = ("up", "state", "type")
"""The keys that, with the names of sections, determine subject, kind and limit of an event of the state class."""

_IKE, _CHILD = _Token("ike", _ike), _Token("child", _child)
_IKE_DIRECTION = _Token("direction", _ike_direction, ("up", "down", "failed"))
_CHILD_DIRECTION = _Token("direction", _direction, ("up", "down"))  # charon raises no event for a CHILD_SA that failed

# The tokens after <prefix>.<node>. for each event: the fixed ones, then those read from the message.
_EVENTS: Mapping[str, tuple[str, tuple[_Token, ...]]] = MappingProxyType(
    {
        "ike-updown": ("event.ike-updown", (_IKE, _IKE_DIRECTION)),
        "ike-rekey": ("event.ike-rekey", (_IKE,)),
        "ike-update": ("event.ike-update", (_IKE,)),
        "child-updown": ("event.child-updown", (_IKE, _CHILD, _CHILD_DIRECTION)),
        "child-rekey": ("event.child-rekey", (_IKE, _CHILD)),
        "alert": ("event.alert", (_text("type", tuple(ALERTS)),)),
        "log": ("log", (_text("group"), _text("level"))),
    }
)


class Subjects:
    """The subjects and keys of one node."""

    def __init__(self, prefix: str, node: str) -> None:
        self.prefix = prefix
        self.node = escape(node)
        self._base = f"{prefix}.{self.node}."

    def event(self, name: str, raw: bytes) -> str:
        """Return the subject of event `name` with message `raw`; raise DecodeError if that is not a VICI message."""
        fixed, tokens = _EVENTS[name]
        message = _wire.Message(raw)
        return ".".join([self._base + fixed, *(escape(token.read(message)) for token in tokens)])

    def log(self, group: bytes, level: bytes) -> str:
        """Return the subject for log lines of a group and level."""
        fixed, _ = _EVENTS["log"]
        names = (token.decode("utf-8", "surrogateescape") for token in (group, level))
        return ".".join([self._base + fixed, *map(escape, names)])

    def bridge(self, kind: str) -> str:
        """Return the subject of one of the bridge's own events, such as status or gap."""
        return f"{self._base}bridge.{kind}"

    def key(self, *names: str) -> str:
        """Return a key of this node in a bucket: `<node>.<ike>.<uniqueid>`, `<node>.<conn>` or `<node>`."""
        return ".".join([self.node, *map(escape, names)])

    def commands(self) -> tuple[str, str]:
        """Return the subjects to subscribe to: this node's commands, and those for every node."""
        return f"{self._base}cmd.*", f"{self.prefix}.{ALL_NODES}.cmd.*"

    def allows_reply(self, reply: str) -> bool:
        """Whether a request may name `reply` as its reply subject: only an inbox, which begins with `_`.

        Any other subject could make the bridge publish where the requester may not: events, the JetStream API.
        """
        if not _INBOX.fullmatch(reply) or _NO_TOKEN.search(reply):
            return False
        return not reply.startswith(f"{self.prefix}.")


def command_subject(prefix: str, node: str, command: str) -> str:
    """Return the subject for requests of a command; `node` may be ALL_NODES."""
    return f"{prefix}.{escape(node)}.cmd.{escape(command)}"


def filters(prefix: str, nodes: Sequence[str] = (), events: Sequence[str] = (), ike: str | None = None) -> list[str]:
    """Return the subjects to subscribe to for `events` of `nodes`; by default all state events of all nodes.

    Events are charon's or the bridge's own (`status`, `gap`, ...); `child-updown.down` or `alert.cert-expired` is one
    kind of an event. `ike` selects one connection. The subjects do not overlap: JetStream would reject them, and NATS
    send a message twice. Raises ValueError for an unknown kind, and with `ike` for an event whose subject names no
    connection.
    """
    tokens = [escape(node) for node in nodes] or ["*"]
    if ike is not None:
        names = events or [name for name, (_, own) in _EVENTS.items() if _IKE in own]
        parts = [_filter(name, escape(ike)) for name in names]
    else:
        parts = [_filter(name) for name in events] or ["event.>", "bridge.>"]
    different = dict.fromkeys(parts)
    parts = [part for part in different if not any(covered(part, [other]) for other in different if other != part)]
    return [f"{prefix}.{token}.{part}" for token in dict.fromkeys(tokens) for part in parts]


def _filter(event: str, ike: str | None = None) -> str:
    name, _, kind = event.partition(".")
    fixed, tokens = _EVENTS.get(name, ("", ()))
    if ike is not None and _IKE not in tokens:
        raise ValueError(f"{event} cannot be selected by connection: its subject names no connection")
    if not tokens:
        return f"bridge.{escape(event)}"
    if ike is None and not kind:
        return f"{fixed}.>"
    parts = [ike if token is _IKE and ike is not None else "*" for token in tokens]
    if kind:
        _check_kind(name, kind)
        parts[-1] = escape(kind)
    return ".".join([fixed, *parts])


def _check_kind(event: str, kind: str) -> None:
    known = kinds(event)
    if kind not in known and event != "alert":  # newer versions of charon may add types
        raise ValueError(f"{event}.{kind}: " + (f"use {', '.join(known)}" if known else f"{event} has no kinds"))


def patterns(prefix: str) -> dict[str, str]:
    """Return the subject of each of charon's events, with words in braces for tokens read from the message."""
    return {
        name: ".".join([f"{prefix}.{{node}}.{fixed}", *(f"{{{token.word}}}" for token in tokens)])
        for name, (fixed, tokens) in _EVENTS.items()
    }


def kinds(event: str) -> tuple[str, ...]:
    """Return the known kinds of an event, which are values of the last token of its subject: up, down, ..."""
    _, tokens = _EVENTS.get(event, ("", ()))
    return tokens[-1].kinds if tokens else ()


def kind_of(event: str, subject: str) -> str:
    """Return the kind of an event by its subject: "" for an event without kinds, `other` for an unknown kind."""
    known = kinds(event)
    if not known:
        return ""
    kind = subject.rpartition(".")[2]
    return kind if kind in known else "other"


def stream_subjects(prefix: str) -> list[str]:
    """Return the subjects of the state class of every node, which JetStream must acknowledge."""
    return [f"{prefix}.*.event.>", f"{prefix}.*.bridge.>"]


def covered(subject: str, by: Sequence[str]) -> bool:
    """Whether the patterns `by` together match every subject that the pattern `subject` matches."""
    literals = {token for pattern in (subject, *by) for token in pattern.split(".")} - {"*", ">"}
    alphabet = [*literals, None]  # None: any token that occurs in no pattern
    waiting = [(_rest(subject), frozenset(map(_rest, by)))]
    seen = set(waiting)
    while waiting:
        rest, others = waiting.pop()
        if rest in _ENDS and not others & _ENDS:
            return False
        for token in alphabet:
            left = _after(rest, token)
            if left is None:
                continue
            state = left, frozenset(after for other in others if (after := _after(other, token)) is not None)
            if state not in seen:
                seen.add(state)
                waiting.append(state)
    return True


_Rest = tuple[str, ...]
_REST = (">", ">")  # the rest of a pattern after its > has matched a token: it may match more, or end
_ENDS: frozenset[_Rest] = frozenset([(), _REST])


def _rest(pattern: str) -> _Rest:
    return tuple(pattern.split("."))


def _after(rest: _Rest, token: str | None) -> _Rest | None:
    """Return the rest of a pattern after `token`; None if `token` does not match."""
    if not rest:
        return None
    if rest[0] == ">":
        return _REST
    return rest[1:] if rest[0] in ("*", token) else None


def overlap(one: str, other: str) -> bool:
    """Whether some subject matches both patterns."""
    mine, theirs = one.split("."), other.split(".")
    for a, b in zip(mine, theirs, strict=False):
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(mine) == len(theirs)
