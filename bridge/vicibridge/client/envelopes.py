"""Envelopes as received from the bus, and a check for missing ones."""

from __future__ import annotations

import bisect
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

from vicifast import _wire
from vicifast._wire import Envelope

from ..contract import names
from ..contract.bridge_events import BRIDGE_EVENTS, from_vici
from ..contract.codecs import CODECS, codec_of
from ..contract.forms import check, check_plain
from ..contract.subjects import unescape

Kind = Literal["state", "log"]

_MOST = 2**63 - 1


class Carrier(Protocol):
    """A message, of nats-py or of `HardClient.subscribe_blocks`."""

    @property
    def subject(self) -> str: ...
    @property
    def data(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str] | None: ...


def unpack(message: Carrier, prefix: str = "vici") -> list[Envelope]:
    """Return the envelopes in a message of any codec.

    Raises ValueError if the payload is something else, or if an envelope has another node than the subject, whose
    tokens after `prefix` begin with it: the permissions of a gateway's user limit its subjects, not its payloads.
    """
    payload, subject, headers = message.data, message.subject, message.headers or {}
    try:
        if not subject.startswith(f"{prefix}."):
            raise ValueError(f"the subject does not begin with {prefix}")
        node = _node(subject.removeprefix(f"{prefix}.").partition(".")[0])
        if names.EVENT_HEADER in headers:
            return [_checked(_raw(headers, payload), node, subject)]
        quickly = _wire.envelopes(payload, subject, node)
        if quickly is not None:
            return quickly
        return [_checked(found, node, subject) for found in CODECS[codec_of(payload)].envelopes(payload)]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{subject}: not an envelope: {error}") from None


_node = lru_cache(1024)(unescape)


class _Form(TypedDict):
    v: Literal[1]
    node: str
    boot: str
    seq: int
    time: int
    event: str
    data: dict[str, object]


def _checked(found: Mapping[str, Any], node: str, subject: str) -> Envelope:
    """Raise ValueError unless the bridge of `node` can have written this: other programs publish on its subjects."""
    if not _has_form(found):
        check(found, _Form)
    boot, seq, time, event, data = (found[name] for name in ("boot", "seq", "time", "event", "data"))
    if found["node"] != node:
        raise ValueError(f"node is {found['node']!r}, not that of the subject")
    if not (0 <= seq <= _MOST and 0 <= time <= _MOST):
        raise ValueError("seq or time is not a positive number of 63 bits")
    if event in ("gap", "status"):
        check(data, BRIDGE_EVENTS[event])
    else:
        check_plain(data)
    return Envelope(node, boot, seq, time, event, data, subject)


def _has_form(found: Mapping[str, Any]) -> bool:
    """Whether an envelope has `_Form`, without a reason if not: `check` takes four times as long."""
    try:
        return (
            found["v"] == 1
            and type(found["node"]) is type(found["boot"]) is type(found["event"]) is str
            and type(found["seq"]) is type(found["time"]) is int
            and type(found["data"]) is dict
        )
    except (KeyError, TypeError):
        return False


def _raw(headers: Mapping[str, str], payload: bytes) -> dict[str, Any]:
    for name in (names.NODE_HEADER, names.BOOT_HEADER, names.SEQ_HEADER, names.TIME_HEADER):
        if name not in headers:
            raise ValueError(f"the header {name} is missing")
    event, data = headers[names.EVENT_HEADER], _wire.decode(payload)
    return {
        "v": 1,
        "node": headers[names.NODE_HEADER],
        "boot": headers[names.BOOT_HEADER],
        "seq": int(headers[names.SEQ_HEADER]),
        "time": int(headers[names.TIME_HEADER]),
        "event": event,
        "data": from_vici(event, data) if event in BRIDGE_EVENTS else data,
    }


class MissingEvents(NamedTuple):
    """Events `first` to `last` of a class that did not arrive; `cause` is from the bridge's gap event, if any."""

    node: str
    boot: str
    kind: Kind
    first: int
    last: int
    cause: str | None = None

    def __str__(self) -> str:
        count = self.last - self.first + 1
        cause = f": {self.cause}" if self.cause else ""
        return f"{self.node}: {count} of class {self.kind} are missing, the first is {self.first}{cause}"


