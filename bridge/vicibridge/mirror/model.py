"""The SAs and connections of one gateway from its events and snapshots: a model without I/O.

`Mirror` applies events and collects in `changed` the keys of the buckets to write or delete; `Reconciliation` corrects
it from charon's lists. It contains the SAs whose end is reported by an event: established IKE_SAs, and CHILD_SAs until
they are replaced or closed, although charon still lists those for a while.

With `charon.reuse_ikesa`, the default, a CHILD_SA of one connection is created in the IKE_SA of another to the same
peer. So each CHILD_SA counts for the connection that configures a child of its name: see `_counting`.

A uniqueid identifies an SA only within one run of charon, so an SA is identified by it and by its SPIs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from vicifast import _wire
from vicifast._wire import Message

from ..contract import bucket_values
from ..contract.bucket_values import ConnValue, CountedValue, SaValue, Section, Traffic
from ..contract.subjects import Subjects, is_unestablished, section_of
from .counters import (
    NOTHING,
    Sums,
    add,
    add_all,
    checked,
    counters,
    minus,
    number,
    plus,
    together,
    traffic_of,
    whole,
)

BucketKey: TypeAlias = tuple[str, str]
"""A bucket and a key in it."""

_TASKS = ("tasks-queued", "tasks-active", "tasks-passive")
_COUNTED = 50_000  # closed CHILD_SAs whose counters are remembered
_DEPENDENT: tuple[Literal["up", "ike_sas", "child_sas", "ambiguous", "totals"], ...] = (
    "up",
    "ike_sas",
    "child_sas",
    "ambiguous",
    "totals",
)
_ADDRESS = ("local-host", "local-port", "remote-host", "remote-port")


@dataclass(slots=True, eq=False)
class Ike:
    """An established IKE_SA."""

    key: BucketKey
    conn: Conn
    uniqueid: str
    sa: Section
    since: int
    updated: int
    children: dict[str, Child] = field(default_factory=dict)
    closed: Sums = field(default_factory=dict)

    @property
    def counted(self) -> dict[str, CountedValue]:
        """By uniqueid: its children that count, or counted for a time, for another connection."""
        return {
            uniqueid: CountedValue(conn=child.conn.name, before=child.before)
            for uniqueid, child in self.children.items()
            if child.conn is not self.conn or any(child.before.values())
        }

    def value(self, node: str, boot: str) -> SaValue:
        live: Sums = {}
        for child in self.children.values():
            add(live, child.name, traffic_of(child.section))
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
            children={uniqueid: child.section for uniqueid, child in self.children.items()},
            counted=self.counted,
            closed=dict(self.closed),
            totals=together(self.closed, live),
        )


@dataclass(slots=True, eq=False)
class Child:
    """A CHILD_SA that is up."""

    section: Section
    ike: Ike
    conn: Conn
    """The connection that it counts for."""
    before: Traffic
    """The part of its traffic that is already in `closed` of connections."""
    part: Traffic
    """The other part, which is in `live` of `conn`."""
    ambiguous: str | None = None
    """Its name, if charon does not report which connection it belongs to."""

    @property
    def name(self) -> str:
        return name_of(self.section)


@dataclass(slots=True, eq=False)
class Conn:
    """A connection; `children` is the number of CHILD_SAs up that count for it, by name, and `live` their traffic."""

    key: BucketKey
    name: str
    since: int
    updated: int
    changed: int
    up: bool = False
    configured: bool | None = None
    config: Section = field(default_factory=dict)
    ikes: int = 0
    children: dict[str, int] = field(default_factory=dict)
    closed: Sums = field(default_factory=dict)
    live: Sums = field(default_factory=dict)

    @property
    def configures(self) -> list[str]:
        """The names of the children in its configuration."""
        children = self.config.get("children") if self.configured is not False else None
        return list(children) if isinstance(children, Mapping) else []

    @property
    def has_sas(self) -> bool:
        """Whether one of its IKE_SAs, or a CHILD_SA that counts for it, is up; `settle` copies this to `up`."""
        return bool(self.ikes or self.children)

    def value(self, node: str, boot: str, ambiguous: Mapping[str, int]) -> ConnValue:
        names = self.configures
        return ConnValue(
            v=1,
            node=node,
            boot=boot,
            conn=self.name,
            configured=self.configured,
            since=self.since,
            updated=self.updated,
            up=self.up,
            changed=self.changed,
            ike_sas=self.ikes,
            child_sas=dict.fromkeys(names, 0) | self.children,
            ambiguous=[name for name in names if name in ambiguous],
            config=self.config,
            closed=dict(self.closed),
            totals=together(self.closed, self.live),
        )


class Counted(NamedTuple):
    """The counted traffic of a closed CHILD_SA, and the name of the connection that it counts for."""

    conn: str | None
    traffic: Traffic


@dataclass(slots=True)
class Window:
    """The objects that events reported during a snapshot, which are newer than its rows."""

    fresh: set[str] = field(default_factory=set)
    """IKE_SAs that came up or were reported."""
    gone: set[str] = field(default_factory=set)
    replaced: dict[str, str] = field(default_factory=dict)
    """The replacement of each rekeyed IKE_SA."""
    children: set[str] = field(default_factory=set)
    conns: set[str] = field(default_factory=set)
    """Connections that were unknown before."""


class Mirror:
    """The SAs and connections of `node`; `changed` holds the keys whose values have to be written."""

    def __init__(self, subjects: Subjects, node: str, boot: str) -> None:
        self.changed: dict[BucketKey, None] = {}
        self.ikes: dict[str, Ike] = {}
        self.conns: dict[str, Conn] = {}
        self.window: Window | None = None
        self.doubtful = False
        """Whether an event reported an object that only a snapshot can complete."""
        self.stale: list[tuple[BucketKey, SaValue]] = []
        """SAs of an earlier run of charon that an event showed to be gone."""
        self.counted: dict[tuple[str, str], Counted] = {}
        """Recently closed CHILD_SAs, so that later reports add only the difference."""
        self.ambiguous: dict[str, int] = {}
        """By name: the number of CHILD_SAs whose connection charon does not report."""
        self._subjects = subjects
        self._node = node
        self._boot = boot
        self._restoring = False
        self._rows: dict[BucketKey, Ike | Conn] = {}
        self._children: dict[str, Child] = {}  # by uniqueid
        self._named: dict[str, dict[str, Child]] = {}  # the same by name and uniqueid
        self._claims: dict[str, dict[str, Conn]] = {}  # by the name of a child: the connections that configure it
        self._reclaimed: set[str] = set()  # names whose claims have changed since `assign`
        self._unclaimed: set[str] = set()  # names of children that no connection configured at the last snapshot
        self._touched: dict[Conn, None] = {}  # since `settle`
        self._restored: dict[BucketKey, Mapping[str, object]] = {}  # the parts of values that depend on other keys
        self._handlers: dict[str, Callable[[int, str, Section, Message], None]] = {
            "ike-updown": self._ike_updown,
            "ike-rekey": self._ike_rekey,
            "ike-update": self._ike_update,
            "child-updown": self._child_updown,
            "child-rekey": self._child_rekey,
        }

    def __len__(self) -> int:
        return len(self._rows)

    def keys(self) -> list[BucketKey]:
        """Return every key that has a value."""
        return list(self._rows)

    def value(self, key: BucketKey) -> bytes | None:
        """Return the value for `key`; None if the key must not exist."""
        row = self.row_value(key)
        return None if row is None else bucket_values.dump(row)

    def row_value(self, key: BucketKey) -> SaValue | ConnValue | None:
        """Return the value for `key` before encoding as JSON."""
        row = self._rows.get(key)
        if row is None:
            return None
        return self.sa_value(row) if isinstance(row, Ike) else self.conn_value(row)

    def sa_value(self, ike: Ike) -> SaValue:
        return ike.value(self._node, self._boot)

    def conn_value(self, conn: Conn) -> ConnValue:
        return conn.value(self._node, self._boot, self.ambiguous)

    def event(self, time_ns: int, event: str, raw: bytes) -> None:
        """Apply an event that was read at `time_ns`; raises DecodeError if `raw` is malformed."""
        handler = self._handlers.get(event)
        if handler is None:
            return
        message = Message(raw)
        name, section = section_of(message)
        if section is not None and not is_unestablished(message):
            handler(time_ns, name, section.to_dict(), message)
            self.settle(time_ns)

    def _ike_updown(self, time_ns: int, name: str, section: Section, message: Message) -> None:
        if "yes" in message.get_all("up"):
            self._apply_ike(time_ns, name, section)
        elif uniqueid := uniqueid_of(section):
            if self.window:
                self.window.gone.add(uniqueid)
                self.window.fresh.discard(uniqueid)
            self.drop_ike(time_ns, uniqueid)

    def _ike_rekey(self, time_ns: int, name: str, section: Section, _: Message) -> None:
        old, new = section.get("old"), section.get("new")
        if not isinstance(old, dict) or not isinstance(new, dict):
            return
        replacement = self._apply_ike(time_ns, name, new)
        uniqueid = uniqueid_of(old)
        if replacement is None or uniqueid in ("", replacement.uniqueid):
            return
        if self.window:
            self.window.gone.add(uniqueid)
            self.window.replaced[uniqueid] = replacement.uniqueid
        replaced = self.ikes.get(uniqueid)
        if replaced is not None and same_sa(replaced.sa, old):
            self.inherit(time_ns, replacement, replaced)
        self.drop_ike(time_ns, uniqueid)

    def _ike_update(self, time_ns: int, name: str, section: Section, message: Message) -> None:
        # The section still has the old addresses; the new ones are next to it.
        new = {key: value for key in _ADDRESS if isinstance(value := message.get(key), str)}
        self._apply_ike(time_ns, name, section | new)

    def _child_updown(self, time_ns: int, name: str, section: Section, message: Message) -> None:
        for child in _children(section).values():
            self._note_child(child)
            if "yes" in message.get_all("up"):
                ike = self._apply_ike(time_ns, name, section)
                if ike is not None:
                    self.put_child(time_ns, ike, child)
                    self.doubtful |= self._is_new(name_of(child), ike.conn)
            else:
                # charon reports the end of an IKE_SA before that of its CHILD_SAs, so it may be gone already.
                self.close_child(time_ns, self.conns.get(name), child)

    def _is_new(self, child: str, own: Conn) -> bool:
        """Return whether a connection that configures this child may have been loaded since the last snapshot."""
        return own.configured is True and child not in self._claims and child not in self._unclaimed

    def _child_rekey(self, time_ns: int, name: str, section: Section, _: Message) -> None:
        for pair in _children(section).values():
            old, new = pair.get("old"), pair.get("new")
            if not isinstance(old, dict) or not isinstance(new, dict):
                continue
            self._note_child(old)
            self._note_child(new)
            # When both sides rekey at once, there are two new ones, and charon closes one of them without an event.
            self.doubtful |= child_key(old) in self.counted
            ike = self._apply_ike(time_ns, name, section)
            if ike is not None:
                self.close_child(time_ns, ike.conn, old, ike)
                self.put_child(time_ns, ike, new)

    def _note_child(self, child: Section) -> None:
        if self.window:
            self.window.children.add(uniqueid_of(child))

    def _apply_ike(self, time_ns: int, name: str, section: Section) -> Ike | None:
        """Apply the IKE_SA of an event; None if the event does not identify it."""
        if not (uniqueid := uniqueid_of(section)):
            return None
        if name not in self.conns:
            self.doubtful = True  # no event reports whether it is configured
            if self.window:
                self.window.conns.add(name)
        if self.window:
            self.window.fresh.add(uniqueid)
            self.window.gone.discard(uniqueid)
            self.window.replaced.pop(uniqueid, None)
        former = self.ikes.get(uniqueid)
        if former is not None and not is_ike(former, name, section):
            if former.conn.name != name:
                self.stale.append((former.key, self.sa_value(former)))
            self.drop_ike(time_ns, uniqueid)
        return self.put_ike(time_ns, name, section)

    def put_ike(self, time_ns: int, name: str, section: Section) -> Ike:
        """Add an IKE_SA, or update the one with its uniqueid from `section`; its children stay."""
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
        """Return the connection, adding it if necessary."""
        conn = self.conns.get(name)
        if conn is None:
            key = (bucket_values.CONN, self._subjects.key(name))
            conn = self.conns[name] = self._rows[key] = Conn(key, name, time_ns, time_ns, time_ns)
            self.mark(conn, time_ns)
        return conn

    def configure(self, time_ns: int, conn: Conn, configured: bool | None, config: Section) -> None:
        """Update the configuration of a connection; `assign` then moves the children affected."""
        former = set(conn.configures)
        conn.configured, conn.config = configured, config
        names = set(conn.configures)
        for name in former - names:
            del self._claims[name][conn.name]
            if not self._claims[name]:
                del self._claims[name]
        for name in names - former:
            self._claims.setdefault(name, {})[conn.name] = conn
        self._reclaimed |= former ^ names
        self.mark(conn, time_ns)

    def assign(self, time_ns: int) -> None:
        """Assign each CHILD_SA to the connection that it counts for by the present configuration."""
        self._assign(time_ns)
        self._unclaimed = self._named.keys() - self._claims.keys()

    def _assign(self, time_ns: int) -> None:
        for name in self._reclaimed:
            for child in list(self._named.get(name, {}).values()):
                if (child.conn, child.ambiguous is not None) != self._counting(name, child.ike.conn):
                    self._update(time_ns, child, child.ike, child.section)
        self._reclaimed.clear()

    def check_restored(self, time_ns: int) -> None:
        """Mark values that differ from the restored ones: an earlier run may have ended between related writes."""
        for key, restored in self._restored.items():
            row = self._rows.get(key)
            if row is not None and restored != self._depends(row):
                self.mark(row, time_ns)
        self._restored.clear()

    def _depends(self, row: Ike | Conn) -> Mapping[str, object]:
        """Return the part of a value that depends on other keys as well."""
        if isinstance(row, Ike):
            return {"counted": row.counted}
        value = self.conn_value(row)
        return {key: value[key] for key in _DEPENDENT}

    def settle(self, time_ns: int, conns: Iterable[Conn] | None = None) -> None:
        """Record which of the connections, by default those that were touched, have come up or gone down."""
        for conn in self._touched if conns is None else conns:
            if conn.up != conn.has_sas:
                conn.up, conn.changed = conn.has_sas, time_ns
                self.mark(conn, time_ns)
        self._touched.clear()

    def inherit(self, time_ns: int, new: Ike, old: Ike) -> None:
        """Transfer the children, the traffic and the age of an IKE_SA to its replacement."""
        new.since = min(new.since, old.since)
        add_all(new.closed, old.closed)
        for child in list(old.children.values()):
            self._update(time_ns, child, new, child.section)

    def drop_ike(self, time_ns: int, uniqueid: str, *, tidy: bool = True) -> None:
        """Remove an IKE_SA, if present, and close its children with their last known counters."""
        ike = self.ikes.get(uniqueid)
        if ike is None:
            return
        for child in list(ike.children.values()):
            self.close_child(time_ns, ike.conn, child.section)
        del self.ikes[uniqueid], self._rows[ike.key]
        self.changed[ike.key] = None
        ike.conn.ikes -= 1
        self.mark(ike.conn, time_ns)
        if tidy and not ike.conn.ikes and ike.conn.configured is False:
            self.drop_conn(ike.conn)

    def drop_conn(self, conn: Conn) -> None:
        del self.conns[conn.name], self._rows[conn.key]
        self.changed[conn.key] = None

    def put_child(self, time_ns: int, ike: Ike, section: Section, before: Traffic | None = None) -> None:
        """Add a CHILD_SA to `ike` or update it; one in another IKE_SA is moved.

        `before` is the part of its traffic that connections have already counted as closed.
        """
        if not (uniqueid := uniqueid_of(section)):
            return
        child = self._children.get(uniqueid)
        if child is not None and not same_child(child.section, section):
            self.close_child(time_ns, child.ike.conn, child.section)
            child = None
        if child is not None:
            self._update(time_ns, child, ike, section)
            return
        counted = self.counted.pop(child_key(section), None)
        before = before or (counted.traffic if counted else NOTHING)
        child = Child(section, ike, ike.conn, before, NOTHING)
        self._count(time_ns, child, *self._counting(child.name, ike.conn))

    def close_child(self, time_ns: int, conn: Conn | None, section: Section, ike: Ike | None = None) -> None:
        """Remove a CHILD_SA, if present, and add its last counters to the sums.

        `conn` and `ike` are the connection and the IKE_SA that it was in, if known and up.
        """
        key, last, name = child_key(section), traffic_of(section), name_of(section)
        child = self._children.get(uniqueid_of(section))
        counting: str | None
        if child is not None and same_child(child.section, section):
            self._uncount(time_ns, child)
            self._doubt(time_ns, child, None)
            ike, counting, name = child.ike, child.conn.name, child.name
            closed, more = last, minus(last, child.before)
        else:
            known = self.counted.get(key) or Counted(self._counting(name, conn)[0].name if conn else None, NOTHING)
            counting = known.conn
            closed = more = minus(last, known.traffic)
            last = plus(known.traffic, more)
        self.counted[key] = Counted(counting, last)
        if len(self.counted) > _COUNTED:  # snapshots clean this up, but wait for the buckets
            del self.counted[next(iter(self.counted))]
        for row, traffic in ((ike, closed), (self.conns.get(counting) if counting is not None else None, more)):
            if row is not None and any(traffic.values()):
                add(row.closed, name, traffic)
                self.mark(row, time_ns)

    def _counting(self, name: str, own: Conn) -> tuple[Conn, bool]:
        """Return the connection that CHILD_SAs `name` in an IKE_SA of `own` count for, and whether it is ambiguous.

        It is `own` if that configures such a child, otherwise the only connection that does. If several do, charon
        does not report which it is, and `own` counts.
        """
        claims = self._claims.get(name, {})
        if own.name in claims or not claims:
            return own, False
        return (next(iter(claims.values())), False) if len(claims) == 1 else (own, True)

    def _update(self, time_ns: int, child: Child, ike: Ike, section: Section) -> None:
        """Update a CHILD_SA and move it to `ike`; traffic that another connection has counted stays there."""
        name, former, part = child.name, child.conn, child.part
        self._uncount(time_ns, child)
        child.section, child.ike = section, ike
        conn, ambiguous = self._counting(child.name, ike.conn)
        # Restored traffic is already counted, by the right connection.
        if (conn, child.name) != (former, name) and any(part.values()) and not self._restoring:
            add(former.closed, name, part)
            child.before = plus(child.before, part)
        self._count(time_ns, child, conn, ambiguous)

    def _count(self, time_ns: int, child: Child, conn: Conn, ambiguous: bool) -> None:
        uniqueid, name, traffic = uniqueid_of(child.section), child.name, traffic_of(child.section)
        self._children[uniqueid] = child.ike.children[uniqueid] = child
        self._named.setdefault(name, {})[uniqueid] = child
        child.conn, child.part = conn, traffic if child.before is NOTHING else minus(traffic, child.before)
        conn.children[name] = conn.children.get(name, 0) + 1
        add(conn.live, name, child.part)
        self._doubt(time_ns, child, name if ambiguous else None)
        self.mark(child.ike, time_ns)
        self.mark(conn, time_ns)

    def _uncount(self, time_ns: int, child: Child) -> None:
        uniqueid, name, conn = uniqueid_of(child.section), child.name, child.conn
        del self._children[uniqueid], child.ike.children[uniqueid], self._named[name][uniqueid]
        if not self._named[name]:
            del self._named[name]
        conn.children[name] -= 1
        conn.live[name] = minus(conn.live[name], child.part)
        if not conn.children[name]:
            del conn.children[name], conn.live[name]
        self.mark(child.ike, time_ns)
        self.mark(conn, time_ns)

    def _doubt(self, time_ns: int, child: Child, ambiguous: str | None) -> None:
        """Record whether a CHILD_SA is ambiguous, and mark the connections that it may belong to."""
        former, child.ambiguous = child.ambiguous, ambiguous
        if former == ambiguous:
            return
        for name, more in ((former, -1), (ambiguous, 1)):
            if name is None:
                continue
            before = self.ambiguous.pop(name, 0)
            if before + more:
                self.ambiguous[name] = before + more
            if not before or not before + more:
                for conn in self._claims.get(name, {}).values():
                    self.mark(conn, time_ns)

    def child(self, uniqueid: str) -> Child | None:
        """Return the CHILD_SA, if it is up."""
        return self._children.get(uniqueid)

    def mark(self, row: Ike | Conn, time_ns: int) -> None:
        """Record that the value of `row` has changed."""
        row.updated = time_ns
        if row.key in self._rows and not self._restoring:
            self.changed[row.key] = None
            if isinstance(row, Conn):
                self._touched[row] = None

    def restore(self, key: BucketKey, data: bytes, time_ns: int) -> bool:
        """Restore the value that an earlier run of the bridge wrote to `key`; return whether it is unchanged.

        Events since then are newer: only the traffic is added. A value that no bridge wrote is invalid, and its key is
        deleted: other clients may write to a bucket, and a value that VICI cannot carry could not be reported.
        """
        restored = {bucket_values.SA: self._restore_sa, bucket_values.CONN: self._restore_conn}[key[0]]
        self._restoring = True
        try:
            return restored(key, bucket_values.load(data), time_ns)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False
        finally:
            self._restoring = False
            if key not in self._rows:
                self.changed[key] = None

    def _restore_sa(self, key: BucketKey, value: SaValue, time_ns: int) -> bool:
        name, uniqueid = value["ike"], value["uniqueid"]
        if key != (bucket_values.SA, self._subjects.key(name, uniqueid)):
            raise ValueError("the value belongs to another key")
        sa = _section({**value["sa"], "uniqueid": uniqueid})
        children = [_section(child) for child in value["children"].values()]
        before = {uniqueid: counters(child["before"]) for uniqueid, child in value["counted"].items()}
        closed, since, updated = checked(value["closed"]), whole(value["since"]), whole(value["updated"])
        ike = self.ikes.get(uniqueid)
        if ike is not None and not is_ike(ike, name, sa):
            return False
        known = ike is not None
        ike = ike or self.put_ike(time_ns, name, sa)
        for child in children if not known else ():
            if self.child(uniqueid_of(child)) is None:
                self.put_child(time_ns, ike, child, before.get(uniqueid_of(child)))
        ike.since = min(ike.since, since)
        add_all(ike.closed, closed)
        self._restored[key] = {"counted": value["counted"]}
        if not known:
            ike.updated = updated
        return not known

    def _restore_conn(self, key: BucketKey, value: ConnValue, time_ns: int) -> bool:
        name = value["conn"]
        if key != (bucket_values.CONN, self._subjects.key(name)):
            raise ValueError("the value belongs to another key")
        if (configured := value["configured"]) not in (True, False, None):
            raise ValueError("configured is not true, false or null")
        config = _section(value["config"])
        closed, since, updated = checked(value["closed"]), whole(value["since"]), whole(value["updated"])
        up, changed = bool(value["up"]), whole(value["changed"])
        known = name in self.conns
        conn = self.conn(time_ns, name)
        if conn.configured is None:
            self.configure(time_ns, conn, configured, config)
            self._assign(time_ns)
        conn.since = min(conn.since, since)
        add_all(conn.closed, closed)
        self._restored[key] = {key: value[key] for key in _DEPENDENT}
        if not known or up == conn.has_sas:
            conn.up, conn.changed = up, changed
        if not known:
            conn.updated = updated
        return not known


def _section(value: Section) -> Section:
    """Return `value` as charon would have sent it; raise ValueError if VICI cannot carry it."""
    return _wire.decode(_wire.encode(value))


def uniqueid_of(section: Section) -> str:
    """Return the uniqueid in a section, or an empty string."""
    uniqueid = section.get("uniqueid")
    return uniqueid if isinstance(uniqueid, str) else ""


def state_of(section: Section) -> str:
    """Return the state in a section, or an empty string."""
    state = section.get("state")
    return state if isinstance(state, str) else ""


def name_of(child: Section) -> str:
    return str(child.get("name", ""))


def child_key(child: Section) -> tuple[str, str]:
    """Return the identity of a CHILD_SA, which is unique even across runs of charon."""
    return uniqueid_of(child), str(child.get("spi-in", ""))


def same_child(one: Section, other: Section) -> bool:
    return child_key(one) == child_key(other)


def same_sa(one: Section, other: Section) -> bool:
    """Return whether two sections with the same uniqueid describe the same IKE_SA."""
    return all(one.get(key) == other.get(key) for key in ("initiator-spi", "responder-spi"))


def is_ike(ike: Ike, name: str, section: Section) -> bool:
    """Return whether a section with the uniqueid of `ike` describes the same IKE_SA."""
    return ike.conn.name == name and same_sa(ike.sa, section)


def without_tasks(section: Section) -> Section:
    """Return the section without children and tasks; tasks are brief, and no event reports their end."""
    return {key: value for key, value in section.items() if key not in _TASKS and key != "child-sas"}


def _children(section: Section) -> dict[str, Any]:
    children = section.get("child-sas")
    return {k: v for k, v in children.items() if isinstance(v, dict)} if isinstance(children, dict) else {}
