"""Compares every missing number with the losses that the bridge reported."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from vicibridge.events.backlog import KILLED
from vicibridge.events.log_publisher import STOPPED

from .ledger import GapReport, Hole, Ledger
from .notes import Notes

_IN_TRANSIT = 2.0  # seconds that an event may take from charon to the bridge

BY_NUMBER = "dropped, reported by number"
AS_SPAN = "lost with charon's connection, reported as a span of time"
WITH_BRIDGE = "lost when the bridge ended, reported"
WITH_SERVER = "lost with a NATS server that ended"
UNREPORTED = "lost and not reported"


@dataclass
class Account:
    """The account of one class; `causes` counts the numbers that were heard and did not arrive, by cause."""

    kind: str
    ledger: Ledger
    notes: Notes
    causes: Counter[str] = field(default_factory=Counter)
    unreported: list[str] = field(default_factory=list)
    _drops: Counter[str] = field(default_factory=Counter)  # losses that reported gaps must explain, by start
    _spent: Counter[GapReport] = field(default_factory=Counter)

    def make(self) -> Account:
        for hole in self.ledger.holes():
            left = hole.missing - self._with_numbers(hole)
            is_end = hole.before is not None and (hole.after is None or hole.after[0] != hole.before[0])
            if is_end:
                left -= self._with_bridge(hole, left)
            reported = min(left, self._in_spans(hole))
            self._note(AS_SPAN, reported, hole)
            self._note(WITH_SERVER if is_end and self._server_ended(hole) else UNREPORTED, left - reported, hole)
        for boot, dropped in self._drops.items():
            gaps = self._gaps(boot)
            if dropped > sum(math.inf if gap.count is None else gap.count for gap, *_ in gaps):
                self.unreported.append(
                    f"{boot}: {dropped} are missing within the reported gaps, which count fewer: {gaps}"
                )
                self.causes[BY_NUMBER] -= dropped
                self.causes[UNREPORTED] += dropped
        return self

    def _note(self, cause: str, count: int, hole: Hole) -> None:
        self.causes[cause] += count
        if cause == UNREPORTED and count:
            begin, end = self.ledger.stored(hole)
            self.unreported.append(f"{count} of {hole}, between {begin:.3f} and {end:.3f} s")

    def _with_numbers(self, hole: Hole) -> int:
        """Account for the numbered events, as the `seq` after the hole shows; return their number."""
        if hole.after is None:
            return 0
        boot, seq = hole.after
        begin = hole.before[1] + 1 if hole.before and hole.before[0] == boot else 1
        missing = self.ledger.seqs(boot, begin, seq - 1)[: hole.missing]
        gaps = self._gaps(boot)
        reported = sum(any(first <= seq <= last for _, first, last in gaps) for seq in missing)
        self._drops[boot] += reported
        self._note(BY_NUMBER, reported, hole)
        self._note(WITH_SERVER if self._server_ended(hole) else UNREPORTED, len(missing) - reported, hole)
        return len(missing)

    def _gaps(self, boot: str) -> list[tuple[GapReport, int, float]]:
        """Return the numbered gaps of a run of the bridge, with their first and last numbers."""
        return [
            (gap, gap.first, math.inf if gap.last is None else gap.last)
            for gap in self.notes.gaps
            if gap.kind == self.kind and gap.boot == boot and gap.first is not None
        ]

    def _with_bridge(self, hole: Hole, left: int) -> int:
        """Account for the last events of a run, which may or may not have had numbers; return how many are reported."""
        assert hole.before
        boot, seq = hole.before
        until = hole.after[0] if hole.after else boot + "\x7f"
        reported = 0
        for gap in self.notes.gaps:
            if gap.kind not in ("all", self.kind):
                continue
            if gap.cause == STOPPED and gap.boot == boot and gap.count is not None:
                here = min(left - reported, gap.count - self._spent[gap])
                self._spent[gap] += here  # a count may be for both classes
                reported += here
            elif gap.cause == KILLED and boot <= gap.boot < until:
                known = range(0) if gap.first is None or gap.boot != boot else range(seq + 1, gap.first)
                if not self.ledger.seqs(boot, known.start, known.stop - 1):
                    reported = left
        self._note(WITH_BRIDGE, reported, hole)
        return reported

    def _in_spans(self, hole: Hole) -> int:
        """Return how many events were sent while charon was disconnected, or were in transit when it disconnected."""
        spans = [(gap.since - _IN_TRANSIT, gap.until) for gap in self.notes.gaps if gap.kind == "all"]
        moments = self.ledger.emitted(hole)
        return sum(count for when, count in moments if any(begin <= when <= end for begin, end in spans))

    def _server_ended(self, hole: Hole) -> bool:
        begin, end = self.ledger.stored(hole)
        ends = [fault.begin for fault in self.notes.faults if fault.kind in ("nats killed", "nats stopped")]
        return self.kind == "log" and any(begin - 1 <= when <= end for when in ends)
