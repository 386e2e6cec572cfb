"""The observations of a run."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from .ledger import GapReport, Ledger

LINES, EVENTS, REQUESTS = 10_000, 100, 10  # in a second
TICK = 0.01


@dataclass
class Fault:
    """A fault, its begin and its end, in seconds since the start."""

    kind: str
    begin: float
    end: float


class Lags:
    """The delay of the first envelope of each message, by arrival time."""

    def __init__(self) -> None:
        self.times = array("d")
        self.values = array("d")

    def add(self, when: float, lag: float) -> None:
        self.times.append(when)
        self.values.append(lag)


@dataclass
class Notes:
    """All observations; times are seconds since the start."""

    began: float = field(default_factory=time.time)
    faults: list[Fault] = field(default_factory=list)
    ledgers: dict[str, Ledger] = field(
        default_factory=lambda: {"state": Ledger(round(EVENTS * TICK)), "log": Ledger(round(LINES * TICK))}
    )
    gaps: list[GapReport] = field(default_factory=list)
    lags: dict[str, Lags] = field(default_factory=lambda: {"state": Lags(), "log": Lags()})
    answers: Counter[str] = field(default_factory=Counter)
    process: list[tuple[float, int, float, int]] = field(default_factory=list)  # time, pid, MB, descriptors

    def now(self) -> float:
        return time.time() - self.began

    @asynccontextmanager
    async def fault(self, kind: str) -> AsyncIterator[None]:
        fault = Fault(kind, self.now(), float("inf"))
        self.faults.append(fault)
        try:
            yield
        finally:
            fault.end = self.now()
