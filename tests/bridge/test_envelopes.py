"""Envelopes: the same content in both codecs, with the message's data inserted."""

from __future__ import annotations

import base64
from typing import get_args

import pytest
from harness import envelopes
from vicibridge.contract.codecs import CODECS
from vicibridge.contract.names import Codec, EventCodec
from vicibridge.events.envelopes import Envelopes, new_boot

import vicifast
from vicifast.commands import EVENTS

MESSAGE = {"up": "yes", "gw": {"uniqueid": "1", "vips": ["10.0.0.1", "10.0.0.2"], "none": [], "child-sas": {}}}
STANDALONE = [event.name for event in EVENTS.values() if event.standalone]


def test_the_table_has_every_codec() -> None:
    assert set(CODECS) == set(get_args(Codec)) == set(get_args(EventCodec)) - {"raw"}
    starts = [start for codec in CODECS.values() for start in codec.starts]
    assert len(starts) == len(set(starts))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("event", STANDALONE)
def test_every_event_in_every_codec(codec: Codec, event: str) -> None:
    build = Envelopes(codec, "gw1", "b-1")
    [envelope] = envelopes(build.wrap(1_700_000_000_123_456_789, event, vicifast.encode(MESSAGE)))
    assert envelope == {
        "v": 1,
        "node": "gw1",
        "boot": "b-1",
        "seq": 1,
        "time": 1_700_000_000_123_456_789,
        "event": event,
        "data": MESSAGE,
    }


@pytest.mark.parametrize("codec", CODECS)
def test_payload_of_several_envelopes(codec: Codec) -> None:
    build = Envelopes(codec, 'n"ö', "b")
    payload = b"".join(build.wrap(time, "log", vicifast.encode({"msg": f"line\n{time}"})) for time in range(300))
    read = envelopes(payload)
    assert [e["seq"] for e in read] == list(range(1, 301))
    assert [e["data"]["msg"] for e in read] == [f"line\n{time}" for time in range(300)]
    assert {e["node"] for e in read} == {'n"ö'}
    assert payload.count(b"\n") == 300 or codec == "msgpack"


@pytest.mark.parametrize(("codec", "value"), [("msgpack", b"\xff\xfe"), ("json", {"$base64": "//4="})])
def test_values_that_are_not_text(codec: Codec, value: object) -> None:
    raw = vicifast.encode({"msg": b"\xff\xfe"})
    [envelope] = envelopes(Envelopes(codec, "n", "b").wrap(1, "log", raw))
    assert envelope["data"]["msg"] == value
    assert base64.b64decode("//4=") == b"\xff\xfe"


@pytest.mark.parametrize("codec", CODECS)
def test_bridge_events_and_skipped_numbers(codec: Codec) -> None:
    build = Envelopes(codec, "gw1", "b")
    data = {"class": "log", "count": 5, "first_seq": None}
    assert envelopes(build.wrap_object(9, "gap", data))[0]["data"] == data
    assert build.skip(3) == (2, 4)
    assert envelopes(build.wrap_object(9, "gap", data))[0]["seq"] == 5


def test_malformed_message_gets_no_number() -> None:
    build = Envelopes("json", "gw1", "b")
    with pytest.raises(vicifast.DecodeError):
        build.wrap(1, "log", b"\x03")
    assert build.seq == 0


def test_boots_differ_and_sort_by_time() -> None:
    boots = {new_boot() for _ in range(100)}
    assert len(boots) == 100
    assert len({boot.partition("-")[0].__len__() for boot in boots}) == 1
