"""Envelope, and envelopes(), against msgpack and json: what the bridge writes is read, anything else is left alone."""

from __future__ import annotations

import copy
import json
import pickle
import random
from pathlib import Path
from typing import Any, Literal

import pytest
from generate import RECORDINGS, SEED, collecting, mutated, only_where_c_code_is_interrupted, recorded

from vicifast import EnvelopeWriter, Transcoder, encode
from vicifast._wire import Envelope, envelopes

msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed: pip install strongswan-vicifast[bridge]")

Format = Literal["msgpack", "json"]
FORMATS: list[Format] = ["msgpack", "json"]
DATA = {"up": "yes", "gw": {"vips": ["10.0.0.1", ""], "": {}, "none": []}, "text": "ä"}


def payload(format: Format, *messages: bytes, event: str = "ike-updown", node: str = "gw1") -> bytes:
    envelope = EnvelopeWriter(format, node, "b1")
    transcoder = Transcoder(format, envelope=envelope, event=event)
    envelope.time = 2**62
    return b"".join(map(transcoder.transcode, messages))


def texts(value: Any) -> Any:
    """The same with bytes as texts, as a session returns them."""
    match value:
        case bytes():
            return value.decode("utf-8", "surrogateescape")
        case dict():
            return {key: texts(item) for key, item in value.items()}
        case list():
            return [texts(item) for item in value]
    return value


def expected(format: Format, data: bytes) -> list[dict[str, Any]]:
    if format == "json":
        found = [json.loads(line) for line in data.splitlines()]
    else:
        unpacker = msgpack.Unpacker(unicode_errors="surrogateescape")
        unpacker.feed(data)
        found = texts(list(unpacker))
        assert unpacker.tell() == len(data)
    for envelope in found:
        assert envelope.pop("v") == 1
    return [envelope | {"subject": "s"} for envelope in found]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("event", ["ike-updown", "log", "ga", "statu5", ""])
def test_envelopes_of_the_bridge(format: Format, event: str) -> None:
    found = envelopes(payload(format, encode(DATA), b"", event=event), "s", "gw1")
    assert found == [
        Envelope("gw1", "b1", 1, 2**62, event, DATA, "s"),
        Envelope("gw1", "b1", 2, 2**62, event, {}, "s"),
    ]
    assert [envelope.kind for envelope in found] == ["log" if event == "log" else "state"] * 2
    assert found[0].data is found[0].data


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_recorded_messages(format: Format, path: Path) -> None:
    messages = recorded(path)
    whole = payload(format, *messages)
    found = envelopes(whole, "s", "gw1")
    if format == "msgpack":
        assert found is not None
    for message in messages:
        each = payload(format, message)
        one = envelopes(each, "s", "gw1")
        if one is not None:
            assert [envelope.to_dict() for envelope in one] == expected(format, each)
        else:
            assert format == "json" and (b"\\" in each or b"$base64" in each)


@pytest.mark.parametrize("format", FORMATS)
def test_any_bytes(format: Format) -> None:
    rng = random.Random(SEED)
    good = payload(format, encode(DATA), encode({"msg": "x" * 40}), node="g" * 40)
    read = 0
    for _ in range(5000):
        data = mutated(rng, good)
        found = envelopes(data, "s", "g" * 40)
        if found is not None:
            read += 1
            assert [envelope.to_dict() for envelope in found] == expected(format, data)
    assert read
    for size in range(1, len(good)):
        cut = envelopes(good[:size], "s", "g" * 40)
        assert cut is None or [envelope.to_dict() for envelope in cut] == expected(format, good[:size])


def test_bytes_that_are_not_utf8() -> None:
    [envelope] = envelopes(payload("msgpack", encode({"a": b"x\xff", "l": [b"\xff"]})), "s", "gw1") or []
    assert envelope.data == {"a": "x\udcff", "l": ["\udcff"]}


GOOD = {"v": 1, "node": "gw1", "boot": "b", "seq": 1, "time": 1, "event": "log", "data": {"msg": "Ä"}}


def made(format: Format, **changes: Any) -> bytes:
    whole = GOOD | changes
    if format == "json":
        return json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()
    data: bytes = msgpack.packb(whole)
    small = b"\xa3seq\x01", b"\xa4time\x01"
    return data.replace(small[0], b"\xa3seq\xcf" + bytes(7) + b"\1").replace(
        small[1], b"\xa4time\xcf" + bytes(7) + b"\1"
    )


@pytest.mark.parametrize("format", FORMATS)
def test_a_form_that_the_caller_must_check(format: Format) -> None:
    assert envelopes(made(format), "s", "gw1") == [Envelope("gw1", "b", 1, 1, "log", {"msg": "Ä"}, "s")]
    nested: dict[str, Any] = {}
    for _ in range(9):
        nested = {"a": nested}
    others: list[dict[str, Any]] = [
        *({"event": event} for event in ("gap", "status")),
        *({"data": {"a": value}} for value in (1, -1, 1.5, True, False, None, [1], [True], {"b": 2})),
        *({"seq": number} for number in (2**63, -1, "1", 1.5)),
        *({"time": number} for number in (2**63, -1, "1")),
        {"data": nested},
        {"data": []},
        {"data": "x"},
        {"node": 1},
        {"node": "gw2"},
        {"boot": None},
        {"event": []},
        {"v": 2},
        {"more": "x"},
    ]
    for change in others:
        assert envelopes(made(format, **change), "s", "gw1") is None, change
        assert envelopes(made(format) + b"\n" * (format == "json") + made(format, **change), "s", "gw1") is None
    assert envelopes(b"", "s", "gw1") == []


@pytest.mark.parametrize(
    "data",
    ['{"a":"\\n"}', '{"$base64":"eA=="}', '{"a":{"$base64":"eA=="}}', '{\n"a":"b"}', '{"a":\r"b"}', '{"a":"\ud800"}'],
)
def test_json_that_is_left_alone(data: str) -> None:
    whole = made("json", data={}).replace(b"{}", data.encode("utf-8", "surrogatepass"))
    assert envelopes(whole, "s", "gw1") is None


@pytest.mark.parametrize("format", FORMATS)
def test_an_envelope_is_a_value(format: Format) -> None:
    [one] = envelopes(payload(format, encode(DATA)), "s", "gw1") or []
    assert pickle.loads(pickle.dumps(one)) == copy.copy(one) == copy.deepcopy(one) == one
    assert repr(one) == (
        f"Envelope(node='gw1', boot='b1', seq=1, time={2**62}, event='ike-updown', data={DATA}, subject='s')"
    )
    assert one != Envelope("gw1", "b1", 2, 2**62, "ike-updown", DATA, "s") and one != 1
    with pytest.raises(TypeError):
        hash(one)
    with pytest.raises(AttributeError):
        one.seq = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Envelope("gw1", "b1", 2, 2, "log", None, "s")  # type: ignore[arg-type]
    one.data["mine"] = "x"
    assert one.data["mine"] == "x"


@only_where_c_code_is_interrupted
def test_data_is_decoded_while_the_garbage_collector_uses_it() -> None:
    found = envelopes(payload("msgpack", *[encode(DATA)] * 50), "s", "gw1") or []
    with collecting(lambda: [envelope.data for envelope in found[:10]] and None):
        assert [envelope.data for envelope in found] == [DATA] * 50
