"""Typed results: every value of real traffic in its field, and round trips to the same bytes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import pytest

from vicifast import Message, decode, encode
from vicifast import _wire as wire
from vicifast.commands import EVENTS
from vicifast.recording import Recording
from vicifast.results import (
    Alert,
    ChildRekey,
    ChildSa,
    ChildUpDown,
    IkeRekey,
    IkeSa,
    IkeUpdate,
    IkeUpDown,
    LogLine,
    ParsedEvent,
    parse_event,
)

DATA = Path(__file__).parent / "data"


def test_every_standalone_event_has_a_class() -> None:
    assert {kind.event for kind in get_args(ParsedEvent)} == {name for name, e in EVENTS.items() if e.standalone}


def recorded(name: str) -> list[tuple[str, bytes]]:
    packets = Recording.load(DATA / f"{name}.recording").packets("server")
    return [(packet.name or "", packet.message or b"") for packet in packets if packet.kind == wire.EVENT]


def forms(data: bytes) -> list[Any]:
    """Return a message in every form that a session returns."""
    return [decode(data), decode(data, values=bytes), Message(data), Message(data, values=bytes)]


def test_real_sas_there_and_back() -> None:
    sas = recorded("list-sas")
    assert len(sas) > 100
    for _, data in sas:
        first, *others = [IkeSa.from_message(message) for message in forms(data)]
        assert bytes(first.to_message()) == data
        assert others == [first] * 3
        assert first.extra == {} and all(child.extra == {} for child in first.children)


def test_real_events_there_and_back() -> None:
    kinds = set()
    for name, data in recorded("events"):
        first, *others = [parse_event(name, message) for message in forms(data)]
        assert (first.event, bytes(first.to_message())) == (name, data)
        assert others == [first] * 3
        assert first.extra == {}
        kinds.add(name)
    assert kinds == {"log", "ike-updown", "child-updown", "ike-rekey", "child-rekey", "ike-update"}


def test_real_sas_and_events_of_a_newer_charon() -> None:
    """Several key exchanges and per-CPU SAs, and the states of 6.1.0 that differ from 5.9.8."""
    [one, two] = [IkeSa.from_message(Message(data)) for _, data in recorded("6.1.0/list-sas")]
    assert one.ake1 == two.ake1 == "ML_KEM_768"
    children = [child for sa in (one, two) for child in sa.children]
    assert {(child.state, child.ake1) for child in children} == {("DELETED", None), ("INSTALLED", "ML_KEM_768")}
    assert all(child.per_cpu_sas == "yes" and child.cpu is None for child in children)
    states = set()
    for name, data in recorded("6.1.0/events"):
        event = parse_event(name, Message(data))
        assert bytes(event.to_message()) == data and event.extra == {}
        if isinstance(event, IkeRekey | ChildRekey):
            states.add((event.event, event.old.state, event.new.state))
    assert states == {("ike-rekey", "REKEYING", "ESTABLISHED"), ("child-rekey", "DELETED", "INSTALLED")}


def test_real_alerts_there_and_back() -> None:
    found = recorded("6.1.0/alerts-left") + recorded("6.1.0/alerts-right")
    for name, data in found:
        first, *others = [parse_event(name, message) for message in forms(data)]
        assert isinstance(first, Alert) and others == [first] * 3
        assert bytes(first.to_message()) == data and first.extra == {}
    assert len(found) > 70


def test_values_of_an_sa() -> None:
    [sa] = [
        sa for _, data in recorded("list-sas") if (sa := IkeSa.from_message(Message(data))).name == "site-104"
    ]  # fmt: skip
    assert (sa.uniqueid, sa.version, sa.state, sa.local_port) == (104, 2, "ESTABLISHED", 14500)
    assert (sa.initiator, sa.nat_remote, sa.nat_local) == (False, True, False)
    assert (sa.encr_alg, sa.encr_keysize, sa.ake1) == ("AES_CBC", 128, None)
    assert (sa.established, sa.reauth_time) == (timedelta(seconds=2), None)
    assert sa.initiator_spi == "075253f7b5af3366"
    assert (sa.remote_vips, sa.local_vips) == (("10.3.0.111",), ())
    [child] = sa.children
    assert (child.section, child.name, child.uniqueid) == ("site-104-lan-111", "site-104-lan", 111)
    assert (child.bytes_in, child.packets_out, child.integ_alg, child.esn) == (60, 1, None, False)
    assert (child.rekey_time, child.use_in) == (timedelta(seconds=3433), timedelta(0))
    assert child.remote_ts == ("10.1.0.1/32[tcp/40104]",)
    assert hash(sa) == hash(IkeSa.from_message(sa.to_message()))


def test_old_charons_leave_things_out() -> None:
    sa = IkeSa.from_message({"gw": {"child-sas": {"net": {"bytes-in": "7"}}}})
    assert (sa.uniqueid, sa.version, sa.state, sa.established) == (0, None, "", None)
    assert sa.children == (ChildSa(section="net", name="net", bytes_in=7),)
    assert IkeSa.from_message({"gw": {}}).children == ()


def test_unexpected_values_are_kept() -> None:
    section: dict[str, object] = {
        "uniqueid": "007",
        "version": ["2"],
        "initiator": "no",
        "established": "soon",
        "rekey-time": "9" * 30,
        "local-vips": [],
        "remote-vips": "10.0.0.1",
        "colour": "blue",
        "shape": {"sides": "3"},
        "child-sas": {"net-1": "lost", "net-2": {"name": "net"}},
    }
    sa = IkeSa.from_message({"gw": section})
    assert sa == IkeSa(name="gw", extra=section)
    assert sa.to_section() == section


def test_all_of_a_modern_child() -> None:
    section = {
        "esn": "1",
        "spi-in": "00c0ffee",
        "label": "6162",
        "ake1": "ML_KEM_768",
        "cpu": "3",
        "mark-in": "0000002a",
    }
    child = ChildSa.from_section("net-1", {"name": "net", **section})
    assert (child.esn, child.spi_in, child.label, child.ake1, child.cpu) == (True, "00c0ffee", "6162", "ML_KEM_768", 3)
    assert child.to_section() == {"name": "net", **section}


def test_counters_of_64_bits_and_late_times() -> None:
    section = {"name": "net", "bytes-in": str(2**64 - 1), "life-time": "-5"}
    child = ChildSa.from_section("net-1", section)
    assert (child.bytes_in, child.life_time) == (2**64 - 1, timedelta(seconds=-5))
    assert child.to_section() == section


@pytest.mark.parametrize("name", ["up", "", "local-host"])
@pytest.mark.parametrize("up", [True, False])
def test_connections_with_any_name(name: str, up: bool) -> None:
    data = (encode({"up": True}) if up else b"") + encode({name: {"uniqueid": 3}})
    event = parse_event("ike-updown", Message(data))
    assert event == IkeUpDown(ike=IkeSa(name=name, uniqueid=3), up=up)
    assert bytes(event.to_message()) == data
    update = encode({"local-host": "10.0.0.1", "local-port": 500}) + encode({name: {"local-host": "10.0.0.2"}})
    moved = parse_event("ike-update", Message(update))
    assert isinstance(moved, IkeUpdate)
    assert (moved.local_host, moved.local_port, moved.ike.local_host) == ("10.0.0.1", 500, "10.0.0.2")
    assert bytes(moved.to_message()) == update


@pytest.mark.parametrize(
    ("message", "direction"),
    [
        ({"up": "yes", "gw": {"state": "ESTABLISHED", "established": "0"}}, "up"),
        ({"gw": {"state": "DELETING"}}, "down"),
        ({"gw": {"state": "ESTABLISHED", "established": "2"}}, "down"),  # charon stops
        ({"gw": {"state": "REKEYING"}}, "down"),  # the peer does not answer
        ({"gw": {}}, "down"),
        ({"gw": {"state": "CONNECTING"}}, "failed"),
        ({"(unnamed)": {"state": "CONNECTING", "remote-id": "%any"}}, "failed"),
        ({"gw": {"state": "CREATED"}}, "failed"),
    ],
)
def test_a_negotiation_that_failed_is_not_down(message: dict[str, object], direction: str) -> None:
    event = parse_event("ike-updown", message)
    assert isinstance(event, IkeUpDown)
    assert event.direction == direction and event.up == (direction == "up")


def test_a_dict_cannot_hold_two_of_one_name() -> None:
    event = parse_event("ike-updown", decode(encode({"up": True}) + encode({"up": {"uniqueid": 3}})))
    assert event == IkeUpDown(ike=IkeSa(name="up", uniqueid=3), up=False)


def test_children_up_and_down() -> None:
    message = {"up": "yes", "gw": {"uniqueid": "1", "child-sas": {"net-2": {"name": "net", "uniqueid": "2"}}}}
    match parse_event("child-updown", message):
        case IkeUpDown():
            pytest.fail("a CHILD_SA is not an IKE_SA")
        case ChildUpDown(ike, child, direction):
            assert (ike.name, child.name, child.uniqueid, direction) == ("gw", "net", 2, "up")
    with pytest.raises(ValueError, match="child-updown message without a CHILD_SA"):
        parse_event("child-updown", {"gw": {"uniqueid": "1"}})


def test_rekeys() -> None:
    event = parse_event("ike-rekey", {"gw": {"old": {"uniqueid": "1"}, "new": {"uniqueid": "2"}}})
    assert isinstance(event, IkeRekey) and (event.old.uniqueid, event.new.uniqueid) == (1, 2)
    pair = {"old": {"name": "net", "bytes-in": "5"}, "new": {"name": "net", "bytes-in": "0"}}
    child = parse_event("child-rekey", {"gw": {"uniqueid": "1", "child-sas": {"net": pair}}})
    assert isinstance(child, ChildRekey)
    assert (child.ike.name, child.old.bytes_in, child.new.bytes_in) == ("gw", 5, 0)
    with pytest.raises(ValueError, match="ike-rekey message without the old or the new SA"):
        parse_event("ike-rekey", {"gw": {"old": {"uniqueid": "1"}}})
    with pytest.raises(ValueError, match="child-rekey message without the section of an SA"):
        parse_event("child-rekey", {"gw": {"uniqueid": "1"}})


def test_alerts() -> None:
    message = {"type": "cert-expired", "ike-sa": {"gw": {"uniqueid": "4"}}}
    alert = parse_event("alert", message)
    assert alert == Alert(type="cert-expired", ike=IkeSa(name="gw", uniqueid=4))
    assert alert.to_message().to_dict() == message
    alone = parse_event("alert", {"type": "shutdown-signal", "detail": "none"})
    assert alone == Alert(type="shutdown-signal", extra={"detail": "none"})
    assert alone.to_message().to_dict() == {"type": "shutdown-signal", "detail": "none"}


def test_log_lines() -> None:
    message = {"group": "IKE", "level": "1", "ikesa-name": "gw", "ikesa-uniqueid": "1", "msg": "hi \udcff"}
    line = parse_event("control-log", message)
    assert line == LogLine(group="IKE", level=1, ikesa_name="gw", ikesa_uniqueid=1, msg="hi \udcff")
    assert line.to_message().to_dict() == message


def test_messages_without_a_typed_form() -> None:
    with pytest.raises(
        ValueError, match="no class for the event 'child-state-installed'; there are classes for ike-updown, "
    ):
        parse_event("child-state-installed", {})
    with pytest.raises(ValueError, match="list-sa message without the section of an SA"):
        IkeSa.from_message({})
    with pytest.raises(ValueError, match="ike-updown message without the section of an SA"):
        parse_event("ike-updown", {"up": "yes"})
