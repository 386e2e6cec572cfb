"""What became of the events of a class: at every moment, received = published + dropped + spooled + in flight."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

_logger = logging.getLogger(__name__)

SAMPLED = "sampled"
OVER_RATE = "over the rate limit"
OVER_UNAUTHENTICATED_RATE = "over the rate limit of unauthenticated events"

_WANTED = {SAMPLED, OVER_RATE, OVER_UNAUTHENTICATED_RATE}  # as configured; not worth a warning
_TELL_EVERY = 1.0  # seconds between two gap envelopes of one pipeline


@dataclass(slots=True)
class Counts:
    """Events since the start, and those that the spool had then; `bytes` is the payload published."""

    received: int = 0
    published: int = 0
    dropped: int = 0
    bytes: int = 0
    causes: Counter[str] = field(default_factory=Counter)  # of what was dropped; a few fixed texts

    def drop(self, cause: str, count: int) -> None:
        """Count `count` events as dropped."""
        self.dropped += count
        self.causes[cause] += count


@dataclass(slots=True)
class Loss:
    """`count` events of one class that did not reach NATS, all within `first_seq` to `last_seq`; None is not known.

    `boot` is the one that the numbers belong to; empty for the present one.
    """

    cause: str
    count: int | None
    first_seq: int | None
    last_seq: int | None
    boot: str = ""

    def merge(self, other: Loss) -> None:
        """Add what was lost for the same cause in the same boot; what is not known of one is not known of both."""
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
    """Gathers drops by cause until it is time to tell them."""

    def __init__(self, tell: Callable[[Loss], None]) -> None:
        self._tell = tell
        self._untold: dict[tuple[str, str], Loss] = {}
        self._due = 0.0

    @property
    def untold(self) -> list[Loss]:
        """Copies of what is still to be told."""
        return [replace(loss) for loss in self._untold.values()]

    def add(self, cause: str, count: int | None, first_seq: int | None, last_seq: int | None, boot: str = "") -> None:
        loss = Loss(cause, count, first_seq, last_seq, boot)
        known = self._untold.setdefault((cause, boot), loss)
        if known is not loss:
            known.merge(loss)

    def wait(self, now: float) -> float | None:
        """Return the seconds until there is something to tell, None when nothing is lost."""
        return max(0.0, self._due - now) if self._untold else None

    def tell(self, now: float) -> None:
        """Tell what was lost, unless something was told just now."""
        if not self._untold or now < self._due:
            return
        self._due = now + _TELL_EVERY
        losses, self._untold = self._untold, {}
        for loss in losses.values():
            count = "an unknown number of" if loss.count is None else loss.count
            level = logging.DEBUG if loss.cause in _WANTED else logging.WARNING
            _logger.log(level, "%s events lost: %s", count, loss.cause)
            self._tell(loss)


@dataclass(slots=True)
class Tally:
    """Requests for one command since the start; `codes` has how each ended, 200 or as in HTTP."""

    requests: int = 0
    errors: int = 0
    last_error: str = ""
    nanoseconds: int = 0
    codes: Counter[int] = field(default_factory=Counter)

    def count(self, code: int, text: str, nanoseconds: int) -> None:
        """Take in how one request ended; `text` is without internals and secrets."""
        self.requests += 1
        self.nanoseconds += nanoseconds
        self.codes[code] += 1
        if code != 200:
            self.errors += 1
            self.last_error = f"{code}: {text}"
