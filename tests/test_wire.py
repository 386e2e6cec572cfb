"""decode, encode and packet against tables, limits, hostile bytes and the reference codec."""

from __future__ import annotations

import array
import copy
import enum
import mmap
import pickle
import random
from collections import ChainMap, OrderedDict, UserDict, namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import reference
from generate import RECORDINGS, SEED, exact, mutated, noise, packed, recorded, trees
from hypothesis import given

from vicifast import _wire
from vicifast._wire import Decoder, decode, encode, packet
from vicifast.errors import DecodeError, EncodeError, ViciError

TABLE: list[tuple[dict[str, Any], bytes]] = [
    ({}, b""),
    ({"a": "b"}, b"\x03\x01a\x00\x01b"),
    ({"success": "yes"}, b"\x03\x07success\x00\x03yes"),
    ({"": ""}, b"\x03\x00\x00\x00"),
    ({"": {}}, b"\x01\x00\x02"),
    ({"": []}, b"\x04\x00\x06"),
    ({"s": {}}, b"\x01\x01s\x02"),
    ({"l": []}, b"\x04\x01l\x06"),
    ({"l": [""]}, b"\x04\x01l\x05\x00\x00\x06"),
    ({"l": ["x", "yz"]}, b"\x04\x01l\x05\x00\x01x\x05\x00\x02yz\x06"),
    ({"s": {"s": {"s": "s"}}}, b"\x01\x01s\x01\x01s\x03\x01s\x00\x01s\x02\x02"),
    ({" ~": "\0"}, b"\x03\x02 ~\x00\x01\0"),
    ({"k": "ä\U0001d11e"}, b"\x03\x01k\x00\x06\xc3\xa4\xf0\x9d\x84\x9e"),
    ({"k": "\udcff\udc80"}, b"\x03\x01k\x00\x02\xff\x80"),
    (
        {"a": "1", "s": {"l": ["2"], "b": "3"}, "c": "4"},
        b"\x03\x01a\x00\x011\x01\x01s\x04\x01l\x05\x00\x012\x06\x03\x01b\x00\x013\x02\x03\x01c\x00\x014",
    ),
    # The global counters, as get-counters sends them.
    ({"counters": {"": {"invalid": "0"}}}, b"\x01\x08counters\x01\x00\x03\x07invalid\x00\x010\x02\x02"),
]

# vici.md, malformed inputs: bytes, and the offset of the part that is wrong.
WRONG_ELEMENT: list[tuple[bytes, int]] = [
    *((bytes([kind]), 0) for kind in (0, 7, 8, 9, 0x80, 0xFF)),
    *((b"\x03\x01a\x00\x01b" + bytes([kind]), 6) for kind in (0, 7, 8, 0xFF)),
    *((b"\x01\x01s" + bytes([kind]), 3) for kind in (0, 7, 8, 0xFF)),
    *((b"\x04\x01l" + bytes([kind]), 3) for kind in (0, 7, 8, 0xFF)),
    (b"\x02", 0),
    (b"\x01\x00\x02\x02", 3),
    (b"\x05\x00\x01x", 0),
    (b"\x06", 0),
    (b"\x01\x00\x05\x00\x00\x02", 2),
    (b"\x01\x00\x06\x02", 2),
    (b"\x04\x00\x06\x06", 3),
    (b"\x04\x01l\x01\x00\x02\x06", 3),
    (b"\x04\x01l\x02\x06", 3),
    (b"\x01\x00\x04\x01l\x02\x02", 5),
    (b"\x04\x01l\x03\x00\x00\x00\x06", 3),
    (b"\x04\x01l\x04\x00\x06\x06", 3),
    (b"\x04\x01l\x05\x00\x01x\x04\x00\x06\x06", 7),
    (b"\x03\x01a\x00\x01btrailing", 6),
]
EARLY_END = [
    b"\x01\x00",
    b"\x01\x01s",
    b"\x01\x00\x01\x00\x02",
    b"\x01\x00\x04\x00\x06",
    b"\x04\x00",
    b"\x04\x01l\x05\x00\x01x",
]
CUT_SHORT = [  # bytes, and the offset of the truncated element
    (b"\x01", 0),
    (b"\x03", 0),
    (b"\x04", 0),
    (b"\x01\x01", 0),
    (b"\x03\x02a", 0),
    (b"\x04\xffa", 0),
    (b"\x03\x01a", 0),
    (b"\x03\x01a\x00", 0),
    (b"\x03\x01a\x00\x01", 0),
    (b"\x03\x01a\xff\xffbbb", 0),
    (b"\x04\x00\x05", 2),
    (b"\x04\x00\x05\x00", 2),
    (b"\x04\x00\x05\x00\x02x", 2),
]
# A surrogate, an overlong form, a code point too high, a character cut short, a stray byte.
NOT_UTF8 = [b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"a\xf0\x9d\x84", b"\xc3\xa4\xff"]
ANY_KIND: tuple[Any, ...] = ("", [], {})
BAD_NAME_BYTES = [0x00, 0x09, 0x0A, 0x1F, 0x7F, 0x80, 0xA0, 0xC3, 0xFF]


