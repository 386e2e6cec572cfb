"""to_msgpack and to_json against msgpack, json and the reference codec."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import reference
from generate import RECORDINGS, SEED, exact, mutated, noise, packed, recorded, trees
from hypothesis import given

from vicifast._wire import Transcoder, decode, encode, to_json, to_msgpack
from vicifast.errors import DecodeError

msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed: pip install strongswan-vicifast[bridge]")

MESSAGE: dict[str, Any] = {
    "name": 'gw-"1"\\',
    "odd text": "ä\u2028\U0001d11e\0\n\x7f",
    "": "",
    "sections": {"": {}, "s": {"l": [], "items": ["", "x", "ü"]}},
}
BLOB = b"\x30\x82\xff"


def to_format(format: Literal["msgpack", "json"]) -> Callable[..., bytes]:
    return to_msgpack if format == "msgpack" else to_json


def compact(message: Any) -> bytes:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


# --- the two formats ---


def test_a_message_of_text() -> None:
    assert to_msgpack(encode(MESSAGE)) == msgpack.packb(MESSAGE)
    assert to_json(encode(MESSAGE)) == compact(MESSAGE)


def test_the_empty_message() -> None:
    assert to_msgpack(b"") == b"\x80"
    assert to_json(b"") == b"{}"


@pytest.mark.parametrize("byte", range(128))
def test_every_ascii_character(byte: int) -> None:
    for text in (chr(byte), "x" * 30 + chr(byte), chr(byte) * 3 + "tail"):
        message = {"k": text, "l": [text]}
        assert to_json(encode(message)) == compact(message)
        assert to_msgpack(encode(message)) == msgpack.packb(message)


@pytest.mark.parametrize("name", ['"', "\\", "/", "<&>'", " ", "~" * 255, '"' * 255, "\\" * 255])
def test_names_are_escaped(name: str) -> None:
    message: dict[str, Any] = {name: {name: [name], "k": name}}
    assert to_json(encode(message)) == compact(message)
    assert to_msgpack(encode(message)) == msgpack.packb(message)


@pytest.mark.parametrize("text", "\x80 \u07ff \u0800 \ud7ff \ue000 \uffff \U00010000 \U0010ffff".split(" "))
def test_the_edges_of_utf8_are_text(text: str) -> None:
    for padded in (text, "x" * 15 + text, text * 20):
        message = {"k": padded}
        assert to_json(encode(message)) == compact(message)
        assert to_msgpack(encode(message)) == msgpack.packb(message)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80",
        b"\xbf\xbf",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xc2",
        b"\xc2\x20",
        b"\xe0\x9f\xbf",
        b"\xe1\x80",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xf0\x8f\xbf\xbf",
        b"\xf1\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xfe",
        b"\xff",
    ],
)
def test_what_is_not_utf8_is_marked(raw: bytes) -> None:
    for padded in (raw, b"x" * 17 + raw, raw + b"tail", b"\xc3\xa4" + raw + b'"'):
        data = encode({"k": padded, "l": ["text", padded]})
        assert msgpack.unpackb(to_msgpack(data)) == {"k": padded, "l": ["text", padded]}
        assert to_msgpack(data) == reference.to_msgpack(reference.parse(data))
        assert to_json(data) == reference.to_json(reference.parse(data))
        assert list(json.loads(to_json(data))["k"]) == ["$base64"]


@pytest.mark.parametrize("size", [*range(1, 14), 1000, 65533, 65534, 65535])
def test_base64_of_every_length(size: int) -> None:
    blob = random.Random(size).randbytes(size - 1) + b"\xff"
    data = encode({"k": blob})
    assert to_json(data) == reference.to_json(reference.parse(data))
    assert msgpack.unpackb(to_msgpack(data)) == {"k": blob}


def test_base64_output() -> None:
    assert to_json(encode({"k": b"\xff"})) == b'{"k":{"$base64":"/w=="}}'
    assert to_json(encode({"data": "ab"}), binary=["data"]) == b'{"data":{"$base64":"YWI="}}'
    assert to_json(encode({"data": ""}), binary=["data"]) == b'{"data":{"$base64":""}}'


def test_binary_fields() -> None:
    message = {"data": "text", "l": ["a", BLOB], "s": {"data": "text", "l": ["text"]}, "other": "text"}
    data = encode(message)
    blobs = ["data", "l", "s", "absent"]
    assert msgpack.unpackb(to_msgpack(data, binary=blobs)) == message | {"data": b"text", "l": [b"a", BLOB]}
    assert to_msgpack(data, binary=blobs) == reference.to_msgpack(reference.parse(data), blobs)
    assert to_json(data, binary=blobs) == reference.to_json(reference.parse(data), blobs)
    assert Transcoder("msgpack", binary=blobs).transcode(data) == to_msgpack(data, binary=blobs)
    assert Transcoder("json", binary=iter(blobs)).transcode(data) == to_json(data, binary=blobs)
    assert to_json(data, binary=()) == to_json(data)


# --- sizes at which msgpack changes its heads ---


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256, 65535])
def test_heads_of_text_and_bin(size: int) -> None:
    for value in ("v" * size, b"\xff" * size):
        messages: list[dict[str, Any]] = [{"k": value}, {"l": [value, value], "n" * min(size, 255): value}]
        for message in messages:
            data = encode(message)
            expected = decode(data) if isinstance(value, str) or not size else decode(data, values=bytes)
            assert to_msgpack(data) == msgpack.packb(expected)
            assert to_json(data) == reference.to_json(reference.parse(data))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 255, 256, 65535, 65536])
def test_heads_of_arrays_and_maps(count: int) -> None:
    items: dict[str, Any] = {"l": [str(number % 10) for number in range(count)], "after": "x"}
    pairs: dict[str, Any] = {f"{number:04x}": "" for number in range(count)}
    messages = [items, {"s": items}, pairs]
    if count < 65535:
        messages.append({"s": pairs, "after": {}})
    for message in messages:
        data = encode(message)
        assert to_msgpack(data) == msgpack.packb(message)
        assert to_json(data) == compact(message)


def test_many_sections_with_heads_of_every_size() -> None:
    sizes = [0, 1, 14, 15, 16, 17, 300, 2, 15, 16]
    message: dict[str, Any] = {
        f"s{at}": {f"k{number}": {"t": []} for number in range(size)} for at, size in enumerate(sizes)
    }
    assert to_msgpack(encode(message)) == msgpack.packb(message)
    assert to_json(encode(message)) == compact(message)


def test_the_longest_output() -> None:
    escaped = encode({f"{number}": "\0" * 65000 for number in range(8)})
    assert json.loads(to_json(escaped)) == decode(escaped)
    empty = b"\x04\x00" + b"\x05\x00\x00" * 174_000 + b"\x06"
    assert to_json(empty) == compact({"": [""] * 174_000})
    assert to_msgpack(empty) == msgpack.packb({"": [""] * 174_000})
    blobs = b"\x04\x00" + b"\x05\x00\x01\xff" * 131_000 + b"\x06"
    assert json.loads(to_json(blobs)) == {"": [{"$base64": "/w=="}] * 131_000}


def test_64_nested_sections_at_most() -> None:
    deepest = b"\x01\x01s" * 64 + b"\x04\x00\x05\x00\x01x\x06" + b"\x02" * 64
    assert msgpack.unpackb(to_msgpack(deepest)) == decode(deepest) == json.loads(to_json(deepest))
    for format in (to_msgpack, to_json):
        with pytest.raises(DecodeError) as caught:
            format(b"\x01\x00" * 65 + b"\x02" * 65)
        assert caught.value.offset == 128


# --- names used twice ---


def test_all_pairs_are_kept_in_order() -> None:
    section = (("x", b"2"), ("x", [b"3"]))
    data = packed((("a", b"1"), ("s", section), ("a", b"4"), ("s", ()), ("data", b"5"), ("data", b"6")))
    pairs = msgpack.unpackb(to_msgpack(data, binary=["data"]), object_pairs_hook=tuple)
    assert pairs[:2] == (("a", "1"), ("s", (("x", "2"), ("x", ["3"]))))
    assert pairs[2:] == (("a", "4"), ("s", ()), ("data", b"5"), ("data", b"6"))
    assert msgpack.unpackb(to_msgpack(data)) == decode(data) == json.loads(to_json(data))


def test_more_pairs_than_a_map_of_two_bytes_holds() -> None:
    data = b"\x03\x00\x00\x00" * 131072
    assert to_msgpack(data) == b"\xdf\x00\x02\x00\x00" + b"\xa0\xa0" * 131072
    assert json.loads(to_json(data)) == {"": ""}


# --- against the reference ---


def same_as_reference(data: bytes, transcoders: dict[str, Transcoder]) -> bool:
    given_ = exact(data)
    blobs = {"data", "a", ""}
    try:
        tree = reference.parse(data)
    except reference.Malformed:
        with pytest.raises(DecodeError) as decoding:
            decode(given_)
        for reader in (to_msgpack, to_json, *(transcoder.transcode for transcoder in transcoders.values())):
            with pytest.raises(DecodeError) as caught:
                reader(given_)
            assert caught.value.args == decoding.value.args
            assert caught.value.offset == decoding.value.offset
        return False
    assert to_msgpack(given_) == reference.to_msgpack(tree), data.hex()
    assert to_msgpack(given_) == transcoders["msgpack"].transcode(given_)
    assert to_msgpack(given_, binary=blobs) == reference.to_msgpack(tree, blobs), data.hex()
    assert to_json(given_) == transcoders["json"].transcode(given_)
    if reference.has_duplicates(tree):
        assert json.loads(to_json(given_)) == json.loads(reference.to_json(tree)), data.hex()
    else:
        assert to_json(given_) == reference.to_json(tree), data.hex()
        assert to_json(given_, binary=blobs) == reference.to_json(tree, blobs), data.hex()
    return True


@pytest.fixture(scope="module")
def transcoders() -> dict[str, Transcoder]:
    return {"msgpack": Transcoder("msgpack"), "json": Transcoder("json")}


@given(tree=trees)
def test_any_message(transcoders: dict[str, Transcoder], tree: reference.Tree) -> None:
    assert same_as_reference(packed(tree), transcoders)


def test_hostile_bytes(transcoders: dict[str, Transcoder]) -> None:
    print(f"VICIFAST_SEED={SEED}")
    rng = random.Random(SEED)
    seeds = [encode(MESSAGE), encode({"s": {"t": {"k": BLOB, "l": [BLOB, "x"]}}, "data": "x"})]
    accepted = 0
    for _ in range(3000):
        accepted += same_as_reference(noise(rng), transcoders)
        accepted += same_as_reference(mutated(rng, rng.choice(seeds)), transcoders)
    assert 50 < accepted < 5500


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_messages(path: Path, transcoders: dict[str, Transcoder]) -> None:
    for data in recorded(path):
        assert same_as_reference(data, transcoders)


def test_cut_at_every_byte(transcoders: dict[str, Transcoder]) -> None:
    data = encode({"k": "v", "s": {"l": ["", BLOB], "t": {"u": "ä"}}, "data": BLOB})
    for end in range(len(data) + 1):
        same_as_reference(data[:end], transcoders)


# --- misuse ---


@pytest.mark.parametrize("format", ["xml", "", "JSON", None, 1, b"json"])
def test_there_are_two_formats(format: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Transcoder(format)


@pytest.mark.parametrize("format", ["msgpack", "json"])
@pytest.mark.parametrize("wrong", ["", "text", None, 1, [], {}])
def test_only_bytes_are_read(format: Literal["msgpack", "json"], wrong: Any) -> None:
    with pytest.raises(TypeError):
        to_format(format)(wrong)
    with pytest.raises(TypeError):
        Transcoder(format).transcode(wrong)


@pytest.mark.parametrize("format", ["msgpack", "json"])
def test_too_long_a_message(format: Literal["msgpack", "json"]) -> None:
    with pytest.raises(DecodeError):
        to_format(format)(b"\x03\x00\x00\x00" * 131072 + b"\x02")
