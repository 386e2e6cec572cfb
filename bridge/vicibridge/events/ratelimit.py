"""Limits events that anyone can cause without authenticating."""

from __future__ import annotations

import math

from vicifast import _wire
from vicifast.commands import ALERTS, Trigger

from ..contract.subjects import is_unestablished, section_of

BURST = 100.0

_UNNAMED = "(unnamed)"  # charon's name for an IKE_SA without a known connection


class TokenBucket:
    """Limits the rate of events after an initial burst; times are in nanoseconds, and may go backwards."""

    __slots__ = ("_tokens", "_now")

    def __init__(self) -> None:
        self._tokens = math.inf  # starts with a full burst
        self._now = 0

    def allows(self, time_ns: int, rate: float, burst: float) -> bool:
        """Count an event, and return whether it is within the limit of `rate` per second and `burst` at once."""
        elapsed = max(0, time_ns - self._now)
        self._now = time_ns
        self._tokens = min(burst, self._tokens + elapsed * rate / 1e9)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class UnauthenticatedLimit:
    """Limits each type of unauthenticated event to `rate` per second after a burst of `BURST`; 0 means no limit.

    Events of unknown peers have separate limits, so that they do not displace those of configured connections.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._buckets: dict[str, TokenBucket] = {}

    def allows(self, time_ns: int, kind: str) -> bool:
        """Count an event of a type that `unauthenticated` returned, and return whether it is within the limit."""
        if not self.rate:
            return True
        return self._buckets.setdefault(kind, TokenBucket()).allows(time_ns, self.rate, max(BURST, self.rate))


def unauthenticated(event: str, raw: bytes) -> str | None:
    """Return the type by which an event is limited; None for one that only an authenticated peer can cause."""
    if event == "alert":
        return _alert(_wire.Message(raw))
    if event in ("ike-updown", "ike-update"):
        message = _wire.Message(raw)
        if is_unestablished(message) and "yes" not in message.get_all("up"):
            return _type(event, message)
    return None


def _alert(message: _wire.Message) -> str | None:
    name, sa = message.get("type"), message.get("ike-sa")
    alert = ALERTS.get(name) if isinstance(name, str) else None
    trigger = alert.trigger if alert else Trigger.UNAUTHENTICATED
    established = isinstance(sa, _wire.Message) and not is_unestablished(sa)
    if trigger is Trigger.ANYONE or (trigger is Trigger.UNAUTHENTICATED and not established):
        return _type(alert.name if alert else "alert", sa if isinstance(sa, _wire.Message) else message)
    return None


def _type(event: str, message: _wire.Message) -> str:
    return f"{event} {_UNNAMED}" if section_of(message)[0] == _UNNAMED else event
