"""Message and MessageReader against decode, the reference codec and hostile bytes."""

from __future__ import annotations

import array
import collections
import copy
import gc
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import reference
from generate import RECORDINGS, SEED, exact, mutated, noise, packed, recorded, trees
from hypothesis import given, settings
from hypothesis import strategies as st

from vicifast._wire import (
    MAX_DEPTH,
    Decoder,
    Framer,
    Message,
    MessageReader,
    Reader,
    decode,
    encode,
    packet,
    to_json,
    to_msgpack,
)
from vicifast.errors import DecodeError, EncodeError

TREE: reference.Tree = (
    ("a", b"1"),
    ("net", (("", (("x", b"y"),)), ("child-sas", (("lan", (("state", b"INSTALLED"), ("ts", [b"10.0.0.0/8", b""]))),)))),
    ("l", []),
    ("a", [b"2", b"3"]),
    ("net", (("x", b"1"), ("x", b""), ("x", ()))),
    ("empty", ()),
    ("", b"\xff\x00"),
    ("a", b"\xc3\xa4"),
)
BLOBS = ("data", "a", "")
ABSENT = ["absent", "A", "aa", "ä", "\udcff", "\ud800", "x" * 255, "x" * 300, "a\0"]
NOTHING = object()


def same(one: object, other: object) -> None:
    """Equal in type and in the order of the names too."""
    assert repr(one) == repr(other)


def expect(message: Message, tree: reference.Tree, values: type = str, binary: tuple[str, ...] = ()) -> None:
    """Check that everything visible of a message and its sections equals the tree."""
    same(message.to_dict(), reference.plain(tree, values, binary))
    names = [name for name, _ in tree]
    assert list(message) == message.keys() == names
    assert len(message) == len(names) and bool(message) == bool(names)
    assert bytes(message) == packed(tree)
    items = message.items()
    assert [name for name, _ in items] == names
    assert message.values() == [value for _, value in items]
    for name in names:
        assert name in message
        every = [other for key, other in items if key == name]
        assert message.get_all(name) == every
        for found in (message[name], message.get(name), message.get(name, default=NOTHING)):
            assert found == every[-1] and type(found) is type(every[-1])
    for (name, content), (_, value) in zip(tree, items, strict=True):
        if isinstance(content, tuple):
            assert isinstance(value, Message)
            expect(value, content, values)
        else:
            same({name: value}, reference.plain(((name, content),), values, binary))


def expect_absent(message: Message, names: list[str]) -> None:
    for name in names:
        assert name not in message
        assert message.get(name) is None
        assert message.get(name, default=NOTHING) is NOTHING
        assert message.get_all(name) == []
        with pytest.raises(KeyError) as caught:
            message[name]
        assert caught.value.args == (name,)


