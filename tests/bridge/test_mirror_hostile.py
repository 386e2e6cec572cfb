"""The mirror accepts any events and lists of charon and any bucket content, and stays consistent."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from vicibridge.contract.subjects import Subjects
from vicibridge.mirror.model import Mirror
from vicibridge.mirror.reconcile import Reconciliation

from vicifast import encode

Section = dict[str, Any]
Step = tuple[Any, ...]

EVENTS = ("ike-updown", "ike-rekey", "ike-update", "child-updown", "child-rekey")
COUNTERS = ("bytes-in", "packets-in", "bytes-out", "packets-out")
STATES = ("ESTABLISHED", "CONNECTING", "REKEYED", "DELETING", "INSTALLED", "DELETED", "odd")

names = st.sampled_from(["a", "b", "up", ""])
texts = st.sampled_from(["", "1", "2", "3", "odd\udcff"])
children = st.sampled_from(["net", "lan", ""])
odd = st.one_of(texts, st.lists(texts, max_size=2), st.dictionaries(names, texts, max_size=2))


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A value that charon writes, or sometimes another one."""
    return st.one_of(usual, usual, usual, usual, odd)


def sections(name: st.SearchStrategy[str], **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Section]:
    usual = {"uniqueid": texts, "state": st.sampled_from(STATES), "name": name, **more}
    return st.fixed_dictionaries({}, optional={key: mostly(value) for key, value in usual.items()})


child = sections(
    children,
    **{"spi-in": texts},
    **dict.fromkeys(COUNTERS, st.sampled_from(["0", "7", "18446744073709551615", "-1", "odd"])),
)
pair = st.fixed_dictionaries({}, optional={"old": mostly(child), "new": mostly(child)})
ike = sections(
    names,
    **{"initiator-spi": texts, "established": st.sampled_from(["0", "99999999999999999999"]), "remote-host": texts},
    **{"child-sas": st.dictionaries(names, mostly(st.one_of(child, pair)), max_size=3)},
    **{"old": sections(names, **{"initiator-spi": texts}), "new": sections(names, **{"initiator-spi": texts})},
)
config = st.fixed_dictionaries(
    {}, optional={"children": mostly(st.dictionaries(children, mostly(st.just({})), max_size=3))}
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("event"), st.sampled_from(EVENTS), st.booleans(), names, mostly(ike)),
        st.tuples(st.just("event"), st.sampled_from(EVENTS), st.booleans(), names, mostly(ike)),
        st.tuples(st.just("begin")),
        st.tuples(st.just("conn"), names, mostly(config)),
        st.tuples(st.just("sa"), names, mostly(ike)),
        st.tuples(st.just("sa"), names, mostly(ike)),
        st.tuples(st.just("finish")),
        st.tuples(st.just("abandon")),
        st.tuples(st.just("restore"), st.integers(0, 9), names, odd),
        st.tuples(st.just("restart"), st.booleans()),
    ),
    max_size=40,
)


class Run:
    def __init__(self) -> None:
        self.subjects = Subjects("vici", "gw1")
        self.mirror = Mirror(self.subjects, "gw1", "b")
        self.snapshot: Reconciliation | None = None
        self.now = 10**18

    def step(self, step: Step) -> None:
        self.now += 1
        match step:
            case "event", event, up, name, section:
                self.mirror.event(self.now, event, (encode({"up": "yes"}) if up else b"") + encode({name: section}))
            case ("begin",) if self.snapshot is None:
                self.snapshot = Reconciliation(self.mirror)
            case "conn", name, config if self.snapshot:
                self.snapshot.conn(self.now, encode({name: config}))
            case "sa", name, section if self.snapshot:
                self.snapshot.sa(self.now, encode({name: section}))
            case ("finish",) if self.snapshot:
                for difference in self.snapshot.finish(self.now):
                    assert (difference.before is None) == (difference.kind == "appeared")
                    assert (difference.after is None) == (difference.kind == "vanished")
                self.snapshot = None
            case ("abandon",) if self.snapshot:
                self.snapshot.abandon()
                self.snapshot = None
            case "restore", which, field, value:
                self.forge(which, field, value)
            case "restart", order if self.snapshot is None:
                self.restart(order)

    def forge(self, which: int, field: str, value: object) -> None:
        """Restore a value that another client has changed."""
        keys = self.mirror.keys()
        if keys:
            key = keys[which % len(keys)]
            forged = json.loads(self.mirror.value(key) or b"")
            fields = sorted(forged)
            forged[fields[(which + len(field)) % len(fields)]] = value
            self.mirror.restore(key, json.dumps(forged).encode(), self.now)

    def restart(self, order: bool) -> None:
        """Every written value is restored unchanged."""
        former = {key: self.mirror.value(key) or b"" for key in sorted(self.mirror.keys(), reverse=order)}
        self.mirror = Mirror(self.subjects, "gw1", "b")
        taken = {key for key, data in former.items() if self.mirror.restore(key, data, self.now)}
        assert self.mirror.keys() == sorted(former, reverse=order) or set(self.mirror.keys()) >= former.keys()
        for key in taken:
            assert steady(self.mirror.value(key)) == steady(former[key])


def steady(data: bytes | None) -> Section:
    return {key: value for key, value in json.loads(data or b"").items() if key != "updated"}


def consistent(mirror: Mirror) -> None:
    kids = [kid for sa in mirror.ikes.values() for kid in sa.children.values()]
    assert all(kid.ike.children[uid] is kid for uid, kid in mirror._children.items())
    assert len(kids) == len(mirror._children) and all(mirror.ikes[kid.ike.uniqueid] is kid.ike for kid in kids)
    assert all(sa.key in mirror._rows and mirror.conns[sa.conn.name] is sa.conn for sa in mirror.ikes.values())
    assert len(mirror) == len(mirror.ikes) + len(mirror.conns)
    claims: dict[str, set[str]] = {}
    for name, conn in mirror.conns.items():
        assert conn.name == name and mirror._rows[conn.key] is conn
        assert conn.ikes == sum(sa.conn is conn for sa in mirror.ikes.values())
        for child in conn.configures:
            claims.setdefault(child, set()).add(name)
        counted = [kid for kid in kids if kid.conn is conn]
        assert conn.children == dict(Counter(kid.name for kid in counted))
    assert {name: set(conns) for name, conns in mirror._claims.items()} == claims
    assert all(kid.conn is mirror.conns.get(kid.conn.name) for kid in kids)
    assert mirror.ambiguous == dict(Counter(kid.ambiguous for kid in kids if kid.ambiguous is not None))
    named: dict[str, int] = {name: len(kids) for name, kids in mirror._named.items()}
    assert named == dict(Counter(kid.name for kid in kids))
    for uniqueid in (replaced := mirror.window.replaced if mirror.window else {}):
        for _ in replaced:
            uniqueid = replaced.get(uniqueid, "")
        assert not uniqueid or uniqueid not in replaced
    for key in mirror.keys():
        json.loads(mirror.value(key) or b"")


def rekeyed(old: str, new: str) -> Step:
    return "event", "ike-rekey", False, "a", {"old": {"uniqueid": old}, "new": {"uniqueid": new}}


@given(steps)
@example([("begin",), rekeyed("1", "2"), rekeyed("2", "1"), ("sa", "a", {"uniqueid": "1"})])
@example([("begin",), ("sa", "a", {"uniqueid": "1", "state": []})])
def test_arbitrary_events_lists_and_bucket_values(steps: list[Step]) -> None:
    run = Run()
    for step in steps:
        run.step(step)
        consistent(run.mirror)
