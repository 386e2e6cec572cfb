"""Follows the events of charon across restarts, and reports every gap.

A `Follower` (or, for asyncio, an `AsyncFollower`) connects, registers for events, and reconnects when charon restarts.
It is an iterator of these items, in order:

    with Follower("unix:///var/run/charon.vici", "ike-updown", "child-updown", sas=True) as follower:
        for item in follower:
            match item:
                case Snapshot(sas):                    # the current state, at first and after each gap
                    table = {uniqueid_of(sa): sa for sa in sas}
                case Event("ike-updown", message):     # a change
                    update(table, message)
                case Gap(since, until, reason):        # events are missing; a Snapshot follows
                    print(f"events are missing from {since} to {until}: {reason}")
                case Down(_, reason):                  # charon is unreachable; retrying
                    print(reason)
                case Up(unknown):                      # connected; an old charon may not know all events
                    print("following all but", unknown)

* The first items are `Up`, `Snapshot` if requested, and then each `Event`. Events are registered before the snapshot is
  taken, so that none is missed; an event soon after a snapshot may describe a change that the snapshot already
  contains. The latest item about an SA is always right.
* When charon is unreachable, also at first: `Down`, and once it is back, `Up`, `Gap` and `Snapshot`.
* When the program was too slow, or a message was malformed: `Gap` and `Snapshot`.

All times are seconds since the epoch, as from `time.time()`. `vicifast.results` converts messages to objects:
`parse_event(item.name, item.message)`, `IkeSa.from_message(sa)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Down, Event, Gap, Item, Snapshot, Up

if TYPE_CHECKING:
    from .aio import AsyncFollower
    from .blocking import Follower

__all__ = ["AsyncFollower", "Down", "Event", "Follower", "Gap", "Item", "Snapshot", "Up"]


def __getattr__(name: str) -> object:
    if name == "AsyncFollower":
        from .aio import AsyncFollower

        return AsyncFollower
    if name == "Follower":
        from .blocking import Follower

        return Follower
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