class Completeness:
    """Finds missing events by `seq`, for each node, start of its bridge, and class.

    With `from_start`, every event of each start is expected; otherwise those after the first received one, and all of
    later starts. The log is published by subject, so lines arrive out of order: some may be missing for a moment, and
    without `from_start` the numbers around the first.
    """

    def __init__(self, *, from_start: bool = False) -> None:
        self.duplicates = 0
        self.disordered = 0
        """Events of class state that arrived after a later one."""
        self._from_start = from_start
        self._tracks: dict[tuple[str, str, Kind], _Track] = {}
        self._gap_events: dict[tuple[str, str, Kind], list[MissingEvents]] = {}  # by their first number
        self._next: dict[tuple[str, str], str] = {}  # the start that named one as its previous

    def add(self, envelope: Envelope) -> None:
        """Record an envelope."""
        kind = envelope.kind
        key = envelope.node, envelope.boot, kind
        filled = self._track(key, envelope.seq).add(envelope.seq)
        if filled is not None:
            self.duplicates += not filled
            self.disordered += filled and kind == "state"
        data = envelope.data
        if envelope.event == "gap" and data.get("first_seq") is not None:
            boot, last = data.get("boot", envelope.boot), data["last_seq"]
            kind, cause = data["class"], str(data["cause"])
            gap = MissingEvents(
                envelope.node, boot, kind, data["first_seq"], sys.maxsize if last is None else last, cause
            )
            bisect.insort(self._gap_events.setdefault(gap[:3], []), gap, key=_first)
        if envelope.event == "status" and (previous := data.get("previous")):
            last = previous["last_seq"]
            self._next[envelope.node, previous["boot"]] = envelope.boot
            self._track((envelope.node, previous["boot"], "state"), last + 1).expect(last)

    def _track(self, key: tuple[str, str, Kind], seq: int) -> _Track:
        track = self._tracks.get(key)
        if track is None:
            track = self._tracks[key] = _Track(0 if self._is_whole(*key) else seq - 1)
        return track

    def gaps(self) -> list[MissingEvents]:
        """Return the events missing at the moment, with the cause that the bridge reported."""
        return [
            MissingEvents(*key, first, last, self._cause(key, first, last))
            for key, track in self._tracks.items()
            for first, last in track.missing
        ]

    def _is_whole(self, node: str, boot: str, kind: Kind) -> bool:
        # Names of starts sort by time: a start after another one that was seen has been seen from its beginning. If the
        # clock was set back in between, the later start has the lower name, but its status event names the previous.
        later, start = set(), boot
        while (start := self._next.get((node, start), "")) and start not in later:
            later.add(start)
        earlier = (key[1] for key in self._tracks if (key[0], key[2]) == (node, kind))
        return self._from_start or any(start < boot and start not in later for start in earlier)

    def _cause(self, key: tuple[str, str, Kind], first: int, last: int) -> str | None:
        reported = self._gap_events.get(key, [])
        before = (reported[at] for at in range(bisect.bisect_right(reported, first, key=_first) - 1, -1, -1))
        return next((gap.cause for gap in before if last <= gap.last), None)


def _first(gap: MissingEvents) -> int:
    return gap.first


class _Track:
    """The sequence numbers of one class of one start."""

    __slots__ = ("missing", "_joined", "_highest")

    def __init__(self, joined: int) -> None:
        self.missing: list[tuple[int, int]] = []  # first and last of each, ascending
        self._joined = self._highest = joined

    def add(self, seq: int) -> bool | None:
        """Record a number; None if it is new, else whether it had been missing."""
        if seq > self._highest:
            if seq > self._highest + 1:
                self.missing.append((self._highest + 1, seq - 1))
            self._highest = seq
            return None
        return None if seq <= self._joined else self._fill(seq)

    def expect(self, last: int) -> None:
        """Record that there were numbers up to `last`."""
        if last > self._highest:
            self.missing.append((self._highest + 1, last))
            self._highest = last

    def _fill(self, seq: int) -> bool:
        at = bisect.bisect_right(self.missing, (seq, self._highest)) - 1
        if at < 0 or not self.missing[at][0] <= seq <= self.missing[at][1]:
            return False
        first, last = self.missing[at]
        self.missing[at : at + 1] = [(a, b) for a, b in ((first, seq - 1), (seq + 1, last)) if a <= b]
        return True
