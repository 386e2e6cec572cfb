"""EnvelopeWriter, which a Transcoder puts around messages, against msgpack, json and the reference codec."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any, Literal

import pytest
import reference
from generate import RECORDINGS, SEED, exact, mutated, noise, packed, recorded, trees
from hypothesis import given, settings

from vicifast._wire import Decoder, EnvelopeWriter, Framer, Raw, Transcoder, decode, encode, packet, to_json, to_msgpack
from vicifast.errors import DecodeError

msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed: pip install strongswan-vicifast[bridge]")

Format = Literal["msgpack", "json"]

FORMATS: list[Format] = ["msgpack", "json"]
NOW = 1_700_000_000_123_456_789
LAST = 2**64 - 1
MESSAGE: dict[str, Any] = {"up": "yes", "gw": {"vips": ["10.0.0.1", ""], "": {}, "none": []}, "text": 'ä"\n\0'}
TEXTS = [
    "",
    "gw-1",
    'g"w\\1\n\0\x1f\x7f',
    "zürich \u2028\U0001d11e",
    "n" * 31,
    "n" * 32,
    "n" * 255,
    "\0" * 255,
    "ä" * 127,
]


def wrapped(
    format: Format,
    data: bytes,
    seq: int,
    *,
    node: str = "gw-1",
    boot: str = "b-1",
    time: int = 0,
    event: str = "",
    binary: tuple[str, ...] = (),
) -> bytes:
    """The documented envelope, written by other libraries."""
    fields: dict[str, Any] = {"v": 1, "node": node, "boot": boot, "seq": seq, "time": time, "event": event}
    if format == "json":
        head = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        return head[:-1].encode() + b',"data":' + to_json(data, binary=binary) + b"}\n"
    packer = msgpack.Packer()
    written = packer.pack_map_header(7)
    for name, value in fields.items():
        written += packer.pack(name)
        written += b"\xcf" + value.to_bytes(8, "big") if name in ("seq", "time") else packer.pack(value)
    return bytes(written + packer.pack("data") + to_msgpack(data, binary=binary))


def read(format: Format, payload: bytes) -> list[dict[str, Any]]:
    """All envelopes of a payload, as a subscriber reads them."""
    if format == "msgpack":
        return list(msgpack.Unpacker(io.BytesIO(payload)))
    assert payload.endswith(b"\n") or not payload
    return [json.loads(line) for line in payload.split(b"\n")[:-1]]


# --- output ---


@pytest.mark.parametrize("format", FORMATS)
def test_an_envelope(format: Format) -> None:
    envelope = EnvelopeWriter(format, "gw-1", "b-1")
    assert (envelope.seq, envelope.time) == (0, 0)
    envelope.time = NOW
    [found] = read(format, Transcoder(format, envelope=envelope, event="ike-updown").transcode(encode(MESSAGE)))
    assert list(found) == ["v", "node", "boot", "seq", "time", "event", "data"]
    assert found == {
        "v": 1,
        "node": "gw-1",
        "boot": "b-1",
        "seq": 1,
        "time": NOW,
        "event": "ike-updown",
        "data": MESSAGE,
    }
    assert (envelope.seq, envelope.time) == (1, NOW)


def test_envelopes_as_they_are_written() -> None:
    data = encode({"a": "b"})
    for format, expected in (
        (
            "msgpack",
            b"\x87\xa1v\x01\xa4node\xa1n\xa4boot\xa1b\xa3seq\xcf\0\0\0\0\0\0\0\x01\xa4time\xcf\0\0\0\0\0\0\0\x07"
            b"\xa5event\xa3log\xa4data\x81\xa1a\xa1b",
        ),
        ("json", b'{"v":1,"node":"n","boot":"b","seq":1,"time":7,"event":"log","data":{"a":"b"}}\n'),
    ):
        envelope = EnvelopeWriter(format, "n", "b")  # type: ignore[arg-type]
        envelope.time = 7
        assert Transcoder(format, envelope=envelope, event="log").transcode(exact(data)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text[:12]) + str(len(text)))
def test_names_of_any_text(format: Format, text: str) -> None:
    data = encode(MESSAGE)
    places: list[dict[str, Any]] = [
        {"node": text},
        {"boot": text},
        {"event": text},
        {"node": text, "boot": text, "event": text},
    ]
    for names in places:
        envelope = EnvelopeWriter(format, names.get("node", "gw-1"), names.get("boot", "b-1"))
        transcoder = Transcoder(format, envelope=envelope, event=names.get("event", ""))
        payload = transcoder.transcode(data)
        assert payload == wrapped(format, data, 1, **names)
        [found] = read(format, payload)
        assert found["data"] == MESSAGE and names.items() <= found.items()


@pytest.mark.parametrize("format", FORMATS)
def test_every_ascii_character_in_a_name(format: Format) -> None:
    for byte in range(128):
        text = chr(byte) * 3
        envelope = EnvelopeWriter(format, text, text)
        payload = Transcoder(format, envelope=envelope, event=text).transcode(b"")
        assert payload == wrapped(format, b"", 1, node=text, boot=text, event=text)
        assert format == "msgpack" or payload.index(b"\n") == len(payload) - 1


@settings(max_examples=100)
@given(tree=trees)
def test_any_message(tree: reference.Tree) -> None:
    data = packed(tree)
    for format in FORMATS:
        envelope = EnvelopeWriter(format, "gw-1", "b-1")
        plain = Transcoder(format, envelope=envelope, event="a")
        blobs = Transcoder(format, envelope=envelope, event="b", binary=["data", "a", ""])
        assert plain.transcode(exact(data)) == wrapped(format, data, 1, event="a")
        assert blobs.transcode(exact(data)) == wrapped(format, data, 2, event="b", binary=("data", "a", ""))
        payload = plain.transcode(data)
        assert payload == wrapped(format, data, 3, event="a")
        [found] = read(format, payload)
        assert found["seq"] == 3
        if format == "msgpack":
            assert found["data"] == msgpack.unpackb(reference.to_msgpack(tree))
        else:
            assert found["data"] == json.loads(reference.to_json(tree))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_messages(path: Path, format: Format) -> None:
    envelope = EnvelopeWriter(format, "gw-1", "b-1")
    transcoder = Transcoder(format, binary=["data"], envelope=envelope, event=path.stem)
    payload, sent = b"", recorded(path)
    for seq, data in enumerate(sent, 1):
        envelope.time = NOW + seq
        written = transcoder.transcode(data)
        assert written == wrapped(format, data, seq, time=NOW + seq, event=path.stem, binary=("data",))
        payload += written
    found = read(format, payload)
    assert [(one["seq"], one["time"]) for one in found] == [(seq, NOW + seq) for seq in range(1, len(sent) + 1)]
    if path.stem != "list-certs":  # its data is binary
        assert [one["data"] for one in found] == [decode(data) for data in sent]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("count", [0, 15, 16, 65535, 65536, 131072])
def test_many_pairs(format: Format, count: int) -> None:
    data = b"\x03\x00\x00\x00" * count
    envelope = EnvelopeWriter(format, "gw-1", "b-1")
    transcoder = Transcoder(format, envelope=envelope)
    for seq in (1, 2):
        assert transcoder.transcode(exact(data)) == wrapped(format, data, seq)


@pytest.mark.parametrize("format", FORMATS)
def test_large_messages(format: Format) -> None:
    envelope = EnvelopeWriter(format, "n" * 255, "b-1")
    transcoder = Transcoder(format, envelope=envelope, event="large")
    small = encode({"a": "b"})
    for seq, data in enumerate(
        [
            encode({f"{number}": "\0" * 65000 for number in range(8)}),
            small,
            b"\x04\x00" + b"\x05\x00\x00" * 174_000 + b"\x06",
            encode({f"{number:06}": {} for number in range(50_000)}),
            small,
            b"\x04\x00" + b"\x05\x00\x01\xff" * 131_000 + b"\x06",
            b"\x01\x01s" * 64 + b"\x02" * 64,
            b"",
        ],
        1,
    ):
        written = transcoder.transcode(exact(data))
        assert written == wrapped(format, data, seq, node="n" * 255, event="large")
        assert len(read(format, written)) == 1


# --- numbers ---


@pytest.mark.parametrize("format", FORMATS)
def test_a_malformed_message_uses_up_no_number(format: Format) -> None:
    envelope = EnvelopeWriter(format, "gw-1", "b-1")
    transcoder = Transcoder(format, envelope=envelope, event="log")
    data = encode(MESSAGE)
    for seq in range(1, 4):
        for end in range(1, len(data)):
            try:
                decode(data[:end])
                continue
            except DecodeError as error:
                expected = error
            with pytest.raises(DecodeError) as caught:
                transcoder.transcode(exact(data[:end]))
            assert caught.value.args == expected.args and caught.value.offset == expected.offset
            assert envelope.seq == seq - 1
        with pytest.raises(TypeError):
            transcoder.transcode("text")  # type: ignore[arg-type]
        assert transcoder.transcode(data) == wrapped(format, data, seq, event="log")
        assert envelope.seq == seq


def test_hostile_bytes() -> None:
    print(f"VICIFAST_SEED={SEED}")
    rng = random.Random(SEED)
    for format in FORMATS:
        envelope = EnvelopeWriter(format, "gw-1", "b-1")
        transcoder = Transcoder(format, envelope=envelope)
        seq = 0
        for _ in range(2000):
            data = noise(rng) if rng.random() < 0.5 else mutated(rng, encode(MESSAGE))
            try:
                reference.parse(data)
            except reference.Malformed:
                with pytest.raises(DecodeError):
                    transcoder.transcode(exact(data))
            else:
                seq += 1
                assert transcoder.transcode(exact(data)) == wrapped(format, data, seq)
            assert envelope.seq == seq
        assert 20 < seq < 1980


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "number", [0, 1, 127, 128, 255, 256, 2**31, 2**32 - 1, 2**32, 10**18, 2**63 - 1, 2**63, LAST - 1]
)
def test_numbers_of_every_size(format: Format, number: int) -> None:
    envelope = EnvelopeWriter(format, "gw-1", "b-1")
    transcoder = Transcoder(format, envelope=envelope)
    envelope.seq = number
    envelope.time = number + 1
    assert (envelope.seq, envelope.time) == (number, number + 1)
    payload = transcoder.transcode(b"")
    assert payload == wrapped(format, b"", number + 1, time=number + 1)
    [found] = read(format, payload)
    assert found["seq"] == found["time"] == envelope.seq == envelope.time == number + 1


@pytest.mark.parametrize("name", ["seq", "time"])
@pytest.mark.parametrize("number", [-1, -(2**63), 2**64, 10**30])
def test_numbers_are_of_64_bits(name: str, number: int) -> None:
    envelope = EnvelopeWriter("msgpack", "gw-1", "b-1")
    setattr(envelope, name, 5)
    with pytest.raises((OverflowError, ValueError)):
        setattr(envelope, name, number)
    assert getattr(envelope, name) == 5


@pytest.mark.parametrize("name", ["seq", "time"])
@pytest.mark.parametrize("wrong", [None, "1", b"1", [1], 1.5, 1e18])
def test_numbers_are_int(name: str, wrong: Any) -> None:
    envelope = EnvelopeWriter("json", "gw-1", "b-1")
    with pytest.raises(TypeError):
        setattr(envelope, name, wrong)
    assert getattr(envelope, name) == 0


@pytest.mark.parametrize("format", FORMATS)
def test_numbers_can_be_skipped_and_times_change(format: Format) -> None:
    envelope = EnvelopeWriter(format, "gw-1", "b-1")
    transcoder = Transcoder(format, envelope=envelope)
    payload = transcoder.transcode(b"")
    envelope.seq += 10
    envelope.time = 3
    payload += transcoder.transcode(b"") + transcoder.transcode(b"")
    envelope.time = NOW
    payload += transcoder.transcode(b"")
    assert [(one["seq"], one["time"]) for one in read(format, payload)] == [(1, 0), (12, 3), (13, 3), (14, NOW)]


# --- several envelopes and transcoders ---


@pytest.mark.parametrize("format", FORMATS)
def test_transcoders_that_share_an_envelope_count_together(format: Format) -> None:
    envelope = EnvelopeWriter(format, "gw-1", "b-1")
    events = ["log", "ike-updown", 'x"y', ""]
    transcoders = [Transcoder(format, envelope=envelope, event=event) for event in events]
    rng = random.Random(SEED)
    order = [rng.randrange(4) for _ in range(300)]
    payload = b""
    for number, at in enumerate(order):
        envelope.time = number
        payload += transcoders[at].transcode(encode({"line": f"{number}\n"}))
        with pytest.raises(DecodeError):
            transcoders[at - 1].transcode(b"\xff")
    found = read(format, payload)
    assert [one["event"] for one in found] == [events[at] for at in order]
    assert [one["seq"] for one in found] == list(range(1, 301))
    assert [one["time"] for one in found] == list(range(300))
    assert [one["data"] for one in found] == [{"line": f"{number}\n"} for number in range(300)]


def test_envelopes_count_apart() -> None:
    envelopes = {format: EnvelopeWriter(format, format, "b-1") for format in FORMATS}
    others = {format: EnvelopeWriter(format, "other", "b-2") for format in FORMATS}
    for seq in range(1, 4):
        for format in FORMATS:
            data = encode(MESSAGE)
            assert Transcoder(format, envelope=envelopes[format]).transcode(data) == wrapped(
                format, data, seq, node=format
            )
    for format in FORMATS:
        assert (envelopes[format].seq, others[format].seq) == (3, 0)
        [found] = read(format, Transcoder(format, envelope=others[format]).transcode(b""))
        assert (found["node"], found["boot"], found["seq"]) == ("other", "b-2", 1)


@pytest.mark.parametrize("format", FORMATS)
def test_a_transcoder_keeps_its_envelope(format: Format) -> None:
    transcoder = Transcoder(format, envelope=EnvelopeWriter(format, "n" * 255, "b-1"), event="e" * 255)
    for seq in range(1, 50):
        assert transcoder.transcode(b"") == wrapped(format, b"", seq, node="n" * 255, event="e" * 255)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_events_of_a_stream(format: Format, step: int) -> None:
    envelope = EnvelopeWriter(format, "gw-1", "b-1")
    names = ["log", "ike-updown"]
    readers = {name: Transcoder(format, envelope=envelope, event=name) for name in names}
    framer = Framer(Decoder(), {**readers, "raw": Raw()})
    malformed = b"\x07\x03log\xff"
    stream, expected = b"", []
    for number in range(20):
        name = names[number % 2]
        message = {"line": str(number)}
        stream += packet(7, name, message) + packet(1, None, message) + packet(7, "raw", message)
        stream += len(malformed).to_bytes(4, "big") + malformed
        expected.append(wrapped(format, encode(message), number + 1, time=NOW, event=name))
    envelope.time = NOW
    found: list[Any] = []
    for at in range(0, len(stream), step):
        framer.feed(stream[at : at + step])
        found += framer.packets()
    assert [body for kind, name, body in found if name in names and isinstance(body, bytes)] == expected
    assert sum(isinstance(body, DecodeError) for _, _, body in found) == 20
    assert [body for kind, _, body in found if kind == 1] == [{"line": str(number)} for number in range(20)]
    assert envelope.seq == 20 and framer.error is None


# --- misuse ---


def test_formats_must_agree() -> None:
    for format, other in (("msgpack", "json"), ("json", "msgpack")):
        envelope = EnvelopeWriter(format, "gw-1", "b-1")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="format"):
            Transcoder(other, envelope=envelope)  # type: ignore[arg-type]
        assert envelope.seq == 0


@pytest.mark.parametrize("format", ["xml", "", "JSON", None, 1, b"json"])
def test_there_are_two_formats(format: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        EnvelopeWriter(format, "gw-1", "b-1")


@pytest.mark.parametrize("text", ["\udcff", "a\ud800", "\udfff" * 10])
def test_names_are_text(text: str) -> None:
    for format in FORMATS:
        for node, boot in ((text, "b-1"), ("gw-1", text)):
            with pytest.raises(ValueError):
                EnvelopeWriter(format, node, boot)
        with pytest.raises(ValueError):
            Transcoder(format, envelope=EnvelopeWriter(format, "gw-1", "b-1"), event=text)


@pytest.mark.parametrize("text", ["n" * 256, "ä" * 128, "\0" * 256, "n" * 70_000], ids=len)
@pytest.mark.parametrize("format", FORMATS)
def test_names_are_no_longer_than_those_of_vici(format: Format, text: str) -> None:
    for node, boot in ((text, "b-1"), ("gw-1", text)):
        with pytest.raises(ValueError, match="255"):
            EnvelopeWriter(format, node, boot)


@pytest.mark.parametrize("text", ["n" * 256, "ä" * 128, "n" * 70_000], ids=len)
@pytest.mark.parametrize("format", FORMATS)
def test_events_are_no_longer_than_those_of_vici(format: Format, text: str) -> None:
    with pytest.raises(ValueError, match="255"):
        Transcoder(format, envelope=EnvelopeWriter(format, "gw-1", "b-1"), event=text)


@pytest.mark.parametrize("wrong", [1, "msgpack", {}, object()])
def test_an_envelope_is_an_envelope(wrong: Any) -> None:
    with pytest.raises(TypeError):
        Transcoder("msgpack", envelope=wrong)


@pytest.mark.parametrize("format", FORMATS)
def test_wrong_arguments(format: Format) -> None:
    kind: Any = EnvelopeWriter
    for arguments in ((), (format,), (format, "gw-1"), (format, "gw-1", "b-1", "more")):
        with pytest.raises(TypeError):
            kind(*arguments)
    envelope = kind(format, "gw-1", "b-1")
    for name in ("node", "boot", "v", "data"):
        with pytest.raises(AttributeError):
            setattr(envelope, name, "x")
    with pytest.raises(TypeError):
        type("Sub", (EnvelopeWriter,), {})


@pytest.mark.parametrize("format", FORMATS)
def test_without_an_envelope(format: Format) -> None:
    data = encode(MESSAGE)
    for transcoder in (Transcoder(format, event="log"), Transcoder(format, envelope=None)):
        assert transcoder.transcode(data) == (to_msgpack if format == "msgpack" else to_json)(data)


def test_a_transcoder_whose_init_failed_has_no_envelope() -> None:
    for wrong in ({"event": 5}, {"event": "e" * 256}, {"binary": "name"}, {"format": "msgpack"}):
        transcoder: Any = Transcoder.__new__(Transcoder)
        with pytest.raises((TypeError, ValueError)):
            transcoder.__init__(**{"format": "json", "envelope": EnvelopeWriter("json", "n", "b")} | wrong)
        assert transcoder.transcode(encode({"a": "b"})) == b"\x81\xa1a\xa1b"


def test_an_envelope_made_without_init_does_no_harm() -> None:
    envelope = EnvelopeWriter.__new__(EnvelopeWriter)
    assert (envelope.seq, envelope.time) == (0, 0)
    for format in FORMATS:
        try:
            transcoder = Transcoder(format, envelope=envelope, event="log")
        except ValueError:
            continue
        assert isinstance(transcoder.transcode(encode(MESSAGE)), bytes)