def nested(depth: int) -> dict[str, Any]:
    message: dict[str, Any] = {}
    for _ in range(depth):
        message = {"s": message}
    return message


def ordered(message: Any) -> Any:
    """The same message in a form whose comparison sees the order of names."""
    if isinstance(message, dict):
        return [(name, ordered(value)) for name, value in message.items()]
    return message


# --- both ways ---


@pytest.mark.parametrize(("message", "data"), TABLE)
def test_both_ways(message: dict[str, Any], data: bytes) -> None:
    assert encode(message) == data
    assert ordered(decode(data)) == ordered(message)
    assert Decoder().decode(exact(data)) == message
    assert reference.encode(message) == data
    assert reference.plain(reference.parse(data)) == message


@pytest.mark.parametrize("data", [data for _, data in TABLE])
def test_cut_at_every_byte(data: bytes) -> None:
    for end in range(len(data)):
        same_as_reference(data[:end])


@given(trees)
def test_any_message_reads_as_the_reference_reads_it(tree: reference.Tree) -> None:
    data = packed(tree)
    assert reference.parse(data) == tree
    same_as_reference(data)


# --- values and names ---


def test_values_as_bytes() -> None:
    data = b"\x03\x01a\x00\x02\xffb\x04\x01l\x05\x00\x01x\x06\x01\x01s\x03\x00\x00\x00\x02"
    assert decode(data, values=bytes) == {"a": b"\xffb", "l": [b"x"], "s": {"": b""}}
    assert Decoder(values=bytes).decode(data) == decode(data, values=bytes)
    assert encode(decode(data, values=bytes)) == data
    assert decode(data, values=str)["a"] == "\udcffb"


def test_binary_names_count_at_the_root_only() -> None:
    message = {"data": b"\x30\x82", "x": "t", "s": {"data": "t", "l": ["t"]}, "l": [b"\xff", b"t"]}
    data = encode(message)
    assert decode(data, binary=["data", "l", "s", "absent"]) == message
    assert Decoder(binary=iter({"data", "l"})).decode(data) == message
    assert decode(data, binary=()) == decode(data)
    assert decode(data, values=bytes, binary={"data"}) == decode(data, values=bytes)


