"""The mirror between a model of charon and model buckets: any sequence of events, losses, snapshots, restarts, refused
writes, and changes that other clients make to the buckets."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from vicibridge.contract.subjects import Subjects
from vicibridge.mirror.ledger import Comparison, Ledger, Write
from vicibridge.mirror.model import BucketKey, Conn, Mirror
from vicibridge.mirror.reconcile import Difference, Reconciliation

from vicifast import encode

Section = dict[str, Any]

NAMES = ["gw", "up", "site a"]
CHILDREN = ["net", "lan"]
COUNTERS = ("bytes-in", "packets-in", "bytes-out", "packets-out")
GONE_SOON = ("REKEYED", "DELETED")
UNREPORTED = {"established", "state", *COUNTERS}

name = st.sampled_from(NAMES)
children = st.lists(st.sampled_from(CHILDREN), unique=True)
pick = st.integers(0, 1000)


class Charon:
    """One run of charon: its SAs, its connections, and its unread events."""

    runs = 0

    def __init__(self, conns: dict[str, Section], events: list[tuple[str, bytes]]) -> None:
        Charon.runs += 1
        self.run = Charon.runs
        self.conns = conns
        self.events = events
        self.ikes: dict[str, Section] = {}
        self.names: dict[str, str] = {}
        self.last_ike = self.last_child = 0

    def raise_(self, event: str, ike: str, section: Section, *, up: bool = False, **more: str) -> None:
        flag = encode({"up": "yes"}) if up else b""
        self.events.append((event, flag + encode(more) + encode({self.names[ike]: section})))

    def new_ike(self, name: str) -> str:
        self.last_ike += 1
        uid = str(self.last_ike)
        spi = f"{self.run:x}-{uid}"
        host = {"remote-host": "192.0.2.1", "remote-port": "500"}
        base = {"uniqueid": uid, "state": "ESTABLISHED", "initiator-spi": spi, "responder-spi": spi}
        self.ikes[uid] = {**base, **host, "established": "0", "child-sas": {}}
        self.names[uid] = name
        return uid

    def new_child(self, name: str) -> Section:
        self.last_child += 1
        spi = f"{self.run:x}-c{self.last_child}"
        base = {"name": name, "uniqueid": str(self.last_child), "state": "INSTALLED", "spi-in": spi}
        return {**base, **dict.fromkeys(COUNTERS, "0")}

    def bare(self, ike: str) -> Section:
        return {key: value for key, value in self.ikes[ike].items() if key != "child-sas"}

    def children(self, *states: str) -> list[tuple[str, str]]:
        return [
            (u, c) for u, ike in self.ikes.items() for c, child in ike["child-sas"].items() if child["state"] in states
        ]

    def row(self, ike: str) -> bytes:
        children = {f"{child['name']}-{uid}": child for uid, child in self.ikes[ike]["child-sas"].items()}
        return encode({self.names[ike]: {**self.ikes[ike], "child-sas": children}})

    def established(self) -> list[str]:
        return [uid for uid, ike in self.ikes.items() if ike["state"] == "ESTABLISHED"]


class Jetstream:
    """The buckets: the last revision and value of each key; None is a deletion marker."""

    def __init__(self) -> None:
        self.last = 0
        self.entries: dict[BucketKey, tuple[int, bytes | None]] = {}

    def put(self, key: BucketKey, value: bytes | None) -> int:
        self.last += 1
        self.entries[key] = self.last, value
        return self.last

    def values(self) -> dict[BucketKey, bytes]:
        return {key: value for key, (_, value) in self.entries.items() if value is not None}

    def after(self, bucket: str, revision: int) -> list[tuple[int, BucketKey]]:
        """Return the entries after `revision`."""
        return sorted(
            (number, key) for key, (number, _) in self.entries.items() if key[0] == bucket and number > revision
        )


class Source:
    """The mirror as the source of a `Ledger`."""

    def __init__(self, mirror: Mirror, now: int) -> None:
        self.mirror, self.now = mirror, now
        self.refused: list[BucketKey] = []

    @property
    def changed(self) -> dict[BucketKey, None]:
        return self.mirror.changed

    def keys(self) -> list[BucketKey]:
        return self.mirror.keys()

    def value(self, key: BucketKey) -> bytes | None:
        return self.mirror.value(key)

    def restore(self, key: BucketKey, data: bytes) -> bool:
        return self.mirror.restore(key, data, self.now)


BUCKETS = ("VICI_SA", "VICI_CONN")


def view(charon: Charon, subjects: Subjects) -> dict[BucketKey, Any]:
    """Return the expected keys and values, without counters and values that change with time."""
    rows: dict[BucketKey, Any] = {}
    for uid in charon.established():
        children = {
            c: steady(child) for c, child in charon.ikes[uid]["child-sas"].items() if child["state"] == "INSTALLED"
        }
        rows["VICI_SA", subjects.key(charon.names[uid], uid)] = (steady(charon.bare(uid)), children)
    for conn in {*charon.conns, *(charon.names[uid] for uid in charon.established())}:
        rows["VICI_CONN", subjects.key(conn)] = (conn in charon.conns, charon.conns.get(conn))
    return rows


def steady(section: Section) -> Section:
    return {key: value for key, value in section.items() if key not in UNREPORTED}


def shown(bucket: dict[BucketKey, bytes]) -> dict[BucketKey, Any]:
    rows: dict[BucketKey, Any] = {}
    for key, data in bucket.items():
        value = json.loads(data)
        if key[0] == "VICI_SA":
            rows[key] = (steady(value["sa"]), {c: steady(child) for c, child in value["children"].items()})
        else:
            rows[key] = (value["configured"], value["config"] if value["configured"] else None)
    return rows


class MirrorAndCharon(RuleBasedStateMachine):
    # Hypothesis omits some rules in each run, so the start sets up the state that most of them need.
    @initialize(
        configured=st.fixed_dictionaries(dict.fromkeys(NAMES, children)),
        up=st.lists(st.tuples(name, st.lists(st.sampled_from(CHILDREN), max_size=3)), max_size=4),
    )
    def start(self, configured: dict[str, list[str]], up: list[tuple[str, list[str]]]) -> None:
        self.subjects = Subjects("vici", "gw1")
        self.now = 1_000_000_000_000
        self.events: list[tuple[str, bytes]] = []
        self.charon = Charon({}, self.events)
        self.jetstream = Jetstream()
        self.clock = 0.0
        self.traffic: Counter[tuple[str, str]] = Counter()  # by the name of a child, and counter
        self.conns: dict[str, Conn] = {}
        self.last: dict[BucketKey, Section] = {}
        self.snapshot: Reconciliation | None = None
        self.reported_all = True  # no event was lost since the mirror last equalled charon
        self.counted_all = True
        self.kept_all = True  # no connection was removed, with its totals
        self.written_all = True  # every bridge wrote everything before it ended
        self.boots = 0
        self.boot()
        for conn, names in configured.items():
            self.configure(conn, names)
        for number, (conn, names) in enumerate(up):
            self.ike_up(conn)
            for child in names:
                self.child_up(number, child)

    def boot(self) -> None:
        self.boots += 1
        self.compared = self.boots == 1  # with charon, since the values of an earlier run were restored
        self.mirror = Mirror(self.subjects, "gw1", f"boot{self.boots}")
        self.ledger = Ledger(Source(self.mirror, self.now))
        self.flight: list[tuple[Write, int | None]] = []  # and its revision, if it has arrived
        self.comparison: Comparison | None = None
        self.snapshot = None
        for bucket in BUCKETS if self.boots % 2 else reversed(BUCKETS):
            self.comparison_begins(bucket, restore=True)
            self.comparison_ends()
        self.ledger.open.update(BUCKETS)

    @property
    def bucket(self) -> dict[BucketKey, bytes]:
        return self.jetstream.values()

    def time(self) -> int:
        self.now += 1
        return self.now

    # Actions of charon.

    @rule(conn=name, children=children)
    def configure(self, conn: str, children: list[str]) -> None:
        self.charon.conns[conn] = {"version": "IKEv2", "children": {child: {"mode": "TUNNEL"} for child in children}}

    @rule(conn=name)
    def unconfigure(self, conn: str) -> None:
        self.charon.conns.pop(conn, None)

    @rule(conn=name)
    def ike_up(self, conn: str) -> None:
        uid = self.charon.new_ike(conn)
        self.charon.raise_("ike-updown", uid, self.charon.bare(uid), up=True)

    @precondition(lambda self: self.charon.established())
    @rule(which=pick, child=st.sampled_from(CHILDREN))
    def child_up(self, which: int, child: str) -> None:
        uid = self.an_ike(which)
        new = self.charon.new_child(child)
        self.charon.ikes[uid]["child-sas"][new["uniqueid"]] = new
        self.child_event("child-updown", uid, f"{child}-{new['uniqueid']}", dict(new), up=True)

    def child_event(self, event: str, ike: str, child: str, section: Section, *, up: bool = False) -> None:
        self.charon.raise_(event, ike, {**self.charon.bare(ike), "child-sas": {child: section}}, up=up)

    def an_ike(self, which: int) -> str:
        established = self.charon.established()
        return established[which % len(established)]

    def a_child(self, which: int, *states: str) -> tuple[str, Section]:
        children = self.charon.children(*states)
        ike, child = children[which % len(children)]
        return ike, self.charon.ikes[ike]["child-sas"][child]

    @precondition(lambda self: self.charon.children("INSTALLED", "DELETING"))
    @rule(which=pick, amount=st.integers(1, 2**50))
    def traffic_flows(self, which: int, amount: int) -> None:
        ike, child = self.a_child(which, "INSTALLED", "DELETING")
        for counter in COUNTERS:
            child[counter] = str(int(child[counter]) + amount)
            self.traffic[child["name"], counter] += amount

    @precondition(lambda self: self.charon.children("INSTALLED"))
    @rule(which=pick, conn=name, children=children, restart=st.booleans())
    def another_connection_counts(self, which: int, conn: str, children: list[str], restart: bool) -> None:
        """Children may move to another connection while they are up."""
        for _ in range(2):
            self.traffic_flows(which, 1000)
            self.quiet()
            self.configure(conn, children)
        if restart:
            self.bridge_restarts()
            self.quiet()

    @precondition(lambda self: self.charon.children("INSTALLED"))
    @rule(which=pick)
    def child_rekeys(self, which: int) -> None:
        ike, old = self.a_child(which, "INSTALLED")
        new = self.charon.new_child(old["name"])
        self.charon.ikes[ike]["child-sas"][new["uniqueid"]] = new
        old["state"] = "REKEYED"
        self.child_event("child-rekey", ike, old["name"], {"old": dict(old), "new": dict(new)})

    @precondition(lambda self: self.charon.children("INSTALLED"))
    @rule(which=pick)
    def child_begins_to_end(self, which: int) -> None:
        self.a_child(which, "INSTALLED")[1]["state"] = "DELETING"

    @precondition(lambda self: self.charon.children("INSTALLED", "DELETING"))
    @rule(which=pick)
    def child_down(self, which: int) -> None:
        self.close(*self.a_child(which, "INSTALLED", "DELETING"))

    def close(self, ike: str, child: Section) -> None:
        del self.charon.ikes[ike]["child-sas"][child["uniqueid"]]
        self.child_event("child-updown", ike, f"{child['name']}-{child['uniqueid']}", child)

    @precondition(lambda self: self.charon.established())
    @rule(which=pick)
    def ike_rekeys(self, which: int) -> None:
        old = self.an_ike(which)
        new = self.charon.new_ike(self.charon.names[old])
        children = self.charon.ikes[old]["child-sas"]
        self.charon.ikes[new]["child-sas"], self.charon.ikes[old]["child-sas"] = children, {}
        before = self.charon.bare(old)
        self.charon.ikes[old]["state"] = "REKEYED"
        self.charon.raise_("ike-rekey", old, {"old": before, "new": self.charon.bare(new)})

    @precondition(lambda self: self.charon.established())
    @rule(which=pick, host=st.integers(2, 9))
    def ike_moves(self, which: int, host: int) -> None:
        uid = self.an_ike(which)
        new = {"remote-host": f"192.0.2.{host}", "remote-port": "4500"}
        self.charon.raise_("ike-update", uid, self.charon.bare(uid), **new)
        self.charon.ikes[uid] |= new

    @precondition(lambda self: self.charon.established())
    @rule(which=pick)
    def ike_down(self, which: int) -> None:
        uid = self.an_ike(which)
        self.charon.raise_("ike-updown", uid, self.charon.bare(uid))
        for child in self.charon.ikes[uid]["child-sas"].values():
            if child["state"] not in GONE_SOON:
                self.child_event("child-updown", uid, f"{child['name']}-{child['uniqueid']}", child)
        del self.charon.ikes[uid]

    @rule()
    def what_lingers_goes(self) -> None:
        for uid, ike in list(self.charon.ikes.items()):
            for child in [c for c, child in ike["child-sas"].items() if child["state"] in GONE_SOON]:
                del ike["child-sas"][child]
            if ike["state"] == "REKEYED":
                del self.charon.ikes[uid]

    @rule(what=st.sampled_from(["the connection", "charon", "charon, which has no configuration then"]))
    def breaks(self, what: str) -> None:
        self.events.clear()
        if what != "the connection":
            self.charon = Charon(self.charon.conns if what == "charon" else {}, self.events)
        self.reported_all = self.counted_all = False
        if self.snapshot is not None:
            self.snapshot.abandon()
            self.snapshot = None

    # Actions of the bridge.

    @rule(count=st.integers(1, 8))
    def events_come(self, count: int) -> None:
        for event, raw in self.events[:count]:
            self.mirror.event(self.time(), event, raw)
            self.consistent()
        del self.events[:count]

    @precondition(lambda self: self.events)
    @rule(count=st.integers(1, 3))
    def events_are_lost(self, count: int) -> None:
        del self.events[:count]
        self.reported_all = self.counted_all = False

    @rule(count=st.integers(1, 5), arrives=st.booleans())
    def write(self, count: int, arrives: bool) -> None:
        for write in self.ledger.writes(self.clock, count):
            self.flight.append((write, self.jetstream.put(write.key, write.value) if arrives else None))

    @precondition(lambda self: self.flight)
    @rule(count=st.integers(1, 5), taken=st.booleans())
    def jetstream_answers(self, count: int, taken: bool) -> None:
        """A write that has not arrived is refused or late; so is one whose acknowledgement is lost."""
        for write, revision in self.flight[:count]:
            if revision is not None and taken:
                self.ledger.stored(write.number, revision)
            elif taken:
                self.ledger.refused(write.number, self.clock)
            elif revision is not None:
                self.ledger.unsure(write.number)
                self.ledger.refused(write.number, self.clock)
            else:
                self.ledger.put_back(write.number)
        del self.flight[:count]

    @rule(seconds=st.floats(0.1, 100))
    def time_passes(self, seconds: float) -> None:
        self.clock += seconds

    @rule()
    def nats_goes_and_comes_back(self) -> None:
        self.flight.clear()
        self.ledger.recall()
        self.comparison = None

    @precondition(lambda self: self.comparison is None)
    @rule(bucket=st.sampled_from(BUCKETS))
    def comparison_begins(self, bucket: str, restore: bool = False) -> None:
        self.comparison = self.ledger.compare(bucket, restore=restore)
        self.looked_at, self.read = bucket, 0

    @precondition(lambda self: self.comparison)
    @rule(count=st.integers(1, 3))
    def comparison_goes_on(self, count: int) -> None:
        assert self.comparison
        for number, key in self.jetstream.after(self.looked_at, self.read)[:count]:
            self.comparison.entry(key, number, self.jetstream.entries[key][1])
            self.read = number

    @precondition(lambda self: self.comparison)
    @rule()
    def comparison_ends(self) -> None:
        assert self.comparison
        self.comparison_goes_on(1000)
        self.comparison.finish()
        self.comparison = None

    # Actions of other clients.

    @rule(bucket=st.sampled_from(BUCKETS))
    def bucket_is_purged(self, bucket: str) -> None:
        self.jetstream.entries = {k: entry for k, entry in self.jetstream.entries.items() if k[0] != bucket}

    @precondition(lambda self: self.bucket)
    @rule(which=pick, marked=st.booleans())
    def another_deletes(self, which: int, marked: bool) -> None:
        key = self.a_key(which)
        if marked:
            self.jetstream.put(key, None)
        else:
            del self.jetstream.entries[key]

    @precondition(lambda self: self.bucket)
    @rule(which=pick, value=st.sampled_from([b"", b"{}", b'{"v": 1}']))
    def another_writes(self, which: int, value: bytes) -> None:
        self.jetstream.put(self.a_key(which), value)

    @rule(bucket=st.sampled_from(BUCKETS))
    def another_adds(self, bucket: str) -> None:
        self.jetstream.put((bucket, "gw1.foreign"), b"{}")

    def a_key(self, which: int) -> BucketKey:
        keys = sorted(self.bucket)
        return keys[which % len(keys)]

    @rule()
    def bridge_restarts(self) -> None:
        self.events.clear()
        self.reported_all = self.counted_all = False
        if self.bucket != {key: self.mirror.value(key) for key in self.mirror.keys()}:
            self.written_all = False
            self.last.clear()
        self.boot()

    @precondition(lambda self: self.snapshot is None)
    @rule()
    def snapshot_begins(self) -> None:
        self.snapshot = Reconciliation(self.mirror)
        self.rows: list[bytes] = []
        self.unlisted = set(self.charon.ikes)

    @precondition(lambda self: self.snapshot is not None)
    @rule(which=pick)
    def charon_lists_one(self, which: int) -> None:
        self.unlisted &= set(self.charon.ikes)
        if self.unlisted:
            uid = sorted(self.unlisted)[which % len(self.unlisted)]
            self.unlisted.remove(uid)
            self.rows.append(self.charon.row(uid))

    @precondition(lambda self: self.snapshot is not None)
    @rule(between=st.integers(0, 3))
    def snapshot_ends(self, between: int) -> None:
        """List the rest and read the events raised by then; later events arrive between the rows."""
        assert self.snapshot
        self.rows += [self.charon.row(uid) for uid in sorted(self.unlisted & set(self.charon.ikes))]
        conns = [encode({conn: config}) for conn, config in self.charon.conns.items()]
        self.events_come(len(self.events))
        for conn in conns:
            self.snapshot.conn(self.time(), conn)
        for number, row in enumerate(self.rows):
            if number < between and self.charon.established():
                self.ike_down(number)
                self.events_come(1 + between)
            self.snapshot.sa(self.time(), row)
            self.consistent()
        differences = self.snapshot.finish(self.time())
        self.compared = True
        self.consistent()
        self.snapshot = None
        if self.reported_all:
            assert not [d for d in differences if d.bucket == "VICI_SA"]

    @rule()
    def quiet(self) -> None:
        """After a comparison without traffic the buckets equal charon, and each difference was reported."""
        self.what_lingers_goes()
        while self.charon.children("DELETING"):
            self.close(*self.a_child(0, "DELETING"))
        self.events_come(len(self.events))
        if self.snapshot is not None:
            self.snapshot.abandon()
            self.snapshot = None
        self.compare_and_write()
        before = shown(self.bucket)
        stale = [("vanished", *key) for key, _ in self.mirror.stale]
        reported = self.whole_snapshot()
        expected = view(self.charon, self.subjects)
        assert Counter((d.kind, d.bucket, d.key) for d in reported) == Counter(stale + differences(before, expected))
        self.write_all()
        assert shown(self.bucket) == expected
        assert self.ledger.revisions == {key: self.jetstream.entries[key][0] for key in self.bucket}
        assert not self.whole_snapshot() and not self.mirror.changed
        self.counts()
        self.reported_all = True

    def compare_and_write(self) -> None:
        self.write_all()  # a comparison ignores writes in flight
        for bucket in (self.looked_at, *BUCKETS) if self.comparison else BUCKETS:
            if not self.comparison:
                self.comparison_begins(bucket)
            self.comparison_ends()
            self.write_all()

    def write_all(self) -> None:
        """Accept all writes again."""
        while not self.ledger.settled or self.ledger.retry_in(self.clock) is not None:
            self.jetstream_answers(1000, taken=True)
            self.clock += 100
            self.write(5, arrives=True)
            self.jetstream_answers(1000, taken=True)
        assert self.ledger.complete and not any(self.ledger.unwritten(bucket) for bucket in BUCKETS)

    def whole_snapshot(self) -> list[Difference]:
        snapshot = Reconciliation(self.mirror)
        for conn, config in self.charon.conns.items():
            snapshot.conn(self.time(), encode({conn: config}))
        for uid in self.charon.ikes:
            snapshot.sa(self.time(), self.charon.row(uid))
        reported = snapshot.finish(self.time())
        self.compared = True
        self.consistent()
        assert not snapshot.unsettled and self.mirror.window is None
        return reported

    def counts(self) -> None:
        """Check that the connections count the SAs that are up, and all traffic."""
        ike_sas = Counter(self.charon.names[uid] for uid in self.charon.established())
        child_sas: dict[str, Counter[str]] = {conn: Counter() for conn in NAMES}
        ambiguous: set[str] = set()
        for uid in self.charon.established():
            own = self.charon.names[uid]
            for child in self.charon.ikes[uid]["child-sas"].values():
                configure = [conn for conn in NAMES if child["name"] in self.configured(conn)]
                counting = configure[0] if len(configure) == 1 else own
                child_sas[counting][child["name"]] += 1
                if len(configure) > 1 and own not in configure:
                    ambiguous.add(child["name"])
        for key, data in self.bucket.items():
            value = json.loads(data)
            if key[0] == "VICI_SA":
                continue
            conn, names = value["conn"], self.configured(value["conn"])
            assert value["ike_sas"] == ike_sas[conn]
            assert value["child_sas"] == dict.fromkeys(names, 0) | dict(child_sas[conn])
            assert set(value["ambiguous"]) == ambiguous & set(names)
        if self.written_all:  # nothing is counted twice
            assert all(count <= self.traffic[what] for what, count in self.counted().items())
        if self.counted_all and self.kept_all:
            assert self.counted() == +self.traffic

    def configured(self, conn: str) -> list[str]:
        return list(self.charon.conns.get(conn, {}).get("children", {}))

    def counted(self) -> Counter[tuple[str, str]]:
        """Return the sum of the totals of all connections."""
        together: Counter[tuple[str, str]] = Counter()
        for key, data in self.bucket.items():
            if key[0] == "VICI_CONN":
                together.update(totals(json.loads(data)))
        return together

    def consistent(self) -> None:
        """Check that values equal the mirror at any time, also during a snapshot, and that totals never decrease."""
        self.kept_all &= all(self.mirror.conns.get(name) is conn for name, conn in self.conns.items())
        self.conns = dict(self.mirror.conns)
        live: dict[str, Counter[str]] = {conn: Counter() for conn in NAMES}
        for ike in self.mirror.ikes.values():
            for child in ike.children.values():
                live[child.conn.name][child.name] += 1
        last: dict[BucketKey, Section] = {}
        for key in self.mirror.keys():
            value = last[key] = json.loads(self.mirror.value(key) or b"")
            if key[0] == "VICI_CONN":
                assert +Counter(value["child_sas"]) == live[value["conn"]]
                if self.compared:
                    assert value["up"] == bool(value["ike_sas"] or live[value["conn"]])
            if key in self.last:
                follows(key, self.last[key], value)
        self.last = last

    @invariant()
    def windows_end(self) -> None:
        assert (self.mirror.window is None) == (self.snapshot is None)


def follows(key: BucketKey, former: Section, value: Section) -> None:
    """Check that totals do not decrease for the same SA, or for a connection that was never removed."""
    if key[0] == "VICI_CONN":
        same = value["since"] <= former["since"]
        if same:
            assert value["changed"] >= former["changed"] + (value["up"] != former["up"])
    else:
        same = former["sa"]["initiator-spi"] == value["sa"]["initiator-spi"]
    if same:
        now = totals(value)
        assert all(count <= now[what] for what, count in totals(former).items()), (former, value)


def totals(value: Section) -> Counter[Any]:
    total: Counter[Any] = Counter()
    for child, traffic in value["totals"].items():
        for counter in COUNTERS:
            total[child, counter] = traffic[counter.replace("-", "_")]
    return +total


def differences(before: dict[BucketKey, Any], after: dict[BucketKey, Any]) -> list[tuple[str, str, str]]:
    appeared = [("appeared", *key) for key in after.keys() - before.keys()]
    vanished = [("vanished", *key) for key in before.keys() - after.keys()]
    return (
        appeared + vanished + [("changed", *key) for key in after.keys() & before.keys() if after[key] != before[key]]
    )


MirrorAndCharon.TestCase.settings = settings(max_examples=300, stateful_step_count=50)
TestMirror = MirrorAndCharon.TestCase
