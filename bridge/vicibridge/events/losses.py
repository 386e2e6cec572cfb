"""Counts the events of a class: at all times, received = published + dropped + spooled + in flight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

SAMPLED = "sampled"
OVER_RATE = "over the rate limit"
OVER_UNAUTHENTICATED_RATE = "over the rate limit of unauthenticated events"

CONFIGURED = {SAMPLED, OVER_RATE, OVER_UNAUTHENTICATED_RATE}  # intended, so not logged as a warning
_REPORT_EVERY = 1.0  # seconds between gap envelopes of one class


@dataclass(slots=True)
class Counts:
    """Events since the start, including those in the spool at the start; `bytes` counts published payload."""

    received: int = 0
    published: int = 0
    dropped: int = 0
    bytes: int = 0
    causes: Counter[str] = field(default_factory=Counter)  # of dropped events; a few fixed texts

    def drop(self, cause: str, count: int) -> None:
        """Count `count` events as dropped."""
        self.dropped += count
        self.causes[cause] += count


@dataclass(slots=True)
class Loss:
    """`count` events of one class that did not reach NATS, all between `first_seq` and `last_seq`; None is unknown.

    `boot` is the run of the bridge that the numbers belong to, empty for the current one.
    """

    cause: str
    count: int | None
    first_seq: int | None
    last_seq: int | None
    boot: str = ""

    def merge(self, other: Loss) -> None:
        """Add a loss with the same cause and boot; a value that is unknown in either becomes unknown."""
        self.count = None if self.count is None or other.count is None else self.count + other.count
        self.first_seq = _either(min, self.first_seq, other.first_seq)
        self.last_seq = _either(max, self.last_seq, other.last_seq)


def _either(choose: Callable[[int, int], int], one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else choose(one, other)


def gap(
    kind: str, cause: str, count: int | None = None, first_seq: int | None = None, last_seq: int | None = None
) -> dict[str, object]:
    """Return the data of a `gap` event: events of a class are missing; None where a value is unknown."""
    return {"class": kind, "cause": cause, "count": count, "first_seq": first_seq, "last_seq": last_seq}


class Losses:
    """Collects losses by cause, and passes them to `report` at most once per second."""

    def __init__(self, report: Callable[[Loss], None]) -> None:
        self._report = report
        self._unreported: dict[tuple[str, str], Loss] = {}
        self._due = 0.0

    @property
    def unreported(self) -> list[Loss]:
        """Copies of the losses that are not reported yet."""
        return [replace(loss) for loss in self._unreported.values()]

    def add(self, cause: str, count: int | None, first_seq: int | None, last_seq: int | None, boot: str = "") -> None:
        loss = Loss(cause, count, first_seq, last_seq, boot)
        known = self._unreported.setdefault((cause, boot), loss)
        if known is not loss:
            known.merge(loss)

    def wait(self, now: float) -> float | None:
        """Return the seconds until the next report is due; None without a loss."""
        return max(0.0, self._due - now) if self._unreported else None

    def report(self, now: float) -> None:
        """Report the losses, if that is due."""
        if not self._unreported or now < self._due:
            return
        self._due = now + _REPORT_EVERY
        losses, self._unreported = self._unreported, {}
        for loss in losses.values():
            self._report(loss)


@dataclass(slots=True)
class Tally:
    """Requests for one command since the start; `codes` counts the results, 200 or an error code as in HTTP."""

    requests: int = 0
    errors: int = 0
    last_error: str = ""
    nanoseconds: int = 0
    codes: Counter[int] = field(default_factory=Counter)

    def count(self, code: int, text: str, nanoseconds: int) -> None:
        """Count the result of one request; `text` must not contain internals or secrets."""
        self.requests += 1
        self.nanoseconds += nanoseconds
        self.codes[code] += 1
        if code != 200:
            self.errors += 1
            self.last_error = f"{code}: {text}"