def test_values_is_str_or_bytes() -> None:
    for wrong in (int, None, "str", bytearray):
        with pytest.raises((TypeError, ValueError)):
            decode(b"", values=wrong)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError)):
            Decoder(values=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_in_a_value(byte: int) -> None:
    data = b"\x03\x01k\x00\x01" + bytes([byte])
    assert decode(data) == {"k": bytes([byte]).decode("utf-8", "surrogateescape")}
    assert encode(decode(data)) == data


@pytest.mark.parametrize("raw", NOT_UTF8)
def test_values_that_are_not_utf8_survive(raw: bytes) -> None:
    data = encode({"k": raw, "l": [raw]})
    assert decode(data)["k"] == raw.decode("utf-8", "surrogateescape")
    assert encode(decode(data)) == data


@pytest.mark.parametrize("byte", range(256))
def test_names_are_printable_ascii(byte: int) -> None:
    for length in (1, 7, 8, 9, 16, 40):
        for at in {0, length // 2, length - 1}:
            name = bytearray(b"n" * length)
            name[at] = byte
            data = b"\x03" + bytes([length]) + name + b"\x00\x00"
            if 0x20 <= byte <= 0x7E:
                assert decode(exact(data)) == {name.decode(): ""}
                continue
            with pytest.raises(DecodeError) as caught:
                decode(exact(data))
            assert 1 <= caught.value.offset <= 2 + at


@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("byte", BAD_NAME_BYTES)
def test_a_bad_name_in_any_element(kind: int, byte: int) -> None:
    rest = {1: b"\x02", 3: b"\x00\x00", 4: b"\x06"}[kind]
    decoder = Decoder()
    assert decoder.decode(bytes([kind, 1, 0x20]) + rest)
    for reader in (decode, decoder.decode, decoder.decode):
        with pytest.raises(DecodeError) as caught:
            reader(bytes([kind, 1, byte]) + rest)
        assert caught.value.offset in (1, 2)


def test_the_last_of_two_wins_in_the_place_of_the_first() -> None:
    data = packed((("a", b"1"), ("b", b"2"), ("a", b"3")))
    assert list(decode(data).items()) == [("a", "3"), ("b", "2")]
    every_kind = (("k", b"1"), ("k", (("x", b""),)), ("k", [b"2"]))
    sections = (("s", (("k", b""),)), ("s", (("l", b""),)))
    assert decode(packed(every_kind + sections)) == {"k": ["2"], "s": {"l": ""}}


def test_results_are_independent() -> None:
    decoder = Decoder()
    data = encode({"s": {"l": ["1"], "t": {}}, "k": "v"})
    first: dict[str, Any] = decoder.decode(data)
    second = decoder.decode(data)
    first["s"]["l"].append("2")
    first["s"]["t"]["x"] = first["k"] = "changed"
    assert second == decoder.decode(data) == {"s": {"l": ["1"], "t": {}}, "k": "v"}


def test_the_input_may_change_or_go_afterwards() -> None:
    data = bytearray(encode({"name": "a value of some length", "l": ["item"]}))
    decoder = Decoder(values=bytes)
    message = decoder.decode(data)
    data[:] = b"\0" * len(data)
    data.clear()  # raises BufferError if the decoder still held on to the buffer
    assert message == {"name": b"a value of some length", "l": [b"item"]}


def test_a_decoder_outlives_many_names_and_values() -> None:
    decoder = Decoder()
    for turn in range(3):
        for number in range(5000):
            message = {f"n{number}": f"v{number * turn}", "s": {f"m{number % 97}": str(number % 7)}}
            assert decoder.decode(encode(message)) == message


def test_unique_section_names_do_not_displace_keys() -> None:
    decoder, keys = (
        Decoder(),
        dict.fromkeys(("uniqueid", "version", "state", "local-host", "encr-alg", "established"), ""),
    )
    first: dict[str, Any] = decoder.decode(encode({"s": keys}))
    for number in range(2000):
        last: dict[str, Any] = decoder.decode(encode({f"s{number}": keys}))
    assert all(one is other for one, other in zip(first["s"], last["s1999"], strict=True))


@pytest.mark.parametrize("values", [str, bytes])
def test_ordered_sections(values: type[str] | type[bytes]) -> None:
    keys = tuple((f"k{number}", b"v%d" % number) for number in range(6))
    tree = ("s", (*keys, ("t", ()), ("k0", b"last"))), ("k", [b"1"])
    decoder = Decoder(values=values, ordered=True)
    for _ in range(4):
        message: Any = decoder.decode(packed(tree))
        assert message == reference.plain(tree, values)
        assert {type(section) for section in (message, message["s"], message["s"]["t"])} == {OrderedDict}
        assert list(message["s"]) == [*(name for name, _ in keys), "t"]
        message["s"].move_to_end("k0")
        assert list(message["s"])[-1] == "k0"


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 255])
@pytest.mark.parametrize("values", [str, bytes])
@pytest.mark.parametrize("before", [(), (("a key", b"before the others"),)])
def test_decoder_distinguishes_texts_that_differ_in_one_byte(
    size: int, values: type[str] | type[bytes], before: tuple[tuple[str, bytes], ...]
) -> None:
    decoder, usual = Decoder(values=values), b"n" * size
    for at in range(size):
        other = usual[:at] + b"m" + usual[at + 1 :]
        for key, section, value in [
            (usual, usual, usual),
            (other, usual, usual),
            (usual, other, usual),
            (usual, usual, other),
        ]:
            tree = (*before, (section.decode(), ((key.decode(), value), ("l", [value, usual]))))
            assert decoder.decode(packed(tree)) == reference.plain(tree, values)


