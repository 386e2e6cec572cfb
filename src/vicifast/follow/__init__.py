"""Events for as long as a program runs: whatever happens to charon, and with nothing missed in silence.

A `Follower` (or, for asyncio, an `AsyncFollower`) connects, registers, and connects again when charon has gone. It is
an iterator of what there is to know, in order:

    with Follower("unix:///var/run/charon.vici", "ike-updown", "child-updown", sas=True) as follower:
        for item in follower:
            match item:
                case Snapshot(sas):                    # the state now, first and after each gap
                    table = {uniqueid_of(sa): sa for sa in sas}
                case Event("ike-updown", message):     # what changed since
                    update(table, message)
                case Gap(since, until, reason):        # what nobody can know; a Snapshot follows
                    print(f"events are missing from {since} to {until}: {reason}")
                case Down(_, reason):                  # charon is not there; it is tried again
                    print(reason)
                case Up(unknown):                      # charon is there, perhaps an old one without some events
                    print("following all but", unknown)

* At first come `Up`, `Snapshot` if asked for, and then each `Event`. Events are registered before the snapshot is
  taken, so none is missed, but one soon after a snapshot may tell what that shows already: the last word on an SA is
  the latest item about it.
* When charon goes, or is not there at first: `Down`, and when it is back `Up`, `Gap`, and `Snapshot`.
* When the program was too slow, or a message was malformed: `Gap` and `Snapshot`.

All times are seconds since the epoch, as `time.time()` gives them. `vicifast.results` has the messages as objects:
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