def paths(section: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in section.items():
        yield (name,), value
        if isinstance(value, dict):
            for path, inner in paths(value):
                yield (name, *path), inner


def seen(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Message) else value


# --- content ---


@pytest.mark.parametrize("values", [str, bytes])
@pytest.mark.parametrize("binary", [(), BLOBS])
@pytest.mark.parametrize("tree", [(), TREE, *((pair,) for pair in TREE)], ids=len)
def test_a_message(tree: reference.Tree, values: type[str] | type[bytes], binary: tuple[str, ...]) -> None:
    message = Message(packed(tree), values=values, binary=binary)
    expect(message, tree, values, binary)
    expect_absent(message, ABSENT)


@settings(max_examples=100)
@given(tree=trees)
def test_any_message(tree: reference.Tree) -> None:
    data = packed(tree)
    expect(Message(exact(data)), tree)
    expect(Message(data, values=bytes), tree, bytes)
    expect(Message(data, binary=BLOBS), tree, binary=BLOBS)
    expect(Message(bytearray(data), values=bytes, binary=iter(BLOBS)), tree, bytes, BLOBS)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_messages(path: Path) -> None:
    decoder = Decoder(binary=["data"])
    for data in recorded(path):
        message = Message(data, binary=["data"])
        expect(message, reference.parse(data), binary=("data",))
        same(message.to_dict(), decoder.decode(data))
        assert message == decode(data, binary=["data"])
        assert message.to_msgpack() == to_msgpack(data, binary=["data"])
        assert message.to_json() == to_json(data, binary=["data"])
        assert encode(message) == data


@settings(max_examples=100)
@given(tree=trees)
def test_any_path(tree: reference.Tree) -> None:
    data = packed(tree)
    message = Message(exact(data))
    for path, value in paths(decode(data)):
        same(seen(message.get(*path)), value)
        same(seen(message.get(*path, default=NOTHING)), value)
        absent = (*path, "absent")
        assert message.get(*absent) is None
        assert message.get(*absent, "deeper", default=NOTHING) is NOTHING


def test_paths() -> None:
    message = Message(packed(TREE[:3]))
    assert message.get("net", "child-sas", "lan", "state") == "INSTALLED"
    assert message.get("net", "child-sas", "lan", "ts") == ["10.0.0.0/8", ""]
    assert message.get("net", "", "x") == "y"
    assert message.get("net", "") == {"x": "y"}
    for path in [
        ("a", "1"),
        ("l", "0"),
        ("net", "x"),
        ("x",),
        ("net", "", "y"),
        ("net", "child-sas", "lan", "state", ""),
    ]:
        assert message.get(*path) is None
        assert message.get(*path, default=0) == 0


def test_paths_follow_the_last_of_duplicate_names() -> None:
    message = Message(packed(TREE))
    assert message.get("net", "x") == {}
    assert message.get("net", "child-sas") is None
    assert [net.get("x") for net in message.get_all("net") if isinstance(net, Message)] == [None, {}]
    assert message["net"]["x"] == {}  # type: ignore[call-overload, index]
    hidden = Message(packed((("s", (("x", b"1"),)), ("s", b"text"))))
    assert hidden.get("s", "x") is None and hidden.get("s") == "text"


def test_binary_fields_are_those_of_the_root() -> None:
    data = encode({"data": "x", "l": ["x"], "s": {"data": "x", "l": ["x"]}})
    message = Message(data, binary=["data", "l", "s"])
    assert message.items()[:2] == [("data", b"x"), ("l", [b"x"])]
    section = message["s"]
    assert isinstance(section, Message)
    assert message.get("s", "data") == section["data"] == "x"
    assert section.items() == [("data", "x"), ("l", ["x"])]
    assert section.to_json() == b'{"data":"x","l":["x"]}'
    assert message.get("data") == b"x" and message.get_all("data") == [b"x"]


def test_names_that_are_nearly_the_same() -> None:
    names = ["", "a", "b", "aa", "ab", "ba", "aaa", "aba", "aca", "a" * 20, "a" * 10 + "b" + "a" * 9, "a" * 19 + "b"]
    names += [f"child-{number:03}-lan" for number in range(200)] + ["n" * 254, "n" * 255, "n" * 200 + "m" + "n" * 54]
    tree = tuple((name, f"value of {name}".encode()) for name in names)
    message = Message(packed((*tree, ("s", tree))))
    for name in names:
        assert message[name] == message.get("s", name) == f"value of {name}"
        assert message.get_all(name) == [f"value of {name}"]
    expect_absent(
        message, ["A", "ac", "ada", "a" * 21, "child-200-lan", "child-00-lan", "n" * 253, "n" * 256, "n" * 511]
    )


@pytest.mark.parametrize(
    "count", [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1025, 20_000]
)
def test_any_number_of_elements(count: int) -> None:
    names = [f"{number}" for number in range(count)]
    sections = [(name, (("x", name.encode()), ("l", [name.encode()]))) for name in names[: count // 3]]
    values = [(name, name.encode()) for name in names]
    for tree in (tuple(values), (("s", tuple(values)),), tuple(sections), (("s", tuple(sections)), ("after", b"x"))):
        data = packed(tree)
        message = Message(exact(data))
        same(message.to_dict(), decode(data))
        assert message.keys() == [name for name, _ in tree] and bytes(message) == data
        for path, value in [*paths(decode(data))][-200:]:
            assert seen(message.get(*path)) == value
        same_as_decode(data[:-1])
        same_as_decode(data + b"\x02")


@pytest.mark.parametrize("raw", [b"\xff", b"\xed\xa0\x80", b"a\xf0\x9d\x84", "ä\U0001d11e".encode(), b"\0"])
def test_text_is_lossless(raw: bytes) -> None:
    message = Message(encode({"k": raw, "l": [raw]}))
    text = message["k"]
    assert isinstance(text, str) and text.encode("utf-8", "surrogateescape") == raw
    assert message["l"] == [text]


# --- bytes and other formats ---


@settings(max_examples=100)
@given(tree=trees)
def test_the_other_formats(tree: reference.Tree) -> None:
    data = packed(tree)
    for values in (str, bytes):
        message = Message(exact(data), values=values, binary=BLOBS)
        assert message.to_msgpack() == to_msgpack(data, binary=BLOBS)
        assert message.to_json() == to_json(data, binary=BLOBS)
        for (_, content), value in zip(tree, message.values(), strict=True):
            if isinstance(value, Message):
                assert bytes(value) == packed(content)
                assert value.to_msgpack() == to_msgpack(packed(content))
                assert value.to_json() == to_json(packed(content))


@settings(max_examples=100)
@given(tree=trees)
def test_it_can_be_encoded(tree: reference.Tree) -> None:
    data = packed(tree)
    for values in (str, bytes):
        message = Message(data, values=values)
        assert encode(message) == data
        assert packet(1, None, message) == len(data + b"\x01").to_bytes(4, "big") + b"\x01" + data
        assert encode({"s": message, "k": "v"}) == b"\x01\x01s" + data + b"\x02" + encode({"k": "v"})
        for section in message.values():
            if isinstance(section, Message):
                assert encode({"s": {"t": section}}) == b"\x01\x01s\x01\x01t" + bytes(section) + b"\x02\x02"


def test_encoding_it_has_the_limits_of_any_message() -> None:
    deepest = Message(b"\x01\x00" * 64 + b"\x02" * 64)
    assert encode(deepest) == bytes(deepest)
    with pytest.raises(EncodeError, match="deeper than 64"):
        encode({"s": deepest})
    largest = Message(b"\x03\x00\x00\x00" * 131072)
    long = Message(packed(tuple((str(at), b"v" * 65530) for at in range(8))))
    assert encode(largest) == bytes(largest)
    with pytest.raises(EncodeError, match="524288"):
        encode({"s": long, "t": "v" * 100})
    with pytest.raises(EncodeError, match=r"s\.l\[1\]"):
        encode({"s": {"l": ["x", deepest]}})


# --- object protocol ---


def test_equality() -> None:
    data = packed(TREE)
    message = Message(data)
    net = Message(packed((("net", TREE[4][1]),)))["net"]
    assert isinstance(net, Message)
    assert message == message and not message != message
    assert message == Message(bytearray(data)) and hash(message) == hash(Message(bytearray(data)))
    assert message["net"] == net and hash(message["net"]) == hash(net)
    assert message["net"] == Message(bytes(net)) and hash(net) == hash(Message(bytes(net)))
    assert len({message, Message(data), message["net"], net, Message(b""), message["empty"]}) == 3
    for other in (Message(b""), Message(data[: -len(packed(TREE[-1:]))]), message["net"]):
        assert message != other and not message == other


def test_it_equals_the_mapping_that_decode_gives() -> None:
    for tree in ((), TREE, TREE[1:2]):
        data = packed(tree)
        message, mapping = Message(data), decode(data)
        for equal in (mapping, MappingProxyType(mapping), collections.OrderedDict(mapping)):
            assert message == equal and equal == message
            assert not message != equal
        for other in (
            mapping | {"absent": ""},
            mapping | {"a": "other"},
            list(mapping.items()),
            data,
            None,
            1,
            "Message",
        ):
            assert message != other and other != message
    assert Message(encode({"a": "1"}), values=bytes) == {"a": b"1"}
    assert Message(encode({"a": "1"}), values=bytes) != {"a": "1"}


def test_repr() -> None:
    assert repr(Message(b"")) == "Message({})"
    assert repr(Message(encode({"a": "1", "s": {"l": ["x"]}}))) == "Message({'a': '1', 's': {'l': ['x']}})"
    assert repr(Message(encode({"a": "1"}), values=bytes)) == "Message({'a': b'1'})"
    assert len(repr(Message(b"\x01\x00" * 64 + b"\x02" * 64))) < 1000


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("values", [str, bytes])
def test_pickled(protocol: int, values: type[str] | type[bytes]) -> None:
    message = Message(packed(TREE), values=values, binary=BLOBS)
    again = pickle.loads(pickle.dumps(message, protocol))
    expect(again, TREE, values, BLOBS)
    assert again == message and hash(again) == hash(message)
    assert again.to_json() == message.to_json()
    section = pickle.loads(pickle.dumps(message["net"], protocol))
    expect(section, TREE[4][1], values)


def test_pickled_section_contains_only_itself() -> None:
    section = Message(encode({"secret": "hidden", "s": {"data": "x"}}), binary=["secret", "data"])["s"]
    assert b"hidden" not in pickle.dumps(section)
    assert pickle.loads(pickle.dumps(section)).items() == [("data", "x")]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copied(copied: Any) -> None:
    message = Message(packed(TREE), values=bytes, binary=BLOBS)
    expect(copied(message), TREE, bytes, BLOBS)
    expect(copied(message["net"]), TREE[4][1], bytes)
    assert copied({"m": message}) == {"m": message}


# --- lifetime ---


@pytest.mark.parametrize(
    "make", [bytearray, exact, lambda data: memoryview(bytearray(data)), lambda data: array.array("B", data)]
)
def test_its_source_may_change_and_go(make: Any) -> None:
    source = make(packed(TREE))
    message = Message(source)
    net = message["net"]
    for at in range(len(source)):
        source[at] ^= 0xFF
    if isinstance(source, bytearray):
        source.clear()  # the bytearray would raise BufferError while its buffer is held
    elif isinstance(source, memoryview):
        source.release()
    del source
    gc.collect()
    expect(message, TREE)
    assert isinstance(net, Message)
    expect(net, TREE[4][1])


def test_sections_outlive_the_message() -> None:
    def inner() -> Any:
        message = Message(bytearray(packed(TREE)), values=bytes)
        return message.get_all("net")[0]["child-sas"]  # type: ignore[call-overload, index]

    sections = [inner() for _ in range(100)]
    gc.collect()
    for section in sections:
        expect(section, TREE[1][1][1][1], bytes)
        assert section.get("lan", "ts") == [b"10.0.0.0/8", b""]


def test_a_message_is_called_as_any_class() -> None:
    assert Message(data=b"") == Message(b"") == Message(bytearray())
    assert type(Message(b"")) is type(Message.__new__(Message)) is Message
    call: Any = Message
    for arguments, options in (
        *(((), {}), ((b"", b""), {}), ((b"",), {"data": b""})),
        *(((b"",), {"unknown": 1}), (("text",), {}), ((None,), {})),
    ):
        with pytest.raises(TypeError):
            call(*arguments, **options)
    with pytest.raises(DecodeError):
        Message(b"\x09")


def test_it_cannot_be_changed() -> None:
    message: Any = Message(packed(TREE))
    for name in ("a", "values", "get", "binary", "data", "__dict__", "__class__"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(message, name, b"")
    with pytest.raises(AttributeError):
        message.data  # noqa: B018
    with pytest.raises(AttributeError):
        del message.data
    with pytest.raises(TypeError):
        message["a"] = "x"
    with pytest.raises(TypeError):
        del message["a"]
    for argument in (b"", packed(TREE), b"\xff", None):
        with pytest.raises(TypeError):
            message.__init__(argument)
    with pytest.raises(TypeError):
        message["net"].__init__(b"")
    for shown in (message.keys(), message.values(), message.items(), message.get_all("a"), message["l"]):
        shown.append("changed")
    message.to_dict().clear()
    expect(message, TREE)


def test_it_is_final() -> None:
    with pytest.raises(TypeError):
        type("Sub", (Message,), {})


def test_without_a_message_it_is_empty() -> None:
    message = Message.__new__(Message)
    assert len(message) == 0 and not message
    assert message.keys() == message.values() == message.items() == message.get_all("a") == list(message) == []
    expect_absent(message, ["", "a"])
    assert message.get("a", "b", default=1) == 1
    assert (message.to_dict(), bytes(message), message.to_json(), message.to_msgpack()) == ({}, b"", b"{}", b"\x80")
    assert message == Message(b"") == {} and hash(message) == hash(Message(b"")) and repr(message) == "Message({})"
    assert encode(message) == b""


def test_refused_bytes_are_not_exposed() -> None:
    message: Any = Message.__new__(Message)
    for hostile in (b"\x03\xff", b"\x03\x01a\x00\x01b\x01\x00", b"\x01\x00" * 65 + b"\x02" * 65):
        with pytest.raises(DecodeError):
            message.__init__(hostile)
        assert (message.to_dict(), message.items(), bytes(message)) == ({}, [], b"")
    message.__init__(packed(TREE))
    expect(message, TREE)


# --- misuse ---


@pytest.mark.parametrize("wrong", [None, 1, 1.5, "", "text", [], {}, Message(b"")])
def test_only_bytes_are_read(wrong: Any) -> None:
    with pytest.raises(TypeError):
        Message(wrong)


@pytest.mark.parametrize(
    "options", [{"values": int}, {"values": "str"}, {"values": None}, {"binary": "data"}, {"binary": 1}, {"other": 1}]
)
@pytest.mark.parametrize("kind", [Message, MessageReader])
def test_wrong_options(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        kind(*[b""] * (kind is Message), **options)


def test_wrong_arguments() -> None:
    kind: Any = Message
    message = kind(packed(TREE))
    for call in (kind, lambda: kind(b"", str), lambda: message.get(), lambda: message.get(default=1)):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("wrong", [None, 0, 1.5, b"a", ("a",), ["a"], {"a"}, object(), Message(b"")], ids=repr)
def test_a_name_is_a_str(wrong: Any) -> None:
    message = Message(packed(TREE))
    assert wrong not in message
    for path in ((wrong,), ("net", wrong)):
        with pytest.raises(TypeError):
            message.get(*path)
        with pytest.raises(TypeError):
            message.get(*path, default=1)
    with pytest.raises((KeyError, TypeError)):
        message[wrong]


def test_a_name_of_a_kind_of_str() -> None:
    class Name(str):
        def encode(self, *arguments: Any) -> Any:
            return 5

        def __str__(self) -> str:
            return self

        def isascii(self) -> Any:
            return 5

    assert Name("ä") not in Message(packed(TREE))
    message = Message(packed(TREE))
    assert Name("a") in message
    assert message[Name("a")] == message.get(Name("a")) == "ä"
    assert message.get(Name("net"), Name("x")) == {}
    assert len(message.get_all(Name("net"))) == 2


# --- hostile bytes ---


def refusal_of_decode(data: Any) -> DecodeError | None:
    try:
        decode(data)
    except DecodeError as error:
        return error
    return None


def same_as_decode(data: bytes) -> bool:
    given_ = exact(data)
    refused = refusal_of_decode(given_)
    if refused is None:
        expect(Message(given_), reference.parse(data))
        return True
    for options in ({}, {"values": bytes}, {"binary": BLOBS}):
        with pytest.raises(DecodeError) as caught:
            Message(given_, **options)
        assert (caught.value.offset, caught.value.reason) == (refused.offset, refused.reason), data.hex()
    return False


def test_cut_at_every_byte() -> None:
    data = packed(TREE)
    whole = sum(same_as_decode(data[:end]) for end in range(len(data) + 1))
    assert whole == len(TREE) + 1


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_messages_cut(path: Path) -> None:
    rng = random.Random(path.stem)
    data = max(recorded(path), key=lambda data: len(data) if len(data) < 3000 else 0)
    for end in sorted(rng.sample(range(len(data) + 1), min(200, len(data)))):
        same_as_decode(data[:end])


@given(data=st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    same_as_decode(data)


def test_hostile_bytes() -> None:
    print(f"VICIFAST_SEED={SEED}")
    rng = random.Random(SEED)
    seeds = [packed(TREE), encode({"s": {"t": {"k": b"\xff", "l": ["", "x"]}}, "data": "x"})]
    accepted = 0
    for _ in range(2000):
        accepted += same_as_decode(noise(rng))
        accepted += same_as_decode(mutated(rng, rng.choice(seeds)))
    assert 40 < accepted < 3600


def test_limits() -> None:
    deepest = Message(b"\x01\x01s" * 64 + b"\x03\x01k\x00\x01v" + b"\x02" * 64)
    assert deepest.get(*"s" * 64, "k") == "v"
    same_as_decode(b"\x01\x00" * 65 + b"\x02" * 65)
    same_as_decode(b"\x01\x00" * 262144)
    largest = b"\x03\x00\x00\x00" * 131072
    message = Message(largest)
    assert len(message) == 131072 and message.get_all("") == [""] * 131072 and message == {"": ""}
    same_as_decode(largest + b"\x02")
    items = Message(b"\x04\x00" + b"\x05\x00\x00" * 174_000 + b"\x06")
    assert items[""] == [""] * 174_000
    longest = Message(encode({"n" * 255: "v" * 65535}))
    assert longest["n" * 255] == "v" * 65535 and "n" * 254 not in longest


# --- MessageReader ---


def messages(reader: Reader, stream: bytes, step: int) -> list[Any]:
    framer, found = Framer(reader), []
    for at in range(0, len(stream), step):
        piece = stream[at : at + step]
        with memoryview(framer) as room:
            room[: len(piece)] = piece
        framer.received(len(piece))
        found += [message for _, _, message in framer.packets()]
    with memoryview(framer) as room:
        room[:] = b"\xff" * len(room)
    assert framer.error is None and framer.pending == 0
    return found


@pytest.mark.parametrize("step", [1, 3, 100, 4096])
def test_messages_of_a_stream_are_kept_when_its_buffer_is_used_again(step: int) -> None:
    sent = [packed(TREE), b"", encode({"data": "x", "s": {"data": "x"}})] * 20
    stream = b"".join((len(data) + 1).to_bytes(4, "big") + b"\x01" + data for data in sent)
    found = messages(MessageReader(values=bytes, binary=["data"]), stream, step)
    assert len(found) == len(sent)
    for data, message in zip(sent, found, strict=True):
        assert type(message) is Message
        expect(message, reference.parse(data), bytes, ("data",))
    for data, message in zip(sent, messages(MessageReader(binary=BLOBS), stream, step), strict=True):
        expect(message, reference.parse(data), binary=BLOBS)


def test_messages_of_events_by_their_names() -> None:
    readers = {"log": MessageReader(values=bytes), "list-cert": MessageReader(binary=["data"])}
    framer = Framer(Decoder(), readers)
    message = {"data": "x"}
    framer.feed(packet(7, "log", message) + packet(7, "list-cert", message) + packet(1, None, message))
    found = [body for _, _, body in framer.packets()]
    assert [type(body) for body in found] == [Message, Message, dict]
    assert [seen(body) for body in found] == [{"data": b"x"}, {"data": b"x"}, {"data": "x"}]
    assert found[0] == found[1] == Message(encode(message))


def test_malformed_messages_of_a_stream_are_reported() -> None:
    good = packed(TREE)
    sent = [good[:end] for end in range(len(good) + 1)]
    stream = b"".join((len(data) + 1).to_bytes(4, "big") + b"\x01" + data for data in sent)
    for data, found in zip(sent, messages(MessageReader(), stream, 500), strict=True):
        refused = refusal_of_decode(data)
        if refused is None:
            expect(found, reference.parse(data))
        else:
            assert type(found) is DecodeError and found.args == refused.args and found.offset == refused.offset


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_streams(path: Path) -> None:
    sent = [data for data in recorded(path) if len(data) < 524288]
    stream = b"".join((len(data) + 1).to_bytes(4, "big") + b"\x01" + data for data in sent)
    found = messages(MessageReader(), stream, 10_000)
    assert [bytes(message) for message in found] == sent
    assert [message.to_dict() for message in found] == [decode(data) for data in sent]


def test_a_reader_made_without_init() -> None:
    reader = MessageReader.__new__(MessageReader)
    [message] = messages(reader, packet(1, None, {"a": "1"}), 100)
    assert message == {"a": "1"}


def test_message_is_encoded_with_its_duplicate_names() -> None:
    raw = b"\x03\x01a\x00\x01x\x03\x01a\x00\x01y\x01\x01s\x01\x01t\x02\x02"
    assert encode(Message(raw)) == raw
    assert encode({"q": Message(raw), "z": "1"}) == b"\x01\x01q" + raw + b"\x02" + encode({"z": "1"})


def test_a_message_within_a_message_keeps_the_limits() -> None:
    deep: dict[str, object] = {}
    for _ in range(MAX_DEPTH):
        deep = {"s": deep, "k": "v", "t": {"l": ["1"]}}
    whole = Message(encode(deep))
    assert encode(whole) == encode(deep)
    assert encode({"x": whole["s"]}) == encode({"x": deep["s"]})
    with pytest.raises(EncodeError, match=f"^x: sections nested deeper than {MAX_DEPTH}"):
        encode({"x": whole})
    filled = Message(encode({f"k{i}": "x" * 60000 for i in range(8)}))
    with pytest.raises(EncodeError, match="longer than 524288"):
        encode({"a": filled, "b": "x" * 60000})