# --- input types ---


def test_any_contiguous_bytes_are_read() -> None:
    data = encode({"a": "b", "l": ["c"]})
    with mmap.mmap(-1, len(data)) as mapped:
        mapped[:] = data
        for given_ in (data, bytearray(data), memoryview(data), array.array("B", data), mapped):
            assert decode(given_) == {"a": "b", "l": ["c"]}
    assert decode(memoryview(b"xx" + data + b"yy")[2:-2]) == {"a": "b", "l": ["c"]}


@pytest.mark.parametrize("wrong", ["", "text", None, 1, [], {}, [1, 2]])
def test_nothing_else_is_read(wrong: Any) -> None:
    with pytest.raises(TypeError):
        decode(wrong)
    with pytest.raises(TypeError):
        Decoder().decode(wrong)


def test_strided_bytes_are_not_read() -> None:
    with pytest.raises((BufferError, TypeError, ValueError)):
        decode(memoryview(b"\x03\0\x01\0a\0\0\0\0\0")[::2])


# --- malformed ---


@pytest.mark.parametrize(("data", "offset"), WRONG_ELEMENT)
def test_a_wrong_element_is_refused_at_its_type(data: bytes, offset: int) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(exact(data))
    assert caught.value.offset == offset


@pytest.mark.parametrize("data", EARLY_END)
def test_an_open_section_or_list_is_refused_at_the_end(data: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(exact(data))
    assert caught.value.offset == len(data)


@pytest.mark.parametrize(("data", "start"), CUT_SHORT)
@pytest.mark.parametrize("before", [b"", b"\x03\x01a\x00\x01b", b"\x01\x01s"])
def test_an_element_cut_short_is_refused(before: bytes, data: bytes, start: int) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(exact(before + data))
    assert len(before) + start < caught.value.offset <= len(before) + len(data)


def test_error_has_reason_and_offset() -> None:
    with pytest.raises(DecodeError, match=r"at offset 3$") as caught:
        decode(b"\x01\x01s\x08")
    error = caught.value
    assert isinstance(error, ViciError) and isinstance(error, ValueError)
    assert error.reason and str(error).startswith(error.reason)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert (type(other), other.reason, other.offset) == (DecodeError, error.reason, 3)
        assert str(other) == str(error)


def same_as_reference(data: bytes, decoders: tuple[Decoder, Decoder] | None = None) -> bool:
    """Check that both refuse at a matching offset, or both return the same; return which."""
    text, raw = decoders or (Decoder(), Decoder(values=bytes))
    blobs = {"data", ""}
    readers: list[Callable[[Any], Any]] = [decode, text.decode, lambda given_: decode(given_, binary=blobs)]
    try:
        tree = reference.parse(data)
    except reference.Malformed as refusal:
        for reader in [*readers, raw.decode]:
            with pytest.raises(DecodeError) as caught:
                reader(exact(data))
            assert refusal.first <= caught.value.offset <= refusal.last, data.hex()
        return False
    expected = [ordered(reference.plain(tree))] * 2 + [ordered(reference.plain(tree, binary=blobs))]
    assert [ordered(reader(exact(data))) for reader in readers] == expected, data.hex()
    assert ordered(raw.decode(exact(data))) == ordered(reference.plain(tree, bytes)), data.hex()
    if not reference.has_duplicates(tree):
        assert encode(decode(data)) == data
        assert encode(decode(data, values=bytes)) == data
    return True


def test_hostile_bytes_give_a_message_or_a_decode_error() -> None:
    print(f"VICIFAST_SEED={SEED}")
    rng = random.Random(SEED)
    decoders = Decoder(), Decoder(values=bytes)
    seeds = [data for _, data in TABLE]
    seeds += [encode(nested(64)), encode({"l": ["item"] * 50, "k" * 255: "v" * 300})]
    accepted = 0
    for _ in range(15_000):
        accepted += same_as_reference(noise(rng), decoders)
        accepted += same_as_reference(mutated(rng, rng.choice(seeds)), decoders)
    assert 300 < accepted < 27_000


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_messages(path: Path) -> None:
    decoders = Decoder(), Decoder(values=bytes)
    for data in recorded(path):
        assert same_as_reference(data, decoders)


# --- limits ---


def test_64_nested_sections_at_most() -> None:
    assert decode(b"\x01\x00" * 64 + b"\x02" * 64)
    assert decode(encode(nested(64))) == nested(64)
    assert decode(encode({"l": [], **nested(64)}))
    for end in (b"", b"\x02" * 65):
        with pytest.raises(DecodeError) as caught:
            decode(b"\x01\x00" * 65 + end)
        assert caught.value.offset == 128
    with pytest.raises(EncodeError):
        encode(nested(65))


@pytest.mark.parametrize("end", [b"", b"\x02" * 174_000])
def test_a_nesting_bomb(end: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(b"\x01\x00" * 174_000 + end)
    assert caught.value.offset == 128


def test_a_list_at_the_deepest_place() -> None:
    deepest = b"\x01\x00" * 64 + b"\x04\x00\x05\x00\x01x\x06\x03\x01k\x00\x00" + b"\x02" * 64
    assert encode(decode(deepest)) == deepest


def test_deep_misuse_of_encode_is_an_error_and_no_crash() -> None:
    with pytest.raises(EncodeError):
        encode(nested(100_000))
    own: dict[str, Any] = {}
    own["me"] = own
    with pytest.raises(EncodeError, match="me.me"):
        encode(own)
    items: list[Any] = []
    items.append(items)
    with pytest.raises(EncodeError):
        encode({"l": items})


def test_names_to_255() -> None:
    assert decode(encode({"n" * 255: ""})) == {"n" * 255: ""}
    assert encode({"n" * 255: ""}) == b"\x03\xff" + b"n" * 255 + b"\x00\x00"
    for value in ANY_KIND:
        with pytest.raises(EncodeError):
            encode({"n" * 256: value})


@pytest.mark.parametrize("value", ["v" * 65535, b"v" * 65535, bytearray(65535), "ä" * 32767 + "v"])
def test_values_to_65535_bytes(value: Any) -> None:
    raw = value.encode() if isinstance(value, str) else bytes(value)
    assert len(raw) == 65535
    assert decode(encode({"k": value, "l": [value]}), values=bytes) == {"k": raw, "l": [raw]}
    with pytest.raises(EncodeError, match="k"):
        encode({"k": value + value[:1]})
    with pytest.raises(EncodeError, match=r"l\[1\]"):
        encode({"l": ["", value + value[:1]]})


def filled(size: int) -> dict[str, str]:
    """A message of exactly this many bytes, of values near their limit."""
    message: dict[str, str] = {}
    while size > 65535:
        message[f"{len(message):04}"] = "v" * 60000
        size -= 60000 + 8
    return message | {"last": "v" * (size - 8)}


def test_messages_to_512_kib() -> None:
    data = encode(filled(524288))
    assert len(data) == 524288
    assert decode(data) == filled(524288)
    with pytest.raises(EncodeError):
        encode(filled(524289))
    assert encode(filled(524287) | {"last": filled(524287)["last"] + "v"}) == data
    with pytest.raises(DecodeError):
        decode(reference.encode(filled(524289)))
    with pytest.raises(DecodeError):
        decode(bytes(10_000_000))


@pytest.mark.parametrize("depth", [1, 2, 64])
def test_messages_to_512_kib_that_end_with_sections(depth: int) -> None:
    def inside(size: int) -> dict[str, Any]:
        message: dict[str, Any] = filled(size - 4 * depth)
        for _ in range(depth):
            message = {"s": message}
        return message

    assert len(encode(inside(524288))) == 524288
    assert len(packet(_wire.CMD_REQUEST, "name", inside(524282))) == 4 + 524288
    for over in range(1, depth + 2):
        with pytest.raises(EncodeError):
            encode(inside(524288 + over))
        with pytest.raises(EncodeError):
            packet(_wire.CMD_REQUEST, "name", inside(524282 + over))


def test_messages_to_512_kib_that_end_with_a_list() -> None:
    most = {"l": ["v" * 65535] * 7 + ["v" * 65512]}
    assert len(encode(most)) == 524288 - 3
    assert len(encode(most | {"l": [*most["l"], ""]})) == 524288
    with pytest.raises(EncodeError):
        encode(most | {"l": [*most["l"], "v"]})
    with pytest.raises(EncodeError):
        encode(most | {"k": []})


@pytest.mark.parametrize("data", [b"\x05\x00\x00", b"\x05\x00\x01\xff"])
def test_the_longest_lists(data: bytes) -> None:
    count = (524288 - 3) // len(data)
    message = {"": [data[3:]] * count}
    encoded = encode(message)
    assert encoded == b"\x04\x00" + data * count + b"\x06"
    assert decode(encoded, values=bytes) == message


def test_the_most_pairs() -> None:
    assert decode(b"\x03\x00\x00\x00" * 131072) == {"": ""}
    assert decode(b"\x01\x00\x02" * 174762) == {"": {}}
    many = {f"{number:04x}": "" for number in range(65536)}
    assert decode(encode(many)) == many


# --- encode ---


class Number(enum.IntEnum):
    SEVEN = 7


class Word(enum.StrEnum):
    YES = "yes"


class Sixteen(int):
    def __repr__(self) -> str:
        return "0x10"


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (-17, "-17"),
        (2**63 - 1, "9223372036854775807"),
        (-(2**63), "-9223372036854775808"),
        (2**64, "18446744073709551616"),
        (Number.SEVEN, "7"),
        (Sixteen(16), "16"),
        (Word.YES, "yes"),
        ("text", "text"),
        (b"raw", "raw"),
        (bytearray(b"raw"), "raw"),
        (memoryview(b"xrawx")[1:-1], "raw"),
        (memoryview(b""), ""),
    ],
)
def test_scalars(value: Any, expected: str) -> None:
    assert decode(encode({"k": value, "l": [value], "t": (value, value)})) == {
        "k": expected,
        "l": [expected],
        "t": [expected, expected],
    }


