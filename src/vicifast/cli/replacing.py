"""Waits until SAs have been replaced, for `rekey --wait`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from ..blocking import Listener
from ..results import ChildRekey, ChildSa, ChildUpDown, IkeRekey, IkeSa, IkeUpDown, parse_event
from .common import Failed

EVENTS = ("ike-updown", "ike-rekey", "child-updown", "child-rekey")


class Replacing:
    """The listed SAs that a rekeying should replace: CHILD_SAs with this name or id, without either the IKE_SAs."""

    def __init__(self, listed: Iterable[IkeSa], *, child: str | None, child_id: int | None, reauth: bool) -> None:
        self._ikes: dict[int, IkeSa] = {}
        self._children: dict[int, ChildSa] = {}
        self._reauth = reauth
        self._closed: dict[int, IkeSa] = {}
        self._new: list[IkeSa] = []
        self._others: list[IkeSa | ChildSa] = []  # being replaced or closed already
        for ike in listed:
            if child is None and child_id is None:
                if ike.state == "ESTABLISHED":
                    self._ikes[ike.uniqueid] = ike
                else:
                    self._others.append(ike)
                continue
            for own in ike.children:
                if child in (None, own.name) and child_id in (None, own.uniqueid):
                    if own.state == "INSTALLED":
                        self._children[own.uniqueid] = own
                    else:
                        self._others.append(own)

    def wait(self, listener: Listener[Any], timeout: float) -> Iterator[str]:
        """Yield a line for each SA when it has been replaced. Raises `Failed` after `timeout` seconds.

        Raises it immediately if no SA can be replaced: charon reports success for one that is being closed.
        `EVENTS` must be registered before the request is sent.
        """
        if not self._ikes and not self._children:
            states = "".join(f": {_name(sa)} is {sa.state}" for sa in self._others[:1])
            raise Failed(f"rekey: no SA is established that could be replaced{states}")
        deadline = time.monotonic() + timeout
        while self._ikes or self._children:
            listener.timeout = max(0.0, deadline - time.monotonic())
            event = next(listener, None)
            if event is None:
                waiting = [*map(self._state_of, self._ikes.values()), *map(_name, self._children.values())]
                raise Failed(f"rekey: not replaced within {timeout:g} seconds: {', '.join(waiting)}")
            yield from self._take(*event)

    def _take(self, name: str, message: Any) -> Iterator[str]:
        match parse_event(name, message):
            case ChildRekey(_, old, new) if self._children.pop(old.uniqueid, None):
                yield f"{_name(old)} replaced by #{new.uniqueid}"
            case ChildUpDown(_, child, up=False) if child.uniqueid in self._children:
                raise Failed(f"rekey: {_name(child)} was closed")
            case IkeRekey(old, new) if self._ikes.pop(old.uniqueid, None):
                yield f"{_name(old)} replaced by #{new.uniqueid}"
            case IkeUpDown(ike, up=True):
                self._new.append(ike)
            case IkeUpDown(ike, up=False) if ike.uniqueid in self._ikes:
                if not self._reauth and ike.version != 1:  # of which every rekeying is an authentication
                    raise Failed(f"rekey: {_name(ike)} was closed")
                self._closed[ike.uniqueid] = ike  # charon may report that twice
        yield from self._pairs()

    def _pairs(self) -> Iterator[str]:
        # Before strongSwan 6.0 the old SA is closed first, since then the new one is there first.
        for old in list(self._closed.values()):
            new = next((ike for ike in self._new if ike.name == old.name), None)
            if new is not None:
                self._new.remove(new)
                del self._closed[old.uniqueid], self._ikes[old.uniqueid]
                yield f"{_name(old)} replaced by #{new.uniqueid}"

    def _state_of(self, ike: IkeSa) -> str:
        return f"{_name(ike)} (closed, without a new one)" if ike.uniqueid in self._closed else _name(ike)


def _name(sa: IkeSa | ChildSa) -> str:
    return f"{sa.name} #{sa.uniqueid}"
