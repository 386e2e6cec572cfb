"""The numbers that were sent, those that arrived, and the bridge's reports about the rest."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from vicibridge.client import Envelope

_UNHEARD, _MISSING = 255, 0


class Hole(NamedTuple):
    """Numbers that did not arrive, between two that did."""

    missing: int
    first: int
    last: int
    before: tuple[str, int] | None
    """The run of the bridge and the `seq` of the number before."""
    after: tuple[str, int] | None


@dataclass(frozen=True)
class GapReport:
    """A gap envelope."""

    kind: str
    boot: str
    cause: str
    count: int | None
    first: int | None
    last: int | None
    since: float
    until: float


class Ledger:
    """One class: every number that was sent, from 1, and the run of the bridge and `seq` with which it arrived."""

    def __init__(self, together: int) -> None:
        self.heard = self.unheard = self.arrived = self.twice = self.disordered = 0
        self._together = together  # how many numbers were sent in the same moment
        self._emitted = array("d")  # when, by moment
        self._stored = array("d")
        self._where = bytearray([_UNHEARD])  # by number: the run of the bridge, or one of the values above
        self._seqs = array("I", [0])
        self._boots = [""]
        self._others: dict[str, list[int]] = {}  # the bridge's own events, by run
        self._last = 0

    def next(self) -> int:
        """Return the next number to send."""
        return len(self._where)

    def sent(self, now: float, heard: bool) -> None:
        """Record that the next number was sent, and whether a client was registered."""
        if (len(self._where) - 1) % self._together == 0:
            self._emitted.append(now)
            self._stored.append(0.0)
        self.heard += heard
        self.unheard += not heard
        self._where.append(_MISSING if heard else _UNHEARD)
        self._seqs.append(0)

    def took(self, number: int, envelope: Envelope, now: float) -> None:
        """Record that a number arrived."""
        if envelope.boot != self._boots[-1] and envelope.boot not in self._boots:
            self._boots.append(envelope.boot)
        if self._where[number] not in (_MISSING, _UNHEARD):
            self.twice += 1
            return
        self.heard += (late := self._where[number] == _UNHEARD)
        self.unheard -= late
        self.arrived += 1
        self.disordered += number < self._last
        self._last = max(self._last, number)
        self._where[number] = self._boots.index(envelope.boot)
        self._seqs[number] = envelope.seq
        moment = (number - 1) // self._together
        self._stored[moment] = max(self._stored[moment], now)

    def other(self, envelope: Envelope) -> None:
        """Record a `seq` of the bridge's own events."""
        self._others.setdefault(envelope.boot, []).append(envelope.seq)

    def holes(self) -> Iterator[Hole]:
        for found in re.finditer(rb"[\x00\xff]+", self._where):
            if missing := found[0].count(_MISSING):
                yield Hole(missing, found.start(), found.end() - 1, self._at(found.start() - 1), self._at(found.end()))

    def _at(self, number: int) -> tuple[str, int] | None:
        return (self._boots[self._where[number]], self._seqs[number]) if 0 < number < len(self._where) else None

    def seqs(self, boot: str, first: int, last: int) -> list[int]:
        """Return the numbers from `first` to `last` that are not of the bridge's own events."""
        others = self._others.get(boot, [])
        own = set(others[bisect_left(others, first) : bisect_right(others, last)])
        return [seq for seq in range(first, last + 1) if seq not in own]

    def emitted(self, hole: Hole) -> Iterator[tuple[float, int]]:
        """Yield the moments in which the missing numbers were sent, and how many in each."""
        for moment in range(max(0, hole.first - 1) // self._together, (hole.last - 1) // self._together + 1):
            first = max(hole.first, moment * self._together + 1)
            last = min(hole.last, (moment + 1) * self._together)
            if missing := self._where.count(_MISSING, first, last + 1):
                yield self._emitted[moment], missing

    def stored(self, hole: Hole) -> tuple[float, float]:
        """Return when NATS stored the numbers before and after the hole."""
        before, after = (hole.first - 2) // self._together, hole.last // self._together
        ends = [self._stored[moment] for moment in (before, after) if 0 <= moment < len(self._stored)]
        return ends[0], ends[-1]


def gap_report(envelope: Envelope, began: float) -> GapReport:
    """Return the content of a gap envelope; times in seconds since `began`."""
    data: dict[str, Any] = envelope.data
    since, until = ((data[name] / 1e9 - began) if name in data else float("nan") for name in ("since", "until"))
    boot = data.get("boot", envelope.boot)
    return GapReport(
        data["class"], boot, data["cause"], data["count"], data["first_seq"], data["last_seq"], since, until
    )