def test_a_named_tuple_is_a_list() -> None:
    assert encode({"p": Point(1, "y")}) == encode({"p": ["1", "y"]})


@pytest.mark.parametrize("kind", [dict, UserDict, OrderedDict, MappingProxyType, ChainMap])
def test_any_mapping_is_a_section(kind: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    message = kind({"b": "1", "a": kind({"c": ["2"]})})
    assert encode(message) == encode({"b": "1", "a": {"c": ["2"]}})


def test_the_mapping_decides_the_order() -> None:
    message = OrderedDict(a="1", b="2")
    message.move_to_end("a")
    assert decode(encode({"s": message})) == {"s": {"b": "2", "a": "1"}}
    assert encode(message) == encode({"b": "2", "a": "1"})


@pytest.mark.parametrize(
    "wrong",
    [None, 1.0, {1, 2}, frozenset(), object(), 1j, range(2), iter("ab"), str, "\ud800", "x\udc7f", "\udfff"],
    ids=ascii,
)
def test_values_that_cannot_be_encoded(wrong: Any) -> None:
    for message, place in [
        ({"culprit": wrong}, "culprit"),
        ({"a": {"b": {"culprit": wrong}}}, "a.b.culprit"),
        ({"children": {"net": {"local_ts": ["10.0.0.0/8", wrong]}}}, "children.net.local_ts[1]"),
        ({"fine": {"deep": {}}, "t": (wrong,)}, "t[0]"),
        (UserDict({"u": UserDict({"culprit": wrong})}), "u.culprit"),
    ]:
        with pytest.raises(EncodeError) as caught:
            encode(message)
        assert place in str(caught.value)
        assert "fine" not in str(caught.value)


@pytest.mark.parametrize("wrong", [[], ["x"], (), {}, {"a": "b"}, None, 1.5])
def test_lists_hold_values_only(wrong: Any) -> None:
    with pytest.raises(EncodeError) as caught:
        encode({"a": {"l": ["", "", wrong]}})
    assert "a.l[2]" in str(caught.value)


@pytest.mark.parametrize("name", [1, None, b"bytes", True, ("t",), 1.0], ids=repr)
def test_names_are_str(name: Any) -> None:
    for value in ANY_KIND:
        with pytest.raises(EncodeError, match="parent"):
            encode({"parent": {name: value}})
        with pytest.raises(EncodeError):
            encode({name: value})


@pytest.mark.parametrize("name", ["\0", "tab\t", "\x7f", "ä", "\udcff", "a\x1f", "名", "n" * 31 + "\x80"])
def test_names_to_encode_are_printable_ascii(name: str) -> None:
    for value in ANY_KIND:
        with pytest.raises(EncodeError, match="parent"):
            encode({"parent": {name: value}})


@pytest.mark.parametrize("wrong", [None, "text", b"", [], ["a"], [("a", "b")], 1])
def test_a_message_is_a_mapping(wrong: Any) -> None:
    with pytest.raises((EncodeError, TypeError)):
        encode(wrong)


def test_numbers_beyond_any_value() -> None:
    assert decode(encode({"k": 10**4000})) == {"k": "1" + "0" * 4000}
    with pytest.raises(EncodeError, match="k"):
        encode({"k": 10**70000})


def test_surrogateescape_becomes_bytes() -> None:
    assert encode({"k": "\udcc3\udca4x"}) == encode({"k": "äx"})


def test_strided_values() -> None:
    try:
        data = encode({"k": memoryview(b"a-b-c")[::2]})
    except EncodeError as error:
        assert "k" in str(error)
    else:
        assert decode(data) == {"k": "abc"}


def test_errors_of_the_mapping_come_through() -> None:
    class Broken(UserDict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise LookupError("broken")

        def __iter__(self) -> Iterator[str]:
            raise LookupError("broken")

    for message in (Broken(a="b"), {"s": Broken(a="b")}):
        with pytest.raises(LookupError, match="broken"):
            encode(message)


def test_a_message_that_changes_while_it_is_read() -> None:
    items: list[Any] = []
    message: dict[str, Any] = {}

    class Vandal(int):
        def __repr__(self) -> str:
            items.clear()
            message.clear()
            return "1"

        __str__ = __repr__

    class VandalSection(UserDict[str, Any]):
        def __iter__(self) -> Iterator[str]:
            message.clear()
            items.clear()
            return iter(())

    for culprit in (Vandal(1), VandalSection()):
        items[:] = [Vandal(1), *(str(number) for number in range(1000))]
        message.update(a=culprit, **{f"n{number}": str(number) for number in range(100)}, items=items)
        try:
            encode(message)
        except (EncodeError, RuntimeError):
            pass
        items[:] = [Vandal(1), *(str(number) for number in range(1000))]
        try:
            encode({"l": items, "s": culprit})
        except (EncodeError, RuntimeError):
            pass


def test_subclasses_of_str_are_encoded_by_their_text() -> None:
    class Odd(str):
        def encode(self, *args: Any) -> Any:
            return 5

        def __str__(self) -> str:
            return "other"

    assert encode({Odd("name"): Odd("text"), "l": [Odd("ä")]}) == encode({"name": "text", "l": ["ä"]})
    with pytest.raises(EncodeError):
        encode({Odd("ä"): ""})


def test_a_name_freed_before_its_error_is_reported() -> None:
    message: dict[str, Any] = {}

    class Vandal(bytes):
        def __bytes__(self) -> bytes:
            message.clear()
            return b""

    class VandalSection(UserDict[str, Any]):
        def __iter__(self) -> Iterator[str]:
            message.clear()
            raise EncodeError("no such section")

    for culprit in ([Vandal(), None], VandalSection()):
        message["-".join(["a", "name", "made", "here"])] = culprit
        with pytest.raises(EncodeError):
            encode(message)


def test_a_failed_encode_leaves_nothing_behind() -> None:
    for _ in range(3):
        with pytest.raises(EncodeError):
            encode({"a": "x" * 1000, "b": None})
        assert encode({"a": "b"}) == b"\x03\x01a\x00\x01b"


# --- packets ---


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        ((0, "version"), b"\x00\x00\x00\x09\x00\x07version"),
        ((0, "version", None), b"\x00\x00\x00\x09\x00\x07version"),
        ((0, "c", {}), b"\x00\x00\x00\x03\x00\x01c"),
        ((0, "", {"a": "b"}), b"\x00\x00\x00\x08\x00\x00\x03\x01a\x00\x01b"),
        ((1,), b"\x00\x00\x00\x01\x01"),
        ((1, None, {"a": "b"}), b"\x00\x00\x00\x07\x01\x03\x01a\x00\x01b"),
        ((2,), b"\x00\x00\x00\x01\x02"),
        ((3, "log"), b"\x00\x00\x00\x05\x03\x03log"),
        ((4, "log"), b"\x00\x00\x00\x05\x04\x03log"),
        ((5,), b"\x00\x00\x00\x01\x05"),
        ((6, None, None), b"\x00\x00\x00\x01\x06"),
        ((7, "log"), b"\x00\x00\x00\x05\x07\x03log"),
        ((7, "log", {"a": "b"}), b"\x00\x00\x00\x0b\x07\x03log\x03\x01a\x00\x01b"),
    ],
)
def test_packets(arguments: tuple[Any, ...], data: bytes) -> None:
    assert packet(*arguments) == data


