"""What became of the events of a class: at every moment, received = published + dropped + in flight."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

_logger = logging.getLogger(__name__)

_TELL_EVERY = 1.0  # seconds between two gap envelopes of one pipeline


@dataclass(slots=True)
class Counts:
    """Events since the start; what is neither published nor dropped is in flight. `bytes` is the payload published."""

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
    """`count` events of one class that did not reach NATS, all within `first_seq` to `last_seq`."""

    cause: str
    count: int
    first_seq: int
    last_seq: int


class Losses:
    """Gathers drops by cause until it is time to tell them."""

    def __init__(self, tell: Callable[[Loss], None]) -> None:
        self._tell = tell
        self._by_cause: dict[str, Loss] = {}
        self._due = 0.0

    def add(self, cause: str, count: int, first_seq: int, last_seq: int) -> None:
        loss = self._by_cause.setdefault(cause, Loss(cause, 0, first_seq, last_seq))
        loss.count += count
        loss.first_seq = min(loss.first_seq, first_seq)
        loss.last_seq = max(loss.last_seq, last_seq)

    def wait(self, now: float) -> float | None:
        """Return the seconds until there is something to tell, None when nothing is lost."""
        return max(0.0, self._due - now) if self._by_cause else None

    def tell(self, now: float) -> None:
        """Tell what was lost, unless something was told just now."""
        if not self._by_cause or now < self._due:
            return
        self._due = now + _TELL_EVERY
        losses, self._by_cause = self._by_cause, {}
        for loss in losses.values():
            _logger.warning("%d events lost: %s", loss.count, loss.cause)
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
