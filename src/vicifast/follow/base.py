"""The base of the two followers: the items they yield, and when to reconnect."""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, cast, overload

from .. import _wire
from ..address import parse_address
from ..commands import EVENTS
from ..errors import ViciError
from ..protocol import Body, Section, Values
from ..session import M

STATE_EVENTS = tuple(event.name for event in EVENTS.values() if event.standalone and event.name != "log")

# Seconds before reconnecting; the delay doubles after each failure and is randomly reduced by up to half, so that the
# clients of one charon do not all reconnect at the same time.
FIRST_DELAY, LONGEST_DELAY = 0.1, 5.0


class Up(NamedTuple):
    """The follower is connected and all registrations are answered; charon does not support the events in `unknown`."""

    unknown: tuple[str, ...]


class Down(NamedTuple):
    """charon is unreachable since `since`, for `reason`; reported once, while the follower retries until it is back.

    The end of a connection is noticed while waiting for an item, or else when the next item is requested.
    """

    since: float
    reason: str


class Gap(NamedTuple):
    """Events between `since` and `until` may be missing: `lost` of them, None if the number is unknown."""

    since: float
    until: float
    reason: str
    lost: int | None


class Snapshot(NamedTuple, Generic[M]):
    """The messages of `list-sas` and `list-conns`; one that was not requested is empty."""

    sas: Sequence[M]
    conns: Sequence[M]


class Event(NamedTuple, Generic[M]):
    """One event."""

    name: str
    message: M


Item: TypeAlias = "Up | Down | Gap | Snapshot[M] | Event[M]"


class BaseFollower(Generic[M]):
    """The base class of the blocking and the asyncio follower: everything except waiting."""

    @overload
    def __init__(
        self: BaseFollower[Section],
        address: str | os.PathLike[str] | None = None,
        *events: str,
        sas: bool = False,
        conns: bool = False,
        timeout: float | None = None,
        request_timeout: float | None = 30.0,
        values: type[str] | type[bytes] = str,
    ) -> None: ...

    @overload
    def __init__(
        self: BaseFollower[_wire.Message],
        address: str | os.PathLike[str] | None = None,
        *events: str,
        sas: bool = False,
        conns: bool = False,
        timeout: float | None = None,
        request_timeout: float | None = 30.0,
        values: type[_wire.Message],
    ) -> None: ...

    def __init__(
        self,
        address: str | os.PathLike[str] | None = None,
        *events: str,
        sas: bool = False,
        conns: bool = False,
        timeout: float | None = None,
        request_timeout: float | None = 30.0,
        values: Values = str,
    ) -> None:
        parse_address(address)
        for event in events:
            _wire.packet(_wire.EVENT_REGISTER, event)
        self.address = address
        self.events = events or STATE_EVENTS
        self.timeout = timeout
        self._options: Any = {"timeout": request_timeout, "values": values}
        self._snapshot_commands = [name for name, wanted in (("list-sas", sas), ("list-conns", conns)) if wanted]
        self._items: deque[Item[M]] = deque()
        self._held: list[Event[M]] = []  # events received before the next snapshot is taken
        self._stale = False
        self._lost = 0
        self._took_at = 0.0
        self._outage: Down | None = None
        self._delay = 0.0
        self._retry_at = 0.0
        self._up_since = 0.0
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the follower was closed, which ends its iteration."""
        return self._closed

    def _pause(self) -> float:
        """Seconds until the next connection attempt."""
        return max(0.0, self._retry_at - time.monotonic())

    def _came_up(self, unknown: tuple[str, ...], registered: float, messages: dict[str, list[M]]) -> None:
        """Handle a new connection: no event is missing from `registered` on, and `messages` were listed after that."""
        self._items.append(Up(unknown))
        if self._outage is not None:
            self._items.append(Gap(self._outage.since, registered, self._outage.reason, None))
        self._outage = None
        self._lost, self._took_at, self._up_since = 0, registered, time.monotonic()
        self._listed(messages)

    def _listed(self, messages: dict[str, list[M]]) -> None:
        if self._snapshot_commands:
            self._items.append(Snapshot(messages.get("list-sas", []), messages.get("list-conns", [])))
        self._release()

    def _release(self) -> None:
        self._stale = False
        self._items.extend(self._held)
        self._held.clear()

    def _went_down(self, error: ViciError) -> None:
        self._release()
        if self._outage is None:
            if time.monotonic() - self._up_since > LONGEST_DELAY:
                self._delay = 0.0
            self._outage = Down(time.time(), str(error))
            self._items.append(self._outage)
        self._delay = min(max(FIRST_DELAY, self._delay * 2), LONGEST_DELAY)
        self._retry_at = time.monotonic() + self._delay * random.uniform(0.5, 1)

    def _took(self, batch: Sequence[tuple[str, Body]], lost: int) -> None:
        """Add a batch from the listener, which has lost `lost` events so far."""
        now = time.time()
        events = [Event(name, cast(M, body)) for name, body in batch if not isinstance(body, ViciError)]
        malformed, late = len(batch) - len(events), lost - self._lost
        if malformed or late:
            reason = "the program fell behind charon" if late else "a message of charon was malformed"
            self._items.append(Gap(self._took_at, now, reason, malformed + late))
            self._stale = bool(self._snapshot_commands)
        self._lost, self._took_at = lost, now
        (self._held if self._stale else self._items).extend(events)