@pytest.mark.parametrize(
    "arguments",
    [
        *((kind,) for kind in (0, 3, 4, 7)),
        *((kind, None, {"a": "b"}) for kind in (0, 7)),
        *((kind, "name") for kind in (1, 2, 5, 6)),
        *((kind, "name", {"a": "b"}) for kind in (3, 4)),
        *((kind, None, {"a": "b"}) for kind in (2, 5, 6)),
        *((kind, "name") for kind in (-1, 8, 255, 256)),
        *((0, name) for name in ("n" * 256, "a\0", "ä", "\x7f")),
    ],
    ids=repr,
)
def test_packets_that_cannot_be(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):  # EncodeError is one
        packet(*arguments)


def test_packet_names() -> None:
    assert packet(3, "n" * 255) == b"\x00\x00\x01\x01\x03\xff" + b"n" * 255
    for wrong in (b"log", 1):
        with pytest.raises((TypeError, ValueError)):
            packet(3, wrong)  # type: ignore[arg-type]


def test_packets_to_512_kib() -> None:
    longest = packet(_wire.CMD_RESPONSE, None, filled(524287))
    assert len(longest) == 4 + 524288 and longest[:5] == b"\x00\x08\x00\x00\x01"
    assert len(packet(_wire.CMD_REQUEST, "name", filled(524282))) == 4 + 524288
    with pytest.raises(EncodeError):
        packet(_wire.CMD_RESPONSE, None, filled(524288))
    with pytest.raises(EncodeError):
        packet(_wire.CMD_REQUEST, "name", filled(524283))


def test_a_packet_names_the_culprit_too() -> None:
    with pytest.raises(EncodeError, match=r"children\.net\.local_ts\[1\]"):
        packet(0, "load-conn", {"children": {"net": {"local_ts": ["", None]}}})


def test_constants() -> None:
    limits = _wire.MAX_PACKET, _wire.MAX_NAME, _wire.MAX_VALUE, _wire.MAX_DEPTH
    assert limits == (reference.MAX_PACKET, reference.MAX_NAME, reference.MAX_VALUE, reference.MAX_DEPTH)
    assert (_wire.CMD_REQUEST, _wire.CMD_RESPONSE, _wire.CMD_UNKNOWN) == (0, 1, 2)
    assert (_wire.EVENT_REGISTER, _wire.EVENT_UNREGISTER) == (3, 4)
    assert (_wire.EVENT_CONFIRM, _wire.EVENT_UNKNOWN, _wire.EVENT) == (5, 6, 7)
