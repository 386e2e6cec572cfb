"""Compares charon's lists with the mirror; corrects and reports each difference.

Events continue while charon lists. An object that an event reports between the start and `finish` is newer than its
row, which is ignored. The caller starts before it sends the request, and calls `finish` when every event that charon
raised before its last row has been applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from vicifast._wire import Message
from vicifast.commands import UNESTABLISHED

from ..contract.bucket_values import Section
from ..contract.subjects import section_of
from .model import Conn, Ike, Mirror, Window, child_key, is_ike, same_child, state_of, uniqueid_of, without_tasks

_RUNNING = {"established", "rekey-time", "reauth-time", "life-time", "install-time", "use-in", "use-out"}
# No event reports these, so a difference does not mean that an event was lost.
_UNREPORTED = _RUNNING | {"state", "bytes-in", "packets-in", "bytes-out", "packets-out"}
# Listed, but not established yet, or replaced or closed already.
_IKE_ABSENT = UNESTABLISHED | {"REKEYED", "DESTROYING"}
_CHILD_ABSENT = {"CREATED", "ROUTED", "INSTALLING", "RETRYING", "REKEYED", "DELETED", "DESTROYING"}
_CLOSING = "DELETING"  # before or after its event: the state does not show which


class Difference(NamedTuple):
    """A key that differed from what charon lists: the mirror's value before and after."""

    kind: Literal["appeared", "vanished", "changed"]
    bucket: str
    key: str
    before: Mapping[str, object] | None
    after: Mapping[str, object] | None


