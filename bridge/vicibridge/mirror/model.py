"""The SAs and connections of one gateway, as its events and snapshots tell: a model without I/O.

`Mirror` takes events and says in `changed` which keys of the buckets have to be written or deleted; `snapshot.Snapshot`
repairs it by what charon lists. It has what events tell the end of: IKE_SAs that are established, and CHILD_SAs until
they are replaced or closed, though charon goes on listing those for a while.

A uniqueid means the same SA only within one run of charon, so an SA is known by it and by its SPIs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from vicifast import _wire
from vicifast._wire import Message

from ..contract import bucket_values
from ..contract.bucket_values import ConnValue, SaValue, Section, Traffic
from ..contract.subjects import Subjects, is_unestablished, section_of
from .counters import Sums, add, add_all, checked, minus, nothing, number, plus, together, traffic_of, whole

Key: TypeAlias = tuple[str, str]
"""A bucket, and a key in it."""

_TASKS = ("tasks-queued", "tasks-active", "tasks-passive")
_COUNTED = 50_000  # CHILD_SAs that are gone, of which the counters are remembered
_ADDRESS = ("local-host", "local-port", "remote-host", "remote-port")


@dataclass(slots=True, eq=False)
class Ike:
    """An established IKE_SA."""

    key: Key
    conn: Conn
    uniqueid: str
    sa: Section
    since: int
    updated: int
    children: dict[str, Section] = field(default_factory=dict)
    closed: Sums = field(default_factory=dict)

    def value(self, node: str, boot: str) -> SaValue:
        live: Sums = {}
        for child in self.children.values():
            add(live, name_of(child), traffic_of(child))
        return SaValue(
            v=1,
            node=node,
            boot=boot,
            ike=self.conn.name,
            uniqueid=self.uniqueid,
            state=str(self.sa.get("state", "")),
            since=self.since,
            updated=self.updated,
            sa=self.sa,
            children=dict(self.children),
            closed=dict(self.closed),
            totals=together(self.closed, live),
        )


@dataclass(slots=True, eq=False)
class Conn:
    """A connection; `live` is the traffic of all its CHILD_SAs that are up."""

    key: Key
    name: str
    since: int
    updated: int
    configured: bool | None = None
    config: Section = field(default_factory=dict)
    ikes: int = 0
    children: dict[str, int] = field(default_factory=dict)
    closed: Sums = field(default_factory=dict)
    live: Sums = field(default_factory=dict)

    def value(self, node: str, boot: str) -> ConnValue:
        configured = self.config.get("children") if self.configured is not False else None
        names = list(configured) if isinstance(configured, Mapping) else []
        up = {name: count for name, count in self.children.items() if count}
        return ConnValue(
            v=1,
            node=node,
            boot=boot,
            conn=self.name,
            configured=self.configured,
            since=self.since,
            updated=self.updated,
            ike_sas=self.ikes,
            child_sas=dict.fromkeys(names, 0) | up,
            config=self.config,
            closed=dict(self.closed),
            totals=together(self.closed, self.live),
        )


@dataclass(slots=True)
class Window:
    """What events have told while a snapshot is being taken: they are newer than its rows."""

    fresh: set[str] = field(default_factory=set)
    """IKE_SAs that came up or were told of."""
    gone: set[str] = field(default_factory=set)
    replaced: dict[str, str] = field(default_factory=dict)
    """IKE_SAs that were rekeyed, and by which one each is replaced."""
    children: set[str] = field(default_factory=set)
    conns: set[str] = field(default_factory=set)
    """Connections that were not known before."""


class Mirror:
    """What `node` has; `changed` are the keys that differ from what was taken from there last."""

    def __init__(self, subjects: Subjects, node: str, boot: str) -> None:
        self.changed: dict[Key, None] = {}
        self.ikes: dict[str, Ike] = {}
        self.conns: dict[str, Conn] = {}
        self.window: Window | None = None
        self.doubtful = False
        """Whether events have told something that only a snapshot can complete."""
        self.stale: list[tuple[Key, SaValue]] = []
        """SAs of a former run of charon that turned up as gone before a snapshot could tell."""
        self.counted: dict[tuple[str, str], Traffic] = {}
        """The counters of CHILD_SAs that were closed lately, so that news of them adds only what is more."""
        self._subjects = subjects
        self._node = node
        self._boot = boot
        self._restoring = False
        self._rows: dict[Key, Ike | Conn] = {}
        self._owners: dict[str, Ike] = {}  # of CHILD_SAs, by uniqueid
        self._handlers: dict[str, Callable[[int, str, Section, Message], None]] = {
            "ike-updown": self._ike_updown,
            "ike-rekey": self._ike_rekey,
            "ike-update": self._ike_update,
            "child-updown": self._child_updown,
            "child-rekey": self._child_rekey,
        }

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> list[Key]:
        """Return every key that has a value."""
        return list(self._rows)

    def value(self, key: Key) -> bytes | None:
        """Return what has to be at `key`; None when there must be nothing."""
        row = self.row_value(key)
        return None if row is None else bucket_values.dump(row)

    def row_value(self, key: Key) -> SaValue | ConnValue | None:
        """Return what has to be at `key` before it is made JSON."""
        row = self._rows.get(key)
        return None if row is None else row.value(self._node, self._boot)

    def sa_value(self, ike: Ike) -> SaValue:
        return ike.value(self._node, self._boot)

    def conn_value(self, conn: Conn) -> ConnValue:
        return conn.value(self._node, self._boot)

    def event(self, time_ns: int, event: str, raw: bytes) -> None:
        """Apply an event that was read at `time_ns`; DecodeError when `raw` is no VICI message."""
        handler = self._handlers.get(event)
        if handler is None:
            return
        message = Message(raw)
        name, section = section_of(message)
        if section is not None and not is_unestablished(message):
            handler(time_ns, name, section.to_dict(), message)

    def _ike_updown(self, time_ns: int, name: str, section: Section, message: Message) -> None:
        if "yes" in message.get_all("up"):
            self._told(time_ns, name, section)
        elif uniqueid := uniqueid_of(section):
            if self.window:
                self.window.gone.add(uniqueid)
                self.window.fresh.discard(uniqueid)
            self.drop_ike(time_ns, uniqueid)

    def _ike_rekey(self, time_ns: int, name: str, section: Section, _: Message) -> None:
        old, new = section.get("old"), section.get("new")
        if not isinstance(old, dict) or not isinstance(new, dict):
            return
        replacement = self._told(time_ns, name, new)
        uniqueid = uniqueid_of(old)
        if replacement is None or uniqueid in ("", replacement.uniqueid):
            return
        if self.window:
            self.window.gone.add(uniqueid)
            self.window.replaced[uniqueid] = replacement.uniqueid
        replaced = self.ikes.get(uniqueid)
        if replaced is not None and same_sa(replaced.sa, old):
            self.inherit(replacement, replaced)
        self.drop_ike(time_ns, uniqueid)

    def _ike_update(self, time_ns: int, name: str, section: Section, message: Message) -> None:
        # The section still has the old addresses; the new ones stand beside it.
        new = {key: value for key in _ADDRESS if isinstance(value := message.get(key), str)}
        self._told(time_ns, name, section | new)

    def _child_updown(self, time_ns: int, name: str, section: Section, message: Message) -> None:
        for child in _children(section).values():
            self._note_child(child)
            if "yes" in message.get_all("up"):
                ike = self._told(time_ns, name, section)
                if ike is not None:
                    self.put_child(time_ns, ike, child)
            else:
                # charon tells the end of an IKE_SA before that of its CHILD_SAs, so it may be gone already.
                self.close_child(time_ns, self.conns.get(name), child)

    def _child_rekey(self, time_ns: int, name: str, section: Section, _: Message) -> None:
        for pair in _children(section).values():
            old, new = pair.get("old"), pair.get("new")
            if not isinstance(old, dict) or not isinstance(new, dict):
                continue
            self._note_child(old)
            self._note_child(new)
            # When both sides rekey at once, there are two new ones, and charon closes one of them without an event.
            self.doubtful |= child_key(old) in self.counted
            ike = self._told(time_ns, name, section)
            if ike is not None:
                self.close_child(time_ns, ike.conn, old, ike)
                self.put_child(time_ns, ike, new)

    def _note_child(self, child: Section) -> None:
        if self.window:
            self.window.children.add(uniqueid_of(child))

    def _told(self, time_ns: int, name: str, section: Section) -> Ike | None:
        """Take over the IKE_SA of an event; None when the event does not say which it is."""
        if not (uniqueid := uniqueid_of(section)):
            return None
        if name not in self.conns:
            self.doubtful = True  # whether it is configured, no event tells
            if self.window:
                self.window.conns.add(name)
        if self.window:
            self.window.fresh.add(uniqueid)
            self.window.gone.discard(uniqueid)
        former = self.ikes.get(uniqueid)
        if former is not None and not is_ike(former, name, section):
            if former.conn.name != name:
                self.stale.append((former.key, self.sa_value(former)))
            self.drop_ike(time_ns, uniqueid)
        return self.put_ike(time_ns, name, section)

    def put_ike(self, time_ns: int, name: str, section: Section) -> Ike:
        """Add an IKE_SA, or let the one with its uniqueid have the values in `section`; its children stay."""
        uniqueid, sa = uniqueid_of(section), without_tasks(section)
        ike = self.ikes.get(uniqueid)
        if ike is None:
            conn = self.conn(time_ns, name)
            key = (bucket_values.SA, self._subjects.key(name, uniqueid))
            since = max(0, time_ns - number(section.get("established")) * 1_000_000_000)
            ike = Ike(key, conn, uniqueid, sa, since, time_ns)
            self.ikes[uniqueid] = self._rows[key] = ike
            conn.ikes += 1
            self.mark(conn, time_ns)
        ike.sa = sa
        self.mark(ike, time_ns)
        return ike

    def conn(self, time_ns: int, name: str) -> Conn:
        """Return the connection, which is added if need be."""
        conn = self.conns.get(name)
        if conn is None:
            key = (bucket_values.CONN, self._subjects.key(name))
            conn = self.conns[name] = self._rows[key] = Conn(key, name, time_ns, time_ns)
            self.mark(conn, time_ns)
        return conn

    def inherit(self, new: Ike, old: Ike) -> None:
        """Let an IKE_SA have the children, the traffic and the age of the one it replaces."""
        new.since = min(new.since, old.since)
        add_all(new.closed, old.closed)
        for uniqueid in old.children:
            self._owners[uniqueid] = new
        new.children.update(old.children)
        old.children = {}

    def drop_ike(self, time_ns: int, uniqueid: str, *, tidy: bool = True) -> None:
        """Remove an IKE_SA, if it is there, and close its children with the counters last known."""
        ike = self.ikes.get(uniqueid)
        if ike is None:
            return
        for child in list(ike.children.values()):
            self.close_child(time_ns, ike.conn, child, ike)
        del self.ikes[uniqueid], self._rows[ike.key]
        self.changed[ike.key] = None
        ike.conn.ikes -= 1
        self.mark(ike.conn, time_ns)
        if tidy and not ike.conn.ikes and ike.conn.configured is False:
            self.drop_conn(ike.conn)

    def drop_conn(self, conn: Conn) -> None:
        del self.conns[conn.name], self._rows[conn.key]
        self.changed[conn.key] = None

    def put_child(self, time_ns: int, ike: Ike, child: Section) -> None:
        """Add a CHILD_SA to `ike`, or let it have these values; from another IKE_SA it is taken."""
        if not (uniqueid := uniqueid_of(child)):
            return
        owner = self._owners.get(uniqueid)
        if owner is not None and not same_child(owner.children[uniqueid], child):
            self.close_child(time_ns, owner.conn, owner.children[uniqueid], owner)
        elif owner is not None:
            self._take_child(time_ns, owner, uniqueid)
        ike.children[uniqueid] = child
        self._owners[uniqueid] = ike
        name = name_of(child)
        ike.conn.children[name] = ike.conn.children.get(name, 0) + 1
        add(ike.conn.live, name, traffic_of(child))
        self.mark(ike, time_ns)
        self.mark(ike.conn, time_ns)

    def close_child(self, time_ns: int, conn: Conn | None, child: Section, ike: Ike | None = None) -> None:
        """Remove a CHILD_SA, if it is there, and add up its last counters; `ike` is whose it was, if that is up."""
        owner = self._owners.get(uniqueid_of(child))
        if owner is not None and same_child(owner.children[uniqueid_of(child)], child):
            self._take_child(time_ns, owner, uniqueid_of(child))
            ike = owner
        key, last = child_key(child), traffic_of(child)
        counted = self.counted.get(key, nothing())
        more = minus(last, counted)
        self.counted[key] = plus(counted, more)
        if len(self.counted) > _COUNTED:  # no snapshot, which would tidy up, for as long as there are no buckets
            del self.counted[next(iter(self.counted))]
        for row in (ike, ike.conn if ike is not None else conn):
            if row is not None and any(more.values()):
                add(row.closed, name_of(child), more)
                self.mark(row, time_ns)

    def _take_child(self, time_ns: int, owner: Ike, uniqueid: str) -> None:
        child = owner.children.pop(uniqueid)
        del self._owners[uniqueid]
        name = name_of(child)
        owner.conn.children[name] -= 1
        owner.conn.live[name] = minus(owner.conn.live[name], traffic_of(child))
        self.mark(owner, time_ns)
        self.mark(owner.conn, time_ns)

    def owner(self, child_uniqueid: str) -> Ike | None:
        """Return the IKE_SA that has this CHILD_SA."""
        return self._owners.get(child_uniqueid)

    def mark(self, row: Ike | Conn, time_ns: int) -> None:
        """Note that the value of `row` has changed."""
        row.updated = time_ns
        if row.key in self._rows and not self._restoring:
            self.changed[row.key] = None

    def restore(self, key: Key, data: bytes, time_ns: int) -> bool:
        """Take over the value that an earlier start of the bridge left at `key`; tell whether it stands unchanged.

        What events have told since is newer; only the traffic is added up. What no bridge has written is to be deleted:
        others may write to a bucket too, and nothing there may be of a kind that cannot be told or written again.
        """
        self._restoring = True
        try:
            value = bucket_values.load(data)
            restored = self._restore_sa if key[0] == bucket_values.SA else self._restore_conn
            return restored(key, value, time_ns)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False
        finally:
            self._restoring = False
            if key not in self._rows:
                self.changed[key] = None

    def _restore_sa(self, key: Key, value: SaValue, time_ns: int) -> bool:
        name, uniqueid = value["ike"], value["uniqueid"]
        if key != (bucket_values.SA, self._subjects.key(name, uniqueid)):
            raise ValueError("the value of another key")
        sa = _section({**value["sa"], "uniqueid": uniqueid})
        children = [_section(child) for child in value["children"].values()]
        closed, since, updated = checked(value["closed"]), whole(value["since"]), whole(value["updated"])
        ike = self.ikes.get(uniqueid)
        if ike is not None and not is_ike(ike, name, sa):
            return False
        known = ike is not None
        ike = ike or self.put_ike(time_ns, name, sa)
        for child in children if not known else ():
            if self.owner(uniqueid_of(child)) is None:
                self.put_child(time_ns, ike, child)
        ike.since = min(ike.since, since)
        add_all(ike.closed, closed)
        if not known:
            ike.updated = updated
        return not known

    def _restore_conn(self, key: Key, value: ConnValue, time_ns: int) -> bool:
        name = value["conn"]
        if key != (bucket_values.CONN, self._subjects.key(name)):
            raise ValueError("the value of another key")
        if (configured := value["configured"]) not in (True, False, None):
            raise ValueError("no state of a configuration")
        config = _section(value["config"])
        closed, since, updated = checked(value["closed"]), whole(value["since"]), whole(value["updated"])
        known = name in self.conns
        conn = self.conn(time_ns, name)
        if conn.configured is None:
            conn.configured, conn.config = configured, config
        conn.since = min(conn.since, since)
        add_all(conn.closed, closed)
        if not known:
            conn.updated = updated
        return not known


def _section(value: Section) -> Section:
    """Return `value` as charon could have sent it; ValueError when it could not."""
    return _wire.decode(_wire.encode(value))


def uniqueid_of(section: Section) -> str:
    """Return the uniqueid in a section, empty when it has none."""
    uniqueid = section.get("uniqueid")
    return uniqueid if isinstance(uniqueid, str) else ""


def name_of(child: Section) -> str:
    return str(child.get("name", ""))


def child_key(child: Section) -> tuple[str, str]:
    """Return what tells a CHILD_SA from all others, those of former runs of charon too."""
    return uniqueid_of(child), str(child.get("spi-in", ""))


def same_child(one: Section, other: Section) -> bool:
    return child_key(one) == child_key(other)


def same_sa(one: Section, other: Section) -> bool:
    """Tell whether two sections with the same uniqueid are of one IKE_SA."""
    return all(one.get(key) == other.get(key) for key in ("initiator-spi", "responder-spi"))


def is_ike(ike: Ike, name: str, section: Section) -> bool:
    """Tell whether a section with the uniqueid of `ike` is about it."""
    return ike.conn.name == name and same_sa(ike.sa, section)


def without_tasks(section: Section) -> Section:
    """Return what stays: tasks end at once, and no event tells that."""
    return {key: value for key, value in section.items() if key not in _TASKS and key != "child-sas"}


def _children(section: Section) -> dict[str, Any]:
    children = section.get("child-sas")
    return {k: v for k, v in children.items() if isinstance(v, dict)} if isinstance(children, dict) else {}