class Reconciliation:
    """One comparison; `unsettled` means that another should follow soon."""

    def __init__(self, mirror: Mirror) -> None:
        self.unsettled = False
        self._mirror = mirror
        self._window = mirror.window = Window()
        mirror.doubtful = False
        self._known_conns = set(mirror.conns)
        self._counted = set(mirror.counted)
        self._seen: set[str] = set()
        self._seen_conns: set[str] = set()
        self._lingering: set[tuple[str, str]] = set()
        self._differences: list[Difference] = []

    def abandon(self) -> None:
        """Stop; corrections made so far remain."""
        self._mirror.window = None

    def sa(self, time_ns: int, raw: bytes) -> None:
        """Compare one message of list-sas; call this after `conn`, which determines what the CHILD_SAs count for."""
        name, message = section_of(Message(raw))
        section: Section = message.to_dict() if message is not None else {}
        listed = uniqueid = uniqueid_of(section)
        while uniqueid in self._window.replaced:
            uniqueid = self._window.replaced[uniqueid]
        ike = self._mirror.ikes.get(uniqueid)
        if uniqueid == listed:
            ike = self._ike(time_ns, name, section, ike)
        elif state_of(section) in _IKE_ABSENT:
            return  # its children have moved to the replacement
        if ike is not None:
            self._children(time_ns, ike, section, whole=uniqueid == listed)
        self._mirror.settle(time_ns)

    def _ike(self, time_ns: int, name: str, section: Section, ike: Ike | None) -> Ike | None:
        """Compare an IKE_SA without its children; None if it does not belong in the mirror."""
        uniqueid, state = uniqueid_of(section), state_of(section)
        if not uniqueid or uniqueid in self._window.gone or state in _IKE_ABSENT:
            return None
        if state == _CLOSING:
            if ike is None:
                return None
            self.unsettled = True
        self._seen.add(uniqueid)
        if uniqueid in self._window.fresh:
            return ike
        if ike is None:
            return self._appeared(time_ns, name, section)
        if not is_ike(ike, name, section):
            return self._exchanged(time_ns, name, section, ike)
        self._compare_ike(time_ns, section, ike)
        return ike

    def _appeared(self, time_ns: int, name: str, section: Section) -> Ike:
        ike = self._mirror.put_ike(time_ns, name, section)
        # If its children are those of another IKE_SA, the events of a rekeying were missed.
        for child in _listed_children(section):
            known = self._mirror.child(uniqueid_of(child))
            if known is not None and known.ike is not ike and same_child(known.section, child):
                former, former_value = known.ike, self._mirror.sa_value(known.ike)
                self._mirror.inherit(time_ns, ike, former)
                self._vanished(time_ns, former, former_value)
        self._put_children(time_ns, ike, section)
        self._differences.append(Difference("appeared", *ike.key, None, self._mirror.sa_value(ike)))
        return ike

    def _exchanged(self, time_ns: int, name: str, section: Section, former: Ike) -> Ike:
        """Replace an SA whose uniqueid another run of charon has given to a different SA."""
        if former.conn.name != name:
            self._vanished(time_ns, former)
            return self._appeared(time_ns, name, section)
        before = self._mirror.sa_value(former)
        self._mirror.drop_ike(time_ns, former.uniqueid, tidy=False)
        ike = self._mirror.put_ike(time_ns, name, section)
        self._put_children(time_ns, ike, section)
        self._differences.append(Difference("changed", *ike.key, before, self._mirror.sa_value(ike)))
        return ike

    def _put_children(self, time_ns: int, ike: Ike, section: Section) -> None:
        for child in _listed_children(section):
            if uniqueid_of(child) not in self._window.children and state_of(child) not in _CHILD_ABSENT:
                self._mirror.put_child(time_ns, ike, child)

    def _compare_ike(self, time_ns: int, section: Section, ike: Ike) -> None:
        new = without_tasks(section)
        if _differ(ike.sa, new, _UNREPORTED):
            self._changed(ike)
        if _differ(ike.sa, new, _RUNNING):
            ike.sa = new
            self._mirror.mark(ike, time_ns)

    def _changed(self, ike: Ike) -> None:
        """Record, once, that `ike` is about to be corrected; `finish` fills in the new value."""
        if not self._differences or self._differences[-1].key != ike.key[1]:
            self._differences.append(Difference("changed", *ike.key, self._mirror.sa_value(ike), None))

    def _children(self, time_ns: int, ike: Ike, section: Section, *, whole: bool) -> None:
        """Compare the CHILD_SAs of an IKE_SA; if the section lists the `whole` set, the others are closed."""
        listed: set[str] = set()
        for child in _listed_children(section):
            uniqueid, state = uniqueid_of(child), state_of(child)
            if state in _CHILD_ABSENT:
                self._lingers(time_ns, ike, child)
            elif uniqueid in self._window.children:
                listed.add(uniqueid)
            elif state != _CLOSING or uniqueid in ike.children:
                self.unsettled |= state == _CLOSING
                listed.add(uniqueid)
                self._compare_child(time_ns, ike, child)
        missing = [u for u in ike.children if u not in listed and u not in self._window.children]
        for uniqueid in missing if whole else ():
            self._changed(ike)
            self._mirror.close_child(time_ns, ike.conn, ike.children[uniqueid].section, ike)

    def _lingers(self, time_ns: int, ike: Ike, child: Section) -> None:
        """Take the counters of a closed or replaced CHILD_SA that is still listed, as they may be newer."""
        key, mine = child_key(child), ike.children.get(uniqueid_of(child))
        self._lingering.add(key)
        if mine is not None and same_child(mine.section, child) and uniqueid_of(child) not in self._window.children:
            self._changed(ike)
            self._mirror.close_child(time_ns, ike.conn, child, ike)
        elif key in self._mirror.counted:
            self._mirror.close_child(time_ns, ike.conn, child, ike)

    def _compare_child(self, time_ns: int, ike: Ike, child: Section) -> None:
        mine = ike.children.get(uniqueid_of(child))
        if mine is None or _differ(mine.section, child, _UNREPORTED):
            self._changed(ike)
        if mine is None or _differ(mine.section, child, _RUNNING):
            self._mirror.put_child(time_ns, ike, child)

    def _vanished(self, time_ns: int, ike: Ike, before: Mapping[str, object] | None = None) -> None:
        before = before or self._mirror.sa_value(ike)
        self._differences.append(Difference("vanished", *ike.key, before, None))
        self._mirror.drop_ike(time_ns, ike.uniqueid, tidy=False)

    def conn(self, time_ns: int, raw: bytes) -> None:
        """Compare one message of list-conns."""
        name, message = section_of(Message(raw))
        if message is None:
            return
        config: Section = message.to_dict()
        self._seen_conns.add(name)
        known = name in self._known_conns or name in self._window.conns
        conn = self._mirror.conn(time_ns, name)
        if known and conn.configured and conn.config == config:
            return
        before = self._mirror.conn_value(conn) if known else None
        self._mirror.configure(time_ns, conn, True, config)
        self._mirror.settle(time_ns)
        self._report_conn(before, conn)

    def finish(self, time_ns: int) -> list[Difference]:
        """Remove everything that charon did not list, and return every difference."""
        mirror = self._mirror
        for ike in [i for u, i in mirror.ikes.items() if u not in self._seen and u not in self._window.fresh]:
            self._vanished(time_ns, ike)
        self._unconfigured(time_ns, [conn for name, conn in mirror.conns.items() if name not in self._seen_conns])
        mirror.settle(time_ns, mirror.conns.values())
        mirror.check_restored(time_ns)
        for key in self._counted - self._lingering:
            if key[0] not in self._window.children:
                mirror.counted.pop(key, None)
        mirror.window = None
        stale = [Difference("vanished", *key, value, None) for key, value in mirror.stale]
        mirror.stale = []
        return stale + [self._completed(difference) for difference in self._differences]

    def _completed(self, difference: Difference) -> Difference:
        if difference.kind == "vanished" or difference.after is not None:
            return difference
        data = self._mirror.row_value((difference.bucket, difference.key))
        return difference._replace(after=data) if data else difference._replace(kind="vanished")

    def _unconfigured(self, time_ns: int, conns: list[Conn]) -> None:
        mirror, former = self._mirror, []
        for conn in conns:
            if conn.name in self._window.conns:
                self.unsettled = True  # it may have been loaded after charon listed
                continue
            former.append((conn, conn.configured, mirror.conn_value(conn) if conn.name in self._known_conns else None))
            if conn.configured is not False:
                mirror.configure(time_ns, conn, False, conn.config)
        mirror.assign(time_ns)  # before dropping connections without SAs: children in other IKE_SAs may count for them
        for conn, configured, before in former:
            if not conn.ikes:
                mirror.drop_conn(conn)
                if before is not None:
                    self._differences.append(Difference("vanished", *conn.key, before, None))
            elif configured is not False:
                self._report_conn(before, conn)

    def _report_conn(self, before: Mapping[str, object] | None, conn: Conn) -> None:
        kind: Literal["appeared", "changed"] = "appeared" if before is None else "changed"
        self._differences.append(Difference(kind, *conn.key, before, None))


def _listed_children(section: Section) -> list[Section]:
    children = section.get("child-sas")
    return [child for child in children.values() if isinstance(child, dict)] if isinstance(children, dict) else []


def _differ(one: Section, other: Section, without: set[str]) -> bool:
    if one == other:
        return False
    return {k: v for k, v in one.items() if k not in without} != {k: v for k, v in other.items() if k not in without}
